package pipeline

import (
	"fmt"
	"testing"
)

// The model of the pool's lock and its intake: callers who submit while others have
// the lock leave their call and go, and whoever unlocks last takes it in. Its steps
// are single operations on the mutex and on the intake, of which any goroutine's may
// come next. No call may be left behind, or be taken in twice.

const (
	intakeCallers = 3 // in submit
	intakeOthers  = 1 // in a function that locks and unlocks
)

type intakeStep uint8

const (
	beforeTry  intakeStep = iota // submit: TryLock
	beforeLock                   // others: Lock
	inLock                       // has the lock, for its own ends
	toLeave                      // submit: puts the call into the intake
	left                         // submit: TryLock once more
	takes                        // has the lock, and takes the intake in
	toUnlock                     // Unlock
	toLook                       // is there anything in the intake?
	toRetry                      // there is: TryLock
	through
)

// intakeState is comparable: it is the key of the states that were seen.
type intakeState struct {
	at     [intakeCallers + intakeOthers]intakeStep
	locked bool
	intake [intakeCallers]bool
	taken  [intakeCallers]uint8
}

// intakeFlaws are mistakes that the model must notice.
type intakeFlaws struct {
	leavesAndGoes bool // who leaves a call does not try the lock once more
	looksFirst    bool // who unlocks has looked into the intake while it had the lock
	looksOnce     bool // who has taken in does not look again
}

func (s intakeState) next(f intakeFlaws, yield func(intakeState)) {
	for i, at := range s.at {
		n := s
		lockOr := func(got, not intakeStep) {
			if n.at[i] = not; !s.locked {
				n.locked, n.at[i] = true, got
			}
		}
		switch at {
		case beforeTry:
			lockOr(inLock, toLeave)
		case beforeLock:
			if s.locked {
				continue
			}
			lockOr(inLock, beforeLock)
		case inLock:
			if i < intakeCallers {
				n.taken[i]++
			}
			n.at[i] = toUnlock
			if f.looksFirst && s.intake != [intakeCallers]bool{} {
				n.at[i] = takes
			}
		case toLeave:
			n.intake[i], n.at[i] = true, left
			if f.leavesAndGoes {
				n.at[i] = through
			}
		case left:
			lockOr(takes, through)
		case takes:
			for c, there := range s.intake {
				if there {
					n.intake[c] = false
					n.taken[c]++
				}
			}
			n.at[i] = toUnlock
		case toUnlock:
			n.locked, n.at[i] = false, toLook
			if f.looksFirst || f.looksOnce && s.taken != [intakeCallers]uint8{} {
				n.at[i] = through
			}
		case toLook:
			if n.at[i] = through; s.intake != [intakeCallers]bool{} {
				n.at[i] = toRetry
			}
		case toRetry:
			lockOr(takes, through)
		case through:
			continue
		}
		yield(n)
	}
}

// exploreIntake visits every state that can be reached, and returns what is wrong
// with one of them.
func exploreIntake(f intakeFlaws) (states int, fault string) {
	var start intakeState
	for i := range intakeOthers {
		start.at[intakeCallers+i] = beforeLock
	}
	seen := map[intakeState]bool{start: true}
	todo := []intakeState{start}
	for len(todo) > 0 && fault == "" {
		s := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		ended := true
		s.next(f, func(n intakeState) {
			ended = false
			if !seen[n] {
				seen[n] = true
				todo = append(todo, n)
			}
		})
		for c, times := range s.taken {
			switch {
			case times > 1:
				fault = fmt.Sprintf("call %d is taken in %d times", c, times)
			case ended && times == 0:
				fault = fmt.Sprintf("call %d is left behind", c)
			case ended && s.locked:
				fault = "the lock is left locked"
			}
		}
	}
	return len(seen), fault
}

func TestModel_Intake(t *testing.T) {
	states, fault := exploreIntake(intakeFlaws{})
	if fault != "" {
		t.Error(fault)
	}
	if states < 1000 {
		t.Errorf("%d states: the model does not get anywhere", states)
	}
	t.Logf("%d states", states)
	for name, flaws := range map[string]intakeFlaws{
		"LeavesAndGoes": {leavesAndGoes: true},
		"LooksFirst":    {looksFirst: true},
		"LooksOnce":     {looksOnce: true},
	} {
		t.Run(name, func(t *testing.T) {
			if _, fault := exploreIntake(flaws); fault == "" {
				t.Error("no fault: the model does not notice")
			} else {
				t.Log(fault)
			}
		})
	}
}

package pipeline

import (
	"fmt"
	"testing"
)

// The model of the pool's lock and its intake: callers who submit while others have
// the lock leave their call and go, and whoever unlocks last takes it in. Its steps
// are single operations on the mutex, on held and on the intake, of which any
// goroutine's may come next. A TryLock may fail for no reason, as Go's may. No call
// may be left behind, or be taken in twice.

const (
	intakeCallers = 3 // in submit
	intakeOthers  = 1 // in a function that locks and unlocks
)

type intakeStep uint8

const (
	beforeTry  intakeStep = iota // submit: TryLock
	beforeLock                   // others: Lock
	locked                       // sets held
	inLock                       // does what it has locked for
	toRelease                    // unlock: clears held
	toUnlock                     // unlock: Unlock
	toLook                       // unlock: is there anything in the intake?
	toLeave                      // submit: puts the call into the intake
	attends                      // attend: is there anything in the intake?
	asks                         // attend: does anybody hold the lock?
	tries                        // attend: TryLock
	takes                        // attend: sets held, and takes the intake in
	releases                     // attend: clears held
	unlocks                      // attend: Unlock
	through
)

// intakeState is comparable: it is the key of the states that were seen.
type intakeState struct {
	at     [intakeCallers + intakeOthers]intakeStep
	locked bool
	held   bool
	intake [intakeCallers]bool
	taken  [intakeCallers]uint8
}

// intakeFlaws are mistakes that the model must notice.
type intakeFlaws struct {
	leavesAndGoes bool // who leaves a call does not attend to it
	looksFirst    bool // who unlocks has looked into the intake before he cleared held
	looksOnce     bool // who has taken in does not look again
	trustsTry     bool // a TryLock that fails is taken for somebody who looks later
}

func (s intakeState) next(f intakeFlaws, yield func(intakeState)) {
	empty := s.intake == [intakeCallers]bool{}
	for i, at := range s.at {
		n := s
		to := func(step intakeStep) {
			n.at[i] = step
			yield(n)
		}
		tryLock := func(got, not intakeStep) {
			to(not) // for no reason
			if !s.locked {
				n.locked = true
				to(got)
			}
		}
		switch at {
		case beforeTry:
			tryLock(locked, toLeave)
		case beforeLock:
			if !s.locked {
				n.locked = true
				to(locked)
			}
		case locked:
			n.held = true
			to(inLock)
		case inLock:
			if i < intakeCallers {
				n.taken[i]++
			}
			if f.looksFirst && !empty {
				to(takes)
			} else {
				to(toRelease)
			}
		case toRelease:
			n.held = false
			to(toUnlock)
		case toUnlock:
			n.locked = false
			if f.looksFirst {
				to(through)
			} else {
				to(toLook)
			}
		case toLook:
			if empty {
				to(through)
			} else {
				to(attends)
			}
		case toLeave:
			n.intake[i] = true
			if f.leavesAndGoes {
				to(through)
			} else {
				to(attends)
			}
		case attends:
			switch {
			case empty:
				to(through)
			case f.trustsTry:
				to(tries)
			default:
				to(asks)
			}
		case asks:
			if s.held {
				to(through)
			} else {
				to(tries)
			}
		case tries:
			if f.trustsTry {
				tryLock(takes, through)
			} else {
				tryLock(takes, attends)
			}
		case takes:
			n.held = true
			for c, there := range s.intake {
				if there {
					n.intake[c] = false
					n.taken[c]++
				}
			}
			to(releases)
		case releases:
			n.held = false
			to(unlocks)
		case unlocks:
			n.locked = false
			if f.looksFirst || f.looksOnce {
				to(through)
			} else {
				to(attends)
			}
		}
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
			case ended && (s.locked || s.held):
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
		"TrustsTryLock": {trustsTry: true},
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

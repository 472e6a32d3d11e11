package pipeline

import (
	"fmt"
	"testing"
)

// The model: one connection, a few calls, and everything that can happen to them,
// in every order. Its steps are what the code does between two points at which
// another goroutine can get in. The invariants are those of the package comment.

const modelCalls = 3

type place uint8

const (
	atDriver place = iota // new
	inQueue
	inGroup
	atEnd // finished
)

type driver uint8

const (
	leading  driver = iota // the leader is in Run
	handing                // Run has returned false, Finish is about to be called
	standing               // somebody is in Finish
	leaving                // Finish's context has ended, the call is not given up yet
	gaveUp                 // given up, Finish waits for the end
	gone                   // the call is finished, and its driver knows
)

type message uint8

const (
	nothing message = iota
	token
	news
)

type modelCall struct {
	at        place
	who       driver
	wake      message
	holds     bool // the driver has the token, and reads
	abandoned bool
	settled   bool
	asked     bool // the request to cancel it was decided on
	losses    uint8
	strays    uint8
	foreign   bool // finished with a cancellation that was not meant for it
}

type link uint8

const (
	closed link = iota
	free
	busy
	parked
)

// modelState is comparable: it is the key of the states that were seen.
type modelState struct {
	calls  [modelCalls]modelCall
	queue  [modelCalls]int8 // numbers of calls, -1 behind the last
	group  [modelCalls]int8
	head   int8
	link   link
	ending bool // the group is answered, ReadyForQuery is read by the last head's driver, or a goroutine

	// Requests to cancel: sent for the group under way or for one before it, not
	// yet delivered; and delivered, but not returned.
	sent, old, delivered uint8
	cancelled            bool // one was sent since the group began
	hit                  bool // the head is being cancelled on the server
}

// modelFlaws are mistakes that the invariants must catch.
type modelFlaws struct {
	noParking     bool // the connection takes a new group although a request is on its way
	dropsToken    bool // a leader that leaves while reading takes the token along
	requeuesAll   bool // a call that nobody wants is queued again
	tokenToLast   bool // the token is handed to the last call of the group
	noRerun       bool // a stray cancellation is its call's outcome
	forgetsQueue  bool // who frees a connection does not look for what waits
	movesAndStays bool // calls that move on stay in the group as well
}

type modelRun struct {
	flaws  modelFlaws
	seen   map[modelState]struct{}
	fault  string
	steps  int
	ends   int
	before map[modelState]step // how it was reached
}

type step struct {
	from modelState
	what string
}

func (s *modelState) push(list *[modelCalls]int8, c int8) bool {
	for i := range list {
		if list[i] == -1 {
			list[i] = c
			return true
		}
	}
	return false
}

func none() (l [modelCalls]int8) {
	for i := range l {
		l[i] = -1
	}
	return l
}

func size(list [modelCalls]int8) (n int8) {
	for _, c := range list {
		if c >= 0 {
			n++
		}
	}
	return n
}

// explore visits every state that can be reached, and stops at the first fault.
func (r *modelRun) explore() {
	start := modelState{queue: none(), group: none(), link: closed}
	r.seen = map[modelState]struct{}{start: {}}
	r.before = map[modelState]step{}
	todo := []modelState{start}
	for len(todo) > 0 && r.fault == "" {
		s := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		moved := false
		r.next(s, func(what string, must bool, n modelState) {
			r.steps++
			moved = moved || must
			if _, ok := r.seen[n]; ok {
				return
			}
			r.seen[n] = struct{}{}
			r.before[n] = step{s, what}
			if fault := r.invariants(n); fault != "" && r.fault == "" {
				r.fault = fault + r.trace(n)
			}
			todo = append(todo, n)
		})
		if !moved { // only what may happen can happen: this may be the end
			r.ends++
			for i, c := range s.calls {
				if c.who != gone && r.fault == "" {
					r.fault = fmt.Sprintf("call %d waits for ever", i) + r.trace(s)
				}
			}
			if s.link == busy || s.link == parked {
				r.fault = "the connection is never free again" + r.trace(s)
			}
		}
	}
}

func (r *modelRun) trace(s modelState) (out string) {
	for n := 0; n < 60; n++ {
		b, ok := r.before[s]
		if !ok {
			break
		}
		out = "\n\t" + b.what + out
		s = b.from
	}
	return out
}

func (s *modelState) finish(i int8, foreign bool) {
	c := &s.calls[i]
	c.at, c.foreign = atEnd, foreign
}

// tell is finish for those who are not the driver.
func (r *modelRun) tell(s *modelState, i int8) {
	s.finish(i, false)
	r.post(s, i, news)
}

func (r *modelRun) post(s *modelState, i int8, m message) {
	if s.calls[i].wake != nothing && r.fault == "" {
		r.fault = fmt.Sprintf("a second message for call %d", i) + r.trace(*s)
	}
	s.calls[i].wake = m
}

// requeue puts calls back at the front. self is not told.
func (r *modelRun) requeue(s *modelState, calls []int8, self int8) {
	kept := none()
	for _, i := range calls {
		if s.calls[i].abandoned && !r.flaws.requeuesAll {
			if i == self {
				s.finish(i, false)
			} else {
				r.tell(s, i)
			}
			continue
		}
		s.calls[i].at = inQueue
		s.push(&kept, i)
	}
	for _, i := range s.queue {
		if i >= 0 {
			s.push(&kept, i)
		}
	}
	s.queue = kept
}

// release frees the connection, which takes what is queued along.
func (r *modelRun) release(s *modelState) {
	s.link, s.group, s.head, s.ending, s.cancelled, s.hit = free, none(), 0, false, false, false
	if size(s.queue) == 0 || r.flaws.forgetsQueue {
		return
	}
	s.link, s.group, s.queue = busy, s.queue, none()
	r.begin(s)
	to := s.group[0]
	if r.flaws.tokenToLast {
		to = s.group[size(s.group)-1]
	}
	r.post(s, to, token)
}

func (r *modelRun) begin(s *modelState) {
	s.old += s.sent
	s.sent = 0
	for _, i := range s.group {
		if i >= 0 {
			s.calls[i].at, s.calls[i].settled = inGroup, false
			if s.calls[i].abandoned && r.fault == "" {
				r.fault = fmt.Sprintf("call %d is sent although nobody wants it", i) + r.trace(*s)
			}
		}
	}
}

// lose is the loss of the connection, noticed by the head's driver.
func (r *modelRun) lose(s *modelState, self int8) {
	var again []int8
	for _, i := range s.group[s.head:] {
		if i < 0 {
			continue
		}
		s.calls[i].settled = true
		if s.calls[i].losses++; s.calls[i].losses <= 1 {
			again = append(again, i)
		} else if i == self {
			s.finish(i, false)
		} else {
			r.tell(s, i)
		}
	}
	// Requests that are on their way name a backend that is no more.
	s.link, s.group, s.head, s.ending, s.hit, s.cancelled = closed, none(), 0, false, false, false
	s.sent, s.old, s.delivered = 0, 0, 0
	r.requeue(s, again, self)
}

// next calls yield for each step that can be taken from s. must says that the step
// happens sooner or later, if nothing else does.
func (r *modelRun) next(s modelState, yield func(what string, must bool, n modelState)) {
	if s.link == closed && size(s.queue) > 0 {
		n := s
		r.release(&n) // a new connection
		yield("a connection is opened", true, n)
	}
	for i := range int8(modelCalls) {
		c := s.calls[i]
		name := func(what string) string { return fmt.Sprintf("call %d: %s", i, what) }
		switch {
		case c.who == gone:
			continue
		case c.who == handing:
			n := s
			n.calls[i].who = standing
			yield(name("Finish takes over"), true, n)
			continue
		case c.who == leaving: // giveUp
			n := s
			d := &n.calls[i]
			d.abandoned, d.who = true, gaveUp
			if c.at == inQueue {
				q := none()
				for _, j := range n.queue {
					if j >= 0 && j != i {
						n.push(&q, j)
					}
				}
				n.queue = q
				n.finish(i, false)
				d.who = gone
			} else if c.at == atDriver {
				n.finish(i, false)
				d.who = gone
			}
			yield(name("is given up"), true, n)
			continue
		case c.at == atDriver:
			n := s
			if s.link == free && size(s.queue) == 0 {
				n.link, n.group[0], n.head = busy, i, 0
				r.begin(&n)
				n.cancelled = false
				n.calls[i].holds = true
			} else {
				n.calls[i].at = inQueue
				n.push(&n.queue, i)
			}
			yield(name("is submitted"), true, n)
		case c.holds:
			r.reads(s, i, name, yield)
		case c.wake != nothing:
			n := s
			d := &n.calls[i]
			d.wake = nothing
			if c.wake == news || c.at == atEnd {
				d.who = gone
			} else {
				d.holds = true
			}
			yield(name("its driver wakes"), true, n)
		}
		// What may happen at any moment.
		if c.at == atEnd && c.holds {
			continue
		}
		switch {
		case c.who == leading && c.at != atEnd:
			n := s
			d := &n.calls[i]
			d.who = handing
			if c.holds {
				d.holds = false
				if !r.flaws.dropsToken {
					r.post(&n, i, token)
				}
			}
			yield(name("Run's context ends"), false, n)
		case c.who == standing && c.at != atEnd:
			n := s
			d := &n.calls[i]
			d.who = leaving
			if c.holds {
				d.holds = false
				r.post(&n, i, token)
			}
			yield(name("Finish's context ends"), false, n)
		case c.who == gaveUp && !c.asked && c.at == inGroup && !c.settled && s.link == busy:
			n := s
			n.calls[i].asked = true
			n.sent++
			n.cancelled = true
			yield(name("is to be cancelled"), false, n)
		}
	}
	// Requests travel, hit what they find, and return.
	if s.sent > 0 || s.old > 0 {
		n := s
		if n.old > 0 {
			n.old--
			if s.link == busy && !s.ending && r.fault == "" && !r.flaws.noRerun {
				r.fault = "a request to cancel hits a later group" + r.trace(s)
			}
		} else {
			n.sent--
		}
		n.delivered++
		if s.link == busy && !s.ending {
			n.hit = true
		}
		yield("a request to cancel is delivered", true, n)
	}
	if s.delivered > 0 {
		n := s
		n.delivered--
		if s.link == parked && n.sent+n.old+n.delivered == 0 {
			r.release(&n)
		}
		yield("a request to cancel returns", true, n)
	}
}

// reads are the steps of the driver of call i, which has the token.
func (r *modelRun) reads(s modelState, i int8, name func(string) string, yield func(string, bool, modelState)) {
	c := s.calls[i]
	if s.head >= modelCalls || s.group[s.head] != i {
		r.fault = name("has the token and is not the head") + r.trace(s)
		return
	}
	pass := func(n *modelState) {
		d := &n.calls[i]
		d.holds, d.settled = false, true
		if d.at == atEnd {
			d.who = gone
		}
		n.hit = false
		if n.head++; n.head < size(n.group) {
			r.post(n, n.group[n.head], token)
			return
		}
		if n.sent+n.old+n.delivered > 0 && !r.flaws.noParking {
			n.link = parked
			n.group, n.head = none(), 0
			return
		}
		r.release(n)
	}
	n := s // a request that hits may come too late to show
	n.finish(i, false)
	pass(&n)
	yield(name("has its answer"), true, n)
	// An error, of its own or because of a request.
	fail := func(what string, stray bool) {
		n := s
		rest := []int8{}
		for _, j := range s.group[s.head+1:] {
			if j >= 0 {
				rest = append(rest, j)
			}
		}
		for k := int(s.head) + 1; k < modelCalls; k++ {
			n.group[k] = -1
		}
		n.calls[i].settled = true
		if stray {
			n.calls[i].strays++
			rest = append([]int8{i}, rest...)
		} else {
			n.finish(i, what == "is cancelled" && !c.abandoned)
		}
		r.requeue(&n, rest, i)
		pass(&n)
		yield(name(what), false, n)
	}
	fail("fails", false)
	if s.head+1 < size(s.group) { // the head takes long
		n := s
		rest := []int8{}
		for k := int(s.head) + 1; k < modelCalls; k++ {
			if j := s.group[k]; j >= 0 {
				rest = append(rest, j)
				if !r.flaws.movesAndStays {
					n.group[k] = -1
				}
			}
		}
		r.requeue(&n, rest, i)
		yield(name("takes long, those behind it move on"), false, n)
	}
	if s.hit {
		ours := s.cancelled && c.strays < 2 && !c.abandoned && !r.flaws.noRerun
		fail("is cancelled", ours)
	}
	if c.losses == 0 || s.calls[0].losses == 0 { // bounds the model
		n := s
		n.calls[i].holds = false
		r.lose(&n, i)
		if n.calls[i].at == atEnd {
			n.calls[i].who = gone
		}
		yield(name("loses the connection"), false, n)
	}
}

// invariants returns what is wrong with a state.
func (r *modelRun) invariants(s modelState) string {
	tokens := 0
	for i, c := range s.calls {
		i := int8(i)
		queued, grouped := false, false
		for _, j := range s.queue {
			queued = queued || j == i
		}
		for k, j := range s.group {
			grouped = grouped || j == i && int8(k) >= s.head
		}
		switch {
		case queued && grouped, queued != (c.at == inQueue), grouped && c.at != inGroup, c.at == inGroup && !grouped:
			return fmt.Sprintf("call %d is not in one place", i)
		case c.holds && c.wake == token:
			return fmt.Sprintf("call %d has the token twice", i)
		case c.at != atEnd && c.who == gone:
			return fmt.Sprintf("call %d has no driver", i)
		case c.foreign && c.strays < 2:
			return fmt.Sprintf("call %d ends with another's cancellation", i)
		}
		if c.holds || c.wake == token {
			tokens++
			if s.link != busy || s.head >= modelCalls || s.group[s.head] != i {
				return fmt.Sprintf("call %d has the token and is not the head", i)
			}
		}
	}
	if s.link == busy && tokens != 1 {
		return fmt.Sprintf("%d tokens of a busy connection", tokens)
	}
	if s.link != busy && tokens > 0 {
		return "a token of a connection that is not busy"
	}
	if s.link == free && size(s.queue) > 0 {
		return "a call is queued beside a free connection"
	}
	return ""
}

func TestModel(t *testing.T) {
	r := new(modelRun)
	r.explore()
	if r.fault != "" {
		t.Fatal(r.fault)
	}
	t.Logf("%d states, %d steps, %d ends", len(r.seen), r.steps, r.ends)
	if len(r.seen) < 10_000 {
		t.Errorf("%d states: the model does not get anywhere", len(r.seen))
	}
	for name, flaws := range map[string]modelFlaws{
		"NoParking":     {noParking: true},
		"DropsToken":    {dropsToken: true},
		"RequeuesAll":   {requeuesAll: true},
		"TokenToLast":   {tokenToLast: true},
		"NoRerun":       {noRerun: true},
		"ForgetsQueue":  {forgetsQueue: true},
		"MovesAndStays": {movesAndStays: true},
	} {
		t.Run(name, func(t *testing.T) {
			r := &modelRun{flaws: flaws}
			r.explore()
			if r.fault == "" {
				t.Errorf("%d states and no fault: the model does not notice", len(r.seen))
			}
			t.Log(r.fault)
		})
	}
}

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
	inGroup // of the connection: taken with it, or sent
	atEnd   // finished
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
	grant // the connection is the driver's, who is to send
)

type modelCall struct {
	at        place
	who       driver
	wake      message
	holds     bool // the driver has the token, and reads
	sends     bool // the driver has the connection, and is to send
	abandoned bool
	underWay  bool
	unwanted  bool
	asked     bool // the request to cancel it was decided on
	refused   bool // its dispatch was refused, once
	renewed   bool // its arguments did not encode, once
	alone     bool // it has met a short timeout: it runs alone
	deaf      bool // its driver waits, and nobody knows
	requested bool // the request to cancel it was sent
	timeouts  uint8
	losses    uint8
	strays    uint8
	foreign   bool // finished with a cancellation, or a timeout, that was not meant for it
}

type link uint8

const (
	closed link = iota
	free
	taken // it has a group, which is not sent yet
	busy
	parked
)

// modelState is comparable: it is the key of the states that were seen.
type modelState struct {
	calls [modelCalls]modelCall
	queue [modelCalls]int8 // numbers of calls, -1 behind the last
	group [modelCalls]int8
	head  int8
	link  link
	skip  bool // the end of a failed transaction is to be read before the head's answer
	moved bool // calls behind the head are answered elsewhere

	// The server's.
	wrote [modelCalls]int8 // the group as it was sent
	next  int8             // of it, the call that is answered next
	armed bool             // with short timeouts

	arming bool // these are being set: the group is not under way yet

	// Requests to cancel: sent for the group under way or for one before it, not
	// yet delivered; and delivered, but not returned.
	sent, old, delivered uint8
	cancelled            bool // one was sent since the group began
	hit                  bool // the head is being cancelled on the server
	killed               bool // the connection was closed under its reader
}

// modelWorld is what can happen, beside the rest.
type modelWorld struct {
	stay                                    [modelCalls]bool // calls that somebody wants to the end
	apart                                   [modelCalls]bool // calls that have transactions of their own
	refusals, grants, kills, moves, timeout bool
}

// modelFlaws are mistakes that the invariants must catch.
type modelFlaws struct {
	noParking       bool // the connection takes a new group although a request is on its way
	dropsToken      bool // a leader that leaves while reading takes the token along
	requeuesAll     bool // a call that nobody wants is queued again
	tokenToLast     bool // the token is handed to the last call of the group
	noRerun         bool // a stray cancellation is its call's outcome
	forgetsQueue    bool // who frees a connection does not look for what waits
	movesAndStays   bool // calls that move on stay in the group as well
	cancelsUnsent   bool // a request goes out for a call that is not under way
	forgetsUnwanted bool // a call that was to be cancelled before it was sent is not, later
	killedStays     bool // a connection that was closed under its reader is given back
	skipsGroup      bool // an error takes all of the group along
	skipsNothing    bool // the next transaction's head does not wait for the end of the failed one
	timeoutEnds     bool // a short timeout is its call's outcome
	timeoutInGroup  bool // a call that has met a short timeout may meet another
	strayInGroup    bool // a call that has been hit by as many strays as may be may meet another
	beginsEarly     bool // requests do not wait until the timeouts are set
	neverLeaves     bool // a parked connection waits for its request for ever
	awaitsRenewal   bool // the driver of a call that is new again waits for a message
	grantsTwice     bool // a granted connection is sent off by another as well
}

type modelRun struct {
	world  modelWorld
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

func push(list *[modelCalls]int8, c int8) {
	for i := range list {
		if list[i] == -1 {
			list[i] = c
			return
		}
	}
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

func without(list [modelCalls]int8, c int8) [modelCalls]int8 {
	l := none()
	for _, j := range list {
		if j >= 0 && j != c {
			push(&l, j)
		}
	}
	return l
}

// explore visits every state that can be reached, and stops at the first fault.
func (r *modelRun) explore() {
	start := modelState{queue: none(), group: none(), wrote: none(), link: closed}
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
			if fault := r.invariants(n); fault != "" {
				r.fail(n, fault)
			}
			todo = append(todo, n)
		})
		if !moved { // only what may happen can happen: this may be the end
			r.ends++
			for i, c := range s.calls {
				if c.who != gone {
					r.fail(s, fmt.Sprintf("call %d waits for ever", i))
				}
			}
			if s.link != closed && s.link != free {
				r.fail(s, "the connection is never free again")
			}
		}
	}
}

// fail notes the first fault.
func (r *modelRun) fail(s modelState, what string) {
	if r.fault == "" {
		r.fault = what + r.trace(s)
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
	if s.calls[i].wake != nothing {
		r.fail(*s, fmt.Sprintf("a second message for call %d", i))
	}
	s.calls[i].wake = m
}

// requeue puts calls back at the front. self is not told.
func (r *modelRun) requeue(s *modelState, calls []int8, self int8) {
	kept := none()
	for _, i := range calls {
		s.calls[i].underWay = false
		if s.calls[i].abandoned && !r.flaws.requeuesAll {
			if i == self {
				s.finish(i, false)
			} else {
				r.tell(s, i)
			}
			continue
		}
		s.calls[i].at = inQueue
		push(&kept, i)
	}
	for _, i := range s.queue {
		if i >= 0 {
			push(&kept, i)
		}
	}
	s.queue = kept
}

// clear ends the group.
func (s *modelState) clear() {
	s.group, s.wrote, s.head, s.next = none(), none(), 0, 0
	s.skip, s.moved, s.cancelled, s.hit, s.armed, s.arming = false, false, false, false, false, false
}

// close ends the connection. Requests that are on their way name a backend that is no
// more.
func (s *modelState) close() {
	s.clear()
	s.link, s.killed = closed, false
	s.sent, s.old, s.delivered = 0, 0, 0
}

// release frees the connection, which takes what is queued along: first what may
// travel together, then what runs alone.
func (r *modelRun) release(s *modelState) {
	s.clear()
	s.link = free
	if size(s.queue) == 0 || r.flaws.forgetsQueue {
		return
	}
	s.link = taken
	for _, i := range s.queue {
		if i >= 0 && !s.calls[i].alone {
			push(&s.group, i)
		}
	}
	if size(s.group) == 0 {
		s.group[0] = s.queue[0]
	}
	for _, i := range s.group {
		if i >= 0 {
			s.queue = without(s.queue, i)
			s.calls[i].at = inGroup
		}
	}
}

// free gives the connection back, unless a request is on its way.
func (r *modelRun) free(s *modelState) {
	switch {
	case s.killed && !r.flaws.killedStays:
		s.close()
	case s.sent+s.old+s.delivered > 0 && !r.flaws.noParking:
		s.clear()
		s.link = parked
	default:
		if !s.moved && s.next < size(s.wrote) {
			r.fail(*s, "the connection is free before all of its answers are read")
		}
		r.release(s)
	}
}

// send writes the group. refused are the calls of it, as bits, that nobody wants. It
// reports false if nothing is left.
func (r *modelRun) send(s *modelState, refused int) bool {
	kept := none()
	for _, i := range s.group {
		if i < 0 {
			continue
		}
		if refused&(1<<i) != 0 {
			s.calls[i].refused = true
			r.tell(s, i)
			continue
		}
		push(&kept, i)
	}
	s.group, s.head = kept, 0
	if size(kept) == 0 {
		return false
	}
	s.old += s.sent
	s.sent = 0
	s.link, s.wrote, s.next, s.cancelled = busy, kept, 0, false
	s.armed = r.world.timeout && size(kept) > 1
	s.arming = s.armed
	if !s.arming || r.flaws.beginsEarly {
		r.begins(s)
	}
	return true
}

// begins notes that the group is under way. Requests to cancel that were decided before
// follow at once.
func (r *modelRun) begins(s *modelState) {
	for _, i := range s.group[s.head:] {
		if i < 0 {
			continue
		}
		c := &s.calls[i]
		c.underWay = true
		if c.unwanted && !r.flaws.forgetsUnwanted && !c.requested {
			c.requested = true
			s.sent++
			s.cancelled = true
		}
	}
}

// last returns the last call of the transaction that begins with, or contains, the
// call at the place.
func (r *modelRun) last(group [modelCalls]int8, at int8) int8 {
	for at+1 < size(group) && !r.world.apart[group[at]] && !r.world.apart[group[at+1]] {
		at++
	}
	return at
}

// lose is the loss of the connection, noticed by the head's driver.
func (r *modelRun) lose(s *modelState, self int8) {
	var again []int8
	for _, i := range s.group[s.head:] {
		if i < 0 {
			continue
		}
		s.calls[i].underWay = false
		if s.calls[i].losses++; s.calls[i].losses <= 1 {
			again = append(again, i)
		} else if i == self {
			s.finish(i, false)
		} else {
			r.tell(s, i)
		}
	}
	s.close()
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
	if s.link == taken {
		r.launches(s, yield)
	}
	for i := range int8(modelCalls) {
		r.call(s, i, yield)
	}
	// Requests travel, hit what they find, and return.
	if s.sent > 0 || s.old > 0 {
		n := s
		if n.old > 0 {
			n.old--
		} else {
			n.sent--
		}
		n.delivered++
		if s.link == busy && s.next < size(s.wrote) {
			n.hit = true
		}
		yield("a request to cancel is delivered", !r.flaws.neverLeaves, n)
	}
	if s.delivered > 0 {
		n := s
		n.delivered--
		if s.link == parked && n.sent+n.old+n.delivered == 0 {
			r.release(&n)
		}
		yield("a request to cancel returns", true, n)
	}
	if s.link == parked && !r.flaws.neverLeaves {
		n := s
		n.close()
		yield("the parked connection is left", true, n)
	}
}

// launches are the steps of a connection that was taken with a group.
func (r *modelRun) launches(s modelState, yield func(string, bool, modelState)) {
	for _, i := range s.group {
		if i >= 0 && (s.calls[i].sends || s.calls[i].wake == grant) && !r.flaws.grantsTwice {
			return // it is a driver's
		}
	}
	if r.world.grants && size(s.group) == 1 && s.calls[s.group[0]].wake == nothing {
		n := s
		r.post(&n, s.group[0], grant)
		yield("the connection is granted", true, n)
	}
	r.sends(s, func(n *modelState, sent bool) {
		if sent {
			to := n.group[0]
			if r.flaws.tokenToLast {
				to = n.group[size(n.group)-1]
			}
			r.post(n, to, token)
			return
		}
		r.release(n)
	}, yield)
}

// sends yields the ways in which a group can be sent, or not.
func (r *modelRun) sends(s modelState, then func(n *modelState, sent bool), yield func(string, bool, modelState)) {
	for refused := range 1 << modelCalls {
		may := true
		for i := range modelCalls {
			if refused&(1<<i) != 0 {
				c := s.calls[i]
				may = may && r.world.refusals && c.at == inGroup && (c.abandoned || !c.refused)
			}
		}
		if may {
			n := s
			then(&n, r.send(&n, refused))
			what := "the group is sent"
			if refused != 0 {
				what = fmt.Sprintf("the group is sent, but for those that are refused: %03b", refused)
			}
			yield(what, true, n)
		}
	}
}

// call yields the steps of a call's driver.
func (r *modelRun) call(s modelState, i int8, yield func(string, bool, modelState)) {
	c := s.calls[i]
	name := func(what string) string { return fmt.Sprintf("call %d: %s", i, what) }
	switch {
	case c.who == gone:
		return
	case c.who == handing:
		n := s
		n.calls[i].who = standing
		yield(name("Finish takes over"), true, n)
		return
	case c.who == leaving: // giveUp
		n := s
		d := &n.calls[i]
		d.abandoned, d.who = true, gaveUp
		if c.at == inQueue {
			n.queue = without(n.queue, i)
		}
		if c.at == inQueue || c.at == atDriver {
			n.finish(i, false)
			d.who = gone
		}
		yield(name("is given up"), true, n)
		return
	case c.sends:
		r.sends(s, func(n *modelState, sent bool) {
			d := &n.calls[i]
			if d.sends = false; sent {
				d.holds = true
				return
			}
			r.release(n)
		}, yield)
		if !c.renewed && r.world.grants {
			n := s
			d := &n.calls[i]
			d.sends, d.renewed, d.at = false, true, atDriver
			d.deaf = r.flaws.awaitsRenewal
			r.release(&n)
			yield(name("its arguments do not encode"), true, n)
		}
	case c.at == atDriver && c.abandoned:
		n := s
		n.finish(i, false)
		n.calls[i].who = gone
		yield(name("nobody wants it any more"), true, n)
	case c.at == atDriver && !c.deaf:
		n := s
		if s.link == free && size(s.queue) == 0 {
			n.link, n.group[0], n.head = taken, i, 0
			n.calls[i].at, n.calls[i].sends = inGroup, true
		} else {
			n.calls[i].at = inQueue
			push(&n.queue, i)
		}
		yield(name("is submitted"), true, n)
	case c.holds:
		r.reads(s, i, name, yield)
	case c.wake != nothing:
		n := s
		d := &n.calls[i]
		d.wake = nothing
		switch {
		case c.wake == news || c.at == atEnd:
			d.who = gone
		case c.wake == grant:
			d.sends = true
		default:
			d.holds = true
		}
		yield(name("its driver wakes"), true, n)
	}
	// What may happen at any moment.
	switch {
	case c.sends || c.at == atEnd && c.holds || r.world.stay[i]:
	case c.who == leading && c.at != atEnd, c.who == standing && c.at != atEnd:
		n := s
		d := &n.calls[i]
		what := "Run's context ends"
		d.who = handing
		if c.who == standing {
			what, d.who = "Finish's context ends", leaving
		}
		if c.holds {
			d.holds = false
			if !r.flaws.dropsToken || c.who == standing {
				r.post(&n, i, token)
			}
		}
		yield(name(what), false, n)
	case c.who == gaveUp && !c.asked && (c.at == inGroup || c.at == atEnd):
		n := s
		d := &n.calls[i]
		d.asked = true
		switch {
		case c.underWay:
			d.requested = true
			n.sent++
			n.cancelled = true
		case r.flaws.cancelsUnsent:
			n.old++ // it is for no group
		default:
			d.unwanted = true
		}
		yield(name("is to be cancelled"), c.at == inGroup, n)
	case r.world.kills && c.who == gaveUp && c.asked && c.underWay && !s.killed:
		n := s
		n.killed = true
		n.sent++
		n.cancelled = true
		yield(name("patience with it ends"), false, n)
	}
}

// reads are the steps of the driver of call i, which has the token.
func (r *modelRun) reads(s modelState, i int8, name func(string) string, yield func(string, bool, modelState)) {
	c := s.calls[i]
	if s.link != busy || s.head >= modelCalls || s.group[s.head] != i {
		r.fail(s, name("has the token and is not the head"))
		return
	}
	r.loses(s, i, name, yield)
	if s.arming {
		n := s
		n.arming = false
		r.begins(&n)
		yield(name("reads that the timeouts are set"), true, n)
		return
	}
	if s.skip {
		n := s
		n.skip = false
		yield(name("reads the end of the transaction before"), true, n)
		return
	}
	if s.next >= size(s.wrote) || s.wrote[s.next] != i {
		r.fail(s, name("reads an answer that is not its own"))
		return
	}
	pass := func(n *modelState) {
		d := &n.calls[i]
		d.holds, d.underWay = false, false
		if d.at == atEnd {
			d.who = gone
		}
		if n.head < size(n.group) {
			r.post(n, n.group[n.head], token)
			return
		}
		r.free(n)
	}
	n := s // a request that hits may come too late to show
	n.finish(i, false)
	n.hit = false
	n.head++
	n.next++
	pass(&n)
	yield(name("has its answer"), true, n)
	// An error, of its own, of a short timeout or because of a request.
	fail := func(what string, again, foreign bool, change func(*modelCall)) {
		n := s
		n.hit = false
		last := r.last(s.group, s.head)
		n.next = r.last(s.wrote, s.next) + 1
		if r.flaws.skipsGroup {
			last = size(s.group) - 1
		}
		var skipped []int8
		for k := s.head; k <= last; k++ {
			j := s.group[k]
			n.calls[j].underWay = false
			if k > s.head || again {
				skipped = append(skipped, j)
			}
		}
		if change != nil {
			change(&n.calls[i])
		}
		if !again {
			n.finish(i, foreign)
		}
		n.head = last + 1
		n.skip = n.head < size(n.group)
		if r.flaws.skipsNothing && n.skip {
			n.skip = false
			n.next = last // its end is taken for the next one's answer
		}
		r.requeue(&n, skipped, i)
		pass(&n)
		yield(name(what), false, n)
	}
	fail("fails", false, false, nil)
	if s.armed && !c.abandoned && !c.alone {
		fail("meets a short timeout", !r.flaws.timeoutEnds, true, func(d *modelCall) {
			d.timeouts++
			d.alone = !r.flaws.timeoutInGroup
		})
	}
	if s.hit {
		wanted := !c.abandoned
		switch {
		case r.flaws.noRerun || !wanted:
			fail("is cancelled", false, wanted, nil)
		case s.cancelled && c.strays < 1:
			fail("is cancelled", true, false, func(d *modelCall) {
				d.strays++
				d.alone = !r.flaws.strayInGroup // as the last of those that there may be
			})
		default:
			fail("is cancelled", false, true, nil)
		}
	}
	if r.world.moves && !s.moved && s.head+1 < size(s.group) { // the head takes long
		n := s
		var rest []int8
		for k := s.head + 1; k < size(s.group); k++ {
			rest = append(rest, s.group[k])
			n.calls[s.group[k]].alone = true
			if !r.flaws.movesAndStays {
				n.group[k] = -1
			}
		}
		n.moved = true
		r.requeue(&n, rest, i)
		yield(name("takes long, those behind it move on"), false, n)
	}
}

// loses yields the loss of the connection. One that was closed under its reader is
// lost sooner or later.
func (r *modelRun) loses(s modelState, i int8, name func(string) string, yield func(string, bool, modelState)) {
	if s.calls[i].losses > 0 && s.calls[0].losses > 0 && !s.killed { // bounds the model
		return
	}
	n := s
	n.calls[i].holds = false
	r.lose(&n, i)
	if n.calls[i].at == atEnd {
		n.calls[i].who = gone
	}
	yield(name("loses the connection"), s.killed, n)
}

// invariants returns what is wrong with a state.
func (r *modelRun) invariants(s modelState) string {
	tokens, grants := 0, 0
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
		case c.holds && c.wake == token, c.sends && c.wake == grant:
			return fmt.Sprintf("call %d has the token twice", i)
		case c.at != atEnd && c.who == gone:
			return fmt.Sprintf("call %d has no driver", i)
		case c.foreign:
			return fmt.Sprintf("call %d ends with another's cancellation, or a timeout of ours", i)
		case c.underWay && (s.link != busy || !grouped):
			return fmt.Sprintf("call %d is under way and not on a connection", i)
		case c.timeouts > 1:
			return fmt.Sprintf("call %d is in a group once more, and meets its timeout", i)
		case c.at == inQueue && c.abandoned:
			return fmt.Sprintf("call %d is queued although nobody wants it", i)
		case c.asked && c.underWay && !c.requested:
			return fmt.Sprintf("call %d was to be cancelled, is under way, and no request is sent", i)
		}
		if c.holds || c.wake == token {
			tokens++
			if s.link != busy || s.head >= modelCalls || s.group[s.head] != i {
				return fmt.Sprintf("call %d has the token and is not the head", i)
			}
		}
		if c.sends || c.wake == grant {
			grants++
			if s.link != taken || s.group[0] != i {
				return fmt.Sprintf("call %d is to send on a connection that is not its own", i)
			}
		}
	}
	switch {
	case s.link == busy && tokens != 1:
		return fmt.Sprintf("%d tokens of a busy connection", tokens)
	case s.link != busy && tokens > 0:
		return "a token of a connection that is not busy"
	case grants > 1:
		return "a connection is granted twice"
	case s.link == free && size(s.queue) > 0:
		return "a call is queued beside a free connection"
	case s.old > 0 && (s.link == busy || s.link == taken || s.link == free):
		return "a request to cancel is on its way, and what it was sent for is not on the connection"
	case s.arming && s.sent > 0:
		return "a request to cancel is on its way while the timeouts are being set"
	case s.killed && s.link == free:
		return "a closed connection is in the pool"
	case s.link != busy && s.link != parked && s.sent > 0:
		return "a request to cancel is on its way to a connection that is free"
	}
	return ""
}

var (
	one = [modelCalls]bool{false, true, false}
	two = [modelCalls]bool{false, true, true}
)

// modelWorlds are explored one after the other: all of it at once is too much.
var modelWorlds = map[string]modelWorld{
	"Joined":       {stay: one, refusals: true, moves: true},
	"Transactions": {stay: two, apart: [modelCalls]bool{true, false, false}, timeout: true, refusals: true},
	"Apart":        {stay: two, apart: [modelCalls]bool{true, true, true}, timeout: true, moves: true},
	"Grants":       {stay: two, grants: true, refusals: true},
	"Kills":        {stay: one, apart: [modelCalls]bool{false, true, false}, kills: true},
}

func TestModel(t *testing.T) {
	for name, world := range modelWorlds {
		t.Run(name, func(t *testing.T) {
			if testing.Short() {
				world.stay = two
				world.refusals = world.refusals && !world.grants
			}
			r := &modelRun{world: world}
			r.explore()
			if r.fault != "" {
				t.Fatal(r.fault)
			}
			t.Logf("%d states, %d steps, %d ends", len(r.seen), r.steps, r.ends)
			if len(r.seen) < 10_000 {
				t.Errorf("%d states: the model does not get anywhere", len(r.seen))
			}
		})
	}
	for name, tc := range map[string]struct {
		world string
		flaws modelFlaws
	}{
		"NoParking":       {"Joined", modelFlaws{noParking: true}},
		"DropsToken":      {"Joined", modelFlaws{dropsToken: true}},
		"RequeuesAll":     {"Joined", modelFlaws{requeuesAll: true}},
		"TokenToLast":     {"Joined", modelFlaws{tokenToLast: true}},
		"NoRerun":         {"Joined", modelFlaws{noRerun: true}},
		"ForgetsQueue":    {"Joined", modelFlaws{forgetsQueue: true}},
		"MovesAndStays":   {"Joined", modelFlaws{movesAndStays: true}},
		"CancelsUnsent":   {"Joined", modelFlaws{cancelsUnsent: true}},
		"KilledStays":     {"Kills", modelFlaws{killedStays: true}},
		"SkipsGroup":      {"Transactions", modelFlaws{skipsGroup: true}},
		"SkipsNothing":    {"Transactions", modelFlaws{skipsNothing: true}},
		"BeginsEarly":     {"Transactions", modelFlaws{beginsEarly: true}},
		"TimeoutEnds":     {"Transactions", modelFlaws{timeoutEnds: true}},
		"TimeoutInGroup":  {"Transactions", modelFlaws{timeoutInGroup: true}},
		"StrayInGroup":    {"Joined", modelFlaws{strayInGroup: true}},
		"NeverLeaves":     {"Joined", modelFlaws{neverLeaves: true}},
		"AwaitsRenewal":   {"Grants", modelFlaws{awaitsRenewal: true}},
		"GrantsTwice":     {"Grants", modelFlaws{grantsTwice: true}},
		"ForgetsUnwanted": {"Grants", modelFlaws{forgetsUnwanted: true}},
	} {
		t.Run(name, func(t *testing.T) {
			r := &modelRun{world: modelWorlds[tc.world], flaws: tc.flaws}
			r.explore()
			if r.fault == "" {
				t.Errorf("%d states and no fault: the model does not notice", len(r.seen))
			}
			t.Log(r.fault)
		})
	}
}

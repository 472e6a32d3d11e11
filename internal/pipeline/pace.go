package pipeline

import "time"

// pace decides how many connections a pool uses at a time. How long calls take does not
// say whether more would help: on a busy machine all of them take long, and what is slow
// now and then looks fast and slow at once. What comes of it says so. Two limits are in
// force in turn, for a while each, and the one is kept under which calls were answered
// sooner, from when they came. Where callers wait for their answers before they ask
// again, that is the one under which more is answered in a second (Little's law); where
// they do not, no more is answered, but they wait longer. The machine's mood hits both.
//
// A limit is raised to twice as much only if that pays, since the fewer the connections,
// the more travels together; it is lowered, by a quarter or, where a comparison is short,
// by half, if that does no harm and more travels together then. Where calls take so long
// that company saves nothing, there is nothing to be gained by fewer.
//
// It is part of a Pool, whose mutex guards it. It has no clock: who calls says the time.
type pace struct {
	limit int // connections that may be in use at a time
	least int // what it is at first, and never less
	most  int // what it may be; 0: anything
	fixed bool

	peak   int  // connections in use at a time, the most since the last comparison
	all    int  // the same, with those whose answers are late
	waited bool // calls have waited since, as the limit allowed no more

	other     int   // a limit that is compared with it; 0: none
	inForce   bool  // it is the one in force
	mine, its tally // of what was answered under either
	now       tally // in the window under way
	settling  int   // calls to be answered before it begins: those that came before
	enough    int   // calls after which it ends
	began     time.Time
	windows   int
	since     time.Time     // when the comparison began
	pause     time.Duration // between them, if they change nothing
	rest      time.Duration // of it, until the next one may begin
	at        time.Time     // when something was answered last
	lately    bool          // the last one was with more
	silences  int           // since the last comparison
	last      tally         // what was answered lately, outside of comparisons; none: no window has passed
	deep      bool          // the next one with fewer may be with the least
	pace      float64       // calls answered in a nanosecond, in the last window outside of comparisons
	forced    time.Time     // since when the other one is in force
	answers   int           // calls answered since then
	quick     bool          // there was enough of it for a window in the least time
	was       float64       // its mean in the last comparison
}

// tally is what was answered.
type tally struct {
	calls  int
	waited int           // of them, for a connection
	groups int           // that they were in
	took   time.Duration // by all together, from when they came
}

func (t *tally) add(o tally) {
	t.calls, t.waited, t.groups, t.took = t.calls+o.calls, t.waited+o.waited, t.groups+o.groups, t.took+o.took
}

// together reports whether several calls travelled together, as a rule.
func (t tally) together() bool { return t.calls > t.groups+t.groups/4 }

func (t tally) mean() float64 { return float64(t.took) / float64(max(t.calls, 1)) }

// Comparisons.
const (
	shortestWindow = 10 * time.Millisecond
	longestWindow  = time.Second
	fewestCalls    = 64                    // in a window, if it does not last for longestWindow
	mostWindows    = 6                     // of both limits, half each
	shortestPause  = 50 * time.Millisecond // of time in which there is something to do
	longestPause   = 4 * time.Second
	longestGap     = 20 * time.Millisecond // between answers that counts as such time
	manySilences   = 8                     // that shorten a pause
	farOff         = 4                     // times the least, from where that is tried now and then
)

// demand is what a pool has to do when calls have been answered.
type demand struct {
	busy   int  // connections that count, those that were just freed included
	all    int  // and those whose answers are late
	open   int  // all that there are
	queued int  // calls that wait
	calls  int  // under way, those that were just answered included
	slow   bool // calls take so long, as a rule, that company saves them nothing
}

// allowed is how many connections may be in use now.
func (c *pace) allowed() int {
	if c.inForce {
		return c.other
	}
	return c.limit
}

// silent is told that calls wait, and nothing has been answered for a moment.
func (c *pace) silent() { c.silences++ }

// answered is told of calls that have been answered.
func (c *pace) answered(now time.Time, calls tally, l demand) {
	if c.fixed {
		return
	}
	c.peak, c.all, c.waited = max(c.peak, l.busy), max(c.all, l.all), c.waited || l.queued > 0
	c.rest -= min(now.Sub(c.at), longestGap)
	c.at = now
	if c.other == 0 {
		c.now.add(calls)
		changed := false
		if d := now.Sub(c.began); c.now.calls >= fewestCalls && d >= shortestWindow {
			c.quick = d/shortestWindow <= time.Duration(c.now.calls/fewestCalls)
			c.pace = float64(c.now.calls) / float64(d)
			c.last, c.now, c.began = c.now, tally{}, now
			changed = c.last.mean() > 2*c.was || 2*c.last.mean() < c.was
		}
		if changed || c.rest <= 0 || c.silences >= manySilences {
			c.begin(now, l)
		}
		return
	}
	c.answers += calls.calls
	d := now.Sub(c.forced)
	switch {
	case now.Sub(c.since) > (mostWindows+2)*longestWindow: // hardly anybody calls
		c.end(now, c.limit)
	case c.inForce && c.other < c.limit && d >= 2*shortestWindow && float64(c.answers) < c.pace*float64(d)/2:
		c.end(now, c.limit) // so few would do harm for long before they are through
	case c.settling > 0:
		if c.settling -= calls.calls; c.settling <= 0 {
			c.began, c.now = now, tally{}
		}
	case c.inForce && c.other > l.open && l.queued > 0 && now.Sub(c.began) < longestWindow && c.now.calls == 0:
		// They are being opened.
	default:
		c.now.add(calls)
		d := now.Sub(c.began)
		if d >= longestWindow || c.now.calls >= c.enough && d >= shortestWindow {
			c.judge(now, l)
		}
	}
}

// begin begins a comparison, if there is something to compare.
func (c *pace) begin(now time.Time, l demand) {
	used := max(min(c.limit, c.peak), c.least)
	step := max(used/4, 1)
	if c.quick {
		step = used / 2 // a window is short, and it shows
	}
	more, fewer := max(2*c.limit, c.all), max(used-step, c.least)
	if c.most > 0 {
		more = min(more, c.most)
	}
	if c.quick && c.deep && used >= farOff*c.least {
		fewer = c.least // half as many may be no better, and these much
	}
	canMore, canFewer := c.waited && more > c.limit, fewer < used && !l.slow
	c.peak, c.all, c.waited, c.silences = 0, 0, false, 0
	switch {
	case canMore && (!c.lately || !canFewer):
		c.other, c.lately = more, true
	case canFewer:
		c.other, c.lately, c.deep = fewer, false, !c.deep
	default:
		c.rest = shortestPause
		return
	}
	c.mine, c.its, c.windows, c.since = tally{}, tally{}, 0, now
	if c.last.calls > 0 { // it has been measured
		c.mine, c.windows = c.last, 1
		c.force(true, now, l)
		return
	}
	c.force(false, now, l)
}

// force puts one of the limits in force.
func (c *pace) force(other bool, now time.Time, l demand) {
	c.settling, c.forced, c.answers = 0, now, 0
	if c.inForce != other {
		c.settling = l.calls + l.queued
	}
	c.inForce, c.began, c.now = other, now, tally{}
	c.enough = max(l.calls+l.queued, fewestCalls)
}

// judge ends a window.
func (c *pace) judge(now time.Time, l demand) {
	if c.inForce {
		c.its.add(c.now)
	} else {
		c.mine.add(c.now)
	}
	if c.windows++; c.windows%2 != 0 { // the other one's turn, twice
		c.force(!c.inForce, now, l)
		return
	}
	ratio := c.its.mean() / c.mine.mean() // below 1: the other one is better
	last := c.windows == mostWindows
	// What is soon clear need not be looked at again. Fewer that are as good are better
	// where callers wait anyway, and travel together then. Elsewhere some would wait now
	// and then, for nothing.
	more := c.other > c.limit
	clear, enough, worse := 0.75, 0.95, 1.1
	switch {
	case more && l.slow: // nothing is lost by more that are as good
		clear, enough = 0.95, 1.02
	case more:
	case !c.its.together():
		clear, enough, worse = 0, 0.9, 1.15
	case 2*c.mine.waited >= c.mine.calls:
		enough, worse = 1, 1.15
	default:
		worse = 1.15
	}
	switch {
	case ratio <= clear, last && ratio <= enough:
		c.end(now, c.other)
	case last, ratio >= worse:
		c.end(now, c.limit)
	default:
		c.force(c.inForce, now, l)
	}
}

// end ends the comparison.
func (c *pace) end(now time.Time, limit int) {
	c.pause = min(max(2*c.pause, shortestPause), longestPause)
	if limit != c.limit {
		c.pause = shortestPause
		c.lately = limit < c.limit // go on like that
		c.rest = 0
	} else {
		c.rest = c.pause
	}
	c.was = c.mine.mean()
	if limit != c.limit {
		c.was = c.its.mean()
	}
	c.limit, c.other, c.inForce, c.now, c.last, c.began = limit, 0, false, tally{}, tally{}, now
	c.peak, c.all, c.waited, c.silences = 0, 0, false, 0
}

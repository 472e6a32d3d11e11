// Command storm has flightpg and pgx's own driver, side by side, go through the same
// bad weather, and judges flightpg by what pgx's callers get. Each side has a copy of
// one schema in a database of its own, with the same callers, who ask the same in the
// same order, on as many connections. Whatever happens, happens to both at the same
// moment: migrations, locks, terminated backends, networks that stall.
//
//	go run ./storm [-duration 30m] [-seed N] [-driver auto] [-callers N] [-conns N] [-o storm.txt]
//
// The verdict is flightpg's alone, and relative to pgx in the same run, so that a slow
// machine changes nothing: see result.violations. It is a violation if
//
//   - a row is not its caller's: each says whose it is, and settings that a function
//     makes for its own transaction may not be seen by another's read;
//   - an error comes that pgx's callers never had, or clearly more often than theirs;
//   - a call hangs, or a migration fails, that did not with pgx;
//   - after a fault reads do not succeed as before within a second more than pgx's.
//
// It ends with status 1 if anything is. The order of the weather, and what the callers
// ask, follow from the seed; what happens at which moment, does not.
//
// Reading order: main.go (the run) → world.go (schema, sides) → texts.go, load.go (the
// callers) → weather.go, proxy.go → judge.go (what is right) → report.go.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/signal"
	"path/filepath"
	"regexp"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/flightpg/flightpg/internal/battery"
	"github.com/flightpg/flightpg/internal/pgtest"
)

// config says how a storm runs.
type config struct {
	duration time.Duration // at least one of each weather comes, however short
	short    bool          // weather and calm do not last
	callers  int           // of each side
	conns    int           // that each side may have
	seed     uint64
	driver   string         // "auto", "generic", or "pgx" to hold pgx to itself
	texts    *regexp.Regexp // which; nil: all
	weather  *regexp.Regexp // likewise
	out      io.Writer      // for the lines
	server   *pgtest.Server // nil: one of its own

	// What a test plants on flightpg's side: done with each new connection, and to
	// each read.
	hook func(context.Context, *pgx.Conn) error
	lie  func(name string, wrong string, err error) (string, error)
}

func main() {
	cfg := config{out: os.Stdout}
	flag.DurationVar(&cfg.duration, "duration", 30*time.Minute, "how `long`")
	flag.IntVar(&cfg.callers, "callers", 256, "`number` of callers of each side")
	flag.IntVar(&cfg.conns, "conns", 64, "`number` of connections that each side may have")
	flag.Uint64Var(&cfg.seed, "seed", rand.Uint64(), "weather and callers follow from this `number`")
	flag.StringVar(&cfg.driver, "driver", "auto", "what is judged: flightpg with the `executor` auto or generic, or pgx itself")
	flag.BoolVar(&cfg.short, "short", false, "weather and calm do not last")
	textsFlag := flag.String("texts", "", "only reads whose name matches this `pattern`: to look for the cause of something")
	weatherFlag := flag.String("weather", "", "only weather whose name matches this `pattern`")
	file := flag.String("o", "", "write the report to this `file` too")
	flag.Parse()
	if cfg.driver != "auto" && cfg.driver != "generic" && cfg.driver != "pgx" {
		fmt.Fprintf(os.Stderr, "storm: -driver %s: want auto, generic or pgx\n", cfg.driver)
		os.Exit(2)
	}
	for _, p := range []struct {
		pattern string
		to      **regexp.Regexp
	}{{*textsFlag, &cfg.texts}, {*weatherFlag, &cfg.weather}} {
		if p.pattern == "" {
			continue
		}
		var err error
		if *p.to, err = regexp.Compile(p.pattern); err != nil {
			fmt.Fprintf(os.Stderr, "storm: %v\n", err)
			os.Exit(2)
		}
	}

	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	st, err := run(ctx, cfg)
	if err != nil {
		fmt.Fprintf(os.Stderr, "storm: %v\n", err)
		os.Exit(1)
	}
	report := st.report()
	fmt.Fprint(cfg.out, "\n"+report)
	if *file != "" {
		if err := errors.Join(os.MkdirAll(filepath.Dir(*file), 0o755), os.WriteFile(*file, []byte(report), 0o644)); err != nil {
			fmt.Fprintf(os.Stderr, "storm: %v\n", err)
			os.Exit(1)
		}
	}
	if len(st.result.violations()) > 0 {
		os.Exit(1)
	}
}

// storm is one run.
type storm struct {
	config
	*world
	begin  time.Time
	took   time.Duration
	asked  []*text    // what the callers ask
	order  []*weather // what may come
	goesOn atomic.Pointer[string]
	tick   atomic.Int64   // see caller.run
	usual  [sides]float64 // reads that succeed in a window, in calm times
	result result
	hung   []string

	mu  sync.Mutex // guards err, and result.moody and stood while it is watched
	err error      // of the storm itself
}

// now is the time since the begin.
func (st *storm) now() time.Duration { return time.Since(st.begin) }

// name is that of the weather that goes on, or went on last.
func (st *storm) name() string { return *st.goesOn.Load() }

func (st *storm) setWeather(name string) { st.goesOn.Store(&name) }

func (st *storm) fail(err error) {
	st.mu.Lock()
	defer st.mu.Unlock()
	st.err = errors.Join(st.err, err)
}

// run makes a world and has a storm in it. The error is the storm's own; what is
// wrong with flightpg is in the result.
func run(ctx context.Context, cfg config) (_ *storm, err error) {
	st := &storm{config: cfg, result: result{callers: cfg.callers, together: cfg.short, came: make(map[string]int), moody: make(map[string]int)}}
	for i := range texts {
		if cfg.texts == nil || cfg.texts.MatchString(texts[i].name) {
			st.asked = append(st.asked, &texts[i])
		}
	}
	for i := range weathers {
		if cfg.weather == nil || cfg.weather.MatchString(weathers[i].name) {
			st.order = append(st.order, &weathers[i])
		}
	}
	if len(st.asked) == 0 || len(st.order) == 0 {
		return nil, errors.New("no text or no weather of that name")
	}
	if st.world, err = newWorld(ctx, &st.config); err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, st.world.stop()) }()
	fmt.Fprintf(cfg.out, "storm: seed %d, %v, %s beside pgx, %d callers and %d connections each, PostgreSQL %s, %s\n",
		cfg.seed, cfg.duration, st.sides[flight].name, cfg.callers, cfg.conns, st.version, runtime.Version())

	st.begin = time.Now()
	st.setWeather("calm")
	if err := st.warm(ctx); err != nil {
		return nil, err
	}
	loadCtx, stop := context.WithCancel(ctx)
	defer stop()
	var loads [sides]*load
	st.tick.Store(int64(tick))
	for i, s := range st.sides {
		loads[i] = st.load(loadCtx, s)
	}
	watched := make(chan struct{})
	go func() { st.watch(loadCtx); close(watched) }()
	st.measure(ctx)
	st.blow(ctx)
	end := st.now()
	stop()
	<-watched
	st.settle(loads, end)
	st.took = st.now()
	for i, s := range st.sides {
		s.book.mu.Lock()
		st.result.sides[i] = s.book.tally
		s.book.mu.Unlock()
		st.result.sides[i].shared = int(s.shared.Load())
	}
	for i, l := range loads {
		st.result.sides[i].hangs = l.left()
	}
	return st, errors.Join(st.err, ctx.Err())
}

// warm asks each text once: what a first read takes is not the weather's doing.
func (st *storm) warm(ctx context.Context) error {
	for _, s := range st.sides {
		for _, t := range st.asked {
			if wrong, err := t.ask(ctx, s, t.query, 0); err != nil || wrong != "" && st.hook == nil {
				return fmt.Errorf("%s, %s: %s %w", s.name, t.name, wrong, err)
			}
		}
	}
	return nil
}

// measure finds out how many reads succeed in calm times. Those of the first moments,
// in which everybody connects, do not count. Where the machine has too much to do,
// callers rest longer, but come as many at a time: else it would be chance who waits.
func (st *storm) measure(ctx context.Context) {
	calm := 2 * time.Second
	if st.short {
		calm = 500 * time.Millisecond
	}
	for tries := 0; ; tries++ {
		pause(ctx, calm/2)
		from := st.now()
		pause(ctx, calm)
		calls, slow := 0, 0
		for i, s := range st.sides {
			st.usual[i] = 0
			for _, e := range s.book.after(from) {
				calls++
				if e.end-e.begin > slowCall {
					slow++
				}
				if e.kind == "" {
					st.usual[i] += float64(window) / float64(calm)
				}
			}
		}
		for _, s := range st.sides {
			s.book.settled()
		}
		if slow*50 <= calls || tries == 2 || ctx.Err() != nil {
			return
		}
		st.tick.Store(st.tick.Load() * 2)
	}
}

// slowCall is more than a call takes where the machine has time for it.
const slowCall = 100 * time.Millisecond

// watch asks the server for nothing, by a connection that no weather touches. When
// that takes long, it is the machine's doing.
func (st *storm) watch(ctx context.Context) {
	err := st.admin(ctx, func(conn *pgx.Conn) error {
		for ctx.Err() == nil {
			pause(ctx, slowCall/2)
			begin, name := time.Now(), st.name()
			if _, err := conn.Exec(context.WithoutCancel(ctx), `SELECT 1`); err != nil {
				return err
			}
			if d := time.Since(begin); d > slowCall/2 {
				st.mu.Lock()
				st.result.moody[name] += 1 + int(d/window)
				st.result.stood = max(st.result.stood, d)
				st.mu.Unlock()
			}
		}
		return nil
	})
	if err != nil && ctx.Err() == nil {
		st.fail(err)
	}
}

// blow lets one weather follow another, with calm between them, until the time is
// over, and every one has come.
func (st *storm) blow(ctx context.Context) {
	rng := battery.Rand(st.seed, -1)
	for first := true; first || st.now() < st.duration; first = false {
		order := rng.Perm(len(st.order))
		for n, i := range order {
			if ctx.Err() != nil || !first && st.now() >= st.duration {
				return
			}
			w := st.order[i]
			for _, s := range st.sides {
				s.book.since()
			}
			st.setWeather(w.name)
			begin := st.now()
			w.do(st, ctx, battery.Rand(st.seed, -1000-sum(st.result.came)))
			end := st.now()
			st.result.came[w.name]++
			last := n == len(order)-1 && st.now() >= st.duration
			r := st.calm(ctx, w.name, end, last)
			fmt.Fprintln(st.out, st.line(w.name, begin, end, r))
		}
	}
}

// calm waits after a fault until both sides are back to normal, or flightpg is late,
// or nobody can say. In the short form that is so after the last fault only.
func (st *storm) calm(ctx context.Context, name string, end time.Duration, last bool) *recovery {
	least, most := 500*time.Millisecond, 8*time.Second
	if st.short && !last {
		pause(ctx, 50*time.Millisecond)
		return nil
	}
	before := st.moods(name)
	for {
		pause(ctx, window)
		now := st.now()
		var events [sides][]outcome
		for i, s := range st.sides {
			events[i] = s.book.after(end)
		}
		r := recovery{weather: name, normal: backToNormal(events, st.usual, end, now), looked: now - end, moody: st.moods(name) - before}
		done := r.normal[flight] >= 0 && r.normal[plain] >= 0 || r.late()
		if done && now-end >= least || now-end >= most || ctx.Err() != nil {
			st.result.recoveries = append(st.result.recoveries, r)
			return &r
		}
	}
}

// moods is how often the machine stood still in a weather.
func (st *storm) moods(name string) int {
	st.mu.Lock()
	defer st.mu.Unlock()
	return st.result.moody[name]
}

// settle waits for the callers to end. Those of flightpg hang that do not, some time
// after the last fault and after pgx's.
func (st *storm) settle(loads [sides]*load, end time.Duration) {
	for i := range loads {
		side := loads[sides-1-i] // pgx's first
		ended := make(chan struct{})
		go func() { side.running.Wait(); close(ended) }()
		select {
		case <-ended:
		case <-time.After(max(end+patience, st.now()+patience) - st.now()):
			for _, c := range side.callers {
				if d := c.doing.Load(); d != nil {
					st.hung = append(st.hung, fmt.Sprintf("%s: %s, key %d, for %v (deadline %v)", c.s.name, d.text.name, d.key, (st.now()-d.begin).Round(time.Millisecond), d.deadline))
				}
			}
		}
	}
}

// left returns how many callers are in a call.
func (l *load) left() (n int) {
	for _, c := range l.callers {
		if c.doing.Load() != nil {
			n++
		}
	}
	return n
}

// pause waits.
func pause(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

//go:build unix

package consistency

import (
	"context"
	"encoding/gob"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"
	"github.com/jackc/pgx/v5"

	"github.com/flightpg/flightpg/internal/battery"
	"github.com/flightpg/flightpg/internal/leak"
	"github.com/flightpg/flightpg/internal/pgtest"
)

// Variables beside those of package battery.
const (
	// envDir is where histories that are not legal are kept.
	envDir = "FLIGHTPG_BATTERY_DIR"
	// envHistory repeats one history of a seed, by its number.
	envHistory = "FLIGHTPG_BATTERY_HISTORY"
)

func TestMain(m *testing.M) {
	if os.Getenv(EnvWorker) != "" {
		if err := Work(os.Stdin, os.Stdout); err != nil {
			fmt.Fprintln(os.Stderr, "worker:", err)
			os.Exit(1)
		}
		return
	}
	leak.Main(func() int { return pgtest.Run(m, pgtest.WithSetting("max_connections", "300")) })
}

// process is a worker as its parent sees it.
type process struct {
	cmd *exec.Cmd
	in  io.WriteCloser
	enc *gob.Encoder
	dec *gob.Decoder
}

// lab is a database, a clock and the workers of a test.
type lab struct {
	dsn     string
	conn    *pgx.Conn
	logged  bool // versions are logged
	file    string
	clock   *Clock
	workers []*process
	roles   []Role
	keys    int64 // registers made so far
}

// newLab starts a worker for each role. binary is the program of those through
// flightpg; "" is this one.
func newLab(t *testing.T, binary string, logged bool, roles ...Role) *lab {
	t.Helper()
	l := &lab{dsn: pgtest.Database(t), logged: logged, roles: roles, file: filepath.Join(t.TempDir(), "clock")}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	var err error
	if l.conn, err = pgx.Connect(ctx, l.dsn); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.conn.Close(context.Background()) })
	schema := Schema
	if logged {
		schema += SchemaLog
	}
	if _, err = l.conn.Exec(ctx, schema); err != nil {
		t.Fatal(err)
	}
	if l.clock, err = NewClock(l.file); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.clock.Close() })
	for _, role := range roles {
		program := binary
		if program == "" || role == RolePgx {
			if program, err = os.Executable(); err != nil {
				t.Fatal(err)
			}
		}
		l.workers = append(l.workers, startProcess(t, program))
	}
	return l
}

func startProcess(t *testing.T, program string) *process {
	t.Helper()
	cmd := exec.Command(program, "-test.run=^$") // the flag is for the case that it forgets what it is
	cmd.Env = append(os.Environ(), EnvWorker+"=1")
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	p := &process{cmd: cmd, in: in, enc: gob.NewEncoder(in), dec: gob.NewDecoder(out)}
	t.Cleanup(func() {
		_ = in.Close() // the worker ends with its input
		timer := time.AfterFunc(30*time.Second, func() { _ = cmd.Process.Kill() })
		defer timer.Stop()
		if err := cmd.Wait(); err != nil && !t.Failed() {
			t.Errorf("a worker: %v", err)
		}
	})
	return p
}

// hangs is how long a history may take: many times what it does. Workers that
// have not answered by then print their stacks.
const hangs = 5 * time.Minute

// tell sends each worker a message and waits for all answers.
func (l *lab) tell(message func(i int) Message) (*Result, error) {
	var mu sync.Mutex // guards sum and failed
	sum, failed := new(Result), error(nil)
	var wg sync.WaitGroup
	for i, p := range l.workers {
		wg.Go(func() {
			var res Result
			err := p.enc.Encode(message(i))
			if err == nil {
				timer := time.AfterFunc(hangs, func() { _ = p.cmd.Process.Signal(syscall.SIGQUIT) })
				err = p.dec.Decode(&res)
				timer.Stop()
			}
			mu.Lock()
			defer mu.Unlock()
			if err != nil && failed == nil {
				failed = fmt.Errorf("worker %d does not answer: %w", i, err)
			}
			sum.Add(&res)
		})
	}
	wg.Wait()
	if failed == nil && sum.Err != "" {
		failed = fmt.Errorf("%s", sum.Err)
	}
	return sum, failed
}

// history is one that was recorded.
type history struct {
	plan  Plan // of the first worker
	plans []Plan
	res   *Result
	log   map[version]int64
}

// record has one history made. shape changes the plan for each worker.
func (l *lab) record(ctx context.Context, base Plan, keys int, shape func(i int, p *Plan)) (*history, error) {
	ctx, cancel := context.WithTimeout(ctx, hangs)
	defer cancel()
	base.DSN, base.Clock = l.dsn, l.file
	first := l.keys
	l.keys += int64(keys)
	if _, err := l.conn.Exec(ctx, "INSERT INTO register SELECT k, 0 FROM generate_series($1::bigint, $2) k", first, l.keys-1); err != nil {
		return nil, err
	}
	base.Keys = nil
	for k := first; k < l.keys; k++ {
		base.Keys = append(base.Keys, k)
	}
	h := &history{plan: base}
	for i := range l.workers {
		p := base
		p.Worker, p.Role = i, l.roles[i]
		shape(i, &p)
		h.plans = append(h.plans, p)
	}
	if _, err := l.tell(func(i int) Message { return Message{&h.plans[i]} }); err != nil {
		return h, err
	}
	l.clock.Grant(base.Budget)
	var err error
	if h.res, err = l.tell(func(int) Message { return Message{} }); err != nil {
		return h, err
	}
	if l.logged {
		rows, err := l.conn.Query(ctx, "SELECT k, val, ver FROM register_log WHERE k >= $1", first)
		if err != nil {
			return h, err
		}
		h.log = make(map[version]int64)
		var v version
		var n int64
		if _, err = pgx.ForEachRow(rows, []any{&v.key, &v.val, &n}, func() error {
			h.log[v] = n
			return nil
		}); err != nil {
			return h, err
		}
	}
	_, err = l.conn.Exec(ctx, "DELETE FROM register WHERE k < $1", l.keys)
	return h, err
}

// tally are the figures of many histories.
type tally struct {
	Result              // without operations
	histories, ops      int
	illegal, unknown    int
	open                int
	observed            int // open writes that somebody saw
	missed, judgedReads int
	kinds               [3]int
	vias                [len(viaNames)]int
	slowest             time.Duration // to judge
}

func (y *tally) add(h *history) {
	ops := h.res.Ops
	seen := make(map[int64]bool)
	for _, op := range ops {
		y.kinds[op.Kind]++
		y.vias[op.Via]++
		if op.Kind != Write {
			seen[op.Out] = true
		}
	}
	for _, op := range ops {
		if op.Return == Open {
			y.open++
			if seen[op.In] {
				y.observed++
			}
		}
	}
	y.ops += len(ops)
	y.histories++
	h.res.Ops = nil
	y.Add(h.res)
	h.res.Ops = ops
}

func (y *tally) report(e *battery.Entry) {
	e.Set("histories", y.histories)
	e.Set("operations", y.ops)
	e.Set("reads", y.kinds[Read])
	e.Set("writes", y.kinds[Write]+y.kinds[Swap])
	e.Set("open", y.open)
	e.Set("open_and_seen", y.observed)
	e.Set("flights", y.Flights)
	e.Set("joins", y.Joins)
	e.Set("fenced", y.Fenced)
	e.Set("bypasses", fmt.Sprint(y.Bypasses))
	e.Set("retries", y.Retries)
	e.Set("reads_cancelled", y.Cancelled)
	e.Set("backends_killed", y.Killed)
}

// vacuous says what a run did not do that it is meant to have done: of the reads
// through flightpg, many must have joined a flight.
func (y *tally) vacuous() string {
	switch reads := uint64(y.kinds[Read] - y.vias[ViaPgx]); {
	case y.Joins*battery.N[uint64](10, 4) < reads:
		return fmt.Sprintf("%d joins for %d reads through flightpg: too few to judge sharing by", y.Joins, reads)
	case y.kinds[Write] == 0 || y.kinds[Swap] == 0:
		return "no writes"
	}
	return ""
}

// judged is a history and what is to be said of it.
type judged struct {
	*history
	verdict porcupine.CheckResult
	missed  []stale
	reads   int
	took    time.Duration
	err     error
}

// trial is a row of histories under one claim.
type trial struct {
	lab   *lab
	seed  uint64
	shape func(rng *rand.Rand, n int) (base Plan, keys int, each func(i int, p *Plan))

	linear bool // porcupine judges
	mine   bool // readYourWrites judges

	histories, operations int // at least so many of both
	// enough makes it a control: wrong histories are counted, and who has seen
	// enough of them stops.
	enough func(*tally) bool
}

// run records histories and judges each while the next is recorded.
func (tr *trial) run(t *testing.T) *tally {
	t.Helper()
	only := -1
	if s := os.Getenv(envHistory); s != "" {
		n, err := strconv.Atoi(s)
		if err != nil {
			t.Fatalf("%s=%q: %v", envHistory, s, err)
		}
		only = n
	}
	y := new(tally)
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	recorded := make(chan *judged, 1)
	var mu sync.Mutex // guards y
	go func() {
		defer close(recorded)
		for n := 0; ctx.Err() == nil; n++ {
			mu.Lock()
			done := y.histories >= tr.histories && y.ops >= tr.operations || tr.enough != nil && tr.enough(y)
			mu.Unlock()
			if done || only >= 0 && n > 0 {
				return
			}
			if only >= 0 {
				n = only
			}
			base, keys, each := tr.shape(battery.Rand(tr.seed, n), n)
			base.Number, base.Seed = n, battery.Rand(tr.seed, n).Uint64()
			h, err := tr.lab.record(ctx, base, keys, each)
			if err == nil {
				mu.Lock()
				y.add(h)
				mu.Unlock()
			}
			select {
			case recorded <- &judged{history: h, err: err}:
			case <-ctx.Done():
			}
			if err != nil {
				return
			}
		}
	}()

	begin, spoke := time.Now(), time.Now()
	for j := range recorded {
		if j.err != nil {
			t.Errorf("seed %d: history %d: %v\n%s", tr.seed, j.plan.Number, j.err, describe(j.plans))
			break
		}
		tr.judge(j)
		mu.Lock()
		y.slowest = max(y.slowest, j.took)
		y.missed += len(j.missed)
		y.judgedReads += j.reads
		switch j.verdict {
		case porcupine.Illegal:
			y.illegal++
		case porcupine.Unknown:
			y.unknown++
		}
		if battery.Full() && time.Since(spoke) > 10*time.Second {
			spoke = time.Now()
			t.Logf("%v: %d histories, %d operations (%.0f/s), %d joins, %d illegal, %d unknown, %d missed, longest judgement %v",
				time.Since(begin).Round(time.Second), y.histories, y.ops, float64(y.ops)/time.Since(begin).Seconds(),
				y.Joins, y.illegal, y.unknown, y.missed, y.slowest.Round(time.Millisecond))
		}
		mu.Unlock()
		if j.err != nil {
			t.Errorf("seed %d: history %d: %v\n%s", tr.seed, j.plan.Number, j.err, describe(j.plans))
		}
		if tr.enough == nil && (j.verdict != porcupine.Ok || len(j.missed) > 0 || j.err != nil) {
			t.Errorf("seed %d: history %d is %v, with %d reads that miss a write of their process (%s=%d %s=%d go test -run '^%s$' repeats its plan)\n%skept in %s",
				tr.seed, j.plan.Number, j.verdict, len(j.missed), battery.EnvSeed, tr.seed, envHistory, j.plan.Number, t.Name(),
				describe(j.plans), keep(t, tr.seed, j))
			for _, s := range j.missed[:min(len(j.missed), 3)] {
				t.Log(s)
			}
			if y.illegal+y.unknown >= 3 {
				break
			}
		}
	}
	stop()
	for range recorded { // the recorder ends with ctx
	}
	return y
}

// These bound porcupine's search in one history. It takes some tens of
// milliseconds: who has not come to an end by then has found no verdict. That a
// history is not legal may take long to prove, and a control has others.
const (
	judgement        = time.Minute
	judgementControl = 3 * time.Second
)

func (tr *trial) judge(j *judged) {
	begin := time.Now()
	j.verdict = porcupine.Ok
	if tr.linear {
		patience := judgement
		if tr.enough != nil {
			patience = judgementControl
		}
		j.verdict = linearizable(j.res.Ops, patience)
	}
	if tr.mine {
		j.missed, j.reads, j.err = readYourWrites(j.res.Ops, j.log)
	}
	j.took = time.Since(begin)
}

func describe(plans []Plan) string {
	s := ""
	for _, p := range plans {
		p.DSN, p.Clock = "", ""
		s += fmt.Sprintf("\t%+v\n", p)
	}
	return s
}

// keep saves a history and porcupine's picture of it, and returns where.
func keep(t *testing.T, seed uint64, j *judged) string {
	dir := os.Getenv(envDir)
	if dir == "" {
		var err error
		if dir, err = os.MkdirTemp("", "flightpg-battery-"); err != nil {
			t.Error(err)
			return "nowhere"
		}
	} else if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Error(err)
		return "nowhere"
	}
	name := filepath.Join(dir, fmt.Sprintf("consistency-%d-%d", seed, j.plan.Number))
	f, err := os.Create(name + ".jsonl")
	if err != nil {
		t.Error(err)
		return "nowhere"
	}
	enc := json.NewEncoder(f)
	for _, p := range j.plans {
		_ = enc.Encode(p)
	}
	for _, op := range j.res.Ops {
		_ = enc.Encode(op)
	}
	if err := f.Close(); err != nil {
		t.Error(err)
	}
	if j.verdict == porcupine.Illegal {
		// Only the keys that are not legal: the whole is too much to look at.
		byKey := make(map[int64][]Op)
		for _, op := range j.res.Ops {
			byKey[op.Key] = append(byKey[op.Key], op)
		}
		for key, ops := range byKey {
			if linearizable(ops, judgement) == porcupine.Ok {
				continue
			}
			_, info := porcupine.CheckOperationsVerbose(register, operations(ops), judgement)
			if err := porcupine.VisualizePath(register, info, fmt.Sprintf("%s-key%d.html", name, key)); err != nil {
				t.Error(err)
			}
		}
	}
	return name + ".jsonl"
}

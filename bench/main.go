// Command bench measures flightpg beside pgx, hand-written ways of sharing reads,
// and what database/sql could do at best.
//
//	go run . -o ../.cache/bench                              the short plan, in less than 10 minutes
//	go run . -full -budget 2h -o ../.cache/bench             all combinations
//	go run . -workloads "unique 1 row" -goroutines 16,64 -contenders pipeline
//	go run . matrix -o ../.cache/bench                       workloads in which nothing is shared: see matrix.go
//
// Times on a machine whose mood changes say little, so contenders run in turns, in
// an order that changes from round to round, and what counts is the median of the
// rounds' ratios to pgx's database/sql driver with 16 connections.
//
// Reading order: plan.go (what is measured) → load.go, contender.go, ceiling.go →
// measure.go → layers.go (parts of the driver alone) → targets.go → report.go → profile.go.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"runtime/pprof"
	"slices"
	"strconv"
	"strings"
	"time"
)

// options are the flags.
type options struct {
	full       bool
	profile    bool
	budget     time.Duration
	rounds     int
	length     time.Duration
	workloads  []string
	contenders []string
	goroutines []int
	links      []string
	contexts   []string
	layers     string
	dsn        string
	out        string
}

func main() {
	if proxied() || layered() || helped() {
		return
	}
	if len(os.Args) > 1 && os.Args[1] == "matrix" {
		matrixMain(os.Args[2:])
		return
	}
	var o options
	var goroutines, cpuProfile, memProfile string
	var list bool
	flag.BoolVar(&o.full, "full", false, "all combinations of workloads, goroutines, contexts and links")
	flag.BoolVar(&o.profile, "profile", false, "say whose code an operation's CPU time goes to, where targets are missed: profile.md")
	flag.DurationVar(&o.budget, "budget", 9*time.Minute, "how long it may take, all in all: the length of the measurements follows from it")
	flag.IntVar(&o.rounds, "rounds", 15, "rounds, after one to warm up")
	flag.DurationVar(&o.length, "time", 0, "length of a measurement, in place of what follows from -budget")
	flag.Func("workloads", "parts of their names, with commas; all by default", words(&o.workloads))
	flag.Func("contenders", "their names, with commas (pgx-16 always takes part); those of the plan by default", words(&o.contenders))
	flag.StringVar(&goroutines, "goroutines", "", "numbers of goroutines, with commas; those of the plan by default")
	flag.Func("links", "direct, undelayed, delayed, with commas; those of the plan by default", words(&o.links))
	flag.Func("contexts", "background, timeout (one for each call), with commas; those of the plan by default", words(&o.contexts))
	flag.StringVar(&o.layers, "layers", "", "measure the flight table and other parts alone: yes, no or only; by default if nothing is selected")
	flag.StringVar(&o.dsn, "dsn", "", "a database to make tables in; by default a throw-away server is started")
	flag.StringVar(&o.out, "o", "", "a directory for what is written")
	flag.StringVar(&cpuProfile, "cpuprofile", "", "file for a profile of CPU time")
	flag.StringVar(&memProfile, "memprofile", "", "file for a profile of allocations")
	flag.BoolVar(&list, "list", false, "say what would be measured")
	flag.Parse()
	if goroutines != "" {
		for _, s := range strings.Split(goroutines, ",") {
			n, err := strconv.Atoi(strings.TrimSpace(s))
			if err != nil || n < 1 {
				fail(fmt.Errorf("-goroutines: %q is not a number of goroutines", s))
			}
			o.goroutines = append(o.goroutines, n)
		}
	}
	if flag.NArg() > 0 || o.rounds < 1 || !slices.Contains([]string{"", "yes", "no", "only"}, o.layers) {
		flag.Usage()
		os.Exit(2)
	}
	cells, err := o.plan()
	if err != nil {
		fail(err)
	}
	if o.layers == "only" {
		cells = nil
	}
	if list {
		for _, c := range cells {
			fmt.Printf("%s: %s\n", c, strings.Join(c.Contenders, ", "))
		}
		return
	}
	if cpuProfile != "" {
		f, err := os.Create(cpuProfile)
		if err == nil {
			err = pprof.StartCPUProfile(f)
		}
		if err != nil {
			fail(err)
		}
	}
	err = run(context.Background(), &o, cells)
	if cpuProfile != "" {
		pprof.StopCPUProfile()
	}
	if memProfile != "" {
		f, ferr := os.Create(memProfile)
		if ferr == nil {
			ferr = errors.Join(pprof.Lookup("allocs").WriteTo(f, 0), f.Close())
		}
		err = errors.Join(err, ferr)
	}
	if err != nil {
		fail(err)
	}
}

func fail(err error) {
	fmt.Fprintln(os.Stderr, "bench:", err)
	os.Exit(1)
}

// words returns a flag's parser of words with commas between them.
func words(to *[]string) func(string) error {
	return func(s string) error {
		for _, word := range strings.Split(s, ",") {
			if word = strings.TrimSpace(word); word != "" {
				*to = append(*to, word)
			}
		}
		return nil
	}
}

// run measures everything and writes the report.
func run(ctx context.Context, o *options, cells []*cell) error {
	rep := &report{Meta: newMeta(o)}
	b := &bench{o: o, rep: rep, began: time.Now(), family: familyTimes()}
	b.all, b.busy = machineTimes()
	if err := b.start(ctx); err != nil {
		return err
	}
	defer b.stop()
	layers := !o.profile && (o.layers == "yes" || o.layers == "only" || o.layers == "" && len(o.workloads)+len(o.goroutines)+len(o.contenders) == 0)
	if layers {
		if err := b.layers(ctx); err != nil {
			return err
		}
	}
	b.schedule(cells)
	for _, c := range cells {
		res, err := b.cell(ctx, c)
		if err != nil {
			return fmt.Errorf("%s: %w", c, err)
		}
		rep.Cells = append(rep.Cells, res)
		res.print(os.Stdout)
	}
	if !o.profile {
		b.limits()
	}
	b.stop() // so that the server is among the children that have ended
	rep.Meta.Others = b.others()
	rep.Meta.Took = time.Since(b.began).Round(time.Second).String()
	rep.Targets = judge(rep)
	if !o.profile && (len(cells) > 1 || layers) {
		fmt.Println()
		rep.writeTargets(os.Stdout, false)
	}
	if o.out == "" {
		return nil
	}
	if err := os.MkdirAll(o.out, 0o755); err != nil {
		return err
	}
	type output struct {
		name  string
		write func(*os.File) error
	}
	outputs := []output{{"bench.md", rep.writeMarkdown}, {"bench.json", rep.writeJSON}, {"bench.svg", rep.writeSVG}}
	if o.profile {
		outputs = []output{{"profile.md", rep.writeProfile}}
	}
	names := []string{}
	for _, f := range outputs {
		to, err := os.Create(filepath.Join(o.out, f.name))
		if err != nil {
			return err
		}
		if err := errors.Join(f.write(to), to.Close()); err != nil {
			return fmt.Errorf("%s: %w", f.name, err)
		}
		names = append(names, f.name)
	}
	fmt.Printf("\nwritten: %s in %s\n", strings.Join(names, ", "), o.out)
	return nil
}

// matches reports whether a name is wanted: always if nothing is asked for.
func matches(wanted []string, name string) bool {
	return len(wanted) == 0 || slices.ContainsFunc(wanted, func(w string) bool { return strings.Contains(name, w) })
}

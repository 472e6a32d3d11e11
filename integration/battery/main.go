// Command battery runs the battery at full length: the tests that try to break
// flightpg, part by part, with nothing else at the same time. It prints their
// output as they go, and at the end a report: each claim, the figures that it was
// tested with, and whether it held. A run is repeated by its seed.
//
//	go run . [-seed N] [-parts consistency,faults] [-o report.md]
//
// It ends with status 1 if a claim failed, or a part reported none.
package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/flightpg/flightpg/internal/battery"
)

// part is a set of tests that run together.
type part struct {
	name string
	dir  string   // of the module, from the root
	args []string // of go test
}

// parts are in the order in which they run. The race detector is on where what is
// tested is memory shared by goroutines; where it is many operations on a server,
// the short form has it on in every run of the tests.
var parts = []part{
	{"simulation", ".", []string{"-run", "Simulation", "-timeout", "40m", ".", "./internal/flight", "./internal/pipeline"}},
	{"consistency", "integration/battery", []string{"-timeout", "30m", "./consistency"}},
	{"faults", "integration/battery", []string{"-timeout", "20m", "./faults"}},
	{"bounds", "integration/battery", []string{"-timeout", "20m", "./bounds"}},
	{"isolation", "integration/battery", []string{"-race", "-timeout", "20m", "./isolation"}},
	{"hostile", "integration/battery", []string{"-timeout", "20m", "./hostile"}},
}

func main() {
	seed := flag.Uint64("seed", 0, "repeat the run with this `seed` (default: a new one)")
	only := flag.String("parts", "", "run these `parts` only, separated by commas (default: all)")
	out := flag.String("o", "", "write the report to this `file` too")
	flag.Parse()
	if *seed == 0 {
		*seed = rand.Uint64()
	}
	wanted := strings.FieldsFunc(*only, func(r rune) bool { return r == ',' })
	for _, name := range wanted {
		if !slices.ContainsFunc(parts, func(p part) bool { return p.name == name }) {
			fmt.Fprintf(os.Stderr, "battery: there is no part %q\n", name)
			os.Exit(2)
		}
	}
	ok, err := run(*seed, wanted, *out)
	if err != nil {
		fmt.Fprintf(os.Stderr, "battery: %v\n", err)
		os.Exit(1)
	}
	if !ok {
		os.Exit(1)
	}
}

// root returns the directory of the checkout.
func root() (string, error) {
	out, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "github.com/flightpg/flightpg").Output()
	if err != nil {
		return "", fmt.Errorf("where is the checkout? %w", err)
	}
	return strings.TrimSpace(string(out)), nil
}

// result is what came of a part.
type result struct {
	part
	err     error
	entries []*battery.Entry
	took    time.Duration
}

func run(seed uint64, wanted []string, out string) (ok bool, err error) {
	top, err := root()
	if err != nil {
		return false, err
	}
	dir, err := os.MkdirTemp("", "flightpg-battery-")
	if err != nil {
		return false, err
	}
	defer os.RemoveAll(dir)

	begin := time.Now()
	fmt.Printf("battery: seed %d: make battery SEED=%d repeats this run\n", seed, seed)
	var results []result
	ok = true
	for _, p := range parts {
		if len(wanted) > 0 && !slices.Contains(wanted, p.name) {
			continue
		}
		fmt.Printf("\nbattery: %s (after %v)\n", p.name, time.Since(begin).Round(time.Second))
		r := runPart(p, top, seed, filepath.Join(dir, p.name+".jsonl"))
		fmt.Printf("battery: %s took %v: %s\n", p.name, r.took.Round(time.Second), r.verdict())
		ok = ok && r.verdict() == "passed"
		results = append(results, r)
	}

	var report bytes.Buffer
	write(&report, seed, begin, results)
	fmt.Printf("\n%s", report.Bytes())
	if out != "" {
		if err := os.MkdirAll(filepath.Dir(out), 0o755); err != nil {
			return false, err
		}
		if err := os.WriteFile(out, report.Bytes(), 0o644); err != nil {
			return false, err
		}
	}
	return ok, nil
}

func runPart(p part, top string, seed uint64, file string) result {
	args := append([]string{"test", "-count=1", "-v"}, p.args...)
	fmt.Printf("battery: cd %s && go %s\n", p.dir, strings.Join(args, " "))
	cmd := exec.Command("go", args...)
	cmd.Dir = filepath.Join(top, p.dir)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.Env = append(os.Environ(), "GOWORK=off",
		battery.EnvLength+"=full",
		battery.EnvSeed+"="+strconv.FormatUint(seed, 10),
		battery.EnvReport+"="+file)
	begin := time.Now()
	r := result{part: p}
	r.err = cmd.Run()
	r.took = time.Since(begin)
	entries, err := read(file)
	if err != nil && r.err == nil {
		r.err = err
	}
	r.entries = entries
	return r
}

// read returns the entries that a part has written.
func read(file string) ([]*battery.Entry, error) {
	f, err := os.Open(file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, errors.New("reported nothing")
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var entries []*battery.Entry
	for d := json.NewDecoder(bufio.NewReader(f)); ; {
		e := new(battery.Entry)
		if err := d.Decode(e); err == io.EOF {
			return entries, nil
		} else if err != nil {
			return entries, err
		}
		entries = append(entries, e)
	}
}

func (r *result) verdict() string {
	if r.err != nil {
		return "FAILED: " + r.err.Error()
	}
	for i := range r.entries {
		if !r.entries[i].Passed {
			return "FAILED"
		}
	}
	return "passed"
}

// write writes the report, as Markdown.
func write(w io.Writer, seed uint64, begin time.Time, results []result) {
	fmt.Fprintf(w, "# The battery's report\n\n")
	fmt.Fprintf(w, "%s, %v, seed %d (`make battery SEED=%d`)\n", begin.UTC().Format("2006-01-02 15:04 MST"),
		time.Since(begin).Round(time.Second), seed, seed)
	fmt.Fprintf(w, "%s %s/%s, pgx %s, %s, %d CPUs (%s)\n", runtime.Version(), runtime.GOOS, runtime.GOARCH,
		moduleVersion("github.com/jackc/pgx/v5"), postgresVersion(), runtime.NumCPU(), cpu())
	for i := range results {
		r := &results[i]
		fmt.Fprintf(w, "\n## %s: %s (%v)\n\n", r.name, r.verdict(), r.took.Round(time.Second))
		fmt.Fprintf(w, "| claim | held | with |\n|---|---|---|\n")
		for _, e := range r.entries {
			held := "yes"
			if !e.Passed {
				held = "**NO**"
			}
			figures := make([]string, 0, len(e.Figures)+1)
			for _, f := range e.Figures {
				figures = append(figures, fmt.Sprintf("%s %s", f.Name, number(f.Value)))
			}
			figures = append(figures, fmt.Sprintf("%.0f s", e.Seconds))
			fmt.Fprintf(w, "| %s | %s | %s |\n", e.Claim, held, strings.Join(figures, ", "))
		}
	}
}

// number prints whole numbers in groups of three, as 12,345,678.
func number(v any) string {
	f, ok := v.(float64) // as JSON has it
	if !ok {
		return strings.ReplaceAll(fmt.Sprint(v), "|", `\|`)
	}
	if f != float64(int64(f)) {
		return strconv.FormatFloat(f, 'g', 4, 64)
	}
	s := strconv.FormatInt(int64(f), 10)
	for i := len(s) - 3; i > 0 && s[i-1] != '-'; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}

func moduleVersion(path string) string {
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, m := range info.Deps {
			if m.Path == path {
				return m.Version
			}
		}
	}
	return "of unknown version"
}

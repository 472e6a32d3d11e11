// Command flightpg says what flightpg does with SQL, and why.
//
//	flightpg explain [-dsn DSN] [-json] [SQL | -f FILE | -]
//
// Without -dsn the text of a statement alone is judged; with it also what the
// database says about the names in it. A file, or - for standard input, holds
// one statement per line, with \n, \t, \r and \\ for what cannot stand in a line.
//
// With -json it prints one object per statement, in the order of the input:
//
//	{"sql":…,"verdict":"coalesce"|"bypass","reason":…,"layer":…,"name":…,"hint":…}
//
// with "hot_standby":true where the database is one.
//
// Exit status: 0; 1 if the database or the file cannot be read; 2 for bad usage.
package main

import (
	"bufio"
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"text/tabwriter"

	"github.com/flightpg/flightpg"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	os.Exit(run(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
}

const usage = `usage: flightpg explain [-dsn DSN] [-json] [SQL | -f FILE | -]

Says whether flightpg shares a query between concurrent callers, and why not.

  SQL        the statement
  -f FILE    statements, one per line (\n, \t, \r and \\ stand for themselves)
  -          the same, from standard input
  -dsn DSN   ask this database about tables, views and functions too
  -json      print one JSON object per statement
`

// errUsage is a mistake in the command line.
type errUsage string

func (e errUsage) Error() string { return string(e) }

func run(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	err := explain(ctx, args, stdin, stdout)
	var bad errUsage
	switch {
	case err == nil:
		return 0
	case errors.Is(err, flag.ErrHelp):
		fmt.Fprint(stdout, usage)
		return 0
	case errors.As(err, &bad):
		fmt.Fprintf(stderr, "flightpg: %v\n\n%s", err, usage)
		return 2
	default:
		fmt.Fprintln(stderr, "flightpg:", strings.TrimPrefix(err.Error(), "flightpg: "))
		return 1
	}
}

func explain(ctx context.Context, args []string, stdin io.Reader, stdout io.Writer) error {
	if len(args) == 0 {
		return errUsage("no command")
	}
	switch args[0] {
	case "explain":
	case "help", "-h", "-help", "--help":
		return flag.ErrHelp
	default:
		return errUsage("unknown command: use explain") // not repeated: it may be a DSN, with a password
	}
	flags := flag.NewFlagSet("explain", flag.ContinueOnError)
	flags.SetOutput(io.Discard)
	dsn := flags.String("dsn", "", "")
	asJSON := flags.Bool("json", false, "")
	file := flags.String("f", "", "")
	if err := flags.Parse(args[1:]); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return err
		}
		return errUsage(err.Error())
	}
	next, done, err := input(flags.Args(), *file, stdin)
	if err != nil {
		return err
	}
	defer done()
	judge, done, err := judge(*dsn)
	if err != nil {
		return err
	}
	defer done()

	out := bufio.NewWriter(stdout)
	defer out.Flush()
	print := printer(out, isTerminal(stdout))
	if *asJSON {
		print = jsonPrinter(out)
	}
	for {
		query, err := next()
		if err == io.EOF {
			return print("", nil)
		}
		if err != nil {
			return err
		}
		v, err := judge(ctx, query)
		if err != nil {
			return err
		}
		if err := print(query, &v); err != nil {
			return err
		}
	}
}

// input returns a function that gives one statement after the other, then
// io.EOF.
func input(args []string, file string, stdin io.Reader) (next func() (string, error), done func(), err error) {
	done = func() {}
	switch {
	case file != "" && len(args) > 0:
		return nil, nil, errUsage("give either SQL or -f FILE")
	case len(args) > 1:
		return nil, nil, errUsage("give the SQL as one argument, in quotes")
	case file != "":
		f, err := os.Open(file)
		if err != nil {
			return nil, nil, err
		}
		return lines(f), func() { _ = f.Close() }, nil
	case len(args) == 0:
		return nil, nil, errUsage("nothing to explain: give SQL, -f FILE or -")
	case args[0] == "-":
		return lines(stdin), done, nil
	}
	given := false
	return func() (string, error) {
		if given {
			return "", io.EOF
		}
		given = true
		return args[0], nil
	}, done, nil
}

// lines reads one statement per line, however long.
func lines(r io.Reader) func() (string, error) {
	br := bufio.NewReader(r)
	return func() (string, error) {
		line, err := br.ReadString('\n')
		if line == "" && err != nil {
			return "", err
		}
		return unescape(strings.TrimSuffix(line, "\n")), nil
	}
}

var escapes = strings.NewReplacer(`\\`, `\`, `\n`, "\n", `\t`, "\t", `\r`, "\r")

func unescape(line string) string { return escapes.Replace(line) }

// judge returns what judges a statement: the text rules, or a database.
func judge(dsn string) (func(context.Context, string) (flightpg.Verdict, error), func(), error) {
	if dsn == "" {
		return func(_ context.Context, query string) (flightpg.Verdict, error) { return judgeText(query) }, func() {}, nil
	}
	db, err := sql.Open("flightpg", dsn)
	if err != nil {
		return nil, nil, err
	}
	return func(ctx context.Context, query string) (flightpg.Verdict, error) {
		return flightpg.Explain(ctx, db, query)
	}, func() { _ = db.Close() }, nil
}

func judgeText(query string) (flightpg.Verdict, error) { return flightpg.ExplainText(query), nil }

// record is the JSON form of one verdict.
type record struct {
	SQL     string `json:"sql"`
	Verdict string `json:"verdict"`
	Reason  string `json:"reason"`
	Layer   string `json:"layer"`
	Name    string `json:"name"`
	Hint    string `json:"hint"`
	Standby bool   `json:"hot_standby,omitempty"` // it is the database's, and the same for all
}

// A printer is called with each statement, and at the end with a nil verdict.

func jsonPrinter(w io.Writer) func(string, *flightpg.Verdict) error {
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false)
	return func(query string, v *flightpg.Verdict) error {
		if v == nil {
			return nil
		}
		return enc.Encode(record{query, v.Decision(), v.Reason.String(), v.Layer, v.Name, v.Hint, v.HotStandby})
	}
}

func printer(w io.Writer, colour bool) func(string, *flightpg.Verdict) error {
	paint := func(code, s string) string {
		if !colour {
			return s
		}
		return "\x1b[" + code + "m" + s + "\x1b[0m"
	}
	// Every cell of the first column has its colour, so that all are equally
	// longer than they look.
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintf(tw, "%s\tREASON\tLAYER\tNAME\tSQL\n", paint("1", "VERDICT"))
	standby := false
	return func(query string, v *flightpg.Verdict) error {
		if v == nil {
			err := tw.Flush()
			if standby {
				fmt.Fprintln(w, standbyNote)
			}
			return err
		}
		standby = standby || v.HotStandby
		verdict, reason := paint("33", "bypass"), v.Reason.String()
		if v.Coalesce {
			verdict, reason = paint("32", "coalesce"), ""
		}
		fmt.Fprintf(tw, "%s\t%s\t%s\t%s\t%s\n", verdict, reason, v.Layer, v.Name, oneLine(query))
		if v.Hint != "" {
			fmt.Fprintf(tw, "%s\t\t\t\t%s\n", paint("2", ""), paint("2", "→ "+v.Hint))
		}
		return nil
	}
}

const standbyNote = "The database is a hot standby: whatever the mode, a read there may not see what was just written on the primary."

// oneLine makes a statement fit a line of the table.
func oneLine(query string) string {
	const most = 100
	s := []rune(strings.Join(strings.Fields(query), " "))
	if len(s) > most {
		return string(s[:most-1]) + "…"
	}
	return string(s)
}

func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	if !ok || os.Getenv("NO_COLOR") != "" {
		return false
	}
	st, err := f.Stat()
	return err == nil && st.Mode()&os.ModeCharDevice != 0
}

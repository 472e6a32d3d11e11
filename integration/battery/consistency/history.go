//go:build unix

package consistency

import (
	"fmt"
	"math"
	"time"
)

// Kind is what an operation does to its register.
type Kind uint8

const (
	Read  Kind = iota // Out is what it saw
	Write             // In is what it wrote
	Swap              // both in one statement: UPDATE … RETURNING the value before
)

// Open is the time of return of an operation whose outcome is unknown.
const Open = math.MaxInt64

// Op is one operation. What is known to have had no effect and no answer (a
// cancelled read, a transaction rolled back) is none.
type Op struct {
	Worker int16
	Client int16 // of its worker
	Kind   Kind
	Via    Via
	Key    int64
	In     int64
	Out    int64
	Call   int64
	Return int64 // Open if nobody knows
}

func (o Op) String() string {
	end := "never"
	if o.Return != Open {
		end = fmt.Sprint(o.Return)
	}
	s := fmt.Sprintf("[%d, %s] worker %d client %d %v key %d: ", o.Call, end, o.Worker, o.Client, o.Via, o.Key)
	switch o.Kind {
	case Read:
		return s + fmt.Sprintf("read %d", o.Out)
	case Write:
		return s + fmt.Sprintf("write %d", o.In)
	default:
		return s + fmt.Sprintf("write %d over %d", o.In, o.Out)
	}
}

// Role is what a worker works with.
type Role uint8

const (
	RoleFlight Role = iota // flightpg
	RolePgx                // pgxpool
)

// Plan is all that a worker knows of a history before it begins. The parent
// draws it from the seed; which client then meets which is up to the machine.
type Plan struct {
	Number int    // of the history, under its seed
	Seed   uint64 // of this history
	Worker int
	Role   Role

	DSN     string // without flightpg's parameters
	Clock   string // the file of the shared counter
	Keys    []int64
	Clients int
	Budget  int64 // operations of all workers together

	// Handle is how flightpg is set up. Workers keep their connections while it
	// stays the same.
	Handle Handle

	Writes  float64 // share of operations that write, or try to
	Slow    float64 // share of reads that take long on the server, and so are old when they land
	Cancel  float64 // share of reads with a context that ends early
	Unknown float64 // share of writes with such a context
	Kill    int64   // every so many operations somebody's backend is killed. 0: never
}

// Handle is how a worker of RoleFlight opens the database.
type Handle struct {
	Params     string // flightpg's parameters of the DSN
	Mode       string // for every call, by WithMode. "": as Params say
	Connectors int    // to the same database
	Pool       bool   // the last of them is one over a pgxpool
}

// Result is what a worker recorded.
type Result struct {
	Ops       []Op
	Err       string // what must not happen, and so ends the test
	Joins     uint64
	Flights   uint64
	Fenced    uint64
	Bypasses  map[string]uint64 // queries that were not shared, by the reason
	Retries   uint64
	Abandoned uint64
	Cancelled uint64 // reads that ended with their context
	Lost      uint64 // reads that failed with a killed backend
	Refused   uint64 // writes that failed or were rolled back, known to have done nothing
	Killed    uint64
}

// Add adds the figures of another result.
func (r *Result) Add(o *Result) {
	r.Ops = append(r.Ops, o.Ops...)
	if r.Err == "" {
		r.Err = o.Err
	}
	r.Joins += o.Joins
	r.Flights += o.Flights
	r.Fenced += o.Fenced
	for why, n := range o.Bypasses {
		r.bypassed(why, n)
	}
	r.Retries += o.Retries
	r.Abandoned += o.Abandoned
	r.Cancelled += o.Cancelled
	r.Lost += o.Lost
	r.Refused += o.Refused
	r.Killed += o.Killed
}

func (r *Result) bypassed(why string, n uint64) {
	if r.Bypasses == nil {
		r.Bypasses = make(map[string]uint64)
	}
	r.Bypasses[why] += n
}

// patience bounds every call to the server, so that a hang is an error.
const patience = 60 * time.Second

// Schema is what a database needs before its first history. Function swap is a
// write that looks like a read. register_log keeps the order in which the
// versions of each register came to be, for the judge of read-your-writes; only
// with the trigger of SchemaLog.
const Schema = `
	CREATE TABLE register (
		k    bigint PRIMARY KEY,
		val  bigint NOT NULL CHECK (val >= 0),
		prev bigint NOT NULL DEFAULT 0,
		ver  bigint NOT NULL DEFAULT 0
	) WITH (fillfactor = 20);
	CREATE FUNCTION swap(bigint, bigint) RETURNS bigint LANGUAGE sql VOLATILE AS
		'UPDATE register SET prev = val, val = $2, ver = ver + 1 WHERE k = $1 RETURNING prev';`

// SchemaLog makes the log of versions.
const SchemaLog = `
	CREATE TABLE register_log (k bigint, val bigint, ver bigint, PRIMARY KEY (k, val));
	CREATE FUNCTION register_logged() RETURNS trigger LANGUAGE plpgsql AS
		'BEGIN INSERT INTO register_log VALUES (NEW.k, NEW.val, NEW.ver); RETURN NULL; END';
	CREATE TRIGGER logged AFTER UPDATE ON register FOR EACH ROW EXECUTE FUNCTION register_logged();`

// Victim is the application_name of the connections that may be killed.
const Victim = "battery-victim"

package flightpg

import (
	"context"
	"database/sql"
	"time"

	"github.com/flightpg/flightpg/internal/judge"
)

// Verdict says whether a statement is shared between concurrent callers, and
// why not.
type Verdict struct {
	Coalesce bool   // shared: a read through the handle joins or leads a flight
	Reason   Reason // why not; ReasonNone if it is
	Layer    string // which layer decided: "text", "catalog", "guard" or "session"
	Name     string // the offending name or word, as PostgreSQL reads it; "" if there is none
	Pos      int    // where it stands in the statement, in bytes from 0
	Hint     string // what would change the verdict; "" if nothing can

	// HotStandby reports what Stats.HotStandby does: reads through the handle may not
	// see what was just written on the primary, whatever the mode.
	HotStandby bool
}

// Decision returns "coalesce" or "bypass".
func (v Verdict) Decision() string {
	if v.Coalesce {
		return "coalesce"
	}
	return "bypass"
}

// ExplainText judges a statement by its text alone: tables and views are taken
// at their word, functions must be built-ins.
func ExplainText(query string) Verdict {
	return explained(judge.Judge(query, nil, judge.Options{TrustNames: true}))
}

// Explain judges a statement as a read through db outside a transaction would
// be, now. It waits for the catalog if that is not loaded yet, or is out of
// date. The error says that db was not opened with flightpg, or why the catalog
// cannot be loaded.
func Explain(ctx context.Context, db *sql.DB, query string) (Verdict, error) {
	c, err := connectorOf(db)
	if err != nil {
		return Verdict{}, err
	}
	v, err := c.explain(ctx, query)
	v.HotStandby = err == nil && c.standby.Load()
	return v, err
}

func (c *Connector) explain(ctx context.Context, query string) (Verdict, error) {
	if c.foreign(ctx) { // it counts, as for a read
		ctx = context.WithoutCancel(ctx)
	}
	if v, ok := c.explainOff(); ok {
		return v, nil
	}
	if c.mode(ctx) == ModeOff {
		return Verdict{Reason: ReasonModeOff, Layer: "session", Hint: hints[ReasonModeOff]}, nil
	}
	c.useOnce()
	if c.catalogs != nil && c.peek(ctx) == nil {
		err := c.catalogs.refresh(ctx)
		if err == errNoCatalog {
			return explained(c.verdicts.get(query, nil).judged), nil
		}
		if v, ok := c.explainOff(); ok {
			return v, nil
		}
		if failed := c.hookError(); err != nil && failed != nil {
			return Verdict{Reason: ReasonHookFailed, Layer: "session", Hint: hints[ReasonHookFailed] + ": " + failed.Error()}, nil
		}
		if err != nil {
			return Verdict{}, err
		}
		if c.catalog(ctx, explainPatience) == nil && ctx.Err() != nil {
			return Verdict{}, ctx.Err()
		}
	}
	v := c.verdicts.get(query, c.peek(ctx))
	if v.reason == ReasonNone && v.refused.Load() {
		return Verdict{Reason: ReasonRefused, Layer: "guard", Hint: hints[ReasonRefused]}, nil
	}
	if v.reason == ReasonTooLong {
		return Verdict{Reason: ReasonTooLong, Layer: "text", Hint: hints[ReasonTooLong]}, nil
	}
	return explained(v.judged), nil
}

// explainPatience is how long Explain waits to hear where a partition's sessions look for
// names.
const explainPatience = time.Second

// explainOff is the verdict on all statements where nothing is shared.
func (c *Connector) explainOff() (Verdict, bool) {
	why := Reason(c.off.Load())
	v := Verdict{Reason: why, Layer: "session", Hint: hints[why]}
	if d := c.depends.Load(); d != nil && why == ReasonHooks {
		v.Name, v.Hint = d.hook, d.why()+": "+v.Hint
		if err := c.hookError(); err != nil {
			v.Hint += "; without its caller's context it fails: " + err.Error()
		}
	}
	return v, why != ReasonNone
}

var hints = map[Reason]string{
	ReasonModeOff:      "set flight_mode to fenced, strict or join",
	ReasonSeveralHosts: "add target_session_attrs=primary or read-write to the DSN",
	ReasonHooks:        "give a Config.PartitionKey that says which contexts are alike",
	ReasonHookFailed:   "let the hook succeed for who opens a connection for the catalog: with the context of whichever caller comes first",
	ReasonSettings:     "set standard_conforming_strings to on and client_encoding to UTF8",
	ReasonNoGuard:      "let the pooler use transaction or session pooling, or set flight_guard=off",
	ReasonTooLong:      "pass the values in it as arguments: what is longer than 512 KiB is not remembered",
	ReasonRefused:      "the server refused it in a read-only transaction: something that it reaches writes",
}

func explained(j judge.Verdict) Verdict {
	v := Verdict{Reason: reasonOf(j.Result), Layer: j.Layer.String(), Name: j.Name, Pos: j.Pos, Hint: j.Hint()}
	v.Coalesce = v.Reason == ReasonNone
	return v
}

package integration

import (
	"context"
	"database/sql"
	"errors"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/flightpg/flightpg"
)

// rewriter makes a statement of its own of whatever it is given.
type rewriter string

func (r rewriter) RewriteQuery(context.Context, *pgx.Conn, string, []any) (string, []any, error) {
	return string(r), nil, nil
}

// panicTracer panics when a statement with that beginning has ended.
type panicTracer string

type tracedText struct{}

func (panicTracer) TraceQueryStart(ctx context.Context, _ *pgx.Conn, data pgx.TraceQueryStartData) context.Context {
	return context.WithValue(ctx, tracedText{}, data.SQL)
}

func (p panicTracer) TraceQueryEnd(ctx context.Context, _ *pgx.Conn, _ pgx.TraceQueryEndData) {
	if text, _ := ctx.Value(tracedText{}).(string); strings.HasPrefix(text, string(p)) {
		panic("traced " + text)
	}
}

// TestFence_Paths: whatever way a write ends, readers see it from then on.
func TestFence_Paths(t *testing.T) {
	inTx := func(f func(tx *sql.Tx) error) func(context.Context, *sql.DB) error {
		return func(ctx context.Context, db *sql.DB) error {
			tx, err := db.BeginTx(ctx, nil)
			if err != nil {
				return err
			}
			if err = f(tx); err != nil {
				_ = tx.Rollback()
			}
			return err
		}
	}
	exec := func(tx *sql.Tx, texts ...string) (err error) {
		for _, text := range texts {
			_, e := tx.Exec(text)
			err = errors.Join(err, e)
		}
		return err
	}
	const insert = "INSERT INTO written VALUES (1)"
	var chained []*sql.Tx // ended with their database
	for name, write := range map[string]func(context.Context, *sql.DB) error{
		"CommitAndChain": inTx(func(tx *sql.Tx) error {
			chained = append(chained, tx)
			return exec(tx, insert, "COMMIT AND CHAIN")
		}),
		"CommitAndChainOfQuery": inTx(func(tx *sql.Tx) error {
			chained = append(chained, tx)
			err := exec(tx, insert)
			rows, e := tx.Query("COMMIT AND CHAIN")
			if e == nil {
				e = rows.Close()
			}
			return errors.Join(err, e)
		}),
		"CommitAndBegin": inTx(func(tx *sql.Tx) error {
			chained = append(chained, tx)
			return exec(tx, insert, "COMMIT; BEGIN")
		}),
		"Refused": func(ctx context.Context, db *sql.DB) error {
			rows, err := db.QueryContext(ctx, "SELECT declared_stable()")
			_, err = printed(rows, err)
			return err
		},
		"Rewritten": func(ctx context.Context, db *sql.DB) error {
			rows, err := db.QueryContext(ctx, "SELECT 1", rewriter(insert+" RETURNING 1"))
			_, err = printed(rows, err)
			return err
		},
		"PanicInCommit": func(ctx context.Context, db *sql.DB) (err error) {
			tx, err := db.BeginTx(ctx, nil)
			if err != nil {
				return err
			}
			if err = exec(tx, insert); err != nil {
				return err
			}
			defer func() {
				if p := recover(); p == nil {
					err = errors.New("no panic")
				}
			}()
			return tx.Commit()
		},
	} {
		t.Run(name, func(t *testing.T) {
			forEachServer(t, func(t *testing.T, dsn string) {
				pc := config(t, dsn)
				if name == "PanicInCommit" {
					pc.Tracer = panicTracer("commit")
				}
				c, err := flightpg.NewConnectorWithConfig(pc, flightpg.Config{TrustDeclared: true})
				if err != nil {
					t.Fatal(err)
				}
				db := c.OpenDB()
				defer db.Close()
				admin := connect(t, dsn)
				execAll(t, admin, `CREATE TABLE written (n int);
					CREATE FUNCTION writes() RETURNS int LANGUAGE plpgsql AS $$ BEGIN INSERT INTO written VALUES (1); RETURN 1; END $$;
					CREATE FUNCTION declared_stable() RETURNS int LANGUAGE plpgsql STABLE AS $$ BEGIN RETURN writes(); END $$`)
				loaded(t, db)
				before := flightpg.ReadStats(db).Fences
				if err := write(t.Context(), db); err != nil {
					t.Fatal(err)
				}
				if n := one[int](t, open(t, "pgx", dsn), "SELECT count(*) FROM written"); n != 1 {
					t.Errorf("%d rows were written; want 1, or this shows nothing", n)
				}
				if after := flightpg.ReadStats(db).Fences; after == before {
					t.Error("no fence")
				}
				for _, tx := range chained {
					_ = tx.Rollback()
				}
				chained = nil
			})
		})
	}
}

// TestRenewal_Several: a text of several statements whose last one is out of date is not
// sent again: the others have run.
func TestRenewal_Several(t *testing.T) {
	forEachServer(t, func(t *testing.T, dsn string) {
		db := open(t, "flightpg", dsn)
		execAll(t, connect(t, dsn), "CREATE TABLE written (n int)")
		for name, run := range map[string]func(text string) error{
			"Exec": func(text string) error { _, err := db.ExecContext(t.Context(), text); return err },
			"Query": func(text string) error {
				rows, err := db.QueryContext(t.Context(), text, pgx.QueryExecModeSimpleProtocol)
				_, err = printed(rows, err)
				return err
			},
			"Conn": func(text string) error {
				conn, err := db.Conn(t.Context())
				if err != nil {
					return err
				}
				defer conn.Close()
				_, err = conn.ExecContext(t.Context(), text)
				return err
			},
		} {
			err := run("BEGIN; INSERT INTO written VALUES (1); COMMIT; EXECUTE nosuch")
			if code(err) != "26000" {
				t.Errorf("%s: %v; want that the prepared statement does not exist", name, err)
			}
			if n := one[int](t, open(t, "pgx", dsn), "SELECT count(*) FROM written"); n != 1 {
				t.Errorf("%s: %d rows were written; want 1", name, n)
			}
			if _, err := db.ExecContext(t.Context(), "TRUNCATE written"); err != nil {
				t.Error(err)
			}
		}
	})
}

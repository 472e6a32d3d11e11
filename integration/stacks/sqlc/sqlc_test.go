// Package sqlctest runs code that sqlc has generated over flightpg: as it comes,
// and with emit_prepared_queries.
package sqlctest

import (
	"context"
	"database/sql"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/flightpg/flightpg"
	"github.com/flightpg/flightpg/integration/stacks/internal/stack"
	"github.com/flightpg/flightpg/integration/stacks/sqlc/db"
	"github.com/flightpg/flightpg/integration/stacks/sqlc/prepared"
)

//go:generate go run github.com/sqlc-dev/sqlc/cmd/sqlc@v1.31.1 generate

//go:embed schema.sql
var schema string

func TestMain(m *testing.M) { stack.Main(m) }

var noon = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

// handle is what applications keep.
type handle struct {
	*sql.DB
	q    *db.Queries
	prep *prepared.Queries
}

func open(e *stack.Env, params ...string) handle {
	e.Helper()
	e.Hold()
	h := handle{DB: e.Open(params...)}
	if _, err := h.ExecContext(e.Context(), schema); err != nil { // several statements, without arguments
		e.Fatal(err)
	}
	h.q = db.New(h.DB)
	var err error
	if h.prep, err = prepared.Prepare(e.Context(), h.DB); err != nil {
		e.Fatal(err)
	}
	e.Cleanup(func() { _ = h.prep.Close() })
	return h
}

// fill writes ten authors with three books each.
func fill(e *stack.Env, h handle) {
	e.Helper()
	for i := range 10 {
		p := db.CreateAuthorParams{
			Name:   fmt.Sprintf("author %d", i),
			Email:  sql.NullString{String: fmt.Sprintf("%d@example.org", i), Valid: i%2 == 0},
			Rating: sql.NullFloat64{Float64: float64(i) / 4, Valid: i%3 != 0},
			Mood:   []db.Mood{db.MoodCalm, db.MoodTense}[i%2],
			Info:   json.RawMessage(fmt.Sprintf(`{"n": %d, "bio": "“Ω”"}`, i)),
			Tags:   []string{fmt.Sprint("t", i%2), `quo"te`},
			Photo:  []byte{0, 255, byte(i)},
			Token:  uuid.NullUUID{UUID: uuid.UUID{15: byte(i)}, Valid: i%4 != 0},
			Born:   noon.AddDate(-30-i, 0, 0),
		}
		a, err := h.q.CreateAuthor(e.Context(), p)
		if err != nil {
			e.Fatal(err)
		}
		for n := range int32(3) {
			if err := h.q.CreateBook(e.Context(), db.CreateBookParams{AuthorID: a.ID, Title: fmt.Sprint("book ", n), Pages: 100*n + int32(i), Price: fmt.Sprintf("%d.50", n)}); err != nil {
				e.Fatal(err)
			}
		}
	}
}

type read = stack.Read[handle]

func one(table string) []string { return []string{table} }

// do fits a result to Read.
func do[T any](f func(ctx context.Context, h handle) (T, error)) func(context.Context, handle) (any, error) {
	return func(ctx context.Context, h handle) (any, error) {
		v, err := f(ctx, h)
		return v, err
	}
}

var reads = []read{
	{Name: "One", Tables: one("authors"), Do: do(func(ctx context.Context, h handle) (db.Author, error) { return h.q.GetAuthor(ctx, 3) })},
	{Name: "NoRows", Tables: one("authors"), Do: do(func(ctx context.Context, h handle) (bool, error) {
		_, err := h.q.GetAuthor(ctx, 999)
		return errors.Is(err, sql.ErrNoRows), nil
	})},
	{Name: "Many", Tables: one("authors"), Do: do(func(ctx context.Context, h handle) ([]db.Author, error) {
		return h.q.ListAuthors(ctx, db.ListAuthorsParams{Limit: 4, Offset: 2})
	})},
	{Name: "Narg", Tables: one("authors"), Do: do(func(ctx context.Context, h handle) ([]db.FindAuthorsRow, error) {
		return h.q.FindAuthors(ctx, db.FindAuthorsParams{Pattern: sql.NullString{String: "author%", Valid: true}, Since: noon.AddDate(-36, 0, 0)})
	})},
	{Name: "NargEnum", Tables: one("authors"), Do: do(func(ctx context.Context, h handle) ([]db.FindAuthorsRow, error) {
		return h.q.FindAuthors(ctx, db.FindAuthorsParams{Mood: db.NullMood{Mood: db.MoodTense, Valid: true}})
	})},
	{Name: "UUID", Tables: one("authors"), Do: do(func(ctx context.Context, h handle) (db.AuthorByTokenRow, error) {
		return h.q.AuthorByToken(ctx, uuid.NullUUID{UUID: uuid.UUID{15: 2}, Valid: true})
	})},
	{Name: "Count", Tables: one("authors"), Do: do(func(ctx context.Context, h handle) (int64, error) { return h.q.CountAuthors(ctx) })},
	{Name: "Embed", Tables: one("books"), Do: do(func(ctx context.Context, h handle) ([]db.BooksWithAuthorRow, error) {
		return h.q.BooksWithAuthor(ctx, 201)
	})},
	{Name: "Aggregate", Tables: one("books"), Do: do(func(ctx context.Context, h handle) ([]db.TotalsRow, error) { return h.q.Totals(ctx) })},
	{Name: "PreparedOne", Tables: one("authors"), Do: do(func(ctx context.Context, h handle) (prepared.Author, error) { return h.prep.GetAuthor(ctx, 3) })},
	{Name: "PreparedMany", Tables: one("authors"), Do: do(func(ctx context.Context, h handle) ([]prepared.Author, error) {
		return h.prep.ListAuthors(ctx, prepared.ListAuthorsParams{Limit: 4, Offset: 2})
	})},
	{Name: "PreparedCount", Tables: one("authors"), Do: do(func(ctx context.Context, h handle) (int64, error) { return h.prep.CountAuthors(ctx) })},
	// sqlc passes a slice as pq.Array(ids), a pointer.
	{Name: "PqArray", Tables: one("authors"), Do: do(func(ctx context.Context, h handle) ([]db.AuthorsByIDsRow, error) {
		return h.q.AuthorsByIDs(ctx, []int64{2, 5})
	})},

	// What is not shared, and why.
	{Name: "ForUpdate", Tables: one("authors"), Bypass: flightpg.ReasonRowLock, Do: do(func(ctx context.Context, h handle) (int64, error) { return h.q.LockAuthor(ctx, 3) })},
	{Name: "WithTx", Tables: one("authors"), Bypass: flightpg.ReasonTransaction, Do: do(func(ctx context.Context, h handle) (db.Author, error) {
		tx, err := h.BeginTx(ctx, nil)
		if err != nil {
			return db.Author{}, err
		}
		defer tx.Rollback()
		return h.q.WithTx(tx).GetAuthor(ctx, 3)
	})},
	{Name: "PreparedWithTx", Tables: one("authors"), Bypass: flightpg.ReasonTransaction, Do: do(func(ctx context.Context, h handle) (prepared.Author, error) {
		tx, err := h.BeginTx(ctx, nil)
		if err != nil {
			return prepared.Author{}, err
		}
		defer tx.Rollback()
		return h.prep.WithTx(tx).GetAuthor(ctx, 3)
	})},
}

// ways are the exec modes of pgx that people use beside the default.
var ways = []struct {
	name   string
	params []string
}{
	{name: "Default"},
	{"Exec", []string{"default_query_exec_mode=exec"}},
	{"CacheDescribe", []string{"default_query_exec_mode=cache_describe"}},
}

// TestReads runs every read by many callers at once.
func TestReads(t *testing.T) {
	for i, way := range ways {
		t.Run(way.name, func(t *testing.T) {
			stack.Way(t, i)
			stack.Reads(t, func(e *stack.Env) (handle, *sql.DB) {
				h := open(e, way.params...)
				fill(e, h)
				return h, h.DB
			}, reads)
		})
	}
}

// increments are the ways to add one to an author's visits, each by one UPDATE.
var increments = []struct {
	name string
	do   func(ctx context.Context, h handle) error
}{
	{"one", func(ctx context.Context, h handle) error { _, err := h.q.Visit(ctx, 1); return err }},
	{"exec", func(ctx context.Context, h handle) error { return h.q.VisitExec(ctx, 1) }},
	{"execrows", func(ctx context.Context, h handle) error { _, err := h.q.VisitRows(ctx, 1); return err }},
	{"CTE", func(ctx context.Context, h handle) error { _, err := h.q.VisitByCTE(ctx, 1); return err }},
	{"prepared one", func(ctx context.Context, h handle) error { _, err := h.prep.Visit(ctx, 1); return err }},
	{"prepared exec", func(ctx context.Context, h handle) error { return h.prep.VisitExec(ctx, 1) }},
	{"prepared CTE", func(ctx context.Context, h handle) error { _, err := h.prep.VisitByCTE(ctx, 1); return err }},
	{"tx", func(ctx context.Context, h handle) error {
		return inTx(ctx, h, func(tx *sql.Tx) error {
			q := h.q.WithTx(tx)
			if _, err := q.LockAuthor(ctx, 1); err != nil {
				return err
			}
			return q.VisitExec(ctx, 1)
		})
	}},
	{"prepared tx", func(ctx context.Context, h handle) error {
		return inTx(ctx, h, func(tx *sql.Tx) error { return h.prep.WithTx(tx).VisitExec(ctx, 1) })
	}},
}

func inTx(ctx context.Context, h handle, f func(tx *sql.Tx) error) error {
	tx, err := h.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer tx.Rollback()
	if err := f(tx); err != nil {
		return err
	}
	return tx.Commit()
}

// TestReadYourWrites writes in every way while readers are under way.
func TestReadYourWrites(t *testing.T) {
	held := []struct {
		name string
		read func(ctx context.Context, h handle) (int64, error)
	}{
		{"Plain", func(ctx context.Context, h handle) (int64, error) { return h.q.HeldVisits(ctx, 1) }},
		{"Prepared", func(ctx context.Context, h handle) (int64, error) { return h.prep.HeldVisits(ctx, 1) }},
	}
	for i, way := range ways {
		for _, reader := range held {
			t.Run(way.name+"/"+reader.name, func(t *testing.T) {
				stack.Way(t, i)
				stack.Each(t, func(e *stack.Env) {
					h := open(e, way.params...)
					fill(e, h)
					e.Watch("authors")
					read := func(ctx context.Context) (int64, error) { return reader.read(ctx, h) }
					for i, inc := range increments {
						was := int64(i)
						e.SeesWrites(h.DB, was, was+1, read, func(ctx context.Context) error {
							if err := inc.do(ctx, h); err != nil {
								return fmt.Errorf("%s: %w", inc.name, err)
							}
							// The writer itself, by another read.
							if a, err := h.q.GetAuthor(ctx, 1); err != nil || a.Visits != was+1 {
								return fmt.Errorf("%s: its writer reads %d visits, %w; want %d", inc.name, a.Visits, err, was+1)
							}
							return nil
						})
					}
					e.Wrote(map[string]int{"UPDATE authors": len(increments)})
				})
			})
		}
	}
}

// TestWriters lets many write at once, and each look at what it has written.
func TestWriters(t *testing.T) {
	const writers = 32
	for i, way := range ways {
		t.Run(way.name, func(t *testing.T) {
			stack.Way(t, i)
			stack.Compare(t, func(e *stack.Env) any {
				h := open(e, way.params...)
				fill(e, h)
				e.Watch("authors", "books")
				e.Concurrently(writers, func(ctx context.Context, i int) error { return writer(ctx, h, i) })
				e.Wrote(map[string]int{
					"INSERT authors": writers, "UPDATE authors": writers, "DELETE authors": writers / 4,
					"INSERT books": 2 * writers, "UPDATE books": 2 * writers, // the server counts an upsert as both
					"DELETE books": writers / 4, // by the foreign key
				})
				totals, err := h.q.Totals(e.Context())
				if err != nil {
					e.Fatal(err)
				}
				return totals
			})
		})
	}
}

func writer(ctx context.Context, h handle, i int) error {
	a, err := h.q.CreateAuthor(ctx, db.CreateAuthorParams{Name: fmt.Sprintf("writer %02d", i), Mood: db.MoodCalm, Info: json.RawMessage("{}"), Born: noon, Tags: []string{}})
	if err != nil {
		return err
	}
	if got, err := h.q.GetAuthor(ctx, a.ID); err != nil || got.Name != a.Name {
		return fmt.Errorf("its own author: %+v, %w", got, err)
	}
	if n, err := h.prep.CountAuthors(ctx); err != nil || n < 11-int64(i%4/3) {
		return fmt.Errorf("%d authors after one was written, %w", n, err)
	}
	errNo := errors.New("no")
	err = inTx(ctx, h, func(tx *sql.Tx) error {
		for pages := range int32(2) {
			b, err := h.prep.WithTx(tx).UpsertBook(ctx, prepared.UpsertBookParams{AuthorID: a.ID, Title: "one", Pages: pages, Price: "1"})
			if err != nil || b.Pages != pages {
				return fmt.Errorf("its upsert: %+v, %w", b, err)
			}
		}
		if i%2 == 0 {
			return nil
		}
		return errNo
	})
	if err != nil && !errors.Is(err, errNo) {
		return err
	}
	if err := h.q.VisitExec(ctx, 1); err != nil {
		return err
	}
	if i%4 == 3 {
		if _, err := h.q.DeleteAuthor(ctx, a.ID); err != nil {
			return err
		}
		if _, err := h.prep.GetAuthor(ctx, a.ID); !errors.Is(err, sql.ErrNoRows) {
			return fmt.Errorf("its deleted author: %w", err)
		}
	}
	return nil
}

// TestErrors has pgx's errors, for all callers.
func TestErrors(t *testing.T) {
	stack.Each(t, func(e *stack.Env) {
		h := open(e)
		fill(e, h)
		e.SQL("ALTER TABLE authors DROP COLUMN photo CASCADE")
		e.Concurrently(stack.Callers, func(ctx context.Context, _ int) error {
			var pe *pgconn.PgError
			_, err := h.q.CreateAuthor(ctx, db.CreateAuthorParams{Name: "x", Mood: db.MoodCalm, Info: json.RawMessage("{}"), Tags: []string{}, Born: noon})
			if !errors.As(err, &pe) || pe.Code != "42703" {
				return fmt.Errorf("CreateAuthor = %w; want 42703", err)
			}
			if _, err := h.q.BooksWithAuthor(ctx, 1); !errors.As(err, &pe) || pe.Code != "42703" {
				return fmt.Errorf("BooksWithAuthor = %w; want 42703", err)
			}
			err = h.q.CreateBook(ctx, db.CreateBookParams{AuthorID: 999, Title: "x", Price: "1"})
			if !errors.As(err, &pe) || pe.Code != "23503" {
				return fmt.Errorf("CreateBook = %w; want 23503", err)
			}
			return nil
		})
	})
}

// TestCancel lets one of many callers go.
func TestCancel(t *testing.T) {
	stack.Each(t, func(e *stack.Env) {
		h := open(e)
		fill(e, h)
		e.LeavesAlone(h.DB, func(ctx context.Context) error { _, err := h.q.Totals(ctx); return err }, "authors")
		e.LeavesAlone(h.DB, func(ctx context.Context) error { _, err := h.prep.Totals(ctx); return err }, "authors")
	})
}

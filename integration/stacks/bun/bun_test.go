// Package buntest runs Bun over flightpg.
package buntest

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
	"testing"
	"testing/fstest"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/uptrace/bun"
	"github.com/uptrace/bun/dialect/pgdialect"
	"github.com/uptrace/bun/migrate"

	"github.com/flightpg/flightpg"
	"github.com/flightpg/flightpg/integration/stacks/internal/stack"
)

func TestMain(m *testing.M) { stack.Main(m) }

var noon = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

type profile struct {
	Bio   string         `json:"bio"`
	Extra map[string]int `json:"extra,omitempty"`
}

type author struct {
	bun.BaseModel `bun:"table:authors,alias:a"`

	ID        int64  `bun:",pk,autoincrement"`
	Name      string `bun:",unique,notnull"`
	Email     *string
	Rating    sql.NullFloat64
	Info      profile  `bun:"type:jsonb"`
	Tags      []string `bun:",array"`
	Scores    []int64  `bun:",array"`
	Photo     []byte
	Born      time.Time `bun:",notnull"`
	Visits    int64     `bun:",notnull"`
	UpdatedAt time.Time `bun:",nullzero"`
	DeletedAt time.Time `bun:",soft_delete,nullzero"`

	Books  []*book `bun:"rel:has-many,join:id=author_id"`
	Labels []label `bun:"m2m:author_labels,join:Author=Label"`
}

type book struct {
	bun.BaseModel `bun:"table:books,alias:b"`

	ID       int64   `bun:",pk,autoincrement"`
	AuthorID int64   `bun:",notnull,unique:title"`
	Author   *author `bun:"rel:belongs-to,join:author_id=id"`
	EditorID *int64  // nullable
	Editor   *author `bun:"rel:belongs-to,join:editor_id=id"`
	Title    string  `bun:",notnull,unique:title"`
	Pages    int
	Price    string `bun:"type:numeric(10,2)"`
}

type label struct {
	bun.BaseModel `bun:"table:labels,alias:l"`

	ID   int64  `bun:",pk,autoincrement"`
	Name string `bun:",unique"`
}

type authorLabel struct {
	bun.BaseModel `bun:"table:author_labels,alias:al"`

	AuthorID int64   `bun:",pk"`
	Author   *author `bun:"rel:belongs-to,join:author_id=id"`
	LabelID  int64   `bun:",pk"`
	Label    *label  `bun:"rel:belongs-to,join:label_id=id"`
}

var _ bun.BeforeAppendModelHook = (*author)(nil)

func (a *author) BeforeAppendModel(_ context.Context, query bun.Query) error {
	if _, ok := query.(*bun.InsertQuery); ok {
		a.UpdatedAt = noon
	}
	return nil
}

// ways are the exec modes of pgx that people use beside the default. Bun writes
// arguments into the text, so it can do with the simple protocol.
var ways = []struct {
	name   string
	params []string
}{
	{name: "Default"},
	{"SimpleProtocol", []string{"default_query_exec_mode=simple_protocol"}},
	{"Exec", []string{"default_query_exec_mode=exec"}},
}

// hook stands for tracing, which every call goes through.
type hook struct{}

func (hook) BeforeQuery(ctx context.Context, _ *bun.QueryEvent) context.Context { return ctx }
func (hook) AfterQuery(context.Context, *bun.QueryEvent)                        {}

func open(e *stack.Env, params ...string) *bun.DB {
	e.Helper()
	db := bun.NewDB(e.Open(params...), pgdialect.New())
	db.RegisterModel((*authorLabel)(nil))
	return db.WithQueryHook(hook{})
}

// fill makes the tables and ten authors, with three books and two labels each.
func fill(e *stack.Env, db *bun.DB) {
	e.Helper()
	ctx := e.Context()
	for _, model := range []any{(*author)(nil), (*book)(nil), (*label)(nil), (*authorLabel)(nil)} {
		if _, err := db.NewCreateTable().Model(model).IfNotExists().Exec(ctx); err != nil {
			e.Fatal(err)
		}
	}
	if _, err := db.NewCreateIndex().Model((*book)(nil)).Index("books_pages").Column("pages").Exec(ctx); err != nil {
		e.Fatal(err)
	}
	labels := []label{{Name: "prose"}, {Name: "verse"}, {Name: "drama"}}
	var authors []author
	for i := range 10 {
		a := author{
			Name: fmt.Sprintf("author %d", i), Rating: sql.NullFloat64{Float64: float64(i) / 4, Valid: i%3 != 0},
			Info: profile{Bio: `it's “Ω” \ ?`, Extra: map[string]int{"n": i}},
			Tags: []string{fmt.Sprint("t", i%2), `quo"te`, "it's"}, Scores: []int64{int64(i), 0},
			Photo: []byte{0, 255, byte(i)}, Born: noon.AddDate(-30-i, 0, 0),
		}
		if i%2 == 0 {
			email := fmt.Sprintf("%d@example.org", i)
			a.Email = &email
		}
		authors = append(authors, a)
	}
	insert := func(model any) {
		e.Helper()
		if _, err := db.NewInsert().Model(model).Exec(ctx); err != nil {
			e.Fatal(err)
		}
	}
	insert(&labels)
	insert(&authors)
	var books []book
	var links []authorLabel
	for i, a := range authors {
		for n := range 3 {
			b := book{AuthorID: a.ID, Title: fmt.Sprint("book ", n), Pages: 100*n + i, Price: fmt.Sprintf("%d.50", n)}
			if n > 0 {
				b.EditorID = &authors[0].ID
			}
			books = append(books, b)
		}
		links = append(links, authorLabel{AuthorID: a.ID, LabelID: labels[i%3].ID}, authorLabel{AuthorID: a.ID, LabelID: labels[(i+1)%3].ID})
	}
	insert(&books)
	insert(&links)
}

type read = stack.Read[*bun.DB]

func one(table string) []string { return []string{table} }

// list is the shape of most reads.
func list[T any](f func(q *bun.SelectQuery) *bun.SelectQuery) func(context.Context, *bun.DB) (any, error) {
	return func(ctx context.Context, db *bun.DB) (any, error) {
		var dest []T
		err := f(db.NewSelect().Model(&dest)).Scan(ctx)
		return dest, err
	}
}

var reads = []read{
	{Name: "WherePK", Tables: one("authors"), Do: func(ctx context.Context, db *bun.DB) (any, error) {
		a := author{ID: 3}
		err := db.NewSelect().Model(&a).WherePK().Scan(ctx)
		return a, err
	}},
	{Name: "NoRows", Tables: one("authors"), Do: func(ctx context.Context, db *bun.DB) (any, error) {
		err := db.NewSelect().Model(new(author)).Where("name = ?", "it's nobody").Scan(ctx)
		return errors.Is(err, sql.ErrNoRows), nil
	}},
	{Name: "Where", Tables: one("authors"), Do: list[author](func(q *bun.SelectQuery) *bun.SelectQuery {
		return q.Where("? > ?", bun.Ident("born"), noon.AddDate(-38, 0, 0)).WhereGroup(" AND ", func(q *bun.SelectQuery) *bun.SelectQuery {
			return q.Where("email IS NULL").WhereOr("name LIKE ?", "%4")
		}).Order("id")
	})},
	{Name: "In", Tables: one("authors"), Do: list[author](func(q *bun.SelectQuery) *bun.SelectQuery {
		return q.Where("a.id IN (?)", bun.List([]int64{1, 4, 6})).Where("name IN (?)", bun.List([]string{"author 3", `it's`})).Order("id")
	})},
	{Name: "Array", Tables: one("authors"), Do: list[author](func(q *bun.SelectQuery) *bun.SelectQuery {
		return q.Where("tags @> ?", pgdialect.Array([]string{"t1"})).Where("scores && ?", pgdialect.Array([]int64{0, 3})).Order("id")
	})},
	{Name: "JSON", Tables: one("authors"), Do: list[author](func(q *bun.SelectQuery) *bun.SelectQuery {
		return q.Where("info->'extra'->>'n' = ?", "4").WhereOr(`info @> ?`, `{"extra": {"n": 2}}`).Order("id")
	})},
	{Name: "Page", Tables: one("authors"), Do: list[author](func(q *bun.SelectQuery) *bun.SelectQuery {
		return q.Column("id", "name", "email").Order("name DESC").Limit(3).Offset(4)
	})},
	{Name: "Count", Tables: one("books"), Do: func(ctx context.Context, db *bun.DB) (any, error) {
		return db.NewSelect().Model((*book)(nil)).Where("pages > ?", 100).Count(ctx)
	}},
	{Name: "Exists", Tables: one("books"), Do: func(ctx context.Context, db *bun.DB) (any, error) {
		return db.NewSelect().Model((*book)(nil)).Where("pages > ?", 100).Exists(ctx)
	}},
	{Name: "BelongsTo", Tables: one("books"), Do: list[book](func(q *bun.SelectQuery) *bun.SelectQuery {
		return q.Relation("Author").Relation("Editor").Where("b.pages > ?", 100).Order("b.id")
	})},
	{Name: "HasMany", Tables: []string{"authors", "books", "author_labels"}, Do: list[author](func(q *bun.SelectQuery) *bun.SelectQuery {
		return q.Relation("Books", func(q *bun.SelectQuery) *bun.SelectQuery { return q.Order("b.id") }).
			Relation("Labels", func(q *bun.SelectQuery) *bun.SelectQuery { return q.Order("l.id") }).
			Where("a.id < ?", 6).Order("a.id")
	})},
	{Name: "WithDeleted", Tables: one("authors"), Do: list[author](func(q *bun.SelectQuery) *bun.SelectQuery {
		return q.WhereAllWithDeleted().Order("id")
	})},
	{Name: "Columns", Tables: one("books"), Do: func(ctx context.Context, db *bun.DB) (any, error) {
		var titles []string
		var pages []int
		err := db.NewSelect().Model((*book)(nil)).Column("title", "pages").Order("id").Scan(ctx, &titles, &pages)
		return []any{titles, pages}, err
	}},
	{Name: "GroupInto", Tables: one("books"), Do: func(ctx context.Context, db *bun.DB) (any, error) {
		var rows []struct {
			AuthorID int64
			Total    float64
			Longest  *int
		}
		err := db.NewSelect().Model((*book)(nil)).Column("author_id").ColumnExpr("sum(price) AS total").ColumnExpr("max(pages) AS longest").
			Group("author_id").Having("max(pages) > ?", 204).Order("author_id").Scan(ctx, &rows)
		return rows, err
	}},
	{Name: "CTEAndUnion", Tables: one("books"), Do: func(ctx context.Context, db *bun.DB) (any, error) {
		long := db.NewSelect().Model((*book)(nil)).Where("pages > 205")
		short := db.NewSelect().Model((*book)(nil)).Where("pages < 2")
		var books []book
		err := db.NewSelect().With("some", long.Union(short)).Table("some").Order("id").Scan(ctx, &books)
		return books, err
	}},
	{Name: "Values", Tables: one("authors"), Do: func(ctx context.Context, db *bun.DB) (any, error) {
		wanted := []author{{ID: 2}, {ID: 5}}
		var names []string
		err := db.NewSelect().With("w", db.NewValues(&wanted).Column("id").WithOrder()).Table("authors").
			Join("JOIN w ON w.id = authors.id").OrderExpr("w._order").Column("name").Scan(ctx, &names)
		return names, err
	}},
	{Name: "Raw", Tables: one("authors"), Do: func(ctx context.Context, db *bun.DB) (any, error) {
		var rows []map[string]any
		err := db.NewRaw("SELECT * FROM ? WHERE name LIKE ? AND id > ? ORDER BY id", bun.Ident("authors"), "author%", 4).Scan(ctx, &rows)
		return rows, err
	}},
	{Name: "ScanRows", Tables: one("authors"), Do: func(ctx context.Context, db *bun.DB) (any, error) {
		rows, err := db.QueryContext(ctx, "SELECT * FROM authors WHERE id > ? ORDER BY id", 2)
		if err != nil {
			return nil, err
		}
		defer rows.Close()
		var authors []author
		err = db.ScanRows(ctx, rows, &authors)
		return authors, err
	}},
	{Name: "Prepare", Tables: one("books"), Do: func(ctx context.Context, db *bun.DB) (any, error) {
		stmt, err := db.PrepareContext(ctx, "SELECT count(*) FROM books WHERE pages > $1")
		if err != nil {
			return nil, err
		}
		defer stmt.Close()
		var n int
		err = stmt.QueryRowContext(ctx, 100).Scan(&n)
		return n, err
	}},
	{Name: "Comment", Tables: one("authors"), Do: func(ctx context.Context, db *bun.DB) (any, error) {
		var authors []author
		err := db.NewSelect().Model(&authors).Order("id").Scan(bun.WithComment(ctx, "route=/authors"))
		return authors, err
	}},

	// What is not shared, and why.
	{Name: "For", Tables: one("authors"), Bypass: flightpg.ReasonRowLock, Do: list[author](func(q *bun.SelectQuery) *bun.SelectQuery {
		return q.Where("id = 1").For("KEY SHARE")
	})},
	{Name: "RunInTx", Tables: one("authors"), Bypass: flightpg.ReasonTransaction, Do: func(ctx context.Context, db *bun.DB) (any, error) {
		var a author
		err := db.RunInTx(ctx, &sql.TxOptions{ReadOnly: true}, func(ctx context.Context, tx bun.Tx) error {
			return tx.NewSelect().Model(&a).Where("id = 2").Scan(ctx)
		})
		return a, err
	}},
	{Name: "Random", Tables: one("authors"), Bypass: flightpg.ReasonVolatileFunction, Do: func(ctx context.Context, db *bun.DB) (any, error) {
		var n []int
		err := db.NewSelect().Model((*author)(nil)).ColumnExpr("1").OrderExpr("random()").Scan(ctx, &n)
		return n, err
	}},
}

// TestReads runs every read by many callers at once.
func TestReads(t *testing.T) {
	for i, way := range ways {
		t.Run(way.name, func(t *testing.T) {
			stack.Way(t, i)
			stack.Reads(t, func(e *stack.Env) (*bun.DB, *sql.DB) {
				db := open(e, way.params...)
				fill(e, db)
				return db, db.DB
			}, reads)
		})
	}
}

// TestScanAndCount runs two reads of each caller at once: a page, and how many
// rows there are.
func TestScanAndCount(t *testing.T) {
	stack.Compare(t, func(e *stack.Env) []any {
		db := open(e)
		fill(e, db)
		do := func(ctx context.Context) ([]author, int64, error) {
			var page []author
			n, err := db.NewSelect().Model(&page).Order("id").Limit(3).Offset(3).ScanAndCount(ctx)
			return page, n, err
		}
		e.Wide = 2
		ev := e.Storm(db.DB, stack.Callers, func(ctx context.Context) error {
			_, _, err := do(ctx)
			return err
		}, "authors")
		want := 2 * stack.Callers
		if e.Driver == stack.Flightpg {
			want = 2
		}
		if ev.Executions[0] != want || ev.Calls != nil && ev.Calls[0] != want || len(ev.Bypasses) != 0 {
			e.Errorf("%+v; want %d executions", ev, want)
		}
		page, n, err := do(e.Context())
		if err != nil {
			e.Fatal(err)
		}
		return []any{page, n}
	})
}

// TestTraceComments has a comment of its own in each call.
func TestTraceComments(t *testing.T) {
	e := stack.New(t, stack.Flightpg)
	db := open(e, "flight_ignore_comments=on")
	fill(e, db)
	var calls atomic.Int64
	e.Shared(db.DB, stack.Callers, func(ctx context.Context) error {
		ctx = bun.WithComment(ctx, fmt.Sprintf("traceparent='%d'", calls.Add(1)))
		return db.NewSelect().Model(&[]author{}).Scan(ctx)
	}, "authors")
}

// increments are the ways to add one to an author's visits, each by one UPDATE.
var increments = []struct {
	name string
	do   func(ctx context.Context, db *bun.DB) error
}{
	{"Update", func(ctx context.Context, db *bun.DB) error {
		_, err := db.NewUpdate().Model((*author)(nil)).Set("visits = visits + 1").Where("id = ?", 1).Exec(ctx)
		return err
	}},
	{"UpdateModel", func(ctx context.Context, db *bun.DB) error {
		a := author{ID: 1}
		if err := db.NewSelect().Model(&a).WherePK().Scan(ctx); err != nil {
			return err
		}
		a.Visits++
		_, err := db.NewUpdate().Model(&a).WherePK().Exec(ctx)
		return err
	}},
	{"Returning", func(ctx context.Context, db *bun.DB) error {
		var n int64
		return db.NewUpdate().Model((*author)(nil)).Set("visits = visits + 1").Where("id = 1").Returning("visits").Scan(ctx, &n)
	}},
	{"Bulk", func(ctx context.Context, db *bun.DB) error {
		var authors []author
		if err := db.NewSelect().Model(&authors).Order("id").Limit(3).Scan(ctx); err != nil {
			return err
		}
		for i := range authors {
			authors[i].Visits++
		}
		_, err := db.NewUpdate().Model(&authors).Column("visits").Bulk().Exec(ctx)
		return err
	}},
	{"Raw", func(ctx context.Context, db *bun.DB) error {
		var n int64
		return db.NewRaw("UPDATE authors SET visits = visits + ? WHERE id = ? RETURNING visits", 1, 1).Scan(ctx, &n)
	}},
	{"SelectWithUpdate", func(ctx context.Context, db *bun.DB) error {
		up := db.NewUpdate().Model((*author)(nil)).Set("visits = visits + 1").Where("id = 1").Returning("visits")
		var n int64
		return db.NewSelect().With("up", up).Table("up").Scan(ctx, &n)
	}},
	{"Exec", func(ctx context.Context, db *bun.DB) error {
		_, err := db.ExecContext(ctx, "UPDATE authors SET visits = visits + ? WHERE id = ?", 1, 1)
		return err
	}},
	{"RunInTx", func(ctx context.Context, db *bun.DB) error {
		return db.RunInTx(ctx, nil, func(ctx context.Context, tx bun.Tx) error {
			a := author{ID: 1}
			if err := tx.NewSelect().Model(&a).WherePK().For("UPDATE").Scan(ctx); err != nil {
				return err
			}
			return tx.RunInTx(ctx, nil, func(ctx context.Context, tx bun.Tx) error { // a savepoint
				_, err := tx.NewUpdate().Model((*author)(nil)).Set("visits = ?", a.Visits+1).Where("id = 1").Exec(ctx)
				return err
			})
		})
	}},
	{"Conn", func(ctx context.Context, db *bun.DB) error {
		conn, err := db.Conn(ctx)
		if err != nil {
			return err
		}
		defer conn.Close()
		_, err = conn.NewUpdate().Model((*author)(nil)).Set("visits = visits + 1").Where("id = 1").Exec(ctx)
		return err
	}},
	{"Upsert", func(ctx context.Context, db *bun.DB) error { // counted as an INSERT too
		_, err := db.NewInsert().Model(&author{Name: "author 0", Born: noon}).
			On("CONFLICT (name) DO UPDATE").Set("visits = a.visits + 1").Exec(ctx)
		return err
	}},
}

// TestReadYourWrites writes in every way while readers are under way.
func TestReadYourWrites(t *testing.T) {
	for i, way := range ways {
		t.Run(way.name, func(t *testing.T) {
			stack.Way(t, i)
			stack.Each(t, func(e *stack.Env) {
				e.Hold()
				db := open(e, way.params...)
				fill(e, db)
				e.Watch("authors")
				read := func(ctx context.Context) (n int64, err error) {
					return n, db.NewSelect().Model((*author)(nil)).ColumnExpr("stack_hold(visits)").Where("id = ?", 1).Scan(ctx, &n)
				}
				for i, inc := range increments {
					was := int64(i)
					e.SeesWrites(db.DB, was, was+1, read, func(ctx context.Context) error {
						if err := inc.do(ctx, db); err != nil {
							return fmt.Errorf("%s: %w", inc.name, err)
						}
						a := author{ID: 1} // the writer itself, by another read
						if err := db.NewSelect().Model(&a).WherePK().Scan(ctx); err != nil || a.Visits != was+1 {
							return fmt.Errorf("%s: its writer reads %d visits, %v; want %d", inc.name, a.Visits, err, was+1)
						}
						return nil
					})
				}
				e.Wrote(map[string]int{"UPDATE authors": len(increments), "INSERT authors": 1})
			})
		})
	}
}

// TestWriters lets many write at once, and each look at what it has written.
func TestWriters(t *testing.T) {
	const writers = 32
	for i, way := range ways {
		t.Run(way.name, func(t *testing.T) {
			stack.Way(t, i)
			stack.Compare(t, func(e *stack.Env) any {
				db := open(e, way.params...)
				fill(e, db)
				e.Watch("authors", "books")
				e.Concurrently(writers, func(ctx context.Context, i int) error { return writer(ctx, db, i) })
				e.Wrote(map[string]int{
					"INSERT authors": writers, "INSERT books": 2 * writers, "UPDATE books": writers,
					"UPDATE authors": writers + writers/2, // half are deleted, softly
				})
				var all []struct {
					Name    string
					Visits  int
					Deleted bool
					Pages   *int
				}
				if err := db.NewSelect().Model((*author)(nil)).WhereAllWithDeleted().ColumnExpr("name, visits, deleted_at IS NOT NULL AS deleted, pages").
					Join("LEFT JOIN books ON books.author_id = a.id").Order("name", "pages").Scan(e.Context(), &all); err != nil {
					e.Fatal(err)
				}
				return all
			})
		})
	}
}

func writer(ctx context.Context, db *bun.DB, i int) error {
	a := author{Name: fmt.Sprintf("writer %02d", i), Born: noon}
	if _, err := db.NewInsert().Model(&a).Exec(ctx); err != nil {
		return err
	}
	if n, err := db.NewSelect().Model((*author)(nil)).Where("name = ?", a.Name).Count(ctx); err != nil || n != 1 {
		return fmt.Errorf("%d of its author, %w", n, err)
	}
	err := db.RunInTx(ctx, nil, func(ctx context.Context, tx bun.Tx) error {
		b := book{AuthorID: a.ID, Title: "one", Price: "1"}
		if _, err := tx.NewInsert().Model(&b).Exec(ctx); err != nil {
			return err
		}
		up := book{AuthorID: a.ID, Title: "one", Price: "2", Pages: 7}
		if _, err := tx.NewInsert().Model(&up).On("CONFLICT (author_id, title) DO UPDATE").Set("pages = EXCLUDED.pages").Returning("id").Exec(ctx); err != nil {
			return err
		}
		if up.ID != b.ID {
			return fmt.Errorf("the upsert gave id %d; want %d", up.ID, b.ID)
		}
		if i%2 == 0 {
			return nil
		}
		return sql.ErrTxDone // any error rolls back
	})
	if err != nil && !errors.Is(err, sql.ErrTxDone) {
		return err
	}
	var authors []author
	if err := db.NewSelect().Model(&authors).Relation("Books").Where("a.id = ?", a.ID).Scan(ctx); err != nil || len(authors) != 1 || len(authors[0].Books) != 1-i%2 {
		return fmt.Errorf("its author with its books: %+v, %w", authors, err)
	}
	if _, err := db.NewUpdate().Model((*author)(nil)).Set("visits = visits + 1").Where("id = 1").Exec(ctx); err != nil {
		return err
	}
	if i%2 == 1 {
		if _, err := db.NewDelete().Model(&a).WherePK().Exec(ctx); err != nil {
			return err
		}
		if ok, err := db.NewSelect().Model(&a).WherePK().Exists(ctx); err != nil || ok {
			return fmt.Errorf("its deleted author: %t, %w", ok, err)
		}
	}
	return nil
}

// TestScenario writes down what each step of an application gives.
func TestScenario(t *testing.T) {
	for i, way := range ways {
		t.Run(way.name, func(t *testing.T) {
			stack.Way(t, i)
			stack.Compare(t, func(e *stack.Env) (log []any) {
				db, ctx := open(e, way.params...), e.Context()
				fill(e, db)
				e.Watch("authors", "books", "labels")
				say := func(res sql.Result, err error, v any) {
					n := int64(-1)
					if res != nil {
						n, _ = res.RowsAffected()
					}
					log = append(log, v, n, fmt.Sprint(err))
				}
				l := label{Name: "essay"}
				res, err := db.NewInsert().Model(&l).Exec(ctx)
				say(res, err, l)
				res, err = db.NewInsert().Model(&label{Name: "essay"}).Exec(ctx)
				var pe *pgconn.PgError
				say(res, err, errors.As(err, &pe))
				res, err = db.NewInsert().Model(&label{Name: "essay"}).Ignore().Exec(ctx)
				say(res, err, nil)
				row := map[string]any{"name": "by map"}
				res, err = db.NewInsert().Model(&row).TableExpr("labels").Returning("*").Exec(ctx)
				say(res, err, row)
				var books []book
				for i := range 50 {
					books = append(books, book{AuthorID: 2, Title: fmt.Sprint("bulk ", i), Pages: i, Price: "1"})
				}
				res, err = db.NewInsert().Model(&books).Exec(ctx)
				say(res, err, books)
				var gone []string
				err = db.NewDelete().Model((*book)(nil)).Where("pages BETWEEN 10 AND 12").Returning("title").Scan(ctx, &gone)
				slices.Sort(gone)
				say(nil, err, gone)
				res, err = db.NewDelete().Model((*author)(nil)).Where("id = 3").ForceDelete().Exec(ctx)
				say(res, err, nil)
				var a []author
				err = db.NewSelect().Model(&a).Relation("Books").Relation("Labels").Order("id").Scan(ctx)
				say(nil, err, len(a))
				res, err = db.NewUpdate().Model(&author{ID: 4, Tags: nil, Info: profile{Bio: "x"}}).Column("tags", "info").WherePK().Returning("*").Exec(ctx)
				say(res, err, nil)
				err = db.NewSelect().Model(&author{}).ColumnExpr("no_such_column").Scan(ctx)
				say(nil, err, nil)
				gaveUp, cancel := context.WithCancel(ctx)
				cancel()
				say(nil, db.NewSelect().Model(&author{}).Where("id = 1").Scan(gaveUp), nil)
				// Migrations in use.
				res, err = db.NewAddColumn().Model((*label)(nil)).ColumnExpr("color text NOT NULL DEFAULT 'red'").Exec(ctx)
				say(res, err, nil)
				var rows []map[string]any
				err = db.NewSelect().Table("labels").Order("id").Scan(ctx, &rows)
				say(nil, err, rows)
				res, err = db.NewDropColumn().Model((*label)(nil)).Column("color").Exec(ctx)
				say(res, err, nil)
				var labels []label
				err = db.NewSelect().Model(&labels).Order("id").Scan(ctx)
				say(nil, err, labels)
				res, err = db.NewTruncateTable().Model((*book)(nil)).Exec(ctx)
				say(res, err, nil)
				n, err := db.NewSelect().Model((*book)(nil)).Count(ctx)
				say(nil, err, n)
				_, err = db.NewDropTable().Model((*book)(nil)).IfExists().Exec(ctx)
				say(nil, err, nil)
				_, err = db.NewSelect().Model((*book)(nil)).Count(ctx)
				say(nil, err, nil)
				return append(log, e.Writes())
			})
		})
	}
}

// TestMigrate runs Bun's migrations, from several processes at once as it were:
// its lock is a row.
func TestMigrate(t *testing.T) {
	stack.Compare(t, func(e *stack.Env) []string {
		files := make(fstest.MapFS)
		for i := range 3 {
			name := fmt.Sprintf("2026030%d_t", i)
			files[name+".tx.up.sql"] = &fstest.MapFile{Data: fmt.Appendf(nil, "CREATE TABLE t%d (n int);\n--bun:split\nINSERT INTO t%[1]d VALUES (1)", i)}
			files[name+".down.sql"] = &fstest.MapFile{Data: fmt.Appendf(nil, "DROP TABLE t%d", i)}
		}
		migrations := migrate.NewMigrations()
		if err := migrations.Discover(files); err != nil {
			e.Fatal(err)
		}
		handles := make([]*bun.DB, 4)
		for i := range handles {
			handles[i] = open(e)
		}
		if err := migrate.NewMigrator(handles[0], migrations).Init(e.Context()); err != nil {
			e.Fatal(err)
		}
		var migrated, refused atomic.Int64
		e.Concurrently(len(handles), func(ctx context.Context, i int) error {
			m := migrate.NewMigrator(handles[i], migrations)
			if err := m.Lock(ctx); err != nil {
				refused.Add(1)
				return nil // somebody else has it
			}
			defer m.Unlock(ctx)
			group, err := m.Migrate(ctx)
			migrated.Add(int64(len(group.Migrations)))
			return err
		})
		if migrated.Load() != 3 || refused.Load() > 3 {
			e.Errorf("%d migrations ran, %d were locked out; want 3, and at most 3", migrated.Load(), refused.Load())
		}
		m := migrate.NewMigrator(handles[1], migrations)
		status, err := m.MigrationsWithStatus(e.Context())
		if err != nil {
			e.Fatal(err)
		}
		log := []string{status.Applied().String(), status.Unapplied().String()}
		if _, err := m.Rollback(e.Context()); err != nil {
			e.Fatal(err)
		}
		if status, err = m.MigrationsWithStatus(e.Context()); err != nil {
			e.Fatal(err)
		}
		return append(log, status.Applied().String(), status.Unapplied().String())
	})
}

// TestCancel lets one of many callers go.
func TestCancel(t *testing.T) {
	stack.Each(t, func(e *stack.Env) {
		db := open(e)
		fill(e, db)
		e.LeavesAlone(db.DB, func(ctx context.Context) error {
			return db.NewSelect().Model(&[]author{}).Scan(ctx)
		}, "authors")
	})
}

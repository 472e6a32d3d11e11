package ent_test

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"testing"
	"time"

	"entgo.io/ent/dialect"
	entsql "entgo.io/ent/dialect/sql"
	"entgo.io/ent/dialect/sql/sqlgraph"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/flightpg/flightpg"
	"github.com/flightpg/flightpg/integration/stacks/ent/gen"
	"github.com/flightpg/flightpg/integration/stacks/ent/gen/author"
	"github.com/flightpg/flightpg/integration/stacks/ent/gen/book"
	"github.com/flightpg/flightpg/integration/stacks/internal/stack"
)

func TestMain(m *testing.M) { stack.Main(m) }

var day = time.Date(2024, 2, 29, 12, 30, 0, 123456000, time.UTC)

// open makes the schema by ent's own migration, through the handle under test,
// and a shop: three authors with three books each.
func open(e *stack.Env, params ...string) (*sql.DB, *gen.Client) {
	e.Helper()
	db := e.Open(params...)
	client := gen.NewClient(gen.Driver(entsql.OpenDB(dialect.Postgres, db)))
	if err := client.Schema.Create(e.Context()); err != nil {
		e.Fatal(err)
	}
	for nth, name := range []string{"Ada", "Bea", "Cyd"} {
		a, err := client.Author.Create().SetName(name).SetNillableBorn(map[int]*time.Time{1: &day}[nth]).Save(e.Context())
		if err != nil {
			e.Fatal(err)
		}
		err = client.Book.MapCreateBulk([]int{1, 2, 3}, func(c *gen.BookCreate, i int) {
			n := i + 1
			c.SetTitle(fmt.Sprintf("%s %d", name, n)).SetPrice(float64(10*nth+n) + 0.99).SetAuthor(a).SetAdded(day)
			if n > 1 {
				c.SetTags([]string{"tag", name})
			}
		}).Exec(e.Context())
		if err != nil {
			e.Fatal(err)
		}
	}
	return db, client
}

// text is an entity with its edges.
func text(v any) string {
	b, err := json.Marshal(v)
	if err != nil {
		return err.Error()
	}
	return string(b)
}

// kind says what ent makes of an error.
func kind(err error) string {
	var pgErr *pgconn.PgError
	code := ""
	if errors.As(err, &pgErr) {
		code = pgErr.Code
	}
	return fmt.Sprintf("%v; not found %v, not singular %v, constraint %v, unique %v, foreign key %v, validation %v, code %s",
		err, gen.IsNotFound(err), gen.IsNotSingular(err), gen.IsConstraintError(err),
		sqlgraph.IsUniqueConstraintError(err), sqlgraph.IsForeignKeyConstraintError(err), gen.IsValidationError(err), code)
}

// TestSame compares what ent gives.
func TestSame(t *testing.T) {
	type result struct {
		Authors, Books []string // as JSON
		Titles         []string
		Counts         []int
		Groups         []struct {
			AuthorBooks int `json:"author_books"`
			Sum         float64
			Max         time.Time
		}
		Errors []string
	}
	stack.Compare(t, func(e *stack.Env) (r result) {
		_, client := open(e)
		ctx := e.Context()
		check := func(err error) {
			e.Helper()
			if err != nil {
				e.Fatal(err)
			}
		}
		authors, err := client.Author.Query().
			WithBooks(func(q *gen.BookQuery) { q.Where(book.PriceGT(5)).Order(book.ByPrice(entsql.OrderDesc())) }).
			Order(author.ByBooksCount(), author.ByName()).All(ctx)
		check(err)
		for _, a := range authors {
			r.Authors = append(r.Authors, text(a))
		}
		books, err := client.Author.Query().Where(author.Name("Bea")).QueryBooks().WithAuthor().
			Where(book.Or(book.TitleContainsFold("bea"), book.IDIn(4, 5, 6))).Order(book.ByID()).Limit(2).Offset(1).All(ctx)
		check(err)
		for _, b := range books {
			r.Books = append(r.Books, text(b))
		}
		r.Titles, err = client.Book.Query().Where(book.HasAuthorWith(author.BornIsNil())).Unique(true).Order(book.ByTitle()).Select(book.FieldTitle).Strings(ctx)
		check(err)
		for _, q := range []*gen.BookQuery{
			client.Book.Query(),
			client.Book.Query().Where(book.AddedLTE(day), book.PriceLT(20), book.TagsIsNil()),
			client.Book.Query().Where(book.Not(book.HasAuthor())),
		} {
			n, err := q.Count(ctx)
			check(err)
			r.Counts = append(r.Counts, n)
		}
		check(client.Book.Query().Order(func(s *entsql.Selector) { s.OrderBy("author_books") }).
			GroupBy(book.AuthorColumn).Aggregate(gen.As(gen.Sum(book.FieldPrice), "sum"), gen.As(gen.Max(book.FieldAdded), "max")).Scan(ctx, &r.Groups))

		n, err := client.Book.Update().Where(book.HasAuthorWith(author.Name("Cyd"))).AddSold(5).AppendTags([]string{"new"}).Save(ctx)
		check(err)
		r.Counts = append(r.Counts, n)
		one, err := client.Book.UpdateOneID(9).SetTitle("renamed").ClearTags().Save(ctx)
		check(err)
		r.Books = append(r.Books, text(one))
		n, err = client.Book.Delete().Where(book.TitleHasPrefix("Ada")).Exec(ctx)
		check(err)
		r.Counts = append(r.Counts, n)

		tx, err := client.Tx(ctx)
		check(err)
		mine, err := tx.Author.Create().SetName("Dot").Save(ctx)
		check(err)
		_, err = tx.Author.Get(ctx, mine.ID)
		check(err)
		check(tx.Rollback())
		_, err = client.Author.Get(ctx, mine.ID)
		r.Errors = append(r.Errors, kind(err))
		_, err = client.Author.Query().Only(ctx)
		r.Errors = append(r.Errors, kind(err))
		r.Errors = append(r.Errors, kind(client.Author.Create().SetName("Ada").Exec(ctx)))
		r.Errors = append(r.Errors, kind(client.Author.Create().Exec(ctx)))
		r.Errors = append(r.Errors, kind(client.Book.Create().SetTitle("t").SetPrice(1).SetAuthorID(99).Exec(ctx)))
		r.Errors = append(r.Errors, kind(client.Author.DeleteOneID(2).Exec(ctx)))
		r.Errors = append(r.Errors, kind(client.Author.Query().Where(func(s *entsql.Selector) { s.Where(entsql.ExprP("no_such_column = 1")) }).Select("id").Scan(ctx, &r.Counts)))
		gone, cancel := context.WithCancel(ctx)
		cancel()
		_, err = client.Author.Query().All(gone)
		r.Errors = append(r.Errors, kind(err))

		if len(r.Authors) != 3 || len(r.Books) != 3 || len(r.Titles) != 6 || !slices.Equal(r.Counts, []int{9, 2, 0, 3, 3}) || len(r.Groups) != 3 {
			e.Errorf("%s: the test shows nothing", fmt.Sprint(len(r.Authors), len(r.Books), r.Titles, r.Counts, r.Groups))
		}
		return r
	})
}

// TestShared lets 50 callers ask for the same by each way that ent has to read.
func TestShared(t *testing.T) {
	want := func(ok bool, err error, got any) error {
		if err == nil && !ok {
			err = fmt.Errorf("got %v", got)
		}
		return err
	}
	stack.Each(t, func(e *stack.Env) {
		db, client := open(e)
		for _, tc := range []struct {
			name   string
			read   func(ctx context.Context) error
			tables []string
		}{
			// The first after Schema.Create, whose connection must not stay apart.
			{"All", func(ctx context.Context) error {
				all, err := client.Book.Query().All(ctx)
				return want(len(all) == 9, err, all)
			}, []string{"books"}},
			{"Get", func(ctx context.Context) error {
				b, err := client.Book.Get(ctx, 2)
				return want(err == nil && b.Title == "Ada 2" && b.Added.Equal(day), err, b)
			}, []string{"books"}},
			{"Only/Where", func(ctx context.Context) error {
				b, err := client.Book.Query().Where(book.Title("Bea 1"), book.AddedLTE(day), book.PriceIn(11.99, 12.99)).Only(ctx)
				return want(err == nil && b.ID == 4, err, b)
			}, []string{"books"}},
			{"Count", func(ctx context.Context) error {
				n, err := client.Book.Query().Where(book.HasAuthorWith(author.NameEQ("Cyd"))).Count(ctx)
				return want(n == 3, err, n)
			}, []string{"books"}},
			{"Exist", func(ctx context.Context) error {
				ok, err := client.Author.Query().Where(author.BornNotNil()).Exist(ctx)
				return want(ok, err, ok)
			}, []string{"authors"}},
			{"GroupBy", func(ctx context.Context) error {
				var v []struct {
					AuthorBooks int `json:"author_books"`
					Sum         float64
				}
				err := client.Book.Query().GroupBy(book.AuthorColumn).Aggregate(gen.As(gen.Sum(book.FieldPrice), "sum")).Scan(ctx, &v)
				return want(len(v) == 3, err, v)
			}, []string{"books"}},
			// One query for the authors, one for all their books.
			{"With", func(ctx context.Context) error {
				all, err := client.Author.Query().WithBooks().All(ctx)
				return want(len(all) == 3 && len(all[2].Edges.Books) == 3, err, all)
			}, []string{"authors", "books"}},
			{"Edge", func(ctx context.Context) error {
				a, err := client.Author.Get(ctx, 3)
				if err != nil {
					return err
				}
				books, err := a.QueryBooks().All(ctx)
				return want(len(books) == 3, err, books)
			}, []string{"authors", "books"}},
		} {
			e.Run(tc.name, func(t *testing.T) {
				sub := *e
				sub.T = t
				sub.Shared(db, 50, tc.read, tc.tables...)
			})
		}
	})
}

// TestNotShared is what must stay apart: a transaction, a locked row, a context
// that says so.
func TestNotShared(t *testing.T) {
	stack.Each(t, func(e *stack.Env) {
		db, client := open(e)
		const callers = 20
		e.Bypassed(db, callers, flightpg.ReasonTransaction, func(ctx context.Context) error {
			tx, err := client.Tx(ctx)
			if err != nil {
				return err
			}
			defer tx.Rollback()
			_, err = tx.Book.Query().Count(ctx)
			return err
		}, "books")
		e.Bypassed(db, callers, flightpg.ReasonRowLock, func(ctx context.Context) error {
			_, err := client.Book.Query().Where(book.ID(1)).ForShare().Only(ctx)
			return err
		}, "books")
		e.Bypassed(db, callers, flightpg.ReasonModeOff, func(ctx context.Context) error {
			_, err := client.Book.Get(flightpg.WithMode(ctx, flightpg.ModeOff), 1)
			return err
		}, "books")
		// A connection of one's own does not keep from sharing.
		e.Shared(db, callers, func(ctx context.Context) error {
			conn, err := db.Conn(ctx)
			if err != nil {
				return err
			}
			defer conn.Close()
			one := gen.NewClient(gen.Driver(entsql.NewDriver(dialect.Postgres, entsql.Conn{ExecQuerier: conn})))
			_, err = one.Book.Query().Count(ctx)
			return err
		}, "books")
	})
}

// TestReadYourWrites writes while a read that does not know it yet is under way
// on the server.
func TestReadYourWrites(t *testing.T) {
	stack.Each(t, func(e *stack.Env) {
		e.Hold()
		db, client := open(e)
		read := func(ctx context.Context) (int64, error) {
			b, err := client.Book.Query().Where(book.ID(1), func(s *entsql.Selector) {
				s.Where(entsql.ExprP("stack_hold(books.id) = books.id"))
			}).Only(ctx)
			if gen.IsNotFound(err) {
				return -1, nil
			}
			if err != nil {
				return 0, err
			}
			return int64(b.Sold), nil
		}
		e.SeesWrites(db, 0, 1, read, func(ctx context.Context) error { return client.Book.UpdateOneID(1).AddSold(1).Exec(ctx) })
		e.SeesWrites(db, 1, 2, read, func(ctx context.Context) error {
			return client.Book.Update().Where(book.ID(1)).AddSold(1).Exec(ctx)
		})
		e.SeesWrites(db, 2, 4, read, func(ctx context.Context) error {
			tx, err := client.Tx(ctx)
			if err != nil {
				return err
			}
			defer tx.Rollback()
			for range 2 {
				if err := tx.Book.UpdateOneID(1).AddSold(1).Exec(ctx); err != nil {
					return err
				}
			}
			return tx.Commit()
		})
	})
}

// TestWritesOnce lets many write at the same time, the same and their own.
func TestWritesOnce(t *testing.T) {
	writes := make(map[string]map[string]int)
	stack.Each(t, func(e *stack.Env) {
		_, client := open(e)
		e.Watch("authors", "books")
		const callers = 30
		e.Concurrently(callers, func(ctx context.Context, i int) error {
			a, err := client.Author.Create().SetName(fmt.Sprint("author ", i)).Save(ctx)
			if err != nil {
				return err
			}
			if got, err := client.Author.Get(ctx, a.ID); err != nil || got.Name != a.Name {
				return fmt.Errorf("my own author: %v, %w", got, err)
			}
			err = client.Book.MapCreateBulk([]int{1, 2}, func(c *gen.BookCreate, n int) {
				c.SetTitle("same").SetPrice(1).SetAuthor(a)
			}).Exec(ctx)
			if err != nil {
				return err
			}
			if n, err := a.QueryBooks().Count(ctx); err != nil || n != 2 {
				return fmt.Errorf("%d books of my own, %w", n, err)
			}
			return client.Book.UpdateOneID(1).AddSold(1).Exec(ctx) // all the same statement
		})
		b, err := client.Book.Get(e.Context(), 1)
		if err != nil || b.Sold != callers {
			e.Errorf("sold %v, %v; want %d", b, err, callers)
		}
		writes[e.Driver] = e.Writes()
		want := map[string]int{"INSERT authors": callers, "INSERT books": callers, "UPDATE books": callers}
		if !maps.Equal(writes[e.Driver], want) {
			e.Errorf("writes on the server: %v; want %v", writes[e.Driver], want)
		}
	})
}

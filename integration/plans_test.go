package integration

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/flightpg/flightpg"
)

// execModes are the ways that pgx executes queries, as DSN parameters.
var execModes = []string{
	"default_query_exec_mode=cache_statement", "default_query_exec_mode=cache_describe",
	"default_query_exec_mode=describe_exec", "default_query_exec_mode=exec", "default_query_exec_mode=simple_protocol",
}

// TestPlanInvalidation changes tables under statements that connections know
// already ("cached plan must not change result type"). pgx fails then, once on
// each connection, or for ever. Here nobody notices, wherever the statement runs;
// but for transactions, which have failed by then.
func TestPlanInvalidation(t *testing.T) {
	forEachServer(t, func(t *testing.T, dsn string) {
		ddl := connect(t, dsn)
		n := 0
		// table makes a new table, with one row.
		table := func(t *testing.T) string {
			t.Helper()
			n++
			name := fmt.Sprintf("plans%d", n)
			if _, err := ddl.Exec(t.Context(), "CREATE TABLE "+name+" (a int); INSERT INTO "+name+" VALUES (1)"); err != nil {
				t.Fatal(err)
			}
			return name
		}
		alter := func(t *testing.T, name string, column int) {
			t.Helper()
			if _, err := ddl.Exec(t.Context(), fmt.Sprintf("ALTER TABLE %s ADD COLUMN c%d text DEFAULT 'x'", name, column)); err != nil {
				t.Fatal(err)
			}
		}
		uses := []struct {
			name string
			text string // of the statement, %s being the table
			with func(ctx context.Context, db *sql.DB, f func(querier) error) error
			stmt bool
		}{
			{"Flight", "SELECT * FROM %s", onDB, false},
			{"FlightStmt", "SELECT * FROM %s", onDB, true},
			{"Session", "SELECT * FROM %s WHERE random() < 2", onConn, false},
			{"SessionStmt", "SELECT * FROM %s WHERE random() < 2", onConn, true},
			{"Returning", "INSERT INTO %s VALUES (2) RETURNING *", onConn, false},
			{"ReturningStmt", "INSERT INTO %s VALUES (2) RETURNING *", onConn, true},
		}
		for _, mode := range execModes {
			for _, guard := range []string{"", "&flight_guard=transaction"} {
				for _, use := range uses {
					t.Run(mode+guard+"/"+use.name, func(t *testing.T) {
						name := table(t)
						db := open(t, "flightpg", with(dsn, mode+guard))
						query := fmt.Sprintf(use.text, name)
						err := use.with(t.Context(), db, func(q querier) error {
							run := q.QueryContext
							if use.stmt {
								st, err := q.PrepareContext(t.Context(), query)
								if err != nil {
									return err
								}
								defer st.Close()
								run = func(ctx context.Context, _ string, args ...any) (*sql.Rows, error) {
									return st.QueryContext(ctx, args...)
								}
							}
							for columns := 1; columns <= 4; columns++ {
								if columns > 1 {
									alter(t, name, columns)
								}
								for range 2 {
									rows, err := run(t.Context(), query)
									if err != nil {
										return fmt.Errorf("%d columns: %w", columns, err)
									}
									names, err := rows.Columns()
									if len(names) != columns || err != nil {
										t.Errorf("Columns = %v, %v; want %d", names, err, columns)
									}
									for rows.Next() {
									}
									if err := errors.Join(rows.Err(), rows.Close()); err != nil {
										return err
									}
								}
							}
							return nil
						})
						if err != nil {
							t.Error(err)
						}
						if strings.HasPrefix(use.name, "Returning") {
							var got int
							if err := ddl.QueryRow(t.Context(), "SELECT count(*) FROM "+name).Scan(&got); got != 9 || err != nil {
								t.Errorf("%d rows, %v; want 9: each INSERT once", got, err)
							}
						}
						if s := flightpg.ReadStats(db); strings.HasPrefix(use.name, "Flight") && s.Flights < 8 {
							t.Errorf("Stats = %+v; want every read on a flight", s)
						}
					})
				}
			}
			t.Run(mode+"/Deallocated", func(t *testing.T) {
				db := open(t, "flightpg", with(dsn, mode))
				err := onConn(t.Context(), db, func(q querier) error {
					for range 3 {
						var one int
						if err := q.QueryRowContext(t.Context(), "SELECT 1 WHERE random() < 2").Scan(&one); err != nil {
							return err
						}
						if _, err := q.ExecContext(t.Context(), "DEALLOCATE ALL"); err != nil {
							return err
						}
					}
					return nil
				})
				if err != nil {
					t.Error(err)
				}
			})
		}

		// A transaction has failed when the error comes; and what a function has
		// done before its own statement raised it must not be done again.
		t.Run("Transaction", func(t *testing.T) {
			for _, driver := range []string{"pgx", "flightpg"} {
				name := table(t)
				db := open(t, driver, dsn)
				query := "SELECT * FROM " + name + " WHERE random() < 2"
				err := onConn(t.Context(), db, func(q querier) error {
					c := q.(*sql.Conn)
					if rows, err := c.QueryContext(t.Context(), query); err != nil {
						return err
					} else if err := rows.Close(); err != nil {
						return err
					}
					alter(t, name, 2)
					tx, err := c.BeginTx(t.Context(), nil)
					if err != nil {
						return err
					}
					defer tx.Rollback()
					_, err = tx.QueryContext(t.Context(), query)
					return err
				})
				if code(err) != "0A000" {
					t.Errorf("%s: %v; want SQLSTATE 0A000", driver, err)
				}
			}
		})
		t.Run("InsideFunction", func(t *testing.T) {
			name := table(t)
			db := open(t, "flightpg", dsn)
			if _, err := ddl.Exec(t.Context(), strings.ReplaceAll(`
				CREATE SEQUENCE :t_calls;
				CREATE FUNCTION :t_f() RETURNS int LANGUAGE plpgsql AS $$
				BEGIN
					PERFORM nextval(':t_calls');
					RAISE feature_not_supported USING MESSAGE = 'cached plan must not change result type';
				END $$`, ":t", name)); err != nil {
				t.Fatal(err)
			}
			_, err := db.ExecContext(t.Context(), "SELECT "+name+"_f()")
			if code(err) != "0A000" {
				t.Errorf("Exec = %v; want SQLSTATE 0A000", err)
			}
			var calls int
			if err := ddl.QueryRow(t.Context(), "SELECT last_value FROM "+name+"_calls").Scan(&calls); calls != 1 || err != nil {
				t.Errorf("%d calls, %v; want 1", calls, err)
			}
		})
	})
}

func onDB(_ context.Context, db *sql.DB, f func(querier) error) error { return f(db) }

// onConn runs f on one connection.
func onConn(ctx context.Context, db *sql.DB, f func(querier) error) error {
	c, err := db.Conn(ctx)
	if err != nil {
		return err
	}
	return errors.Join(f(c), c.Close())
}

// code returns the SQLSTATE of an error, or "".
func code(err error) string {
	var pgErr *pgconn.PgError
	if errors.As(err, &pgErr) {
		return pgErr.Code
	}
	return ""
}

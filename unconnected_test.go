package flightpg

import (
	"context"
	"database/sql"
	"errors"
	"net"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// TestRaw_NoServer asks for the *pgx.Conn where there is no server: it is one, and says
// what db.Conn says with pgx.
func TestRaw_NoServer(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	dsn := "postgres://nobody@" + l.Addr().String() + "/nothing?sslmode=disable"
	l.Close()
	plain, err := sql.Open("pgx", dsn)
	if err != nil {
		t.Fatal(err)
	}
	defer plain.Close()
	_, want := plain.Conn(t.Context())
	if want == nil {
		t.Fatal("pgx has connected to nobody")
	}
	uses := map[string]func(*pgx.Conn) error{
		"Ping": func(c *pgx.Conn) error { return c.Ping(t.Context()) },
		"Exec": func(c *pgx.Conn) error { _, err := c.Exec(t.Context(), "SELECT 1"); return err },
		"QueryRow": func(c *pgx.Conn) error {
			var n int
			return c.QueryRow(t.Context(), "SELECT $1::int", 1).Scan(&n)
		},
		"Begin":   func(c *pgx.Conn) error { _, err := c.Begin(t.Context()); return err },
		"Prepare": func(c *pgx.Conn) error { _, err := c.Prepare(t.Context(), "a", "SELECT 1"); return err },
		"CopyFrom": func(c *pgx.Conn) error {
			_, err := c.CopyFrom(t.Context(), pgx.Identifier{"a"}, []string{"b"}, pgx.CopyFromRows([][]any{{1}}))
			return err
		},
		"SendBatch": func(c *pgx.Conn) error {
			b := new(pgx.Batch)
			b.Queue("SELECT 1")
			return c.SendBatch(t.Context(), b).Close()
		},
		"PgConn.Exec": func(c *pgx.Conn) error { _, err := c.PgConn().Exec(t.Context(), "SELECT 1").ReadAll(); return err },
		"with a deadline": func(c *pgx.Conn) error {
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			return c.Ping(ctx)
		},
	}
	for name, use := range uses {
		db, err := sql.Open("flightpg", dsn)
		if err != nil {
			t.Fatal(err)
		}
		conn, err := db.Conn(t.Context())
		if err == nil {
			err = conn.Raw(func(dc any) error {
				c := dc.(interface{ Conn() *pgx.Conn }).Conn()
				if c == nil {
					t.Fatal("Conn() is nil, without an error")
				}
				return use(c)
			})
			conn.Close()
		}
		var refused *pgconn.ConnectError
		if !errors.As(err, &refused) {
			t.Errorf("%s: %v; want pgx's %T, %v", name, err, want, want)
		}
		db.Close()
	}
}

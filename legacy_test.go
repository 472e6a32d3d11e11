package flightpg

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"testing"
)

// legacyServer is a driver from before contexts: it has what driver.Conn and
// driver.Stmt demand, and none of the optional interfaces.
type legacyServer struct{}

func (legacyServer) Connect(context.Context) (driver.Conn, error) { return legacyConn{}, nil }
func (legacyServer) Driver() driver.Driver                        { return fakeDriver{} }

type legacyConn struct{}

func (legacyConn) Prepare(query string) (driver.Stmt, error) {
	if query == "SELECT no such" {
		return nil, errors.New("syntax error")
	}
	return legacyStmt{query}, nil
}
func (legacyConn) Close() error              { return nil }
func (legacyConn) Begin() (driver.Tx, error) { return legacyTx{}, nil }

type legacyTx struct{}

func (legacyTx) Commit() error   { return nil }
func (legacyTx) Rollback() error { return nil }

type legacyStmt struct{ query string }

func (legacyStmt) Close() error  { return nil }
func (legacyStmt) NumInput() int { return -1 }

func (s legacyStmt) Query(args []driver.Value) (driver.Rows, error) {
	return oneRow(fmt.Sprintf("%s %T%v", s.query, args, args)), nil
}

func (s legacyStmt) Exec(args []driver.Value) (driver.Result, error) {
	return driver.RowsAffected(len(args)), nil
}

// TestLegacyDriver: over a driver that has no optional interface, every call gives
// what database/sql gives over it.
func TestLegacyDriver(t *testing.T) {
	text := func(row *sql.Row) (s string, err error) {
		err = row.Scan(&s)
		return s, err
	}
	type named struct{ V int }
	for _, call := range []struct {
		name string
		do   func(db *sql.DB) (any, error)
	}{
		{"Query", func(db *sql.DB) (any, error) { return text(db.QueryRow("SELECT $1", 1)) }},
		{"QueryOfConvertedValues", func(db *sql.DB) (any, error) { return text(db.QueryRow("SELECT $1", uint8(7))) }},
		{"QueryOfBadValue", func(db *sql.DB) (any, error) { return text(db.QueryRow("SELECT $1", named{1})) }},
		{"QueryThatWrites", func(db *sql.DB) (any, error) { return text(db.QueryRow("INSERT INTO t VALUES ($1) RETURNING 1", 1)) }},
		{"QueryOfNames", func(db *sql.DB) (any, error) { return text(db.QueryRow("UPDATE t SET v = :v", sql.Named("v", 1))) }},
		{"SyntaxError", func(db *sql.DB) (any, error) { return text(db.QueryRow("SELECT no such")) }},
		{"Exec", func(db *sql.DB) (any, error) { return affectedRows(db.Exec("UPDATE t SET v = $1", 1)) }},
		{"ExecOfNames", func(db *sql.DB) (any, error) { return affectedRows(db.Exec("UPDATE t SET v = :v", sql.Named("v", 1))) }},
		{"ExecOfBadValue", func(db *sql.DB) (any, error) { return affectedRows(db.Exec("UPDATE t SET v = $1", named{1})) }},
		{"ExecSyntaxError", func(db *sql.DB) (any, error) { return affectedRows(db.Exec("SELECT no such")) }},
		{"Prepared", func(db *sql.DB) (any, error) {
			st, err := db.Prepare("SELECT $1")
			if err != nil {
				return nil, err
			}
			defer st.Close()
			return text(st.QueryRow(1))
		}},
		{"PreparedExec", func(db *sql.DB) (any, error) {
			st, err := db.Prepare("UPDATE t SET v = $1")
			if err != nil {
				return nil, err
			}
			defer st.Close()
			return affectedRows(st.Exec(1))
		}},
		{"Tx", func(db *sql.DB) (any, error) {
			tx, err := db.Begin()
			if err != nil {
				return nil, err
			}
			defer tx.Rollback()
			s, err := text(tx.QueryRow("SELECT $1", 1))
			return s, errors.Join(err, tx.Commit())
		}},
		{"TxOfALevel", func(db *sql.DB) (any, error) {
			_, err := db.BeginTx(t.Context(), &sql.TxOptions{Isolation: sql.LevelSerializable})
			return nil, err
		}},
		{"TxReadOnly", func(db *sql.DB) (any, error) {
			_, err := db.BeginTx(t.Context(), &sql.TxOptions{ReadOnly: true})
			return nil, err
		}},
		{"Ping", func(db *sql.DB) (any, error) { return nil, db.Ping() }},
	} {
		t.Run(call.name, func(t *testing.T) {
			plain := sql.OpenDB(legacyServer{})
			defer plain.Close()
			c, err := Wrap(legacyServer{}, Config{TrustNames: trustAll})
			if err != nil {
				t.Fatal(err)
			}
			ours := c.OpenDB()
			defer ours.Close()
			want, wantErr := call.do(plain)
			got, gotErr := call.do(ours)
			if got != want || fmt.Sprint(gotErr) != fmt.Sprint(wantErr) {
				t.Errorf("= %v, %v\ndatabase/sql: %v, %v", got, gotErr, want, wantErr)
			}
		})
	}
}

func affectedRows(res sql.Result, err error) (any, error) {
	if err != nil {
		return nil, err
	}
	return res.RowsAffected()
}

// TestOpen: database/sql never calls these, others may.
func TestOpen(t *testing.T) {
	if _, err := new(Driver).Open("postgres://localhost/?flight_width=none"); err == nil {
		t.Error("Open with a bad parameter = nil error")
	}
	f := &fakeServer{}
	c, err := Wrap(f, Config{TrustNames: trustAll})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	dc, err := c.Connect(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	//lint:ignore SA1019 what is tested
	tx, err := dc.Begin()
	if err != nil {
		t.Fatal(err)
	}
	st, err := dc.Prepare("SELECT v FROM t WHERE id = $1")
	if err != nil {
		t.Fatal(err)
	}
	//lint:ignore SA1019 what is tested
	if _, err := st.Query([]driver.Value{int64(1)}); err == nil {
		t.Error("Query without a context = nil error")
	}
	//lint:ignore SA1019 what is tested
	if _, err := st.Exec([]driver.Value{int64(1)}); err == nil {
		t.Error("Exec without a context = nil error")
	}
	if err := errors.Join(st.Close(), tx.Rollback(), dc.Close()); err != nil {
		t.Error(err)
	}
	if n := f.count("BEGIN"); n != 1 || f.count("ROLLBACK") != 1 {
		t.Errorf("%d transactions, %d rolled back; want one", n, f.count("ROLLBACK"))
	}
}

package flightpg_test

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/DATA-DOG/go-sqlmock"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/flightpg/flightpg"
)

// mockConnector opens go-sqlmock's one connection, as often as it is asked.
type mockConnector struct {
	dsn string
	drv driver.Driver
}

func (c mockConnector) Connect(context.Context) (driver.Conn, error) { return c.drv.Open(c.dsn) }
func (c mockConnector) Driver() driver.Driver                        { return c.drv }

// openMock opens flightpg over go-sqlmock. Expectations may be met in any
// order: which session comes first is not the test's business.
func openMock(t *testing.T, cfg flightpg.Config) (*sql.DB, sqlmock.Sqlmock) {
	t.Helper()
	mdb, mock, err := sqlmock.NewWithDSN(t.Name(), sqlmock.QueryMatcherOption(sqlmock.QueryMatcherEqual), sqlmock.MonitorPingsOption(true))
	if err != nil {
		t.Fatal(err)
	}
	mock.MatchExpectationsInOrder(false)
	cfg.TrustNames = []string{"*"}
	c, err := flightpg.Wrap(mockConnector{t.Name(), mdb.Driver()}, cfg)
	if err != nil {
		t.Fatal(err)
	}
	db := c.OpenDB()
	t.Cleanup(func() {
		if err := mock.ExpectationsWereMet(); err != nil {
			t.Error(err)
		}
		mock.ExpectClose()
		mock.ExpectClose()
		mock.ExpectClose()
		_ = db.Close()
		_ = mdb.Close()
	})
	return db, mock
}

// held is an argument whose query is held back until the test opens it.
type held struct {
	value int64
	open  chan struct{}
}

func hold(value int64) held { return held{value, make(chan struct{})} }

// Match implements sqlmock.Argument.
func (h held) Match(v driver.Value) bool {
	<-h.open
	return v == h.value
}

const byID = "SELECT id, name FROM users WHERE id = $1"

func TestDriver_Registered(t *testing.T) {
	for _, name := range sql.Drivers() {
		if name == "flightpg" {
			return
		}
	}
	t.Error(`no driver "flightpg"`)
}

func TestDriver_IdenticalReadsRunOnce(t *testing.T) {
	db, mock := openMock(t, flightpg.Config{})
	seven := hold(7)
	mock.ExpectQuery(byID).WithArgs(seven).
		WillReturnRows(sqlmock.NewRows([]string{"id", "name"}).AddRow(7, []byte("seven")).AddRow(8, []byte("eight")))
	var wg sync.WaitGroup
	for range 100 {
		wg.Go(func() {
			rows, err := db.Query(byID, 7)
			if err != nil {
				t.Error(err)
				return
			}
			defer rows.Close()
			var got []string
			for rows.Next() {
				var id int
				var name []byte
				if err := rows.Scan(&id, &name); err != nil {
					t.Error(err)
				}
				got = append(got, fmt.Sprint(id, string(name)))
			}
			if s := strings.Join(got, " "); s != "7seven 8eight" || rows.Err() != nil {
				t.Errorf("rows = %q, %v", s, rows.Err())
			}
		})
	}
	waitFor(t, db, func(s flightpg.Stats) bool { return s.Waiting == 100 })
	close(seven.open)
	wg.Wait() // a second execution has no expectation and would be an error
	if s := flightpg.ReadStats(db); s.Flights != 1 || s.Joins != 99 {
		t.Errorf("Stats = %+v; want 1 flight and 99 joins", s)
	}
}

func TestDriver_DifferentArgumentsFlyApart(t *testing.T) {
	db, mock := openMock(t, flightpg.Config{})
	open := make(chan struct{})
	for i := range 10 {
		mock.ExpectQuery(byID).WithArgs(held{int64(i), open}).
			WillReturnRows(sqlmock.NewRows([]string{"id", "name"}).AddRow(i, fmt.Sprint(i)))
	}
	var wg sync.WaitGroup
	for i := range 10 {
		for range 5 {
			wg.Go(func() {
				var id int
				var name string
				if err := db.QueryRow(byID, i).Scan(&id, &name); err != nil || id != i || name != fmt.Sprint(i) {
					t.Errorf("QueryRow(%d) = %d, %q, %v", i, id, name, err)
				}
			})
		}
	}
	waitFor(t, db, func(s flightpg.Stats) bool { return s.Waiting == 50 })
	close(open)
	wg.Wait()
}

// TestDriver_PassesThrough goes down every path of database/sql that does not
// share, and checks the statement and the arguments that arrive.
func TestDriver_PassesThrough(t *testing.T) {
	const insert = "INSERT INTO users (name) VALUES ($1)"
	t.Run("Exec", func(t *testing.T) {
		db, mock := openMock(t, flightpg.Config{})
		mock.ExpectExec(insert).WithArgs("ann").WillReturnResult(sqlmock.NewResult(3, 1))
		res, err := db.Exec(insert, "ann")
		if err != nil {
			t.Fatal(err)
		}
		id, _ := res.LastInsertId()
		n, _ := res.RowsAffected()
		if id != 3 || n != 1 {
			t.Errorf("Result = %d, %d; want the inner driver's 3, 1", id, n)
		}
	})
	t.Run("QueryReturning", func(t *testing.T) {
		db, mock := openMock(t, flightpg.Config{})
		mock.ExpectQuery(insert + " RETURNING id").WithArgs("ann").WillReturnRows(sqlmock.NewRows([]string{"id"}).AddRow(3))
		var id int
		if err := db.QueryRow(insert+" RETURNING id", "ann").Scan(&id); err != nil || id != 3 {
			t.Errorf("QueryRow = %d, %v; want 3", id, err)
		}
	})
	t.Run("Tx", func(t *testing.T) {
		db, mock := openMock(t, flightpg.Config{})
		mock.ExpectBegin()
		mock.ExpectExec(insert).WithArgs("ann").WillReturnResult(sqlmock.NewResult(3, 1))
		mock.ExpectQuery(byID).WithArgs(3).WillReturnRows(sqlmock.NewRows([]string{"id", "name"}).AddRow(3, "ann"))
		mock.ExpectCommit()
		tx, err := db.Begin()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := tx.Exec(insert, "ann"); err != nil {
			t.Fatal(err)
		}
		var id int
		var name string
		if err := tx.QueryRow(byID, 3).Scan(&id, &name); err != nil || name != "ann" {
			t.Errorf("QueryRow = %q, %v", name, err)
		}
		if err := tx.Commit(); err != nil {
			t.Fatal(err)
		}
	})
	t.Run("Rollback", func(t *testing.T) {
		db, mock := openMock(t, flightpg.Config{})
		mock.ExpectBegin()
		mock.ExpectRollback()
		tx, err := db.Begin()
		if err != nil {
			t.Fatal(err)
		}
		if err := tx.Rollback(); err != nil {
			t.Fatal(err)
		}
	})
	t.Run("Stmt", func(t *testing.T) {
		db, mock := openMock(t, flightpg.Config{})
		mock.ExpectPrepare(insert)
		mock.ExpectPrepare(insert)
		mock.ExpectExec(insert).WithArgs("ann").WillReturnResult(sqlmock.NewResult(3, 1))
		mock.ExpectExec(insert).WithArgs("bob").WillReturnResult(sqlmock.NewResult(4, 1))
		st, err := db.Prepare(insert)
		if err != nil {
			t.Fatal(err)
		}
		defer st.Close()
		for _, name := range []string{"ann", "bob"} {
			if _, err := st.Exec(name); err != nil {
				t.Error(err)
			}
		}
	})
	t.Run("Ping", func(t *testing.T) {
		db, mock := openMock(t, flightpg.Config{})
		mock.ExpectPing()
		if err := db.Ping(); err != nil {
			t.Error(err)
		}
	})
	t.Run("ConnKeepsItsSession", func(t *testing.T) {
		db, mock := openMock(t, flightpg.Config{})
		mock.ExpectExec("SET ROLE ann").WillReturnResult(sqlmock.NewResult(0, 0))
		mock.ExpectQuery(byID).WithArgs(1).WillReturnRows(sqlmock.NewRows([]string{"id", "name"}).AddRow(1, "x"))
		c, err := db.Conn(context.Background())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if _, err := c.ExecContext(context.Background(), "SET ROLE ann"); err != nil {
			t.Fatal(err)
		}
		if err := c.QueryRowContext(context.Background(), byID, 1).Scan(new(int), new(string)); err != nil {
			t.Fatal(err)
		}
		if s := flightpg.ReadStats(db); s.Flights != 0 || s.Bypasses[flightpg.ReasonSession] != 1 {
			t.Errorf("Stats = %+v; want no flight after SET ROLE", s)
		}
	})
	t.Run("Off", func(t *testing.T) {
		db, mock := openMock(t, flightpg.Config{Mode: flightpg.ModeOff})
		for range 3 {
			mock.ExpectQuery(byID).WithArgs(1).WillReturnRows(sqlmock.NewRows([]string{"id", "name"}).AddRow(1, "x"))
		}
		for range 3 {
			if err := db.QueryRow(byID, 1).Scan(new(int), new(string)); err != nil {
				t.Error(err)
			}
		}
	})
}

func TestDriver_Errors(t *testing.T) {
	db, mock := openMock(t, flightpg.Config{})
	want := &pgconn.PgError{Code: "42703", Message: `column "nme" does not exist`}
	one := hold(1)
	mock.ExpectQuery(byID).WithArgs(one).WillReturnError(want)
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			err := db.QueryRow(byID, 1).Scan(new(int), new(string))
			var got *pgconn.PgError
			if !errors.As(err, &got) || got != want {
				t.Errorf("QueryRow = %v; want %v", err, want)
			}
		})
	}
	waitFor(t, db, func(s flightpg.Stats) bool { return s.Waiting == 20 })
	close(one.open)
	wg.Wait()
	mock.ExpectQuery(byID).WithArgs(2).WillReturnRows(sqlmock.NewRows([]string{"id", "name"}))
	if err := db.QueryRow(byID, 2).Scan(new(int), new(string)); err != sql.ErrNoRows {
		t.Errorf("QueryRow without rows = %v; want %v", err, sql.ErrNoRows)
	}
}

func TestDriver_LeaderCancelled(t *testing.T) {
	db, mock := openMock(t, flightpg.Config{})
	one := hold(1)
	mock.ExpectQuery(byID).WithArgs(one).
		WillReturnRows(sqlmock.NewRows([]string{"id", "name"}).AddRow(1, "x"))
	ctx, cancel := context.WithCancel(context.Background())
	leader := make(chan error, 1)
	go func() { leader <- db.QueryRowContext(ctx, byID, 1).Scan(new(int), new(string)) }()
	waitFor(t, db, func(s flightpg.Stats) bool { return s.Flights == 1 })
	follower := make(chan error, 1)
	go func() { follower <- db.QueryRow(byID, 1).Scan(new(int), new(string)) }()
	waitFor(t, db, func(s flightpg.Stats) bool { return s.Joins == 1 })
	cancel()
	if err := <-leader; !errors.Is(err, context.Canceled) {
		t.Errorf("leader: %v; want its cancellation", err)
	}
	close(one.open)
	if err := <-follower; err != nil {
		t.Errorf("follower: %v; want the row", err)
	}
}

// waitFor polls the figures until they are as wanted.
func waitFor(t *testing.T, db *sql.DB, ok func(flightpg.Stats) bool) {
	t.Helper()
	deadline := time.Now().Add(10 * time.Second)
	for !ok(flightpg.ReadStats(db)) {
		if time.Now().After(deadline) {
			t.Fatalf("Stats = %+v after 10 s", flightpg.ReadStats(db))
		}
		time.Sleep(time.Millisecond) // nothing tells when the last caller has joined
	}
}

// TestDriver_Bytes checks the copies that callers get: go-sqlmock overwrites
// the memory of its []byte values when rows move on or are closed.
func TestDriver_Bytes(t *testing.T) {
	db, mock := openMock(t, flightpg.Config{})
	one := hold(1)
	mock.ExpectQuery(byID).WithArgs(one).
		WillReturnRows(sqlmock.NewRows([]string{"id", "name"}).AddRow(1, []byte("first")).AddRow(2, []byte("second")))
	var wg sync.WaitGroup
	for i := range 20 {
		wg.Go(func() {
			rows, err := db.Query(byID, 1)
			if err != nil {
				t.Error(err)
				return
			}
			defer rows.Close()
			for _, want := range []string{"first", "second"} {
				var id int
				var name sql.RawBytes
				rows.Next()
				if err := rows.Scan(&id, &name); err != nil || string(name) != want {
					t.Errorf("caller %d: %q, %v; want %q", i, name, err, want)
				}
				for j := range name {
					name[j] = '!'
				}
			}
		})
	}
	waitFor(t, db, func(s flightpg.Stats) bool { return s.Waiting == 20 })
	close(one.open)
	wg.Wait()
}

func TestDriver_ColumnTypes(t *testing.T) {
	db, mock := openMock(t, flightpg.Config{})
	mock.ExpectQuery(byID).WithArgs(1).WillReturnRows(sqlmock.NewRowsWithColumnDefinition(
		sqlmock.NewColumn("id").OfType("INT8", int64(0)).Nullable(false),
		sqlmock.NewColumn("name").OfType("VARCHAR", "").Nullable(true).WithLength(40),
		sqlmock.NewColumn("price").OfType("NUMERIC", 0.0).WithPrecisionAndScale(10, 2),
	).AddRow(1, "x", 1.5))
	rows, err := db.Query(byID, 1)
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	types, err := rows.ColumnTypes()
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, ct := range types {
		length, hasLength := ct.Length()
		nullable, hasNullable := ct.Nullable()
		precision, scale, hasPrecision := ct.DecimalSize()
		got = append(got, fmt.Sprint(ct.Name(), ct.DatabaseTypeName(), ct.ScanType(), length, hasLength, nullable, hasNullable, precision, scale, hasPrecision))
	}
	// What go-sqlmock itself gives, without flightpg between.
	want := []string{
		"idINT8int64 0 false false true 0 0 false",
		"nameVARCHARstring 40 true true true 0 0 false",
		"priceNUMERICfloat64 0 false false false 10 2 true",
	}
	for i := range got {
		if got[i] != want[i] {
			t.Errorf("column %d = %s; want %s", i, got[i], want[i])
		}
	}
}

func TestDriver_SeveralResultSets(t *testing.T) {
	db, mock := openMock(t, flightpg.Config{})
	mock.ExpectQuery(byID).WithArgs(1).WillReturnRows(
		sqlmock.NewRows([]string{"a"}).AddRow(1).AddRow(2),
		sqlmock.NewRows([]string{"b", "c"}).AddRow(3, 4))
	rows, err := db.Query(byID, 1)
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	var got []string
	for {
		cols, _ := rows.Columns()
		for rows.Next() {
			dest := make([]any, len(cols))
			for i := range dest {
				dest[i] = new(int)
			}
			if err := rows.Scan(dest...); err != nil {
				t.Fatal(err)
			}
			for i := range dest {
				got = append(got, fmt.Sprint(cols[i], *dest[i].(*int)))
			}
		}
		if !rows.NextResultSet() {
			break
		}
	}
	if s := strings.Join(got, " "); s != "a1 a2 b3 c4" || rows.Err() != nil {
		t.Errorf("rows = %q, %v; want a1 a2 b3 c4", s, rows.Err())
	}
}

func TestDriver_NamedArguments(t *testing.T) {
	db, mock := openMock(t, flightpg.Config{})
	mock.ExpectQuery(byID).WithArgs(sql.Named("id", 1)).WillReturnRows(sqlmock.NewRows([]string{"id", "name"}).AddRow(1, "x"))
	if err := db.QueryRow(byID, sql.Named("id", 1)).Scan(new(int), new(string)); err != nil {
		t.Error(err)
	}
}

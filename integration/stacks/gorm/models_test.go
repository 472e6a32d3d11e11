// Package gormtest runs GORM over flightpg.
package gormtest

import (
	"database/sql"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"github.com/lib/pq"
	"go.uber.org/goleak"
	"gorm.io/driver/postgres"
	"gorm.io/gorm"
	"gorm.io/gorm/logger"

	"github.com/flightpg/flightpg/integration/stacks/internal/stack"
)

func TestMain(m *testing.M) {
	// A cache for prepared statements that nobody can close.
	stack.Main(m, goleak.IgnoreAnyFunction("gorm.io/gorm/internal/lru.NewLRU[...].func1"))
}

// noon is the time of everything that is written: both drivers write the same.
var noon = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

type profile struct {
	Bio   string         `json:"bio"`
	Links []string       `json:"links"`
	Extra map[string]int `json:"extra,omitempty"`
}

type author struct {
	gorm.Model
	Name   string  `gorm:"uniqueIndex;size:100;not null"`
	Email  *string // nullable
	Rating sql.NullFloat64
	Info   profile        `gorm:"serializer:json;type:jsonb"`
	Tags   pq.StringArray `gorm:"type:text[]"`
	Photo  []byte
	Born   time.Time
	Visits int64 `gorm:"not null;default:0"`
	Books  []book
	Shelf  []label `gorm:"many2many:author_labels"`

	Shout string `gorm:"-"` // made by a hook
}

type book struct {
	ID       uint
	AuthorID uint `gorm:"index"`
	Author   *author
	EditorID *uint // nullable
	Editor   *author
	Title    string `gorm:"not null"`
	Pages    int
	Price    float64 `gorm:"type:numeric(10,2)"`
}

type label struct {
	ID   uint
	Name string `gorm:"uniqueIndex"`
}

func (a *author) BeforeCreate(*gorm.DB) error {
	if a.Name == "" {
		return fmt.Errorf("an author needs a name")
	}
	return nil
}

func (a *author) AfterFind(*gorm.DB) error { a.Shout = a.Name + "!"; return nil }

// ways are the ways to plug a driver in, and the settings of GORM that change
// what reaches it.
var ways = []struct {
	name   string
	config gorm.Config
	params []string // of the DSN
	conn   bool     // by Conn instead of DriverName
}{
	{name: "DriverName"},
	{name: "PrepareStmt", config: gorm.Config{PrepareStmt: true}},
	{name: "Conn", conn: true},
	{name: "SkipDefaultTransaction", config: gorm.Config{SkipDefaultTransaction: true}},
	{name: "SimpleProtocol", params: []string{"default_query_exec_mode=simple_protocol"}},
}

func open(e *stack.Env, config gorm.Config, byConn bool, params ...string) (*gorm.DB, *sql.DB) {
	e.Helper()
	pg := postgres.Config{DriverName: e.Driver, DSN: e.URL(params...)}
	if byConn {
		pg = postgres.Config{Conn: e.Open(params...)}
	}
	config.Logger = logger.Discard
	config.TranslateError = true
	config.NowFunc = func() time.Time { return noon }
	db, err := gorm.Open(postgres.New(pg), &config)
	if err != nil {
		e.Fatal(err)
	}
	handle, err := db.DB()
	if err != nil {
		e.Fatal(err)
	}
	stack.Keep(handle)
	if !byConn {
		e.Cleanup(func() { _ = handle.Close() })
	}
	return db, handle
}

// migrate makes the tables, as applications do: by the handle under test.
func migrate(e *stack.Env, db *gorm.DB) {
	e.Helper()
	if err := db.AutoMigrate(&author{}, &book{}, &label{}); err != nil {
		e.Fatal(err)
	}
}

// fill writes ten authors with three books and two labels each.
func fill(e *stack.Env, db *gorm.DB) {
	e.Helper()
	labels := []label{{Name: "prose"}, {Name: "verse"}, {Name: "drama"}}
	if err := db.Create(&labels).Error; err != nil {
		e.Fatal(err)
	}
	var authors []author
	for i := range 10 {
		a := author{
			Name:   fmt.Sprintf("author %d", i),
			Rating: sql.NullFloat64{Float64: float64(i) / 2, Valid: i%3 != 0},
			Info:   profile{Bio: "née “Ω”", Links: []string{"a", "b"}, Extra: map[string]int{"n": i}},
			Tags:   pq.StringArray{"t" + fmt.Sprint(i%2), `quo"te`, "NULL"},
			Photo:  []byte{0, 1, byte(i)},
			Born:   noon.AddDate(-30-i, 0, 0),
			Shelf:  []label{labels[i%3], labels[(i+1)%3]},
		}
		if i%2 == 0 {
			email := fmt.Sprintf("%d@example.org", i)
			a.Email = &email
		}
		for n := range 3 {
			a.Books = append(a.Books, book{Title: fmt.Sprintf("book %d of %d", n, i), Pages: 100*n + i, Price: 9.99 + float64(n)})
		}
		authors = append(authors, a)
	}
	if err := db.Create(&authors).Error; err != nil {
		e.Fatal(err)
	}
	if err := db.Model(&book{}).Where("id % 2 = 0").Update("editor_id", authors[0].ID).Error; err != nil {
		e.Fatal(err)
	}
}

// counter numbers calls.
type counter struct{ atomic.Int64 }

func (c *counter) next() int64 { return c.Add(1) }

package gormtest

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"testing"

	"gorm.io/gorm"
	"gorm.io/gorm/clause"
	"gorm.io/hints"

	"github.com/flightpg/flightpg"
	"github.com/flightpg/flightpg/integration/stacks/internal/stack"
)

// TestScenario runs an application's life, one step after the other, and writes
// down what each gave.
func TestScenario(t *testing.T) {
	for i, way := range ways {
		t.Run(way.name, func(t *testing.T) {
			stack.Way(t, i)
			stack.Compare(t, func(e *stack.Env) []any {
				db, _ := open(e, way.config, way.conn, way.params...)
				migrate(e, db)
				fill(e, db)
				e.Watch("authors", "books", "labels", "author_labels")
				return append(scenario(e, db.WithContext(e.Context())), e.Writes())
			})
		})
	}
}

func scenario(e *stack.Env, db *gorm.DB) (log []any) {
	say := func(tx *gorm.DB, v any) {
		err := "<nil>"
		if tx.Error != nil {
			err = tx.Error.Error()
		}
		log = append(log, v, tx.RowsAffected, err)
	}
	var a author
	say(db.First(&a, 1), a)
	a = author{Name: "author 1", Born: noon}
	say(db.Create(&a), errors.Is(db.Create(&author{Name: "author 1"}).Error, gorm.ErrDuplicatedKey))
	a = author{}
	say(db.Create(&a), a) // its hook refuses
	a = author{}
	say(db.Where(author{Name: "new"}).Attrs(author{Born: noon}).FirstOrCreate(&a), a)
	a = author{}
	say(db.Where(author{Name: "new"}).Assign(author{Visits: 3}).FirstOrCreate(&a), a)
	a = author{}
	say(db.Where(author{Name: "none"}).FirstOrInit(&a), a)

	// Batches.
	var many []book
	for i := range 25 {
		many = append(many, book{AuthorID: 1, Title: fmt.Sprintf("batch %d", i), Pages: i})
	}
	say(db.CreateInBatches(&many, 10), many)
	var seen []string
	var batch []book
	say(db.Where("title LIKE ?", "batch %").FindInBatches(&batch, 10, func(tx *gorm.DB, n int) error {
		for _, b := range batch {
			seen = append(seen, fmt.Sprint(n, b.Title))
		}
		return nil
	}), nil)
	log = append(log, seen)

	// Upserts.
	b := many[0]
	b.Pages = 1000
	say(db.Clauses(clause.OnConflict{UpdateAll: true}).Create(&b), b)
	say(db.Clauses(clause.OnConflict{DoNothing: true}).Create(&label{Name: "prose"}), nil)
	l := label{Name: "prose"}
	say(db.Clauses(clause.OnConflict{Columns: []clause.Column{{Name: "name"}}, DoNothing: true}, clause.Returning{}).Create(&l), l)

	// Associations.
	a = author{Model: gorm.Model{ID: 2}}
	log = append(log, db.Model(&a).Association("Shelf").Count())
	if err := db.Model(&a).Association("Shelf").Append(&label{Name: "essay"}); err != nil {
		e.Error(err)
	}
	log = append(log, db.Model(&a).Association("Shelf").Count())
	if err := db.Model(&a).Association("Shelf").Clear(); err != nil {
		e.Error(err)
	}
	log = append(log, db.Model(&a).Association("Shelf").Count())

	// Deletes, soft and hard, with their rows.
	say(db.Delete(&author{}, 3), nil)
	a = author{}
	say(db.Take(&a, 3), a)
	say(db.Unscoped().Take(&a, 3), a)
	var gone []book
	say(db.Clauses(clause.Returning{Columns: []clause.Column{{Name: "title"}}}).Where("pages > ?", 500).Delete(&gone), gone)
	say(db.Where("1 = 0").Delete(&book{}), nil)
	say(db.Delete(&book{}), nil) // no conditions: refused

	// Transactions: nested ones are savepoints.
	err := db.Transaction(func(tx *gorm.DB) error {
		say(tx.Create(&label{Name: "kept"}), nil)
		_ = tx.Transaction(func(tx *gorm.DB) error {
			say(tx.Create(&label{Name: "dropped"}), nil)
			return errors.New("no")
		})
		tx.SavePoint("sp")
		say(tx.Create(&label{Name: "dropped too"}), nil)
		tx.RollbackTo("sp")
		var n int64
		say(tx.Model(&label{}).Count(&n), n)
		return nil
	}, &sql.TxOptions{Isolation: sql.LevelSerializable})
	log = append(log, fmt.Sprint(err))
	var names []string
	say(db.Model(&label{}).Order("name").Pluck("name", &names), names)

	// Errors are pgx's.
	say(db.Raw("SELECT no_such_column FROM authors").Scan(&a), nil)
	say(db.Raw("SELECT 1/(id - 1) FROM authors").Scan(&a), nil)
	ctx, cancel := context.WithCancel(db.Statement.Context)
	cancel()
	say(db.WithContext(ctx).Take(&a, 1), nil)

	// A map with what the driver gives for each type.
	var row map[string]any
	say(db.Table("authors").Where("id = ?", 2).Take(&row), row)

	// Migrations in use. (Not the same text again: over pgx that is an error
	// then, see TestMigrateInUse.)
	type Label struct {
		ID    uint
		Name  string `gorm:"uniqueIndex"`
		Color string `gorm:"default:red;index:idx_color"`
		Count *int64 `gorm:"check:count > 0"`
	}
	var before, after []map[string]any
	say(db.Table("labels").Order("id").Find(&before), before)
	if err := db.AutoMigrate(&Label{}); err != nil {
		e.Error(err)
	}
	say(db.Table("labels").Order("labels.id").Find(&after), after)
	m := db.Migrator()
	log = append(log, m.HasColumn(&Label{}, "color"), m.HasIndex(&Label{}, "idx_color"), m.HasTable("labels"), m.CurrentDatabase() != "")
	types, err := m.ColumnTypes(&Label{})
	if err != nil {
		e.Error(err)
	}
	for _, ct := range types {
		null, _ := ct.Nullable()
		def, ok := ct.DefaultValue()
		length, hasLength := ct.Length()
		log = append(log, ct.Name(), ct.DatabaseTypeName(), null, def, ok, length, hasLength)
	}
	if err := m.DropColumn(&Label{}, "color"); err != nil {
		e.Error(err)
	}
	var dropped []map[string]any
	say(db.Table("labels").Order("labels.id ASC").Find(&dropped), dropped)
	if err := db.AutoMigrate(&Label{}); err != nil { // and back
		e.Error(err)
	}
	var back []Label
	say(db.Order("id ASC").Find(&back), back)
	return log
}

// TestMigrateInUse adds a column between two executions of a SELECT *. Over pgx
// the second fails once with "cached plan must not change result type", on each
// connection that has it prepared; a flight prepares it again.
func TestMigrateInUse(t *testing.T) {
	e := stack.New(t, stack.Flightpg)
	db, handle := open(e, gorm.Config{}, false)
	migrate(e, db)
	fill(e, db)
	type Label struct {
		ID    uint
		Name  string
		Color string `gorm:"default:red"`
	}
	read := func(ctx context.Context) error {
		return db.WithContext(ctx).Table("labels").Find(&[]map[string]any{}).Error
	}
	e.Shared(handle, stack.Callers, read, "labels")
	if err := db.AutoMigrate(&Label{}); err != nil {
		t.Fatal(err)
	}
	e.Shared(handle, stack.Callers, read, "labels")
}

// TestMigrateInTransaction changes a table three times in a transaction. GORM
// looks at the columns with a SELECT * each time: in simple protocol if it has a
// Conn, or a DriverName "pgx". With another name it prepares that, and the next
// look after a change is an error ("cached plan must not change result type").
func TestMigrateInTransaction(t *testing.T) {
	type v1 struct {
		ID   uint
		Name string
	}
	type v2 struct {
		v1 `gorm:"embedded"`
		A  string
	}
	type v3 struct {
		v2 `gorm:"embedded"`
		B  *int64
	}
	stack.Compare(t, func(e *stack.Env) []string {
		db, _ := open(e, gorm.Config{}, true)
		err := db.Transaction(func(tx *gorm.DB) error {
			for _, model := range []any{&v1{}, &v2{}, &v2{}, &v3{}} {
				if err := tx.Table("things").AutoMigrate(model); err != nil {
					return err
				}
			}
			return tx.Table("things").Create(&v3{B: new(int64)}).Error
		})
		if err != nil {
			e.Error(err)
		}
		var columns []string
		if err := db.Raw("SELECT column_name FROM information_schema.columns WHERE table_name = 'things' ORDER BY 1").Scan(&columns).Error; err != nil {
			e.Error(err)
		}
		return columns
	})
}

// TestCancel lets one of many callers go.
func TestCancel(t *testing.T) {
	for i, way := range ways {
		t.Run(way.name, func(t *testing.T) {
			stack.Way(t, i)
			stack.Each(t, func(e *stack.Env) {
				db, handle := open(e, way.config, way.conn, way.params...)
				migrate(e, db)
				fill(e, db)
				e.LeavesAlone(handle, func(ctx context.Context) error {
					var authors []author
					return db.WithContext(ctx).Find(&authors).Error
				}, "authors")
			})
		})
	}
}

// TestTraceComments has a comment of its own in each call, as tracing adds it.
// Such reads share with flight_ignore_comments only.
func TestTraceComments(t *testing.T) {
	for _, ignore := range []bool{false, true} {
		t.Run(fmt.Sprintf("flight_ignore_comments=%t", ignore), func(t *testing.T) {
			stack.Each(t, func(e *stack.Env) {
				var params []string
				if ignore && e.Driver == stack.Flightpg {
					params = append(params, "flight_ignore_comments=on")
				}
				db, handle := open(e, gorm.Config{}, false, params...)
				migrate(e, db)
				fill(e, db)
				var calls counter
				read := func(ctx context.Context) error {
					var authors []author
					return db.WithContext(ctx).Clauses(hints.CommentBefore("select", fmt.Sprintf("traceparent='%d'", calls.next()))).Find(&authors).Error
				}
				if ignore {
					e.Shared(handle, stack.Callers, read, "authors")
					return
				}
				if ev := e.Storm(handle, stack.Callers, read, "authors"); ev.Executions[0] != stack.Callers || ev.Joins != 0 {
					e.Errorf("%+v; want an execution for each comment", ev)
				}
			})
		})
	}
}

// TestConnection reads through one connection, which shares until it has written.
func TestConnection(t *testing.T) {
	stack.Each(t, func(e *stack.Env) {
		db, handle := open(e, gorm.Config{}, false)
		migrate(e, db)
		fill(e, db)
		read := func(write bool) func(context.Context) error {
			return func(ctx context.Context) error {
				return db.WithContext(ctx).Connection(func(tx *gorm.DB) error {
					if write {
						if err := tx.Exec("UPDATE labels SET name = name WHERE id = 1").Error; err != nil {
							return err
						}
					}
					return tx.Find(&[]author{}).Error
				})
			}
		}
		e.Shared(handle, stack.Callers, read(false), "authors")
		e.Bypassed(handle, 10, flightpg.ReasonSession, read(true), "authors")
	})
}

package gormtest

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"testing"

	"gorm.io/gorm"
	"gorm.io/gorm/clause"

	"github.com/flightpg/flightpg"
	"github.com/flightpg/flightpg/integration/stacks/internal/stack"
)

// increments are the ways to add one to an author's visits. Each runs one
// UPDATE.
var increments = []struct {
	name string
	do   func(db *gorm.DB) error
}{
	{"Update", func(db *gorm.DB) error {
		return db.Model(&author{}).Where("id = 1").Update("visits", gorm.Expr("visits + 1")).Error
	}},
	{"UpdateColumn", func(db *gorm.DB) error { // without hooks
		return db.Model(&author{Model: gorm.Model{ID: 1}}).UpdateColumn("visits", gorm.Expr("visits + ?", 1)).Error
	}},
	{"Save", func(db *gorm.DB) error {
		var a author
		if err := db.First(&a, 1).Error; err != nil {
			return err
		}
		a.Visits++
		return db.Save(&a).Error
	}},
	{"Updates", func(db *gorm.DB) error {
		return db.Model(&author{}).Where("id = ?", 1).Updates(map[string]any{"visits": gorm.Expr("visits + 1"), "born": noon}).Error
	}},
	{"Exec", func(db *gorm.DB) error {
		return db.Exec("UPDATE authors SET visits = visits + 1 WHERE id = ?", 1).Error
	}},
	{"Returning", func(db *gorm.DB) error {
		var a author
		return db.Model(&a).Clauses(clause.Returning{}).Where("id = ?", 1).Update("visits", gorm.Expr("visits + 1")).Error
	}},
	{"RawReturning", func(db *gorm.DB) error {
		var n int64
		return db.Raw("UPDATE authors SET visits = visits + 1 WHERE id = ? RETURNING visits", 1).Scan(&n).Error
	}},
	{"RawCTE", func(db *gorm.DB) error {
		var n int64
		return db.Raw("WITH up AS (UPDATE authors SET visits = visits + 1 WHERE id = 1 RETURNING visits) SELECT visits FROM up").Scan(&n).Error
	}},
	{"Transaction", func(db *gorm.DB) error {
		return db.Transaction(func(tx *gorm.DB) error {
			var a author
			if err := tx.Clauses(clause.Locking{Strength: "UPDATE"}).First(&a, 1).Error; err != nil {
				return err
			}
			if err := tx.Model(&a).Update("visits", a.Visits+1).Error; err != nil {
				return err
			}
			return tx.Transaction(func(tx *gorm.DB) error { return tx.First(&a, 1).Error }) // a savepoint
		})
	}},
	{"ManualTransaction", func(db *gorm.DB) error {
		tx := db.Begin()
		tx.Exec("UPDATE authors SET visits = visits + 1 WHERE id = 1")
		return tx.Commit().Error
	}},
	{"Connection", func(db *gorm.DB) error {
		return db.Connection(func(tx *gorm.DB) error {
			return tx.Exec("UPDATE authors SET visits = visits + 1 WHERE id = 1").Error
		})
	}},
	{"Generics", func(db *gorm.DB) error {
		_, err := gorm.G[author](db).Where("id = ?", 1).Update(db.Statement.Context, "visits", gorm.Expr("visits + 1"))
		return err
	}},
}

// TestReadYourWrites writes in every way while readers are under way. Those who
// begin to read after a write has returned see it, and each was one statement on
// the server.
func TestReadYourWrites(t *testing.T) {
	for i, way := range ways {
		t.Run(way.name, func(t *testing.T) {
			stack.Way(t, i)
			stack.Each(t, func(e *stack.Env) {
				e.Hold()
				db, handle := open(e, way.config, way.conn, way.params...)
				migrate(e, db)
				fill(e, db)
				e.Watch("authors")
				read := func(ctx context.Context) (n int64, err error) {
					return n, db.WithContext(ctx).Model(&author{}).Select("stack_hold(visits)").Where("id = ?", 1).Scan(&n).Error
				}
				for i, inc := range increments {
					was := int64(i)
					e.SeesWrites(handle, was, was+1, read, func(ctx context.Context) error {
						if err := inc.do(db.WithContext(ctx)); err != nil {
							return fmt.Errorf("%s: %w", inc.name, err)
						}
						// The writer itself, by another read.
						var a author
						if err := db.WithContext(ctx).Take(&a, 1).Error; err != nil || a.Visits != was+1 {
							return fmt.Errorf("%s: its writer reads %d visits, %v; want %d", inc.name, a.Visits, err, was+1)
						}
						return nil
					})
				}
				e.Wrote(map[string]int{"UPDATE authors": len(increments)})
			})
		})
	}
}

// TestWriters lets many write at once, and each look at what it has written,
// while others read all the time.
func TestWriters(t *testing.T) {
	const writers = 24
	for i, way := range ways {
		t.Run(way.name, func(t *testing.T) {
			stack.Way(t, i)
			stack.Compare(t, func(e *stack.Env) any {
				db, handle := open(e, way.config, way.conn, way.params...)
				migrate(e, db)
				fill(e, db)
				e.Watch("authors", "books", "labels")

				ctx, stop := context.WithCancel(e.Context())
				read := make(chan struct{})
				go func() {
					defer close(read)
					for ctx.Err() == nil {
						var n int64
						if err := db.WithContext(ctx).Model(&author{}).Where("name LIKE ?", "writer %").Count(&n).Error; err != nil && ctx.Err() == nil {
							e.Error(err)
						}
						var a author
						if err := db.WithContext(ctx).Preload("Books").Take(&a, 1).Error; err != nil && ctx.Err() == nil {
							e.Error(err)
						}
					}
				}()
				e.Concurrently(writers, func(ctx context.Context, i int) error { return writer(db.WithContext(ctx), i) })
				stop()
				<-read

				var authors []author
				if err := db.Preload("Books", func(db *gorm.DB) *gorm.DB { return db.Order("title") }).Order("name").Find(&authors).Error; err != nil {
					e.Fatal(err)
				}
				for i := range authors { // given by the order of the writers
					authors[i].ID = 0
					for j := range authors[i].Books {
						authors[i].Books[j].ID, authors[i].Books[j].AuthorID = 0, 0
					}
				}
				e.Wrote(map[string]int{
					// Of the twenty-four, eight are deleted, softly, and eight rolled back.
					"INSERT authors": writers + writers/3,
					"UPDATE authors": writers + writers/3,
					"INSERT books":   2 * writers,
					"UPDATE books":   writers, // the upsert's: the server counts both
					"INSERT labels":  writers,
					"UPDATE labels":  writers,
				})
				if s := flightpg.ReadStats(handle); e.Driver == stack.Flightpg && s.Flights == 0 {
					e.Errorf("%+v; want flights", s)
				}
				return authors
			})
		})
	}
}

// writer writes an author and its book, reading after each write.
func writer(db *gorm.DB, i int) error {
	expect := func(what string, got, want any) error {
		if got != want {
			return fmt.Errorf("%s: read %v; want %v", what, got, want)
		}
		return nil
	}
	a := author{Name: fmt.Sprintf("writer %02d", i), Born: noon}
	if err := db.Create(&a).Error; err != nil {
		return err
	}
	var b author
	if err := db.First(&b, a.ID).Error; err != nil {
		return fmt.Errorf("its own author: %w", err)
	}
	if err := expect("name", b.Name, a.Name); err != nil {
		return err
	}
	if err := db.Create(&[]book{{AuthorID: a.ID, Title: "one"}, {AuthorID: a.ID, Title: "two", Pages: 2}}).Error; err != nil {
		return err
	}
	var n int64
	if err := db.Model(&book{}).Where("author_id = ?", a.ID).Count(&n).Error; err != nil {
		return err
	}
	if err := expect("books", n, int64(2)); err != nil {
		return err
	}
	up := book{ID: 0, AuthorID: a.ID, Title: "three"}
	if err := db.Clauses(clause.OnConflict{Columns: []clause.Column{{Name: "id"}}, UpdateAll: true}).Create(&up).Error; err != nil {
		return err
	}
	if err := db.Take(&up, up.ID).Error; err != nil {
		return fmt.Errorf("its upserted book: %w", err)
	}
	if err := db.Clauses(clause.OnConflict{
		Columns: []clause.Column{{Name: "name"}}, DoUpdates: clause.AssignmentColumns([]string{"name"}),
	}).Create(&label{Name: "common"}).Error; err != nil {
		return err
	}
	if err := db.Model(&author{}).Where("id = 1").Update("visits", gorm.Expr("visits + 1")).Error; err != nil {
		return err
	}
	switch i % 3 {
	case 0:
		if err := db.Delete(&a).Error; err != nil { // softly
			return err
		}
		if err := db.Take(&author{}, a.ID).Error; !errors.Is(err, gorm.ErrRecordNotFound) {
			return fmt.Errorf("its deleted author: %w", err)
		}
	case 1:
		err := db.Transaction(func(tx *gorm.DB) error {
			if err := tx.Create(&author{Name: fmt.Sprintf("ghost %d", i), Born: noon}).Error; err != nil {
				return err
			}
			var g author
			if err := tx.Take(&g, "name = ?", fmt.Sprintf("ghost %d", i)).Error; err != nil {
				return fmt.Errorf("in its transaction: %w", err)
			}
			return sql.ErrTxDone // any error rolls back
		})
		if !errors.Is(err, sql.ErrTxDone) {
			return err
		}
		if err := db.Take(&author{}, "name = ?", fmt.Sprintf("ghost %d", i)).Error; !errors.Is(err, gorm.ErrRecordNotFound) {
			return fmt.Errorf("what was rolled back: %w", err)
		}
	}
	return nil
}

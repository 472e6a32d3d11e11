package gormtest

import (
	"context"
	"database/sql"
	"errors"
	"testing"

	"github.com/lib/pq"
	"gorm.io/gorm"
	"gorm.io/gorm/clause"
	"gorm.io/hints"

	"github.com/flightpg/flightpg"
	"github.com/flightpg/flightpg/integration/stacks/internal/stack"
)

type read = stack.Read[*gorm.DB]

// find is the shape of most reads.
func find[T any](f func(db *gorm.DB) *gorm.DB) func(context.Context, *gorm.DB) (any, error) {
	return func(ctx context.Context, db *gorm.DB) (any, error) {
		var dest T
		err := f(db.WithContext(ctx)).Find(&dest).Error
		return dest, err
	}
}

// of a table only
func one(table string) []string { return []string{table} }

var reads = []read{
	{Name: "First", Tables: one("authors"), Do: func(ctx context.Context, db *gorm.DB) (any, error) {
		var a author
		err := db.WithContext(ctx).First(&a, 3).Error
		return a, err
	}},
	{Name: "TakeByStruct", Tables: one("authors"), Do: func(ctx context.Context, db *gorm.DB) (any, error) {
		var a author
		err := db.WithContext(ctx).Where(&author{Name: "author 4"}).Take(&a).Error
		return a, err
	}},
	{Name: "LastByMap", Tables: one("authors"), Do: func(ctx context.Context, db *gorm.DB) (any, error) {
		var a author
		err := db.WithContext(ctx).Where(map[string]any{"visits": 0}).Last(&a).Error
		return a, err
	}},
	{Name: "NotFound", Tables: one("authors"), Do: func(ctx context.Context, db *gorm.DB) (any, error) {
		var a author
		err := db.WithContext(ctx).First(&a, "name = ?", "nobody").Error
		if errors.Is(err, gorm.ErrRecordNotFound) {
			return err.Error(), nil
		}
		return nil, err
	}},
	{Name: "In", Tables: one("authors"), Do: find[[]author](func(db *gorm.DB) *gorm.DB {
		return db.Where("id IN ?", []int{1, 2, 5}).Or("name LIKE ?", "%9").Not("visits > ?", 7).Order("id")
	})},
	{Name: "Between", Tables: one("authors"), Do: find[[]author](func(db *gorm.DB) *gorm.DB {
		return db.Where("born BETWEEN ? AND ?", noon.AddDate(-36, 0, 0), noon.AddDate(-32, 0, 0)).Order("born")
	})},
	{Name: "Page", Tables: one("authors"), Do: find[[]author](func(db *gorm.DB) *gorm.DB {
		return db.Select("id", "name", "email").Order("name DESC").Limit(3).Offset(4)
	})},
	{Name: "Cursor", Tables: one("authors"), Do: find[[]author](func(db *gorm.DB) *gorm.DB {
		return db.Where("(name, id) > (?, ?)", "author 3", 4).Order("name, id").Limit(2)
	})},
	{Name: "Count", Tables: one("books"), Do: func(ctx context.Context, db *gorm.DB) (any, error) {
		var n int64
		err := db.WithContext(ctx).Model(&book{}).Where("pages > ?", 100).Count(&n).Error
		return n, err
	}},
	{Name: "Pluck", Tables: one("books"), Do: func(ctx context.Context, db *gorm.DB) (any, error) {
		var titles []string
		err := db.WithContext(ctx).Model(&book{}).Distinct().Order("title").Pluck("title", &titles).Error
		return titles, err
	}},
	{Name: "GroupHavingScan", Tables: one("books"), Do: func(ctx context.Context, db *gorm.DB) (any, error) {
		var rows []struct {
			AuthorID uint
			Total    float64
			Longest  *int
		}
		err := db.WithContext(ctx).Model(&book{}).Select("author_id, sum(price) AS total, max(pages) AS longest").
			Group("author_id").Having("max(pages) > ?", 204).Order("author_id").Scan(&rows).Error
		return rows, err
	}},
	{Name: "Joins", Tables: one("books"), Do: find[[]book](func(db *gorm.DB) *gorm.DB {
		return db.Joins("Author").Where("books.pages > ?", 200).Order("books.id")
	})},
	{Name: "SubQuery", Tables: one("books"), Do: find[[]author](func(db *gorm.DB) *gorm.DB {
		return db.Where("id IN (?)", db.Session(&gorm.Session{NewDB: true}).Model(&book{}).Select("author_id").Where("pages > 207")).Order("id")
	})},
	{Name: "Preload", Tables: []string{"authors", "books", "author_labels", "labels"}, Do: func(ctx context.Context, db *gorm.DB) (any, error) {
		var authors []author
		err := db.WithContext(ctx).Order("id").Where("id < ?", 6).
			Preload("Books", func(db *gorm.DB) *gorm.DB { return db.Order("books.id") }).
			Preload("Shelf", func(db *gorm.DB) *gorm.DB { return db.Order("labels.id") }).
			Find(&authors).Error
		return authors, err
	}},
	{Name: "PreloadBelongsTo", Tables: []string{"books", "authors"}, Do: find[[]book](func(db *gorm.DB) *gorm.DB {
		return db.Preload("Author", "visits = ?", 0).Order("id").Limit(4)
	})},
	{Name: "Association", Tables: one("labels"), Do: func(ctx context.Context, db *gorm.DB) (any, error) {
		var labels []label
		err := db.WithContext(ctx).Model(&author{Model: gorm.Model{ID: 2}}).Order("labels.id").Association("Shelf").Find(&labels)
		return labels, err
	}},
	{Name: "Unscoped", Tables: one("authors"), Do: find[[]author](func(db *gorm.DB) *gorm.DB {
		return db.Unscoped().Where("deleted_at IS NULL").Order("id")
	})},
	{Name: "Raw", Tables: one("authors"), Do: func(ctx context.Context, db *gorm.DB) (any, error) {
		var rows []map[string]any
		err := db.WithContext(ctx).Raw(`WITH recent AS (SELECT * FROM authors WHERE id > @low)
			SELECT r.name, r.rating, r.info, r.tags, r.photo, lower(r.email) AS email, r.created_at
			FROM recent r ORDER BY r.name`, sql.Named("low", 5)).Scan(&rows).Error
		return rows, err
	}},
	{Name: "Rows", Tables: one("books"), Do: func(ctx context.Context, db *gorm.DB) (any, error) {
		rows, err := db.WithContext(ctx).Model(&book{}).Order("id").Rows()
		if err != nil {
			return nil, err
		}
		defer rows.Close()
		var books []book
		for rows.Next() {
			var b book
			if err := db.ScanRows(rows, &b); err != nil {
				return nil, err
			}
			books = append(books, b)
		}
		return books, rows.Err()
	}},
	{Name: "Row", Tables: one("books"), Do: func(ctx context.Context, db *gorm.DB) (any, error) {
		var avg float64
		err := db.WithContext(ctx).Model(&book{}).Select("avg(pages)").Row().Scan(&avg)
		return avg, err
	}},
	{Name: "JSONAndArray", Tables: one("authors"), Do: find[[]author](func(db *gorm.DB) *gorm.DB {
		return db.Where("info->'extra'->>'n' = ?", "4").Or("? = ANY(tags)", "t1").Order("id")
	})},
	{Name: "Generics", Tables: one("authors"), Do: func(ctx context.Context, db *gorm.DB) (any, error) {
		return gorm.G[author](db).Where("id < ?", 4).Order("id").Find(ctx)
	}},
	{Name: "Hint", Tables: one("authors"), Do: find[[]author](func(db *gorm.DB) *gorm.DB {
		return db.Clauses(hints.CommentBefore("select", "route=/authors"), hints.New("SeqScan(authors)")).Order("id").Limit(2)
	})},

	{Name: "PointerArgument", Tables: one("authors"), Do: func(ctx context.Context, db *gorm.DB) (any, error) {
		email := "2@example.org"
		var a author
		err := db.WithContext(ctx).Where("email = ?", &email).Take(&a).Error
		return a, err
	}},
	// A nullable foreign key is a *uint, and GORM passes it on as that.
	{Name: "PreloadByPointer", Tables: []string{"books", "authors"}, Do: find[[]book](func(db *gorm.DB) *gorm.DB {
		return db.Preload("Editor").Order("id").Limit(4)
	})},
	{Name: "PqArrayArgument", Tables: one("authors"), Do: find[[]author](func(db *gorm.DB) *gorm.DB {
		return db.Where("tags @> ?", pq.StringArray{"t1"}).Order("id")
	})},

	// What is not shared, and why.
	{Name: "Locking", Tables: one("authors"), Bypass: flightpg.ReasonRowLock, Do: find[[]author](func(db *gorm.DB) *gorm.DB {
		return db.Clauses(clause.Locking{Strength: "SHARE"}).Where("id = ?", 1)
	})},
	{Name: "Transaction", Tables: one("authors"), Bypass: flightpg.ReasonTransaction, Do: func(ctx context.Context, db *gorm.DB) (any, error) {
		var a author
		err := db.WithContext(ctx).Transaction(func(tx *gorm.DB) error { return tx.First(&a, 2).Error }, &sql.TxOptions{ReadOnly: true})
		return a, err
	}},
	{Name: "Random", Tables: one("authors"), Bypass: flightpg.ReasonVolatileFunction, Do: func(ctx context.Context, db *gorm.DB) (any, error) {
		var n []int
		err := db.WithContext(ctx).Model(&author{}).Select("1").Order("random()").Scan(&n).Error
		return n, err
	}},
}

// TestReads runs every read by many callers at once.
func TestReads(t *testing.T) {
	for i, way := range ways {
		t.Run(way.name, func(t *testing.T) {
			stack.Way(t, i)
			stack.Reads(t, func(e *stack.Env) (*gorm.DB, *sql.DB) {
				db, handle := open(e, way.config, way.conn, way.params...)
				migrate(e, db)
				fill(e, db)
				return db, handle
			}, reads)
		})
	}
}

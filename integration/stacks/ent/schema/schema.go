// Package schema is what ent generates the code of package gen from: authors
// and their books.
package schema

import (
	"time"

	"entgo.io/ent"
	"entgo.io/ent/schema/edge"
	"entgo.io/ent/schema/field"
)

// Author has books.
type Author struct{ ent.Schema }

// Fields implements ent.Interface.
func (Author) Fields() []ent.Field {
	return []ent.Field{
		field.String("name").Unique(),
		field.Time("born").Optional().Nillable(),
	}
}

// Edges implements ent.Interface.
func (Author) Edges() []ent.Edge {
	return []ent.Edge{edge.To("books", Book.Type)}
}

// Book is by one author.
type Book struct{ ent.Schema }

// Fields implements ent.Interface.
func (Book) Fields() []ent.Field {
	return []ent.Field{
		field.String("title"),
		field.Float("price"),
		field.Int("sold").Default(0),
		field.JSON("tags", []string{}).Optional(),
		field.Time("added").Default(time.Now),
	}
}

// Edges implements ent.Interface.
func (Book) Edges() []ent.Edge {
	return []ent.Edge{edge.From("author", Author.Type).Ref("books").Unique().Required()}
}

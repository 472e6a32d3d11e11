-- name: GetAuthor :one
SELECT * FROM authors
WHERE id = $1 LIMIT 1;

-- name: ListAuthors :many
SELECT * FROM authors
ORDER BY name
LIMIT $1 OFFSET $2;

-- name: FindAuthors :many
-- An argument that is NULL matches all.
SELECT id, name FROM authors
WHERE name LIKE coalesce(sqlc.narg('pattern'), name)
  AND (sqlc.narg('mood')::mood IS NULL OR mood = sqlc.narg('mood')::mood)
  AND born >= sqlc.arg('since')
ORDER BY id;

-- name: AuthorsByIDs :many
SELECT id, name, tags FROM authors
WHERE id = ANY(sqlc.arg('ids')::bigint[])
ORDER BY id;

-- name: AuthorByToken :one
SELECT id, name, token FROM authors
WHERE token = $1;

-- name: CountAuthors :one
SELECT count(*) FROM authors;

-- name: BooksWithAuthor :many
SELECT sqlc.embed(books), sqlc.embed(authors)
FROM books JOIN authors ON authors.id = books.author_id
WHERE books.pages > $1
ORDER BY books.id;

-- name: Totals :many
SELECT a.name, count(b.id) AS books, coalesce(sum(b.price), 0)::numeric AS total, max(b.pages) AS longest
FROM authors a LEFT JOIN books b ON b.author_id = a.id
GROUP BY a.id
ORDER BY a.name;

-- name: LockAuthor :one
SELECT visits FROM authors
WHERE id = $1
FOR UPDATE;

-- name: HeldVisits :one
-- Waits where the test's gate is.
SELECT stack_hold(visits) AS visits FROM authors
WHERE id = $1;

-- name: CreateAuthor :one
INSERT INTO authors (name, email, rating, mood, info, tags, photo, token, born)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)
RETURNING *;

-- name: CreateBook :exec
INSERT INTO books (author_id, title, pages, price)
VALUES ($1, $2, $3, $4);

-- name: UpsertBook :one
INSERT INTO books (author_id, title, pages, price)
VALUES ($1, $2, $3, $4)
ON CONFLICT (author_id, title) DO UPDATE
SET pages = excluded.pages, price = excluded.price
RETURNING id, pages;

-- name: Visit :one
UPDATE authors SET visits = visits + 1
WHERE id = $1
RETURNING visits;

-- name: VisitExec :exec
UPDATE authors SET visits = visits + 1
WHERE id = $1;

-- name: VisitRows :execrows
UPDATE authors SET visits = visits + 1
WHERE id = $1;

-- name: VisitByCTE :one
WITH up AS (UPDATE authors SET visits = visits + 1 WHERE id = $1 RETURNING visits)
SELECT visits FROM up;

-- name: DeleteAuthor :execresult
DELETE FROM authors
WHERE id = $1;

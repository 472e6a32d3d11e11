-- The tests make these tables from this file, and sqlc the code in db and prepared.
CREATE TYPE mood AS ENUM ('calm', 'tense');

CREATE TABLE authors (
	id       bigserial PRIMARY KEY,
	name     text NOT NULL UNIQUE,
	email    text,
	rating   double precision,
	mood     mood NOT NULL DEFAULT 'calm',
	info     jsonb NOT NULL DEFAULT '{}',
	tags     text[] NOT NULL DEFAULT '{}',
	photo    bytea,
	token    uuid,
	born     timestamptz NOT NULL,
	visits   bigint NOT NULL DEFAULT 0
);

CREATE TABLE books (
	id        bigserial PRIMARY KEY,
	author_id bigint NOT NULL REFERENCES authors ON DELETE CASCADE,
	title     text NOT NULL,
	pages     integer NOT NULL,
	price     numeric(10, 2) NOT NULL,
	UNIQUE (author_id, title)
);

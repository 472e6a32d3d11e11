-- For TestExtensions: what extensions are given to read. What is volatile counts itself
-- in hits.
CREATE SEQUENCE hits;
SELECT nextval('hits'); -- from now on each call shows
CREATE FUNCTION hit() RETURNS int VOLATILE LANGUAGE sql AS $$SELECT nextval('public.hits')::int$$;
CREATE TABLE documents (id int, doc text, xml text);
INSERT INTO documents VALUES (1, 'x', '<a>x</a>');
CREATE TABLE tree (id int, parent int);
INSERT INTO tree VALUES (1, NULL), (2, 1);
CREATE VIEW counted AS SELECT id, parent FROM tree WHERE hit() > 0;

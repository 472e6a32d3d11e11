-- For sqlc only: the tests have stack_hold from the package stack.
CREATE FUNCTION stack_hold(n bigint) RETURNS bigint STABLE LANGUAGE sql AS 'SELECT n';

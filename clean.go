package flightpg

import (
	"context"
	"math/rand/v2"
	"reflect"
	"strconv"

	"github.com/jackc/pgx/v5/pgtype"
)

// What nobody knows of (a function of somebody's, a procedure, a *pgx.Conn that was
// handed out) may have left anything in a session, and nobody counts on it once the
// session is given back. It is made as good as new then, in a goroutine, or closed, before
// others get it.
//
// DISCARD ALL takes away what a session has by PostgreSQL's own means: settings, roles,
// temporary tables, prepared statements, cursors, channels, advisory locks, what
// sequences gave. It does not know of
//   - what code that is loaded keeps in the process: other languages have variables of
//     the session, extensions in C have what they like. Where a database has such code
//     that is not known to keep nothing, nothing is cleaned.
//   - what hooks have set up when the connection was opened. With these neither.
//   - types that were registered with pgx: that session is closed.
//   - a setting with a dot in its name: the server then knows it, as an empty string, as
//     after a SET LOCAL.
//
// Sessions that cannot be cleaned stay with their connection, as with pgx, and reads of its
// later users are shared without them.

// cleans reports whether sessions can be cleaned, as far as is known.
func (c *Connector) cleans() bool {
	return c.source.config != nil && !c.source.sets && !c.source.pooled && !c.stains.Load()
}

// giveBack gives a session back that is not to serve others as it is.
func (c *Connector) giveBack(l *lease) {
	if !c.cleans() || l.bad {
		l.bad = true
		c.sessions.release(l)
		return
	}
	go func() {
		defer c.sessions.release(l)
		l.bad = l.bad || !l.clean()
	}()
}

// clean makes a session as good as new. It reports false if that cannot be done.
func (s *session) clean() (ok bool) {
	defer func() {
		if recover() != nil { // of pgx, at what no server says: see ask
			ok = false
		}
	}()
	if s.pgx == nil || s.dead() || s.pgx.Conn().PgConn().IsBusy() || !s.idle() || !untouched(s.pgx.Conn().TypeMap()) {
		return false
	}
	conn := s.pgx.Conn()
	ctx, cancel := context.WithTimeout(context.Background(), closePatience)
	defer cancel()
	if !s.c.cleanable(ctx, s) {
		return false
	}
	for _, st := range s.stmts.byText {
		_ = st.Close() // stdlib counts them
	}
	s.stmts = stmtCache{}
	if _, err := ask(ctx, conn.PgConn(), "DISCARD ALL"); err != nil {
		s.c.stains.Store(s.c.stains.Load() || !s.dead()) // it is no PostgreSQL, or one that does not let it
		return false
	}
	// DISCARD ALL forgets the role that ALTER ROLE … SET role has given the session, and
	// leaves the seed of random() that somebody may know.
	if _, err := ask(ctx, conn.PgConn(), "RESET ROLE; SELECT pg_catalog.setseed(0."+strconv.FormatUint(rand.Uint64(), 10)+")"); err != nil {
		return false
	}
	if err := conn.DeallocateAll(ctx); err != nil { // for pgx to know
		return false
	}
	gone, stop := context.WithCancel(ctx)
	stop()
	for {
		if _, err := conn.WaitForNotification(gone); err != nil {
			break // there are no more that were received
		}
	}
	s.failed = ""
	return s.idle()
}

// cleanable asks whether a database's sessions can be cleaned, once for each picture of
// its catalog.
func (c *Connector) cleanable(ctx context.Context, s *session) bool {
	picture := c.catalogs.current.Load()
	if picture != nil && picture.gen == c.cleanedBy.Load() {
		return true
	}
	pg := s.pgx.Conn().PgConn()
	results, err := ask(ctx, pg, "SELECT pg_catalog.pg_backend_pid() OPERATOR(pg_catalog.=) "+strconv.FormatUint(uint64(pg.PID()), 10)+keepsNothing)
	if err != nil {
		return false
	}
	if cell(results, 0) != "t" {
		c.stains.Store(true)
		return false
	}
	if picture != nil {
		c.cleanedBy.Store(picture.gen)
	}
	return true
}

// keepsNothing, behind whether the session leads to the server itself, asks whether all code
// that it can have run keeps nothing in the process but caches and what RESET ALL resets:
// built-ins, SQL, PL/pgSQL, and what is in C of extensions that are known.
const keepsNothing = `
AND NOT EXISTS (SELECT FROM pg_catalog.pg_language WHERE lanname OPERATOR(pg_catalog.<>) ALL ('{internal,c,sql,plpgsql}'::pg_catalog.name[]))
AND NOT EXISTS (SELECT FROM pg_catalog.pg_proc p WHERE p.prolang OPERATOR(pg_catalog.=) 13 AND p.oid OPERATOR(pg_catalog.>=) 16384
  AND NOT EXISTS (SELECT FROM pg_catalog.pg_depend d JOIN pg_catalog.pg_extension e ON d.refobjid OPERATOR(pg_catalog.=) e.oid
    WHERE d.objid OPERATOR(pg_catalog.=) p.oid AND d.classid OPERATOR(pg_catalog.=) 1255 AND d.deptype OPERATOR(pg_catalog.=) 'e'
    AND d.refclassid OPERATOR(pg_catalog.=) 3079 AND e.extname OPERATOR(pg_catalog.=) ANY ('{amcheck,autoinc,bloom,btree_gin,btree_gist,
citext,cube,dict_int,dict_xsyn,earthdistance,fuzzystrmatch,hstore,insert_username,intagg,intarray,lo,ltree,moddatetime,pageinspect,
pg_buffercache,pg_freespacemap,pg_prewarm,pg_stat_statements,pg_trgm,pg_visibility,pgcrypto,pgrowlocks,pgstattuple,refint,seg,
tablefunc,tcn,tsm_system_rows,tsm_system_time,unaccent,"uuid-ossp",vector}'::pg_catalog.name[])))`

// untouched reports whether nobody has registered anything with a type map.
func untouched(m *pgtype.Map) bool {
	names := reflect.ValueOf(m).Elem().FieldByName("nameToType")
	return factsOf(m) == plainTypes && names.Kind() == reflect.Map && names.Len() == 0 &&
		len(m.TryWrapScanPlanFuncs) == len(defaultTypes.TryWrapScanPlanFuncs)
}

package flightpg

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"sync"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// timeline says which primary a connection leads to, where the DSN names several
// hosts: the cluster, and how many promotions lie behind its data. A standby that
// is promoted begins a new timeline; an old primary that lives on keeps its own,
// and what is on it is not what this process has written since.
type timeline struct {
	cluster string // its system identifier
	number  uint64
}

// primary is the newest primary of a database that this process has met.
type primary struct {
	mu sync.Mutex // guards at; no I/O while it is held
	at timeline
}

// meet notes that there is a connection to a primary on tl, and reports false if
// it is an old one. Another cluster cannot be compared: it takes the place.
func (p *primary) meet(tl timeline) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.at.cluster == tl.cluster && p.at.number > tl.number {
		return false
	}
	p.at = tl
	return true
}

func (p *primary) is(tl timeline) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.at == tl
}

// timelineKey is where a pgx connection keeps its timeline.
const timelineKey = "github.com/flightpg/flightpg timeline"

var errOldPrimary = errors.New("flightpg: an old primary: another host has been promoted since")

// follow asks a connection for its timeline, once, and refuses an old primary.
func (p *primary) follow(ctx context.Context, pg *pgconn.PgConn) error {
	if tl, ok := pg.CustomData()[timelineKey].(timeline); ok {
		if tl != (timeline{}) && !p.is(tl) {
			return errOldPrimary
		}
		return nil
	}
	results, err := ask(ctx, pg, "SELECT system_identifier, pg_catalog.pg_walfile_name(pg_catalog.pg_current_wal_lsn()) FROM pg_catalog.pg_control_system()")
	var pgErr *pgconn.PgError
	if errors.As(err, &pgErr) && !pg.IsClosed() {
		pg.CustomData()[timelineKey] = timeline{} // not PostgreSQL, or not allowed
		return nil
	}
	if err != nil {
		return err
	}
	cluster, segment := cell(results, 0), cell(results, 1)
	if cluster == "" || len(segment) < 8 {
		return fmt.Errorf("flightpg: the server's timeline: no answer in %q, %q", clip(cluster), clip(segment))
	}
	number, err := strconv.ParseUint(segment[:8], 16, 32)
	if err != nil {
		return fmt.Errorf("flightpg: the server's timeline: %w", err)
	}
	tl := timeline{cluster, number}
	if !p.meet(tl) {
		return errOldPrimary
	}
	pg.CustomData()[timelineKey] = tl
	return nil
}

// passOld makes pgx pass by old primaries, as by hosts that do not fit
// target_session_attrs.
func (p *primary) passOld(pc *pgx.ConnConfig) {
	validate := pc.ValidateConnect
	pc.ValidateConnect = func(ctx context.Context, pg *pgconn.PgConn) error {
		if err := validate(ctx, pg); err != nil {
			return err
		}
		return p.follow(ctx, pg)
	}
}

// old reports whether the session leads to a primary that is not the database's
// any more, or is a flight's and may look for names in other places than those that are
// opened now.
func (s *session) old() bool {
	if s.flights && !s.pooled && s.paths != s.c.paths.Load() && s.c.comparesPaths() {
		return true
	}
	return s.follow != nil && s.timeline() != (timeline{}) && !s.follow.is(s.timeline())
}

// timeline is the zero value where the server does not tell it: then nobody knows
// which primary it is, and flights go elsewhere, see arm.
func (s *session) timeline() timeline {
	tl, _ := s.pgx.Conn().PgConn().CustomData()[timelineKey].(timeline)
	return tl
}

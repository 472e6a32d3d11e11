//go:build unix

package consistency

import (
	"context"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// pgxSide is the way without flightpg: what any other program would do.
type pgxSide struct{ pool *pgxpool.Pool }

var _ side = (*pgxSide)(nil)

func newPgxSide(ctx context.Context, p *Plan) (*pgxSide, error) {
	dsn, err := addParams(p.DSN, "pool_max_conns=8")
	if err != nil {
		return nil, err
	}
	pool, err := pgxpool.New(ctx, dsn)
	if err != nil {
		return nil, err
	}
	return &pgxSide{pool}, nil
}

func (s *pgxSide) close()          { s.pool.Close() }
func (s *pgxSide) figures(*Result) {}

func (s *pgxSide) read(ctx context.Context, c *client, key int64, slow bool) (via Via, val int64, err error) {
	text := sqlRead
	if slow {
		text = sqlSlow
	}
	err = s.pool.QueryRow(ctx, text, key).Scan(&val)
	return ViaPgx, val, err
}

func (s *pgxSide) write(ctx context.Context, c *client, key, val int64) outcome {
	o := outcome{kind: Write}
	switch c.rng.IntN(5) {
	case 0:
		o.via = ViaPgxTx
		o.err = pgx.BeginFunc(ctx, s.pool, func(tx pgx.Tx) error {
			return oneTag(tx.Exec(ctx, sqlWrite, key, val))
		})
	case 1, 2:
		o.via, o.kind = ViaPgxReturning, Swap
		o.err = s.pool.QueryRow(ctx, sqlReturning, key, val).Scan(&o.out)
	case 3:
		o.via = ViaPgxBatch
		var b pgx.Batch
		b.Queue("SELECT 1")
		b.Queue(sqlWrite, key, val)
		o.err = s.pool.SendBatch(ctx, &b).Close()
	default:
		o.via = ViaPgxExec
		o.err = oneTag(s.pool.Exec(ctx, sqlWrite, key, val))
	}
	return o
}

package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgproto3"

	"github.com/flightpg/flightpg/bench/internal/stats"
)

// What is left when a driver costs nothing: the server's own work, the system calls
// of a connection, and database/sql. A ratio above that cannot be reached on the
// machine, however a driver is written.

// floorGroup is how many reads travel together, as in flightpg's pipeline.
const floorGroup = 16

// bareGroups returns what a read of one row takes the client and the server, in µs
// of CPU time, when nothing is done but to write groups of ready-made messages to a
// connection and to read bytes until the last answer is there.
func (b *bench) bareGroups(ctx context.Context) (client, server float64, err error) {
	conn, err := pgx.Connect(ctx, b.dsns[direct])
	if err != nil {
		return 0, 0, err
	}
	pid := int(conn.PgConn().PID())
	if _, err := conn.Prepare(ctx, "bare", rowText); err != nil {
		return 0, 0, errors.Join(err, conn.Close(ctx))
	}
	raw, err := conn.PgConn().Hijack()
	if err != nil {
		return 0, 0, errors.Join(err, conn.Close(ctx))
	}
	defer raw.Conn.Close()
	var out []byte
	for i := range floorGroup {
		bind := pgproto3.Bind{
			PreparedStatement:    "bare",
			ParameterFormatCodes: []int16{pgx.BinaryFormatCode},
			Parameters:           [][]byte{binary.BigEndian.AppendUint32(nil, uint32(i*1000+1))},
			ResultFormatCodes:    []int16{pgx.TextFormatCode, pgx.BinaryFormatCode},
		}
		if out, err = bind.Encode(out); err != nil {
			return 0, 0, err
		}
		if out, err = (&pgproto3.Execute{}).Encode(out); err != nil {
			return 0, 0, err
		}
	}
	if out, err = (&pgproto3.Sync{}).Encode(out); err != nil {
		return 0, 0, err
	}
	in := make([]byte, 8<<10)
	group := func() error {
		if _, err := raw.Conn.Write(out); err != nil {
			return err
		}
		for {
			n, err := raw.Conn.Read(in)
			if err != nil {
				return err
			}
			if n >= len(ready) && string(in[n-len(ready):n]) == ready {
				return nil
			}
		}
	}
	const groups = 2000
	for range groups / 4 {
		if err := group(); err != nil {
			return 0, 0, err
		}
	}
	serverBefore, clientBefore := running(pid, statOf(pid)), clientCPU()
	for range groups {
		if err := group(); err != nil {
			return 0, 0, err
		}
	}
	const reads = groups * floorGroup
	client = float64(clientCPU()-clientBefore) / reads / float64(time.Microsecond)
	server = (running(pid, statOf(pid)) - serverBefore) / reads / float64(time.Microsecond)
	return client, server, nil
}

// ready is a ReadyForQuery message, outside of a transaction.
const ready = "Z\x00\x00\x00\x05I"

// floors notes what bareGroups says.
func (b *bench) floors(ctx context.Context) error {
	if b.server == nil || b.server.PID() == 0 {
		return nil // nobody knows what the server takes
	}
	client, server, err := b.bareGroups(ctx)
	if err != nil {
		return fmt.Errorf("bare groups: %w", err)
	}
	b.rep.addLayer(layerBareClient, layerBare, client)
	b.rep.addLayer(layerBareServer, layerBare, server)
	return nil
}

// limits notes how many times pgx's rate unique reads could have with as much CPU
// time, if a driver added nothing to database/sql, whose callers park, and to bare
// groups.
func (b *bench) limits() {
	bareClient, bareServer := stats.Median(b.rep.layer(layerBareClient, layerBare)), stats.Median(b.rep.layer(layerBareServer, layerBare))
	for _, c := range b.rep.Cells {
		native, park := c.result(pgx16), c.result(parking)
		if c.Workload != "unique 1 row" || native == nil || park == nil {
			continue
		}
		both := func(f *figures) *float64 {
			sum := f.ClientCPU + f.ServerCPU
			return &sum
		}
		least := park.median(func(f *figures) *float64 { return &f.ClientCPU })/1e3 + bareClient + bareServer
		limit := native.median(both) / 1e3 / least
		b.rep.addLayer("limit of rate × of "+c.String()+": "+layerBare+" and database/sql alone", pgx16, limit)
		fmt.Fprintf(os.Stdout, "%s: at most × %s here, if the driver took nothing\n", c, short(limit))
	}
}

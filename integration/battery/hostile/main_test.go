// Package hostile gives flightpg what nobody should: a server that lies, DSNs, SQL
// texts and arguments made to break it, keys made to collide, and a password that
// must not show.
//
//	Server      a server in memory speaks the protocol as PostgreSQL does, but for
//	            one moment of the conversation, at which a script that follows from
//	            a seed twists its answer. The same script is told over pgx's own
//	            driver; flightpg must give the same, or an error.
//	Text        SQL made to cost time or stack
//	Arguments   values of types made at random, and hand-picked bad ones, on a real
//	            server: what pgx says of them is what flightpg says
//	Collisions  keys made to look alike, and a build in which all hashes are equal
//	Secret      the password in everything that the driver says
package hostile

import (
	"testing"

	"github.com/flightpg/flightpg/internal/leak"
	"github.com/flightpg/flightpg/internal/pgtest"
)

const part = "hostile"

func TestMain(m *testing.M) {
	leak.Main(func() int { return pgtest.Run(m) })
}

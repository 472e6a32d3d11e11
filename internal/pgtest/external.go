package pgtest

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"strings"

	"github.com/jackc/pgx/v5"
)

// external is the server of FLIGHTPG_TEST_DSN. It is not ours to start or stop.
type external struct{ url *url.URL }

var _ instance = (*external)(nil)

// openExternal makes a URL of the variable's value, so that the database in it
// can be replaced. The errors do not repeat the value: it may have a password.
func openExternal(dsn string) (instance, error) {
	// pgx accepts anything else as keywords and values.
	if !strings.HasPrefix(dsn, "postgres://") && !strings.HasPrefix(dsn, "postgresql://") {
		settings, err := keywordValues(dsn)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", EnvDSN, err)
		}
		dsn = (&url.URL{Scheme: "postgres", Path: "/", RawQuery: settings.Encode()}).String()
	}
	if _, err := pgx.ParseConfig(dsn); err != nil { // it hides the password
		return nil, fmt.Errorf("%s: %w", EnvDSN, err)
	}
	u, err := url.Parse(dsn)
	if err != nil {
		return nil, fmt.Errorf("%s: not a URL that a database can be set in", EnvDSN)
	}
	// Where pgx takes the database from the query, the path must have it.
	query := u.Query()
	for _, name := range []string{"dbname", "database"} {
		if db := query.Get(name); db != "" {
			u.Path = "/" + db
		}
		query.Del(name)
	}
	u.RawQuery = query.Encode()
	return &external{u}, nil
}

// keywordValues parses a DSN such as host=localhost password='a b'.
func keywordValues(dsn string) (url.Values, error) {
	settings := url.Values{}
	for {
		dsn = strings.TrimLeft(dsn, " \t\r\n")
		if dsn == "" {
			return settings, nil
		}
		key, rest, ok := strings.Cut(dsn, "=")
		if !ok {
			return nil, errors.New("keyword without a value")
		}
		rest = strings.TrimLeft(rest, " \t\r\n")
		quoted := strings.HasPrefix(rest, "'")
		if quoted {
			rest = rest[1:]
		}
		var value strings.Builder
		i := 0
		for ; i < len(rest); i++ {
			ch := rest[i]
			if quoted && ch == '\'' || !quoted && strings.IndexByte(" \t\r\n", ch) >= 0 {
				break
			}
			if ch == '\\' && i+1 < len(rest) {
				i++
				ch = rest[i]
			}
			value.WriteByte(ch)
		}
		if quoted {
			if i == len(rest) {
				return nil, errors.New("unterminated quoted value")
			}
			i++
		}
		settings.Set(strings.TrimSpace(key), value.String())
		dsn = rest[i:]
	}
}

func (e *external) addresses() (tcp, socket *url.URL) {
	if cfg, err := pgx.ParseConfig(e.url.String()); err == nil && strings.HasPrefix(cfg.Host, "/") {
		return e.url, e.url
	}
	return e.url, nil
}

func (e *external) restart(context.Context) error {
	return fmt.Errorf("%w by the server of %s", errors.ErrUnsupported, EnvDSN)
}

func (e *external) crash(context.Context, os.Signal) error {
	return fmt.Errorf("%w by the server of %s", errors.ErrUnsupported, EnvDSN)
}

func (e *external) pid() int { return 0 }

func (e *external) log() string { return "" }

func (e *external) stop() error { return nil }

package flightpg

import (
	"fmt"
	"net/url"
	"strconv"
	"strings"
	"time"
)

// param is one parameter of the DSN that is flightpg's own.
type param struct {
	name string
	want string // what is allowed, for errors and documentation
	set  func(c *Config, value string) error
}

// params are flightpg's DSN parameters. All are taken out before pgx sees the
// DSN.
var params = []param{
	{"flight_mode", "fenced, strict, join or off", func(c *Config, v string) (err error) {
		c.Mode, err = ParseMode(v)
		return err
	}},
	{"flight_width", "a number from 1 to 1000", func(c *Config, v string) error {
		return setInt(&c.Width, v, 1, maxWidth)
	}},
	{"flight_max_result", "a size such as 65536, 512kB or 1MB, above 0", func(c *Config, v string) error {
		return setSize(&c.MaxResult, v)
	}},
	{"flight_memory", "a size such as 65536, 512kB or 64MB, above 0", func(c *Config, v string) error {
		return setSize(&c.Memory, v)
	}},
	{"flight_conns", "a number from 0 (no limit) up", func(c *Config, v string) error {
		return setInt(&c.FlightConns, v, 0, maxConns)
	}},
	{"session_conns", "a number from 0 (no limit) up", func(c *Config, v string) error {
		return setInt(&c.SessionConns, v, 0, maxConns)
	}},
	{"flight_timeout", "a duration such as 500ms or 5s, or 0 for none", func(c *Config, v string) error {
		return setDuration(&c.Timeout, v)
	}},
	{"flight_guard", "auto, session, transaction or off", func(c *Config, v string) (err error) {
		c.Guard, err = parseGuard(v)
		return err
	}},
	{"flight_executor", "auto, pipeline or generic", func(c *Config, v string) (err error) {
		c.Executor, err = parseExecutor(v)
		return err
	}},
	{"flight_catalog_ttl", "a duration such as 30s or 5m, above 0", func(c *Config, v string) error {
		if err := setDuration(&c.CatalogTTL, v); err != nil || c.CatalogTTL == 0 {
			return errRange
		}
		return nil
	}},
	{"flight_trust_declared", "on or off", func(c *Config, v string) error {
		return setBool(&c.TrustDeclared, v)
	}},
	{"flight_rls", "on or off", func(c *Config, v string) error {
		return setBool(&c.RLS, v)
	}},
	{"flight_window", "a duration such as 20ms, or 0 for none", func(c *Config, v string) error {
		return setDuration(&c.Window, v)
	}},
	{"flight_ignore_comments", "on or off", func(c *Config, v string) error {
		return setBool(&c.IgnoreComments, v)
	}},
}

const (
	maxWidth = 1000
	maxConns = 1 << 20
)

func setInt(to *int, v string, low, high int) error {
	n, err := strconv.Atoi(v)
	if err != nil || n < low || n > high {
		return errRange
	}
	*to = n
	return nil
}

// setSize reads a size as PostgreSQL's settings do: a number of bytes, or of a
// unit that is a power of 1024.
func setSize(to *int64, v string) error {
	digits := strings.TrimRight(v, "BKMGTikmgtb ")
	unit := strings.ToLower(strings.TrimSpace(v[len(digits):]))
	shift, ok := map[string]uint{
		"": 0, "b": 0, "kb": 10, "kib": 10, "mb": 20, "mib": 20, "gb": 30, "gib": 30, "tb": 40, "tib": 40,
	}[unit]
	n, err := strconv.ParseInt(digits, 10, 64)
	if !ok || err != nil || n <= 0 || n > int64(1)<<62>>shift {
		return errRange
	}
	*to = n << shift
	return nil
}

func setDuration(to *time.Duration, v string) error {
	d, err := time.ParseDuration(v)
	if err != nil || d < 0 {
		return errRange
	}
	*to = d
	return nil
}

func setBool(to *bool, v string) error {
	switch v {
	case "on", "true", "1", "yes":
		*to = true
	case "off", "false", "0", "no":
		*to = false
	default:
		return errRange
	}
	return nil
}

var errRange = fmt.Errorf("not allowed")

// setParams applies flightpg's parameters to a config.
func setParams(c *Config, found []pair) error {
	seen := make(map[string]bool, len(found))
	for _, f := range found {
		p := paramNamed(f.key)
		switch {
		case p == nil:
			return fmt.Errorf("flightpg: unknown parameter %sin the DSN: flightpg knows %s", quoted(f.key), paramNames())
		case seen[f.key]:
			return fmt.Errorf("flightpg: parameter %s is given twice in the DSN", f.key)
		}
		seen[f.key] = true
		if err := p.set(c, f.value); err != nil {
			value := quoted(f.value)
			if f.hidden || value == "" {
				value = "the value "
			}
			return fmt.Errorf("flightpg: parameter %s in the DSN: %sis not allowed: use %s", f.key, value, p.want)
		}
	}
	return nil
}

func paramNamed(name string) *param {
	for i := range params {
		if params[i].name == name {
			return &params[i]
		}
	}
	return nil
}

func paramNames() string {
	names := make([]string, len(params))
	for i, p := range params {
		names[i] = p.name
	}
	return strings.Join(names, ", ")
}

// quoted is what an error repeats of a DSN, with a blank behind it: nothing if it
// may be a part of something else, of a password that should have been encoded.
func quoted(s string) string {
	for _, c := range []byte(s) {
		switch {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9', strings.IndexByte("_-+. ", c) >= 0:
		default:
			return ""
		}
	}
	if len(s) > 64 {
		return ""
	}
	return strconv.Quote(s) + " "
}

// clip shortens what an error quotes.
func clip(s string) string {
	if len(s) > 64 {
		return s[:64] + "…"
	}
	return s
}

// ours reports whether a DSN parameter is flightpg's.
func ours(key string) bool { return strings.HasPrefix(key, "flight_") || key == "session_conns" }

type pair struct {
	key, value string
	hidden     bool // not to be shown
}

// splitDSN takes flightpg's parameters out of a DSN in any form that pgx
// takes, and leaves the rest as it was, byte for byte: what is wrong with that
// is for pgx to say.
func splitDSN(dsn string) (rest string, found []pair, err error) {
	if strings.HasPrefix(dsn, "postgres://") || strings.HasPrefix(dsn, "postgresql://") {
		return splitURL(dsn)
	}
	return splitKeywords(dsn)
}

func splitURL(dsn string) (rest string, found []pair, err error) {
	body, fragment, hasFragment := strings.Cut(dsn, "#")
	head, query, ok := strings.Cut(body, "?")
	if !ok {
		return dsn, nil, nil
	}
	var kept []string
	for _, part := range strings.Split(query, "&") {
		k, v, _ := strings.Cut(part, "=")
		key, err := url.QueryUnescape(k)
		if err != nil || !ours(key) {
			kept = append(kept, part)
			continue
		}
		value, err := url.QueryUnescape(v)
		if err != nil {
			return "", nil, fmt.Errorf("flightpg: parameter %s in the DSN is not valid URL encoding", key)
		}
		// Without an @ before it, the question mark may be one in a password.
		found = append(found, pair{key, value, !strings.Contains(head, "@") && strings.Contains(query, "@")})
	}
	if found == nil {
		return dsn, nil, nil
	}
	rest = head
	if len(kept) > 0 {
		rest += "?" + strings.Join(kept, "&")
	}
	if hasFragment {
		rest += "#" + fragment
	}
	return rest, found, nil
}

// dsnSpace is what separates keywords and values, as in libpq.
const dsnSpace = " \t\n\r\v\f"

// splitKeywords reads libpq's keyword/value form: keyword, optional spaces, =,
// optional spaces, a value that is bare or in single quotes, a backslash making
// the next character literal in both. It stops at the first thing that it does
// not understand, and leaves that to pgx.
func splitKeywords(dsn string) (rest string, found []pair, err error) {
	var kept strings.Builder
	s := dsn
	for {
		s = strings.TrimLeft(s, dsnSpace)
		eq := strings.IndexByte(s, '=')
		if eq < 0 {
			break
		}
		key := strings.Trim(s[:eq], dsnSpace)
		value, after, ok := keywordValue(strings.TrimLeft(s[eq+1:], dsnSpace))
		if !ok || strings.ContainsAny(key, dsnSpace) {
			break
		}
		if ours(key) {
			found = append(found, pair{key: key, value: value})
		} else {
			if kept.Len() > 0 {
				kept.WriteByte(' ')
			}
			kept.WriteString(s[:len(s)-len(after)])
		}
		s = after
	}
	if found == nil {
		return dsn, nil, nil
	}
	if s != "" {
		kept.WriteString(" " + s)
	}
	return kept.String(), found, nil
}

// keywordValue reads one value and returns what follows it. ok is false for an
// open quote.
func keywordValue(s string) (value, rest string, ok bool) {
	quoted := strings.HasPrefix(s, "'")
	if quoted {
		s = s[1:]
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		switch c := s[i]; {
		case c == '\\':
			if i++; i < len(s) {
				b.WriteByte(s[i])
			}
		case quoted && c == '\'':
			return b.String(), s[i+1:], true
		case !quoted && strings.IndexByte(dsnSpace, c) >= 0:
			return b.String(), s[i:], true
		default:
			b.WriteByte(c)
		}
	}
	return b.String(), "", !quoted
}

package main

import (
	"context"
	"crypto/md5"
	"database/sql"
	"encoding/hex"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgtype"
)

// text is a read, and what is known of its rows.
type text struct {
	name  string
	query string
	// ask reads it for a key, and says what is wrong with the rows, if anything.
	ask func(ctx context.Context, s *side, query string, k int) (wrong string, err error)
}

// bodyOf is a text that gives one row, of an id and a body.
func bodyOf(name, table, query string) text {
	return text{name, query, func(ctx context.Context, s *side, query string, k int) (string, error) {
		var id int
		var body string
		if err := s.db.QueryRowContext(ctx, query, k).Scan(&id, &body); err != nil {
			return "", err
		}
		return differ(fmt.Sprint(id, body), fmt.Sprint(k, hash(table, k, 0))), nil
	}}
}

// valueOf is a text that gives one string.
func valueOf(name, query string, want func(s *side, k int) string, args ...func(k int) any) text {
	return text{name, query, func(ctx context.Context, s *side, query string, k int) (string, error) {
		values := make([]any, 0, 1)
		for _, a := range args {
			values = append(values, a(k))
		}
		var got string
		if err := s.db.QueryRowContext(ctx, query, values...).Scan(&got); err != nil {
			return "", err
		}
		return differ(got, want(s, k)), nil
	}}
}

func key(k int) any { return k }

// differ says how what came is not what was to come.
func differ(got, want string) string {
	if got == want {
		return ""
	}
	return fmt.Sprintf("got %q; want %q", got, want)
}

// texts are what the callers ask. None joins the tables that are locked one after the
// other: such a read may end in a deadlock whoever sends it.
var texts = []text{
	{"item by key", `SELECT id, ver, body, n FROM items WHERE id = $1`, func(ctx context.Context, s *side, query string, k int) (string, error) {
		var id, ver, n int
		var body string
		if err := s.db.QueryRowContext(ctx, query, k).Scan(&id, &ver, &body, &n); err != nil {
			return "", err
		}
		return differ(fmt.Sprint(id, ver, body, n), fmt.Sprint(k, 0, hash("items", k, 0), 7*k)), nil
	}},
	{"all of an item", `SELECT * FROM items WHERE id = $1`, allOfItem},
	{"items in a list", `SELECT id, body FROM items WHERE id IN ($1, $2, $3) ORDER BY id`, func(ctx context.Context, s *side, query string, k int) (string, error) {
		first := min(k, keys-3)
		got, err := lines(s.db.QueryContext(ctx, query, first, first+1, first+2))
		want := ""
		for id := first; id < first+3; id++ {
			want += fmt.Sprintln(id, hash("items", id, 0))
		}
		if err != nil {
			return "", err
		}
		return differ(got, want), nil
	}},
	valueOf("item by another column", `SELECT body FROM items WHERE n = $1`, func(_ *side, k int) string { return hash("items", k, 0) }, func(k int) any { return 7 * k }),
	{"order with its time", `SELECT id, at, body FROM orders WHERE id = $1`, func(ctx context.Context, s *side, query string, k int) (string, error) {
		var id int
		var at time.Time
		var body string
		if err := s.db.QueryRowContext(ctx, query, k).Scan(&id, &at, &body); err != nil {
			return "", err
		}
		return differ(fmt.Sprint(id, at.UTC(), body), fmt.Sprint(k, timeOf(k), hash("orders", k, 0))), nil
	}},
	{"order and item", `SELECT o.id, o.body, i.id, i.body FROM orders o JOIN items i ON i.id = o.item_id WHERE o.id = $1`, func(ctx context.Context, s *side, query string, k int) (string, error) {
		var order, item int
		var orderBody, itemBody string
		if err := s.db.QueryRowContext(ctx, query, k).Scan(&order, &orderBody, &item, &itemBody); err != nil {
			return "", err
		}
		i := k * 3 % keys
		return differ(fmt.Sprint(order, orderBody, item, itemBody), fmt.Sprint(k, hash("orders", k, 0), i, hash("items", i, 0))), nil
	}},
	{"refilled row", `SELECT id, ver, body FROM refill WHERE id = $1`, func(ctx context.Context, s *side, query string, k int) (string, error) {
		least := s.written.Load()
		var id, ver int
		var body string
		if err := s.db.QueryRowContext(ctx, query, k).Scan(&id, &ver, &body); err != nil {
			return "", err
		}
		if most := s.attempted.Load(); int64(ver) < least || int64(ver) > most {
			return fmt.Sprintf("version %d; want one of %d to %d", ver, least, most), nil
		}
		return differ(fmt.Sprint(id, body), fmt.Sprint(k, hash("refill", k, ver))), nil
	}},
	{"refilled rows together", `SELECT count(*), min(ver), max(ver) FROM refill`, func(ctx context.Context, s *side, query string, _ int) (string, error) {
		least := s.written.Load()
		var n, lowest, highest int64
		if err := s.db.QueryRowContext(ctx, query).Scan(&n, &lowest, &highest); err != nil {
			return "", err
		}
		if most := s.attempted.Load(); n != keys || lowest != highest || lowest < least || lowest > most {
			return fmt.Sprintf("%d rows of versions %d to %d; want %d of one of %d to %d", n, lowest, highest, keys, least, most), nil
		}
		return "", nil
	}},
	valueOf("mood and place", `SELECT m, p, body FROM moods WHERE id = $1`, nil),
	{"count by mood", `SELECT count(*), coalesce(min(id), -1) FROM moods WHERE m = $1`, func(ctx context.Context, s *side, query string, k int) (string, error) {
		var n, first int
		if err := s.db.QueryRowContext(ctx, query, moods[k%3]).Scan(&n, &first); err != nil {
			return "", err
		}
		return differ(fmt.Sprint(n, first), fmt.Sprint(keys/3, k%3)), nil
	}},
	valueOf("body by place", `SELECT body FROM moods WHERE p = $1::place`, func(_ *side, k int) string { return hash("moods", k, 0) }, func(k int) any { return pgtype.CompositeFields{int32(k), int32(-k)} }),
	valueOf("tint", `SELECT t FROM moods WHERE id = $1`, func(_ *side, k int) string { return []string{"red", "blue"}[k%2] }, key),
	{"document", `SELECT u, at, amount, j, tags, body FROM docs WHERE id = $1`, func(ctx context.Context, s *side, query string, k int) (string, error) {
		var u, amount, tags, body string
		var j []byte
		var at time.Time
		if err := s.db.QueryRowContext(ctx, query, k).Scan(&u, &at, &amount, &j, &tags, &body); err != nil {
			return "", err
		}
		return differ(
			fmt.Sprint(strings.ReplaceAll(u, "-", ""), at.UTC(), amount, string(j), tags, body),
			fmt.Sprint(hash("uuid", k, 0), timeOf(k), fmt.Sprintf("%d.25", k), fmt.Sprintf(`{"id": %d}`, k), fmt.Sprintf("{t%d,all}", k), hash("docs", k, 0)),
		), nil
	}},
	valueOf("document by uuid", `SELECT body FROM docs WHERE u = $1`, func(_ *side, k int) string { return hash("docs", k, 0) }, func(k int) any { return hash("uuid", k, 0) }),
	valueOf("zone of a time", `SELECT at::text FROM docs WHERE id = $1`, func(_ *side, k int) string { return inZone(timeOf(k)) }, key),
	{"who", `SELECT id, current_user, body FROM logs WHERE id = $1`, func(ctx context.Context, s *side, query string, k int) (string, error) {
		var id int
		var who, body string
		if err := s.db.QueryRowContext(ctx, query, k).Scan(&id, &who, &body); err != nil {
			return "", err
		}
		return differ(fmt.Sprint(id, who, body), fmt.Sprint(k, s.role, hash("logs", k, 0))), nil
	}},
	valueOf("limits", `SELECT current_setting('lock_timeout') || ',' || current_setting('statement_timeout')`, func(*side, int) string { return lockTimeout + "," + statementTimeout }),
	valueOf("limits by a function", `SELECT limits()`, func(s *side, _ int) string { return s.role + "," + zone + "," + lockTimeout + "," + statementTimeout }),
	valueOf("function that sets the zone", `SELECT in_zone($1)`, func(_ *side, k int) string { return fmt.Sprint(k, " America/Caracas") }, key),
	valueOf("function that sets the role", `SELECT as_other($1)`, func(s *side, k int) string { return fmt.Sprint(k, " ", s.other) }, key),
	valueOf("function that sets limits", `SELECT with_limits($1)`, func(_ *side, k int) string { return fmt.Sprint(k, " 71ms") }, key),
	{"time", `SELECT id, body, now() FROM locka WHERE id = $1`, func(ctx context.Context, s *side, query string, k int) (string, error) {
		var id int
		var now time.Time
		var body string
		if err := s.db.QueryRowContext(ctx, query, k).Scan(&id, &body, &now); err != nil {
			return "", err
		}
		if late := time.Since(now); late < -time.Second || late > time.Hour {
			return fmt.Sprintf("now() is %v old", late), nil
		}
		return differ(fmt.Sprint(id, body), fmt.Sprint(k, hash("locka", k, 0))), nil
	}},
	bodyOf("row of a", "locka", `SELECT id, body FROM locka WHERE id = $1`),
	bodyOf("row of b", "lockb", `SELECT id, body FROM lockb WHERE id = $1`),
	{"logs together", `SELECT count(*), sum(id), md5(string_agg(body, ',' ORDER BY id)) FROM logs WHERE item_id = $1`, func(ctx context.Context, s *side, query string, k int) (string, error) {
		k %= 4
		var n, sum int
		var all string
		if err := s.db.QueryRowContext(ctx, query, k).Scan(&n, &sum, &all); err != nil {
			return "", err
		}
		var bodies []string
		ids := 0
		for id := k; id < keys; id += 4 {
			ids += id
			bodies = append(bodies, hash("logs", id, 0))
		}
		h := md5.Sum([]byte(strings.Join(bodies, ",")))
		return differ(fmt.Sprint(n, sum, all), fmt.Sprint(len(bodies), ids, hex.EncodeToString(h[:]))), nil
	}},
	bodyOf("row of a view", "logs", `SELECT id, body FROM log_view WHERE id = $1`),
}

var moods = []string{"sad", "ok", "glad"}

func init() {
	for i := range texts {
		if texts[i].name == "mood and place" {
			texts[i].ask = func(ctx context.Context, s *side, query string, k int) (string, error) {
				var m, p, body string
				if err := s.db.QueryRowContext(ctx, query, k).Scan(&m, &p, &body); err != nil {
					return "", err
				}
				return differ(fmt.Sprint(m, p, body), fmt.Sprint(moods[k%3], fmt.Sprintf("(%d,%d)", k, -k), hash("moods", k, 0))), nil
			}
		}
	}
}

// allOfItem reads columns that come and go.
func allOfItem(ctx context.Context, s *side, query string, k int) (string, error) {
	rows, err := s.db.QueryContext(ctx, query, k)
	if err != nil {
		return "", err
	}
	defer rows.Close()
	columns, err := rows.Columns()
	if err != nil {
		return "", err
	}
	n := 0
	for rows.Next() {
		n++
		values := make([]any, len(columns))
		for i := range values {
			values[i] = new(any)
		}
		if err := rows.Scan(values...); err != nil {
			return "", err
		}
		for i, c := range columns {
			want := map[string]string{"id": fmt.Sprint(k), "ver": "0", "body": hash("items", k, 0), "n": fmt.Sprint(7 * k), "extra": "added"}[c]
			if got := fmt.Sprint(*values[i].(*any)); got != want {
				return fmt.Sprintf("%s of item %d: got %q; want %q", c, k, got, want), nil
			}
		}
	}
	if err := rows.Err(); err != nil {
		return "", err
	}
	if len(columns) < 4 || len(columns) > 5 {
		return fmt.Sprintf("%d columns: %v", len(columns), columns), nil
	}
	return differ(fmt.Sprint(n, " rows"), "1 rows"), nil
}

// lines are rows of an id and a body.
func lines(rows *sql.Rows, err error) (string, error) {
	if err != nil {
		return "", err
	}
	defer rows.Close()
	var b strings.Builder
	for rows.Next() {
		var id int
		var body string
		if err := rows.Scan(&id, &body); err != nil {
			return "", err
		}
		fmt.Fprintln(&b, id, body)
	}
	return b.String(), rows.Err()
}

// timeOf is when the row of a key is said to be from.
func timeOf(k int) time.Time {
	return time.Date(2024, 1, 1, 0, 0, 0, 0, time.UTC).Add(time.Duration(k) * time.Hour)
}

// inZone is a time as PostgreSQL prints it in the roles' zone.
func inZone(t time.Time) string {
	return t.In(time.FixedZone("", 5*3600+45*60)).Format("2006-01-02 15:04:05") + zoneOffset
}

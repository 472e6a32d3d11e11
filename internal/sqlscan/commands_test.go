package sqlscan

import (
	"fmt"
	"strings"
	"testing"
)

func TestCommands(t *testing.T) {
	for _, tc := range []struct {
		sql  string
		want string // words of each statement
		ok   bool
	}{
		{"", "", true},
		{" ; -- nothing\n;", "", true},
		{"SELECT 1", "[select   ]", true},
		{"Set Local a = ';'; SELECT 1;", "[set local a ] [select   ]", true},
		{"/* ; */ CREATE TEMP TABLE t (a int DEFAULT (1); b int)", "[create temp table t]", true},
		{"CREATE TABLE a(); INSERT INTO a DEFAULT VALUES", "[create table a ] [insert into a default]", true},
		{"DO $$ BEGIN; END $$; x", "[do   ] [x   ]", true},
		{`"create" table`, "[ table  ]", true},
		{"SELECT 'open", "", false},
		{"SELECT (1", "[select   ]", false},
	} {
		var got []string
		ok := Commands(tc.sql, func(c Command) bool {
			got = append(got, fmt.Sprint(c.Words))
			return true
		})
		if s := strings.Join(got, " "); s != tc.want || ok != tc.ok {
			t.Errorf("Commands(%q) = %s, %v; want %s, %v", tc.sql, s, ok, tc.want, tc.ok)
		}
	}
}

package catalog

import (
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
)

func TestMisdeclared(t *testing.T) {
	for symbol, want := range map[string]struct {
		cause Cause
		class Class
	}{
		"crosstab": {RunsSQL, Denied}, "xpath_table": {RunsSQL, Denied}, "_pgr_bridges": {RunsSQL, Denied},
		"standardize_address1": {RunsSQL, Denied}, "RASTER_nMapAlgebraExpr": {RunsSQL, Denied}, "GetRingEdges": {RunsSQL, Denied},
		"accept_weak_input": {Misdeclared, Denied}, "weak_input_status": {Misdeclared, Private},
		"dbms_random_string": {Misdeclared, Denied}, "RASTER_quantile": {Misdeclared, Private},
		"pgis_tablefromflatgeobuf": {Misdeclared, Denied}, "repack_get_table_and_inheritors": {Misdeclared, Denied},
		"so_is_infected": {Misdeclared, Private},
	} {
		if cause, class, wrong := misdeclared(symbol); !wrong || cause != want.cause || class != want.class {
			t.Errorf("misdeclared(%q) = %v, %v, %v; want %v, %v, true", symbol, cause, class, wrong, want.cause, want.class)
		}
	}
	for _, symbol := range []string{"", "-", "isn_in", "normal_rand", "hll_add", "transform", "RASTER_getPixelValue", "similarity_op", "Crosstab", "pgr_bridges"} {
		if _, _, wrong := misdeclared(symbol); wrong {
			t.Errorf("misdeclared(%q) = true", symbol)
		}
	}
}

func TestLeavesNothing(t *testing.T) {
	for symbol, want := range map[string]bool{"pg_gen_salt": true, "uuid_generate_v4": true, "": false, "-": false, "dblink_connect": false} {
		if got := leavesNothing(symbol); got != want {
			t.Errorf("leavesNothing(%q) = %v; want %v", symbol, got, want)
		}
	}
}

// TestMisdeclared_Symbols: a built-in function's code, which anybody may give another
// name to, is not taken for an extension's.
func TestMisdeclared_Symbols(t *testing.T) {
	src, err := os.ReadFile("extensions.go")
	if err != nil {
		t.Fatal(err)
	}
	var seen []string
	for _, m := range regexp.MustCompile(`"([A-Za-z_0-9]{4,})"`).FindAllStringSubmatch(string(src), -1) {
		symbol := m[1]
		if Function(strings.ToLower(symbol)) != Unknown {
			t.Errorf("%q is a built-in function, too", symbol)
		}
		if slices.Contains(seen, symbol) {
			t.Errorf("%q is there twice", symbol)
		}
		seen = append(seen, symbol)
	}
	if len(seen) < 50 {
		t.Errorf("%d symbols found in extensions.go; the pattern does not fit it", len(seen))
	}
}

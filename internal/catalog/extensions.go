package catalog

// misdeclared reports whether a function of a shipped extension, by the symbol of its
// code in C, does more than the STABLE or IMMUTABLE that it is declared, and what.
// PostgreSQL cannot tell, and there is no body to read.
func misdeclared(symbol string) (cause Cause, wrong bool) {
	switch symbol {
	case "crosstab", "crosstab_hash", "connectby_text", "connectby_text_serial", // tablefunc
		"xpath_table": // xml2
		return RunsSQL, true
	}
	return 0, false
}

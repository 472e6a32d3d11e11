//go:build unix

package consistency

// Via is the way of an operation through database/sql or pgx.
type Via uint8

const (
	ViaQuery        Via = iota // DB.Query
	ViaQueryRow                // DB.QueryRow
	ViaStmt                    // Stmt.QueryRow, of a Stmt of the DB
	ViaConn                    // Conn.Query
	ViaConnStmt                // Stmt.QueryRow, of a Stmt of a Conn
	ViaTx                      // Tx.QueryRow: a transaction of its own, never shared
	ViaExec                    // DB.Exec
	ViaStmtExec                // Stmt.Exec
	ViaConnExec                // Conn.Exec
	ViaTxExec                  // Tx.Exec, Commit
	ViaTxStmtExec              // Tx.Stmt(…).Exec, Commit, after a read in the same transaction
	ViaReturning               // QueryRow of UPDATE … RETURNING
	ViaReturnStmt              // the same by a Stmt
	ViaReturnClosed            // the same by Query, whose rows are closed before their end
	ViaCTE                     // QueryRow of WITH … AS (UPDATE … RETURNING …) SELECT
	ViaFunction                // QueryRow of SELECT swap(…)
	ViaText                    // BEGIN, UPDATE and COMMIT as texts on a Conn
	ViaMulti                   // Exec of one text of several statements
	ViaRaw                     // Conn.Raw: pgx's Exec
	ViaRawTx                   // Conn.Raw: a transaction of pgx
	ViaRawBatch                // Conn.Raw: a batch of pgx
	ViaRollback                // Tx.Exec, Rollback: no write
	ViaFailing                 // Exec of an UPDATE that a constraint refuses: no write
	ViaPgx                     // pgxpool's QueryRow
	ViaPgxTx                   // a transaction of pgxpool
	ViaPgxExec                 // pgxpool's Exec
	ViaPgxReturning            // pgxpool's QueryRow of UPDATE … RETURNING
	ViaPgxBatch                // pgxpool's SendBatch
)

var viaNames = [...]string{
	ViaQuery: "Query", ViaQueryRow: "QueryRow", ViaStmt: "Stmt", ViaConn: "Conn", ViaConnStmt: "Conn.Stmt", ViaTx: "Tx",
	ViaExec: "Exec", ViaStmtExec: "Stmt.Exec", ViaConnExec: "Conn.Exec", ViaTxExec: "Tx.Exec", ViaTxStmtExec: "Tx.Stmt.Exec",
	ViaReturning: "RETURNING", ViaReturnStmt: "Stmt RETURNING", ViaReturnClosed: "RETURNING, closed early", ViaCTE: "CTE", ViaFunction: "function",
	ViaText: "BEGIN by text", ViaMulti: "several statements", ViaRaw: "Raw", ViaRawTx: "Raw transaction", ViaRawBatch: "Raw batch",
	ViaRollback: "Rollback", ViaFailing: "refused Exec",
	ViaPgx: "pgxpool", ViaPgxTx: "pgxpool transaction", ViaPgxExec: "pgxpool Exec", ViaPgxReturning: "pgxpool RETURNING", ViaPgxBatch: "pgxpool batch",
}

func (v Via) String() string { return viaNames[v] }

// The statements. The slow read takes its snapshot first and then counts for a
// while, so that it is old when it arrives.
const (
	sqlRead      = `SELECT val FROM register WHERE k = $1`
	sqlSlow      = `SELECT val FROM register WHERE k = $1 AND (SELECT count(*) FROM generate_series(1, 2000)) > 0`
	sqlWrite     = `UPDATE register SET prev = val, val = $2, ver = ver + 1 WHERE k = $1`
	sqlReturning = sqlWrite + ` RETURNING prev`
	sqlCTE       = `WITH w AS (` + sqlReturning + `) SELECT prev FROM w`
	sqlFunction  = `SELECT swap($1, $2)`
	sqlLiteral   = `UPDATE register SET prev = val, val = %[2]d, ver = ver + 1 WHERE k = %[1]d`
	sqlMulti     = `BEGIN; ` + sqlLiteral + `; COMMIT`
)

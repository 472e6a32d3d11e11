package battery

import (
	"encoding/json"
	"errors"
	"fmt"
	"go/ast"
	"go/importer"
	"go/parser"
	"go/token"
	"go/types"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"sync"
)

// driverPath is the import path of the driver. All that a control breaks is there or
// below it.
const driverPath = "github.com/flightpg/flightpg"

// listed is a package, as go list describes it.
type listed struct {
	ImportPath, Dir, Export string
	GoFiles                 []string
	Module                  *struct{ GoVersion string }
}

// checker checks packages of the driver. It takes a tenth of a second, where the
// compiler would take many.
type checker struct {
	mu      sync.Mutex         // guards what imports keeps
	dirs    map[string]*listed // by their directory
	fset    *token.FileSet
	imports types.Importer
}

// theChecker knows the driver, and all that it imports as it is compiled for the
// running test: nothing is compiled for the sake of a check.
var theChecker = sync.OnceValues(func() (*checker, error) {
	args := []string{"list", "-export", "-deps", "-json=ImportPath,Dir,Export,GoFiles,Module"}
	if RaceDetector {
		args = append(args, "-race")
	}
	cmd := exec.Command("go", append(args, driverPath)...)
	cmd.Stderr = os.Stderr
	pipe, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	all, dirs := make(map[string]*listed), make(map[string]*listed)
	for dec := json.NewDecoder(pipe); ; {
		p := new(listed)
		if err := dec.Decode(p); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			return nil, errors.Join(err, cmd.Wait())
		}
		all[p.ImportPath], dirs[p.Dir] = p, p
	}
	if err := cmd.Wait(); err != nil {
		return nil, fmt.Errorf("go list: %w", err)
	}
	fset := token.NewFileSet()
	return &checker{dirs: dirs, fset: fset, imports: importer.ForCompiler(fset, "gc", func(path string) (io.ReadCloser, error) {
		p := all[path]
		if p == nil {
			return nil, fmt.Errorf("package %s is not known", path)
		}
		return os.Open(p.Export)
	})}, nil
})

// typeCheck checks the packages of some files with these texts in their place.
func typeCheck(texts map[string]string) error {
	c, err := theChecker()
	if err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	checked := make(map[string]bool)
	for file := range texts {
		dir := filepath.Dir(file)
		if checked[dir] {
			continue
		}
		checked[dir] = true
		p := c.dirs[dir]
		if p == nil {
			return fmt.Errorf("%s is not of the driver", file)
		}
		if err := c.check(p, texts); err != nil {
			return err
		}
	}
	return nil
}

func (c *checker) check(p *listed, texts map[string]string) error {
	var files []*ast.File
	for _, name := range p.GoFiles {
		name = filepath.Join(p.Dir, name)
		var src any // nil: what the file has
		if text, ok := texts[name]; ok {
			src = text
		}
		f, err := parser.ParseFile(c.fset, name, src, parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		files = append(files, f)
	}
	conf := types.Config{Importer: c.imports, Sizes: types.SizesFor("gc", runtime.GOARCH)}
	if p.Module != nil && p.Module.GoVersion != "" {
		conf.GoVersion = "go" + p.Module.GoVersion
	}
	_, err := conf.Check(p.ImportPath, c.fset, files, nil)
	return err
}

//go:build unix

package consistency

import (
	"fmt"
	"os"
	"sync/atomic"
	"syscall"
	"unsafe"
)

// clockSize is the size of the shared memory: two words on cache lines of their
// own.
const clockSize = 4096

// Clock is the memory that the processes of a history share: the time, and how
// many operations are left. It is a file that all of them map.
type Clock struct {
	mem    []byte
	now    *atomic.Int64
	budget *atomic.Int64
}

// NewClock makes the file of a Clock.
func NewClock(file string) (*Clock, error) {
	if err := os.WriteFile(file, make([]byte, clockSize), 0o600); err != nil {
		return nil, err
	}
	return OpenClock(file)
}

// OpenClock maps the file of a Clock.
func OpenClock(file string) (*Clock, error) {
	f, err := os.OpenFile(file, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	mem, err := syscall.Mmap(int(f.Fd()), 0, clockSize, syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("the clock: %w", err)
	}
	return &Clock{
		mem:    mem,
		now:    (*atomic.Int64)(unsafe.Pointer(&mem[0])),
		budget: (*atomic.Int64)(unsafe.Pointer(&mem[256])),
	}, nil
}

// Tick returns the time: one more than ever before, in any process.
func (c *Clock) Tick() int64 { return c.now.Add(1) }

// Grant sets how many operations are left.
func (c *Clock) Grant(n int64) { c.budget.Store(n) }

// Draw takes one operation, and returns how many are left after it: less than
// zero if there was none.
func (c *Clock) Draw() int64 { return c.budget.Add(-1) }

// Close unmaps the memory.
func (c *Clock) Close() error { return syscall.Munmap(c.mem) }

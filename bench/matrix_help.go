package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"sync/atomic"
	"syscall"
)

// helper is a process of this program that the matrix has started: it ends with its
// standard input, which ends with its parent.
type helper struct {
	cmd  *exec.Cmd
	keep *os.File
}

// envHelper says what a helper shall do.
const envHelper = "FLIGHTPG_BENCH_HELPER"

// helperJob is what it does: a program that it runs and ends, or a loop.
type helperJob struct {
	Program []string    // with its arguments
	Number  int         // of the signal that ends it
	As      *credential // who it runs as; nil: who runs this
}

type credential struct{ UID, GID uint32 }

// help runs a helper.
func help(job helperJob) (*helper, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	text, err := json.Marshal(job)
	if err != nil {
		return nil, err
	}
	in, keep, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(self)
	cmd.Env = append(os.Environ(), envHelper+"="+string(text))
	cmd.Stdin, cmd.Stderr = in, os.Stderr
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	_ = in.Close()
	if err != nil {
		return nil, errors.Join(err, keep.Close())
	}
	h := &helper{cmd, keep}
	if _, err := bufio.NewReader(out).ReadString('\n'); err != nil {
		return nil, errors.Join(fmt.Errorf("a helper does not start: %w", err), h.end())
	}
	return h, nil
}

// end ends the helper, and what it runs.
func (h *helper) end() error {
	_ = h.keep.Close() // its sign to end
	return h.cmd.Wait()
}

// helped runs what this process was started for, if it is a helper.
func helped() bool {
	text := os.Getenv(envHelper)
	if text == "" {
		return false
	}
	var job helperJob
	if err := json.Unmarshal([]byte(text), &job); err != nil {
		fail(err)
	}
	signal.Ignore(os.Interrupt) // of the terminal: the parent ends this
	if len(job.Program) == 0 {
		runtime.GOMAXPROCS(2)
		fmt.Println("started")
		go func() {
			var turns atomic.Uint64
			for {
				turns.Add(1)
			}
		}()
		_, _ = io.Copy(io.Discard, os.Stdin)
		return true
	}
	if err := tend(&job); err != nil {
		fail(err)
	}
	return true
}

// tend runs a program until the standard input ends.
func tend(job *helperJob) error {
	cmd := exec.Command(job.Program[0], job.Program[1:]...)
	cmd.Stdout, cmd.Stderr = os.Stderr, os.Stderr
	runAs(cmd, job.As)
	if err := cmd.Start(); err != nil {
		return err
	}
	fmt.Println("started")
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	closed := make(chan struct{})
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		close(closed)
	}()
	select {
	case err := <-ended:
		return fmt.Errorf("%s has ended: %w", job.Program[0], err)
	case <-closed:
		_ = cmd.Process.Signal(syscall.Signal(job.Number))
		<-ended // its status is that of a signal, or not
		return nil
	}
}

// busyLoops runs two loops a core beside, each in a process of its own.
func busyLoops() (stop func(), err error) {
	var loops []*helper
	stop = func() {
		for _, l := range loops {
			_ = l.end()
		}
	}
	for range 2 * runtime.NumCPU() {
		l, err := help(helperJob{})
		if err != nil {
			stop()
			return nil, err
		}
		loops = append(loops, l)
	}
	return stop, nil
}

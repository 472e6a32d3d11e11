package faults

import (
	"os"
	"path/filepath"
	"syscall"
	"testing"
)

// smallDisk mounts a file system of 2 MB and returns where, or "" if the test may not.
func smallDisk(t *testing.T) string {
	t.Helper()
	// Not t.TempDir: other users must be able to enter it.
	dir, err := os.MkdirTemp("", "flightpg-disk-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.Remove(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mount("none", dir, "tmpfs", 0, "size=2m,mode=755"); err != nil {
		t.Logf("NOT RUN: a small file system: mount: %v; a full device and temp_file_limit take its place", err)
		return ""
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
	small := filepath.Join(dir, "tablespace")
	if err := os.Mkdir(small, 0o700); err != nil {
		t.Fatal(err)
	}
	return small
}

// giveTo makes the owner of one directory that of another.
func giveTo(as, dir string) error {
	info, err := os.Stat(as)
	if err != nil {
		return err
	}
	owner := info.Sys().(*syscall.Stat_t)
	return os.Chown(dir, int(owner.Uid), int(owner.Gid))
}

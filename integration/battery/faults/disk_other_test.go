//go:build !linux

package faults

import "testing"

// smallDisk mounts nothing here.
func smallDisk(t *testing.T) string {
	t.Log("NOT RUN: a small file system: it needs Linux; temp_file_limit takes its place")
	return ""
}

func giveTo(string, string) error { return nil }

package integration

import "syscall"

// tieToParent makes the kernel stop a child when the thread that started it
// ends, as it does when this process is killed.
func tieToParent(attr *syscall.SysProcAttr) { attr.Pdeathsig = syscall.SIGTERM }

package acceptance

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"time"
)

// child is what this test binary does when it is run as a sandbox's program.
func child(mode string, args []string) int {
	switch {
	case mode == "fetch" && len(args) == 1:
		return fetch(args[0])
	case mode == "matrix" && len(args) == 1:
		return matrixChild(args[0])
	case mode == "spill":
		return spill()
	}
	fmt.Fprintln(os.Stderr, "acceptance: no such mode")
	return 99
}

// fetch is a Go program as anybody would write it: net/http as it comes, which takes the
// proxy and the CAs from the environment.
func fetch(target string) int {
	c := &http.Client{Timeout: 20 * time.Second}
	resp, err := c.Get(target)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 3
	}
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 3
	}
	fmt.Printf("%d %s", resp.StatusCode, body)
	return 0
}

// spill prints all that a program can see of itself and of its parent.
func spill() int {
	show := func(name string) {
		b, err := os.ReadFile(name)
		fmt.Printf("== %s (%v)\n%s\n", name, err, b)
	}
	show("/proc/self/environ")
	show("/proc/self/cmdline")
	show(fmt.Sprintf("/proc/%d/cmdline", os.Getppid()))
	fds, err := os.ReadDir("/proc/self/fd")
	fmt.Printf("== fds (%v)\n", err)
	for _, fd := range fds {
		to, err := os.Readlink("/proc/self/fd/" + fd.Name())
		if err == nil {
			fmt.Printf("fd %s -> %s\n", fd.Name(), to)
		}
	}
	// What egressd run keeps for itself: its environment holds the secrets.
	for _, name := range []string{"environ", "mem", "maps"} {
		f, err := os.Open(fmt.Sprintf("/proc/%d/%s", os.Getppid(), name))
		if err != nil {
			fmt.Printf("parent's %s: refused\n", name)
			continue
		}
		b, _ := io.ReadAll(io.LimitReader(f, 1<<16))
		_ = f.Close()
		fmt.Printf("parent's %s: OPEN %d bytes\n", name, len(b))
	}
	return 0
}

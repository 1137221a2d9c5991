package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// The proxies' core and that of the load and the origin.
const (
	proxyCore = 0
	loadCore  = 1
	execFlag  = "-exec-pinned"
)

// target is one proxy under test.
type target struct {
	name string
	addr string // host:port; "" for direct
	ops  string // host:port of /metrics
	cmd  *exec.Cmd
	in   io.Closer // reference proxies end when their standard input does
	gone chan struct{}
}

// execPinned becomes the program of args on the proxies' core. Affinity outlives exec
// and is inherited by every thread.
func execPinned(args []string) {
	runtime.LockOSThread()
	bind(proxyCore) // what the load's process left to its children is its own core
	if len(args) == 0 {
		fatal(errors.New("nothing to execute"))
	}
	fatal(unix.Exec(args[0], args, os.Environ()))
}

// pinSelf binds this process to a core; false where there are not two cores.
func pinSelf(core int) bool {
	var now unix.CPUSet
	if unix.SchedGetaffinity(0, &now) != nil || !now.IsSet(proxyCore) || !now.IsSet(loadCore) {
		return false
	}
	return bind(core)
}

func bind(core int) bool {
	var set unix.CPUSet
	set.Set(core)
	tasks, err := os.ReadDir("/proc/self/task")
	if err != nil {
		return false
	}
	for _, t := range tasks {
		if id, err := strconv.Atoi(t.Name()); err == nil {
			_ = unix.SchedSetaffinity(id, &set) // a thread that ended meanwhile needs none
		}
	}
	return true
}

func raiseFileLimit() {
	var l unix.Rlimit
	if unix.Getrlimit(unix.RLIMIT_NOFILE, &l) == nil {
		l.Cur = l.Max
		_ = unix.Setrlimit(unix.RLIMIT_NOFILE, &l) // the idle workload says so if it was not enough
	}
}

func (b *bench) spawn(name string, env []string, args ...string) (*target, io.ReadCloser, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, nil, err
	}
	cmd := exec.Command(self, append([]string{execFlag}, args...)...)
	cmd.Env = append(append(os.Environ(), "GOMAXPROCS=1"), env...)
	logFile, err := os.OpenFile(filepath.Join(b.dir, name+".log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, nil, err
	}
	defer func() { _ = logFile.Close() }()
	cmd.Stderr = logFile
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, nil, err
	}
	return &target{name: name, cmd: cmd, in: in, gone: make(chan struct{})}, out, nil
}

// startReference re-executes this binary in its -proxy mode, which prints its address.
func (b *bench) startReference(name string) (*target, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	t, out, err := b.spawn(name, []string{"BENCH_DIR=" + b.dir}, self, "-proxy="+name)
	if err != nil {
		return nil, err
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	t.wait()
	if err != nil {
		t.stop()
		return nil, fmt.Errorf("did not start: %s", b.log(name))
	}
	_, err = fmt.Sscan(line, &t.addr, &t.ops)
	return t, err
}

func (t *target) wait() {
	go func() {
		defer close(t.gone)
		_ = t.cmd.Wait()
	}()
}

func (t *target) stop() {
	if t.cmd == nil {
		return
	}
	_ = t.in.Close()
	_ = t.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-t.gone:
	case <-time.After(5 * time.Second):
		_ = t.cmd.Process.Kill()
		<-t.gone
	}
}

func (b *bench) log(name string) string {
	text, _ := os.ReadFile(filepath.Join(b.dir, name+".log"))
	return string(text[max(0, len(text)-2000):])
}

// cpu is the processor time that the process has used, user and system.
func (t *target) cpu() (time.Duration, error) {
	if t.cmd == nil {
		return 0, nil
	}
	var ts unix.Timespec
	clock := int32(^t.cmd.Process.Pid)<<3 | 2 // CPUCLOCK_SCHED of another process: nanoseconds, where /proc/PID/stat has ticks
	if err := unix.ClockGettime(clock, &ts); err != nil {
		return 0, fmt.Errorf("read CPU time: %w", err)
	}
	return time.Duration(ts.Nano()), nil
}

// rss is the resident memory in bytes.
func (t *target) rss() (float64, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", t.cmd.Process.Pid))
	if err != nil {
		return 0, err
	}
	f := strings.Fields(string(text))
	if len(f) < 2 {
		return 0, errors.New("statm is too short")
	}
	pages, err := strconv.ParseFloat(f[1], 64)
	return pages * float64(os.Getpagesize()), err
}

// mallocs counts the objects that the process has allocated on its heap.
func (t *target) mallocs(ctx context.Context) (float64, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+t.ops+"/metrics", nil)
	if err != nil {
		return 0, err
	}
	client := &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Do(req)
	if err != nil {
		return 0, err
	}
	defer func() { _ = resp.Body.Close() }()
	for in := bufio.NewScanner(resp.Body); in.Scan(); {
		if v, ok := strings.CutPrefix(in.Text(), "go_memstats_mallocs_total "); ok {
			return strconv.ParseFloat(v, 64)
		}
	}
	return 0, errors.New("no go_memstats_mallocs_total in /metrics")
}

// waitReady polls url until it answers 200.
func waitReady(ctx context.Context, url string, gone <-chan struct{}) error {
	client := &http.Client{Timeout: time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
		if err != nil {
			return err
		}
		if resp, err := client.Do(req); err == nil {
			_ = resp.Body.Close()
			if resp.StatusCode == http.StatusOK {
				return nil
			}
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-gone:
			return errors.New("it ended by itself")
		case <-time.After(30 * time.Millisecond):
		}
	}
	return errors.New("not ready after 20 s")
}

package main

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestMain lets the children of these tests be this binary, as those of `make bench` are.
func TestMain(m *testing.M) {
	if len(os.Args) > 2 && os.Args[1] == execFlag {
		execPinned(os.Args[2:])
	}
	if len(os.Args) > 1 && strings.HasPrefix(os.Args[1], "-proxy=") {
		if err := serveReference(strings.TrimPrefix(os.Args[1], "-proxy=")); err != nil {
			fatal(err)
		}
		return
	}
	os.Exit(m.Run())
}

func buildEgressd(t *testing.T) string {
	t.Helper()
	bin := filepath.Join(t.TempDir(), "egressd")
	if out, err := exec.Command("go", "build", "-tags", "netgo", "-o", bin, "../cmd/egressd").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return bin
}

// Gate: at most 2.5 writes per small HTTP/1.1 request (two is the least: one to the
// origin, one to the client), counted by strace over the whole process. What the audit
// log and the runtime write is in it.
func TestGateWritesPerSmallRequest(t *testing.T) {
	strace, err := exec.LookPath("strace")
	if err != nil {
		t.Fatal("strace is needed: run `make deps`")
	}
	b, err := newBench(t.Context(), binaries{now: buildEgressd(t)}, []string{direct}, quick())
	if err != nil {
		t.Fatal(err)
	}
	defer b.close()
	counts := filepath.Join(b.dir, "strace")
	tgt, err := b.startEgressd(egressd, b.bin.now, strace, "-f", "-c", "-e", "trace=write,writev,sendto,sendmsg", "-o", counts)
	if err != nil {
		t.Fatal(err)
	}
	const clients, each = 8, 250
	conns, closeAll, err := b.dialMany(tgt, apiName, clients)
	if err != nil {
		t.Fatal(err)
	}
	for range each {
		for _, c := range conns {
			if err := c.small(); err != nil {
				t.Fatal(err)
			}
		}
	}
	closeAll()
	// strace blocks the signal itself and prints its counts when its child has ended.
	if err := signalChildren(tgt.cmd.Process.Pid, syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	select {
	case <-tgt.gone:
	case <-time.After(20 * time.Second):
		_ = signalChildren(tgt.cmd.Process.Pid, syscall.SIGKILL)
		_ = tgt.cmd.Process.Kill()
		<-tgt.gone
		t.Fatal("the daemon did not drain")
	}
	calls, err := readCounts(counts)
	if err != nil {
		t.Fatal(err)
	}
	requests := clients * (each + 1)
	got := float64(calls) / float64(requests)
	t.Logf("%d writes for %d requests: %.2f each", calls, requests, got)
	if got > 2.5 {
		t.Errorf("%.2f writes per request, want at most 2.5", got)
	}
	if got < 2 {
		t.Errorf("%.2f writes per request cannot be: strace did not see the whole process", got)
	}
}

// Gate: at most 1.2 times the heap allocations per request of the bare hijack design,
// which decides nothing, records nothing and counts nothing. Both are whole processes
// under the same load; what a scrape allocates itself is taken off.
func TestGateAllocations(t *testing.T) {
	b, err := newBench(t.Context(), binaries{now: buildEgressd(t)}, []string{direct, hijack, egressd}, quick())
	if err != nil {
		t.Fatal(err)
	}
	defer b.close()
	bare, own := b.allocations(t, hijack), b.allocations(t, egressd)
	t.Logf("allocations per request: hijack design %.1f, egressd %.1f (%.2f ×)", bare, own, own/bare)
	if own > 1.2*bare {
		t.Errorf("%.1f allocations per request, want at most 1.2 × %.1f", own, bare)
	}
	if own <= 0 || bare <= 0 {
		t.Error("nothing was counted")
	}
}

func (b *bench) allocations(t *testing.T, name string) float64 {
	t.Helper()
	tgt := b.targets[name]
	conns, closeAll, err := b.dialMany(tgt, apiName, 8)
	if err != nil {
		t.Fatal(err)
	}
	defer closeAll()
	load := func(each int) {
		for range each {
			for _, c := range conns {
				if err := c.small(); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	count := func() float64 {
		n, err := tgt.mallocs(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	load(100)
	count() // the first scrape allocates more than the next
	const each = 500
	a := count()
	z := count()
	load(each)
	return (count() - z - (z - a)) / float64(each*len(conns))
}

func signalChildren(pid int, sig syscall.Signal) error {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid))
	if err != nil {
		return err
	}
	kids := strings.Fields(string(text))
	if len(kids) == 0 {
		return errors.New("no child to signal")
	}
	for _, k := range kids {
		id, err := strconv.Atoi(k)
		if err != nil {
			return err
		}
		if err := syscall.Kill(id, sig); err != nil {
			return err
		}
	}
	return nil
}

// readCounts adds the calls column of `strace -c`.
func readCounts(file string) (n int, err error) {
	f, err := os.Open(file)
	if err != nil {
		return 0, err
	}
	defer func() { _ = f.Close() }()
	for in := bufio.NewScanner(f); in.Scan(); {
		cols := strings.Fields(in.Text())
		if len(cols) < 5 || !slices.Contains([]string{"write", "writev", "sendto", "sendmsg"}, cols[len(cols)-1]) {
			continue
		}
		calls, err := strconv.Atoi(cols[3])
		if err != nil {
			return 0, err
		}
		n += calls
	}
	if n == 0 {
		return 0, errors.New("strace counted nothing")
	}
	return n, nil
}

func TestMedian(t *testing.T) {
	for _, tt := range []struct {
		in   []float64
		want float64
		ok   bool
	}{{nil, 0, false}, {[]float64{3}, 3, true}, {[]float64{9, 1, 5}, 5, true}, {[]float64{4, 1, 3, 2}, 2.5, true}} {
		if got, ok := median(tt.in); got != tt.want || ok != tt.ok {
			t.Errorf("%v: %v, %v", tt.in, got, ok)
		}
	}
}

// Every gate names a workload that exists, and every reference of the table is measured.
func TestGatesReferToWorkloads(t *testing.T) {
	names := workloadNames()
	for _, g := range gates() {
		if !slices.Contains(names, g.workload) {
			t.Errorf("%s: no such workload", g.workload)
		}
	}
	for _, w := range workloads() {
		if w.once == nil && !slices.Contains(w.proxies, egressd) {
			t.Errorf("%s does not measure egressd", w.name)
		}
	}
}

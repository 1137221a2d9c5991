package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"
)

// plan is how much is measured.
type plan struct {
	rounds    int
	window    time.Duration // of one throughput sample
	latencies int           // requests of one latency sample
	coldNames int           // over all rounds; a sandbox may have 200 new ones at once
	bulk      int64         // bytes of one transfer
	idle      int           // tunnels whose memory is measured
	closed    int           // tunnels that are opened and closed
	patience  time.Duration // for memory to come back
	events    int           // of one stream
}

// longest a run may take, whatever the machine.
const longest = 15 * time.Minute

func full() plan {
	return plan{rounds: 5, window: 1500 * time.Millisecond, latencies: 2000, coldNames: 200, bulk: 256 << 20, idle: 2000, closed: 8000, patience: time.Minute, events: 200}
}

func quick() plan {
	return plan{rounds: 2, window: 500 * time.Millisecond, latencies: 500, coldNames: 200, bulk: 64 << 20, idle: 500, closed: 1000, patience: 20 * time.Second, events: 100}
}

func main() {
	if len(os.Args) > 1 && os.Args[1] == execFlag {
		execPinned(os.Args[2:])
	}
	var (
		bin     = flag.String("egressd", "bin/egressd", "the egressd binary")
		only    = flag.String("only", "", "comma-separated workloads: "+strings.Join(workloadNames(), ", "))
		isQuick = flag.Bool("quick", false, "two short rounds: under two minutes, and noisier")
		rounds  = flag.Int("rounds", 0, "rounds (0: 5, quick 2)")
		bulk    = flag.Int64("bulk-mib", 0, "MiB of one bulk transfer (0: 256, quick 64)")
		results = flag.String("o", "bench/results.md", "where the table is written; empty for nowhere")
		old     = flag.String("before", "", "another egressd binary, measured beside the first")
		who     = flag.String("proxies", strings.Join(proxies, ","), "comma-separated proxies to measure")
		role    = flag.String("proxy", "", "internal: be the reference proxy of this name")
	)
	flag.Parse()
	if *role != "" {
		if err := serveReference(*role); err != nil {
			fatal(err)
		}
		return
	}
	p := full()
	if *isQuick {
		p = quick()
	}
	if *rounds > 0 {
		p.rounds = *rounds
	}
	if *bulk > 0 {
		p.bulk = *bulk << 20
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, binaries{*bin, *old}, *only, strings.Split(*who, ","), *results, p); err != nil {
		stop()
		fatal(err)
	}
}

func fatal(err error) {
	_, _ = fmt.Fprintln(os.Stderr, "bench:", err)
	os.Exit(1)
}

// binaries are the daemon and, if one is given, the build that it is compared with.
type binaries struct{ now, before string }

func run(ctx context.Context, bin binaries, only string, who []string, results string, p plan) error {
	chosen, err := choose(only)
	if err != nil {
		return err
	}
	pinned := pinSelf(loadCore)
	runtime.GOMAXPROCS(1)
	raiseFileLimit()
	ctx, stop := context.WithTimeout(ctx, longest)
	defer stop()
	b, err := newBench(ctx, bin, who, p)
	if err != nil {
		return err
	}
	defer b.close()
	start := time.Now()
	for _, w := range chosen {
		if err := b.measure(w); err != nil {
			return fmt.Errorf("%s: %w", w.name, err)
		}
	}
	report := b.report(chosen, pinned, time.Since(start))
	fmt.Print(report.text())
	if results != "" {
		return os.WriteFile(results, []byte(report.markdown()), 0o644)
	}
	return nil
}

func choose(only string) ([]workload, error) {
	if only == "" {
		return workloads(), nil
	}
	want := strings.Split(only, ",")
	var out []workload
	for _, w := range workloads() {
		if i := slices.Index(want, w.name); i >= 0 {
			out = append(out, w)
			want = slices.Delete(want, i, i+1)
		}
	}
	if len(want) > 0 {
		return nil, fmt.Errorf("no workload %q; there are %s", want[0], strings.Join(workloadNames(), ", "))
	}
	return out, nil
}

// bench is one run: the origin, the proxies and what was measured.
type bench struct {
	ctx     context.Context // of the whole run; every sample ends with it
	plan    plan
	origin  *origin
	ssh     *sshOrigin
	sshKeys sshKeys
	pki     *pki
	dir     string
	bin     binaries
	targets map[string]*target
	samples map[string]map[string][]float64 // workload -> proxy -> values
	notes   map[string]float64              // single values that a gate wants
}

func newBench(ctx context.Context, bin binaries, who []string, p plan) (*bench, error) {
	for _, name := range who {
		if !slices.Contains(proxies, name) {
			return nil, fmt.Errorf("no proxy %q; there are %s", name, strings.Join(proxies, ", "))
		}
	}
	if bin.before != "" {
		who = append(slices.Clone(who), before)
	}
	if _, err := os.Stat(bin.now); err != nil && slices.Contains(who, egressd) {
		return nil, fmt.Errorf("%s is not there: run `make build`", bin.now)
	}
	dir, err := os.MkdirTemp("", "egressd-bench-")
	if err != nil {
		return nil, err
	}
	b := &bench{
		ctx: ctx, plan: p, dir: dir, bin: bin, targets: map[string]*target{},
		samples: map[string]map[string][]float64{}, notes: map[string]float64{},
	}
	if b.pki, err = newPKI(dir); err != nil {
		return nil, err
	}
	if b.origin, err = startOrigin(b.pki); err != nil {
		return nil, err
	}
	if b.sshKeys, err = newSSHKeys(dir); err != nil {
		return nil, err
	}
	if b.ssh, err = startSSHOrigin(b.sshKeys); err != nil {
		return nil, err
	}
	for _, name := range who {
		t, err := b.start(name)
		if err != nil {
			b.close()
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		b.targets[name] = t
	}
	return b, nil
}

// start runs a fresh process of the named proxy; direct has none.
func (b *bench) start(name string) (*target, error) {
	switch name {
	case direct:
		return &target{name: direct}, nil
	case egressd:
		return b.startEgressd(egressd, b.bin.now)
	case before:
		return b.startEgressd(before, b.bin.before)
	default:
		return b.startReference(name)
	}
}

func (b *bench) close() {
	for _, t := range b.targets {
		t.stop()
	}
	if b.origin != nil {
		b.origin.close()
	}
	if b.ssh != nil {
		b.ssh.close()
	}
	_ = os.RemoveAll(b.dir)
}

func (b *bench) measure(w workload) error {
	if w.once != nil {
		fmt.Fprintf(os.Stderr, "%-16s", w.name)
		defer fmt.Fprintln(os.Stderr)
		return w.once(b)
	}
	rounds := b.plan.rounds
	if w.short {
		rounds *= 3
	}
	fmt.Fprintf(os.Stderr, "%-16s", w.name)
	defer fmt.Fprintln(os.Stderr)
	for round := range rounds {
		for _, name := range b.measured(w.sides()) {
			if err := b.ctx.Err(); err != nil {
				return err
			}
			v, err := w.run(b, b.targets[name], round)
			if err != nil {
				return fmt.Errorf("%s, round %d: %w", name, round+1, err)
			}
			b.add(w.name, name, v)
			fmt.Fprint(os.Stderr, ".")
		}
	}
	return nil
}

// measured keeps those of names that this run measures.
func (b *bench) measured(names []string) (out []string) {
	for _, n := range names {
		if b.targets[n] != nil {
			out = append(out, n)
		}
	}
	return out
}

func (b *bench) add(workload, proxy string, v float64) {
	if b.samples[workload] == nil {
		b.samples[workload] = map[string][]float64{}
	}
	b.samples[workload][proxy] = append(b.samples[workload][proxy], v)
}

// median of what was measured; ok is false when nothing was.
func (b *bench) median(workload, proxy string) (v float64, ok bool) {
	return median(b.samples[workload][proxy])
}

func median(v []float64) (float64, bool) {
	if len(v) == 0 {
		return 0, false
	}
	s := slices.Sorted(slices.Values(v))
	if n := len(s); n%2 == 0 {
		return (s[n/2-1] + s[n/2]) / 2, true
	}
	return s[len(s)/2], true
}

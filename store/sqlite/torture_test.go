package sqlite

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/egressd/egressd/store"
)

// The child writes with several workers, each on sources of its own, and says on
// stdout what it is about to do and what was acknowledged:
//
//	try WORKER OP NAME VALUE
//	ack WORKER VERSION REV
//
// The parent kills it at a random moment, opens the store and compares.
const (
	tortureWorkers = 4
	tortureSources = 3                 // of each worker
	tortureLong    = "EGRESSD_TORTURE" // set: 1,000 rounds
)

func tortureChild(ctx context.Context, dir string) error {
	d, _, err := openDir(ctx, dir, Options{})
	if err != nil {
		return err
	}
	fmt.Println("up")
	errs := make(chan error)
	for w := range tortureWorkers {
		go func() { errs <- tortureWorker(ctx, d, w) }()
	}
	return <-errs // none comes but in failure: the process is killed
}

func tortureWorker(ctx context.Context, d *DB, w int) error {
	for n := 0; ; n++ {
		name := fmt.Sprintf("w%d-%d", w, rand.IntN(tortureSources))
		value := rand.Uint64()
		op, call, err := tortureOp(ctx, d, name, value)
		if err != nil {
			return err
		}
		fmt.Printf("try %d %s %s %d\n", w, op, name, value)
		m, err := call()
		if err != nil {
			return fmt.Errorf("%s %s: %w", op, name, err)
		}
		fmt.Printf("ack %d %d %d\n", w, m.CurrentVersion, m.Rev)
	}
}

// tortureOp picks something that must succeed.
func tortureOp(ctx context.Context, d *DB, name string, value uint64) (string, func() (store.Meta, error), error) {
	p := put(name, strconv.FormatUint(value, 10))
	_, err := d.Meta(ctx, "blue", name)
	if errors.Is(err, store.ErrNotFound) {
		p.Description = "0"
		return "create", func() (store.Meta, error) { return d.Create(ctx, p) }, nil
	}
	if err != nil {
		return "", nil, err
	}
	switch rand.IntN(8) {
	case 0:
		return "delete", func() (store.Meta, error) { return d.Delete(ctx, "blue", name, 0, "t") }, nil
	case 1, 2, 3:
		text := strconv.FormatUint(value, 10)
		return "patch", func() (store.Meta, error) {
			return d.Patch(ctx, "blue", name, store.Patch{Description: &text})
		}, nil
	default:
		p.Description = "0"
		return "update", func() (store.Meta, error) { m, _, err := d.Update(ctx, p); return m, err }, nil
	}
}

// source is what the parent believes of one: the zero value is not there.
type believed struct {
	live        bool
	version     uint64
	spec, descr string
}

// after is the belief once op has happened.
func (b believed) after(op, value string) believed {
	switch op {
	case "create":
		return believed{true, 1, value, "0"}
	case "update":
		return believed{true, b.version + 1, value, "0"}
	case "patch":
		b.descr = value
		return b
	default:
		return believed{}
	}
}

// pending is a change that was tried and not acknowledged: it may have happened.
type pending struct{ op, name, value string }

type torturer struct {
	dir   string
	state map[string]believed
	rev   store.Rev // highest acknowledged
	total *tally
}

type tally struct{ acks, open int }

// H01; `make torture` runs it long.
func TestTorture_H01_kill_9_during_writes(t *testing.T) {
	rounds := 40
	if os.Getenv(tortureLong) != "" {
		rounds = 1000
	}
	var o *torturer
	var total tally
	for round := range rounds {
		if round%10 == 0 { // from nothing, so that first starts are killed too
			o = &torturer{dir: t.TempDir(), state: make(map[string]believed), total: &total}
		}
		o.round(t, round)
		if t.Failed() {
			return
		}
	}
	t.Logf("%d rounds, %d changes acknowledged, %d under way when killed", rounds, total.acks, total.open)
	if total.acks < rounds || total.open == 0 {
		t.Errorf("%d changes in %d rounds, %d under way: the test did not try much", total.acks, rounds, total.open)
	}
}

func (o *torturer) round(t *testing.T, n int) {
	t.Helper()
	tried, err := o.kill(t, n)
	if err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	d, opener, err := openDir(t.Context(), o.dir, Options{})
	if err != nil {
		t.Fatalf("round %d: %v", n, err)
	}
	defer d.Close()
	if took := time.Since(began); took > 2*time.Second {
		t.Errorf("round %d: opened in %v", n, took)
	}
	var ok string
	if err := d.reader.QueryRow(`PRAGMA integrity_check`).Scan(&ok); err != nil || ok != "ok" {
		t.Fatalf("round %d: integrity: %s, %v", n, ok, err)
	}
	rev, err := d.Rev(t.Context())
	if err != nil || rev < o.rev {
		t.Errorf("round %d: revision %d, %v; %d was acknowledged", n, rev, err, o.rev)
	}
	o.compare(t, n, &state{DB: d, opener: opener}, tried)
}

// compare checks every source and settles what became of unacknowledged changes.
func (o *torturer) compare(t *testing.T, round int, s *state, tried map[int]pending) {
	t.Helper()
	maybe := map[string]believed{}
	for _, p := range tried {
		maybe[p.name] = o.state[p.name].after(p.op, p.value)
	}
	for w := range tortureWorkers {
		for i := range tortureSources {
			name := fmt.Sprintf("w%d-%d", w, i)
			got, err := s.observe(t.Context(), name)
			if err != nil {
				t.Fatalf("round %d: %s: %v", round, name, err)
			}
			alternative, uncertain := maybe[name]
			if got != o.state[name] && (!uncertain || got != alternative) {
				t.Errorf("round %d: %s is %+v; acknowledged %+v, tried %+v", round, name, got, o.state[name], alternative)
			}
			o.state[name] = got
		}
	}
}

// observe reads a source from both sides.
func (s *state) observe(ctx context.Context, name string) (believed, error) {
	m, err := s.Meta(ctx, "blue", name)
	if errors.Is(err, store.ErrNotFound) {
		if _, err := s.Get(ctx, "blue", name, 0); !errors.Is(err, store.ErrNotFound) {
			return believed{}, fmt.Errorf("no metadata, but a version: %w", err)
		}
		return believed{}, nil
	}
	if err != nil {
		return believed{}, err
	}
	spec, err := s.spec(ctx, name, m.CurrentVersion)
	return believed{true, m.CurrentVersion, spec, m.Description}, err
}

// kill runs the child, kills it, and returns what each worker had under way.
func (o *torturer) kill(t *testing.T, round int) (map[int]pending, error) {
	t.Helper()
	cmd := child(t, "torture", o.dir)
	pipe, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	var once sync.Once
	shoot := func() { once.Do(func() { _ = syscall.Kill(cmd.Process.Pid, syscall.SIGKILL) }) }
	defer shoot()
	lines := bufio.NewReader(pipe)
	// Every tenth is killed while it starts, the others while they write.
	startup := round%10 == 0
	if startup {
		time.AfterFunc(time.Duration(rand.IntN(60))*time.Millisecond, shoot)
	}
	tried := map[int]pending{}
	for {
		line, err := lines.ReadString('\n')
		if err == io.EOF { // what a line's writer had not finished was not acknowledged
			break
		}
		if err != nil {
			return nil, err
		}
		if line == "up\n" && !startup {
			time.AfterFunc(time.Duration(rand.IntN(120_000))*time.Microsecond, shoot)
		}
		if err := o.hear(tried, strings.Fields(line)); err != nil {
			return nil, fmt.Errorf("child said %q: %w", line, err)
		}
	}
	shoot()
	var status syscall.WaitStatus
	if err := cmd.Wait(); err != nil {
		status = cmd.ProcessState.Sys().(syscall.WaitStatus)
	}
	if !status.Signaled() || status.Signal() != syscall.SIGKILL {
		return nil, fmt.Errorf("the child ended by itself: %v", cmd.ProcessState)
	}
	o.total.open += len(tried)
	return tried, nil
}

// hear takes in one line of the child.
func (o *torturer) hear(tried map[int]pending, words []string) error {
	if len(words) == 1 {
		return nil
	}
	w, err := strconv.Atoi(words[1])
	if err != nil {
		return err
	}
	if words[0] == "try" {
		tried[w] = pending{op: words[2], name: words[3], value: words[4]}
		return nil
	}
	version, err := strconv.ParseUint(words[2], 10, 64)
	if err != nil {
		return err
	}
	rev, err := strconv.ParseUint(words[3], 10, 64)
	if err != nil {
		return err
	}
	p := tried[w]
	delete(tried, w)
	next := o.state[p.name].after(p.op, p.value)
	if next.live && next.version != version {
		return fmt.Errorf("version %d was made where %d was due", version, next.version)
	}
	o.state[p.name] = next
	o.rev = max(o.rev, store.Rev(rev))
	o.total.acks++
	return nil
}

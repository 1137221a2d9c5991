package audit

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// sink is a writer that can refuse, and hold.
type sink struct {
	mu     sync.Mutex
	buf    bytes.Buffer
	writes int
	fail   error
	part   int           // bytes that are taken before fail
	hold   chan struct{} // if set, Write waits until it is closed
}

func (s *sink) Write(p []byte) (int, error) {
	s.mu.Lock()
	hold := s.hold
	s.mu.Unlock()
	if hold != nil {
		<-hold
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.writes++
	if s.fail != nil {
		n := min(s.part, len(p))
		s.buf.Write(p[:n])
		s.part -= n
		return n, s.fail
	}
	return s.buf.Write(p)
}

func (s *sink) set(err error, part int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fail, s.part = err, part
}

func (s *sink) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.writes
}

func (s *sink) ids() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return idsOf(s.buf.String())
}

// idsOf lists the request ids of lines; a line that is no record is itself.
func idsOf(text string) []string {
	var out []string
	for line := range strings.Lines(text) {
		_, rest, _ := strings.Cut(line, `"requestId":"`)
		id, _, ok := strings.Cut(rest, `"`)
		if !ok || !strings.HasSuffix(line, "}\n") {
			id = line
		}
		out = append(out, id)
	}
	return out
}

func rec(i int) *Record { return &Record{RequestID: fmt.Sprintf("r%d", i), Sandbox: "agent"} }

func ids(from, to int) []string {
	var out []string
	for i := from; i < to; i++ {
		out = append(out, fmt.Sprintf("r%d", i))
	}
	return out
}

func same(t *testing.T, what string, got, want []string) {
	t.Helper()
	if strings.Join(got, " ") != strings.Join(want, " ") {
		t.Errorf("%s: %d records %.200q, want %d %.200q", what, len(got), got, len(want), want)
	}
}

func newWriter(t testing.TB, w io.Writer, o Options) *Log {
	t.Helper()
	l, err := NewWriter(w, o)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func TestLog_flushes_soon_and_in_one_write(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &sink{}
		l := newWriter(t, s, Options{})
		for i := range 10 {
			l.Write(rec(i))
		}
		synctest.Wait()
		if got := s.ids(); len(got) != 0 {
			t.Errorf("written at once: %q", got)
		}
		time.Sleep(200 * time.Millisecond)
		same(t, "after 200 ms", s.ids(), ids(0, 10))
		if n := s.count(); n != 1 {
			t.Errorf("%d writes for 10 records", n)
		}
		time.Sleep(time.Hour)
		if n := s.count(); n != 1 {
			t.Errorf("%d writes while idle", n-1)
		}
		l.Write(rec(10))
		if err := l.Close(); err != nil {
			t.Error(err)
		}
		same(t, "after Close", s.ids(), ids(0, 11))
		l.Write(rec(11))
		if l.Dropped() != 1 || l.Written() != 11 {
			t.Errorf("dropped %d, written %d", l.Dropped(), l.Written())
		}
		if err := l.Close(); err != nil {
			t.Errorf("second Close: %v", err)
		}
		if err := l.Flush(t.Context()); !errors.Is(err, ErrClosed) {
			t.Errorf("Flush after Close: %v", err)
		}
	})
}

func TestLog_big_queue_does_not_wait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &sink{}
		l := newWriter(t, s, Options{})
		start := time.Now()
		n := bigEnough/len(rec(1000).appendJSON(nil)) + 100
		for i := range n {
			l.Write(rec(i))
		}
		synctest.Wait()
		if len(s.ids()) == 0 || !time.Now().Equal(start) {
			t.Error("64 KiB waited for the timer")
		}
		if err := l.Flush(t.Context()); err != nil {
			t.Fatal(err)
		}
		same(t, "after Flush", s.ids(), ids(0, n))
		_ = l.Close()
	})
}

func TestAttack_H20_drop(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &sink{hold: make(chan struct{})}
		l := newWriter(t, s, Options{QueueBytes: minQueue})
		start := time.Now()
		const n = 5000
		for i := range n { // far more than the queue holds; a blocked Write would deadlock
			l.Write(rec(i))
		}
		synctest.Wait()
		for i := range n {
			l.Write(rec(n + i))
		}
		if !time.Now().Equal(start) {
			t.Error("Write waited")
		}
		d := l.Dropped()
		if d == 0 || d >= 2*n {
			t.Errorf("dropped %d of %d", d, 2*n)
		}
		close(s.hold)
		if err := l.Close(); err != nil {
			t.Error(err)
		}
		if got := len(s.ids()); uint64(got)+l.Dropped() != 2*n || uint64(got) != l.Written() {
			t.Errorf("%d in the file, %d written, %d dropped, of %d", got, l.Written(), l.Dropped(), 2*n)
		}
		for _, id := range s.ids() {
			if len(id) > 6 {
				t.Fatalf("torn line %q", id)
			}
		}
	})
}

func TestAttack_G22_block(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &sink{hold: make(chan struct{})}
		l := newWriter(t, s, Options{QueueBytes: minQueue, Overflow: Block})
		const n = 5000
		done := make(chan struct{})
		go func() {
			defer close(done)
			for i := range n {
				l.Write(rec(i))
			}
		}()
		time.Sleep(time.Minute)
		select {
		case <-done:
			t.Error("5000 records fitted into 64 KiB")
		default:
		}
		close(s.hold)
		<-done
		if err := l.Close(); err != nil {
			t.Error(err)
		}
		same(t, "after the block", s.ids(), ids(0, n))
		if l.Dropped() != 0 {
			t.Errorf("dropped %d", l.Dropped())
		}
	})
}

func TestAttack_G22_close_frees_blocked_writers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &sink{fail: errors.New("disk full")}
		l := newWriter(t, s, Options{QueueBytes: minQueue, Overflow: Block})
		var wg sync.WaitGroup
		const n, writers = 2000, 4
		for range writers {
			wg.Go(func() {
				for i := range n {
					l.Write(rec(i))
				}
			})
		}
		time.Sleep(time.Minute)
		if err := l.Close(); err == nil || !strings.Contains(err.Error(), "disk full") {
			t.Errorf("Close: %v", err)
		}
		wg.Wait()
		if l.Dropped() != n*writers || l.Written() != 0 {
			t.Errorf("dropped %d, written %d", l.Dropped(), l.Written())
		}
	})
}

func TestAttack_H03_disk_full_and_back(t *testing.T) {
	for _, mode := range []Overflow{Drop, Block} {
		t.Run(string(mode), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var told []error
				s := &sink{}
				full := errors.New("no space left")
				l := newWriter(t, s, Options{Overflow: mode, OnError: func(err error) { told = append(told, err) }})
				s.set(full, 100) // the first line is torn in its middle
				for i := range 20 {
					l.Write(rec(i))
				}
				time.Sleep(10 * time.Second)
				if n := s.count(); n < 50 || n > 110 {
					t.Errorf("%d attempts in 10 s", n)
				}
				if err := l.Failing(); !errors.Is(err, full) {
					t.Errorf("Failing = %v", err)
				}
				s.set(nil, 0)
				l.Write(rec(20))
				time.Sleep(time.Second)
				same(t, "after the disk had room again", s.ids(), ids(0, 21))
				if err := l.Failing(); err != nil {
					t.Errorf("Failing = %v", err)
				}
				if err := l.Close(); err != nil {
					t.Error(err)
				}
				if len(told) != 2 || !errors.Is(told[0], full) || told[1] != nil {
					t.Errorf("told %v; want the error once and then nil", told)
				}
			})
		})
	}
}

func TestFlush_gives_up_with_its_caller(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &sink{fail: errors.New("disk full")}
		l := newWriter(t, s, Options{})
		l.Write(rec(0))
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := l.Flush(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Flush: %v", err)
		}
		s.set(nil, 0)
		if err := l.Flush(t.Context()); err != nil {
			t.Errorf("Flush: %v", err)
		}
		same(t, "after Flush", s.ids(), ids(0, 1))
		_ = l.Close()
	})
}

func open(t *testing.T, o Options) *Log {
	t.Helper()
	l, err := Open(o)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func fileIDs(t *testing.T, name string) []string {
	t.Helper()
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return idsOf(string(b))
}

func TestOpen(t *testing.T) {
	name := filepath.Join(t.TempDir(), "audit.jsonl")
	l := open(t, Options{File: name})
	l.Write(rec(0))
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	st, err := os.Stat(name)
	if err != nil {
		t.Fatal(err)
	}
	if st.Mode().Perm() != 0o600 {
		t.Errorf("mode %v", st.Mode())
	}
	f, err := os.OpenFile(name, os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteString(`{"time":"torn by a crash`); err != nil {
		t.Fatal(err)
	}
	_ = f.Close()
	l = open(t, Options{File: name})
	l.Write(rec(1))
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	same(t, "after a crash", fileIDs(t, name), []string{"r0", "{\"time\":\"torn by a crash\n", "r1"})
}

func TestReopen(t *testing.T) {
	dir := t.TempDir()
	name, old := filepath.Join(dir, "audit.jsonl"), filepath.Join(dir, "audit.jsonl.1")
	l := open(t, Options{File: name})
	l.Write(rec(0))
	l.Write(rec(1))
	if err := os.Rename(name, old); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(l.Reopen(), l.Reopen()); err != nil { // a second one before the first was looked at
		t.Fatal(err)
	}
	if err := l.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	l.Write(rec(2))
	if err := l.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	same(t, "old file", fileIDs(t, old), ids(0, 2))
	same(t, "new file", fileIDs(t, name), ids(2, 3))
	if err := os.Remove(name); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(name, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := l.Reopen(); err == nil {
		t.Error("a directory was opened")
	}
	l.Write(rec(3)) // goes to the file that is still open
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if err := newClosed(t).Reopen(); err != nil {
		t.Errorf("without a file: %v", err)
	}
}

func newClosed(t *testing.T) *Log {
	l := newWriter(t, io.Discard, Options{})
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	return l
}

// TestReopen_cures lets the old file refuse in the middle of a line: the new one gets
// that line whole.
func TestReopen_cures(t *testing.T) {
	name := filepath.Join(t.TempDir(), "audit.jsonl")
	s := &sink{fail: errors.New("input/output error"), part: 150}
	l := newWriter(t, s, Options{})
	l.file = name
	for i := range 5 {
		l.Write(rec(i))
	}
	for l.Failing() == nil {
		time.Sleep(time.Millisecond)
	}
	if err := l.Reopen(); err != nil {
		t.Fatal(err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	whole := s.ids()
	whole = whole[:len(whole)-1] // the last one is torn
	same(t, "both files", append(whole, fileIDs(t, name)...), ids(0, 5))
}

func TestLog_concurrent(t *testing.T) {
	s := &sink{}
	l := newWriter(t, s, Options{Overflow: Block, QueueBytes: minQueue})
	var wg sync.WaitGroup
	const writers, n = 8, 2000
	for w := range writers {
		wg.Go(func() {
			for i := range n {
				l.Write(&Record{RequestID: fmt.Sprintf("w%d-%d", w, i)})
			}
		})
	}
	wg.Wait()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	next := map[string]int{}
	for _, id := range s.ids() {
		w, i, _ := strings.Cut(id, "-")
		if i != fmt.Sprint(next[w]) {
			t.Fatalf("%s came after %d of its writer", id, next[w])
		}
		next[w]++
	}
	for w := range writers {
		if got := next[fmt.Sprintf("w%d", w)]; got != n {
			t.Errorf("writer %d: %d records", w, got)
		}
	}
}

// TestAttack_H20_pipe uses a real pipe that nobody reads.
func TestAttack_H20_pipe(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = r.Close() }()
	l, err := newLog(w, Options{QueueBytes: 4 * minQueue})
	if err != nil {
		t.Fatal(err)
	}
	l.patience = 200 * time.Millisecond
	start := time.Now()
	for i := range 20000 {
		l.Write(rec(i))
	}
	if d := time.Since(start); d > 2*time.Second {
		t.Errorf("20,000 records took %v", d)
	}
	if l.Dropped() == 0 {
		t.Error("nothing was dropped, though nobody reads")
	}
	if err := l.Close(); err == nil {
		t.Error("Close says that all is well")
	}
	<-l.done
}

func TestOptions(t *testing.T) {
	for _, o := range []Options{{Overflow: "maybe"}, {QueueBytes: 100}, {QueueBytes: -1}} {
		if l, err := NewWriter(io.Discard, o); err == nil {
			t.Errorf("%+v was taken", o)
			_ = l.Close()
		}
	}
	dir := t.TempDir()
	for _, f := range []string{"", dir, filepath.Join(dir, "no", "file")} {
		if l, err := Open(Options{File: f}); err == nil {
			t.Errorf("opened %q", f)
			_ = l.Close()
		}
	}
	if _, err := Open(Options{File: filepath.Join(dir, "a"), Overflow: "maybe"}); err == nil {
		t.Error("opened with a bad overflow")
	}
}

func TestWriteAllocates(t *testing.T) {
	l := newWriter(t, io.Discard, Options{})
	r := full()
	for range 10000 { // let the buffers grow
		l.Write(r)
	}
	if n := testing.AllocsPerRun(2000, func() { l.Write(r) }); n > 1 {
		t.Errorf("%v allocations per record", n)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
}

func BenchmarkWrite(b *testing.B) {
	l := newWriter(b, io.Discard, Options{})
	r := full()
	b.ReportAllocs()
	for b.Loop() {
		l.Write(r)
	}
	b.StopTimer()
	b.ReportMetric(float64(l.Dropped()), "dropped")
	_ = l.Close()
}

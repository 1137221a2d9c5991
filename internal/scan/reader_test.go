package scan

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"strings"
	"testing"
	"testing/iotest"
)

// chunked gives one chunk with each Read, as a network does.
type chunked struct {
	chunks [][]byte
	err    error // at the end; nil: io.EOF
	early  bool  // the error comes with the last chunk
	closed bool
}

func chunks(c ...[]byte) *chunked { return &chunked{chunks: c} }

func (c *chunked) Read(p []byte) (int, error) {
	end := c.err
	if end == nil {
		end = io.EOF
	}
	if len(c.chunks) == 0 {
		return 0, end
	}
	n := copy(p, c.chunks[0])
	if c.chunks[0] = c.chunks[0][n:]; len(c.chunks[0]) == 0 {
		c.chunks = c.chunks[1:]
	}
	if c.early && len(c.chunks) == 0 {
		return n, end
	}
	return n, nil
}

func (c *chunked) Close() error {
	c.closed = true
	return nil
}

// drain reads with a buffer of size bytes.
func drain(t *testing.T, r io.Reader, size int) string {
	t.Helper()
	var out []byte
	p := make([]byte, size)
	for {
		n, err := r.Read(p)
		out = append(out, p[:n]...)
		if err == io.EOF {
			return string(out)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

// TestAllSplits cuts small streams in two and three at every place.
func TestAllSplits(t *testing.T) {
	rnd := rand.New(rand.NewPCG(5, 6))
	for range 120 {
		ps, text := randomCase(rnd)
		m := New(ps)
		want, _ := naiveReplace(ps, text)
		for i := range len(text) + 1 {
			for j := i; j <= len(text); j += 1 + rnd.IntN(4) {
				for _, size := range []int{1, 7, 4096} {
					src := &chunked{chunks: [][]byte{text[:i], text[i:j], text[j:]}, early: j%2 == 0}
					if got := drain(t, m.Replace(src, tagged), size); got != want {
						t.Fatalf("%sin %q cut at %d and %d, buffer %d: %q, want %q", show(ps), text, i, j, size, got, want)
					}
				}
			}
		}
		if got := drain(t, m.Replace(iotest.OneByteReader(bytes.NewReader(text)), tagged), 4096); got != want {
			t.Fatalf("%sin %q, byte by byte: %q, want %q", show(ps), text, got, want)
		}
	}
}

// TestHoldsBackNoMoreThanItMust: with one Read all leaves but a suffix that a pattern
// begins with.
func TestHoldsBackNoMoreThanItMust(t *testing.T) {
	rnd := rand.New(rand.NewPCG(7, 8))
	for range 20000 {
		ps, text := randomCase(rnd)
		if len(text) == 0 {
			continue
		}
		wall := errors.New("nothing more has come")
		_, want := naiveReplace(ps, text)
		var got []byte
		r := New(ps).Replace(&chunked{chunks: [][]byte{text}, err: wall}, tagged)
		for p := make([]byte, 4096); ; {
			n, err := r.Read(p)
			got = append(got, p[:n]...)
			if errors.Is(err, wall) {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		if string(got) != want {
			t.Fatalf("%sin %q: %q left, want %q", show(ps), text, got, want)
		}
	}
}

// TestEventsLeaveAtOnce lets a source wait until its event has been delivered.
func TestEventsLeaveAtOnce(t *testing.T) {
	m := New(Patterns("tok-0123456789abcdef", 0))
	pr, pw := io.Pipe()
	done := make(chan struct{})
	events := []string{"data: hello\n\n", "data: a tok-0123456789abcdef b\n\n", "{\"a\":1}\n", ": ping\n\n"}
	answered := make(chan string)
	go func() {
		defer close(done)
		defer pw.Close()
		for _, e := range events {
			if _, err := pw.Write([]byte(e)); err != nil {
				return
			}
			if got, want := <-answered, strings.ReplaceAll(e, "tok-0123456789abcdef", "[redacted]"); got != want {
				t.Errorf("%q became %q", e, got)
			}
		}
	}()
	r := m.Replace(pr, func(int) []byte { return []byte("[redacted]") })
	for p := make([]byte, 32<<10); ; {
		n, err := r.Read(p)
		if n > 0 {
			answered <- string(p[:n])
		}
		if err != nil {
			break
		}
	}
	if err := r.Close(); err != nil {
		t.Error(err)
	}
	<-done
}

// A match that does not count goes on, and what begins within it is still found.
func TestDetectOnlyWhatCounts(t *testing.T) {
	m := New([]Pattern{{Bytes: []byte("mine-and-more"), Tag: 1}, {Bytes: []byte("more-of-yours"), Tag: 2}})
	counts := func(tag int) bool { return tag == 2 }
	for in, want := range map[string]string{
		"x mine-and-more y": "x mine-and-more y", "mine-and-more-of-yours": "mine-and-", "a mine-and-more b more-of-yours c": "a mine-and-more b ",
	} {
		for i := range in {
			got, err := io.ReadAll(m.Detect(chunks([]byte(in[:i]), []byte(in[i:])), counts))
			if !upTo(string(got), want, in, i) || (len(got) < len(in)) != errors.Is(err, ErrFound) {
				t.Errorf("%q at %d: %q, %v", in, i, got, err)
			}
		}
	}
}

// upTo: got is want, or as much more of text as may go when it was cut there.
func upTo(got, want, text string, cut int) bool {
	return got == want || got == text[:cut] && len(want) < cut && cut < len(want)+block
}

// TestDetectHoldsNothingOfAMessage: whoever waits for a message gets the last byte of it,
// though some value begins with that.
func TestDetectHoldsNothingOfAMessage(t *testing.T) {
	m := New(Patterns("token-of-somebody", 0))
	for _, end := range []string{"t", "to", "tok", "74", "dG9", "ok"} {
		for _, size := range []int{7, 4096} {
			wall := errors.New("nothing more has come")
			r := m.Detect(&chunked{chunks: [][]byte{[]byte("message " + end)}, err: wall}, nil)
			var got []byte
			var err error
			for p := make([]byte, size); err == nil; {
				var n int
				n, err = r.Read(p)
				got = append(got, p[:n]...)
			}
			if string(got) != "message "+end || !errors.Is(err, wall) {
				t.Errorf("%q: %q, %v", end, got, err)
			}
		}
	}
}

// TestDetectAllSplits: wherever a stream is cut, what is in it is found, and what is not is
// not; of a match three bytes leave at the most.
func TestDetectAllSplits(t *testing.T) {
	for _, value := range []string{"aabaabaab", "abcabcab!", "tok%2Ftok%2F"} {
		m := New([]Pattern{{Bytes: []byte(value), Fold: FoldEscapes}, {Bytes: []byte("another-one")}})
		for _, around := range []string{"", "a", "aab", "abcab", "tok%2ftok", "aabaaba", "abcabca"} {
			text := around + strings.ToLower(value) + around
			start, _, _, _ := m.Find([]byte(text))
			for i := range len(text) + 1 {
				for j := i; j <= len(text); j++ {
					for _, size := range []int{1, 4096} {
						got, err := io.ReadAll(io.LimitReader(sized{m.Detect(chunks([]byte(text[:i]), []byte(text[i:j]), []byte(text[j:])), nil), size}, 1<<10))
						if !errors.Is(err, ErrFound) || len(got) < start || len(got) >= start+block || string(got) != text[:len(got)] {
							t.Fatalf("%q in %q cut at %d and %d, buffer %d: %q, %v", value, text, i, j, size, got, err)
						}
						without := strings.ReplaceAll(text, strings.ToLower(value), "aabaabaXabc")
						if _, _, _, is := m.Find([]byte(without)); is {
							continue
						}
						i, j := min(i, len(without)), min(j, len(without))
						got, err = io.ReadAll(sized{m.Detect(chunks([]byte(without[:i]), []byte(without[i:j]), []byte(without[j:])), nil), size})
						if err != nil || string(got) != without {
							t.Fatalf("nothing in %q cut at %d and %d, buffer %d: %q, %v", without, i, j, size, got, err)
						}
					}
				}
			}
		}
	}
}

// sized reads with a buffer of n bytes at the most.
type sized struct {
	r io.Reader
	n int
}

func (s sized) Read(p []byte) (int, error) { return s.r.Read(p[:min(len(p), s.n)]) }

func TestDetect(t *testing.T) {
	const value = "tok-0123456789abcdef"
	m := New(Patterns(value, 9))
	text := "before " + value + " after"
	for i := range len(text) + 1 {
		for _, size := range []int{1, 3, 4096} {
			tags := 0
			r := m.Detect(chunks([]byte(text[:i]), []byte(text[i:])), func(tag int) bool { tags += tag; return true })
			var got []byte
			var err error
			for p := make([]byte, size); err == nil; {
				var n int
				n, err = r.Read(p)
				got = append(got, p[:n]...)
				if size == 4096 && bytes.Contains(p, []byte(value)) {
					t.Fatal("the value stands in the caller's buffer")
				}
			}
			if !errors.Is(err, ErrFound) || !upTo(string(got), "before ", text, i) || tags != 9 {
				t.Fatalf("cut at %d, buffer %d: %q, %v, tags %d", i, size, got, err, tags)
			}
			if n, err := r.Read(make([]byte, 10)); n != 0 || !errors.Is(err, ErrFound) {
				t.Fatalf("after the error: %d, %v", n, err)
			}
		}
	}
	if got := drain(t, m.Detect(strings.NewReader("nothing tok-0123456789abcde"), nil), 5); got != "nothing tok-0123456789abcde" {
		t.Errorf("a beginning alone: %q", got)
	}
	if _, err := io.ReadAll(m.Detect(strings.NewReader(text), nil)); !errors.Is(err, ErrFound) {
		t.Error(err)
	}
}

func TestReaderPassesErrorsOn(t *testing.T) {
	m := New([]Pattern{{Bytes: []byte("0123456789")}})
	broken := errors.New("broken")
	for _, early := range []bool{false, true} {
		for _, size := range []int{4, 4096} {
			r := m.Replace(&chunked{chunks: [][]byte{[]byte("ab 01234")}, err: broken, early: early}, tagged)
			var got []byte
			var err error
			for p := make([]byte, size); err == nil; {
				var n int
				n, err = r.Read(p)
				got = append(got, p[:n]...)
			}
			if string(got) != "ab " || !errors.Is(err, broken) {
				t.Errorf("early %v, buffer %d: %q, %v", early, size, got, err)
			}
		}
	}
	for _, r := range []*Reader{m.Replace(stuck{}, tagged), m.Detect(stuck{}, nil)} {
		if _, err := r.Read(make([]byte, 1000)); !errors.Is(err, io.ErrNoProgress) {
			t.Error(err)
		}
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	}
	if _, err := m.Replace(liar{}, tagged).Read(make([]byte, 1000)); err == nil {
		t.Error("an impossible length was believed")
	}
}

type stuck struct{}

func (stuck) Read([]byte) (int, error) { return 0, nil }

type liar struct{}

func (liar) Read(p []byte) (int, error) { return len(p) + 1, nil }

func TestReplaceWithNothingAndWithMore(t *testing.T) {
	m := New([]Pattern{{Bytes: []byte("secret")}})
	in := strings.Repeat("secret", 2000) + "x"
	if got := drain(t, m.Replace(strings.NewReader(in), func(int) []byte { return nil }), 600); got != "x" {
		t.Errorf("%q", got)
	}
	// What replaces is not searched: it may hold the value itself.
	if got := drain(t, m.Replace(strings.NewReader(in), func(int) []byte { return []byte("(secret)") }), 600); got != strings.Repeat("(secret)", 2000)+"x" {
		t.Errorf("%d bytes", len(got))
	}
	if n, err := m.Replace(strings.NewReader(in), tagged).Read(nil); n != 0 || err != nil {
		t.Errorf("empty buffer: %d, %v", n, err)
	}
}

func BenchmarkFind(b *testing.B) {
	text := benchText()
	binary := benchBinary()
	for _, bc := range []struct {
		name string
		ps   []Pattern
	}{
		{"1x16", []Pattern{{Bytes: []byte("zq8!kfj2_ppd93@x")}}},
		{"all forms of 16", Patterns("zq8kfj2_ppd93xw4", 0)},
		{"all forms of 40", Patterns("zq8kfj2ppd93xw4Hq03kKd9eLzzP0q7TbVwA1mNs", 0)},
		{"all forms of 8", Patterns("zq8kfj2p", 0)},
		{"100 values of 32", manyValues(100)},
		{"1000 values of 32", manyValues(1000)},
	} {
		m := New(bc.ps)
		for name, in := range map[string][]byte{"json": text, "random": binary} {
			b.Run(bc.name+"/"+name, func(b *testing.B) {
				b.SetBytes(int64(len(in)))
				for b.Loop() {
					if _, _, _, ok := m.Find(in); ok {
						b.Fatal("found")
					}
				}
			})
		}
	}
	b.Run("bytes.Index 1x16/json", func(b *testing.B) {
		b.SetBytes(int64(len(text)))
		for b.Loop() {
			bytes.Index(text, []byte("zq8!kfj2_ppd93@x"))
		}
	})
	forms := Encodings("zq8kfj2ppd93xw4Hq03kKd9eLzzP0q7TbVwA1mNs")
	b.Run("bytes.Index each form of 40/json", func(b *testing.B) {
		b.SetBytes(int64(len(text)))
		for b.Loop() {
			for _, f := range forms {
				bytes.Index(text, f)
			}
		}
	})
}

func BenchmarkReader(b *testing.B) {
	text := benchText()
	m := New(Patterns("zq8kfj2ppd93xw4Hq03kKd9eLzzP0q7TbVwA1mNs", 0))
	p := make([]byte, 32<<10)
	run := func(name string, wrap func(io.Reader) io.Reader) {
		b.Run(name, func(b *testing.B) {
			b.SetBytes(int64(len(text)))
			b.ReportAllocs()
			for b.Loop() {
				if _, err := io.CopyBuffer(onlyWriter{}, onlyReader{wrap(bytes.NewReader(text))}, p); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
	run("io.Copy", func(r io.Reader) io.Reader { return r })
	run("replace", func(r io.Reader) io.Reader { return m.Replace(r, tagged) })
	run("detect", func(r io.Reader) io.Reader { return m.Detect(r, nil) })
}

func BenchmarkNew(b *testing.B) {
	ps := Patterns("zq8kfj2ppd93xw4Hq03kKd9eLzzP0q7TbVwA1mNs", 0)
	b.Run("Patterns", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			Patterns("zq8kfj2ppd93xw4Hq03kKd9eLzzP0q7TbVwA1mNs", 0)
		}
	})
	b.Run("New", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			New(ps)
		}
	})
}

type onlyReader struct{ io.Reader }

type onlyWriter struct{}

func (onlyWriter) Write(p []byte) (int, error) { return len(p), nil }

func manyValues(n int) []Pattern {
	rnd := rand.New(rand.NewPCG(11, 12))
	var ps []Pattern
	for i := range n {
		ps = append(ps, Patterns(fmt.Sprintf("%016x%016x", rnd.Uint64(), rnd.Uint64()), i)...)
	}
	return ps
}

func benchText() []byte {
	var b bytes.Buffer
	rnd := rand.New(rand.NewPCG(9, 10))
	for b.Len() < 1<<20 {
		fmt.Fprintf(&b, "{\"id\":%d,\"login\":\"user%d\",\"node_id\":\"MDQ6VXNlcj%x\",\"html_url\":\"https://api.example.com/users/%d?per_page=100\"},\n",
			rnd.Uint32(), rnd.Uint32(), rnd.Uint64(), rnd.Uint32())
	}
	return b.Bytes()
}

func benchBinary() []byte {
	rnd := rand.New(rand.NewPCG(13, 14))
	b := make([]byte, 1<<20)
	for i := range b {
		b[i] = byte(rnd.Uint32())
	}
	return b
}

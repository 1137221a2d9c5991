package scan

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// naiveAt is what Find must say about one place, the slow way.
func naiveAt(ps []Pattern, b []byte) (best int, open bool) {
	best = -1
	for i, p := range ps {
		if len(p.Bytes) < MinPattern {
			continue
		}
		if len(p.Bytes) > len(b) {
			open = open || naiveEqual(p, p.Bytes[:len(b)], b)
			continue
		}
		if naiveEqual(p, p.Bytes, b[:len(p.Bytes)]) && (best < 0 || len(p.Bytes) > len(ps[best].Bytes)) {
			best = i
		}
	}
	return best, open && len(b) > 0
}

func naiveEqual(p Pattern, want, b []byte) bool {
	if p.Fold == FoldLetters {
		return bytes.EqualFold(want, b)
	}
	return bytes.Equal(want, b)
}

func naiveFind(ps []Pattern, b []byte) (start, end, tag int, ok bool) {
	for i := range b {
		if n, _ := naiveAt(ps, b[i:]); n >= 0 {
			return i, i + len(ps[n].Bytes), ps[n].Tag, true
		}
	}
	return 0, 0, 0, false
}

// naiveReplace also says how many bytes may not leave yet, were more to come.
func naiveReplace(ps []Pattern, b []byte) (whole, released string) {
	var out, early []byte
	held := false
	for i := 0; i < len(b); {
		n, open := naiveAt(ps, b[i:])
		if open && !held {
			held, early = true, slices.Clone(out)
		}
		if n >= 0 {
			out = fmt.Appendf(out, "<%d>", ps[n].Tag)
			i += len(ps[n].Bytes)
			continue
		}
		out = append(out, b[i])
		i++
	}
	if !held {
		early = out
	}
	return string(out), string(early)
}

func tagged(tag int) []byte { return fmt.Appendf(nil, "<%d>", tag) }

// randomCase has few letters, so that patterns overlap and nest.
func randomCase(rnd *rand.Rand) (ps []Pattern, text []byte) {
	letters := []byte("abAB")[:2+rnd.IntN(3)]
	word := func(n int) []byte {
		b := make([]byte, n)
		for i := range b {
			b[i] = letters[rnd.IntN(len(letters))]
		}
		return b
	}
	longest := []int{5, 9, 40}[rnd.IntN(3)]
	for i := range 1 + rnd.IntN(6) {
		ps = append(ps, Pattern{Bytes: word(3 + rnd.IntN(longest)), Tag: i, Fold: Fold(rnd.IntN(2))})
	}
	text = word(rnd.IntN(40))
	for range rnd.IntN(4) {
		text = append(append(text, ps[rnd.IntN(len(ps))].Bytes...), word(rnd.IntN(12))...)
	}
	if len(text) > 0 && rnd.IntN(2) == 0 {
		text = text[:rnd.IntN(len(text))]
	}
	return ps, text
}

func TestFindIsNaiveFind(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	found := 0
	for range 20000 {
		ps, text := randomCase(rnd)
		start, end, tag, ok := New(ps).Find(text)
		wStart, wEnd, wTag, wOK := naiveFind(ps, text)
		if ok != wOK || start != wStart || end != wEnd || tag != wTag {
			t.Fatalf("%s in %q: [%d:%d] tag %d %v, want [%d:%d] tag %d %v", show(ps), text, start, end, tag, ok, wStart, wEnd, wTag, wOK)
		}
		if ok {
			found++
		}
	}
	if found < 1000 {
		t.Errorf("only %d of the cases had a match", found)
	}
}

func show(ps []Pattern) string {
	var b []byte
	for _, p := range ps {
		b = fmt.Appendf(b, "%q/%d/%d ", p.Bytes, p.Tag, p.Fold)
	}
	return string(b)
}

func TestFind(t *testing.T) {
	type result struct {
		Start, End, Tag int
		OK              bool
	}
	long := bytes.Repeat([]byte("0123456789abcdef"), 300)
	for _, tc := range []struct {
		name     string
		patterns []Pattern
		in       string
		want     result
	}{
		{"nothing to look for", nil, "anything", result{}},
		{"too short to be looked for", []Pattern{{Bytes: []byte("abc")}}, "abcabc", result{}},
		{"at the beginning", []Pattern{{Bytes: []byte("needle"), Tag: 7}}, "needle in hay", result{0, 6, 7, true}},
		{"at the end", []Pattern{{Bytes: []byte("needle"), Tag: 7}}, "hay needle", result{4, 10, 7, true}},
		{"cut", []Pattern{{Bytes: []byte("needle")}}, "hay needl", result{}},
		{"the longest", []Pattern{{Bytes: []byte("needle"), Tag: 1}, {Bytes: []byte("needlework"), Tag: 2}}, "needlework", result{0, 10, 2, true}},
		{"the longest that is there", []Pattern{{Bytes: []byte("needle"), Tag: 1}, {Bytes: []byte("needlework"), Tag: 2}}, "needlewor", result{0, 6, 1, true}},
		{"the leftmost", []Pattern{{Bytes: []byte("dlework and more"), Tag: 1}, {Bytes: []byte("needle"), Tag: 2}}, "needlework and more", result{0, 6, 2, true}},
		{"the first of equals", []Pattern{{Bytes: []byte("needle"), Tag: 5}, {Bytes: []byte("needle"), Tag: 6}}, "a needle", result{2, 8, 5, true}},
		{"folded letters", []Pattern{{Bytes: []byte("0aB1cD"), Fold: FoldLetters}}, "..0Ab1Cd", result{2, 8, 0, true}},
		{"folding is of letters only", []Pattern{{Bytes: []byte("ab@[cd"), Fold: FoldLetters}}, "AB`{CD", result{}},
		{"folded escapes", []Pattern{{Bytes: []byte("aa%2Fbb\\u00e9"), Fold: FoldEscapes}}, "aa%2fbb\\u00E9", result{0, 13, 0, true}},
		{"outside escapes nothing is folded", []Pattern{{Bytes: []byte("aa%2Fbb"), Fold: FoldEscapes}}, "aa%2FBb", result{}},
		{"after an escape nothing is folded", []Pattern{{Bytes: []byte("%2Fabcd"), Fold: FoldEscapes}}, "%2FAbcd", result{}},
		{"longer than a window", []Pattern{{Bytes: long, Tag: 3}}, "x" + string(long), result{1, 1 + len(long), 3, true}},
		{"longer than a window, last byte wrong", []Pattern{{Bytes: long}}, string(long[:len(long)-1]) + "_", result{}},
		{"a byte is any byte", []Pattern{{Bytes: []byte{0, 0xff, 0, 0xfe}}}, "\x00\x00\xff\x00\xfe", result{1, 5, 0, true}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			start, end, tag, ok := New(tc.patterns).Find([]byte(tc.in))
			if diff := cmp.Diff(tc.want, result{start, end, tag, ok}); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestZeroMatcher(t *testing.T) {
	var zero Matcher
	for _, m := range []*Matcher{nil, &zero, New(nil)} {
		if _, _, _, ok := m.Find([]byte("anything")); ok || !m.Empty() || m.Longest() != 0 {
			t.Error("an empty matcher found something")
		}
		if b, n := m.Bytes([]byte("anything"), tagged); string(b) != "anything" || n != 0 {
			t.Errorf("%q", b)
		}
	}
}

// TestThousandsOfPatterns fills the table beyond its largest size.
func TestThousandsOfPatterns(t *testing.T) {
	rnd := rand.New(rand.NewPCG(3, 4))
	var ps []Pattern
	for i := range 3000 {
		b := make([]byte, 20+rnd.IntN(200))
		for j := range b {
			b[j] = byte(rnd.Uint32())
		}
		ps = append(ps, Pattern{Bytes: b, Tag: i})
	}
	m := New(ps)
	noise := make([]byte, 1000)
	for i := range noise {
		noise[i] = byte(rnd.Uint32())
	}
	for i, p := range ps {
		text := slices.Concat(noise[:i%1000], p.Bytes, noise)
		if start, end, tag, ok := m.Find(text); !ok || start != i%1000 || end != start+len(p.Bytes) || tag != i {
			t.Fatalf("pattern %d: [%d:%d] tag %d %v", i, start, end, tag, ok)
		}
	}
}

func TestNoAllocation(t *testing.T) {
	m := New(Patterns("a value of some length", 0))
	text := bytes.Repeat([]byte("hay and hay and a valu"), 100)
	if n := testing.AllocsPerRun(10, func() { m.Find(text); m.Bytes(text, tagged) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func TestPrintsNoValue(t *testing.T) {
	ps := Patterns("correct-horse-battery", 0)
	m := New(ps)
	for _, s := range []string{fmt.Sprint(m), fmt.Sprintf("%+v %#v", m, m), fmt.Sprintf("%+v %#v %s", ps, ps[0], &ps[0])} {
		if bytes.Contains([]byte(s), []byte("horse")) || bytes.Contains([]byte(s), []byte("104")) {
			t.Error(s)
		}
	}
}

func FuzzFind(f *testing.F) {
	f.Add([]byte("aaaab"), []byte("aaaabb"), []byte("xaaaabbaaaab"), byte(1))
	f.Add([]byte("%2Fab"), []byte("%2fab"), []byte("%2F%2fab"), byte(4))
	f.Fuzz(func(t *testing.T, a, b, text []byte, at byte) {
		ps := []Pattern{{Bytes: a, Tag: 0}, {Bytes: b, Tag: 1, Fold: FoldLetters}}
		if !asciiOnlyBytes(b) {
			ps = ps[:1] // bytes.EqualFold knows more letters
		}
		m := New(ps)
		start, end, tag, ok := m.Find(text)
		wStart, wEnd, wTag, wOK := naiveFind(ps, text)
		if start != wStart || end != wEnd || tag != wTag || ok != wOK {
			t.Fatalf("[%d:%d] tag %d %v, want [%d:%d] tag %d %v", start, end, tag, ok, wStart, wEnd, wTag, wOK)
		}
		want, _ := naiveReplace(ps, text)
		got, _ := m.Bytes(text, tagged)
		if string(got) != want {
			t.Fatalf("%q, want %q", got, want)
		}
		k := min(int(at), len(text))
		if s := drain(t, m.Replace(chunks(text[:k], text[k:]), tagged), 1+int(at)*7); s != want {
			t.Fatalf("in two chunks: %q, want %q", s, want)
		}
	})
}

func asciiOnlyBytes(b []byte) bool {
	return !slices.ContainsFunc(b, func(c byte) bool { return c >= 0x80 })
}

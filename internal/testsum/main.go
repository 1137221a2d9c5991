// Command testsum turns the output of `go test -json` into what a person reads: a line
// per package, the whole output of each failed test, each skipped test with its reason,
// and a last line with the counts.
package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"
)

type event struct {
	Action  string
	Package string
	Test    string
	Output  string
}

type summary struct {
	out                     io.Writer
	buffered                map[string]*strings.Builder // output of a test, until it is known to matter
	passed, failed, skipped int
	broken                  bool // a package failed outside its tests
}

func main() {
	s := &summary{out: os.Stdout, buffered: map[string]*strings.Builder{}}
	if err := s.read(os.Stdin); err != nil {
		_, _ = fmt.Fprintln(os.Stderr, "testsum:", err)
		os.Exit(1)
	}
	if s.failed > 0 || s.broken {
		os.Exit(1)
	}
}

func (s *summary) read(r io.Reader) error {
	in := bufio.NewReader(r)
	for {
		line, err := in.ReadBytes('\n')
		if len(line) > 0 {
			s.line(line)
		}
		if err == io.EOF {
			_, werr := fmt.Fprintf(s.out, "%d passed, %d failed, %d skipped\n", s.passed, s.failed, s.skipped)
			return werr
		}
		if err != nil {
			return err
		}
	}
}

func (s *summary) line(line []byte) {
	var e event
	if json.Unmarshal(line, &e) != nil || e.Action == "" {
		_, _ = s.out.Write(line) // what the go command says itself
		return
	}
	key := e.Package + " " + e.Test
	switch e.Action {
	case "output", "build-output":
		s.output(key, e)
	case "build-fail":
		s.broken = true
	case "pass", "fail", "skip":
		s.result(key, e)
	}
}

func (s *summary) output(key string, e event) {
	if e.Action == "build-output" || e.Test == "" {
		if e.Output != "PASS\n" && e.Output != "FAIL\n" && !strings.Contains(e.Output, "[no test files]") {
			_, _ = io.WriteString(s.out, e.Output)
		}
		return
	}
	b := s.buffered[key]
	if b == nil {
		b = &strings.Builder{}
		s.buffered[key] = b
	}
	if b.Len() < 1<<20 {
		b.WriteString(e.Output)
	}
}

func (s *summary) result(key string, e event) {
	text := ""
	if b := s.buffered[key]; b != nil {
		text = b.String()
		delete(s.buffered, key)
	}
	if e.Test == "" {
		s.broken = s.broken || e.Action == "fail"
		if e.Action == "fail" {
			s.unfinished(e.Package)
		}
		return
	}
	switch e.Action {
	case "pass":
		s.passed++
		return
	case "fail":
		s.failed++
	case "skip":
		s.skipped++
	}
	_, _ = fmt.Fprint(s.out, text)
}

// unfinished prints what tests had said when their package died (a panic, a timeout).
func (s *summary) unfinished(pkg string) {
	for key, b := range s.buffered {
		if strings.HasPrefix(key, pkg+" ") {
			_, _ = fmt.Fprint(s.out, b.String())
			delete(s.buffered, key)
		}
	}
}

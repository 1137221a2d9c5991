package redis

import (
	"bytes"
	"errors"
	"io"
	"os"
	"strconv"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/egressd/egressd/inject"
	"github.com/egressd/egressd/internal/secret"
)

const (
	realUser = "real-user"
	realPass = "real-pass-9d1c"
)

func filtered(src io.Reader) *commands {
	r := &rules{login: func() (*inject.Login, error) {
		return &inject.Login{Username: realUser, Password: secret.New(realPass)}, nil
	}, resets: func() {}}
	return &commands{src: src, rewrite: r.rewrite}
}

// readAll uses buffers of n bytes.
func readAll(r io.Reader, n int) (out []byte, err error) {
	b := make([]byte, n)
	for {
		m, err := r.Read(b)
		out = append(out, b[:m]...)
		if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
			return out, err
		}
	}
}

// parse is another reader of what a server gets: whole commands, and what is left.
func parse(b []byte) (cmds [][]string, rest []byte) {
	take := func(typ byte) (int, bool) {
		line, after, ok := bytes.Cut(b, []byte("\r\n"))
		if !ok || len(line) < 2 || line[0] != typ {
			return 0, false
		}
		n, err := strconv.Atoi(string(line[1:]))
		if err != nil {
			return 0, false
		}
		b = after
		return n, true
	}
	for len(b) > 0 {
		rest = b
		n, ok := take('*')
		if !ok {
			return cmds, rest
		}
		var args []string
		for range n {
			size, ok := take('$')
			if !ok || len(b) < size+2 {
				return cmds, rest
			}
			args = append(args, string(b[:size]))
			b = b[size+2:]
		}
		cmds = append(cmds, args)
	}
	return cmds, nil
}

// FuzzCommands: however the bytes come in, the server gets the same, and finds in it no
// login but egressd's and no command that must not be.
func FuzzCommands(f *testing.F) {
	for _, s := range []string{
		cmd("SET", "k", "v") + cmd("AUTH", "u", "p") + cmd("GET", "k"), "AUTH x\r\nPING\r\n", cmd("HELLO", "3", "AUTH", "u", "p", "SETNAME", "n"),
		cmd("RESET") + "*0\r\n*-1\r\n\r\n" + cmd("CONFIG", "GET", "req*"), cmd("SET", "k", cmd("AUTH", "u", "p")) + cmd("AUTH\x00x", "u", "p"), "*2\r\n$4\r\nECHO\r\n$5\r\nAU",
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		out, err := readAll(filtered(bytes.NewReader(in)), 4096)
		for _, src := range []io.Reader{iotest.OneByteReader(bytes.NewReader(in)), &faltering{r: bytes.NewReader(in)}} {
			if out2, err2 := readAll(filtered(src), 7); !bytes.Equal(out, out2) || errors.Is(err, io.EOF) != errors.Is(err2, io.EOF) {
				t.Fatalf("in pieces %q, %v; else %q, %v", out2, err2, out, err)
			}
		}
		cmds, rest := parse(out)
		for _, c := range cmds {
			switch strings.ToUpper(c[0]) {
			case "AUTH":
				if len(c) > 1 && (len(c) != 3 || c[1] != realUser || c[2] != realPass) {
					t.Fatalf("login %q", c)
				}
			case "HELLO":
				for i, a := range c[min(len(c), 2):] {
					if strings.EqualFold(a, "AUTH") && c[min(i+1, len(c)-1)] != "SETNAME" && (len(c) < i+5 || c[i+3] != realUser || c[i+4] != realPass) {
						t.Fatalf("login %q", c)
					}
				}
			case "CONFIG":
				if strings.Contains(strings.ToLower(strings.Join(c, " ")), "get requirepass") {
					t.Fatalf("passed %q", c)
				}
			}
			if i := strings.IndexByte(c[0], 0); i >= 0 {
				t.Fatalf("name %q", c[0])
			}
		}
		if len(rest) > 0 && rest[0] != '*' {
			t.Fatalf("what is left begins with %q", rest)
		}
	})
}

// faltering fails before every read that gives something, as at a deadline: readAll goes on.
type faltering struct {
	r    io.Reader
	even bool
}

func (f *faltering) Read(p []byte) (int, error) {
	f.even = !f.even
	if f.even {
		return 0, os.ErrDeadlineExceeded
	}
	return f.r.Read(p[:min(len(p), 3)])
}

// FuzzReplies: nothing is lost or changed but the one reply behind RESET's, however
// the bytes come in.
func FuzzReplies(f *testing.F) {
	for _, s := range []string{
		"+OK\r\n+RESET\r\n+OK\r\n$3\r\nabc\r\n", "*2\r\n$5\r\n+OK\r\n\r\n:1\r\n", "%1\r\n+a\r\n*0\r\n|1\r\n+k\r\n+v\r\n$-1\r\n", "-ERR unknown command 'RESET'\r\n+OK\r\n:1\r\n", ">1\r\n+RESET\r\n",
	} {
		f.Add([]byte(s), 1)
	}
	f.Fuzz(func(t *testing.T, in []byte, resets int) {
		pass := func(resets, size int) ([]byte, error, bool) {
			r := &replies{}
			r.resets.Store(int32(resets))
			var out []byte
			for b := bytes.Clone(in); len(b) > 0; {
				n := min(size, len(b))
				kept, err := r.filter(b[:n])
				out = append(out, b[:kept]...)
				if err != nil {
					return out, err, r.take
				}
				b = b[n:]
			}
			return out, nil, r.take
		}
		if out, err, _ := pass(0, 5); err != nil || !bytes.Equal(out, in) {
			t.Fatalf("%q, %v", out, err)
		}
		resets = min(max(resets, 0), 8)
		a, errA, waits := pass(resets, len(in)+1)
		b, errB, _ := pass(resets, 1)
		if !bytes.Equal(a, b) || (errA == nil) != (errB == nil) {
			t.Fatalf("%q, %v; in pieces %q, %v", a, errA, b, errB)
		}
		if missing := len(in) - len(a); errA == nil && !waits && (missing > 5*resets || missing < 0) {
			t.Fatalf("%d bytes are missing after %d resets", missing, resets)
		}
	})
}

func TestReplies(t *testing.T) {
	for _, tc := range []struct {
		name, in, want string
		resets         int32
		ok             bool
	}{
		{"nothing asked", "+RESET\r\n+OK\r\n", "+RESET\r\n+OK\r\n", 0, true},
		{"reset", ":1\r\n+RESET\r\n+OK\r\n:2\r\n", ":1\r\n+RESET\r\n:2\r\n", 1, true},
		{"two", "+RESET\r\n+OK\r\n+RESET\r\n+OK\r\n+OK\r\n", "+RESET\r\n+RESET\r\n+OK\r\n", 2, true},
		{"no such command", "-ERR unknown command 'RESET', with args\r\n+OK\r\n+OK\r\n", "-ERR unknown command 'RESET', with args\r\n+OK\r\n", 1, true},
		{"in a value", "$11\r\n+RESET\r\n+O\r\n*1\r\n+RESET\r\n+OK\r\n", "$11\r\n+RESET\r\n+O\r\n*1\r\n+RESET\r\n+OK\r\n", 1, true},
		{"in maps and pushes", "%1\r\n+RESET\r\n+RESET\r\n>2\r\n+RESET\r\n#t\r\n~1\r\n+RESET\r\n+OK\r\n", "%1\r\n+RESET\r\n+RESET\r\n>2\r\n+RESET\r\n#t\r\n~1\r\n+RESET\r\n+OK\r\n", 1, true},
		{"login refused", "+RESET\r\n-WRONGPASS x\r\n", "+RESET\r\n", 1, false},
		{"not RESP", "\x00\r\n+RESET\r\n+OK\r\n", "\x00\r\n+RESET\r\n+OK\r\n", 1, true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r := &replies{}
			r.resets.Store(tc.resets)
			b := []byte(tc.in)
			n, err := r.filter(b)
			if string(b[:n]) != tc.want || (err == nil) != tc.ok {
				t.Errorf("%q, %v", b[:n], err)
			}
		})
	}
}

func BenchmarkCommands(b *testing.B) {
	one := []byte(strings.Repeat(cmd("SET", "key:000000000001", "value-of-32-bytes---------------"), 200))
	buf := make([]byte, 32<<10)
	b.SetBytes(int64(len(one)))
	for b.Loop() {
		c := filtered(bytes.NewReader(one))
		for {
			if _, err := c.Read(buf); err != nil {
				break
			}
		}
	}
}

func BenchmarkReplies(b *testing.B) {
	one := []byte(strings.Repeat("+OK\r\n$32\r\nvalue-of-32-bytes---------------\r\n", 400))
	b.SetBytes(int64(len(one)))
	for b.Loop() {
		if _, err := (&replies{}).filter(one); err != nil {
			b.Fatal(err)
		}
	}
}

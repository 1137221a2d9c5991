package scan

import (
	"bytes"
	"compress/gzip"
	"compress/zlib"
	"errors"
	"io"
	"math/rand/v2"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"github.com/andybalholm/brotli"
)

// coder is what the writers of all codings have.
type coder interface {
	io.WriteCloser
	Flush() error
}

func coders() map[string]func(io.Writer) coder {
	return map[string]func(io.Writer) coder{
		"gzip":     func(w io.Writer) coder { return gzip.NewWriter(w) },
		"X-GZip ":  func(w io.Writer) coder { return gzip.NewWriter(w) },
		"deflate":  func(w io.Writer) coder { return zlib.NewWriter(w) },
		"br":       func(w io.Writer) coder { return brotli.NewWriter(w) },
		"identity": func(w io.Writer) coder { return plain{w} },
		"":         func(w io.Writer) coder { return plain{w} },
	}
}

type plain struct{ io.Writer }

func (plain) Flush() error { return nil }
func (plain) Close() error { return nil }

func encode(t *testing.T, with func(io.Writer) coder, b []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	w := with(&out)
	if _, err := w.Write(b); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func TestDecoded(t *testing.T) {
	text := benchText()[:300<<10]
	for name, with := range coders() {
		coded := encode(t, with, text)
		for _, src := range []io.Reader{bytes.NewReader(coded), iotest.HalfReader(bytes.NewReader(coded)), iotest.DataErrReader(bytes.NewReader(coded))} {
			r, err := Decoded(src, name, Limits{})
			if err != nil {
				t.Fatal(err)
			}
			if got, err := io.ReadAll(r); err != nil || !bytes.Equal(got, text) {
				t.Errorf("%s: %d bytes, %v", name, len(got), err)
			}
			if n, err := r.Read(make([]byte, 1)); n != 0 || err != io.EOF {
				t.Errorf("%s: after the end: %d, %v", name, n, err)
			}
		}
		r, err := Decoded(strings.NewReader(""), name, Limits{})
		if err != nil {
			t.Fatal(err)
		}
		if got, err := io.ReadAll(r); err != nil || len(got) != 0 {
			t.Errorf("%s: a body of no bytes: %q, %v", name, got, err)
		}
		if name == "" || name == "identity" {
			continue
		}
		for what, body := range map[string][]byte{"cut": coded[:len(coded)-1], "cut early": coded[:3], "not coded": text} {
			r, err := Decoded(bytes.NewReader(body), name, Limits{})
			if err != nil {
				t.Fatal(err)
			}
			if _, err := io.ReadAll(r); err == nil {
				t.Errorf("%s, %s: no error", name, what)
			}
		}
		broken := errors.New("broken")
		r, err = Decoded(&chunked{err: broken}, name, Limits{})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadAll(r); !errors.Is(err, broken) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, name := range []string{"gzip, gzip", "gzip,br", "zstd", "compress", "gzip;q=1", "*", "identity, gzip", "\x00"} {
		if _, err := Decoded(strings.NewReader(""), name, Limits{}); !errors.Is(err, ErrEncoding) {
			t.Errorf("%q: %v", name, err)
		}
	}
}

// TestDecodedStreams: what was flushed is delivered before more comes.
func TestDecodedStreams(t *testing.T) {
	for name, with := range coders() {
		pr, pw := io.Pipe()
		delivered := make(chan string, 100) // one flush may be several writes, and reads
		done := make(chan struct{})
		go func() {
			defer close(done)
			defer pw.Close()
			w := with(pw)
			defer w.Close()
			for _, e := range []string{"data: one\n\n", "data: two\n\n", "data: three\n\n"} {
				if _, err := io.WriteString(w, e); err != nil {
					return
				}
				if err := w.Flush(); err != nil {
					return
				}
				for got := ""; got != e; {
					select {
					case s := <-delivered:
						got += s
					case <-time.After(20 * time.Second):
						t.Errorf("%s: only %q of %q was delivered", name, got, e)
						return
					}
				}
			}
		}()
		r, err := Decoded(pr, name, Limits{})
		if err != nil {
			t.Fatal(err)
		}
		p := make([]byte, 4096)
		for {
			n, err := r.Read(p)
			if n > 0 {
				delivered <- string(p[:n])
			}
			if err != nil {
				break
			}
		}
		<-done
	}
}

func TestAttack_C30_bombs(t *testing.T) {
	zeros := make([]byte, 3<<20)
	noise := make([]byte, 1<<20)
	rnd := rand.New(rand.NewPCG(1, 1))
	for i := range noise {
		noise[i] = byte(rnd.Uint32())
	}
	for _, name := range []string{"gzip", "deflate", "br"} {
		with := coders()[name]
		read := func(body []byte, l Limits) (int64, error) {
			r, err := Decoded(bytes.NewReader(body), name, l)
			if err != nil {
				t.Fatal(err)
			}
			return io.Copy(io.Discard, r)
		}
		t.Run("C30 ratio "+name, func(t *testing.T) {
			n, err := read(encode(t, with, zeros), Limits{})
			if !errors.Is(err, ErrBomb) || n > 2<<20 {
				t.Errorf("%d bytes, %v", n, err)
			}
		})
		t.Run("C30 within the grace "+name, func(t *testing.T) {
			if n, err := read(encode(t, with, zeros[:1<<20]), Limits{}); err != nil || n != 1<<20 {
				t.Errorf("%d bytes, %v", n, err)
			}
		})
		t.Run("C30 size "+name, func(t *testing.T) {
			n, err := read(encode(t, with, noise), Limits{Bytes: 1<<20 - 1})
			if !errors.Is(err, ErrBomb) || n > 2<<20 {
				t.Errorf("%d bytes, %v", n, err)
			}
			if n, err := read(encode(t, with, noise), Limits{Bytes: 1 << 20}); err != nil || n != 1<<20 {
				t.Errorf("exactly the limit: %d bytes, %v", n, err)
			}
		})
		t.Run("C30 nested "+name, func(t *testing.T) {
			once := encode(t, with, zeros)
			if n, err := read(encode(t, with, once), Limits{}); err != nil || n != int64(len(once)) {
				t.Errorf("only the outer coding is undone: %d of %d bytes, %v", n, len(once), err)
			}
		})
	}
	t.Run("C30 default size", func(t *testing.T) {
		body := encode(t, func(w io.Writer) coder {
			z, err := gzip.NewWriterLevel(w, gzip.NoCompression)
			if err != nil {
				t.Fatal(err)
			}
			return z
		}, make([]byte, 65<<20))
		r, err := Decoded(bytes.NewReader(body), "gzip", Limits{})
		if err != nil {
			t.Fatal(err)
		}
		if n, err := io.Copy(io.Discard, r); !errors.Is(err, ErrBomb) || n > 64<<20 || n < 63<<20 {
			t.Errorf("%d bytes, %v", n, err)
		}
	})
	t.Run("C30 a bomb in the middle", func(t *testing.T) {
		body := slicesConcat(encode(t, coders()["gzip"], noise[:1000]), encode(t, coders()["gzip"], zeros))
		r, err := Decoded(bytes.NewReader(body), "gzip", Limits{})
		if err != nil {
			t.Fatal(err)
		}
		if n, err := io.Copy(io.Discard, r); !errors.Is(err, ErrBomb) || n > 2<<20 {
			t.Errorf("%d bytes, %v", n, err)
		}
	})
}

func slicesConcat(b ...[]byte) []byte { return bytes.Join(b, nil) }

func FuzzDecoded(f *testing.F) {
	for name, with := range coders() {
		var b bytes.Buffer
		w := with(&b)
		_, _ = io.WriteString(w, strings.Repeat("seed ", 100))
		_ = w.Close()
		f.Add(name, b.Bytes())
	}
	f.Fuzz(func(t *testing.T, name string, body []byte) {
		r, err := Decoded(bytes.NewReader(body), name, Limits{Ratio: 10, Grace: 1000, Bytes: 100000})
		if err != nil {
			return
		}
		n, err := io.Copy(io.Discard, r)
		coded := strings.Trim(strings.ToLower(name), " \t") != "" && strings.Trim(strings.ToLower(name), " \t") != "identity"
		if coded && n > 1000 && n > 10*int64(len(body)) || n > 100000 && coded {
			t.Errorf("%d bytes out of %d, %v", n, len(body), err)
		}
	})
}

package proxy

import (
	"bytes"
	"errors"
	"io"
	"net"
	"strconv"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// stepConn gives b in pieces of step bytes.
type stepConn struct {
	net.Conn
	r    *bytes.Reader
	step int
}

func (c *stepConn) SetReadDeadline(time.Time) error { return nil }

func (c *stepConn) Read(p []byte) (int, error) { return c.r.Read(p[:min(len(p), c.step)]) }

// throughGuard is what net/http would read, and how often the guard has put a frame in.
func throughGuard(t *testing.T, b []byte, step, room int) (out []byte, puts int) {
	t.Helper()
	g := guardH2(nil, &stepConn{r: bytes.NewReader(b), step: step}, Limits{HeaderBytes: 64 << 10, HandshakeTimeout: time.Minute}, func() { puts++ })
	p := make([]byte, room)
	for {
		n, err := g.Read(p)
		out = append(out, p[:n]...)
		if err != nil {
			if !errors.Is(err, io.EOF) {
				t.Fatal(err)
			}
			return out, puts
		}
	}
}

// h2Stream is a client's side of a connection: frames by write.
func h2Stream(write func(fr *http2.Framer, block func(...string) []byte)) []byte {
	var b, h bytes.Buffer
	b.WriteString(http2.ClientPreface)
	fr := http2.NewFramer(&b, nil)
	fr.AllowIllegalWrites = true
	enc := hpack.NewEncoder(&h)
	write(fr, func(fields ...string) []byte {
		h.Reset()
		for i := 0; i+1 < len(fields); i += 2 {
			_ = enc.WriteField(hpack.HeaderField{Name: fields[i], Value: fields[i+1]})
		}
		return bytes.Clone(h.Bytes())
	})
	return b.Bytes()
}

func guardSample() []byte {
	return h2Stream(func(fr *http2.Framer, block func(...string) []byte) {
		_ = fr.WriteSettings()
		_ = fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: block(":method", "GET", "te", "trailers", "x-a", "1"), EndHeaders: true, EndStream: true})
		_ = fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 3, BlockFragment: block(":method", "GET", "connection", "close"), EndHeaders: true, PadLength: 9,
			Priority: http2.PriorityParam{StreamDep: 1, Weight: 3}})
		_ = fr.WriteData(3, true, []byte("connection"))
		long := block(":method", "POST", "x-long", string(make([]byte, 3000)), "connection", "close", "x-b", "2") // by the dynamic table
		_ = fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 5, BlockFragment: long[:7]})
		_ = fr.WriteContinuation(5, false, long[7:2000])
		_ = fr.WriteContinuation(5, true, long[2000:])
		_ = fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 7, BlockFragment: block(":method", "GET", "te", "gzip"), EndHeaders: true, EndStream: true})
		_ = fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 9, BlockFragment: block(":method", "GET", "x-b", "2"), EndHeaders: true, EndStream: true})
	})
}

func TestH2GuardPutsFramesBehindBadHeads(t *testing.T) {
	in := guardSample()
	for _, step := range []int{1, 2, 7, 100, 1 << 20} {
		for _, room := range []int{1, 13, 1 << 16} {
			out, puts := throughGuard(t, in, step, room)
			if puts != 3 || len(out) != len(in)+3*13 {
				t.Fatalf("step %d, room %d: %d frames put, %d bytes of %d", step, room, puts, len(out), len(in))
			}
			fr := http2.NewFramer(io.Discard, bytes.NewReader(out[len(http2.ClientPreface):]))
			var ended []uint32
			for {
				_, err := fr.ReadFrame()
				var se http2.StreamError
				if errors.As(err, &se) {
					ended = append(ended, se.StreamID)
				} else if err != nil {
					break
				}
			}
			if len(ended) != 3 || ended[0] != 3 || ended[1] != 5 || ended[2] != 7 {
				t.Fatalf("step %d, room %d: ended %v", step, room, ended)
			}
		}
	}
	if out, _ := throughGuard(t, []byte("PRI * HTTP/2.0\r\n\r\nSN\r\n\r\n"+string(in)), 5, 100); len(out) > 0 {
		t.Errorf("another protocol passed: %q", out)
	}
}

// FuzzH2Guard: however the bytes come, the same leaves, and without what was put in it is
// what came.
func FuzzH2Guard(f *testing.F) {
	f.Add(guardSample(), uint16(3))
	f.Add([]byte(http2.ClientPreface+"\x00\x00\x01\x01\x0c\x00\x00\x00\x01\xff"), uint16(1))
	f.Add([]byte(http2.ClientPreface+"\x00\x00\x02\x01\x2c\x00\x00\x00\x01\x00\x00\x00\x00\x00\x01\x09\x04\x00\x00\x00\x01\xbf"), uint16(2))
	f.Fuzz(func(t *testing.T, b []byte, step uint16) {
		whole, puts := throughGuard(t, b, 1<<20, 1<<16)
		pieces, again := throughGuard(t, b, int(step)%50+1, int(step)/50+1)
		if !bytes.HasPrefix(b, []byte(http2.ClientPreface)) {
			if len(whole)+len(pieces) > 0 {
				t.Fatal("another protocol passed")
			}
			return
		}
		if !bytes.Equal(whole, pieces) || puts != again || len(whole) != len(b)+13*puts {
			t.Fatalf("%d bytes became %d, in pieces %d; %d and %d frames put", len(b), len(whole), len(pieces), puts, again)
		}
	})
}

// BenchmarkH2Guard is what looking costs for each request: a head of ten fields, some of
// them new, and a body of 4 KiB.
func BenchmarkH2Guard(b *testing.B) {
	in := h2Stream(func(fr *http2.Framer, block func(...string) []byte) {
		for i := range 100 {
			_ = fr.WriteHeaders(http2.HeadersFrameParam{StreamID: uint32(2*i + 1), EndHeaders: true, BlockFragment: block(":method", "POST", ":scheme", "https",
				":authority", "api.example.test", ":path", "/v1/things", "user-agent", "bench/1.0", "accept", "*/*", "content-type", "application/json",
				"accept-encoding", "gzip", "x-request-id", strconv.Itoa(i), "content-length", "4096")})
			_ = fr.WriteData(uint32(2*i+1), true, make([]byte, 4096))
		}
	})
	p := make([]byte, 16<<10)
	b.ReportAllocs()
	for b.Loop() {
		g := guardH2(nil, &stepConn{r: bytes.NewReader(in), step: 1 << 20}, Limits{HeaderBytes: 64 << 10, HandshakeTimeout: time.Minute}, func() { b.Error("refused") })
		for {
			if _, err := g.Read(p); err != nil {
				break
			}
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/100, "ns/request")
}

package proxy_test

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"net/http"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"github.com/egressd/egressd/internal/testbed"
)

// steady fails when goroutines or memory have grown beyond a bound that has nothing to
// do with how much the attacker sent.
func steady(t *testing.T, goroutines int) {
	t.Helper()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	if n := runtime.NumGoroutine(); n > goroutines+600 || m.HeapAlloc > 200<<20 {
		t.Errorf("%d goroutines (%d before), %d MiB", n, goroutines, m.HeapAlloc>>20)
	}
}

func TestAttack_C24_rapid_reset(t *testing.T) {
	g := attacked(t, options{})
	before := runtime.NumGoroutine()
	c := newH2(t, g, g.good(t, "h2"))
	var burst bytes.Buffer
	fr := http2.NewFramer(&burst, nil)
	const tries = 20000
	for range tries {
		id := c.next
		c.next += 2
		_ = fr.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: c.block(pseudo("GET", g.goodHost(), "/wait?ms=5000")...), EndStream: true, EndHeaders: true})
		_ = fr.WriteRSTStream(id, http2.ErrCodeCancel)
	}
	sent := make(chan struct{})
	go func() {
		defer close(sent)
		_, _ = c.tls.Write(burst.Bytes()) // fails when egressd has had enough
	}()
	_, ended := c.end()
	<-sent
	steady(t, before)
	if n := len(g.bed.Good.Requests()); n > tries/20 {
		t.Errorf("C24 %d of %d reached the origin", n, tries)
	}
	if !ended {
		t.Error("C24 the connection lives on")
	}
	// A client that gives some of its requests up keeps its connection.
	patient := newH2(t, g, g.good(t, "h2"))
	for range 100 {
		id, _ := patient.open(true, pseudo("GET", g.goodHost(), "/wait?ms=5000")...)
		_ = patient.fr.WriteRSTStream(id, http2.ErrCodeCancel)
		if a := patient.request("GET", g.goodHost(), "/bearer"); a.status != http.StatusOK {
			t.Fatalf("C24 %+v", a)
		}
	}
	g.safe(t)
}

func TestAttack_C25_continuation_flood(t *testing.T) {
	g := attacked(t, options{})
	before := runtime.NumGoroutine()
	g.untouched(t, func() {
		c := newH2(t, g, g.good(t, "h2"))
		_ = c.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: c.block(pseudo("GET", g.goodHost(), "/")...), EndStream: true})
		frag := c.block("x-flood", strings.Repeat("a", 900))
		go func() {
			for range 100000 {
				if c.fr.WriteContinuation(1, false, frag) != nil {
					return
				}
			}
		}()
		if _, ended := c.end(); !ended {
			t.Error("C25 the flood goes on")
		}
	})
	g.untouched(t, func() { // fragments without a byte
		c := newH2(t, g, g.good(t, "h2"))
		_ = c.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: c.block(pseudo("GET", g.goodHost(), "/")...), EndStream: true})
		_ = c.tls.SetReadDeadline(time.Now().Add(time.Second))
		for range 2000 {
			if c.fr.WriteContinuation(1, false, nil) != nil {
				break
			}
		}
		c.end()
	})
	steady(t, before)
	g.safe(t)
}

func TestAttack_C26_hpack_bomb(t *testing.T) {
	g := attacked(t, options{})
	before := runtime.NumGoroutine()
	t.Run("C26 one large field a thousand times", func(t *testing.T) {
		g.untouched(t, func() {
			c := newH2(t, g, g.good(t, "h2"))
			fields := pseudo("GET", g.goodHost(), "/")
			for range 5000 {
				fields = append(fields, "x-bomb", strings.Repeat("b", 3000)) // indexed after the first: one byte each
			}
			if a := c.requestBlock(c.block(fields...)); a.status == http.StatusOK {
				t.Errorf("%+v", a)
			}
		})
	})
	t.Run("C26 many small fields", func(t *testing.T) {
		g.untouched(t, func() {
			fields := pseudo("GET", g.goodHost(), "/")
			for i := range 200 {
				fields = append(fields, fmt.Sprint("x-", i%100), "1")
			}
			c := newH2(t, g, g.good(t, "h2"))
			if a := c.requestBlock(c.block(fields...)); a.status != http.StatusRequestHeaderFieldsTooLarge {
				t.Errorf("%+v", a)
			}
		})
	})
	t.Run("C26 table of 4 GiB", func(t *testing.T) {
		c := newH2(t, g, g.good(t, "h2"), http2.Setting{ID: http2.SettingHeaderTableSize, Val: 1<<32 - 1})
		if a := c.request("GET", g.goodHost(), "/bearer"); a.status != http.StatusOK {
			t.Errorf("a setting of the client's own decoder: %+v", a)
		}
		g.untouched(t, func() {
			b := append([]byte{0x3f, 0xe1, 0xff, 0xff, 0xff, 0x0f}, c.block(pseudo("GET", g.goodHost(), "/")...)...)
			if a := c.requestBlock(b); a.err == nil {
				t.Errorf("a table update beyond the limit: %+v", a)
			}
		})
	})
	t.Run("C26 broken blocks", func(t *testing.T) {
		for _, b := range [][]byte{{0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f}, {0xbf}, {0x80}, {0x40, 0x7f}, bytes.Repeat([]byte{0x20}, 1000)} {
			g.untouched(t, func() {
				if a := newH2(t, g, g.good(t, "h2")).requestBlock(b); a.err == nil {
					t.Errorf("%x: %+v", b, a)
				}
			})
		}
	})
	steady(t, before)
	g.safe(t)
}

// requestBlock sends a header block as it is, in as many frames as it needs.
func (c *h2client) requestBlock(block []byte) answer {
	id := c.next
	c.next += 2
	n := min(len(block), 16<<10)
	err := c.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: block[:n], EndStream: true, EndHeaders: n == len(block)})
	for block = block[n:]; err == nil && len(block) > 0; block = block[n:] {
		n = min(len(block), 16<<10)
		err = c.fr.WriteContinuation(id, n == len(block), block[:n])
	}
	if err != nil {
		return answer{err: err}
	}
	return c.answer(id)
}

func TestAttack_C28_control_floods(t *testing.T) {
	g := attacked(t, options{})
	before := runtime.NumGoroutine()
	frame := func(build func(fr *http2.Framer)) []byte {
		var b bytes.Buffer
		fr := http2.NewFramer(&b, nil)
		fr.AllowIllegalWrites = true
		build(fr)
		return b.Bytes()
	}
	for name, f := range map[string][]byte{
		"C28 ping": frame(func(fr *http2.Framer) { _ = fr.WritePing(false, [8]byte{1}) }),
		"C28 settings": frame(func(fr *http2.Framer) {
			_ = fr.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1})
		}),
		"C28 priority":   frame(func(fr *http2.Framer) { _ = fr.WritePriority(1, http2.PriorityParam{StreamDep: 3, Weight: 9}) }),
		"C28 empty data": frame(func(fr *http2.Framer) { _ = fr.WriteData(1, false, nil) }),
		"C28 unknown":    frame(func(fr *http2.Framer) { _ = fr.WriteRawFrame(0xee, 0, 0, []byte("x")) }),
	} {
		t.Run(name, func(t *testing.T) {
			c := newH2(t, g, g.good(t, "h2"))
			_, _ = c.open(false, pseudo("POST", g.goodHost(), "/upload")...)
			_ = c.tls.SetWriteDeadline(time.Now().Add(4 * time.Second))
			many := bytes.Repeat(f, 1000)
			for range 60 { // nothing is read meanwhile
				if _, err := c.tls.Write(many); err != nil {
					break
				}
			}
			steady(t, before)
			_ = c.tls.Close()
		})
	}
	for name, build := range map[string]func(fr *http2.Framer){
		"C28 WINDOW_UPDATE of 0":        func(fr *http2.Framer) { _ = fr.WriteWindowUpdate(0, 0) },
		"C28 window overflow":           func(fr *http2.Framer) { _ = fr.WriteWindowUpdate(0, 1<<31-1) },
		"C28 SETTINGS_MAX_FRAME_SIZE=0": func(fr *http2.Framer) { _ = fr.WriteSettings(http2.Setting{ID: http2.SettingMaxFrameSize}) },
		"C28 INITIAL_WINDOW_SIZE too big": func(fr *http2.Framer) {
			_ = fr.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1 << 31})
		},
		"C28 DATA on stream 0": func(fr *http2.Framer) { _ = fr.WriteData(0, true, []byte("x")) },
		"C28 PUSH_PROMISE from a client": func(fr *http2.Framer) {
			_ = fr.WritePushPromise(http2.PushPromiseParam{StreamID: 1, PromiseID: 2, EndHeaders: true})
		},
	} {
		t.Run(name, func(t *testing.T) {
			c := newH2(t, g, g.good(t, "h2"))
			build(c.fr)
			_ = c.tls.SetReadDeadline(time.Now().Add(5 * time.Second))
			if code, ended := c.end(); !ended || code == http2.ErrCodeNo {
				t.Errorf("ended=%v with %v", ended, code)
			}
		})
	}
	g.safe(t)
}

// h2Origin serves one scripted h2 connection after another: reply is called with the
// framer once the head of stream 1 has come.
func h2Origin(t *testing.T, g *rig, hello []http2.Setting, reply func(fr *http2.Framer, id uint32, enc func(...string) []byte)) *testbed.Raw {
	return testbed.NewRaw(t, testbed.RawOptions{CA: g.bed.CA, ALPN: []string{"h2"}, Serve: func(c *testbed.RawConn) {
		preface := make([]byte, len(http2.ClientPreface))
		if _, err := io.ReadFull(c, preface); err != nil {
			return
		}
		fr := http2.NewFramer(c, c)
		fr.AllowIllegalWrites = true
		_ = fr.WriteSettings(hello...)
		var buf bytes.Buffer
		enc := hpack.NewEncoder(&buf)
		for {
			f, err := fr.ReadFrame()
			if err != nil {
				return
			}
			switch f := f.(type) {
			case *http2.SettingsFrame:
				if !f.IsAck() {
					_ = fr.WriteSettingsAck()
				}
			case *http2.HeadersFrame:
				reply(fr, f.StreamID, func(fields ...string) []byte {
					buf.Reset()
					for i := 0; i+1 < len(fields); i += 2 {
						_ = enc.WriteField(hpack.HeaderField{Name: fields[i], Value: fields[i+1]})
					}
					return bytes.Clone(buf.Bytes())
				})
			}
		}
	}})
}

func TestAttack_C20_C28_hostile_h2_origins(t *testing.T) {
	g := attacked(t, options{})
	headers := func(fr *http2.Framer, id uint32, block []byte, end bool) {
		_ = fr.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: block, EndHeaders: true, EndStream: end})
	}
	type script struct {
		hello []http2.Setting
		reply func(fr *http2.Framer, id uint32, enc func(...string) []byte)
	}
	for name, s := range map[string]script{
		"C28 SETTINGS_MAX_FRAME_SIZE=0": {[]http2.Setting{{ID: http2.SettingMaxFrameSize}}, func(*http2.Framer, uint32, func(...string) []byte) {}},
		"C20 two lengths": {nil, func(fr *http2.Framer, id uint32, enc func(...string) []byte) {
			headers(fr, id, enc(":status", "200", "content-length", "3", "content-length", "5"), false)
			_ = fr.WriteData(id, true, []byte("abc"))
		}},
		"C20 no status": {nil, func(fr *http2.Framer, id uint32, enc func(...string) []byte) { headers(fr, id, enc("x", "y"), true) }},
		"C20 status 99": {nil, func(fr *http2.Framer, id uint32, enc func(...string) []byte) {
			headers(fr, id, enc(":status", "99"), true)
		}},
		"C20 status 1000": {nil, func(fr *http2.Framer, id uint32, enc func(...string) []byte) {
			headers(fr, id, enc(":status", "1000"), true)
		}},
		"C20 line end": {nil, func(fr *http2.Framer, id uint32, enc func(...string) []byte) {
			headers(fr, id, enc(":status", "200", "x", "a\r\nSet-Cookie: b"), true)
		}},
		"C20 NUL": {nil, func(fr *http2.Framer, id uint32, enc func(...string) []byte) {
			headers(fr, id, enc(":status", "200", "x", "a\x00b"), true)
		}},
		"C20 name with blank": {nil, func(fr *http2.Framer, id uint32, enc func(...string) []byte) {
			headers(fr, id, enc(":status", "200", "x y", "a"), true)
		}},
		"C20 unrequested 101": {nil, func(fr *http2.Framer, id uint32, enc func(...string) []byte) {
			headers(fr, id, enc(":status", "101"), false)
		}},
		"C20 head of 1 MiB": {nil, func(fr *http2.Framer, id uint32, enc func(...string) []byte) {
			b := enc(":status", "200")
			_ = fr.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: b})
			for range 100 {
				_ = fr.WriteContinuation(id, false, enc("x-big", strings.Repeat("z", 10<<10)))
			}
			_ = fr.WriteContinuation(id, true, nil)
		}},
		"C28 GOAWAY": {nil, func(fr *http2.Framer, id uint32, _ func(...string) []byte) {
			_ = fr.WriteGoAway(0, http2.ErrCodeInternal, []byte("debug"))
		}},
		"C28 RST_STREAM": {nil, func(fr *http2.Framer, id uint32, _ func(...string) []byte) {
			_ = fr.WriteRSTStream(id, http2.ErrCodeInternal)
		}},
		"C28 frame of ff": {nil, func(fr *http2.Framer, id uint32, _ func(...string) []byte) {
			_ = fr.WriteRawFrame(http2.FrameHeaders, 0xff, id, bytes.Repeat([]byte{0xff}, 64))
		}},
	} {
		t.Run(name, func(t *testing.T) {
			start := time.Now()
			defer func() {
				if d := time.Since(start); d > 4*time.Second {
					t.Errorf("it took %v", d)
				}
			}()
			o := h2Origin(t, g, s.hello, s.reply)
			c := g.client("one", tokenOne, true)
			c.Timeout = 5 * time.Second
			a := get(t, c, fmt.Sprintf("https://good.test:%d/", o.Port()))
			if a.err != nil || a.status != http.StatusBadGateway || a.header.Get("X-Egressd-Error") == "" {
				t.Errorf("%+v %v", a, a.err)
			}
			g.note(fmt.Append(nil, a.header, a.body))
		})
	}
	g.safe(t)
}

func TestAttack_C29_zero_window(t *testing.T) {
	g := attacked(t, options{})
	before := runtime.NumGoroutine()
	c := newH2(t, g, g.good(t, "h2"), http2.Setting{ID: http2.SettingInitialWindowSize, Val: 0})
	for i := range 100 {
		path := "/download?n=10000000"
		if i%2 == 1 {
			path = "/status/200" // small ones wait for the window after their handler has returned
		}
		if _, err := c.open(true, pseudo("GET", g.goodHost(), path)...); err != nil {
			t.Fatal(err)
		}
	}
	g.bed.Good.WaitRequests(t, 100)
	steady(t, before)
	// Nothing is ever taken: after the stall timeout every stream is reset.
	resets := map[uint32]bool{}
	_ = c.tls.SetDeadline(time.Now().Add(8 * time.Second))
	for len(resets) < 100 {
		f, err := c.fr.ReadFrame()
		if err != nil {
			t.Fatalf("C29 %d of 100 streams were given up: %v", len(resets), err)
		}
		switch f := f.(type) {
		case *http2.RSTStreamFrame:
			resets[f.StreamID] = true
		case *http2.PingFrame:
			if !f.IsAck() {
				_ = c.fr.WritePing(true, f.Data)
			}
		}
	}
	// A client that takes its time, but takes, is served: 40 KiB at 4 KiB per 100 ms.
	slow := newH2(t, g, g.good(t, "h2"), http2.Setting{ID: http2.SettingInitialWindowSize, Val: 4096})
	id, err := slow.open(true, pseudo("GET", g.goodHost(), "/download?n=131072")...)
	if err != nil {
		t.Fatal(err)
	}
	got := 0
	for end := false; !end; {
		f, err := slow.fr.ReadFrame()
		if err != nil {
			t.Fatalf("C29 the slow client lost its answer after %d bytes: %v", got, err)
		}
		switch f := f.(type) {
		case *http2.DataFrame:
			got += len(f.Data())
			end = f.StreamEnded()
			time.Sleep(100 * time.Millisecond)
			_ = slow.fr.WriteWindowUpdate(id, 4096)
			_ = slow.fr.WriteWindowUpdate(0, 4096)
		case *http2.RSTStreamFrame:
			t.Fatalf("C29 the slow client was reset after %d bytes: %v", got, f.ErrCode)
		}
	}
	if got != 131072 {
		t.Errorf("C29 the slow client got %d bytes", got)
	}
	g.safe(t)
}

func TestAttack_C16_interim_answers_after_the_client_has_gone(t *testing.T) {
	g := attacked(t, options{})
	stop := make(chan struct{})
	chatty := testbed.NewOrigin(t, g.bed.CA, testbed.OriginOptions{Mount: map[string]http.Handler{"/chat": http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		for {
			select {
			case <-r.Context().Done():
				return
			case <-stop:
				return
			default:
				w.WriteHeader(http.StatusEarlyHints)
			}
		}
	})}})
	defer close(stop)
	for i := range 10 {
		c := newH2(t, g, g.tls(t, chatty.HostPort(), "good.test", "h2"))
		id, err := c.open(true, pseudo("GET", chatty.HostPort(), "/chat")...)
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Duration(i%10) * time.Millisecond)
		_ = c.fr.WriteRSTStream(id, http2.ErrCodeCancel)
		_ = c.tls.Close()
		h1 := g.tls(t, chatty.HostPort(), "good.test")
		if got, _ := g.talk(h1, "GET /chat HTTP/1.1\r\nHost: "+chatty.HostPort()+"\r\n\r\n", 400*time.Millisecond); !strings.HasPrefix(string(got), "HTTP/1.1 103 ") {
			t.Errorf("C16 %q", got)
		}
		_ = h1.Close()
	}
	g.safe(t)
}

// frameHeader is a WebSocket frame's first bytes with a 64-bit length.
func frameHeader(first byte, masked bool, n uint64) []byte {
	b := []byte{first, 127}
	if masked {
		b[1] |= 0x80
	}
	return binary.BigEndian.AppendUint64(b, n)
}

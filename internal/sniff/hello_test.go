package sniff

import (
	"bytes"
	"crypto/ecdh"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/crypto/cryptobyte"
)

// hijackHello returns what crypto/tls sends first with cfg.
func hijackHello(t testing.TB, cfg *tls.Config) []byte {
	t.Helper()
	client, server := net.Pipe()
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = tls.Client(client, cfg).HandshakeContext(t.Context())
	}()
	defer func() { _ = client.Close(); _ = server.Close(); <-done }()
	var got []byte
	buf := make([]byte, 4096)
	for {
		n, err := server.Read(buf)
		got = append(got, buf[:n]...)
		if err != nil {
			t.Fatalf("reading the hello: %v", err)
		}
		if _, err := ParseClientHello(got); !errors.Is(err, ErrIncomplete) {
			return got
		}
	}
}

// serverView is what crypto/tls's server reads from the same bytes; nil if it refuses.
func serverView(raw []byte) (info *tls.ClientHelloInfo) {
	stop := errors.New("seen")
	srv := tls.Server(replay{in: bytes.NewReader(raw)}, &tls.Config{
		MinVersion: tls.VersionTLS10,
		GetConfigForClient: func(h *tls.ClientHelloInfo) (*tls.Config, error) {
			info = h
			return nil, stop
		},
	})
	_ = srv.Handshake()
	return info
}

// replay is a connection that yields what was recorded and swallows the answer.
type replay struct {
	net.Conn
	in io.Reader
}

func (r replay) Read(p []byte) (int, error)  { return r.in.Read(p) }
func (r replay) Write(p []byte) (int, error) { return len(p), nil }
func (r replay) Close() error                { return nil }

// echConfigList makes an ECHConfigList for public.test with id 7 (RFC 9849 section 4).
func echConfigList(t testing.TB) []byte {
	t.Helper()
	key, err := ecdh.X25519().GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	var b cryptobyte.Builder
	b.AddUint16LengthPrefixed(func(b *cryptobyte.Builder) {
		b.AddUint16(0xfe0d)
		b.AddUint16LengthPrefixed(func(b *cryptobyte.Builder) {
			b.AddUint8(7)
			b.AddUint16(0x0020) // DHKEM(X25519)
			b.AddUint16LengthPrefixed(func(b *cryptobyte.Builder) { b.AddBytes(key.PublicKey().Bytes()) })
			b.AddUint16LengthPrefixed(func(b *cryptobyte.Builder) { b.AddUint16(1); b.AddUint16(1) })
			b.AddUint8(32)
			b.AddUint8LengthPrefixed(func(b *cryptobyte.Builder) { b.AddBytes([]byte("public.test")) })
			b.AddUint16(0)
		})
	})
	return b.BytesOrPanic()
}

func TestParseClientHello_crypto_tls(t *testing.T) {
	for _, tc := range []struct {
		name       string
		cfg        *tls.Config
		want       Hello
		maxVersion uint16
	}{
		{"B19 default, post-quantum", &tls.Config{ServerName: "good.test"},
			Hello{ServerName: "good.test", LegacyVersion: 0x0303, SupportedVersions: []uint16{0x0304, 0x0303}}, 0x0304},
		{"alpn", &tls.Config{ServerName: "good.test", NextProtos: []string{"h2", "http/1.1"}},
			Hello{ServerName: "good.test", ALPN: []string{"h2", "http/1.1"}, LegacyVersion: 0x0303, SupportedVersions: []uint16{0x0304, 0x0303}}, 0x0304},
		{"B20 TLS 1.0 to 1.1 only", &tls.Config{ServerName: "good.test", MinVersion: tls.VersionTLS10, MaxVersion: tls.VersionTLS11},
			Hello{ServerName: "good.test", LegacyVersion: 0x0302, SupportedVersions: []uint16{0x0302, 0x0301}}, 0x0302},
		{"B16 no name for an address", &tls.Config{ServerName: "192.0.2.1"},
			Hello{LegacyVersion: 0x0303, SupportedVersions: []uint16{0x0304, 0x0303}}, 0x0304},
		{"B19 two post-quantum shares", &tls.Config{ServerName: strings.Repeat("a.", 120) + "test",
			CurvePreferences: []tls.CurveID{tls.X25519MLKEM768, tls.SecP256r1MLKEM768, tls.SecP384r1MLKEM1024, tls.X25519}},
			Hello{ServerName: strings.Repeat("a.", 120) + "test", LegacyVersion: 0x0303, SupportedVersions: []uint16{0x0304, 0x0303}}, 0x0304},
		{"B15 encrypted client hello", &tls.Config{ServerName: "forbidden.test", MinVersion: tls.VersionTLS13, EncryptedClientHelloConfigList: echConfigList(t)},
			Hello{ServerName: "public.test", LegacyVersion: 0x0303, SupportedVersions: []uint16{0x0304}, ECH: true, ECHConfigID: 7}, 0x0304},
	} {
		t.Run(tc.name, func(t *testing.T) {
			raw := hijackHello(t, tc.cfg)
			got, err := ParseClientHello(raw)
			if err != nil {
				t.Fatal(err)
			}
			tc.want.Size = len(raw)
			if d := cmp.Diff(tc.want, got); d != "" {
				t.Errorf("hello (-want +got):\n%s", d)
			}
			if v := got.MaxVersion(); v != tc.maxVersion {
				t.Errorf("MaxVersion = %#x, want %#x", v, tc.maxVersion)
			}
			for i := range raw {
				if _, err := ParseClientHello(raw[:i]); !errors.Is(err, ErrIncomplete) {
					t.Fatalf("B17 after %d of %d bytes: %v, want ErrIncomplete", i, len(raw), err)
				}
			}
			more := append(slices.Clone(raw), "early data"...)
			if h, err := ParseClientHello(more); err != nil || h.Size != len(raw) {
				t.Errorf("with bytes behind it: size %d, %v", h.Size, err)
			}
		})
	}
}

func TestParseClientHello_split_over_records(t *testing.T) {
	raw := hijackHello(t, &tls.Config{ServerName: "good.test"})
	for _, n := range []int{1, 3, 4, 5, 100, 1000, len(raw)} {
		split := fragment(raw, n)
		h, err := ParseClientHello(split)
		if err != nil || h.ServerName != "good.test" || h.Size != len(split) {
			t.Errorf("records of %d bytes: %+v, %v", n, h, err)
		}
		for i := range split {
			if _, err := ParseClientHello(split[:i]); !errors.Is(err, ErrIncomplete) {
				t.Fatalf("records of %d bytes, cut after %d: %v", n, i, err)
			}
		}
	}
}

// fragment splits the one record of raw into records of n bytes.
func fragment(raw []byte, n int) []byte {
	var out []byte
	for part := range slices.Chunk(raw[recordHeader:], n) {
		out = append(out, recordHandshake, 3, 1, byte(len(part)>>8), byte(len(part)))
		out = append(out, part...)
	}
	return out
}

// hello builds a ClientHello record with extensions.
func hello(extensions ...[]byte) []byte {
	return record(1, helloBody(extensions...))
}

func record(typ uint8, body []byte) []byte {
	var b cryptobyte.Builder
	b.AddBytes([]byte{recordHandshake, 3, 1})
	b.AddUint16LengthPrefixed(func(b *cryptobyte.Builder) {
		b.AddUint8(typ)
		b.AddUint24LengthPrefixed(func(b *cryptobyte.Builder) { b.AddBytes(body) })
	})
	return b.BytesOrPanic()
}

func helloBody(extensions ...[]byte) []byte {
	var b cryptobyte.Builder
	b.AddUint16(0x0303)
	b.AddBytes(make([]byte, 32))
	b.AddUint8(0)
	b.AddBytes([]byte{0, 2, 0x13, 0x01, 1, 0})
	b.AddUint16LengthPrefixed(func(b *cryptobyte.Builder) {
		for _, e := range extensions {
			b.AddBytes(e)
		}
	})
	return b.BytesOrPanic()
}

func extension(typ uint16, data []byte) []byte {
	var b cryptobyte.Builder
	b.AddUint16(typ)
	b.AddUint16LengthPrefixed(func(b *cryptobyte.Builder) { b.AddBytes(data) })
	return b.BytesOrPanic()
}

// sni builds server_name with entries of (type, name).
func sni(entries ...string) []byte {
	var b cryptobyte.Builder
	b.AddUint16LengthPrefixed(func(b *cryptobyte.Builder) {
		for _, e := range entries {
			b.AddUint8(e[0])
			b.AddUint16LengthPrefixed(func(b *cryptobyte.Builder) { b.AddBytes([]byte(e[1:])) })
		}
	})
	return extension(extServerName, b.BytesOrPanic())
}

func TestParseClientHello_names_come_as_sent(t *testing.T) {
	for _, name := range []string{"a.test\x00evil", "*.good.test", "127.0.0.1", "a.test,DNS:b", "-a.test", "Good.Test.", "\x1b[2J\n", strings.Repeat("x", 254)} {
		h, err := ParseClientHello(hello(sni("\x00" + name)))
		if err != nil || h.ServerName != name {
			t.Errorf("D07 name %q came out as %q, %v", name, h.ServerName, err)
		}
	}
}

func TestParseClientHello_refusals(t *testing.T) {
	good := hello(sni("\x00good.test"))
	patch := func(at int, v ...byte) []byte {
		b := slices.Clone(good)
		copy(b[at:], v)
		return b
	}
	huge := append([]byte{recordHandshake, 3, 1, 0, 4}, 1, 0x01, 0, 0)
	endless := bytes.Repeat([]byte{recordHandshake, 3, 1, 0, 1, 1}, MaxHello/6+1)
	endless[5] = 1
	for _, tc := range []struct {
		name string
		in   []byte
		want error
	}{
		{"B20 SSLv2 hello", []byte("\x80\x2e\x01\x03\x01\x00\x15"), ErrNotHello},
		{"B20 alert first", []byte("\x15\x03\x01\x00\x02\x02\x28"), ErrNotHello},
		{"B20 application data first", []byte("\x17\x03\x03\x00\x10"), ErrNotHello},
		{"B20 record of no bytes", []byte("\x16\x03\x01\x00\x00"), ErrNotHello},
		{"B20 record of 17 KiB", []byte("\x16\x03\x01\x44\x00"), ErrNotHello},
		{"B20 version 2", []byte("\x16\x02\x00\x00\x10"), ErrNotHello},
		{"server hello", record(2, helloBody()), ErrNotHello},
		{"other handshake type, one byte of it", []byte("\x16\x03\x01\x00\x10\x02"), ErrNotHello},
		{"B17 says more than 64 KiB", huge, ErrTooLarge},
		{"B17 endless one-byte records", endless, ErrTooLarge},
		{"plain HTTP", []byte("GET / HTTP/1.1\r\n"), ErrNotHello},
		{"session id of 33 bytes", patch(recordHeader+helloHeader+34, 33), ErrNotHello},
		{"no cipher suites", patch(recordHeader+helloHeader+35, 0, 0), ErrNotHello},
		{"odd cipher suites", patch(recordHeader+helloHeader+35, 0, 1), ErrNotHello},
		{"extensions longer than the hello", patch(recordHeader+helloHeader+41, 0xff, 0xff), ErrNotHello},
		{"bytes behind the extensions", record(1, append(helloBody(), 0)), ErrNotHello},
		{"two server_name extensions", hello(sni("\x00good.test"), sni("\x00evil.test")), ErrNotHello},
		{"an unknown extension twice", hello(extension(0x1234, nil), extension(0x1234, nil)), ErrNotHello},
		{"two names", hello(sni("\x00good.test", "\x00evil.test")), ErrNotHello},
		{"a name of another type", hello(sni("\x01good.test")), ErrNotHello},
		{"an empty name", hello(sni("\x00")), ErrNotHello},
		{"no names", hello(sni()), ErrNotHello},
		{"empty server_name", hello(extension(extServerName, nil)), ErrNotHello},
		{"empty alpn", hello(extension(extALPN, []byte{0, 0})), ErrNotHello},
		{"empty protocol", hello(extension(extALPN, []byte{0, 1, 0})), ErrNotHello},
		{"odd versions", hello(extension(extSupportedVersions, []byte{3, 3, 4, 3})), ErrNotHello},
		{"B15 inner hello in the clear", hello(extension(extECH, []byte{1})), ErrNotHello},
		{"B15 encrypted hello cut", hello(extension(extECH, []byte{0, 0, 1, 0, 1, 7, 0, 1})), ErrNotHello},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if h, err := ParseClientHello(tc.in); !errors.Is(err, tc.want) {
				t.Errorf("got %+v, %v; want %v", h, err, tc.want)
			}
		})
	}
	if _, err := ParseClientHello(good); err != nil {
		t.Fatalf("the hello that the cases are made from: %v", err)
	}
}

func TestParseClientHello_without_extensions(t *testing.T) {
	body := helloBody()
	h, err := ParseClientHello(record(1, body[:len(body)-2]))
	if err != nil || h.ServerName != "" || h.MaxVersion() != 0x0303 {
		t.Errorf("B16: %+v, %v", h, err)
	}
}

func TestMaxVersion_ignores_grease(t *testing.T) {
	h := Hello{SupportedVersions: []uint16{0xfafa, 0x0303, 0x0304, 0x0302}}
	if v := h.MaxVersion(); v != 0x0304 {
		t.Errorf("MaxVersion = %#x", v)
	}
}

func TestIncompleteDoesNotAllocate(t *testing.T) {
	raw := hijackHello(t, &tls.Config{ServerName: "good.test"})
	part := fragment(raw, 200)[:1000]
	if n := testing.AllocsPerRun(100, func() { _, _ = ParseClientHello(part) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// FuzzParseClientHello compares with crypto/tls: where both read a hello, they agree on
// every field; and a beginning of a hello is never refused nor read as another.
func FuzzParseClientHello(f *testing.F) {
	f.Add(hello(sni("\x00good.test")))
	f.Add(fragment(hello(sni("\x00good.test"), extension(extALPN, []byte{0, 3, 2, 'h', '2'})), 7))
	f.Add(hijackHello(f, &tls.Config{ServerName: "good.test", NextProtos: []string{"h2"}}))
	f.Add(hijackHello(f, &tls.Config{ServerName: "in.test", MinVersion: tls.VersionTLS13, EncryptedClientHelloConfigList: echConfigList(f)}))
	f.Fuzz(func(t *testing.T, b []byte) {
		h, err := ParseClientHello(b)
		if err != nil {
			if !errors.Is(err, ErrIncomplete) && !errors.Is(err, ErrNotHello) && !errors.Is(err, ErrTooLarge) {
				t.Fatalf("unexpected error %v", err)
			}
			return
		}
		for i := 0; i < h.Size; i += 1 + h.Size/64 {
			if _, err := ParseClientHello(b[:i]); !errors.Is(err, ErrIncomplete) {
				t.Fatalf("cut after %d of %d: %v", i, h.Size, err)
			}
		}
		info := serverView(b[:h.Size])
		if info == nil {
			return // stricter, or does not support what is offered
		}
		if info.ServerName != h.ServerName && !h.ECH {
			t.Errorf("name %q, crypto/tls says %q", h.ServerName, info.ServerName)
		}
		if !slices.Equal(info.SupportedProtos, h.ALPN) {
			t.Errorf("alpn %q, crypto/tls says %q", h.ALPN, info.SupportedProtos)
		}
		if h.SupportedVersions != nil && !slices.Equal(info.SupportedVersions, h.SupportedVersions) {
			t.Errorf("versions %x, crypto/tls says %x", h.SupportedVersions, info.SupportedVersions)
		}
	})
}

func BenchmarkParseClientHello(b *testing.B) {
	raw := hijackHello(b, &tls.Config{ServerName: "good.test", NextProtos: []string{"h2", "http/1.1"}})
	b.ReportAllocs()
	for b.Loop() {
		if _, err := ParseClientHello(raw); err != nil {
			b.Fatal(err)
		}
	}
}

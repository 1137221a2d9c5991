package proxy_test

import (
	"crypto/ecdh"
	"crypto/rand"
	"crypto/tls"
	"encoding/base64"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/crypto/cryptobyte"

	"github.com/egressd/egressd/internal/testbed"
)

// echConfigs makes an ECHConfigList with one configuration, and the key to it.
func echConfigs(t testing.TB, id uint8, publicName string) (list []byte, key tls.EncryptedClientHelloKey) {
	t.Helper()
	private, err := ecdh.X25519().GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	var one cryptobyte.Builder
	one.AddUint16(0xfe0d)
	one.AddUint16LengthPrefixed(func(b *cryptobyte.Builder) {
		b.AddUint8(id)
		b.AddUint16(0x0020) // DHKEM(X25519)
		b.AddUint16LengthPrefixed(func(b *cryptobyte.Builder) { b.AddBytes(private.PublicKey().Bytes()) })
		b.AddUint16LengthPrefixed(func(b *cryptobyte.Builder) { b.AddUint16(1); b.AddUint16(1) })
		b.AddUint8(32)
		b.AddUint8LengthPrefixed(func(b *cryptobyte.Builder) { b.AddBytes([]byte(publicName)) })
		b.AddUint16(0)
	})
	config := one.BytesOrPanic()
	var all cryptobyte.Builder
	all.AddUint16LengthPrefixed(func(b *cryptobyte.Builder) { b.AddBytes(config) })
	return all.BytesOrPanic(), tls.EncryptedClientHelloKey{Config: config, PrivateKey: private.Bytes()}
}

func TestAttack_B15_encrypted_client_hello(t *testing.T) {
	ns := testbed.NewNS(t)
	g := attacked(t, options{ns: []string{ns.Addr()}})
	g.use(strings.ReplaceAll(basePolicy, "domains: [evil.test]", "domains: [evil.test, ech.test, grease.test, broken.test, plain.test]"))
	list, key := echConfigs(t, 7, "ech.test")
	origin := testbed.NewOrigin(t, g.bed.CA, testbed.OriginOptions{IP: "127.0.0.9", Names: []string{"ech.test", "hidden.test"}})
	g.bad = append(g.bad, origin)
	at := func(name string, rrs ...string) {
		ns.On(name, testbed.DNSAnswer{IPs: []string{"127.0.0.9"}, TTL: 60, RRs: rrs})
	}
	record := func(name string, list []byte) string {
		return name + `. 60 IN HTTPS 1 . ech="` + base64.StdEncoding.EncodeToString(list) + `"`
	}
	at("ech.test", record("ech.test", list))
	other, _ := echConfigs(t, 8, "grease.test")
	at("grease.test", record("grease.test", other))
	at("plain.test")
	ns.On("broken.test", testbed.DNSAnswer{IPs: []string{"127.0.0.9"}, TTL: 60}, testbed.DNSAnswer{Rcode: dns.RcodeServerFailure})
	hello := func(outer string) string { // of the same length: the list's public name is replaced
		l, _ := echConfigs(t, 7, outer)
		return string(firstRecord(t, &tls.Config{ServerName: "hidden.test", MinVersion: tls.VersionTLS13, EncryptedClientHelloConfigList: l}))
	}
	port := origin.HostPort()[strings.LastIndexByte(origin.HostPort(), ':'):]

	t.Run("B15 passed through, sealed to a key of the name outside", func(t *testing.T) {
		before := len(origin.Conns())
		got, closed := g.talk(g.open(t, "ech.test"+port), hello("ech.test"), 2*time.Second)
		if !closed || len(got) != 7 || got[0] != 21 || len(origin.Conns()) != before {
			t.Errorf("closed=%v %x, %d connections", closed, got, len(origin.Conns())-before)
		}
		g.audited(t, "protocol_not_allowed", "hides another name")
	})
	for _, name := range []string{"grease.test", "plain.test"} {
		t.Run("B15 GREASE passes, "+name, func(t *testing.T) {
			before := len(origin.Conns())
			if got, _ := g.talk(g.open(t, name+port), hello(name), time.Second); len(got) < 100 || len(origin.Conns()) != before+1 {
				t.Errorf("%x, %d connections", got, len(origin.Conns())-before)
			}
		})
	}
	t.Run("B15 nobody knows", func(t *testing.T) {
		ns.On("broken.test", testbed.DNSAnswer{Rcode: dns.RcodeServerFailure})
		before := len(origin.Conns())
		if got, closed := g.talk(g.open(t, "broken.test"+port), hello("broken.test"), 3*time.Second); !closed || len(got) != 7 || len(origin.Conns()) != before {
			t.Errorf("closed=%v %x", closed, got)
		}
	})
	t.Run("B15 intercepted", func(t *testing.T) {
		g.untouched(t, func() {
			l, _ := echConfigs(t, 7, "good.test")
			tc := tls.Client(g.open(t, "good.test:GOODPORT"), &tls.Config{ServerName: "evil.test", RootCAs: g.roots(), MinVersion: tls.VersionTLS13, EncryptedClientHelloConfigList: l})
			var rejected *tls.ECHRejectionError
			if err := tc.Handshake(); !errors.As(err, &rejected) || len(rejected.RetryConfigList) > 0 {
				t.Errorf("%v", err)
			}
		})
	})
	t.Run("B15 the origin would have taken it", func(t *testing.T) {
		_ = key // what was refused above is no GREASE: the key opens it
		client, server := pipePair(t)
		done := make(chan string, 1)
		go func() {
			tc := tls.Server(server, &tls.Config{Certificates: []tls.Certificate{g.bed.CA.Leaf(t, "hidden.test")}, EncryptedClientHelloKeys: []tls.EncryptedClientHelloKey{key}, MinVersion: tls.VersionTLS13})
			_ = tc.Handshake()
			done <- tc.ConnectionState().ServerName
		}()
		tc := tls.Client(client, &tls.Config{ServerName: "hidden.test", RootCAs: g.bed.CA.Pool(), MinVersion: tls.VersionTLS13, EncryptedClientHelloConfigList: list})
		if err := tc.Handshake(); err != nil || <-done != "hidden.test" {
			t.Errorf("%v", err)
		}
	})
	g.safe(t)
}

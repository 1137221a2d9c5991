package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/pem"
	"fmt"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"
)

// name is what the client calls the origin; egressd's upstream.hosts maps it.
const name = "api.demo.test"

// origin is an API as the world has them: TLS for its own name, and nothing without the token.
type origin struct {
	ln    net.Listener
	srv   *http.Server
	cert  *x509.Certificate
	done  chan struct{}
	mu    sync.Mutex
	token string
}

func startOrigin() (*origin, error) {
	cert, leaf, err := selfSigned()
	if err != nil {
		return nil, err
	}
	ln, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{cert}, NextProtos: []string{"http/1.1"}})
	if err != nil {
		return nil, err
	}
	o := &origin{ln: ln, cert: leaf, done: make(chan struct{})}
	o.srv = &http.Server{Handler: o, ReadHeaderTimeout: 10 * time.Second, ErrorLog: log.New(io.Discard, "", 0)}
	go func() {
		defer close(o.done)
		_ = o.srv.Serve(ln)
	}()
	return o, nil
}

func (o *origin) close() {
	_ = o.srv.Close()
	<-o.done
}

func (o *origin) port() int { return o.ln.Addr().(*net.TCPAddr).Port }

func (o *origin) url() string { return fmt.Sprintf("https://%s:%d/v1/me", name, o.port()) }

func (o *origin) caPEM() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: o.cert.Raw})
}

// accept makes token the only one that the origin takes.
func (o *origin) accept(token string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.token = token
}

func (o *origin) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	o.mu.Lock()
	want := o.token
	o.mu.Unlock()
	got, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	switch {
	case !ok:
		http.Error(w, "401: no bearer token came with this request", http.StatusUnauthorized)
	case got != want:
		http.Error(w, "401: wrong token "+fingerprint(got), http.StatusUnauthorized)
	default:
		_, _ = fmt.Fprintf(w, "hello; you came with token %s\n", fingerprint(got))
	}
}

// fingerprint names a token without telling it.
func fingerprint(token string) string {
	sum := sha256.Sum256([]byte(token))
	return "#" + hex.EncodeToString(sum[:4])
}

func selfSigned() (tls.Certificate, *x509.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, nil, err
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: "demo origin"},
		DNSNames: []string{name}, NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(24 * time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		BasicConstraintsValid: true, IsCA: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		return tls.Certificate{}, nil, err
	}
	leaf, err := x509.ParseCertificate(der)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, leaf, err
}

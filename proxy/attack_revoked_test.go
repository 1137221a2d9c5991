package proxy_test

import (
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"math/big"
	"net/http"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/crypto/ocsp"

	"github.com/egressd/egressd/internal/certs"
	"github.com/egressd/egressd/internal/testbed"
)

func leafWith(t testing.TB, ca *testbed.CA, serial int64, edit func(*x509.Certificate)) tls.Certificate {
	t.Helper()
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(serial), DNSNames: []string{"good.test"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}
	if edit != nil {
		edit(tmpl)
	}
	return ca.Issue(t, nil, tmpl)
}

func stapled(t testing.TB, ca *testbed.CA, c tls.Certificate, status int) tls.Certificate {
	t.Helper()
	der, err := ocsp.CreateResponse(ca.Cert, ca.Cert, ocsp.Response{Status: status, SerialNumber: c.Leaf.SerialNumber,
		ThisUpdate: time.Now().Add(-time.Hour), NextUpdate: time.Now().Add(time.Hour), RevokedAt: time.Now().Add(-time.Hour)}, ca.Key)
	if err != nil {
		t.Fatal(err)
	}
	c.OCSPStaple = der
	return c
}

// The lines of the D08 matrix that no certificate shows by itself.
func TestAttack_D08_revoked(t *testing.T) {
	var listed *testbed.CA
	g := attacked(t, options{revoked: func(bed *testbed.Bed) *certs.Revocations {
		listed = bed.CA.Intermediate(t, nil)
		der, err := x509.CreateRevocationList(rand.Reader, &x509.RevocationList{Number: big.NewInt(1), ThisUpdate: time.Now(), NextUpdate: time.Now().Add(time.Hour),
			RevokedCertificateEntries: []x509.RevocationListEntry{{SerialNumber: big.NewInt(4001), RevocationTime: time.Now()}}}, listed.Cert, listed.Key)
		file := filepath.Join(t.TempDir(), "listed.crl")
		if err == nil {
			err = os.WriteFile(file, der, 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
		r, err := certs.LoadCRLs([]string{file})
		if err != nil {
			t.Fatal(err)
		}
		return r
	}})
	ca := g.bed.CA
	must := func(c *x509.Certificate) {
		c.ExtraExtensions = []pkix.Extension{{Id: []int{1, 3, 6, 1, 5, 5, 7, 1, 24}, Value: []byte{0x30, 3, 2, 1, 5}}}
	}
	for name, tc := range map[string]struct {
		cert tls.Certificate
		ok   bool
	}{
		"in a list":                    {leafWith(t, listed, 4001, nil), false},
		"beside it":                    {leafWith(t, listed, 4002, nil), true},
		"same serial, another ca":      {leafWith(t, ca, 4001, nil), true},
		"stapled revoked":              {stapled(t, ca, leafWith(t, ca, 4003, nil), ocsp.Revoked), false},
		"stapled good":                 {stapled(t, ca, leafWith(t, ca, 4004, nil), ocsp.Good), true},
		"must staple, nothing stapled": {leafWith(t, ca, 4005, must), false},
		"must staple, stapled":         {stapled(t, ca, leafWith(t, ca, 4006, must), ocsp.Good), true},
	} {
		t.Run("D08 "+name, func(t *testing.T) {
			origin := testbed.NewOrigin(t, ca, testbed.OriginOptions{IP: "127.0.0.2", Names: []string{"good.test"}, Certificate: &tc.cert})
			for i := range 2 { // the second one may resume
				for proto, c := range map[string]*http.Client{"h1": g.client("one", tokenOne, false), "h2": g.client("one", tokenOne, true)} {
					a := get(t, c, fmt.Sprintf("https://good.test:%d/status/204", origin.Port()))
					if refused := a.status == http.StatusBadGateway && a.header.Get("X-Egressd-Error") == "upstream_tls_failed"; a.err != nil || refused == tc.ok {
						t.Errorf("%s, %d: %+v", proto, i, a)
					}
				}
			}
			if n := origin.AppBytes(); n != 0 != tc.ok {
				t.Errorf("%d application bytes left", n)
			}
		})
	}
	g.safe(t)
}

package proxy

import (
	"context"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/egressd/egressd/inject"
	"github.com/egressd/egressd/internal/certs"
	"github.com/egressd/egressd/internal/h1"
)

// clientTLS is the configuration of one pool's connections. Session tickets are
// never shared with another pool: the cache lives and dies here.
type clientTLS struct {
	conf *tls.Config
}

func newClientTLS(with trust, p *plan) *clientTLS {
	conf := &tls.Config{
		RootCAs:            with.roots,
		MinVersion:         tls.VersionTLS12,
		Renegotiation:      tls.RenegotiateNever,
		ServerName:         p.key.dest.host,
		ClientSessionCache: tls.NewLRUClientSessionCache(4),
		VerifyConnection:   with.strongEnough,
	}
	if p.cert != nil {
		withClientCert(conf, p.cert, with)
	}
	return &clientTLS{conf: conf}
}

// withClientCert offers a client certificate. TLS 1.3 only: there it goes out
// encrypted and after the server has been verified. Nothing is resumed.
func withClientCert(conf *tls.Config, pr *inject.Projection, with trust) {
	conf.MinVersion = tls.VersionTLS13
	conf.ClientSessionCache = nil
	cert := pr.ClientCert
	conf.GetClientCertificate = func(ri *tls.CertificateRequestInfo) (*tls.Certificate, error) {
		if cert == nil || ri.SupportsCertificate(cert) != nil {
			return new(tls.Certificate), nil //nolint:nilerr // the origin asks for one of another authority: none
		}
		return cert, nil
	}
	if pr.CAs == nil {
		return
	}
	// The source's own CA narrows trust for this source: the chain must verify to the
	// operator's roots as always, and to this one too.
	conf.VerifyConnection = func(cs tls.ConnectionState) error {
		if err := with.strongEnough(cs); err != nil {
			return err
		}
		opts := x509.VerifyOptions{Roots: pr.CAs, DNSName: cs.ServerName, Intermediates: x509.NewCertPool()}
		for _, c := range cs.PeerCertificates[1:] {
			opts.Intermediates.AddCert(c)
		}
		_, err := cs.PeerCertificates[0].Verify(opts)
		return err
	}
}

// minRSABits is what the CA/Browser Forum has asked for since 2014; crypto/tls takes 1024.
const minRSABits = 2048

var errWeakKey = errors.New("every chain has an RSA key of less than 2048 bits")

// trust is what upstream certificates are held against.
type trust struct {
	roots   *x509.CertPool
	revoked *certs.Revocations // nil: no lists
}

// strongEnough wants a verified chain without a weak key and without a certificate that
// is known to be revoked. A root's own key is the operator's choice.
func (w trust) strongEnough(cs tls.ConnectionState) error {
	err := errors.New("no chain was verified")
	for _, chain := range cs.VerifiedChains {
		if weak(chain) {
			err = errWeakKey
			continue
		}
		if err = w.revoked.Check(chain); err == nil {
			err = certs.CheckStaple(cs.OCSPResponse, chain[0], chain[min(1, len(chain)-1)], time.Now())
		}
		if err == nil {
			return nil
		}
	}
	return err
}

func weak(chain []*x509.Certificate) bool {
	for _, c := range chain[:max(1, len(chain)-1)] {
		if k, ok := c.PublicKey.(*rsa.PublicKey); ok && k.N.BitLen() < minRSABits {
			return true
		}
	}
	return false
}

// handshake verifies the origin for d's name. On error nc is closed.
func (c *clientTLS) handshake(ctx context.Context, nc net.Conn, d dest, limit time.Duration, alpn []string) (net.Conn, string, error) {
	conf := c.conf.Clone()
	conf.NextProtos = alpn
	tc := tls.Client(h1.TrackEOF(nc), conf) // a cut without close_notify is no end of a body
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	if err := tc.HandshakeContext(ctx); err != nil {
		_ = nc.Close()
		return nil, "", fmt.Errorf("%w to %s: %w", errUpstreamTLS, d, err)
	}
	cs := tc.ConnectionState()
	if len(cs.VerifiedChains) == 0 { // cannot be; a credential must never go where this holds
		_ = nc.Close()
		return nil, "", errors.New("upstream certificate was not verified")
	}
	return tc, cs.NegotiatedProtocol, nil
}

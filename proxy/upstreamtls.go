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
	"github.com/egressd/egressd/internal/h1"
)

// clientTLS is the configuration of one pool's connections. Session tickets are
// never shared with another pool: the cache lives and dies here.
type clientTLS struct {
	conf *tls.Config
}

func newClientTLS(roots *x509.CertPool, p *plan) *clientTLS {
	conf := &tls.Config{
		RootCAs:            roots,
		MinVersion:         tls.VersionTLS12,
		Renegotiation:      tls.RenegotiateNever,
		ServerName:         p.key.dest.host,
		ClientSessionCache: tls.NewLRUClientSessionCache(4),
		VerifyConnection:   strongEnough,
	}
	if p.cert != nil {
		withClientCert(conf, p.cert)
	}
	return &clientTLS{conf: conf}
}

// withClientCert offers a client certificate. TLS 1.3 only: there it goes out
// encrypted and after the server has been verified. Nothing is resumed.
func withClientCert(conf *tls.Config, pr *inject.Projection) {
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
		if err := strongEnough(cs); err != nil {
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

// strongEnough wants a verified chain without a weak key. A root's own key is the
// operator's choice.
func strongEnough(cs tls.ConnectionState) error {
	for _, chain := range cs.VerifiedChains {
		weak := false
		for _, c := range chain[:max(1, len(chain)-1)] {
			if k, ok := c.PublicKey.(*rsa.PublicKey); ok && k.N.BitLen() < minRSABits {
				weak = true
			}
		}
		if !weak {
			return nil
		}
	}
	return errWeakKey
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

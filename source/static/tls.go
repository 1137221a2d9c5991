package static

import (
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"github.com/egressd/egressd/source"
)

func decodeTLS(block json.RawMessage, errs source.FieldErrors) source.Parsed {
	var spec struct {
		Certificate *string `json:"certificatePem"`
		Key         *string `json:"privateKeyPem"`
		CA          *string `json:"caPem,omitempty"`
	}
	if !decode(block, &spec, errs) {
		return source.Parsed{}
	}
	p := source.Parsed{Canonical: spec, Set: []string{"certificatePem", "privateKeyPem"}, Material: &source.Material{}}
	var chain []*x509.Certificate
	var key crypto.Signer
	if text := required("certificatePem", spec.Certificate, errs); given("certificatePem", text, errs) {
		chain = certificates("certificatePem", text, maxChain, errs)
	}
	if text := required("privateKeyPem", spec.Key, errs); given("privateKeyPem", text, errs) {
		key = tlsKey("privateKeyPem", text, errs)
		p.Material.KeyText = keyText(text)
	}
	if text := optional("caPem", spec.CA, errs); given("caPem", text, errs) {
		p.Set = append(p.Set, "caPem")
		p.Material.CAs = pool(certificates("caPem", text, maxCAs, errs))
	}
	if len(chain) > 0 {
		checkChain(chain, errs)
	}
	if len(chain) == 0 || key == nil || !matches(chain, key, errs) {
		return p
	}
	leaf := chain[0]
	cert := &tls.Certificate{PrivateKey: key, Leaf: leaf}
	for _, c := range chain {
		cert.Certificate = append(cert.Certificate, c.Raw)
	}
	p.Material.ClientCert = cert
	p.NotBefore, p.NotAfter = window(chain)
	if len(leaf.ExtKeyUsage)+len(leaf.UnknownExtKeyUsage) > 0 &&
		!slices.Contains(leaf.ExtKeyUsage, x509.ExtKeyUsageClientAuth) && !slices.Contains(leaf.ExtKeyUsage, x509.ExtKeyUsageAny) {
		p.Warnings = append(p.Warnings, "the certificate is not meant for client authentication")
	}
	return p
}

// given is false for text that is not worth parsing; a placeholder is reported.
func given(path, text string, errs source.FieldErrors) bool {
	if text == "" {
		return false
	}
	if placeholder(text) {
		errs.Add(path, "is a placeholder, not the value itself")
		return false
	}
	return true
}

func pool(certs []*x509.Certificate) *x509.CertPool {
	// An empty pool trusts nobody, where nil would mean the usual roots.
	out := x509.NewCertPool()
	for _, c := range certs {
		out.AddCert(c)
	}
	return out
}

// checkChain wants each certificate issued by the next.
func checkChain(chain []*x509.Certificate, errs source.FieldErrors) {
	for i := range chain[:len(chain)-1] {
		if chain[i].CheckSignatureFrom(chain[i+1]) != nil {
			errs.Add("certificatePem", fmt.Sprintf("certificate %d was not issued by certificate %d: the order is leaf first, then each one's issuer", i+1, i+2))
			return
		}
	}
}

func matches(chain []*x509.Certificate, key crypto.Signer, errs source.FieldErrors) bool {
	public, ok := key.Public().(interface{ Equal(crypto.PublicKey) bool })
	if !ok {
		errs.Add("privateKeyPem", "this type of key is not supported")
		return false
	}
	if public.Equal(chain[0].PublicKey) {
		return true
	}
	message := "does not belong to the certificate"
	for _, c := range chain[1:] {
		if public.Equal(c.PublicKey) {
			message = "belongs to a later certificate of the chain: the order is leaf first"
		}
	}
	errs.Add("privateKeyPem", message)
	return false
}

// window is when the whole chain is valid.
func window(chain []*x509.Certificate) (from, until time.Time) {
	for _, c := range chain {
		if c.NotBefore.After(from) {
			from = c.NotBefore
		}
		if until.IsZero() || c.NotAfter.Before(until) {
			until = c.NotAfter
		}
	}
	return from, until
}

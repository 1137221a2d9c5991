package api

import (
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"

	"github.com/egressd/egressd/source"
)

func viewKind(k source.Kind) KindView {
	v := KindView{
		Kind: k.Name, Block: k.Block, About: k.About, Schema: k.Schema(), OpenVars: k.OpenVars,
		Projections: nonNil(k.Projections), TemplateVars: nonNil(k.TemplateVars), Inputs: []KindInput{},
	}
	for _, in := range k.Inputs {
		v.Inputs = append(v.Inputs, KindInput(in))
	}
	return v
}

func (s *Server) listKinds(*call) (answer, *failure) {
	out := []KindView{}
	for _, k := range s.opt.Kinds.Kinds() {
		out = append(out, viewKind(k))
	}
	return answer{data: out}, nil
}

func (s *Server) getKind(c *call) (answer, *failure) {
	k, ok := s.opt.Kinds.Kind(c.name)
	if !ok {
		return answer{}, failNotFound("resolver kind")
	}
	return answer{data: viewKind(k)}, nil
}

func (s *Server) showCA(*call) (answer, *failure) {
	block, _ := pem.Decode(s.opt.CA.CertPEM())
	if block == nil || block.Type != "CERTIFICATE" {
		return answer{}, failInternal(errors.New("interception CA is no PEM certificate"))
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return answer{}, failInternal(err)
	}
	sum := sha256.Sum256(cert.Raw)
	return answer{data: CAView{
		CertificatePEM: string(pem.EncodeToMemory(block)), FingerprintSHA256: hex.EncodeToString(sum[:]), Subject: cert.Subject.String(),
		NotBefore: cert.NotBefore.UTC(), NotAfter: cert.NotAfter.UTC(),
	}}, nil
}

// exportCA gives certificates only: whatever else CertPEM held would not leave.
func (s *Server) exportCA(*call) (answer, *failure) {
	var out []byte
	for rest := s.opt.CA.CertPEM(); ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		if block.Type == "CERTIFICATE" {
			out = append(out, pem.EncodeToMemory(block)...)
		}
	}
	if out == nil {
		return answer{}, failInternal(errors.New("interception CA is no PEM certificate"))
	}
	return answer{raw: out}, nil
}

func (s *Server) showVersion(*call) (answer, *failure) { return answer{data: s.opt.Version}, nil }

func (s *Server) showOpenAPI(*call) (answer, *failure) { return answer{raw: s.doc}, nil }

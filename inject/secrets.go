package inject

import (
	"cmp"
	"slices"
	"strings"

	"github.com/egressd/egressd/internal/secret"
	"github.com/egressd/egressd/policy"
	"github.com/egressd/egressd/source"
)

// minSecret is the shortest value that Secrets gives, in bytes: shorter ones stand in
// answers by chance.
const minSecret = 6

// Secrets are the values that would leak if an answer repeated what this projection put
// into a request: the fields of the source that its templates name, what the templates
// made of them (of a header "<scheme> <value>" also the value alone), a password, all of
// a Basic header, AWS's secret key and session token. Each once, the longest first; none
// under 6 bytes; no user names and key ids; nothing of a template that names no field.
// Keys that only sign (a client certificate's, SSH's) are not sent and not among them.
// The slice is shared: do not write into it.
func (p *Projection) Secrets() []secret.String {
	if p == nil {
		return nil
	}
	return p.secrets
}

func (p *plan) secretsOf(out *Projection, m *source.Material) []secret.String {
	var found secretList
	switch p.kind {
	case policy.HTTPHeaders:
		for i, h := range p.headers {
			if found.fields(m, h.value) {
				found.header(out.Headers[i].Value)
			}
		}
	case policy.UsernamePassword:
		found.add(out.Login.Password)
		found.header(out.Headers[0].Value)
	case policy.PlaceholderSubstitution:
		for i, r := range p.replacements {
			if found.fields(m, r.value) {
				found.header(out.Placeholders.places().rendered[i])
			}
		}
	case policy.AWSSigV4:
		found.add(out.AWS.SecretAccessKey)
		found.add(out.AWS.SessionToken)
	case policy.SSHProxy, policy.TLSClientCertificate: // what they sign with never leaves
	}
	return found.sorted()
}

type secretList []secret.String

func (l *secretList) add(v secret.String) {
	if v.Len() >= minSecret {
		*l = append(*l, v)
	}
}

// header adds a rendered value, and what follows the scheme in it.
func (l *secretList) header(value string) {
	l.add(secret.New(value))
	if scheme, rest, ok := strings.Cut(value, " "); ok && scheme != "" && !strings.Contains(rest, " ") {
		l.add(secret.New(rest))
	}
}

// fields adds those that a template names, and says whether one of them is a secret.
func (l *secretList) fields(m *source.Material, t *valueTemplate) (isSecret bool) {
	for _, name := range t.vars {
		if !slices.Contains(m.NotSecret, name) {
			isSecret = true
			l.add(m.Values[name])
		}
	}
	return isSecret
}

func (l secretList) sorted() []secret.String {
	slices.SortFunc(l, func(a, b secret.String) int {
		if n := b.Len() - a.Len(); n != 0 {
			return n
		}
		return cmp.Compare(a.Reveal(), b.Reveal())
	})
	return slices.CompactFunc(l, secret.String.Equal)
}

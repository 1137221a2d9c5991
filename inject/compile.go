package inject

import (
	"crypto/rsa"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"unicode"

	"golang.org/x/crypto/ssh"
	"golang.org/x/net/http/httpguts"

	"github.com/egressd/egressd/policy"
)

// compiler makes the plan of one binding and collects what is wrong with it.
type compiler struct {
	b        *policy.Binding
	plan     *plan
	problems policy.Problems
	vars     []string // the fields of the source, unless open
	open     bool
}

func compileBinding(team string, b *policy.Binding, kindOf KindOf) (*plan, policy.Problems) {
	c := &compiler{b: b, plan: &plan{kind: b.Projection.Type, binding: b, team: team}, open: true}
	if kind, ok := kindOf(team, b.SourceRef); ok {
		var suits bool
		if c.vars, c.open, suits = offers(kind, b.Projection.Type); !suits {
			c.blame(0, "projection %s does not suit source %s, which is %s", b.Projection.Type, b.SourceRef, kind)
			c.open = true
		}
	}
	switch b.Projection.Type {
	case policy.HTTPHeaders:
		c.headers()
	case policy.PlaceholderSubstitution:
		c.replacements()
	case policy.SSHProxy:
		c.ssh()
	case policy.UsernamePassword, policy.TLSClientCertificate, policy.AWSSigV4: // nothing to compile
	default:
		c.blame(0, "projection %s is not known", b.Projection.Type)
	}
	return c.plan, c.problems
}

func (c *compiler) blame(line int, format string, args ...any) {
	if line == 0 {
		line = c.b.Line
	}
	c.problems = append(c.problems, policy.Problem{File: c.b.File, Line: line,
		Message: fmt.Sprintf("binding %s: ", c.b.Ref) + fmt.Sprintf(format, args...)})
}

// template parses one and wants the source to have its fields; nil if it does not parse.
func (c *compiler) template(text, where string, line int) *valueTemplate {
	value, err := parseTemplate(text)
	if err != nil {
		c.blame(line, "%s: %v", where, err)
		return nil
	}
	for _, name := range value.vars {
		if !c.open && !slices.Contains(c.vars, name) {
			c.blame(line, "%s: the source has no field %s: it has %s", where, name, strings.Join(c.vars, ", "))
		}
	}
	return value
}

func (c *compiler) headers() {
	if len(c.b.Projection.Headers) == 0 {
		c.blame(0, "projection has no headers")
	}
	for _, h := range c.b.Projection.Headers {
		if err := checkName(h.Name, c.plan.headers); err != nil {
			c.blame(h.Line, "%v", err)
		}
		if value := c.template(h.ValueTemplate, "header "+h.Name, h.Line); value != nil {
			c.plan.headers = append(c.plan.headers, headerPlan{http.CanonicalHeaderKey(h.Name), value, h.Line})
		}
	}
}

func (c *compiler) replacements() {
	list := c.b.Projection.Replacements
	if len(list) == 0 {
		c.blame(0, "projection has no replacements")
	}
	if len(list) > maxReplacements {
		c.blame(0, "projection has more than %d replacements", maxReplacements)
		return
	}
	for i, r := range list {
		where := fmt.Sprintf("replacement %d", i+1)
		if err := checkPlaceholder(r, c.plan.replacements); err != nil {
			c.blame(r.Line, "%s: %v", where, err)
			continue
		}
		value := c.template(r.ValueTemplate, where, r.Line)
		if value == nil {
			continue
		}
		c.plan.replacements = append(c.plan.replacements, replacementPlan{r.Placeholder, value, r.Locations, r.Line})
		for _, other := range list {
			if len(other.Placeholder) >= minPlaceholder && strings.Contains(r.ValueTemplate, other.Placeholder) {
				c.blame(r.Line, "%s: the value would hold a placeholder", where)
			}
		}
	}
}

func (c *compiler) ssh() {
	s := c.b.Projection.SSH
	if n := len(s.UpstreamUsername); n == 0 || n > 255 || strings.ContainsFunc(s.UpstreamUsername, unicode.IsControl) {
		c.blame(0, "upstreamUsername is empty, holds a control character or is over 255 bytes")
	}
	if len(s.SandboxPublicKeys) == 0 {
		c.blame(0, "projection has no sandboxPublicKeys: nobody could come in")
	}
	if len(s.KnownHosts) == 0 {
		c.blame(s.KnownHostsLine, "projection has no knownHosts: no server could be trusted")
	}
	c.plan.ssh = &sshPlan{username: s.UpstreamUsername}
	for i, line := range s.SandboxPublicKeys {
		key, err := sandboxKey(line)
		if err != nil {
			c.blame(0, "sandboxPublicKeys.%d: %v", i, err)
			continue
		}
		c.plan.ssh.keys = append(c.plan.ssh.keys, key)
	}
	var err error
	if c.plan.ssh.hosts, err = ParseKnownHosts(s.KnownHosts); err != nil {
		c.blame(s.KnownHostsLine, "%v", err)
	}
}

// sandboxKey reads an authorized_keys line (sshd(8)). Options are refused: who writes
// one wants it to hold, and none of them would.
func sandboxKey(line string) (ssh.PublicKey, error) {
	key, _, options, rest, err := ssh.ParseAuthorizedKey([]byte(line))
	switch {
	case err != nil:
		return nil, errors.New("is not an authorized_keys line")
	case len(rest) > 0:
		return nil, errors.New("holds more than one line")
	case len(options) > 0:
		return nil, errors.New("has options, which are not supported")
	}
	if k, ok := key.(ssh.CryptoPublicKey); ok {
		if rsaKey, ok := k.CryptoPublicKey().(*rsa.PublicKey); ok && rsaKey.N.BitLen() < 2048 {
			return nil, errors.New("an RSA key of less than 2048 bits is refused")
		}
	}
	switch key.Type() {
	case ssh.KeyAlgoED25519, ssh.KeyAlgoECDSA256, ssh.KeyAlgoECDSA384, ssh.KeyAlgoECDSA521, ssh.KeyAlgoRSA,
		ssh.KeyAlgoSKED25519, ssh.KeyAlgoSKECDSA256:
		return key, nil
	}
	return nil, errors.New("this type of key is not supported (RSA, ECDSA, Ed25519)")
}

// offers: which projections a kind of source suits, and which fields templates find in
// it (open: the source's own keys).
func offers(kind string, projection policy.ProjectionType) (vars []string, open, suits bool) {
	switch kind {
	case "static_headers":
		return nil, true, projection == policy.HTTPHeaders || projection == policy.PlaceholderSubstitution
	case "static_username_password":
		return []string{"username", "password"}, false,
			projection == policy.HTTPHeaders || projection == policy.UsernamePassword || projection == policy.PlaceholderSubstitution
	case "static_tls_client_certificate":
		return nil, false, projection == policy.TLSClientCertificate
	case "static_ssh_private_key":
		return nil, false, projection == policy.SSHProxy
	case "aws_access_key":
		return nil, false, projection == policy.AWSSigV4
	default:
		return nil, false, false
	}
}

// checkName refuses what would change the message's framing or route instead of
// authenticating it, and a name that is set already.
func checkName(name string, earlier []headerPlan) error {
	if !httpguts.ValidHeaderFieldName(name) {
		return fmt.Errorf("header name is not a token (RFC 9110, 5.1)")
	}
	lower := strings.ToLower(name)
	switch lower {
	case "host", "content-length", "transfer-encoding", "connection", "keep-alive", "te", "trailer", "upgrade", "expect":
		return fmt.Errorf("header %s cannot be projected", name)
	}
	if strings.HasPrefix(lower, "proxy-") {
		return fmt.Errorf("header %s cannot be projected", name)
	}
	for _, h := range earlier {
		if sameName(h.name, name) {
			return fmt.Errorf("header %s is projected twice", name)
		}
	}
	return nil
}

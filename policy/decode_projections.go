package policy

import (
	"strings"
	"unicode/utf8"
)

func (d *decoder) projection(v value) Projection {
	var p Projection
	blocks := map[string]ProjectionType{} // type by block
	block := func(name string, typ ProjectionType, read func(value)) func(value) {
		return func(v value) {
			blocks[name] = typ
			read(v)
		}
	}
	empty := func(v value) { d.object(v, fields{}) }
	d.object(v, fields{
		"type":                    func(v value) { p.Type = d.projectionType(v) },
		"httpHeaders":             block("httpHeaders", HTTPHeaders, func(v value) { p.Headers = d.headerTemplates(v) }),
		"placeholderSubstitution": block("placeholderSubstitution", PlaceholderSubstitution, func(v value) { p.Replacements = d.replacements(v) }),
		"usernamePassword":        block("usernamePassword", UsernamePassword, empty),
		"tlsClientCertificate":    block("tlsClientCertificate", TLSClientCertificate, empty),
		"awsSigv4":                block("awsSigv4", AWSSigV4, func(v value) { p.AWS = d.awsBounds(v) }),
		"sshProxy":                block("sshProxy", SSHProxy, func(v value) { p.SSH = d.sshLogin(v) }),
	}, "type")
	for name, typ := range blocks {
		if p.Type != "" && typ != p.Type {
			d.fail(v, "the block %s does not belong to type %s", name, p.Type)
		}
	}
	for _, need := range []struct {
		typ   ProjectionType
		block string
	}{{HTTPHeaders, "httpHeaders"}, {PlaceholderSubstitution, "placeholderSubstitution"}, {SSHProxy, "sshProxy"}} {
		if _, ok := blocks[need.block]; !ok && p.Type == need.typ {
			d.fail(v, "%s is missing", need.block)
		}
	}
	return p
}

func (d *decoder) projectionType(v value) ProjectionType {
	return ProjectionType(d.enum(v, "http_headers", "username_password", "tls_client_certificate",
		"placeholder_substitution", "aws_sigv4", "ssh_proxy"))
}

func (d *decoder) replacements(v value) []Replacement {
	var out []Replacement
	d.object(v, fields{
		"replacements": func(v value) {
			d.list(v, func(v value) { out = append(out, d.replacement(v)) })
			d.notEmpty(v)
		},
	}, "replacements")
	return out
}

func (d *decoder) notEmpty(v value) {
	if isList(v) && len(v.n.Content) == 0 {
		d.fail(v, "must not be empty")
	}
}

func (d *decoder) replacement(v value) Replacement {
	r := Replacement{Line: v.n.Line}
	var at value
	d.object(v, fields{
		"placeholder":   func(v value) { r.Placeholder, at = d.placeholder(v), v },
		"valueTemplate": func(v value) { r.ValueTemplate = d.valueTemplate(v) },
		"locations":     func(v value) { r.Locations = d.locations(v) },
	}, "placeholder", "valueTemplate", "locations")
	if r.Placeholder != "" && r.Locations&(InQuery|InPath) != 0 && strings.ContainsFunc(r.Placeholder, reservedInURL) {
		d.fail(at, "in a query or path a placeholder is looked for as it is sent: want only letters, digits and - . _ ~")
	}
	return r
}

// The length of a placeholder: long enough to stand nowhere by chance.
const (
	minPlaceholder = 8
	maxPlaceholder = 256
)

// placeholder is never repeated in a message: it might be a secret in the wrong field.
func (d *decoder) placeholder(v value) string {
	s, ok := d.str(v)
	switch {
	case !ok:
		return ""
	case len(s) < minPlaceholder || len(s) > maxPlaceholder:
		d.fail(v, "want %d to %d bytes", minPlaceholder, maxPlaceholder)
		return ""
	case strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' || r > '~' || strings.ContainsRune("\"'`\\", r) }):
		d.fail(v, "want printable ASCII without spaces, quotes and backslashes")
		return ""
	}
	return s
}

func reservedInURL(r rune) bool {
	return r > '~' || !isAlnum(byte(r)) && !strings.ContainsRune("-._~", r)
}

func (d *decoder) locations(v value) Location {
	var set Location
	d.list(v, func(v value) {
		var l Location
		switch d.enum(v, "header", "query", "path", "body") {
		case "header":
			l = InHeader
		case "query":
			l = InQuery
		case "path":
			l = InPath
		case "body":
			l = InBody
		}
		if l != 0 && set&l != 0 {
			d.fail(v, "stands here twice")
		}
		set |= l
	})
	d.notEmpty(v)
	return set
}

func (d *decoder) awsBounds(v value) AWSBounds {
	var b AWSBounds
	d.object(v, fields{
		"region":  func(v value) { b.Region = d.identifier(v) },
		"service": func(v value) { b.Service = d.identifier(v) },
	})
	return b
}

func (d *decoder) sshLogin(v value) SSHLogin {
	var l SSHLogin
	d.object(v, fields{
		"sandboxPublicKeys": func(v value) { l.SandboxPublicKeys = d.keyLines(v, checkAuthorizedKey) },
		"upstreamUsername":  func(v value) { l.UpstreamUsername = d.upstreamUsername(v) },
		"knownHosts":        func(v value) { l.KnownHosts, l.KnownHostsLine = d.keyLines(v, checkKnownHost), v.n.Line },
	}, "sandboxPublicKeys", "upstreamUsername", "knownHosts")
	return l
}

// keyLines reads a list of lines that check takes.
func (d *decoder) keyLines(v value, check func(string) error) []string {
	var out []string
	d.list(v, func(v value) {
		s, ok := d.str(v)
		if !ok {
			return
		}
		if err := check(s); err != nil {
			d.fail(v, "%v", err)
			return
		}
		out = append(out, s)
	})
	d.notEmpty(v)
	return out
}

func (d *decoder) upstreamUsername(v value) string {
	s, ok := d.str(v)
	if ok && (len(s) > maxLoginField || !utf8.ValidString(s) || strings.ContainsFunc(s, isControl)) {
		d.fail(v, "want a user name of at most %d bytes without control characters", maxLoginField)
		return ""
	}
	return s
}

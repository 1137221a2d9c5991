package inject

import (
	"encoding/base64"
	"errors"
	"fmt"
	"iter"
	"strings"

	"github.com/egressd/egressd/policy"
	"github.com/egressd/egressd/source"
)

// plan is a binding's projection, compiled. Immutable.
type plan struct {
	kind         policy.ProjectionType
	headers      []headerPlan
	replacements []replacementPlan
	ssh          *sshPlan
	binding      *policy.Binding
	team         string
}

type headerPlan struct {
	name  string
	value *valueTemplate
	line  int
}

// templates of the plan, each with its line in the policy.
func (p *plan) templates() iter.Seq2[int, *valueTemplate] {
	return func(yield func(int, *valueTemplate) bool) {
		for _, h := range p.headers {
			if !yield(h.line, h.value) {
				return
			}
		}
		for _, r := range p.replacements {
			if !yield(r.line, r.value) {
				return
			}
		}
	}
}

// rendered is all that follows from one material, published together. Immutable.
type rendered struct {
	material     *source.Material
	projection   *Projection
	destinations source.Destinations
	err          error // if set, the rest but material is not
}

func (p *plan) render(m *source.Material) *rendered {
	st := &rendered{material: m}
	code := CodeSourceInvalid
	var err error
	if st.destinations, err = source.ParseDestinations(m.AllowedDestinations); err == nil {
		st.projection, code, err = p.project(m)
	}
	if err != nil {
		return &rendered{material: m, err: &Error{Code: code, Source: m.Name, Version: m.Version, Err: err}}
	}
	st.projection.secrets = p.secretsOf(st.projection, m)
	return st
}

// project makes the projection; code is that of the error.
func (p *plan) project(m *source.Material) (out *Projection, code string, err error) {
	code = CodeSourceInvalid
	switch p.kind {
	case policy.HTTPHeaders, policy.PlaceholderSubstitution:
		out, err = p.fill(m)
		return out, CodeTemplateFailed, err
	case policy.UsernamePassword:
		login, err := loginOf(m)
		if err != nil {
			return nil, code, err
		}
		header, err := basic(login)
		if err != nil {
			return nil, code, err
		}
		out = newProjection(m, []Header{header})
		out.Login = login
	case policy.TLSClientCertificate:
		if m.ClientCert == nil {
			return nil, code, errors.New("the source holds no client certificate")
		}
		out = newProjection(m, nil)
		out.ClientCert, out.CAs = m.ClientCert, m.CAs
	case policy.SSHProxy:
		out = newProjection(m, nil)
		out.SSH, err = p.ssh.login(m)
	case policy.AWSSigV4:
		out = newProjection(m, nil)
		out.AWS, err = awsOf(m, p.binding.Projection.AWS.Region, p.binding.Projection.AWS.Service)
	default:
		err = errors.New("the projection is not supported")
	}
	return out, code, err
}

// fill renders templates. The revealed map lives no longer than that.
func (p *plan) fill(m *source.Material) (*Projection, error) {
	fields := make(map[string]string, len(m.Values))
	for key, value := range m.Values {
		fields[key] = value.Reveal()
	}
	headers := make([]Header, 0, len(p.headers))
	for _, h := range p.headers {
		value, err := h.value.execute(fields)
		if err == nil {
			err = checkValue(value)
		}
		if err != nil {
			return nil, fmt.Errorf("header %s: %w", h.name, err)
		}
		headers = append(headers, Header{h.name, value})
	}
	out := newProjection(m, headers)
	if p.kind == policy.PlaceholderSubstitution {
		var err error
		if out.Placeholders, err = p.fillPlaceholders(fields); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// basic is RFC 7617.
func basic(l *Login) (Header, error) {
	if strings.IndexByte(l.Username, ':') >= 0 {
		return Header{}, errors.New("the user name holds a colon, which Basic authentication cannot carry")
	}
	value := "Basic " + base64.StdEncoding.EncodeToString([]byte(l.Username+":"+l.Password.Reveal()))
	return Header{"Authorization", value}, checkValue(value)
}

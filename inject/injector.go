package inject

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"sync/atomic"

	"github.com/egressd/egressd/policy"
	"github.com/egressd/egressd/source"
)

// errNoRule is what the zero Injector and one for an unknown rule answer.
var errNoRule = errors.New("no such rule in this ruleset")

// Injector serves one credential rule. Safe for concurrent use; the zero value
// refuses.
type Injector struct {
	plan     *plan
	resolver source.Resolving
	ref      source.Ref
	state    atomic.Pointer[rendered]
}

// plan is a binding's projection, compiled. Immutable.
type plan struct {
	kind    policy.ProjectionType
	headers []headerPlan
	binding *policy.Binding
	team    string
}

type headerPlan struct {
	name  string
	value *valueTemplate
}

// rendered is all that follows from one material, published together. Immutable.
type rendered struct {
	material     *source.Material
	projection   *Projection
	destinations source.Destinations
	err          error // if set, the rest but material is not
}

// Resolve gives the projection for a request to host (canonical) and port, both
// verified or about to be. The error is an *Error. While the source has not changed
// it renders and allocates nothing.
func (in *Injector) Resolve(ctx context.Context, host string, port uint16) (*Projection, error) {
	if in.plan == nil {
		return nil, &Error{Code: CodeSourceUnavailable, Err: errNoRule}
	}
	m, err := in.resolver.Resolve(ctx, in.ref)
	if err != nil {
		return nil, &Error{Code: source.Code(err), Source: in.ref.Name, Version: in.ref.Version, Err: err}
	}
	st := in.state.Load()
	if st == nil || st.material != m {
		st = in.plan.render(m)
		in.state.Store(st)
	}
	if st.err != nil {
		return nil, st.err
	}
	if !st.destinations.Allow(host, port) {
		return nil, &Error{Code: CodeDestinationNotAllowed, Source: m.Name, Version: m.Version,
			Err: fmt.Errorf("allowedDestinations do not hold %s port %d", host, port)}
	}
	return st.projection, nil
}

// Format keeps a printed injector to its name: what it holds is ready for the wire.
func (in *Injector) Format(f fmt.State, _ rune) {
	_, _ = fmt.Fprintf(f, "injector of %s/%s", in.ref.Team, in.ref.Name)
}

func (p *plan) render(m *source.Material) *rendered {
	st := &rendered{material: m}
	fail := func(code string, err error) *rendered {
		return &rendered{material: m, err: &Error{Code: code, Source: m.Name, Version: m.Version, Err: err}}
	}
	var err error
	if st.destinations, err = source.ParseDestinations(m.AllowedDestinations); err != nil {
		return fail(CodeSourceInvalid, err)
	}
	switch p.kind {
	case policy.HTTPHeaders:
		headers, err := p.fill(m)
		if err != nil {
			return fail(CodeTemplateFailed, err)
		}
		st.projection = newProjection(m, headers)
	case policy.UsernamePassword:
		header, err := basic(m)
		if err != nil {
			return fail(CodeSourceInvalid, err)
		}
		st.projection = newProjection(m, []Header{header})
	case policy.TLSClientCertificate:
		if m.ClientCert == nil {
			return fail(CodeSourceInvalid, errors.New("the source holds no client certificate"))
		}
		st.projection = newProjection(m, nil)
		st.projection.ClientCert, st.projection.CAs = m.ClientCert, m.CAs
	default:
		return fail(CodeSourceInvalid, errors.New("the projection is not supported"))
	}
	return st
}

// fill renders the headers. The revealed map lives no longer than that.
func (p *plan) fill(m *source.Material) ([]Header, error) {
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
	return headers, nil
}

// basic is RFC 7617.
func basic(m *source.Material) (Header, error) {
	user, okUser := m.Values["username"]
	password, okPassword := m.Values["password"]
	if !okUser || !okPassword {
		return Header{}, errors.New("the source holds no user name and password")
	}
	value := "Basic " + base64.StdEncoding.EncodeToString([]byte(user.Reveal()+":"+password.Reveal()))
	return Header{"Authorization", value}, checkValue(value)
}

package main

import (
	"context"
	"fmt"
	"net/http"
	"net/netip"
	"net/url"
	"strconv"
	"strings"

	"golang.org/x/net/http/httpguts"

	"github.com/egressd/egressd/api"
	"github.com/egressd/egressd/policy"
)

// explain traces one decision. Where it depends on the address it looks the name up.
func explain(ctx context.Context, set *policy.Set, sb *policy.Sandbox, r api.ExplainRequest, lookup func(context.Context, string) ([]netip.Addr, error)) (api.ExplainResult, error) {
	f, err := flowOf(r)
	if err != nil {
		return api.ExplainResult{}, err
	}
	f.Sandbox = sb
	d := set.Decide(f)
	if d.NeedAddr {
		addrs, err := lookupFor(ctx, lookup, f.Host)
		if err != nil || len(addrs) == 0 {
			return api.ExplainResult{}, badExplain("url", "the decision depends on the address, and the name cannot be resolved now")
		}
		f.Addr = addrs[0]
		d = set.Decide(f)
	}
	out := api.ExplainResult{Action: d.Action.String(), Reason: d.Reason.String(), Rule: d.Rule, Report: d.Report,
		Credential: credentialOf(d.Credential), ClientCert: credentialOf(d.ClientCert)}
	for _, s := range set.Explain(f) {
		out.Steps = append(out.Steps, api.ExplainStep(s))
	}
	return out, nil
}

func credentialOf(r *policy.CredentialRule) *api.ExplainCredential {
	if r == nil {
		return nil
	}
	return &api.ExplainCredential{Rule: r.Name, Binding: r.Binding.Ref, Source: r.Binding.SourceRef,
		Projection: string(r.Binding.Projection.Type), File: r.File, Line: r.Line}
}

func badExplain(field, format string, args ...any) error {
	return &api.ExplainError{Fields: map[string][]string{field: {fmt.Sprintf(format, args...)}}}
}

// flowOf is the flow that a request for r.URL would be.
func flowOf(r api.ExplainRequest) (*policy.Flow, error) {
	u, err := url.Parse(r.URL)
	if err != nil || u.Host == "" || u.Opaque != "" || u.User != nil {
		return nil, badExplain("url", "must be a URL such as https://api.example.com/path, without user info")
	}
	f := &policy.Flow{Method: r.Method, RawQuery: u.RawQuery, Header: http.Header{}}
	if err := setProtocol(f, u.Scheme, r.Protocol); err != nil {
		return nil, err
	}
	if f.Host, err = policy.CanonicalHost(u.Hostname()); err != nil {
		return nil, badExplain("url", "the host is not one that can be asked for: %v", err)
	}
	if ip, err := netip.ParseAddr(f.Host); err == nil {
		f.Addr = ip
	}
	if f.Port, err = portOf(u); err != nil {
		return nil, err
	}
	if f.Method == "" {
		f.Method = http.MethodGet
	}
	if !httpguts.ValidHeaderFieldName(f.Method) { // the same token grammar (RFC 9110 5.6.2)
		return nil, badExplain("method", "is not a method")
	}
	path := u.EscapedPath()
	if path == "" {
		path = "/"
	}
	if f.Path, err = policy.CanonicalPath(path); err != nil {
		return nil, badExplain("url", "the path would be refused: %v", err)
	}
	for name, value := range r.Headers {
		if !httpguts.ValidHeaderFieldName(name) || !httpguts.ValidHeaderFieldValue(value) {
			return nil, badExplain("headers", "holds a field that is not valid")
		}
		f.Header.Add(name, value)
	}
	return f, nil
}

func setProtocol(f *policy.Flow, scheme, protocol string) error {
	if protocol == "" {
		protocol = strings.ToLower(scheme)
	}
	switch protocol {
	case "https", "wss":
		f.Protocol, f.Request = policy.TLS, true
	case "http", "ws":
		f.Protocol, f.Request = policy.HTTP, true
	case "tls":
		f.Protocol = policy.TLS
	case "ssh":
		f.Protocol = policy.SSH
	case "tcp", "unknown":
		f.Protocol = policy.Unknown
	default:
		return badExplain("protocol", "must be http, https, tls, ssh or tcp")
	}
	return nil
}

func portOf(u *url.URL) (uint16, error) {
	if p := u.Port(); p != "" {
		n, err := strconv.ParseUint(p, 10, 16)
		if err != nil || n == 0 {
			return 0, badExplain("url", "the port is not one")
		}
		return uint16(n), nil
	}
	switch strings.ToLower(u.Scheme) {
	case "https", "wss", "tls":
		return 443, nil
	case "http", "ws":
		return 80, nil
	case "ssh":
		return 22, nil
	}
	return 0, badExplain("url", "a port is needed with this scheme")
}

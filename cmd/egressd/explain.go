package main

import (
	"context"
	"fmt"
	"net/http"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"time"

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
	if until := sb.LeaseUntil; !until.IsZero() && !time.Now().Before(until) {
		return api.ExplainResult{Action: policy.Deny.String(), Reason: policy.ReasonUnknownSandbox.String(), Steps: []api.ExplainStep{
			{Stage: "sandbox", Detail: "its lease ended at " + until.UTC().Format(time.RFC3339) + ": no connection is known as its own any more"}}}, nil
	}
	t := tracing{set: set, lookup: lookup}
	if outer, what := around(f); outer != nil {
		d, err := t.decide(ctx, outer)
		if err != nil {
			return api.ExplainResult{}, err
		}
		if f.Addr = outer.Addr; d.Action != policy.Inspect {
			out := t.result(outer, d)
			if d.Action == policy.Pass {
				out.Steps = append(out.Steps, api.ExplainStep{Stage: "inspect", Detail: "relayed as it is: no rule looks inside, so " + what + " is not seen, and gets no credential"})
			}
			return out, nil
		}
	}
	d, err := t.decide(ctx, f)
	if err != nil {
		return api.ExplainResult{}, err
	}
	return t.result(f, d), nil
}

// around is the connection that f is spoken on, when that is decided by itself before
// anything in it is looked at, and a word for f.
func around(f *policy.Flow) (outer *policy.Flow, what string) {
	o := policy.Flow{Sandbox: f.Sandbox, Host: f.Host, Port: f.Port, Addr: f.Addr, Protocol: f.Protocol}
	switch {
	case f.Request && f.Protocol == policy.TLS:
		return &o, "this request"
	case f.Request && f.Protocol == policy.SSH:
		return &o, "what is asked for"
	case f.InTLS:
		o.Protocol = policy.TLS
		return &o, "the " + f.Protocol.String() + " in it"
	}
	return nil, ""
}

// tracing decides and narrates for one explanation.
type tracing struct {
	set    *policy.Set
	lookup func(context.Context, string) ([]netip.Addr, error)
}

// decide asks the policy; f has the address in the end, if the decision needed one.
func (t *tracing) decide(ctx context.Context, f *policy.Flow) (policy.Decision, error) {
	d := t.set.Decide(f)
	if !d.NeedAddr {
		return d, nil
	}
	addrs, err := lookupFor(ctx, t.lookup, f.Host)
	if err != nil || len(addrs) == 0 {
		return d, badExplain("url", "the decision depends on the address (a rule there has cidrs), and the name cannot be resolved now")
	}
	for _, f.Addr = range addrs { // as the data plane: the first that is not refused
		if d = t.set.Decide(f); d.Action != policy.Deny && !d.NeedAddr {
			break
		}
	}
	return d, nil
}

func (t *tracing) result(f *policy.Flow, d policy.Decision) api.ExplainResult {
	out := api.ExplainResult{Action: d.Action.String(), Reason: d.Reason.String(), Rule: d.Rule, Report: d.Report,
		Credential: credentialOf(d.Credential), ClientCert: credentialOf(d.ClientCert)}
	for _, s := range t.set.Explain(f) {
		out.Steps = append(out.Steps, api.ExplainStep(s))
	}
	return out
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
	if err != nil || u.Host == "" || u.Opaque != "" {
		return nil, badExplain("url", "must be a URL such as https://api.example.com/path or ssh://host")
	}
	sp, err := spokenIn(u.Scheme, r.Protocol)
	if err != nil {
		return nil, err
	}
	if _, password := u.User.Password(); password || u.User != nil && sp.http {
		return nil, badExplain("url", "must not hold user info: who logs in does not decide")
	}
	f := &policy.Flow{Protocol: sp.protocol, InTLS: sp.inTLS}
	if f.Host, err = policy.CanonicalHost(u.Hostname()); err != nil {
		return nil, badExplain("url", "the host is not one that can be asked for: %v", err)
	}
	if ip, err := netip.ParseAddr(f.Host); err == nil {
		f.Addr = ip
	}
	if f.Port, err = portOf(u, sp.port); err != nil {
		return nil, err
	}
	if err := setSSH(f, r); err != nil {
		return nil, err
	}
	if sp.http {
		return f, setRequest(f, u, r)
	}
	if r.Method != "" || len(r.Headers) > 0 {
		return nil, badExplain("method", "method and headers go with http and https only")
	}
	return f, nil
}

// setRequest makes f an HTTP request.
func setRequest(f *policy.Flow, u *url.URL, r api.ExplainRequest) (err error) {
	f.Request, f.Method, f.RawQuery, f.Header = true, r.Method, u.RawQuery, http.Header{}
	if f.Method == "" {
		f.Method = http.MethodGet
	}
	if !httpguts.ValidHeaderFieldName(f.Method) { // the same token grammar (RFC 9110 5.6.2)
		return badExplain("method", "is not a method")
	}
	path := u.EscapedPath()
	if path == "" {
		path = "/"
	}
	if f.Path, err = policy.CanonicalPath(path); err != nil {
		return badExplain("url", "the path would be refused: %v", err)
	}
	for name, value := range r.Headers {
		if !httpguts.ValidHeaderFieldName(name) || !httpguts.ValidHeaderFieldValue(value) {
			return badExplain("headers", "holds a field that is not valid")
		}
		f.Header.Add(name, value)
	}
	return nil
}

// setSSH makes f one thing that is asked for inside SSH, when r asks for one.
func setSSH(f *policy.Flow, r api.ExplainRequest) error {
	asked := 0
	for _, q := range []struct {
		is      bool
		request policy.SSHRequest
	}{
		{r.Exec != "", policy.SSHRequest{Kind: policy.SSHExec, Text: r.Exec}},
		{r.Subsystem != "", policy.SSHRequest{Kind: policy.SSHSubsystem, Text: r.Subsystem}},
		{r.Shell, policy.SSHRequest{Kind: policy.SSHShell}},
		{r.Forwarding, policy.SSHRequest{Kind: policy.SSHForwarding}},
	} {
		if q.is {
			asked++
			f.SSH, f.Request = q.request, true
		}
	}
	switch {
	case asked > 1:
		return badExplain("exec", "exec, subsystem, shell and forwarding are asked for one at a time")
	case asked == 1 && f.Protocol != policy.SSH:
		return badExplain("exec", "exec, subsystem, shell and forwarding go with ssh only")
	}
	return nil
}

// spoken is what a scheme stands for.
type spoken struct {
	protocol policy.Protocol
	inTLS    bool // in TLS that is looked into
	http     bool
	port     uint16 // its default; 0: none
}

// spokenIn gives what is spoken: protocol, or else the URL's scheme, says it.
func spokenIn(scheme, protocol string) (spoken, error) {
	if protocol == "" {
		protocol = strings.ToLower(scheme)
	}
	switch protocol {
	case "https", "wss":
		return spoken{protocol: policy.TLS, http: true, port: 443}, nil
	case "http", "ws":
		return spoken{protocol: policy.HTTP, http: true, port: 80}, nil
	case "tls":
		return spoken{protocol: policy.TLS, port: 443}, nil
	case "ssh":
		return spoken{protocol: policy.SSH, port: 22}, nil
	case "redis":
		return spoken{protocol: policy.Redis, port: 6379}, nil
	case "rediss":
		return spoken{protocol: policy.Redis, inTLS: true, port: 6379}, nil
	case "mqtt":
		return spoken{protocol: policy.MQTT, port: 1883}, nil
	case "mqtts":
		return spoken{protocol: policy.MQTT, inTLS: true, port: 8883}, nil
	case "postgres", "postgresql":
		return spoken{protocol: policy.Postgres, port: 5432}, nil
	case "socks5", "socks5h":
		return spoken{protocol: policy.SOCKS5, port: 1080}, nil
	case "amqp":
		return spoken{protocol: policy.AMQP, port: 5672}, nil
	case "mongodb":
		return spoken{protocol: policy.MongoDB, port: 27017}, nil
	case "tcp", "unknown":
		return spoken{protocol: policy.Unknown}, nil
	}
	return spoken{}, badExplain("protocol", "must be %s", explainable)
}

// explainable are the words of spokenIn that the help names.
const explainable = "http, https, tls, ssh, redis, rediss, mqtt, mqtts, postgres, socks5, amqp, mongodb or tcp"

func portOf(u *url.URL, byDefault uint16) (uint16, error) {
	if p := u.Port(); p != "" {
		n, err := strconv.ParseUint(p, 10, 16)
		if err != nil || n == 0 {
			return 0, badExplain("url", "the port is not one")
		}
		return uint16(n), nil
	}
	if byDefault == 0 {
		return 0, badExplain("url", "a port is needed with this scheme")
	}
	return byDefault, nil
}

package main

import (
	"encoding/json"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/egressd/egressd/policy"
	"github.com/egressd/egressd/source"
	"github.com/egressd/egressd/source/static"
)

type kindsOf = *source.Registry

// runSecrets are what the command must not see.
type runSecrets struct {
	sources map[string]specFields
	vars    []string // variables to take out of the child's environment
	inject  []injection
}

// specFields is the spec of one source, field by field.
type specFields map[string]string

// kind infers what a source is from which fields it has.
func (f specFields) kind() string {
	_, user := f["username"]
	_, pass := f["password"]
	_, cert := f["certificatePem"]
	_, key := f["privateKeyPem"]
	_, id := f[static.AccessKeyID]
	_, secretKey := f[static.SecretAccessKey]
	switch {
	case id && secretKey:
		return static.AWSAccessKey
	case cert:
		return static.TLSClientCertificate
	case key:
		return static.SSHPrivateKey
	case user && pass:
		return static.UsernamePassword
	}
	return static.Headers
}

// injection is one --inject.
type injection struct {
	target
	source string
}

// target is where a rule of --inject or --allow holds: a domain pattern or an address.
type target struct {
	host string
	cidr string // instead of host
	port uint16 // 0: not given
}

// match adds the target to a rule.
func (t target) match(rule map[string]any) map[string]any {
	if t.cidr != "" {
		rule["cidrs"] = []string{t.cidr}
	} else {
		rule["domains"] = []string{t.host}
	}
	if t.port != 0 {
		rule["ports"] = []map[string]any{{"port": t.port}}
	}
	return rule
}

func (a *app) readRunSecrets(f *runFlags) (*runSecrets, error) {
	s := &runSecrets{sources: map[string]specFields{}}
	for _, v := range f.sources {
		if err := s.addSource(a, v); err != nil {
			return nil, err
		}
	}
	if len(f.sources) > 0 && f.policy == "" {
		return nil, usage("--source gives a source to a policy: add --policy, or use --inject HOST=VAR")
	}
	for i, v := range f.inject {
		if err := s.addInjection(a, v, i); err != nil {
			return nil, err
		}
	}
	return s, nil
}

var sourceArg = regexp.MustCompile(`^([A-Za-z0-9][A-Za-z0-9_-]{0,127})(?:\.([A-Za-z_][A-Za-z0-9_]{0,63}))?=(env|file):(.+)$`)

func (s *runSecrets) addSource(a *app, arg string) error {
	m := sourceArg.FindStringSubmatch(arg)
	if m == nil {
		return usage("--source wants NAME=env:VAR, NAME=file:PATH or NAME.field=…") // arg may hold the secret itself
	}
	name, field, from, at := m[1], m[2], m[3], m[4]
	if field == "" {
		field = defaultKey
	}
	pem := strings.HasSuffix(field, "Pem")
	value, err := a.secretFrom("--source "+name, at, from == "env", pem)
	if err != nil {
		return err
	}
	if from == "env" {
		s.vars = append(s.vars, at)
	}
	if s.sources[name] == nil {
		s.sources[name] = specFields{}
	}
	if _, dup := s.sources[name][field]; dup {
		return usage("--source %s: field %s is given twice", name, field)
	}
	s.sources[name][field] = value
	return nil
}

func (s *runSecrets) addInjection(a *app, arg string, i int) error {
	where, name, ok := strings.Cut(arg, "=")
	if !ok || name == "" {
		return usage("--inject wants HOST=VAR, VAR being the environment variable that holds the token")
	}
	at, err := parseTarget("--inject", where)
	if err != nil {
		return err
	}
	if at.port == 0 {
		at.port = 443
	}
	value, err := a.secretFrom("--inject "+where, name, true, false)
	if err != nil {
		return err
	}
	for _, other := range s.inject {
		if other.target == at {
			return usage("--inject %s is given twice", where)
		}
	}
	in := injection{target: at, source: fmt.Sprintf("inject-%d", i+1)}
	s.inject = append(s.inject, in)
	s.vars = append(s.vars, name)
	s.sources[in.source] = specFields{defaultKey: value}
	return nil
}

// parseTarget takes HOST or HOST:PORT; the host may be a pattern such as *.example.com,
// or an address.
func parseTarget(flag, s string) (target, error) {
	t := target{host: s}
	if h, p, err := net.SplitHostPort(s); err == nil {
		n, err := strconv.ParseUint(p, 10, 16)
		if err != nil || n == 0 {
			return t, usage("%s %q: the port is not one", flag, s)
		}
		t.host, t.port = h, uint16(n)
	}
	if ip, err := netip.ParseAddr(strings.Trim(t.host, "[]")); err == nil && ip.Zone() == "" {
		return target{cidr: netip.PrefixFrom(ip.Unmap(), ip.Unmap().BitLen()).String(), port: t.port}, nil
	}
	if _, err := policy.ParseDomainPattern(t.host); err != nil {
		return t, usage("%s %q is not HOST or HOST:PORT: %w", flag, s, err)
	}
	return t, nil
}

// policyFile is the policy that --inject and --allow say: JSON, which is YAML.
func (s *runSecrets) policyFile(allow []string, tokenHash string) ([]byte, error) {
	type object = map[string]any
	var traffic, credential, bindings []object
	for _, in := range s.inject {
		traffic = append(traffic, in.match(object{"name": in.source, "action": "allow"}))
		credential = append(credential, in.match(object{"name": in.source, "credentialRef": in.source}))
		bindings = append(bindings, object{"ref": in.source, "sourceRef": in.source, "projection": object{
			"type":        "http_headers",
			"httpHeaders": object{"headers": []object{{"name": "Authorization", "valueTemplate": "Bearer {{ .token }}"}}},
		}})
	}
	for i, where := range allow {
		at, err := parseTarget("--allow", where)
		if err != nil {
			return nil, err
		}
		traffic = append(traffic, at.match(object{"name": fmt.Sprintf("allow-%d", i+1), "action": "allow"}))
	}
	egress := object{"trafficRules": traffic}
	network := object{"mode": "block-all", "egress": egress}
	if len(credential) > 0 {
		egress["credentialRules"], network["credentialBindings"] = credential, bindings
	}
	return json.Marshal(object{
		"apiVersion": "egressd/v1",
		"sandboxes":  []object{{"id": "run", "identify": object{"proxyTokens": []string{tokenHash}}, "network": network}},
	})
}

// values are the secrets themselves, to look for them in other variables.
func (s *runSecrets) values() []string {
	var out []string
	for _, fields := range s.sources {
		out = append(out, slices.Collect(maps.Values(fields))...)
	}
	return out
}

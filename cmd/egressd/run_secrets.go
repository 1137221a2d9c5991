package main

import (
	"encoding/json"
	"fmt"
	"maps"
	"net"
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
	switch {
	case cert:
		return static.TLSClientCertificate
	case key:
		return static.SSHPrivateKey
	case user && pass:
		return static.UsernamePassword
	}
	return static.Headers
}

// injection is one --inject: its source is named by host and port.
type injection struct {
	host   string
	port   uint16
	source string
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
	target, name, ok := strings.Cut(arg, "=")
	if !ok || name == "" {
		return usage("--inject wants HOST=VAR, VAR being the environment variable that holds the token")
	}
	host, port, err := parseTarget("--inject", target)
	if err != nil {
		return err
	}
	value, err := a.secretFrom("--inject "+target, name, true, false)
	if err != nil {
		return err
	}
	for _, other := range s.inject {
		if other.host == host && other.port == port {
			return usage("--inject %s is given twice", target)
		}
	}
	in := injection{host: host, port: port, source: fmt.Sprintf("inject-%d", i+1)}
	s.inject = append(s.inject, in)
	s.vars = append(s.vars, name)
	s.sources[in.source] = specFields{defaultKey: value}
	return nil
}

// parseTarget takes HOST or HOST:PORT; the host may be a pattern such as *.example.com.
func parseTarget(flag, target string) (host string, port uint16, err error) {
	host = target
	if h, p, err := net.SplitHostPort(target); err == nil {
		n, err := strconv.ParseUint(p, 10, 16)
		if err != nil || n == 0 {
			return "", 0, usage("%s %q: the port is not one", flag, target)
		}
		host, port = h, uint16(n)
	}
	if _, err := policy.ParseDomainPattern(host); err != nil {
		return "", 0, usage("%s %q is not HOST or HOST:PORT: %w", flag, target, err)
	}
	return host, port, nil
}

// policyFile is the policy that --inject and --allow say: JSON, which is YAML.
func (s *runSecrets) policyFile(allow []string, tokenHash string) ([]byte, error) {
	type object = map[string]any
	var traffic, credential, bindings []object
	ports := func(o object, port uint16) object {
		if port != 0 {
			o["ports"] = []object{{"port": port}}
		}
		return o
	}
	for _, in := range s.inject {
		port := in.port
		if port == 0 {
			port = 443
		}
		traffic = append(traffic, ports(object{"name": in.source, "action": "allow", "domains": []string{in.host}}, port))
		credential = append(credential, ports(object{"name": in.source, "credentialRef": in.source, "domains": []string{in.host}}, port))
		bindings = append(bindings, object{"ref": in.source, "sourceRef": in.source, "projection": object{
			"type":        "http_headers",
			"httpHeaders": object{"headers": []object{{"name": "Authorization", "valueTemplate": "Bearer {{ .token }}"}}},
		}})
	}
	for i, target := range allow {
		host, port, err := parseTarget("--allow", target)
		if err != nil {
			return nil, err
		}
		traffic = append(traffic, ports(object{"name": fmt.Sprintf("allow-%d", i+1), "action": "allow", "domains": []string{host}}, port))
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

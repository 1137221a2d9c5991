// Package policy turns the YAML that operators write into a compiled set of rules and
// decides flows against it. It is pure: it imports nothing of ours and holds no secret.
//
// In the order of the work: yaml.go and decoder.go read a file strictly, decode*.go
// its schema into declarations (schema.go), merge.go lays a sandbox over its template,
// compile*.go makes a Set of that, overlap.go warns. identify.go finds the sandbox of a
// connection; decide.go, login.go, request.go and ssh.go are the one walk that Decide and
// Explain take, index.go spares it the rules that cannot match. domain.go, path.go,
// where.go, httpmatch.go, git.go, shellwords.go and glob.go say what matching means,
// suits.go which projection acts where; names.go and placeholders.go answer for the proxy
// what no single flow shows.
package policy

import (
	"net/http"
	"net/netip"
	"slices"
	"time"
)

// Action is what a decision tells the data plane to do. The zero value is Deny.
type Action uint8

const (
	Deny    Action = iota // refuse
	Pass                  // relay bytes without looking inside
	Inspect               // parse as Flow.Protocol and decide again per request
)

// Protocol is the application protocol of a connection as far as it is known.
type Protocol uint8

const (
	// Undetermined: no client byte has been looked at yet. Decide then answers
	// whether the destination could be allowed for any protocol at all.
	Undetermined Protocol = iota
	// Unknown: bytes were sniffed (or none came) and no protocol was recognised.
	Unknown
	HTTP // cleartext HTTP/1.x
	TLS  // a TLS ClientHello; as a request's protocol: HTTP inside intercepted TLS
	SSH
	// Protocols with a login of their own; see Flow.InTLS. As with SSH, a decision on
	// the connection carries the credential.
	SOCKS5
	MQTT
	Redis
	Postgres
	// Protocols that are recognised and carried, and never looked into.
	AMQP
	DNS
	MongoDB
)

// Flow is one connection, or one request on it, as the policy sees it. The data
// plane fills it from the one canonical destination; nothing in it is a claim
// that was not compared.
type Flow struct {
	Sandbox *Sandbox
	// Host is canonical (see CanonicalHost): an LDH name in lower case without a
	// trailing dot, or an address in canonical form.
	Host string
	Port uint16
	// Addr is the address egressd resolved and would dial; invalid when the name
	// has not been resolved. For an IP-literal Host it must be set.
	Addr     netip.Addr
	Protocol Protocol
	// InTLS: Protocol was found inside TLS that egressd has terminated (rediss, mqtts,
	// …). Traffic rules then ask for tls, as they do for https.
	InTLS bool

	// SSH is one thing that is asked for inside an SSH connection; Request is set with it.
	SSH SSHRequest

	// Request is set for a decision on one HTTP request; the fields below are
	// only looked at then. Path is canonical (see CanonicalPath), RawQuery as sent.
	Request  bool
	Method   string
	Path     string
	RawQuery string
	Header   http.Header
}

// Reason is the closed set of causes of a decision; its String is the value of
// X-Egressd-Error on a denial and a metrics label.
type Reason uint8

const (
	ReasonNone                Reason = iota
	ReasonTrafficRule                // a traffic rule decided (either way)
	ReasonDefaultMode                // no rule matched; network.mode decided
	ReasonUnknownSandbox             // no sandbox
	ReasonUnknownProtocol            // allowed destination, but the bytes are no protocol a rule permits there
	ReasonProtocolRule               // a protocol rule refused the request
	ReasonPlaintextCredential        // cleartext towards a destination whose credential rule needs TLS
	ReasonNeedsInspection            // a rule must see inside and the protocol does not let it
	ReasonSpecialName                // a local name (see IsSpecialName) that no rule names itself
)

// Decision is the outcome of one walk. The zero value denies.
type Decision struct {
	Action Action
	Reason Reason
	// Rule names the rule that decided ("" for mode): the operator's log only.
	Rule string
	// NeedAddr: the walk met a rule with cidrs and Flow.Addr is invalid. Resolve
	// the name, set Addr and decide again; Action is Deny until then.
	NeedAddr bool
	// Report: enforcement is report and the walk would have denied; Action is
	// then Pass or Inspect and no credential may be injected. What is asked for inside
	// SSH is denied all the same: the credential is on that connection already.
	Report bool
	// Credential is the request-layer rule (headers, Basic, …) that applies to this
	// request, ClientCert the TLS-layer one; each the first that matches. Only
	// set on request decisions with Action Inspect, and on decisions about a
	// connection whose protocol has a login of its own. There ClientCert is for the TLS
	// around or, with Postgres, within it; with Pass it stands alone.
	Credential *CredentialRule
	ClientCert *CredentialRule
	// StripClientAuth: what the sandbox sent to authenticate itself must be removed
	// before the request leaves. It holds for every request towards a destination
	// that an enabled credential rule covers, matched by its httpMatch or not, so
	// that nothing leaves there under an account of the sandbox's own; a matched
	// rule with keepClientAuth lifts it. Only set on request decisions.
	StripClientAuth bool
	// MCP are the rules that what is in the body must pass; nil: none. They do not know of
	// enforcement (see Reports).
	MCP *MCPRules
	// Proxy is the way out that the sandbox must take; nil: straight. Set on everything
	// that is not denied.
	Proxy *Proxy
}

// Same reports whether two decisions are one and the same.
func (d *Decision) Same(o *Decision) bool {
	return d.Action == o.Action && d.Reason == o.Reason && d.Rule == o.Rule && d.NeedAddr == o.NeedAddr && d.Report == o.Report &&
		d.Credential == o.Credential && d.ClientCert == o.ClientCert && d.StripClientAuth == o.StripClientAuth &&
		d.Proxy == o.Proxy && d.MCP.same(o.MCP)
}

// SSHRequest is what a sandbox asks for inside SSH. The zero value asks for nothing.
type SSHRequest struct {
	Kind SSHKind
	Text string // SSHExec: the command line; SSHSubsystem: its name
}

// SSHKind is the kind of an SSHRequest.
type SSHKind uint8

// What can be asked for; agent and X11 forwarding cannot be allowed at all.
const (
	SSHNothing SSHKind = iota
	SSHShell
	SSHExec
	SSHSubsystem
	SSHForwarding // direct-tcpip and its like
)

// MCPRules are the protocol rules of protocol mcp that apply to a request. Immutable.
type MCPRules struct{ rules []*protocolRule }

// Allows says whether the tool may be listed and called, and which rule says no.
func (r *MCPRules) Allows(tool string) (ok bool, rule string) {
	for _, p := range r.rules {
		if m := &p.tools; slices.Contains(m.denied, tool) || m.limited && !slices.Contains(m.allowed, tool) {
			return false, p.label
		}
	}
	return true, ""
}

func (r *MCPRules) same(o *MCPRules) bool {
	if r == nil || o == nil {
		return r == o
	}
	return slices.Equal(r.rules, o.rules)
}

// Proxy is an egress.proxy, compiled. Immutable.
type Proxy struct {
	Type ProxyType
	Host string // canonical, a name or an address
	Port uint16
	// Credential says with what to log in there (username_password); nil: nothing. It is
	// no rule: only its Index, Team and Binding count, and its Domains, which hold Host.
	Credential *CredentialRule
}

// ProxyType is what an egress.proxy speaks.
type ProxyType string

// The types of egress.proxy.
const (
	ProxySOCKS5 ProxyType = "socks5"
	ProxyHTTP   ProxyType = "http"
)

// Sandbox is the unit that a policy applies to, compiled. Immutable.
type Sandbox struct {
	ID, Team string
	Template string // "" when it has none
	// LeaseUntil is when the identity ends: who it was is then unknown. Zero: never.
	LeaseUntil time.Time

	net *network
	set *Set
}

// CredentialRule says to which traffic a binding applies, compiled and enabled.
// Immutable. It is shared by all sandboxes of one team that take it unchanged from
// one template; Sandbox is "" then.
type CredentialRule struct {
	Index          int // dense and unique in its Set
	Name           string
	Sandbox        string
	Template       string
	Team           string
	Binding        *Binding
	FailOpen       bool
	KeepClientAuth bool
	AllowCleartext bool
	// Scrub: what was projected is looked for in the answer and taken out.
	Scrub bool
	// SandboxLogin is what the sandbox must send as its own login in a protocol that has
	// one (redis, mqtt, socks5, postgres); nil: whatever it likes.
	SandboxLogin *SandboxLogin
	Domains      []string // patterns as compiled; empty matches every host
	File         string
	Line         int
	rule         *credentialRule
	serves       protocolSet // see credentialRule.servesWith
}

// SandboxLogin are placeholders, no secrets; an empty Username is not compared.
type SandboxLogin struct{ Username, Password string }

// Binding names a source and how it is projected. Immutable.
type Binding struct {
	Ref, SourceRef string
	Version        uint64 // 0: the source's current one
	Projection     Projection
	CacheTTL       time.Duration // bound on the age of cached material; 0: none given
	File           string
	Line           int
}

// ProjectionType is how material enters the traffic.
type ProjectionType string

// The projections.
const (
	HTTPHeaders             ProjectionType = "http_headers"
	PlaceholderSubstitution ProjectionType = "placeholder_substitution"
	UsernamePassword        ProjectionType = "username_password"
	TLSClientCertificate    ProjectionType = "tls_client_certificate"
	AWSSigV4                ProjectionType = "aws_sigv4"
	SSHProxy                ProjectionType = "ssh_proxy"
)

// Projection is the operator's choice of form and place. Each field but Type belongs to
// one type.
type Projection struct {
	Type         ProjectionType
	Headers      []HeaderTemplate // HTTPHeaders
	Replacements []Replacement    // PlaceholderSubstitution
	AWS          AWSBounds        // AWSSigV4
	SSH          SSHLogin         // SSHProxy
}

// Replacement puts a value in the place of what the sandbox holds instead of it.
type Replacement struct {
	Placeholder   string // at least 8 bytes, unlike anything else in a request
	ValueTemplate string
	Locations     Location
	Line          int
}

// Location is a set of places in a request.
type Location uint8

// The places where a placeholder is replaced.
const (
	InHeader Location = 1 << iota
	InQuery
	InPath
	InBody
)

// AWSBounds narrow what is re-signed; "" is any.
type AWSBounds struct{ Region, Service string }

// SSHLogin says who may come in and how to go on: authorized_keys and known_hosts lines
// that parse, and the user name upstream.
type SSHLogin struct {
	SandboxPublicKeys []string
	UpstreamUsername  string
	KnownHosts        []string
	KnownHostsLine    int // where they stand in the file
}

// HeaderTemplate is one projected header: Name is a canonical, permitted field name,
// ValueTemplate a text/template that parses, over the source's fields.
type HeaderTemplate struct {
	Name, ValueTemplate string
	Line                int
}

// Referrer is a binding that refers to a source. Sandbox or Template says where the
// binding is written.
type Referrer struct {
	Sandbox  string `json:"sandbox,omitempty"`
	Template string `json:"template,omitempty"`
	Binding  string `json:"binding"`
	File     string `json:"file"`
	Line     int    `json:"line"`
}

// String gives the word used in logs: deny, pass or inspect.
func (a Action) String() string {
	switch a {
	case Pass:
		return "pass"
	case Inspect:
		return "inspect"
	}
	return "deny"
}

// String gives the word used in logs and explanations.
func (p Protocol) String() string {
	switch p {
	case Undetermined:
		return "undetermined"
	case HTTP:
		return "http"
	case TLS:
		return "tls"
	case SSH:
		return "ssh"
	case SOCKS5:
		return "socks5"
	case MQTT:
		return "mqtt"
	case Redis:
		return "redis"
	case Postgres:
		return "postgres"
	case AMQP:
		return "amqp"
	case DNS:
		return "dns"
	case MongoDB:
		return "mongodb"
	}
	return "unknown"
}

// String gives the closed vocabulary of X-Egressd-Error and of metrics labels.
func (r Reason) String() string {
	switch r {
	case ReasonTrafficRule:
		return "traffic_rule"
	case ReasonDefaultMode:
		return "default_mode"
	case ReasonUnknownSandbox:
		return "unknown_sandbox"
	case ReasonUnknownProtocol:
		return "unknown_protocol"
	case ReasonProtocolRule:
		return "protocol_rule"
	case ReasonPlaintextCredential:
		return "plaintext_credential_refused"
	case ReasonNeedsInspection:
		return "needs_inspection"
	case ReasonSpecialName:
		return "special_name"
	}
	return "none"
}

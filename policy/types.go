// Package policy turns the YAML that operators write into a compiled set of rules and
// decides flows against it. It is pure: it imports nothing of ours and holds no secret.
package policy

import (
	"net/http"
	"net/netip"
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
	// then Pass or Inspect and no credential may be injected.
	Report bool
	// Credential is the request-layer rule (headers, Basic) that applies to this
	// request, ClientCert the TLS-layer one; each the first that matches. Only
	// set on request decisions with Action Inspect.
	Credential *CredentialRule
	ClientCert *CredentialRule
}

// Sandbox is the unit that a policy applies to, compiled.
type Sandbox struct {
	ID, Team string
}

// CredentialRule says to which traffic a binding applies, compiled.
type CredentialRule struct {
	Index int // dense and unique in its Set
	Name  string
}

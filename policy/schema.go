package policy

import "time"

// apiVersion is the only version of the format.
const apiVersion = "egressd/v1"

// What a file declares, after decoding and before merging. Everything keeps its
// place, so that what compiling finds can be reported where it is written. Rules and
// bindings are shared by all networks that take them over unchanged.

type fileDecl struct {
	templates []*templateDecl
	sandboxes []*sandboxDecl
}

type templateDecl struct {
	at      place
	name    string
	network *networkDecl
}

type sandboxDecl struct {
	at         place
	id, team   string
	template   string
	templateAt place
	cidrs      []cidrDecl
	tokens     []tokenDecl
	lease      time.Time
	network    *networkDecl
}

type networkDecl struct {
	at         place
	mode       string // "", block-all, allow-all
	enforce    string // "", enforce, report
	traffic    []*trafficRule
	protocol   []*protocolRule
	credential []*credentialRule
	bindings   []*bindingDecl
	proxy      *proxyDecl
}

type proxyDecl struct {
	at    place
	typ   ProxyType
	host  string
	port  uint16
	ref   string // "" when it asks for no login
	refAt place
}

// rule is what the three kinds of rules have in common.
type rule struct {
	at    place
	name  string // "" when it has none
	label string // the name, or where it stands
	where
}

func (r *rule) key() string { return r.name }

type trafficRule struct {
	rule
	allow     bool
	protocols protocolSet // empty: any
	udp       []value     // where it says udp; only while it is decoded
}

type protocolRule struct {
	rule
	kind    ruleKind
	match   *httpMatch
	methods methodPolicy // ruleHTTP
	paths   pathPolicy   // ruleHTTP
	tools   methodPolicy // ruleMCP
	alone   *MCPRules    // ruleMCP: this rule and no other
	ssh     *sshPolicy   // ruleSSH
	git     *gitPolicy   // ruleGit
}

// ruleKind is the protocol of a protocol rule.
type ruleKind string

const (
	ruleHTTP ruleKind = "http"
	ruleMCP  ruleKind = "mcp"
	ruleSSH  ruleKind = "ssh"
	ruleGit  ruleKind = "git"
)

type methodPolicy struct {
	denied, allowed []string
	limited         bool // an allowed list stands there, if only an empty one
}

type pathPolicy struct {
	denied, allowed                 []string
	deniedPrefixes, allowedPrefixes []pathPrefix
	limited                         bool
}

type credentialRule struct {
	rule
	ref            string
	refAt          place
	protocol       credentialProtocol
	match          *httpMatch
	disabled       bool
	failOpen       bool
	allowCleartext bool
	keepClientAuth bool
	scrub          bool
	sandboxLogin   *SandboxLogin
}

type bindingDecl struct {
	at place
	Binding
}

func (b *bindingDecl) key() string { return b.Ref }

// protocolSet is a set of application protocols, by bit.
type protocolSet uint16

func (s protocolSet) has(p Protocol) bool { return s&(1<<p) != 0 }

// udpOnly is a member of sets of application protocols that no flow has: what is
// decided here runs over TCP.
const udpOnly Protocol = 15

// credentialProtocol is the protocol of a credential rule.
type credentialProtocol string

const (
	anyProtocol  credentialProtocol = ""
	onlyHTTP     credentialProtocol = "http"
	onlyHTTPS    credentialProtocol = "https"
	onlyGRPC     credentialProtocol = "grpc"
	onlyTLS      credentialProtocol = "tls"
	onlySSH      credentialProtocol = "ssh"
	onlySOCKS5   credentialProtocol = "socks5"
	onlyMQTT     credentialProtocol = "mqtt"
	onlyRedis    credentialProtocol = "redis"
	onlyPostgres credentialProtocol = "postgres"
)

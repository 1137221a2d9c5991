package policy

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
}

type protocolRule struct {
	rule
	match   *httpMatch
	methods methodPolicy
	paths   pathPolicy
	tools   methodPolicy
}

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
}

type bindingDecl struct {
	at place
	Binding
}

func (b *bindingDecl) key() string { return b.Ref }

// protocolSet is a set of application protocols, by bit.
type protocolSet uint16

func (s protocolSet) has(p Protocol) bool { return s&(1<<p) != 0 }

// credentialProtocol is the protocol of a credential rule.
type credentialProtocol string

const (
	anyProtocol credentialProtocol = ""
	onlyHTTP    credentialProtocol = "http"
	onlyHTTPS   credentialProtocol = "https"
	onlyGRPC    credentialProtocol = "grpc"
	onlyTLS     credentialProtocol = "tls"
)

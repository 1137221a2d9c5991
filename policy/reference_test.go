package policy

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// The reference reads policy.md from the top for every flow: no index, no shared
// matching code. It works on what a generator wrote down, not on what was compiled.

type refRule struct {
	name      string
	allow     bool
	domains   []string
	cidrs     []string
	ports     []string // "443" or "1-99"
	protocols []string
	methods   []string // httpMatch
	prefixes  []string
	denied    []string // protocol rule: methods
	proto     string   // protocol rule, credential rule
	cleartext bool
	disabled  bool
	cert      bool
	keep      bool
	ref       string // credential rule: the binding

	// protocol rules
	lists            [][]string // denied and allowed; of ssh first for commands, then for subsystems
	shell            string     // "", true, false
	forwarding, push bool
}

type refPolicy struct {
	allowAll, report, proxy     bool
	traffic, protocol, credents []refRule
}

func (r refRule) domain(host string) (ok, explicit bool) {
	if len(r.domains) == 0 {
		return true, false
	}
	if _, err := netip.ParseAddr(host); err == nil {
		return false, false
	}
	for _, d := range r.domains {
		base, wild := strings.CutPrefix(d, "*.")
		switch {
		case d == "*":
			ok = true
		case host == base, wild && strings.HasSuffix(host, "."+base):
			ok, explicit = true, true
		}
	}
	return ok, explicit
}

func (r refRule) port(p uint16) bool {
	for _, s := range r.ports {
		var lo, hi uint16
		if n, _ := fmt.Sscanf(s, "%d-%d", &lo, &hi); n == 1 {
			hi = lo
		}
		if lo <= p && p <= hi {
			return true
		}
	}
	return len(r.ports) == 0
}

// addr: 0 no, 1 perhaps, 2 yes.
func (r refRule) addr(host string, a netip.Addr) int {
	if h, err := netip.ParseAddr(host); err == nil {
		a = h
	}
	if len(r.cidrs) == 0 {
		return 2
	}
	if !a.IsValid() {
		return 1
	}
	for _, c := range r.cidrs {
		if netip.MustParsePrefix(c).Contains(a.Unmap()) {
			return 2
		}
	}
	return 0
}

func (r refRule) fits(f *Flow) int {
	if ok, _ := r.domain(f.Host); !ok || !r.port(f.Port) {
		return 0
	}
	return r.addr(f.Host, f.Addr)
}

func refSpecial(host string) bool {
	if _, err := netip.ParseAddr(host); err == nil {
		return false
	}
	labels := strings.Split(host, ".")
	return len(labels) == 1 || slices.Contains([]string{"localhost", "local", "internal"}, labels[len(labels)-1])
}

// says how a traffic rule meets a flow, by what of it may be known.
func (r refRule) says(f *Flow) int {
	word := f.Protocol.String()
	if f.InTLS {
		word = "tls"
	}
	if len(r.protocols) > 0 && !slices.Contains(r.protocols, word) && (f.Protocol != Undetermined || !r.allow) {
		return 0
	}
	if _, explicit := r.domain(f.Host); r.allow && refSpecial(f.Host) && !explicit {
		return 0
	}
	if r.allow && word == "unknown" && len(r.ports) == 0 && len(r.cidrs) == 0 {
		return 0
	}
	return r.fits(f)
}

// outcomes gives every outcome that some address could bring: for each rule that
// might hold, the walk goes on both ways.
func (p refPolicy) outcomes(i int, f *Flow) (allow, deny, unsure bool) {
	if i == len(p.traffic) {
		a := p.allowAll && !refSpecial(f.Host)
		return a, !a, false
	}
	r := p.traffic[i]
	switch r.says(f) {
	case 2:
		return r.allow, !r.allow, false
	case 1:
		a, d, _ := p.outcomes(i+1, f)
		return a || r.allow, d || !r.allow, true
	}
	return p.outcomes(i+1, f)
}

// named: the rule that allows has the protocol in its list.
func (p refPolicy) named(f *Flow) bool {
	for _, r := range p.traffic {
		if r.says(f) == 2 {
			return slices.Contains(r.protocols, f.Protocol.String())
		}
	}
	return false
}

func (p refPolicy) covered(f *Flow) int {
	best := 0
	for _, r := range p.protocol {
		best = max(best, r.fits(f))
	}
	for _, r := range p.credents {
		if !r.disabled {
			best = max(best, r.fits(f))
		}
	}
	return best
}

// decide gives "needaddr", "deny", "pass", "inspect" or "inspect cred cert".
func (p refPolicy) decide(f *Flow) string {
	if f.Request && f.Protocol == SSH {
		p.report = false // the credential is on it already
		if got := p.connection(f); !strings.HasPrefix(got, "inspect") {
			return map[bool]string{true: "needaddr", false: "deny"}[got == "needaddr"]
		} else if !p.sshRequest(f) {
			return "deny"
		}
	}
	return p.connection(f)
}

func (p refPolicy) connection(f *Flow) string {
	allow, deny, unsure := p.outcomes(0, f)
	switch {
	case !allow:
		return p.denied(f)
	case unsure:
		return "needaddr"
	case deny:
		panic("both without being unsure")
	}
	if f.Request && f.Protocol != SSH {
		return p.request(f)
	}
	switch f.Protocol {
	case HTTP, Undetermined:
		return "inspect"
	case TLS:
		return map[int]string{0: "pass", 1: "needaddr", 2: "inspect"}[p.covered(f)]
	}
	return p.carried(f)
}

// suits: which projection logs in where.
func (r refRule) suits(f *Flow) bool {
	word := f.Protocol.String()
	login := slices.Contains([]string{"socks5", "mqtt", "redis", "postgres"}, word)
	switch {
	case len(r.methods)+len(r.prefixes) > 0:
		return false
	case r.ref == "user":
		return login && (r.proto == "" || r.proto == word)
	case r.ref == "cert":
		return (f.InTLS || word == "postgres") && word != "ssh" && word != "unknown"
	}
	return r.ref == "key" && word == "ssh"
}

func (p refPolicy) carried(f *Flow) string {
	got, blocked := map[bool]string{}, false
	for _, r := range p.credents {
		fit := r.fits(f)
		if r.disabled || fit == 0 || !r.suits(f) || got[r.cert] != "" {
			continue
		}
		if fit == 1 {
			return "needaddr"
		}
		if f.Protocol != SSH && f.Protocol != Postgres && !f.InTLS && !r.cleartext {
			blocked = true
			continue
		}
		got[r.cert] = r.name
	}
	covered := p.covered(f)
	switch {
	case got[false] != "":
		return strings.TrimSpace("inspect " + got[false] + " " + got[true])
	case blocked:
		return p.denied(f)
	case f.Protocol == SSH && slices.ContainsFunc(p.protocol, func(r refRule) bool { return (r.proto == "ssh" || r.proto == "git") && r.fits(f) == 2 }):
		return p.denied(f)
	case covered == 0, p.named(f):
		return strings.TrimSpace("pass " + got[true])
	case covered == 1:
		return "needaddr"
	}
	return p.denied(f)
}

func refGlob(patterns []string, fold bool, texts ...string) bool {
	for _, g := range patterns {
		re := strings.ReplaceAll(regexp.QuoteMeta(g), `\*`, ".*")
		if fold {
			re = "(?i)" + re
		}
		for _, s := range texts {
			if regexp.MustCompile("^(?s:" + re + ")$").MatchString(s) {
				return true
			}
		}
	}
	return false
}

// sshRequest says whether what is asked for inside SSH may be.
func (p refPolicy) sshRequest(f *Flow) bool {
	var sshRules, gitRules []refRule
	for _, r := range p.protocol {
		if r.fits(f) == 2 && r.proto == "ssh" {
			sshRules = append(sshRules, r)
		}
		if r.fits(f) == 2 && r.proto == "git" {
			gitRules = append(gitRules, r)
		}
	}
	granted, isGit := false, false
	for _, r := range sshRules {
		if !r.letsSSH(f.SSH) {
			return false
		}
		granted = granted || f.SSH.Kind == SSHExec && len(r.lists[1]) > 0 || f.SSH.Kind == SSHSubsystem && len(r.lists[3]) > 0 ||
			f.SSH.Kind == SSHShell && r.shell == "true" || f.SSH.Kind == SSHForwarding
	}
	for _, c := range genCommands {
		if f.SSH.Kind == SSHExec && c.line == f.SSH.Text && c.git != "" {
			isGit = true
			for _, r := range gitRules {
				if !r.letsGit(c.git, c.repo) {
					return false
				}
			}
		}
	}
	if len(gitRules) > 0 {
		return isGit || granted
	}
	return f.SSH.Kind != SSHForwarding || len(sshRules) > 0
}

func (r refRule) letsSSH(q SSHRequest) bool {
	limited := len(r.lists[1])+len(r.lists[3]) > 0
	switch q.Kind {
	case SSHShell:
		return r.shell == "true" || r.shell == "" && !limited && len(r.lists[0])+len(r.lists[2]) == 0
	case SSHForwarding:
		return r.forwarding
	case SSHSubsystem:
		return !refGlob(r.lists[2], true, q.Text) && (!limited || refGlob(r.lists[3], false, q.Text))
	}
	if !limited && len(r.lists[0]) == 0 {
		return true
	}
	for _, c := range genCommands {
		if c.line == q.Text {
			return c.plain != "" && !refGlob(r.lists[0], true, c.line, c.plain, c.base) && (!limited || refGlob(r.lists[1], false, c.line))
		}
	}
	panic("a command that is not in the table")
}

func (r refRule) letsGit(kind, repo string) bool {
	switch {
	case kind == "odd", kind == "write" && !r.push:
		return false
	}
	return !refGlob(r.lists[0], true, repo) && (len(r.lists[1]) == 0 || refGlob(r.lists[1], false, repo))
}

func (p refPolicy) denied(f *Flow) string {
	switch {
	case !p.report:
		return "deny"
	case f.Request, f.Protocol == HTTP, f.Protocol == Undetermined, f.Protocol == TLS && p.covered(f) > 0:
		return "report inspect"
	}
	return "report pass"
}

func (r refRule) request(f *Flow) bool {
	if len(r.methods) > 0 && !slices.Contains(r.methods, f.Method) {
		return false
	}
	for _, pre := range r.prefixes {
		if f.Path == pre || strings.HasPrefix(f.Path, pre+"/") {
			return true
		}
	}
	return len(r.prefixes) == 0
}

func (p refPolicy) request(f *Flow) string {
	mcp := ""
	for _, r := range p.protocol {
		if r.fits(f) != 2 || !r.request(f) {
			continue
		}
		if slices.Contains(r.denied, f.Method) {
			return p.denied(f)
		}
		for _, g := range genGitHTTP {
			if r.proto == "git" && g.method == f.Method && g.path == f.Path && g.query == f.RawQuery && g.git != "" && !r.letsGit(g.git, g.repo) {
				return p.denied(f)
			}
		}
		if r.proto == "mcp" {
			mcp += " mcp:" + r.name
		}
	}
	got := map[bool]string{}
	blocked := map[bool]bool{}
	for _, r := range p.credents {
		fit := r.fits(f)
		if r.disabled || fit == 0 || got[r.cert] != "" || !r.request(f) || r.proto == "http" && f.Protocol == TLS ||
			r.ref == "key" || !slices.Contains([]string{"", "http", "https", "tls"}, r.proto) {
			continue
		}
		if fit == 1 {
			if got[false] != "" && got[true] != "" {
				break
			}
			return "needaddr"
		}
		if f.Protocol == HTTP && !r.cleartext {
			blocked[r.cert] = true
			continue
		}
		got[r.cert] = r.name
	}
	for _, cert := range []bool{false, true} {
		if blocked[cert] && got[cert] == "" {
			return p.denied(f)
		}
	}
	return strings.TrimSpace("inspect "+strings.TrimSpace(got[false]+" "+got[true])) + mcp
}

func sayLikeReference(d Decision) string {
	switch {
	case d.NeedAddr:
		return "needaddr"
	case d.Report:
		return "report " + d.Action.String()
	}
	s := d.Action.String()
	if d.Credential != nil {
		s += " " + d.Credential.Name
	}
	if d.ClientCert != nil {
		s += " " + d.ClientCert.Name
	}
	if d.MCP != nil {
		s += " mcp:" + strings.ReplaceAll(d.MCP.String(), ", ", " mcp:")
	}
	return s
}

// The index, the walk and the narration against the reference, on random policies.
func TestDecideAgainstReference(t *testing.T) {
	seen := map[string]int{}
	for seed := range uint64(3000) {
		g := gen{rand.New(rand.NewPCG(seed, 1))}
		p := g.policy()
		set := compileText(t, p.yaml())
		sb := set.Sandbox("s")
		for range 60 {
			f := g.flow(sb)
			want, d := p.decide(f), set.Decide(f)
			got := sayLikeReference(d)
			if got != want {
				t.Fatalf("seed %d\n%s\nflow %+v\ngot  %s\nwant %s", seed, p.yaml(), *f, got, want)
			}
			if _, told := set.explain(f); !told.Same(&d) {
				t.Fatalf("seed %d\n%s\nflow %+v\nDecide  %+v\nExplain %+v", seed, p.yaml(), *f, d, told)
			}
			if (d.Proxy != nil) != (p.proxy && d.Action != Deny) {
				t.Fatalf("seed %d: %s has the proxy %v", seed, got, d.Proxy)
			}
			checkNames(t, set, f, d, seed)
			kind, _, _ := strings.Cut(got, " ")
			seen[kind]++
			switch {
			case d.MCP != nil:
				seen["mcp"]++
			case f.Protocol == SSH && f.Request:
				seen["ssh request "+kind]++
			case d.Credential != nil && !f.Request:
				seen["login"]++
			case d.Reason == ReasonNeedsInspection:
				seen["needs inspection"]++
			case d.Reason == ReasonProtocolRule:
				seen["protocol rule"]++
			}
			if !f.Addr.IsValid() && !d.NeedAddr {
				checkAnyAddress(t, set, f, d, seed)
			}
		}
	}
	for _, kind := range []string{"deny", "pass", "inspect", "needaddr", "report", "mcp", "login", "needs inspection", "protocol rule",
		"ssh request inspect", "ssh request deny"} {
		if seen[kind] < 300 {
			t.Errorf("only %d flows came out as %s: the generator tests little", seen[kind], kind)
		}
	}
}

// checkNames: a name that something is allowed towards may be resolved.
func checkNames(t *testing.T, set *Set, f *Flow, d Decision, seed uint64) {
	t.Helper()
	if f.Protocol == Undetermined {
		return // a rule that denies some protocols does not count yet
	}
	if d.Action != Deny && !isAddress(f.Host) && !set.MayName(f.Sandbox, f.Host) {
		t.Fatalf("seed %d: %s may not be resolved, and %s", seed, f.Host, d)
	}
}

// checkAnyAddress: an answer given without the address holds for every address. In
// report mode a would-be refusal may come out otherwise inspected or passed.
func checkAnyAddress(t *testing.T, set *Set, f *Flow, d Decision, seed uint64) {
	t.Helper()
	for _, a := range genAddrs {
		if a == "" {
			continue
		}
		with := *f
		with.Addr = netip.MustParseAddr(a)
		got := set.Decide(&with)
		if (got.Action == Deny) != (d.Action == Deny) || got.Report != d.Report ||
			got.Credential != d.Credential || got.ClientCert != d.ClientCert {
			t.Fatalf("seed %d: %s:%d %v without an address %s, with %s %s", seed, f.Host, f.Port, f.Protocol, d, a, got)
		}
	}
}

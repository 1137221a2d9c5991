package acceptance

import (
	"cmp"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	gocmp "github.com/google/go-cmp/cmp"

	"github.com/egressd/egressd/internal/testbed"
)

// matrixReport is docs/protocols.md: what the matrix has found out, and nothing that no test
// has.
type matrixReport struct {
	did   map[string]map[string]string // by cell, then way and family: what egressd did
	saw   map[string]map[string]string // the same: what the client saw
	tools []matrixCell
}

func newMatrixReport() *matrixReport {
	return &matrixReport{did: map[string]map[string]string{}, saw: map[string]map[string]string{}}
}

func (r *matrixReport) add(p *matrixPlan, got map[string]string, lines map[string][]matrixLine) {
	for _, c := range p.Cells {
		key := c.String()
		if r.did[key] == nil {
			r.did[key], r.saw[key] = map[string]string{}, map[string]string{}
		}
		r.did[key][p.Way+p.Family], r.saw[key][p.Way+p.Family] = matrixDid(lines[p.hostPort(c)]), got[key]
	}
}

// matrixDid is what egressd wrote down of a flow, in words of the table.
func matrixDid(lines []matrixLine) string {
	var out []string
	for _, l := range lines {
		var did string
		switch {
		case l.Code != "":
			did = "refused: `" + l.Code + "`"
		case l.CredentialRule != "" && l.ClientCertRule != "":
			did = "both injected"
		case l.CredentialRule != "", l.ClientCertRule != "":
			did = "injected"
		default:
			did = "carried"
		}
		if !slices.Contains(out, did) {
			out = append(out, did)
		}
	}
	slices.Sort(out)
	return strings.Join(out, "; ")
}

// both is one text for the two families, or two where they differ.
func both(of map[string]string, way string) string {
	v4, v6 := of[way+"4"], of[way+"6"]
	if v4 == v6 {
		return v4
	}
	return "IPv4 " + v4 + ", IPv6 " + v6
}

// matrixNames are the protocols in the order of the table.
func matrixNames() [][2]string {
	return [][2]string{
		{"h1", "HTTP/1.1 in TLS"}, {"h2", "HTTP/2 in TLS"}, {"grpc", "gRPC: unary, stream both ways, trailers"}, {"websocket", "WebSocket in TLS"},
		{"sse", "server-sent events"}, {"h1 clear", "HTTP/1.1 in clear"}, {"h2 clear", "HTTP/2 in clear (prior knowledge)"}, {"ssh", "SSH"},
		{"redis", "Redis in clear"}, {"rediss", "Redis in TLS"}, {"mqtt", "MQTT in clear"}, {"mqtts", "MQTT in TLS"}, {"postgres", "PostgreSQL"},
		{"socks5", "SOCKS5, as the protocol inside"}, {"raw", "bytes of no protocol"},
	}
}

// matrixCase is the second column.
func matrixCase(c matrixCell) string {
	switch c.Kind {
	case toHeaders:
		return "`http_headers`"
	case toLogin:
		return "`username_password`"
	case toPlaceholder:
		return "`placeholder_substitution`"
	case toAWS:
		return "`aws_sigv4`"
	case toSSH:
		return "`ssh_proxy`"
	case toLimited:
		return "`ssh_proxy`, one command allowed, one not"
	case toCert:
		if strings.HasPrefix(c.Protocol, "redis") || strings.HasPrefix(c.Protocol, "mqtt") || c.Protocol == "postgres" {
			return "`tls_client_certificate` beside `username_password`"
		}
		return "`tls_client_certificate`"
	case toCertOnly:
		return "`tls_client_certificate` alone"
	case toFree:
		return "allowed, no credential rule"
	case toUnknown:
		return "a name that no rule has"
	}
	return "denied by policy"
}

// check compares the file with what was found out, or writes it.
func (r *matrixReport) check(t *testing.T) {
	t.Helper()
	file := filepath.Join(testbed.ModuleRoot(t), "docs", "protocols.md")
	text := r.text(t)
	if os.Getenv("EGRESSD_UPDATE_DOCS") != "" {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return
	}
	have, err := os.ReadFile(file)
	if diff := gocmp.Diff(string(have), text); err != nil || diff != "" {
		t.Errorf("docs/protocols.md is not what the test finds; EGRESSD_UPDATE_DOCS=1 writes it (-file +found): %v\n%s", err, diff)
	}
}

// text is the template with the tables in their places.
func (r *matrixReport) text(t *testing.T) string {
	t.Helper()
	template, err := os.ReadFile(filepath.Join("testdata", "protocols.md"))
	if err != nil {
		t.Fatal(err)
	}
	return strings.NewReplacer("MATRIX\n", r.flows(), "PROGRAMS\n", r.clients(), "RULES\n", matrixLoads(t)).Replace(string(template))
}

// flows is the table of what each way in did.
func (r *matrixReport) flows() string {
	var b strings.Builder
	b.WriteString("| protocol | case | " + strings.Join(matrixWays(), " | ") + " | the client sees |\n|---|---|" + strings.Repeat("---|", len(matrixWays())) + "---|\n")
	for _, name := range matrixNames() {
		for _, c := range matrixCells() {
			if c.Protocol != name[0] {
				continue
			}
			row := []string{name[1], matrixCase(c)}
			var saw []string
			for _, way := range matrixWays() {
				row = append(row, both(r.did[c.String()], way))
				if s := "`" + strings.ReplaceAll(both(r.saw[c.String()], way), "`", "'") + "`"; !slices.Contains(saw, s) {
					saw = append(saw, s)
				}
			}
			fmt.Fprintf(&b, "| %s | %s |\n", strings.Join(row, " | "), strings.Join(saw, ", "))
		}
	}
	return b.String()
}

// clients is the table of programs.
func (r *matrixReport) clients() string {
	var b strings.Builder
	b.WriteString("| client | " + strings.Join(matrixWays(), " | ") + " |\n|---|" + strings.Repeat("---|", len(matrixWays())) + "\n")
	for _, c := range r.tools {
		explicit := [2]string{"its own proxy option", "its own proxy option"}
		switch c.Protocol {
		case "node ws":
			explicit = [2]string{"`createConnection`", "`createConnection`"}
		case "openssh", "sftp", "scp", "rsync", "git ssh":
			explicit = [2]string{"`ProxyCommand nc -X connect`", "`ProxyCommand nc -X 5`"}
		case "redis-cli", "psql":
			explicit = [2]string{"a forwarder", "a forwarder"}
		case "mosquitto":
			explicit = [2]string{"a forwarder", "`--proxy`; a forwarder for an IPv6 address of the proxy"}
		}
		fmt.Fprintf(&b, "| %s | %s | %s | as it is | as it is | as it is |\n", c.Protocol, explicit[0], explicit[1])
	}
	return b.String()
}

// matrixProjections are all there are, with the block that each needs.
func matrixProjections() [][2]string {
	return [][2]string{
		{"http_headers", `httpHeaders: {headers: [{name: X-Key, valueTemplate: "x"}]}`}, {"username_password", ""},
		{"placeholder_substitution", `placeholderSubstitution: {replacements: [{placeholder: "standin-1", valueTemplate: "x", locations: [header]}]}`},
		{"aws_sigv4", ""}, {"tls_client_certificate", ""},
		{"ssh_proxy", `sshProxy: {upstreamUsername: git, sandboxPublicKeys: ["KEY"], knownHosts: ["h.test KEY"]}`},
	}
}

// matrixLoads asks `egressd policy check` which pairs of a rule's protocol and a projection
// it takes. Each pair stands on a line of its own.
func matrixLoads(t *testing.T) string {
	t.Helper()
	key := testbed.SSHKey(t, t.TempDir(), "key")
	protocols := []string{"", "http", "https", "grpc", "tls", "ssh", "socks5", "mqtt", "redis", "postgres"}
	var rules, bindings []string
	for _, pr := range matrixProjections() {
		block := strings.ReplaceAll(pr[1], "KEY", key)
		if block != "" {
			block = ", " + block
		}
		bindings = append(bindings, fmt.Sprintf("        - {ref: %s, sourceRef: s, projection: {type: %s%s}}\n", pr[0], pr[0], block))
		for _, proto := range protocols {
			name := ""
			if proto != "" {
				name = ", protocol: " + proto
			}
			rules = append(rules, fmt.Sprintf("          - {name: %s-%d, credentialRef: %s, domains: [h%d.test]%s}\n", cmp.Or(proto, "any"), len(rules), pr[0], len(rules), name))
		}
	}
	const head = "apiVersion: egressd/v1\nsandboxes:\n  - id: one\n    identify: {sourceCIDRs: [10.0.0.1/32]}\n    network:\n      egress:\n        credentialRules:\n"
	file := filepath.Join(t.TempDir(), "pairs.yaml")
	if err := os.WriteFile(file, []byte(head+strings.Join(rules, "")+"      credentialBindings:\n"+strings.Join(bindings, "")), 0o600); err != nil {
		t.Fatal(err)
	}
	refused := matrixProblems(t, file, strings.Count(head, "\n"), len(rules))
	var b strings.Builder
	b.WriteString("| projection | " + strings.Join(append([]string{"(none)"}, protocols[1:]...), " | ") + " |\n|---|" + strings.Repeat("---|", len(protocols)) + "\n")
	for i, pr := range matrixProjections() {
		row := make([]string, len(protocols))
		for k := range protocols {
			row[k] = "yes"
			if refused[i*len(protocols)+k] {
				row[k] = "no"
			}
		}
		fmt.Fprintf(&b, "| `%s` | %s |\n", pr[0], strings.Join(row, " | "))
	}
	return b.String()
}

// matrixProblems says which of the n lines after the first ones policy check complains of.
func matrixProblems(t *testing.T, file string, first, n int) map[int]bool {
	t.Helper()
	got := command("", nil, "policy", "check", "--json", file)
	var said struct {
		Data struct{ Problems []struct{ Line int } }
	}
	if err := json.Unmarshal([]byte(got.stdout), &said); err != nil {
		t.Fatalf("policy check: %v: %s", err, got)
	}
	out := map[int]bool{}
	for _, p := range said.Data.Problems {
		if p.Line <= first || p.Line > first+n {
			t.Errorf("policy check complains of line %d: %s", p.Line, got)
		}
		out[p.Line-first-1] = true
	}
	return out
}

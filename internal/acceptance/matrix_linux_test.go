package acceptance

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/egressd/egressd/internal/testbed"
)

// matrixCells are the flows of one way and family.
func matrixCells() []matrixCell {
	ports := matrixPorts()
	var out []matrixCell
	add := func(protocols []string, kinds ...string) {
		for _, p := range protocols {
			for _, k := range kinds {
				c := matrixCell{Protocol: p, Kind: k, Port: ports[p]}
				switch {
				case (k == toCert || k == toCertOnly) && p == "rediss":
					c.Port = matrixMutualRedis
				case (k == toCert || k == toCertOnly) && p == "mqtts":
					c.Port = matrixMutualMQTT
				case k == toFree && p == "socks5":
					c.Port = matrixOwnSOCKS
				}
				out = append(out, c)
			}
		}
	}
	add([]string{"h1", "h2", "grpc", "websocket", "sse"}, toHeaders, toLogin, toPlaceholder, toCert, toFree, toDenied)
	add([]string{"h1", "h2"}, toAWS)
	add([]string{"h1"}, toUnknown)
	add([]string{"h1 clear", "h2 clear"}, toHeaders, toLogin, toFree, toDenied)
	add([]string{"ssh"}, toSSH, toLimited, toFree, toDenied)
	add([]string{"redis", "mqtt", "socks5"}, toLogin, toFree, toDenied)
	add([]string{"rediss", "mqtts", "postgres"}, toLogin, toCert, toCertOnly, toFree, toDenied)
	add([]string{"raw"}, toFree, toDenied)
	return out
}

// plan is what the sandbox is told by one way in.
func (w *matrixWorld) plan(way, family string, known string) *matrixPlan {
	p := &matrixPlan{
		Way: way, Family: family, User: "one", Token: proxyToken, Placeholder: matrixPlaceholder, AWS: [2]string{"AKIDNOBODY", "nothing"},
		SSHKey: filepath.Join(w.dir, "sandbox"), KnownHosts: known, Cells: matrixCells(), Dir: w.dir, Echo: matrixPorts()["raw"],
	}
	p.Proxy = w.net.Router.HostPort(family == "6", matrixProxyPort)
	p.Own.User, p.Own.Password, p.Own.Key = w.own.User, w.own.Password, filepath.Join(w.dir, "own")
	return p
}

// TestMatrix: every way in decides the same of the same flow, and does the same.
func TestMatrix(t *testing.T) {
	if testing.Short() {
		t.Skip("the matrix takes a minute")
	}
	w := newMatrixWorld(t)
	d := w.serve()
	ca := d.cli("", "ca", "ssh", "--config", d.path("egressd.yaml"))
	if ca.code != 0 {
		t.Fatalf("egressd ca ssh: %s", ca)
	}
	known := w.file("known_hosts", ca.stdout)
	w.file("server_known_hosts", "*.test "+w.sshd.HostKey+"\n")
	report := newMatrixReport()
	for _, family := range []string{"4", "6"} {
		var base map[string][]matrixLine
		for _, way := range matrixWays() {
			t.Run(way+" v"+family, func(t *testing.T) {
				w.redirect(t, way)
				p := w.plan(way, family, known)
				got, lines := w.run(t, d, p)
				report.add(p, got, lines)
				for _, c := range p.Cells {
					if want := matrixWant(way, c); got[c.String()] != want {
						t.Errorf("%s: the client saw %q, want %q", c, got[c.String()], want)
					}
				}
				if base == nil {
					base = lines
				}
				for _, c := range p.Cells {
					at := p.hostPort(c)
					if diff := cmp.Diff(matrixDecisions(c, base[at]), matrixDecisions(c, lines[at])); diff != "" || len(lines[at]) == 0 {
						t.Errorf("%s: decisions (-by CONNECT +by %s):\n%s", c, way, diff)
					}
				}
				w.tools(t, d, p, report)
			})
		}
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, family := range []string{"4", "6"} {
		if n := w.hits[matrixHost(toDenied, family)]; n != 0 {
			t.Errorf("%d requests reached %s", n, matrixHost(toDenied, family))
		}
	}
	if !t.Failed() {
		report.check(t)
	}
}

// matrixTools are the clients that people have, and what each is to say.
func matrixTools() (cells []matrixCell, want map[string]string) {
	ports := matrixPorts()
	want = map[string]string{}
	for _, x := range []struct{ tool, protocol, kind, want string }{
		{"curl h1", "h1", toHeaders, "bearer 1.1 200"},
		{"curl h2", "h2", toHeaders, "bearer 2 200"},
		{"curl sse", "sse", toHeaders, "data: bearer data: bearer data: bearer 1.1 200"},
		{"git https", "h1", toLogin, "hello from git\npushed"},
		{"node ws", "websocket", toHeaders, "bearer ping"},
		{"openssh", "ssh", toSSH, "real\nto the server"},
		{"sftp", "ssh", toSSH, "there and back"},
		{"scp", "ssh", toSSH, "there and back"},
		{"rsync", "ssh", toSSH, "there and back"},
		{"git ssh", "ssh", toSSH, "hello from git\npushed"},
		{"redis-cli", "rediss", toLogin, "real"},
		{"mosquitto", "mqtt", toLogin, "kept"},
		{"psql", "postgres", toLogin, "real"},
		{"nc raw", "raw", toFree, "\x01\x02 raw \x03"},
	} {
		c := matrixCell{Protocol: x.tool, Kind: x.kind, Port: ports[x.protocol]}
		cells, want[c.String()] = append(cells, c), x.want
	}
	return cells, want
}

// tools runs the real clients by the plan's way.
func (w *matrixWorld) tools(t *testing.T, d *daemon, p *matrixPlan, report *matrixReport) {
	t.Helper()
	q := *p
	var want map[string]string
	q.Cells = nil
	q.Tools, want = matrixTools()
	q.Node, q.WS, q.Git = testbed.Node(t), filepath.Join(testbed.ModuleRoot(t), ".tools/ws/node_modules/ws"), filepath.Join(w.dir, "ssh.git")
	if _, err := os.Stat(q.WS); err != nil {
		t.Fatalf("the npm package ws is needed: run `make deps`: %v", err)
	}
	got, lines := w.run(t, d, &q)
	report.tools = q.Tools
	for _, c := range q.Tools {
		if got[c.String()] != want[c.String()] {
			t.Errorf("%s: %q, want %q", c, got[c.String()], want[c.String()])
		}
		for _, l := range lines[q.hostPort(c)] {
			if (l.CredentialRule == "") != (c.Kind == toFree) {
				t.Errorf("%s: %+v", c, l)
			}
		}
	}
	text, err := json.Marshal(got)
	if err != nil {
		t.Fatal(err)
	}
	testbed.NoLeak(t, "what clients got", text, w.token, w.real.Password, w.certified.Password, w.aws.SecretAccessKey)
}

// matrixDecisions is what is compared of a cell's lines.
func matrixDecisions(c matrixCell, lines []matrixLine) []matrixLine {
	out := slices.Clone(lines)
	for i := range out {
		switch {
		case c.Kind == toUnknown: // refused before, or after, something has been said inside
			out[i].Protocol, out[i].Method = "", ""
		case out[i].Outcome == "aborted": // who hung up first is no decision
			out[i].Outcome, out[i].Detail = "allowed", "traffic_rule"
		}
	}
	return out
}

// matrixWant is what the client sees, by whatever way but for a name that nothing allows.
func matrixWant(way string, c matrixCell) string {
	who := map[string]string{toHeaders: "bearer", toLogin: "basic", toPlaceholder: "placeholder", toAWS: "aws", toCert: "certificate", toFree: "own"}[c.Kind]
	account := map[string]string{toLogin: "real", toCert: "certified", toFree: "own", toSSH: "real"}[c.Kind]
	refused := map[string]string{toHeaders: "plaintext_credential_refused", toDenied: "policy_denied"}[c.Kind]
	proto := map[string]string{"h1": "HTTP/1.1", "h1 clear": "HTTP/1.1", "h2": "HTTP/2.0", "h2 clear": "HTTP/2.0"}[c.Protocol]
	denied := c.Kind == toDenied || c.Kind == toCertOnly || c.Kind == toHeaders && strings.HasSuffix(c.Protocol, "clear")
	switch {
	case c.Kind == toUnknown:
		return matrixUnknown(way)
	case c.Kind == toLimited:
		return "allowed; ssh: command cat /etc/hostname failed"
	case proto != "" && denied:
		return proto + " 403 " + refused
	case proto != "":
		return proto + " 200 " + who
	case denied:
		return map[string]string{
			"grpc": "unary status 7 egressd: policy_denied; stream status 7 egressd: policy_denied", "websocket": "403 policy_denied", "sse": "403 policy_denied",
			"ssh": `error: ssh: handshake failed: ssh: disconnect, reason 11: "egressd: policy_denied"`, "redis": "-ERR egressd: policy_denied",
			"rediss": "-ERR egressd: protocol_not_allowed", "mqtt": "CONNACK 0005", "mqtts": "CONNACK 0005", "raw": "closed",
			"socks5":   "error: socks connect tcp: no acceptable authentication methods",
			"postgres": "error: " + "failed to connect to `user=anybody database=app`: NAME: tls error: server refused TLS connection",
		}[c.Protocol]
	}
	return map[string]string{
		"grpc": "unary " + who + "; stream of 3 both ways, trailer " + who, "websocket": "101 " + who + " ping", "sse": "200 " + who + "," + who + "," + who,
		"ssh": account, "redis": account, "rediss": account, "mqtt": "hello from " + account, "mqtts": "hello from " + account,
		"postgres": account + ", tls true", "socks5": "echo", "raw": "echo",
	}[c.Protocol]
}

// matrixUnknown is how a name that no rule has is refused: before anything is said inside
// where the client tells the name first.
func matrixUnknown(way string) string {
	switch way {
	case wayConnect:
		return "the proxy refused: 403 policy_denied"
	case waySOCKS5:
		return "the proxy refused: SOCKS5 reply 2, not allowed"
	}
	return "TLS alert: access denied"
}

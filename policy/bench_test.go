package policy

import (
	"fmt"
	"net/http"
	"net/netip"
	"strings"
	"testing"
	"time"
)

// sizedPolicy has n traffic rules and n credential rules of all shapes, and one that
// any policy has. A file holds at most 1 MiB, so the template brings the one kind and
// the sandbox the other.
func sizedPolicy(n int) []File {
	var traffic, creds strings.Builder
	traffic.WriteString("apiVersion: egressd/v1\ntemplates:\n  - name: t\n    network:\n      egress:\n        trafficRules: [\n")
	traffic.WriteString("{name: more, action: allow, domains: [git.example.com, mcp.example.com]},\n{name: metadata, action: deny, cidrs: [169.254.0.0/16]},\n")
	creds.WriteString("apiVersion: egressd/v1\nsandboxes:\n  - id: s\n    template: t\n    identify: {sourceCIDRs: [10.0.0.0/8]}\n    network:\n" +
		"      credentialBindings: [{ref: b, sourceRef: s, projection: {type: username_password}}]\n      egress:\n        credentialRules: [\n")
	for i := range n {
		switch i % 4 {
		case 0, 1:
			fmt.Fprintf(&traffic, "{name: r%d, action: allow, domains: [host%d.example.com], ports: [{port: 443, endPort: 6380}]},\n", i, i)
		case 2:
			fmt.Fprintf(&traffic, "{name: r%d, action: allow, domains: [\"*.wide%d.example.org\"]},\n", i, i)
		case 3:
			fmt.Fprintf(&traffic, "{name: r%d, action: deny, cidrs: [11.%d.%d.0/24]},\n", i, i/256%256, i%256)
		}
		fmt.Fprintf(&creds, "{credentialRef: b, domains: [host%d.example.com], httpMatch: {methods: [GET], pathPrefixes: [/v1]}},\n", i)
		if i%200 == 0 {
			fmt.Fprintf(&creds, "{credentialRef: b, protocol: redis, domains: [host%d.example.com], ports: [{port: 6380}]},\n", i)
		}
	}
	traffic.WriteString("]\n        protocolRules:\n          - {name: git, protocol: git, domains: [git.example.com], git: {repositories: {allowed: [\"acme/*\"], denied: [\"*/secret\"]}}}\n" +
		"          - {name: ssh, protocol: ssh, domains: [git.example.com], ssh: {commands: {allowed: [\"git-*\"], denied: [\"rm *\"]}}}\n" +
		"          - {name: mcp, protocol: mcp, domains: [mcp.example.com], mcp: {tools: {allowed: [a]}}}\n        credentialRules:\n" +
		"          - {name: key, credentialRef: key, domains: [git.example.com], ports: [{port: 22}]}\n      credentialBindings:\n" +
		"        - {ref: key, sourceRef: k, projection: {type: ssh_proxy, sshProxy: {upstreamUsername: git, sandboxPublicKeys: [" + testKey + "], knownHosts: [\"* " + testKey + "\"]}}}\n")
	creds.WriteString("]\n")
	return []File{{"traffic.yaml", []byte(traffic.String())}, {"creds.yaml", []byte(creds.String())}}
}

func compileFiles(t testing.TB, files []File) *Set {
	t.Helper()
	set, _, err := Compile(files)
	if err != nil {
		t.Fatalf("compile:\n%v", err)
	}
	return set
}

// sizedFlows are the kinds of flow that a proxy decides, spread over the rules.
func sizedFlows(set *Set, n int) map[string][]Flow {
	sb, addr := set.Sandbox("s"), netip.MustParseAddr("93.184.216.34")
	flows := map[string][]Flow{}
	add := func(kind string, f Flow) {
		f.Sandbox = sb
		flows[kind] = append(flows[kind], f)
	}
	h := http.Header{"Accept": {"*/*"}, "User-Agent": {"t"}}
	for k := range 16 {
		i := (k * n / 16) / 4 * 4
		host := fmt.Sprintf("host%d.example.com", i)
		add("request", Flow{Host: host, Port: 443, Addr: addr, Protocol: TLS, Request: true, Method: "GET", Path: "/v1/x", Header: h})
		add("connection", Flow{Host: host, Port: 443, Addr: addr, Protocol: TLS})
		add("unresolved", Flow{Host: host, Port: 443})
		add("wildcard", Flow{Host: fmt.Sprintf("a.b.wide%d.example.org", i+2), Port: 443, Addr: addr, Protocol: TLS})
		add("login", Flow{Host: fmt.Sprintf("host%d.example.com", k*n/16/200*200), Port: 6380, Addr: addr, Protocol: Redis, InTLS: true})
		add("carried", Flow{Host: fmt.Sprintf("a.b.wide%d.example.org", i+2), Port: 443, Addr: addr, Protocol: AMQP})
		add("ssh", Flow{Host: "git.example.com", Port: 22, Addr: addr, Protocol: SSH, Request: true, SSH: SSHRequest{SSHExec, "git-upload-pack 'acme/a.git'"}})
		add("git", Flow{Host: "git.example.com", Port: 443, Addr: addr, Protocol: TLS, Request: true, Method: "GET", Path: "/acme/a.git/info/refs", RawQuery: "service=git-upload-pack", Header: h})
		add("mcp", Flow{Host: "mcp.example.com", Port: 443, Addr: addr, Protocol: TLS, Request: true, Method: "POST", Path: "/", Header: h})
		add("denied", Flow{Host: "nowhere.test", Port: 443})
		add("address", Flow{Host: fmt.Sprintf("11.%d.%d.9", (i+3)/256, (i+3)%256), Port: 443, Protocol: TLS})
	}
	return flows
}

func BenchmarkDecide(b *testing.B) {
	for _, n := range []int{10, 10_000} {
		set := compileFiles(b, sizedPolicy(n))
		for kind, flows := range sizedFlows(set, n) {
			b.Run(fmt.Sprintf("rules=%d/%s", n, kind), func(b *testing.B) {
				b.ReportAllocs()
				i := 0
				for b.Loop() {
					set.Decide(&flows[i&15])
					i++
				}
			})
		}
	}
}

func BenchmarkCompile(b *testing.B) {
	files := sizedPolicy(3000)
	for b.Loop() {
		if _, _, err := Compile(files); err != nil {
			b.Fatal(err)
		}
	}
}

func TestDecideAllocatesNothing(t *testing.T) {
	for _, n := range []int{10, 10_000} {
		set := compileFiles(t, sizedPolicy(n))
		for kind, flows := range sizedFlows(set, n) {
			switch d := set.Decide(&flows[0]); {
			case kind == "login" && d.Credential == nil, kind == "mcp" && d.MCP == nil, (kind == "ssh" || kind == "git") && d.Action != Inspect:
				t.Errorf("%d rules, %s: %s", n, kind, d)
			}
			i := 0
			got := testing.AllocsPerRun(200, func() {
				f := &flows[i&15]
				set.Decide(f)
				set.LooksAtPaths(f)
				set.LooksAtMethods(f)
				set.MayName(f.Sandbox, f.Host)
				set.Placeholders(f.Sandbox)
				i++
			})
			if got != 0 {
				t.Errorf("%d rules, %s: %v allocations", n, kind, got)
			}
		}
		if got := testing.AllocsPerRun(200, func() {
			if _, err := set.Identify(netip.MustParseAddr("::ffff:10.1.2.3"), "", ""); err != nil {
				t.Fatal(err)
			}
		}); got != 0 {
			t.Errorf("Identify: %v allocations", got)
		}
	}
}

// What the benchmark shows holds: the cost does not grow with the rules. The best of
// many short runs is taken, so that a busy machine does not matter.
func TestDecideCostDoesNotGrow(t *testing.T) {
	cost := func(n int) map[string]time.Duration {
		set := compileFiles(t, sizedPolicy(n))
		out := map[string]time.Duration{}
		for kind, flows := range sizedFlows(set, n) {
			const calls = 1600
			for range 30 {
				start := time.Now()
				for i := range calls {
					set.Decide(&flows[i&15])
				}
				if d := time.Since(start) / calls; out[kind] == 0 || d < out[kind] {
					out[kind] = d
				}
			}
		}
		return out
	}
	few, many := cost(10), cost(10_000)
	for kind, d := range many {
		t.Logf("%-10s %v at 10 rules, %v at 10,000", kind, few[kind], d)
		if d > 2*few[kind]+50*time.Nanosecond {
			t.Errorf("%s: %v at 10,000 rules, %v at 10", kind, d, few[kind])
		}
	}
}

package policy

import (
	"fmt"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/rogpeppe/go-internal/txtar"
)

// compileText compiles one file and fails the test when it does not compile.
func compileText(t testing.TB, yaml string) *Set {
	t.Helper()
	set, _, err := Compile([]File{{Name: "policy.yaml", Data: []byte(yaml)}})
	if err != nil {
		t.Fatalf("compile:\n%v", err)
	}
	return set
}

// parseFlow reads "sandbox protocol[+tls] host:port [addr=A] [METHOD path[?query]]
// [Name:value]…", or behind the port "shell", "forwarding", "subsystem=name" or, to the end
// of the line, "exec=command".
func parseFlow(t testing.TB, set *Set, line string) *Flow {
	t.Helper()
	line, command, exec := strings.Cut(strings.TrimSpace(line), " exec=")
	words := strings.Fields(line)
	if len(words) < 3 {
		t.Fatalf("flow %q: too short", line)
	}
	f := &Flow{Sandbox: set.Sandbox(words[0])}
	if exec {
		f.Request, f.SSH = true, SSHRequest{Kind: SSHExec, Text: command}
	}
	var word string
	word, f.InTLS = strings.CutSuffix(words[1], "+tls")
	for f.Protocol.String() != word || word == "unknown" && f.Protocol != Unknown {
		if f.Protocol++; f.Protocol > MongoDB {
			t.Fatalf("flow %q: protocol %q", line, word)
		}
	}
	i := strings.LastIndexByte(words[2], ':')
	host, err := CanonicalHost(words[2][:i])
	if err != nil {
		t.Fatalf("flow %q: %v", line, err)
	}
	port, err := strconv.ParseUint(words[2][i+1:], 10, 16)
	if err != nil {
		t.Fatalf("flow %q: %v", line, err)
	}
	f.Host, f.Port = host, uint16(port)
	for i := 3; i < len(words); i++ {
		w := words[i]
		if a, ok := strings.CutPrefix(w, "addr="); ok {
			f.Addr = netip.MustParseAddr(a)
			continue
		}
		if f.SSH = sshWord(w); f.SSH.Kind != SSHNothing {
			f.Request = true
			continue
		}
		if name, val, ok := strings.Cut(w, ":"); ok && !strings.HasPrefix(w, "/") {
			if f.Header == nil {
				f.Header = http.Header{}
			}
			f.Header[name] = append(f.Header[name], val)
			continue
		}
		f.Request, f.Method = true, w
		i++
		path, query, _ := strings.Cut(words[i], "?")
		if f.Path, err = CanonicalPath(path); err != nil {
			t.Fatalf("flow %q: %v", line, err)
		}
		f.RawQuery = query
	}
	return f
}

func sshWord(w string) SSHRequest {
	name, sub := strings.CutPrefix(w, "subsystem=")
	switch {
	case sub:
		return SSHRequest{Kind: SSHSubsystem, Text: name}
	case w == "shell":
		return SSHRequest{Kind: SSHShell}
	case w == "forwarding":
		return SSHRequest{Kind: SSHForwarding}
	}
	return SSHRequest{}
}

// sayDecision is the form of the expectations in testdata/decide.
func sayDecision(d Decision) string {
	if d.NeedAddr {
		if d != (Decision{NeedAddr: true}) {
			return fmt.Sprintf("needaddr with more: %#v", d)
		}
		return "needaddr"
	}
	s := d.Action.String() + " " + d.Reason.String()
	if d.Rule != "" {
		s += " rule=" + d.Rule
	}
	if d.Credential != nil {
		s += " cred=" + d.Credential.Name
	}
	if d.ClientCert != nil {
		s += " cert=" + d.ClientCert.Name
	}
	if d.StripClientAuth {
		s += " strip"
	}
	if d.MCP != nil {
		s += " mcp=" + strings.ReplaceAll(d.MCP.String(), ", ", ",")
	}
	if d.Proxy != nil {
		s += " proxy=" + string(d.Proxy.Type)
	}
	if d.Report {
		s += " report"
	}
	return s
}

func TestDecide(t *testing.T) {
	archives, err := filepath.Glob("testdata/decide/*.txtar")
	if err != nil || len(archives) == 0 {
		t.Fatalf("no archives: %v", err)
	}
	for _, name := range archives {
		t.Run(strings.TrimSuffix(filepath.Base(name), ".txtar"), func(t *testing.T) {
			ar, err := txtar.ParseFile(name)
			if err != nil {
				t.Fatal(err)
			}
			var files []File
			var flows []byte
			for _, f := range ar.Files {
				if f.Name == "flows" {
					flows = f.Data
					continue
				}
				files = append(files, File{Name: f.Name, Data: f.Data})
			}
			set, _, err := Compile(files)
			if err != nil {
				t.Fatalf("compile:\n%v", err)
			}
			checkFlows(t, set, string(flows))
		})
	}
}

func checkFlows(t *testing.T, set *Set, flows string) {
	n := 0
	for line := range strings.Lines(flows) {
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		flow, want, ok := strings.Cut(line, "=>")
		if !ok {
			t.Fatalf("no => in %q", line)
		}
		n++
		f := parseFlow(t, set, flow)
		d := set.Decide(f)
		if diff := cmp.Diff(strings.TrimSpace(want), sayDecision(d)); diff != "" {
			t.Errorf("%s\n%s", flow, diff)
			for _, s := range set.Explain(f) {
				t.Logf("    %+v", s)
			}
		}
		steps, told := set.explain(f)
		if !told.Same(&d) {
			t.Errorf("%s: Explain walked to %s, Decide to %s", flow, sayDecision(told), sayDecision(d))
		}
		if last := steps[len(steps)-1]; last.Stage != "decision" || last.Detail != d.String() || last.Matched != (d.Action != Deny) {
			t.Errorf("%s: last step %+v, decision %s", flow, last, d)
		}
	}
	if n == 0 {
		t.Error("no flows")
	}
}

// TestBad: each file's first line is a comment with what one line of the error must
// be, without the file's name; further lines of comment, further messages.
func TestBad(t *testing.T) {
	names, err := filepath.Glob("testdata/bad/*.yaml")
	if err != nil || len(names) < 20 {
		t.Fatalf("%d files: %v", len(names), err)
	}
	for _, name := range names {
		t.Run(strings.TrimSuffix(filepath.Base(name), ".yaml"), func(t *testing.T) {
			data, err := os.ReadFile(name)
			if err != nil {
				t.Fatal(err)
			}
			var want []string
			for line := range strings.Lines(string(data)) {
				msg, ok := strings.CutPrefix(line, "# ")
				if !ok {
					break
				}
				want = append(want, "bad.yaml:"+strings.TrimSpace(msg))
			}
			set, _, err := Compile([]File{{Name: "bad.yaml", Data: data}})
			if err == nil || set != nil {
				t.Fatalf("compiled: %v", set)
			}
			if diff := cmp.Diff(want, strings.Split(err.Error(), "\n")); diff != "" {
				t.Error(diff)
			}
		})
	}
}

package policy

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

const minimal = "apiVersion: egressd/v1\n"

func write(t *testing.T, dir, name, data string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(dir, name), []byte(data), 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestLoadDir(t *testing.T) {
	dir := t.TempDir()
	set, warnings, err := LoadDir(dir)
	if err != nil || len(set.Sandboxes()) != 0 || len(warnings) != 0 {
		t.Fatalf("empty directory: %v, %v, %v", set, warnings, err)
	}
	write(t, dir, "a.yaml", minimal+"sandboxes: [{id: a, template: t, identify: {sourceCIDRs: [10.0.0.1/32]}}]\n")
	write(t, dir, ".hidden.yaml", "not: [valid")
	write(t, dir, "notes.txt", "not: [valid")
	write(t, dir, "b.yml", "not: [valid")
	// As Kubernetes mounts a ConfigMap: a link to a link.
	if err := os.Mkdir(filepath.Join(dir, "..2026"), 0o700); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(dir, "..2026"), "t.yaml", minimal+"templates: [{name: t, network: {mode: allow-all}}]\n")
	for link, to := range map[string]string{"..data": "..2026", "t.yaml": "..data/t.yaml"} {
		if err := os.Symlink(to, filepath.Join(dir, link)); err != nil {
			t.Fatal(err)
		}
	}
	set, warnings, err = LoadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	if set.Sandbox("a").Template != "t" {
		t.Errorf("%+v", set.Sandbox("a"))
	}
	if len(warnings) != 1 || !strings.Contains(warnings[0].String(), "b.yml: is not read") {
		t.Errorf("warnings: %v", warnings)
	}
}

func TestLoadDirErrors(t *testing.T) {
	dir := t.TempDir()
	if _, _, err := LoadDir(filepath.Join(dir, "missing")); err == nil || !strings.Contains(err.Error(), "does not exist") {
		t.Errorf("missing: %v", err)
	}
	write(t, dir, "file", "")
	if _, _, err := LoadDir(filepath.Join(dir, "file")); err == nil {
		t.Error("a file for a directory loads")
	}
	// All that is wrong, in all files, at once.
	write(t, dir, "a.yaml", "apiVersion: egressd/v0\n")
	write(t, dir, "b.yaml", minimal+"x: 1\n")
	if err := os.Mkdir(filepath.Join(dir, "c.yaml"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("nowhere", filepath.Join(dir, "d.yaml")); err != nil {
		t.Fatal(err)
	}
	write(t, dir, "e.yaml", strings.Repeat("#", maxFileSize+1))
	set, _, err := LoadDir(dir)
	if set != nil || err == nil {
		t.Fatal("B27: loads though files cannot be read")
	}
	var problems Problems
	if !errors.As(err, &problems) {
		t.Fatalf("%T", err)
	}
	want := []string{
		"a.yaml:1:13: apiVersion: want egressd/v1",
		"b.yaml:2:1: x: unknown field: known here are apiVersion, sandboxes, templates",
		"c.yaml: is not a regular file",
		"d.yaml: cannot be read: no such file or directory",
		"e.yaml:1:1: the file is larger than 1 MiB",
	}
	if diff := cmp.Diff(want, strings.Split(strings.ReplaceAll(err.Error(), dir+"/", ""), "\n")); diff != "" {
		t.Error(diff)
	}
}

func TestHash(t *testing.T) {
	a, b := File{"x/a.yaml", []byte(minimal)}, File{"x/b.yaml", []byte(minimal + "sandboxes: []\n")}
	base := compileFiles(t, []File{a, b}).Hash()
	if len(base) != 16 {
		t.Errorf("hash %q", base)
	}
	if h := compileFiles(t, []File{b, {"y/a.yaml", a.Data}}).Hash(); h != base {
		t.Error("order or directory changes the hash")
	}
	for name, files := range map[string][]File{"fewer": {a}, "renamed": {a, {"c.yaml", b.Data}}, "swapped": {{a.Name, b.Data}, {b.Name, a.Data}}} {
		if compileFiles(t, files).Hash() == base {
			t.Errorf("%s: same hash", name)
		}
	}
}

// The examples are one policy, as policy.dir's default, without anything to warn of.
func TestExamples(t *testing.T) {
	set, warnings, err := LoadDir("../configs/policy")
	if err != nil {
		t.Fatal(err)
	}
	if len(warnings) > 0 {
		t.Errorf("warnings: %v", warnings)
	}
	checkFlows(t, set, `
agent-7 tls api.code.example.com:443 addr=192.0.2.1 GET /repos/acme/x => inspect traffic_rule rule=code cred=code-api strip
agent-7 tls api.code.example.com:443 addr=192.0.2.1 DELETE /repos/acme/x => deny protocol_rule rule=no-deletes
agent-7 tls api.code.example.com:443 addr=192.0.2.1 GET /repos/attacker/x => inspect traffic_rule rule=code strip
agent-7 tls code.example.com:443 addr=192.0.2.1 GET /acme/repo.git/info/refs => inspect traffic_rule rule=code cred=git strip
agent-7 tls api.model.example.net:443 addr=192.0.2.1 POST /v1/messages => inspect traffic_rule rule=model cred=model strip
agent-7 tls api.model.example.net:443 addr=169.254.169.254 => deny traffic_rule rule=no-metadata
agent-7 tls x.packages.example.org:443 addr=192.0.2.1 PUT / => deny protocol_rule rule=packages-read-only
agent-8 tls x.packages.example.org:443 => deny traffic_rule rule=packages
agent-8 tls docs.example.com:443 addr=192.0.2.1 => pass traffic_rule rule=docs
agent-7 tls example.com:443 => deny default_mode
billing-job tls billing.example.com:443 POST /x => inspect traffic_rule rule=billing cred=billing-token cert=billing-certificate strip
billing-job tls billing.example.com:8443 POST /x => inspect traffic_rule rule=billing cert=billing-certificate strip
billing-job http legacy.corp.example.com:8080 GET /x => inspect traffic_rule rule=legacy cred=legacy-login strip
builder-1 ssh git.example.com:22 addr=192.0.2.1 exec=git-upload-pack 'acme/tool.git' => inspect traffic_rule rule=git-ssh cred=git-ssh proxy=socks5
builder-1 ssh git.example.com:22 addr=192.0.2.1 exec=git-receive-pack 'acme/tool.git' => deny protocol_rule rule=git-read-only
builder-1 ssh git.example.com:22 addr=192.0.2.1 shell => deny protocol_rule rule=git-read-only
builder-1 tls git.example.com:443 addr=192.0.2.1 GET /acme/tool.git/info/refs?service=git-upload-pack => inspect traffic_rule rule=git-https cred=git-https strip proxy=socks5
builder-1 tls git.example.com:443 addr=192.0.2.1 GET /acme/payroll/info/refs?service=git-upload-pack => deny protocol_rule rule=git-read-only
builder-1 redis+tls cache.example.com:6380 addr=192.0.2.1 => inspect traffic_rule rule=databases cred=cache proxy=socks5
builder-1 redis cache.example.com:6380 addr=192.0.2.1 => deny unknown_protocol
builder-1 postgres db.example.com:5432 addr=192.0.2.1 => inspect traffic_rule rule=databases cred=database proxy=socks5
builder-1 tls a.s3.eu-west-1.objects.example.net:443 addr=192.0.2.1 PUT /k => inspect traffic_rule rule=services cred=objects strip proxy=socks5
builder-1 tls sdk.example.net:443 addr=192.0.2.1 POST /v1 => inspect traffic_rule rule=services cred=sdk strip proxy=socks5
builder-1 tls tools.example.com:443 addr=192.0.2.1 POST /mcp => inspect traffic_rule rule=services cred=tools strip mcp=tools proxy=socks5
newcomer tls other.example.com:443 => pass default_mode report
`)
}

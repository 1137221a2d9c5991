package config

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/spf13/pflag"
)

var comparable = cmp.Options{cmpopts.EquateComparable(netip.Addr{}, netip.Prefix{}), cmpopts.EquateEmpty()}

func write(t *testing.T, text string) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "egressd.yaml")
	if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

func flags(t *testing.T, args ...string) *pflag.FlagSet {
	t.Helper()
	fs := pflag.NewFlagSet("serve", pflag.ContinueOnError)
	Flags(fs)
	if err := fs.Parse(args); err != nil {
		t.Fatal(err)
	}
	return fs
}

// The shipped file shows every key at its default.
func TestShippedFileIsTheDefaults(t *testing.T) {
	const file = "../../configs/egressd.yaml"
	got, err := Load(Input{File: file})
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(Default(), got.Config, comparable); d != "" {
		t.Errorf("configs/egressd.yaml differs from the defaults (-default +file):\n%s", d)
	}
	for _, k := range Keys() {
		if k.Path == "store.key.provider" {
			continue
		}
		if got.Origin[k.Path] != "file" {
			t.Errorf("configs/egressd.yaml does not show %s", k.Path)
		}
	}
}

// Each file of testdata/bad says in its first line what must be answered.
func TestBadFiles(t *testing.T) {
	files, err := filepath.Glob("testdata/bad/*.yaml")
	if err != nil || len(files) < 40 {
		t.Fatalf("%d files in testdata/bad: %v", len(files), err)
	}
	for _, file := range files {
		t.Run(filepath.Base(file), func(t *testing.T) {
			data, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			first, _, _ := strings.Cut(string(data), "\n")
			want, ok := strings.CutPrefix(first, "# want: ")
			if !ok {
				t.Fatal("line 1 does not say what is wanted")
			}
			_, err = Load(Input{File: file})
			if err == nil {
				t.Fatalf("loaded; want %s", want)
			}
			got := strings.ReplaceAll(err.Error(), filepath.Dir(file)+"/", "")
			if got != want {
				t.Errorf("\n got %s\nwant %s", got, want)
			}
		})
	}
}

func TestAllProblemsAtOnce(t *testing.T) {
	_, err := Load(Input{File: write(t, "listen: {prxy: a}\nlisten.ops: \"\"\nlimits: {connections: x}\n"), Env: []string{"EGRESSD_LIMITS_IDLE_TIMEOUT=soon"}, Flags: flags(t, "--upstream-allow-cidrs=lots")})
	var ps Problems
	if !errors.As(err, &ps) {
		t.Fatalf("error is %T: %v", err, err)
	}
	var got []string
	for _, p := range ps {
		p.File = ""
		got = append(got, p.Error())
	}
	want := []string{
		"listen.prxy: unknown key: known here are dns, ops, proxy, redirect, tproxy",
		"listen.ops: unknown key: write the part after each dot one level deeper",
		"limits.connections: want a whole number",
		"EGRESSD_LIMITS_IDLE_TIMEOUT: want a duration such as 30s",
		`--upstream-allow-cidrs: "lots" is not an address range such as 10.0.0.0/8`,
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
}

func TestPrecedence(t *testing.T) {
	file := write(t, "stateDir: /from/file\nlog: {level: warn}\nlimits: {connections: 1, idleTimeout: 1m}\nupstream: {hosts: {a.test: 10.0.0.1}}\n")
	got, err := Load(Input{
		File:  file,
		Env:   []string{"EGRESSD_LIMITS_CONNECTIONS=2", "EGRESSD_LIMITS_IDLE_TIMEOUT=2m", "EGRESSD_UPSTREAM_ALLOW_CIDRS=10.0.0.0/8, 127.0.0.0/8", "EGRESSD_UPSTREAM_HOSTS=b.test=10.0.0.2"},
		Flags: flags(t, "--limits-idle-timeout=3m", "--upstream-hosts", "C.test.=10.0.0.3", "--upstream-hosts", "d.test=::1"),
	})
	if err != nil {
		t.Fatal(err)
	}
	want := Default()
	want.StateDir = "/from/file"
	want.Log.Level = "warn"
	want.Limits.Connections = 2
	want.Limits.IdleTimeout = 3 * time.Minute
	want.Upstream.AllowCIDRs = []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("127.0.0.0/8")}
	want.Upstream.Hosts = map[string]netip.Addr{"c.test": netip.MustParseAddr("10.0.0.3"), "d.test": netip.MustParseAddr("::1")}
	if d := cmp.Diff(want, got.Config, comparable); d != "" {
		t.Error(d)
	}
	wantOrigin := map[string]string{
		"stateDir": "file", "log.level": "file", "limits.connections": "env EGRESSD_LIMITS_CONNECTIONS",
		"limits.idleTimeout": "flag --limits-idle-timeout", "upstream.allowCIDRs": "env EGRESSD_UPSTREAM_ALLOW_CIDRS", "upstream.hosts": "flag --upstream-hosts",
	}
	if d := cmp.Diff(wantOrigin, got.Origin); d != "" {
		t.Error(d)
	}
}

// A fault found by validation is told where the value stands, whichever layer won.
func TestFaultNamesItsLayer(t *testing.T) {
	_, err := Load(Input{File: write(t, "log: {level: info}\n"), Env: []string{"EGRESSD_LOG_LEVEL=loud"}})
	if want := "EGRESSD_LOG_LEVEL: want debug or info or warn or error"; err == nil || err.Error() != want {
		t.Errorf("got %v, want %s", err, want)
	}
	_, err = Load(Input{Flags: flags(t, "--upstream-proxy=127.0.0.1:1")})
	if want := "--upstream-proxy: not supported yet"; err == nil || err.Error() != want {
		t.Errorf("got %v, want %s", err, want)
	}
}

func TestEmptyFiles(t *testing.T) {
	for name, text := range map[string]string{"nothing": "", "comment": "# nothing\n", "null": "~\n", "marker": "---\n"} {
		t.Run(name, func(t *testing.T) {
			got, err := Load(Input{File: write(t, text)})
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(Default(), got.Config, comparable); d != "" {
				t.Error(d)
			}
		})
	}
}

func TestMissingAndOversizeFile(t *testing.T) {
	_, err := Load(Input{File: "/nonexistent/egressd.yaml"})
	if want := "config file /nonexistent/egressd.yaml does not exist: name another with --config, or leave it out for the defaults"; err == nil || err.Error() != want {
		t.Errorf("got %v", err)
	}
	_, err = Load(Input{File: write(t, "# "+strings.Repeat("x", maxFile))})
	if err == nil || !strings.HasSuffix(err.Error(), ": larger than 1 MiB") {
		t.Errorf("got %v", err)
	}
}

func TestNames(t *testing.T) {
	want := map[string]string{
		"stateDir": "state-dir", "listen.proxy": "listen-proxy", "listen.tproxy": "listen-tproxy", "listen.ops": "listen-ops",
		"api.tls.clientCAFile": "api-tls-client-ca-file", "policy.dir": "policy-dir", "store.url": "store-url", "store.keyFile": "store-key-file",
		"intercept.caCertFile": "intercept-ca-cert-file", "intercept.leafTTL": "intercept-leaf-ttl", "upstream.extraCAFiles": "upstream-extra-ca-files",
		"upstream.allowCIDRs": "upstream-allow-cidrs", "upstream.responseHeaderTimeout": "upstream-response-header-timeout",
		"limits.connectionsPerSandbox": "limits-connections-per-sandbox", "limits.headerBytes": "limits-header-bytes", "audit.overflow": "audit-overflow",
	}
	byPath := map[string]Key{}
	for _, k := range Keys() {
		byPath[k.Path] = k
	}
	for path, flag := range want {
		if got := byPath[path].Flag(); got != flag {
			t.Errorf("%s: flag %s, want %s", path, got, flag)
		}
	}
	if got := byPath["upstream.allowCIDRs"].Env(); got != "EGRESSD_UPSTREAM_ALLOW_CIDRS" {
		t.Error(got)
	}
}

// What config show prints loads again to the same.
func TestShowRoundTrip(t *testing.T) {
	in := Input{Env: []string{"EGRESSD_STATE_DIR=/tmp/e", "EGRESSD_UPSTREAM_HOSTS=a.test=10.0.0.1", "EGRESSD_UPSTREAM_ALLOW_CIDRS=10.0.0.0/8", "EGRESSD_LIMITS_HEADER_BYTES=65537"}}
	first, err := Load(in)
	if err != nil {
		t.Fatal(err)
	}
	text := first.YAML()
	if !strings.Contains(string(text), "stateDir: /tmp/e # from env EGRESSD_STATE_DIR\n") {
		t.Errorf("no origin in:\n%s", text)
	}
	second, err := Load(Input{File: write(t, string(text))})
	if err != nil {
		t.Fatalf("%v in:\n%s", err, text)
	}
	// apart from the CA, whose default means "make one"
	want := first.Effective()
	if d := cmp.Diff(want, second.Config, comparable); d != "" {
		t.Error(d)
	}
}

func TestHelpNamesDefaults(t *testing.T) {
	usage := flags(t).FlagUsages()
	for _, want := range []string{
		"--listen-proxy string", `(default "127.0.0.1:3128")`, "--limits-connections int", "(default 20000)", "--limits-header-bytes size", "(default 64KiB)",
		"--upstream-dial-timeout duration", "(default 10s)", "--intercept-leaf-ttl duration", "(default 24h)",
	} {
		if !strings.Contains(usage, want) {
			t.Errorf("usage lacks %s:\n%s", want, usage)
		}
	}
}

func TestSizesAndDurations(t *testing.T) {
	for in, want := range map[string]int64{"0": 0, "1": 1, "12B": 12, "64KiB": 64 << 10, "1MiB": 1 << 20, "2GiB": 2 << 30} {
		got, err := parseSize(in)
		if err != nil || got != want {
			t.Errorf("parseSize(%s) = %d, %v", in, got, err)
		}
		if back, err := parseSize(formatSize(got)); err != nil || back != want {
			t.Errorf("formatSize(%d) = %s", got, formatSize(got))
		}
	}
	for _, in := range []string{"", "-1", "1kb", "KiB", "1.5MiB", "9999999999GiB", " 1"} {
		if n, err := parseSize(in); err == nil {
			t.Errorf("parseSize(%q) = %d", in, n)
		}
	}
	for d, want := range map[time.Duration]string{0: "0", 24 * time.Hour: "24h", 90 * time.Minute: "1h30m", 5 * time.Minute: "5m", 61 * time.Second: "1m1s", 1500 * time.Millisecond: "1.5s"} {
		if got := shortDuration(d); got != want {
			t.Errorf("shortDuration(%v) = %s, want %s", d, got, want)
		}
	}
}

func TestAttack_B27_policy_dir_missing(t *testing.T) {
	c := Default()
	c.Policy.Dir = filepath.Join(t.TempDir(), "none")
	want := fmt.Sprintf("policy.dir %s does not exist: create it with at least one *.yaml, or set --policy-dir", c.Policy.Dir)
	if err := c.CheckPolicyDir(); err == nil || err.Error() != want {
		t.Errorf("got %v", err)
	}
	c.Policy.Dir = write(t, "")
	if err := c.CheckPolicyDir(); err == nil || !strings.Contains(err.Error(), "is not a directory") {
		t.Errorf("got %v", err)
	}
}

// The parser reads what an operator wrote, yet it must not fall over anything.
func FuzzDecode(f *testing.F) {
	files, _ := filepath.Glob("testdata/bad/*.yaml")
	for _, file := range files {
		if data, err := os.ReadFile(file); err == nil {
			f.Add(data)
		}
	}
	f.Add([]byte("a: &a [*a, *a]\nb: {<<: *a}\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		leaves, problems := decode("f.yaml", data, Keys())
		for _, p := range problems {
			if p.Message == "" {
				t.Errorf("a problem without a message: %+v", p)
			}
		}
		for _, l := range leaves {
			if len(l.values) == 0 && l.key.shape != shapeList && l.key.shape != shapeMap {
				t.Errorf("%s has no value", l.key.Path)
			}
		}
	})
}

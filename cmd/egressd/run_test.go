package main

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/egressd/egressd/internal/testbed"
)

func tlsRoots(pool *x509.CertPool) *tls.Config { return &tls.Config{RootCAs: pool} }

// environmentOf runs a command that shows its environment and copies the CA bundle.
func environmentOf(t *testing.T, env []string, args ...string) (vars map[string]string, bundle []byte, stderr string) {
	t.Helper()
	saved := filepath.Join(t.TempDir(), "bundle.pem")
	args = append(append([]string{"run"}, args...), "--", "sh", "-c", `cp "$SSL_CERT_FILE" "$SAVED"; stat -c %a "$(dirname "$SSL_CERT_FILE")"; env -0`)
	cmd := egressd(args...)
	cmd.Env = append(append(cmd.Env, env...), "SAVED="+saved)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		t.Fatalf("%v: %s", err, errs.String())
	}
	mode, rest, _ := strings.Cut(out.String(), "\n")
	if mode != "700" {
		t.Errorf("the directory of the bundle has mode %s, want 700", mode)
	}
	vars = map[string]string{}
	for kv := range strings.SplitSeq(rest, "\x00") {
		if name, value, ok := strings.Cut(kv, "="); ok {
			vars[name] = value
		}
	}
	bundle, err := os.ReadFile(saved)
	if err != nil {
		t.Fatal(err)
	}
	return vars, bundle, errs.String()
}

func TestRunEnvironment(t *testing.T) {
	const secret = "fake-secret-for-tests"
	origin := testbed.NewCA(t)
	vars, bundle, stderr := environmentOf(t, []string{
		"MY_TOKEN=" + secret, "COPY=Bearer " + secret, "EGRESSD_TOKEN=egd_x", "EGRESSD_ADDR=unix:/x",
		"no_proxy=*", "NO_PROXY=*", "https_proxy=http://127.0.0.1:1", "Http_Proxy=http://127.0.0.1:1",
		"JAVA_TOOL_OPTIONS=-Xmx1g", "NODE_EXTRA_CA_CERTS=/elsewhere", "KEPT=yes",
	}, "--inject", "good.test=MY_TOKEN", "--upstream-extra-ca-files", origin.File(t))

	for _, name := range []string{"MY_TOKEN", "COPY", "EGRESSD_TOKEN", "EGRESSD_ADDR", "Http_Proxy"} {
		if v, ok := vars[name]; ok {
			t.Errorf("%s=%s is in the command's environment", name, v)
		}
	}
	for name, v := range vars {
		if strings.Contains(v, secret) {
			t.Errorf("%s holds the secret", name)
		}
	}
	if strings.Contains(stderr, secret) || !strings.Contains(stderr, "COPY holds one of the secrets") {
		t.Errorf("stderr: %s", stderr)
	}
	if vars["KEPT"] != "yes" {
		t.Error("other variables are gone")
	}
	proxy := vars["HTTP_PROXY"]
	if !strings.HasPrefix(proxy, "http://run:") || !strings.Contains(proxy, "@127.0.0.1:") {
		t.Errorf("HTTP_PROXY=%s", proxy)
	}
	for _, name := range []string{"http_proxy", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"} {
		if vars[name] != proxy {
			t.Errorf("%s=%s, want %s", name, vars[name], proxy)
		}
	}
	for _, name := range []string{"no_proxy", "NO_PROXY"} {
		if v, ok := vars[name]; !ok || v != "" {
			t.Errorf("%s=%q, want it set and empty", name, v)
		}
	}
	wanted := []string{
		"SSL_CERT_FILE", "CURL_CA_BUNDLE", "REQUESTS_CA_BUNDLE", "GIT_SSL_CAINFO", "NODE_EXTRA_CA_CERTS", "AWS_CA_BUNDLE", "PIP_CERT",
		"CARGO_HTTP_CAINFO", "DENO_CERT", "NPM_CONFIG_CAFILE", "YARN_HTTPS_CA_FILE_PATH", "GRPC_DEFAULT_SSL_ROOTS_FILE_PATH",
		"BUNDLE_SSL_CA_CERT", "NIX_SSL_CERT_FILE", "PERL_LWP_SSL_CA_FILE", "CLOUDSDK_CORE_CUSTOM_CA_CERTS_FILE",
	}
	for _, name := range wanted {
		if vars[name] == "" || vars[name] != vars["SSL_CERT_FILE"] {
			t.Errorf("%s=%s, want %s", name, vars[name], vars["SSL_CERT_FILE"])
		}
	}
	if vars["NODE_USE_ENV_PROXY"] != "1" {
		t.Error("NODE_USE_ENV_PROXY is not 1")
	}
	java := vars["JAVA_TOOL_OPTIONS"]
	for _, want := range []string{"-Xmx1g ", "-Djavax.net.ssl.trustStore=" + filepath.Dir(vars["SSL_CERT_FILE"]), "-Dhttps.proxyHost=127.0.0.1", "-Dhttps.proxyPort="} {
		if !strings.Contains(java, want) {
			t.Errorf("JAVA_TOOL_OPTIONS lacks %s: %s", want, java)
		}
	}
	checkBundle(t, bundle, origin.Cert)
	if _, err := os.Stat(filepath.Dir(vars["SSL_CERT_FILE"])); !os.IsNotExist(err) {
		t.Errorf("the temporary directory is still there: %v", err)
	}
}

// checkBundle wants system roots, our CA and the extra one, and no key.
func checkBundle(t *testing.T, bundle []byte, extra *x509.Certificate) {
	t.Helper()
	var ours, more, system int
	for rest := bundle; ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		if block.Type != "CERTIFICATE" {
			t.Errorf("the bundle holds a %s", block.Type)
			continue
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		switch {
		case err != nil:
			t.Error(err)
		case cert.Equal(extra):
			more++
		case slices.Contains(cert.Subject.Organization, "egressd"):
			ours++
		default:
			system++
		}
	}
	if ours != 1 || more != 1 || system == 0 {
		t.Errorf("the bundle holds %d of ours, %d extra, %d of the system", ours, more, system)
	}
}

// Each signal that is sent to egressd reaches the command, whose exit code is ours.
func TestRunForwardsSignals(t *testing.T) {
	signals := map[string]syscall.Signal{
		"INT": syscall.SIGINT, "TERM": syscall.SIGTERM, "HUP": syscall.SIGHUP, "QUIT": syscall.SIGQUIT,
		"USR1": syscall.SIGUSR1, "USR2": syscall.SIGUSR2, "WINCH": syscall.SIGWINCH,
	}
	for name, sig := range signals {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			cmd := egressd("run", "-q", "--allow", "good.test", "--", "sh", "-c",
				`trap 'echo got `+name+`; exit 7' `+name+`; echo begun; i=0; while [ $i -lt 100 ]; do sleep 0.1; i=$((i+1)); done`)
			cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true} // no terminal: nobody else sends it
			out, err := cmd.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			lines := bufio.NewScanner(out)
			if !lines.Scan() || lines.Text() != "begun" {
				t.Fatalf("the command did not begin: %q", lines.Text())
			}
			if err := cmd.Process.Signal(sig); err != nil {
				t.Fatal(err)
			}
			if !lines.Scan() || lines.Text() != "got "+name {
				t.Errorf("got %q", lines.Text())
			}
			err = cmd.Wait()
			var e *exec.ExitError
			if !errors.As(err, &e) || e.ExitCode() != 7 {
				t.Errorf("ended with %v, want exit code 7", err)
			}
		})
	}
}

// A command that a signal kills gives 128+n, and egressd outlives it in order.
func TestRunChildKilled(t *testing.T) {
	cmd := egressd("run", "-q", "--allow", "good.test", "--", "sleep", "60")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	dir := t.TempDir()
	cmd.Env = append(cmd.Env, "TMPDIR="+dir)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		if found, _ := filepath.Glob(filepath.Join(dir, "egressd-run-*", "truststore.p12")); len(found) == 1 {
			break
		}
		if time.Now().After(end) {
			t.Fatal("the command does not begin")
		}
	}
	time.Sleep(100 * time.Millisecond)
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	err := cmd.Wait()
	var e *exec.ExitError
	if !errors.As(err, &e) || e.ExitCode() != 143 {
		t.Errorf("ended with %v, want exit code 143", err)
	}
	if left, _ := filepath.Glob(filepath.Join(dir, "*")); len(left) != 0 {
		t.Errorf("left behind: %v", left)
	}
}

func TestSourceArguments(t *testing.T) {
	a := &app{environ: []string{"A=fake-a", "B=fake-b"}, stderr: &bytes.Buffer{}}
	file := filepath.Join(t.TempDir(), "f")
	if err := os.WriteFile(file, []byte("fake-f\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	s, err := a.readRunSecrets(&runFlags{policy: "p", sources: []string{"gh=env:A", "git.username=env:A", "git.password=file:" + file, "x.user_id=env:B", "x.key=env:A", "m.certificatePem=file:" + file, "m.privateKeyPem=file:" + file}})
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]specFields{
		"gh": {"token": "fake-a"}, "git": {"username": "fake-a", "password": "fake-f"}, "x": {"user_id": "fake-b", "key": "fake-a"},
		"m": {"certificatePem": "fake-f\n", "privateKeyPem": "fake-f\n"},
	}
	if d := cmp.Diff(want, s.sources); d != "" {
		t.Error(d)
	}
	kindsWanted := map[string]string{"gh": "static_headers", "git": "static_username_password", "x": "static_headers", "m": "static_tls_client_certificate"}
	for name, kind := range kindsWanted {
		if got := s.sources[name].kind(); got != kind {
			t.Errorf("%s is %s, want %s", name, got, kind)
		}
	}
	if d := cmp.Diff([]string{"A", "A", "B", "A"}, s.vars); d != "" {
		t.Error(d)
	}
}

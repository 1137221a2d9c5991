package acceptance

import (
	"bufio"
	"crypto/tls"
	"encoding/base64"
	"encoding/xml"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/egressd/egressd/internal/testbed"
)

const h2specPolicy = `
apiVersion: egressd/v1
sandboxes:
  - id: one
    team: default
    identify: {proxyTokens: ["TOKEN"]}
    network:
      egress:
        trafficRules: [{name: origin, action: allow, domains: [localhost]}]
        credentialRules: [{name: token, credentialRef: token, domains: [localhost]}]
      credentialBindings:
        - ref: token
          sourceRef: origin-token
          projection:
            type: http_headers
            httpHeaders: {headers: [{name: Authorization, valueTemplate: "Bearer {{ .token }}"}]}
`

// TestH2Spec is point 3: h2spec through interception passes at least what it passes at
// net/http's own server, and the cases about connection-specific fields.
//
// h2spec itself knows no proxy: a port on 127.0.0.1 makes CONNECT for each of its
// connections. It calls that "localhost", which egressd is told is 127.0.0.2, where an
// origin listens on the same port.
func TestH2Spec(t *testing.T) {
	bin := filepath.Join(testbed.ModuleRoot(t), ".tools", "bin", "h2spec")
	if _, err := os.Stat(bin); err != nil {
		t.Fatalf("h2spec is needed: run `make deps`, or scripts/h2spec.sh: %v", err)
	}
	ca := testbed.NewCA(t)
	front, origin := twoOfAPort(t)
	d := serve(t, settings{ca: ca, hosts: map[string]string{"localhost": "127.0.0.2"}, policy: h2specPolicy})
	d.add("origin-token", "static_headers", tokenSpec(testbed.NewToken()))
	startOrigin(t, origin, ca.Leaf(t, "localhost"))
	startFront(t, front, d.proxy)
	port := front.Addr().(*net.TCPAddr).Port

	if a := d.sandbox(true).get(fmt.Sprintf("https://localhost:%d/", port)); a.status != http.StatusOK {
		t.Fatalf("an honest request: %s", a)
	}
	base := runH2Spec(t, bin, "127.0.0.2", port)
	got := runH2Spec(t, bin, "localhost", port)
	t.Logf("net/http alone: %s", base)
	t.Logf("through egressd: %s", got)
	if base.ran < 140 || got.ran != base.ran {
		t.Errorf("%d and %d cases ran", base.ran, got.ran)
	}
	if len(got.passed) < len(base.passed) || len(got.passed) < 140 {
		t.Errorf("%d cases pass, %d at net/http alone", len(got.passed), len(base.passed))
	}
	for _, name := range base.passed {
		if !slices.Contains(got.passed, name) {
			t.Errorf("net/http alone passes, egressd does not: %s", name)
		}
	}
	nominated := 0
	for _, name := range got.passed {
		if strings.HasPrefix(name, "http2/8.1.2.2 ") {
			nominated++
		}
	}
	if nominated != 2 {
		t.Errorf("%d of the 2 cases about connection-specific fields pass", nominated)
	}
	d.sane()
}

// twoOfAPort listens on one port of 127.0.0.1 and of 127.0.0.2.
func twoOfAPort(t *testing.T) (front, origin net.Listener) {
	t.Helper()
	for range 50 {
		a, err := net.Listen("tcp4", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		b, err := net.Listen("tcp4", fmt.Sprintf("127.0.0.2:%d", a.Addr().(*net.TCPAddr).Port))
		if err == nil {
			return a, b
		}
		_ = a.Close()
	}
	t.Fatal("no port is free on both addresses")
	return nil, nil
}

// startOrigin serves with net/http and nothing else.
func startOrigin(t *testing.T, ln net.Listener, leaf tls.Certificate) {
	t.Helper()
	srv := &http.Server{
		TLSConfig: &tls.Config{Certificates: []tls.Certificate{leaf}}, ErrorLog: log.New(io.Discard, "", 0),
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			_, _ = io.Copy(io.Discard, r.Body)
			_, _ = io.WriteString(w, "hello, h2spec\n")
		}),
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = srv.ServeTLS(ln, "", "")
	}()
	t.Cleanup(func() {
		_ = srv.Close()
		<-done
	})
}

// startFront makes a CONNECT for each connection, for a client that knows no proxy.
func startFront(t *testing.T, ln net.Listener, proxy string) {
	t.Helper()
	target := fmt.Sprintf("localhost:%d", ln.Addr().(*net.TCPAddr).Port)
	var all sync.WaitGroup
	all.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			all.Go(func() {
				if err := through(c, proxy, target); err != nil {
					t.Errorf("front: %v", err)
				}
			})
		}
	})
	t.Cleanup(func() {
		_ = ln.Close()
		all.Wait()
	})
}

func through(client net.Conn, proxy, target string) error {
	defer func() { _ = client.Close() }()
	up, err := net.Dial("tcp", proxy)
	if err != nil {
		return err
	}
	defer func() { _ = up.Close() }()
	_, _ = fmt.Fprintf(up, "CONNECT %s HTTP/1.1\r\nHost: %s\r\nProxy-Authorization: Basic %s\r\n\r\n", target, target,
		base64.StdEncoding.EncodeToString([]byte("one:"+proxyToken)))
	br := bufio.NewReader(up)
	resp, err := http.ReadResponse(br, &http.Request{Method: http.MethodConnect})
	if err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK || br.Buffered() > 0 {
		return fmt.Errorf("CONNECT %s: %d", target, resp.StatusCode)
	}
	back := make(chan struct{})
	go func() {
		defer close(back)
		_, _ = io.Copy(client, up)
		_ = client.Close() // h2spec waits for the end
	}()
	_, _ = io.Copy(up, client)
	_ = up.Close()
	<-back
	return nil
}

// verdicts are what h2spec says of one server. A case is its section and its title.
type verdicts struct {
	ran            int
	passed, failed []string
}

func (v verdicts) String() string {
	return fmt.Sprintf("%d of %d pass; not %s", len(v.passed), v.ran, strings.Join(v.failed, "; "))
}

func runH2Spec(t *testing.T, bin, host string, port int) verdicts {
	t.Helper()
	report := filepath.Join(t.TempDir(), "h2spec.xml")
	cmd := exec.CommandContext(t.Context(), bin, "-t", "-k", "-h", host, "-p", strconv.Itoa(port), "-o", "5", "-j", report)
	cmd.WaitDelay = 5 * time.Second
	out, err := cmd.CombinedOutput() // it ends with 1 when a case fails
	raw, rerr := os.ReadFile(report)
	if rerr != nil {
		t.Fatalf("h2spec: %v, no report: %v\n%s", err, rerr, out)
	}
	var suites struct {
		Suites []struct {
			Cases []struct {
				Section string    `xml:"package,attr"`
				Title   string    `xml:"classname,attr"`
				Failure *struct{} `xml:"failure"`
				Error   *struct{} `xml:"error"`
				Skipped *struct{} `xml:"skipped"`
			} `xml:"testcase"`
		} `xml:"testsuite"`
	}
	if err := xml.Unmarshal(raw, &suites); err != nil {
		t.Fatal(err)
	}
	var v verdicts
	for _, s := range suites.Suites {
		for _, c := range s.Cases {
			name := c.Section + " " + c.Title
			v.ran++
			if c.Failure != nil || c.Error != nil || c.Skipped != nil {
				v.failed = append(v.failed, name)
			} else {
				v.passed = append(v.passed, name)
			}
		}
	}
	return v
}

package proxy_test

import (
	"context"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"
)

// h2cClient speaks HTTP/2 with prior knowledge in the clear, through a CONNECT tunnel.
func h2cClient(t *testing.T, g *rig, dest string) *http.Client {
	t.Helper()
	protos := new(http.Protocols)
	protos.SetUnencryptedHTTP2(true)
	tr := &http.Transport{Protocols: protos, DialContext: func(context.Context, string, string) (net.Conn, error) {
		return g.open(t, dest), nil
	}}
	t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr, Timeout: 5 * time.Second}
}

func TestH2CToAnOriginThatSpeaksIt(t *testing.T) {
	g := attacked(t, options{})
	protos := new(http.Protocols)
	protos.SetUnencryptedHTTP2(true)
	protos.SetHTTP1(true)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	got := make(chan *http.Request, 4)
	srv := &http.Server{Protocols: protos, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		got <- r
		w.Header().Set("Trailer", "X-End")
		_, _ = w.Write(append([]byte("you said "), b...))
		w.Header().Set("X-End", "yes")
	})}
	go func() { _ = srv.Serve(ln) }()
	t.Cleanup(func() { _ = srv.Close() })
	at := ln.Addr().String()
	g.use(strings.Replace(basePolicy, "trafficRules:", "trafficRules:\n          - {name: h2c, action: allow, cidrs: [127.0.0.1/32]}", 1))
	resp, err := h2cClient(t, g, at).Post("http://"+at+"/x", "text/plain", strings.NewReader("hello"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(resp.Body)
	if err != nil || string(body) != "you said hello" || resp.ProtoMajor != 2 || resp.Trailer.Get("X-End") != "" && resp.Trailer.Get("X-End") != "yes" {
		t.Errorf("%v %q %s", err, body, resp.Proto)
	}
	if r := <-got; r.ProtoMajor != 2 || r.Host != at {
		t.Errorf("the origin saw %s %s", r.Proto, r.Host)
	}
}

func TestAttack_A10_h2_in_clear_gets_no_credential(t *testing.T) {
	g := attacked(t, options{})
	g.untouched(t, func() {
		resp, err := h2cClient(t, g, "good.test:GOODPORT").Get("http://" + g.goodHost() + "/x")
		if err != nil {
			t.Fatal(err)
		}
		_ = resp.Body.Close()
		if resp.StatusCode != http.StatusForbidden || resp.Header.Get("X-Egressd-Error") != "plaintext_credential_refused" {
			t.Errorf("%d %v", resp.StatusCode, resp.Header)
		}
	})
	g.safe(t)
}

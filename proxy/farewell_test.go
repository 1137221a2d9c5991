package proxy

import (
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/egressd/egressd/policy"
)

func TestFarewells(t *testing.T) {
	ref := &refusal{status: http.StatusForbidden, code: codePolicyDenied}
	for name, tc := range map[string]struct {
		proto  policy.Protocol
		prefix string
		want   string
	}{
		"redis":    {policy.Redis, "*1\r\n", "-ERR egressd: policy_denied, request r-1\r\n"},
		"postgres": {policy.Postgres, "", "E\x00\x00\x00\x3fSFATAL\x00VFATAL\x00C28000\x00Megressd: policy_denied, request r-1\x00\x00"},
		"mqtt 3":   {policy.MQTT, "\x10\x0c\x00\x04MQTT\x04\x02\x00\x3c\x00\x00", "\x20\x02\x00\x05"},
		"mqtt 5":   {policy.MQTT, "\x10\x0d\x00\x04MQTT\x05\x02\x00\x3c\x00\x00\x00", "\x20\x03\x00\x87\x00"},
		"mqtt cut": {policy.MQTT, "\x10", "\x20\x02\x00\x05"},
		"socks5":   {policy.SOCKS5, "", "\x05\xff"},
		"tls":      {policy.TLS, "", string(alertAccessDenied[:])},
		"unknown":  {policy.Unknown, "x", ""},
	} {
		if got := string(ref.farewell(tc.proto, []byte(tc.prefix), "r-1")); got != tc.want {
			t.Errorf("%s: %q, want %q", name, got, tc.want)
		}
	}
}

// An SSH client takes it for what it is.
func TestFarewellToSSH(t *testing.T) {
	ref := &refusal{status: http.StatusForbidden, code: codePolicyDenied}
	near, far := net.Pipe()
	go func() {
		_ = far.SetDeadline(time.Now().Add(5 * time.Second))
		go func() { _, _ = far.Write(ref.farewell(policy.SSH, nil, "r-1")) }()
		for b := make([]byte, 512); ; {
			if _, err := far.Read(b); err != nil {
				return
			}
		}
	}()
	_, _, _, err := ssh.NewClientConn(near, "x:22", &ssh.ClientConfig{HostKeyCallback: ssh.FixedHostKey(nil)})
	_, _ = near.Close(), far.Close()
	if err == nil || !strings.Contains(err.Error(), "egressd: policy_denied, request r-1") {
		t.Errorf("%v", err)
	}
}

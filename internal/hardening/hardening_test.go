package hardening

import (
	"errors"
	"strings"
	"testing"
)

func TestAttack_A19_environment(t *testing.T) {
	for _, tc := range []struct {
		env []string
		say string // "" if it is accepted
	}{
		{nil, ""},
		{[]string{"PATH=/bin", "HOME=/root", "HTTPS_PROXY=http://127.0.0.3:3128", "SSL_CERT_FILE=evil.pem"}, ""}, // not followed, so not refused
		{[]string{"SSLKEYLOGFILE=/tmp/canary"}, "SSLKEYLOGFILE"},
		{[]string{"sslkeylogfile=/tmp/canary"}, "sslkeylogfile"},
		{[]string{"SSLKEYLOGFILE="}, ""},
		{[]string{"GODEBUG="}, ""},
		{[]string{"GODEBUG=gctrace=1,fips140=on, cpu.avx2=off"}, ""},
		{[]string{"GODEBUG=netdns=cgo,http2client=0"}, `"netdns"`},
		{[]string{"GODEBUG=gctrace=1,http2client=0"}, `"http2client"`},
		{[]string{"GODEBUG=gctrace=1, http2debug=2"}, `"http2debug"`}, // would log headers
		{[]string{"GODEBUG=x509negativeserial=1"}, `"x509negativeserial"`},
		{[]string{"GODEBUG=x509sha1=1"}, `"x509sha1"`},
		{[]string{"GODEBUG=tls10server=1"}, `"tls10server"`},
		{[]string{"GODEBUG=tlsrsakex=1"}, `"tlsrsakex"`},
		{[]string{"GODEBUG=httplaxcontentlength=1"}, `"httplaxcontentlength"`},
		{[]string{"GODEBUG=rsa1024min=0"}, `"rsa1024min"`},
		{[]string{"GODEBUG=default=go1.18"}, `"default"`},
		{[]string{"GODEBUG=someday=1"}, `"someday"`},
	} {
		err := CheckEnvironment(tc.env)
		if tc.say == "" {
			if err != nil {
				t.Errorf("%q: %v", tc.env, err)
			}
			continue
		}
		if !errors.Is(err, ErrEnvironment) || !strings.Contains(err.Error(), tc.say) {
			t.Errorf("%q: %v; want ErrEnvironment that names %s", tc.env, err, tc.say)
		} else if strings.Contains(err.Error(), "canary") || strings.Contains(err.Error(), "\n") {
			t.Errorf("%q: it quotes the value or is not one line: %v", tc.env, err)
		}
	}
}

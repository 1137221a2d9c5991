package redirect_test

import (
	"errors"
	"net/netip"
	"strings"
	"testing"

	"github.com/egressd/egressd/internal/redirect"
)

func TestValidate(t *testing.T) {
	good := func(change func(*redirect.Spec)) redirect.Spec {
		s := redirect.Spec{Mode: redirect.NAT, Port: 15001, Interfaces: []string{"veth0"}}
		change(&s)
		return s
	}
	source := func(p string) redirect.Spec {
		return good(func(s *redirect.Spec) { s.Sources = []netip.Prefix{netip.MustParsePrefix(p)} })
	}
	iface := func(name string) redirect.Spec {
		return good(func(s *redirect.Spec) { s.Interfaces = []string{name} })
	}
	for _, tc := range []struct {
		name string
		spec redirect.Spec
		want string // "": valid
	}{
		{"good", good(func(*redirect.Spec) {}), ""},
		{"wildcard", iface("veth*"), ""},
		{"zero", redirect.Spec{}, "no mode"},
		{"no port", good(func(s *redirect.Spec) { s.Port = 0 }), "no port"},
		{"same port as dns", good(func(s *redirect.Spec) { s.DNSPort = 15001 }), "same port"},
		{"same port as proxy", good(func(s *redirect.Spec) { s.ProxyPort = 15001 }), "same port"},
		{"dns and proxy", good(func(s *redirect.Spec) { s.DNSPort, s.ProxyPort = 53, 53 }), "same port"},
		{"nobody", good(func(s *redirect.Spec) { s.Interfaces = nil }), "whose traffic"},
		{"uid and tproxy", good(func(s *redirect.Spec) { s.Mode, s.UIDs = redirect.TProxy, []uint32{1} }), "not tproxied"},
		{"root", good(func(s *redirect.Spec) { s.UIDs = []uint32{1, 0} }), "uid 0"},
		{"main table", good(func(s *redirect.Spec) { s.Mark = 254 }), "kernel's own route tables"},
		{"empty name", iface(""), "no interface name"},
		{"all names", iface("*"), "no interface name"},
		{"loopback", iface("lo"), "no interface name"},
		{"long name", iface("sixteen-letters-"), "no interface name"},
		{"injection", iface(`x" drop; "`), "no interface name"},
		{"newline", iface("x\ny"), "no interface name"},
		{"star in between", iface("a*b"), "no interface name"},
		{"path", iface("../x"), "no interface name"},
		{"everybody", source("0.0.0.0/0"), "everybody"},
		{"everybody v6", source("::/0"), "everybody"},
		{"loopback range", source("127.0.0.0/8"), "this host alone"},
		{"in loopback", source("127.3.0.0/16"), "this host alone"},
		{"around loopback", source("64.0.0.0/2"), "this host alone"},
		{"unspecified", source("0.0.0.0/8"), "this host alone"},
		{"loopback v6", source("::1/128"), "this host alone"},
		{"mapped", source("::ffff:10.0.0.0/104"), "no address range"},
		{"invalid", good(func(s *redirect.Spec) { s.Sources = make([]netip.Prefix, 1) }), "no address range"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			err := tc.spec.Validate()
			if tc.want == "" {
				if err != nil {
					t.Error(err)
				}
				return
			}
			if !errors.Is(err, redirect.ErrSpec) || !strings.Contains(err.Error(), tc.want) || strings.Contains(err.Error(), "\n") {
				t.Errorf("got %v, want %q in one line", err, tc.want)
			}
			if text, err := tc.spec.Text(); err == nil || text != "" {
				t.Errorf("Text: %q, %v", text, err)
			}
			if err := redirect.Install(tc.spec); !errors.Is(err, redirect.ErrSpec) {
				t.Errorf("Install: %v", err)
			}
			if _, err := redirect.Status(tc.spec); !errors.Is(err, redirect.ErrSpec) {
				t.Errorf("Status: %v", err)
			}
		})
	}
}

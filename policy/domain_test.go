package policy

import (
	"net/netip"
	"regexp"
	"strings"
	"testing"
)

func TestCanonicalHost(t *testing.T) {
	long := strings.Repeat("a", 63)
	for in, want := range map[string]string{
		"good.test":                           "good.test",
		"GOOD.Test.":                          "good.test",
		"a_b.good.test":                       "a_b.good.test",
		"_dmarc.good.test":                    "_dmarc.good.test",
		"r3---sn-x.good.test":                 "r3---sn-x.good.test",
		"localhost":                           "localhost",
		"1.2.3.4":                             "1.2.3.4",
		"[::1]":                               "::1",
		"::1":                                 "::1",
		"[2001:DB8:0:0::1]":                   "2001:db8::1",
		"[::ffff:1.2.3.4]":                    "1.2.3.4",
		"::ffff:102:304":                      "1.2.3.4",
		"bücher.test":                         "xn--bcher-kva.test",
		"BÜCHER.test":                         "xn--bcher-kva.test",
		"xn--bcher-kva.test":                  "xn--bcher-kva.test",
		"xn--bcher-kva.test.":                 "xn--bcher-kva.test",
		"good。test":                           "good.test",
		"1.2.3.4.good.test":                   "1.2.3.4.good.test",
		"4.test2":                             "4.test2",
		long + "." + long + "." + long + ".x": long + "." + long + "." + long + ".x",
	} {
		got, err := CanonicalHost(in)
		if err != nil || got != want {
			t.Errorf("CanonicalHost(%q) = %q, %v; want %q", in, got, err, want)
		}
	}
	for _, in := range []string{"", ".", "..", ".good.test", "good..test", "good.test..", "-a.test", "a-.test", "a.-b",
		"good.test:443", "user@good.test", "good.test/x", "a b.test", "a\x00.test", "a.test%00.evil", "a%2etest", "[::1", "::1]", "[]",
		"[1.2.3.4]", "[good.test]", "*.good.test", "a,b.test", "xn--a.test", "xn--.test", "\xff.test", "a\tb.test", "a\n.test", "bad\u200d.test",
		long + "a.test", strings.Repeat("a.", 127) + "test", strings.Repeat("x", 100_000)} {
		if got, err := CanonicalHost(in); err == nil {
			t.Errorf("CanonicalHost(%.40q) = %q, want an error", in, got)
		}
	}
}

func TestAttack_B04_numeric_host_forms(t *testing.T) {
	for _, in := range []string{"2130706433", "0x7f.1", "0X7F.1", "017700000001", "127.1", "0177.0.0.1", "127.0.0.1.", "1.2.3", "1.2.3.4.5",
		"256.1.1.1", "01.2.3.4", "0x7f000001", "a.0x7f", "a.0x", "foo.1", "foo.1.", "１２７.0.0.1", "①.test.1", "127。0。0。1", "0", "1e3.5", "::ffff:0x7f.1", "1.2.3.4:80"} {
		if got, err := CanonicalHost(in); err == nil {
			t.Errorf("CanonicalHost(%q) = %q, want an error", in, got)
		}
	}
}

func TestAttack_B11_zone_ids(t *testing.T) {
	for _, in := range []string{"[fe80::1%25eth0]", "[fe80::1%eth0]", "fe80::1%eth0", "fe80::1%25eth0", "[::1%0]", "::ffff:1.2.3.4%1"} {
		if got, err := CanonicalHost(in); err == nil {
			t.Errorf("CanonicalHost(%q) = %q, want an error", in, got)
		}
	}
	// And one that came in by another way does not slip past a rule of addresses.
	set := compileText(t, "apiVersion: egressd/v1\nsandboxes: [{id: s, network: {mode: allow-all, egress: {trafficRules: [{name: no, action: deny, cidrs: [\"fe80::/10\", 10.0.0.0/8]}]}}}]\n")
	for _, addr := range []string{"fe80::1%eth0", "::ffff:10.0.0.1", "10.0.0.1"} {
		f := &Flow{Sandbox: set.Sandbox("s"), Host: "x.test", Port: 1, Protocol: Unknown, Addr: netip.MustParseAddr(addr)}
		if d := set.Decide(f); d.Action != Deny || d.Rule != "no" {
			t.Errorf("%s: %s", addr, d)
		}
	}
}

func TestIsSpecialName(t *testing.T) {
	for host, want := range map[string]bool{
		"vault": true, "localhost": true, "x.localhost": true, "printer.local": true, "metadata.google.internal": true, "x.home.arpa": true, "home.arpa": true, "internal": true, "": true,
		"kubernetes.default.svc": false, "good.test": false, "local.test": false, "mylocal": true, "x.mylocal": false, "127.0.0.1": false, "::1": false,
	} {
		if got := IsSpecialName(host); got != want {
			t.Errorf("IsSpecialName(%q) = %v", host, got)
		}
	}
}

func TestAttack_A11_wildcard_matching(t *testing.T) {
	for _, c := range []struct {
		pattern string
		yes, no []string
	}{
		{"*.good.test", []string{"good.test", "a.good.test", "a.b.good.test"},
			[]string{"evilgood.test", "good.test.evil.test", "xgood.test", ".good.test", "a..good.test", "test", "", "1.2.3.4"}},
		{"good.test", []string{"good.test"}, []string{"a.good.test", "evilgood.test", "good.test.", ".good.test", ""}},
		{"GOOD.test.", []string{"good.test"}, []string{"GOOD.test"}},
		{"*", []string{"good.test", "localhost"}, []string{"", "1.2.3.4", "::1"}},
		{"*.bücher.test", []string{"a.xn--bcher-kva.test"}, []string{"bücher.test"}},
	} {
		p, err := ParseDomainPattern(c.pattern)
		if err != nil {
			t.Fatal(err)
		}
		for _, h := range c.yes {
			if !p.Match(h) {
				t.Errorf("%s does not match %q", c.pattern, h)
			}
		}
		for _, h := range c.no {
			if p.Match(h) {
				t.Errorf("%s matches %q", c.pattern, h)
			}
		}
	}
	if (DomainPattern{}).Match("good.test") {
		t.Error("the zero pattern matches")
	}
	for _, bad := range []string{"g?od.test", "*good.test", "*.*.test", "a.*", "**", "*.", "", "*.1.2.3.4", "10.0.0.0/8", "good.test/x"} {
		if p, err := ParseDomainPattern(bad); err == nil {
			t.Errorf("ParseDomainPattern(%q) = %v", bad, p)
		}
	}
	// Hosts that are not canonical find nothing in the index either.
	set := compileText(t, "apiVersion: egressd/v1\nsandboxes: [{id: s, network: {egress: {trafficRules: [{action: allow, domains: [\"*.good.test\"]}]}}}]\n")
	for host, want := range map[string]Action{"a.good.test": Pass, "": Deny, ".good.test": Deny, "a..good.test": Deny, "evilgood.test": Deny} {
		if d := set.Decide(&Flow{Sandbox: set.Sandbox("s"), Host: host, Port: 1, Protocol: SSH}); d.Action != want {
			t.Errorf("%q: %s", host, d)
		}
	}
}

var ldhName = regexp.MustCompile(`^([a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?\.)*[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?$`)

func FuzzCanonicalHost(f *testing.F) {
	for _, s := range []string{"good.test", "GOOD.test.", "[::1]", "bücher.test", "xn--bcher-kva.test", "1.2.3.4", "0x7f.1", "a..b", "１２７.0.0.1", "[fe80::1%25e]", "a%00b", "xn--ls8h.test"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, in string) {
		got, err := CanonicalHost(in)
		if err != nil {
			if got != "" {
				t.Fatalf("%q and an error", got)
			}
			return
		}
		if again, err := CanonicalHost(got); err != nil || again != got {
			t.Fatalf("%q → %q → %q, %v", in, got, again, err)
		}
		addr, aerr := netip.ParseAddr(got)
		if isAddress(got) != (aerr == nil) {
			t.Fatalf("%q: isAddress and netip disagree", got)
		}
		if aerr == nil {
			if addr.Is4In6() || addr.Zone() != "" || addr.String() != got {
				t.Fatalf("%q → %q", in, got)
			}
			return
		}
		last := got[strings.LastIndexByte(got, '.')+1:]
		if len(got) > 253 || !ldhName.MatchString(got) || strings.HasPrefix(last, "0x") || strings.Trim(last, "0123456789") == "" {
			t.Fatalf("%q → %q", in, got)
		}
		if p, err := ParseDomainPattern(got); err != nil || !p.Match(got) {
			t.Fatalf("%q is no pattern for itself: %v", got, err)
		}
	})
}

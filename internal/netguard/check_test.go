package netguard

import (
	"errors"
	"net/netip"
	"strings"
	"testing"
)

func TestCheck(t *testing.T) {
	for _, tc := range []struct {
		name  string
		addrs string
		why   string // "" means that they may be dialled
	}{
		{"public", "1.1.1.1 8.8.8.8 93.184.216.34 223.255.255.255 100.63.255.255 100.128.0.0 172.15.0.1 172.32.0.1 192.0.1.1 198.17.0.1 198.20.0.1 11.0.0.1 126.255.255.255 169.253.0.1", ""},
		{"public IPv6", "2606:4700::1111 2a00:1450:4001::1 2400::1 3ffe::1 2001:4860:4860::8888 2001:200::1", ""},
		{"public behind NAT64, 6to4", "64:ff9b::8.8.8.8 2002:808:808::1", ""},
		{"mapped public", "::ffff:8.8.8.8", ""},
		{"B01 B02 metadata", "169.254.169.254 169.254.170.2 169.254.170.23 100.100.100.200 192.0.0.192 168.63.129.16 fd00:ec2::254 fd20:ce::254 fd00:ec2::23 fe80::a9fe:a9fe fd00:42::42", "metadata"},
		{"B01 metadata mapped", "::ffff:169.254.169.254", "metadata"},
		{"B01 metadata in NAT64, 6to4, Teredo, ISATAP", "64:ff9b::169.254.169.254 2002:a9fe:a9fe::1 2001:0:a9fe:a9fe:: 2001:0:808:808:0:0:5601:5601 2606:4700::5efe:169.254.169.254 2606:4700::200:5efe:169.254.169.254", "metadata"},
		{"loopback", "127.0.0.1 127.255.255.254 ::1 ::ffff:127.0.0.1", "loopback"},
		{"unspecified", "0.0.0.0 0.1.2.3 :: ::ffff:0.0.0.0", "unspecified"},
		{"private", "10.0.0.1 172.16.0.1 172.31.255.255 192.168.1.1 ::ffff:10.0.0.1", "private"},
		{"private in IPv6", "64:ff9b::10.0.0.1 2002:c0a8:101::", "private in IPv6"},
		{"loopback in IPv6", "64:ff9b::127.0.0.1 2002:7f00:1::1", "loopback in IPv6"},
		{"B02 link-local", "169.254.1.1 fe80::1 febf::1", "link-local"},
		{"B02 carriers", "100.64.0.1 100.127.255.255", "100.64.0.0/10"},
		{"B02 unique local", "fc00::1 fdff::1", "unique local"},
		{"B02 protocols", "192.0.0.1 192.0.0.255", "192.0.0.0/24"},
		{"protocols IPv6", "2001::1 2001:1::1 2001:20::1 2001:1ff::1", "2001::/23"},
		{"benchmarks", "198.18.0.1 198.19.255.255", "benchmarks"},
		{"documentation", "192.0.2.1 198.51.100.1 203.0.113.1 2001:db8::1 3fff:fff::1", "documentation"},
		{"6to4 relay", "192.88.99.1", "relay"},
		{"multicast", "224.0.0.1 239.255.255.255 ff02::1", "multicast"},
		{"broadcast", "255.255.255.255 240.0.0.1", "broadcast"},
		{"outside 2000::/3", "::8.8.8.8 100::1 4000::1 64:ff9b:1::8.8.8.8 fec0::1 5f00::1 ::ffff:0:8.8.8.8", "2000::/3"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			g := guard(t, Options{})
			for s := range strings.FieldsSeq(tc.addrs) {
				err := g.Check(netip.AddrPortFrom(netip.MustParseAddr(s), 443))
				switch {
				case tc.why == "" && err != nil:
					t.Errorf("%s: %v", s, err)
				case tc.why != "" && (!errors.Is(err, ErrForbiddenAddress) || !strings.Contains(err.Error(), tc.why)):
					t.Errorf("%s: %v; want ErrForbiddenAddress that says %q", s, err, tc.why)
				}
			}
		})
	}
}

func TestCheck_not_an_address(t *testing.T) {
	g := guard(t, Options{AllowCIDRs: prefixes("::/0", "0.0.0.0/0")})
	for name, ap := range map[string]netip.AddrPort{
		"zero":                {},
		"B12 port 0":          netip.MustParseAddrPort("8.8.8.8:0"),
		"B11 zone":            netip.MustParseAddrPort("[fe80::1%eth0]:443"),
		"B11 zone on public":  netip.MustParseAddrPort("[2606:4700::1%1]:443"),
		"invalid with a port": netip.AddrPortFrom(netip.Addr{}, 443),
	} {
		if err := g.Check(ap); !errors.Is(err, ErrForbiddenAddress) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestAllowCIDRs(t *testing.T) {
	for _, tc := range []struct {
		name, allow, addr string
		ok                bool
	}{
		{"loopback", "127.0.0.0/8", "127.0.0.3", true},
		{"loopback, mapped", "127.0.0.0/8", "::ffff:127.0.0.3", true},
		{"other range", "10.0.0.0/8", "192.168.0.1", false},
		{"private behind NAT64", "10.0.0.0/8", "64:ff9b::10.0.0.1", true},
		{"unique local", "fd12::/16", "fd12::1", true},
		{"B01 a range does not open metadata", "169.254.0.0/16", "169.254.169.254", false},
		{"B01 everything does not open metadata", "0.0.0.0/0", "169.254.169.254", false},
		{"B01 everything does not open metadata", "0.0.0.0/0", "168.63.129.16", false},
		{"B01 a range opens the rest of it", "169.254.0.0/16", "169.254.1.1", true},
		{"B01 exactly that address", "169.254.169.254/32", "169.254.169.254", true},
		{"B01 exactly that address, disguised", "169.254.169.254/32", "64:ff9b::169.254.169.254", false},
		{"B01 another single address", "169.254.169.253/32", "169.254.169.254", false},
		{"B02 IPv6 range", "fd00::/8", "fd00:ec2::254", false},
		{"B02 IPv6 exactly", "fd00:ec2::254/128", "fd00:ec2::254", true},
		{"B02 all of IPv6, metadata in NAT64", "::/0", "64:ff9b::169.254.169.254", false},
		{"B02 all of IPv6, metadata in Teredo", "::/0", "2001:0:808:808:0:0:5601:5601", false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			g := guard(t, Options{AllowCIDRs: prefixes(tc.allow)})
			err := g.Check(netip.AddrPortFrom(netip.MustParseAddr(tc.addr), 80))
			if tc.ok != (err == nil) {
				t.Errorf("%s with %s allowed: %v", tc.addr, tc.allow, err)
			}
		})
	}
}

func TestAttack_B06_own_listeners(t *testing.T) {
	own := []netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:3128"), netip.MustParseAddrPort("[::]:9464"), netip.MustParseAddrPort("203.0.113.9:9443")}
	g := guard(t, Options{AllowCIDRs: prefixes("0.0.0.0/0", "::/0", "127.0.0.1/32"), Own: func() []netip.AddrPort { return own }})
	for _, s := range []string{
		"127.0.0.1:3128", "127.9.9.9:3128", "0.0.0.0:3128", "[::1]:3128", "[::]:3128", "[::ffff:127.0.0.1]:3128", "[64:ff9b::7f00:1]:3128", "[2002:7f00:1::1]:3128",
		"127.0.0.1:9464", "127.0.0.1:9443", "203.0.113.9:9443",
	} {
		if err := g.Check(netip.MustParseAddrPort(s)); !errors.Is(err, ErrForbiddenAddress) || !strings.Contains(err.Error(), "egressd itself") {
			t.Errorf("%s: %v", s, err)
		}
	}
	local, err := interfaceAddrs()
	if err != nil || len(local) == 0 {
		t.Fatalf("interfaces: %v, %v", local, err)
	}
	for _, a := range local { // LAN, veth and loopback addresses of this machine
		if err := g.Check(netip.AddrPortFrom(a, 9464)); !errors.Is(err, ErrForbiddenAddress) {
			t.Errorf("%s: %v", a, err)
		}
	}
	for _, s := range []string{"127.0.0.1:3129", "10.0.0.1:3128", "203.0.113.8:9443"} {
		if err := g.Check(netip.MustParseAddrPort(s)); err != nil {
			t.Errorf("%s is not ours, but: %v", s, err)
		}
	}
	own = append(own, netip.MustParseAddrPort("127.0.0.1:3129"))
	if err := g.Check(netip.MustParseAddrPort("127.0.0.1:3129")); err == nil {
		t.Error("a listener that was added later may be dialled")
	}
}

func TestNew_refusals(t *testing.T) {
	for name, o := range map[string]Options{
		"host name":       {Hosts: map[string]netip.Addr{"a b": netip.MustParseAddr("10.0.0.1")}},
		"host address":    {Hosts: map[string]netip.Addr{"a.test": {}}},
		"prefix not low":  {AllowCIDRs: []netip.Prefix{netip.MustParsePrefix("10.0.0.1/8")}},
		"prefix mapped":   {AllowCIDRs: []netip.Prefix{netip.MustParsePrefix("::ffff:10.0.0.0/104")}},
		"prefix zero":     {AllowCIDRs: []netip.Prefix{{}}},
		"resolver a name": {Resolvers: []string{"dns.test:53"}},
		"resolver bare":   {Resolvers: []string{"192.0.2.53"}},
		"resolver port 0": {Resolvers: []string{"192.0.2.53:0"}},
	} {
		if _, err := New(o); err == nil || !strings.HasPrefix(err.Error(), "upstream.") {
			t.Errorf("%s: %v; want an error that names the key", name, err)
		}
	}
}

func BenchmarkCheck(b *testing.B) {
	g := guard(b, Options{AllowCIDRs: prefixes("127.0.0.0/8"), Own: func() []netip.AddrPort { return nil }})
	ap := netip.MustParseAddrPort("8.8.8.8:443")
	b.ReportAllocs()
	for b.Loop() {
		if err := g.Check(ap); err != nil {
			b.Fatal(err)
		}
	}
}

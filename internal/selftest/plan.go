package selftest

import (
	"context"
	"net"
	"net/netip"
	"strconv"
	"strings"
)

// Ports of the ways out.
const (
	portHTTP = 80
	portTLS  = 443
	portDNS  = 53
	portDoT  = 853
	portNTP  = 123
)

// aim is one family's addresses.
type aim struct {
	family                            string // "4" or "6"
	direct, http, dns, dot, doh, quic netip.AddrPort
	udp                               netip.AddrPort
	ping                              netip.Addr
	tlsName, dotName, dohName         string
	metadata                          []netip.AddrPort
	echo                              bool // targets are the operator's and send back what they get
}

// at aims all at one machine of the operator.
func at(family string, target netip.AddrPort, metadata []netip.AddrPort) aim {
	on := func(port uint16) netip.AddrPort { return netip.AddrPortFrom(target.Addr(), port) }
	return aim{
		family: family, direct: target, http: on(portHTTP), dns: on(portDNS), dot: on(portDoT), doh: on(portTLS), quic: on(portTLS), udp: target,
		ping: target.Addr(), metadata: metadata, echo: true,
		tlsName: target.Addr().String(), dotName: target.Addr().String(), dohName: target.Addr().String(),
	}
}

// public4 and public6 are resolvers and servers that the world uses for tests like this.
func public4() aim {
	return aim{
		family: "4", direct: addr("1.1.1.1", portTLS), http: addr("1.1.1.1", portHTTP), dns: addr("8.8.8.8", portDNS), dot: addr("8.8.8.8", portDoT),
		doh: addr("8.8.8.8", portTLS), quic: addr("1.1.1.1", portTLS), udp: addr("162.159.200.1", portNTP), ping: netip.MustParseAddr("1.1.1.1"),
		tlsName: "one.one.one.one", dotName: "dns.google", dohName: "dns.google", metadata: metadata4(),
	}
}

func public6() aim {
	return aim{
		family: "6", direct: addr("2606:4700:4700::1111", portTLS), http: addr("2606:4700:4700::1111", portHTTP), dns: addr("2001:4860:4860::8888", portDNS),
		dot: addr("2001:4860:4860::8888", portDoT), doh: addr("2001:4860:4860::8888", portTLS), quic: addr("2606:4700:4700::1111", portTLS),
		udp: addr("2606:4700:f1::1", portNTP), ping: netip.MustParseAddr("2606:4700:4700::1111"),
		tlsName: "one.one.one.one", dotName: "dns.google", dohName: "dns.google", metadata: metadata6(),
	}
}

// metadata4 are the places where clouds hand out credentials.
func metadata4() []netip.AddrPort {
	return []netip.AddrPort{
		addr("169.254.169.254", portHTTP), // most of them
		addr("169.254.170.2", portHTTP),   // ECS
		addr("169.254.170.23", portHTTP),  // EKS
		addr("168.63.129.16", portHTTP),   // Azure
		addr("100.100.100.200", portHTTP), // Alibaba
		addr("192.0.0.192", portHTTP),     // Oracle
	}
}

func metadata6() []netip.AddrPort {
	return []netip.AddrPort{addr("fd00:ec2::254", portHTTP), addr("fd00:ec2::23", portHTTP), addr("fd20:ce::254", portHTTP)}
}

func addr(ip string, port uint16) netip.AddrPort {
	return netip.AddrPortFrom(netip.MustParseAddr(ip), port)
}

// plan lists the probes.
func (o Options) plan() []probe {
	own := o.Target4.IsValid() || o.Target6.IsValid()
	dnsName := o.DNSName
	if dnsName == "" {
		dnsName = nonce() + ".example.com"
	}
	var out []probe
	for _, f := range []struct {
		target   netip.AddrPort
		family   string
		public   func() aim
		metadata func() []netip.AddrPort
	}{{o.Target4, "4", public4, metadata4}, {o.Target6, "6", public6, metadata6}} {
		switch {
		case f.target.IsValid():
			out = append(out, at(f.family, f.target, f.metadata()).probes(dnsName)...)
		case own:
			out = append(out, skipped("ipv"+f.family, "no target of this family was given: --target"+f.family))
		default:
			out = append(out, f.public().probes(dnsName)...)
		}
	}
	out = append(out, o.byName(own)...)
	out = append(out, o.peers()...)
	out = append(out, o.own()...)
	return append(out, unixProbes()...)
}

func skipped(name, why string) probe {
	return probe{name, "", func(context.Context) (Verdict, string) { return Skipped, why }}
}

// probes are those of one family.
func (a aim) probes(dnsName string) []probe {
	tcp := func(name string, to netip.AddrPort, try func(ctx context.Context, network, to string) (Verdict, string)) probe {
		return probe{name + "-v" + a.family, to.String() + "/tcp", func(ctx context.Context) (Verdict, string) { return try(ctx, "tcp", to.String()) }}
	}
	udp := func(name string, to netip.AddrPort, payload []byte) probe {
		return probe{name + "-v" + a.family, to.String() + "/udp", func(ctx context.Context) (Verdict, string) { return tryDatagram(ctx, to.String(), payload) }}
	}
	tls := func(serverName string) func(context.Context, string, string) (Verdict, string) {
		return func(ctx context.Context, network, to string) (Verdict, string) {
			return tryTLS(ctx, network, to, serverName)
		}
	}
	direct := tls(a.tlsName)
	if a.echo {
		direct = tryText
	}
	out := []probe{
		tcp("tcp-direct", a.direct, direct),
		tcp("http-direct", a.http, tryHTTP),
		tcp("dns-tcp", a.dns, func(ctx context.Context, network, to string) (Verdict, string) {
			return tryDNS(ctx, network, to, dnsName)
		}),
		{"dns-udp-v" + a.family, a.dns.String() + "/udp", func(ctx context.Context) (Verdict, string) { return tryDNS(ctx, "udp", a.dns.String(), dnsName) }},
		tcp("dot", a.dot, tls(a.dotName)),
		tcp("doh", a.doh, tls(a.dohName)),
		udp("quic", a.quic, quicHello()),
		udp("udp-other", a.udp, ntpHello()),
		{"icmp-v" + a.family, a.ping.String() + "/icmp", func(ctx context.Context) (Verdict, string) { return tryPing(ctx, a.ping) }},
	}
	for _, r := range rawProbes() {
		out = append(out, probe{r.name + "-v" + a.family, a.ping.String() + "/" + r.name, func(ctx context.Context) (Verdict, string) { return tryRaw(ctx, a.ping, r.proto) }})
	}
	for _, m := range a.metadata {
		out = append(out, probe{"metadata-v" + a.family, m.String() + "/tcp", func(ctx context.Context) (Verdict, string) { return tryHTTP(ctx, "tcp", m.String()) }})
	}
	return out
}

// byName is the way of most programs: ask for an address, then connect.
func (o Options) byName(own bool) []probe {
	name := o.Name
	switch {
	case name == "" && own:
		return []probe{skipped("by-name", "no name was given: --name")}
	case name == "":
		name = net.JoinHostPort("one.one.one.one", strconv.Itoa(portTLS))
	}
	return []probe{
		{"by-name", name, func(ctx context.Context) (Verdict, string) { return tryName(ctx, name) }},
	}
}

// peerPorts are tried where the operator names none.
func peerPorts() []string { return []string{"22", "80", "443"} }

func (o Options) peers() []probe {
	if len(o.Peers) == 0 {
		return []probe{skipped("peer", "no other sandbox was named: --peer")}
	}
	var out []probe
	for _, p := range o.Peers {
		host, port, err := net.SplitHostPort(p)
		ports := []string{port}
		if err != nil {
			host, ports = strings.Trim(p, "[]"), peerPorts()
		}
		for _, port := range ports {
			to := net.JoinHostPort(host, port)
			out = append(out, probe{"peer", to + "/tcp", func(ctx context.Context) (Verdict, string) { return tryHTTP(ctx, "tcp", to) }})
		}
		if ip, err := netip.ParseAddr(host); err == nil {
			out = append(out, probe{"peer", host + "/icmp", func(ctx context.Context) (Verdict, string) { return tryPing(ctx, ip) }})
		}
	}
	return out
}

// own are egressd's listeners that are none of a sandbox's business.
func (o Options) own() []probe {
	if len(o.Own) == 0 {
		return []probe{skipped("own-listener", "no listener was named: --api, --own")}
	}
	var out []probe
	for _, l := range o.Own {
		l = strings.TrimPrefix(l, "unix:")
		if strings.HasPrefix(l, "/") || strings.HasPrefix(l, "@") {
			out = append(out, probe{"own-listener", l, func(ctx context.Context) (Verdict, string) { return trySocket(ctx, l) }})
			continue
		}
		out = append(out, probe{"own-listener", l + "/tcp", func(ctx context.Context) (Verdict, string) { return tryHTTP(ctx, "tcp", l) }})
	}
	return out
}

// unixProbes are programs outside that do things for whoever asks.
func unixProbes() []probe {
	var out []probe
	for _, path := range []string{
		"/run/docker.sock", "/var/run/docker.sock", "/run/podman/podman.sock", "/run/containerd/containerd.sock", "/run/crio/crio.sock",
		"/run/dbus/system_bus_socket", "/run/systemd/private", "/run/systemd/resolve/io.systemd.Resolve", "/run/nscd/socket", "/run/snapd.socket",
	} {
		out = append(out, probe{"unix-socket", path, func(ctx context.Context) (Verdict, string) { return trySocket(ctx, path) }})
	}
	return append(out, probe{"vsock", "the host of a virtual machine", tryVsock})
}

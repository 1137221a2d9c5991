package proxy

import (
	"net"
	"net/netip"
	"strconv"
	"strings"

	"github.com/egressd/egressd/policy"
)

// dest is the one canonical destination of a connection.
type dest struct {
	host string     // policy.CanonicalHost form
	port uint16     // never 0
	ip   netip.Addr // valid when host is an address
	full string     // host:port, brackets around IPv6
}

// parseDest canonicalises host:port as it stands in a CONNECT line, an absolute URI
// or a Host header. defaultPort 0 means that the port must be given.
func parseDest(hostport string, defaultPort uint16) (dest, bool) {
	host, port, ok := splitHostPort(hostport, defaultPort)
	if !ok {
		return dest{}, false
	}
	c, err := policy.CanonicalHost(host)
	if err != nil {
		return dest{}, false
	}
	d := dest{host: c, port: port}
	if ip, err := netip.ParseAddr(c); err == nil {
		d.ip = ip
	}
	if d.full = hostport; port == 0 || !d.isFull(hostport) {
		d.full = net.JoinHostPort(c, strconv.Itoa(int(port)))
	}
	return d, true
}

func splitHostPort(s string, defaultPort uint16) (host string, port uint16, ok bool) {
	colon := strings.LastIndexByte(s, ':')
	if strings.HasPrefix(s, "[") {
		end := strings.IndexByte(s, ']')
		if end < 0 || (end+1 < len(s) && s[end+1] != ':') {
			return "", 0, false
		}
		host = s[1:end]
		if !strings.Contains(host, ":") {
			return "", 0, false
		}
		if end+1 == len(s) {
			return host, defaultPort, defaultPort != 0
		}
		colon = end + 1
	} else if colon < 0 {
		return s, defaultPort, s != "" && defaultPort != 0
	} else {
		host = s[:colon]
		if host == "" || strings.Contains(host, ":") {
			return "", 0, false
		}
	}
	p := s[colon+1:]
	if len(p) == 0 || len(p) > 5 || p[0] < '0' || p[0] > '9' {
		return "", 0, false
	}
	n, err := strconv.ParseUint(p, 10, 16)
	if err != nil || n == 0 {
		return "", 0, false
	}
	return host, uint16(n), true
}

// isFull says whether s is the canonical host:port already, so that it need not be
// put together again.
func (d dest) isFull(s string) bool {
	rest, ok := strings.CutPrefix(s, d.host)
	return ok && !d.ip.Is6() && len(rest) > 1 && rest[0] == ':' && rest[1] != '0'
}

func (d dest) String() string { return d.full }

// authority is what goes into Host and :authority upstream: the port only when it
// is not the scheme's own.
func (d dest) authority(tls bool) string {
	if d.port == schemePort(tls) {
		if d.ip.Is6() {
			return "[" + d.host + "]"
		}
		return d.host
	}
	return d.full
}

func schemePort(tls bool) uint16 {
	if tls {
		return 443
	}
	return 80
}

// matches says whether a claim (Host, :authority) names d. The comparison is of
// canonical forms; the fast path is byte equality.
func (d dest) matches(claim, authority string, tls bool) bool {
	if claim == authority {
		return true
	}
	c, ok := parseDest(claim, schemePort(tls))
	return ok && c.host == d.host && c.port == d.port
}

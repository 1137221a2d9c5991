package api

import (
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
)

// ownNames splits configured hosts into names and addresses, and adds the fixed names.
func ownNames(hosts []string) (map[string]bool, map[netip.Addr]bool) {
	names, addrs := map[string]bool{"localhost": true, "egressd": true}, map[netip.Addr]bool{}
	for _, h := range hosts {
		if a, err := netip.ParseAddr(strings.Trim(h, "[]")); err == nil {
			addrs[a.Unmap()] = true
			continue
		}
		if h = foldHost(h); h != "" {
			names[h] = true
		}
	}
	return names, addrs
}

func foldHost(h string) string { return strings.TrimSuffix(strings.ToLower(h), ".") }

// hostOf is the host of a Host header without its port, folded; "" when it is none.
func hostOf(hostport string) string {
	host := hostport
	if h, _, err := net.SplitHostPort(hostport); err == nil {
		host = h
	} else if strings.HasPrefix(hostport, "[") && strings.HasSuffix(hostport, "]") {
		host = hostport[1 : len(hostport)-1]
	}
	return foldHost(host)
}

// isOwn says whether host names this server: a fixed or configured name, a loopback address,
// or the address that the connection came in on. A page that had its name rebound to us
// carries its own name here and is refused.
func (s *Server) isOwn(r *http.Request, host string) bool {
	if host == "" {
		return false
	}
	if s.hosts[host] {
		return true
	}
	a, err := netip.ParseAddr(host)
	if err != nil || a.Zone() != "" {
		return false
	}
	a = a.Unmap()
	if a.IsLoopback() || s.addrs[a] {
		return true
	}
	local, _ := r.Context().Value(http.LocalAddrContextKey).(net.Addr)
	if local == nil {
		return false
	}
	ap, err := netip.ParseAddrPort(local.String())
	return err == nil && ap.Addr().Unmap().WithZone("") == a
}

// checkHost refuses requests that were meant for another name.
func (s *Server) checkHost(r *http.Request) *failure {
	if s.isOwn(r, hostOf(r.Host)) {
		return nil
	}
	return fail(http.StatusMisdirectedRequest, CodeBadRequest, ReasonMisdirectedHost,
		"this server does not answer to that Host; use localhost, egressd, its address, or a configured name")
}

// checkOrigin refuses what a browser sends for a page of somebody else, reads included.
func (s *Server) checkOrigin(r *http.Request) *failure {
	foreign := fail(http.StatusForbidden, CodeForbidden, ReasonCrossOrigin, "requests from other origins are refused")
	for _, site := range r.Header.Values("Sec-Fetch-Site") {
		if site != "same-origin" && site != "none" {
			return foreign
		}
	}
	for _, origin := range r.Header.Values("Origin") {
		u, err := url.Parse(origin)
		if err != nil || u.Host == "" || u.User != nil || !strings.EqualFold(u.Host, r.Host) {
			return foreign
		}
		if want := "http"; u.Scheme != want && u.Scheme != want+"s" {
			return foreign
		}
	}
	return nil
}

// secure sets the headers that every answer bears.
func secure(h http.Header) {
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Cache-Control", "no-store")
	h.Set("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'")
	h.Set("Referrer-Policy", "no-referrer")
	h.Set("Cross-Origin-Resource-Policy", "same-origin")
}

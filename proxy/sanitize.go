package proxy

import (
	"net/http"
	"slices"
	"strings"

	"github.com/egressd/egressd/inject"
)

// hopByHop are never forwarded in either direction (RFC 9110 section 7.6.1, and
// what clients send to proxies). Upgrade is put back for a WebSocket handshake.
func hopByHop(name string) bool {
	switch name {
	case "Connection", "Proxy-Connection", "Keep-Alive", "Te", "Trailer", "Transfer-Encoding", "Upgrade",
		"Proxy-Authenticate", "Proxy-Authorization", "Proxy-Authentication-Info", "Http2-Settings":
		return true
	}
	return false
}

// pathClaim is what a sandbox may send to make an origin believe something about
// where a request came from; egressd speaks for itself.
func pathClaim(name string) bool {
	switch name {
	case "Via", "Forwarded", "X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Proto", "X-Forwarded-Port",
		"X-Forwarded-Server", "X-Real-Ip", "Cdn-Loop", "Alt-Used":
		return true
	}
	return false
}

// remove deletes the fields of h whose names are to be dropped. Heads have few fields:
// to ask for each costs less than to delete each name that is dropped.
func remove(h http.Header, dropped func(name string) bool) {
	for k := range h {
		if dropped(k) {
			delete(h, k)
		}
	}
}

// overridesMethod are fields by which some origins take a request for one of another method.
func overridesMethod(name string) bool {
	switch dashed(name) {
	case "X-Http-Method-Override", "X-Http-Method", "X-Method-Override":
		return true
	}
	return false
}

// dashed is a name as CGI and WSGI servers read it, to which "_" is "-" (RFC 3875
// section 4.1.18).
func dashed(name string) string {
	if strings.IndexByte(name, '_') < 0 {
		return name
	}
	return http.CanonicalHeaderKey(strings.ReplaceAll(name, "_", "-"))
}

// cleanRequest removes from h what must not reach an origin; upgrade is what
// dropNominated said. It returns whether the request asks for a WebSocket and whether it
// said "TE: trailers".
func cleanRequest(h http.Header, upgrade bool) (websocket, teTrailers bool) {
	websocket = upgrade && len(h["Upgrade"]) == 1 && strings.EqualFold(h["Upgrade"][0], "websocket")
	for _, v := range h["Te"] {
		if headerHasToken(v, "trailers") {
			teTrailers = true
		}
	}
	remove(h, func(k string) bool {
		k = dashed(k)
		return hopByHop(k) || pathClaim(k)
	})
	return websocket, teTrailers
}

// dropNominated deletes the headers that Connection names and says whether "upgrade" is
// among the options. It goes before anything is projected, so that no nomination can
// remove what is projected.
func dropNominated(h http.Header) (upgrade bool) {
	for _, v := range h["Connection"] {
		for opt := range strings.SplitSeq(v, ",") {
			opt = strings.TrimSpace(opt)
			switch {
			case opt == "":
			case strings.EqualFold(opt, "upgrade"):
				upgrade = true // the header itself is hop by hop
			case strings.EqualFold(opt, "close"), strings.EqualFold(opt, "keep-alive"):
			default:
				delete(h, http.CanonicalHeaderKey(opt))
			}
		}
	}
	return upgrade
}

func headerHasToken(v, token string) bool {
	for t := range strings.SplitSeq(v, ",") {
		t, _, _ = strings.Cut(t, ";")
		if strings.EqualFold(strings.TrimSpace(t), token) {
			return true
		}
	}
	return false
}

// cleanResponse removes what must not reach the sandbox. It reports false when the
// head itself is one that no client must see (several Content-Length values: an h2
// origin can send them and net/http passes them on).
func cleanResponse(h http.Header, credentialed, keepClientAuth bool) bool {
	dropNominated(h)
	remove(h, hopByHop)
	delete(h, "Alt-Svc") // would steer the client to QUIC, past egressd
	if len(h["Content-Length"]) > 1 {
		return false
	}
	if !credentialed {
		return true
	}
	if _, ok := h["Cache-Control"]; !ok {
		h["Cache-Control"] = []string{"private"}
	}
	delete(h, "Authentication-Info")
	if keepClientAuth {
		return true
	}
	delete(h, "Set-Cookie") // a session that equals the credential
	if vs, ok := h["Www-Authenticate"]; ok {
		h["Www-Authenticate"] = schemesOnly(vs)
	}
	return true
}

// schemesOnly keeps the scheme of each challenge: its parameters can steer a client
// to a token endpoint of the origin's choice.
func schemesOnly(vs []string) []string {
	out := make([]string, 0, len(vs))
	for _, v := range vs {
		scheme, _, _ := strings.Cut(strings.TrimSpace(v), " ")
		if scheme != "" {
			out = append(out, scheme)
		}
	}
	return out
}

// neverTrailer are fields that frame, route or authenticate and therefore do not
// belong behind a body (RFC 9110 section 6.5.1): there they would pass the checks of a head.
func neverTrailer(name string) bool {
	switch name {
	case "Alt-Svc", "Authentication-Info", "Cache-Control", "Clear-Site-Data", "Content-Encoding", "Content-Length",
		"Content-Range", "Content-Type", "Host", "Location", "Refresh", "Set-Cookie", "Www-Authenticate":
		return true
	}
	return false
}

// cleanRequestTrailer removes from a request's trailers what its head was cleaned of: what
// authenticates the client, and what cred has set.
func cleanRequestTrailer(h http.Header, cred *inject.Projection, strip bool) {
	if strip {
		inject.StripClientAuth(h)
	}
	if cred == nil {
		return
	}
	remove(h, func(k string) bool {
		return slices.ContainsFunc(cred.Headers, func(s inject.Header) bool { return strings.EqualFold(dashed(k), dashed(s.Name)) })
	})
}

// cleanTrailer removes from an answer's trailers what must not reach the sandbox there.
func cleanTrailer(h http.Header) {
	remove(h, func(k string) bool { return hopByHop(k) || neverTrailer(k) })
}

package h1

import (
	"net/http"
	"net/netip"
	"net/url"
	"strings"
)

// requestLine is the first line, taken apart but not yet interpreted.
type requestLine struct {
	method, target string
	minor          int
}

func parseRequestLine(line string) (requestLine, error) {
	var l requestLine
	method, rest, ok := strings.Cut(line, " ")
	target, proto, ok2 := strings.Cut(rest, " ")
	if !ok || !ok2 || method == "" || target == "" {
		return l, bad("bad_request_line")
	}
	if !all(method, isToken) {
		return l, bad("bad_method")
	}
	switch proto {
	case "HTTP/1.1":
		l.minor = 1
	case "HTTP/1.0":
	default:
		if len(proto) != len("HTTP/x.y") || !strings.HasPrefix(proto, "HTTP/") || !digit(proto[5]) || proto[6] != '.' || !digit(proto[7]) {
			return l, bad("bad_request_line")
		}
		return l, &ProtocolError{Status: 505, Reason: "unsupported_version"}
	}
	if !all(target, isTarget) {
		return l, bad("bad_target")
	}
	l.method, l.target = method, target
	return l, nil
}

func digit(c byte) bool { return c >= '0' && c <= '9' }

// parseRequest interprets a whole head (lines lines in all) into req; see parseFields
// for room.
func (s *Server) parseRequest(req *http.Request, head string, lines int, room []string) (framing, error) {
	end := strings.Index(head, "\r\n")
	line, err := parseRequestLine(head[:end])
	if err != nil {
		return framing{}, err
	}
	req.Header, err = parseFields(head[end+2:], lines-1, req.Header, room)
	if err != nil {
		return framing{}, err
	}
	req.Method, req.RequestURI = line.method, line.target
	req.ProtoMajor, req.ProtoMinor = 1, line.minor
	req.Proto = [...]string{"HTTP/1.0", "HTTP/1.1"}[line.minor]
	if err := s.checkMethod(line.method); err != nil {
		return framing{}, err
	}
	if err := parseHost(req, line.minor == 0); err != nil {
		return framing{}, err
	}
	if err := s.parseTarget(req, line); err != nil {
		return framing{}, err
	}
	f, err := parseFraming(req.Header, line.minor == 0)
	if err != nil {
		return f, err
	}
	if line.method == http.MethodConnect && (f.chunked || f.length > 0) {
		return f, bad("connect_with_body")
	}
	if f.chunked && declaresFraming(req.Header["Trailer"]) {
		return f, bad("framing_in_trailers")
	}
	if e := req.Header["Expect"]; len(e) > 0 && (len(e) > 1 || !strings.EqualFold(e[0], "100-continue")) {
		return f, &ProtocolError{Status: 417, Reason: "unknown_expectation"}
	}
	return f, nil
}

// declaresFraming says whether a Trailer header announces a field that frames.
func declaresFraming(vs []string) bool {
	for _, v := range vs {
		for name := range strings.SplitSeq(v, ",") {
			if framesMessage(http.CanonicalHeaderKey(strings.Trim(name, " \t"))) {
				return true
			}
		}
	}
	return false
}

// checkMethod refuses methods that reflect, that tunnel where no tunnel can be, and
// ones that are not upper-case: method rules compare case-sensitively, and no
// registered method is lower-case.
func (s *Server) checkMethod(m string) error {
	switch m {
	case http.MethodTrace, "TRACK", "PRI":
		return &ProtocolError{Status: 405, Reason: "method_refused"}
	case http.MethodConnect:
		if !s.AllowConnect {
			return &ProtocolError{Status: 405, Reason: "method_refused"}
		}
		return nil
	}
	for i := range len(m) {
		if class[m[i]]&isLower != 0 {
			return bad("lower_case_method")
		}
	}
	return nil
}

func parseHost(req *http.Request, http10 bool) error {
	hosts := req.Header["Host"]
	switch {
	case len(hosts) == 0 && http10:
		return nil
	case len(hosts) == 0:
		return bad("missing_host")
	case len(hosts) > 1:
		return bad("repeated_host")
	case !validAuthority(hosts[0], false):
		return bad("bad_host")
	}
	req.Host = hosts[0]
	delete(req.Header, "Host")
	return nil
}

// validAuthority says whether s is a name, an IPv4 address or an IPv6 address in
// brackets, with a port if there is one or one is needed (RFC 3986 section 3.2.2,
// without user and without escapes).
func validAuthority(s string, needPort bool) bool {
	var port string // with its colon
	if v6, ok := strings.CutPrefix(s, "["); ok {
		addr, after, closed := strings.Cut(v6, "]")
		ip, err := netip.ParseAddr(addr)
		if !closed || err != nil || !ip.Is6() || ip.Zone() != "" || after != "" && after[0] != ':' {
			return false
		}
		port = after
	} else {
		host, _, _ := strings.Cut(s, ":")
		if host == "" || !all(host, isHost) {
			return false
		}
		port = s[len(host):]
	}
	if port == "" {
		return !needPort
	}
	n, ok := parseLength(port[1:])
	return ok && n > 0 && n < 1<<16
}

// parseTarget accepts origin-form, and where the server allows them absolute-form
// with http and CONNECT's authority-form (RFC 9112 section 3.2).
func (s *Server) parseTarget(req *http.Request, l requestLine) error {
	if l.method == http.MethodConnect {
		if !validAuthority(l.target, true) {
			return bad("bad_target")
		}
		req.URL.Host = l.target
		return nil
	}
	if l.target[0] == '/' {
		if strings.HasPrefix(l.target, "//") {
			return bad("bad_target")
		}
		return originURL(req.URL, l.target)
	}
	const scheme = "http://"
	if !s.AllowAbsolute || len(l.target) <= len(scheme) || !strings.EqualFold(l.target[:len(scheme)], scheme) {
		return bad("bad_target")
	}
	rest := l.target[len(scheme):]
	i := strings.IndexAny(rest, "/?")
	if i < 0 {
		i = len(rest)
	}
	authority, path := rest[:i], rest[i:]
	if !validAuthority(authority, false) {
		return bad("bad_host")
	}
	if req.Host != "" && !sameAuthority(req.Host, authority) {
		return bad("authority_mismatch")
	}
	if path == "" || path[0] == '?' {
		path = "/" + path
	}
	if strings.HasPrefix(path, "//") {
		return bad("bad_target")
	}
	req.URL.Scheme, req.URL.Host, req.Host = "http", authority, authority
	return originURL(req.URL, path)
}

// sameAuthority compares host[:port] without regard to case, a trailing dot and the default port.
func sameAuthority(a, b string) bool {
	norm := func(s string) string {
		s = strings.TrimSuffix(s, ":80")
		return strings.TrimSuffix(s, ".")
	}
	return strings.EqualFold(norm(a), norm(b))
}

// originURL keeps the bytes as they are (RawPath, RawQuery) beside the decoded path.
func originURL(u *url.URL, target string) error {
	path, query, hasQuery := strings.Cut(target, "?")
	u.Path, u.RawQuery, u.ForceQuery = path, query, hasQuery && query == ""
	if strings.IndexByte(path, '%') >= 0 {
		decoded, err := url.PathUnescape(path)
		if err != nil {
			return bad("bad_escape")
		}
		u.Path, u.RawPath = decoded, path
	}
	return nil
}

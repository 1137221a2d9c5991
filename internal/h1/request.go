package h1

import (
	"net/http"
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
		if !strings.HasPrefix(proto, "HTTP/") || strings.Contains(proto, " ") {
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

// parseRequest interprets a whole head (lines lines in all) into req.
func (s *Server) parseRequest(req *http.Request, head string, lines int) (framing, error) {
	end := strings.Index(head, "\r\n")
	line, err := parseRequestLine(head[:end])
	if err != nil {
		return framing{}, err
	}
	req.Header, err = parseFields(head[end+2:], lines-1)
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
	if req.URL, err = s.parseTarget(req, line); err != nil {
		return framing{}, err
	}
	f, err := parseFraming(req.Header, line.minor == 0)
	if err != nil {
		return f, err
	}
	if e := req.Header["Expect"]; len(e) > 0 && line.minor == 1 && (len(e) > 1 || !strings.EqualFold(e[0], "100-continue")) {
		return f, &ProtocolError{Status: 417, Reason: "unknown_expectation"}
	}
	return f, nil
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
	case hosts[0] == "" || !all(hosts[0], isHost):
		return bad("bad_host")
	}
	req.Host = hosts[0]
	delete(req.Header, "Host")
	return nil
}

// parseTarget accepts origin-form, and where the server allows them absolute-form
// with http and CONNECT's authority-form (RFC 9112 section 3.2).
func (s *Server) parseTarget(req *http.Request, l requestLine) (*url.URL, error) {
	if l.method == http.MethodConnect {
		if !all(l.target, isHost) || !strings.Contains(l.target, ":") {
			return nil, bad("bad_target")
		}
		return &url.URL{Host: l.target}, nil
	}
	if l.target[0] == '/' {
		if strings.HasPrefix(l.target, "//") {
			return nil, bad("bad_target")
		}
		return originURL(l.target)
	}
	const scheme = "http://"
	if !s.AllowAbsolute || len(l.target) <= len(scheme) || !strings.EqualFold(l.target[:len(scheme)], scheme) {
		return nil, bad("bad_target")
	}
	rest := l.target[len(scheme):]
	i := strings.IndexAny(rest, "/?")
	if i < 0 {
		i = len(rest)
	}
	authority, path := rest[:i], rest[i:]
	if authority == "" || !all(authority, isHost) {
		return nil, bad("bad_host")
	}
	if req.Host != "" && !sameAuthority(req.Host, authority) {
		return nil, bad("authority_mismatch")
	}
	if path == "" || path[0] == '?' {
		path = "/" + path
	}
	u, err := originURL(path)
	if err != nil {
		return nil, err
	}
	u.Scheme, u.Host, req.Host = "http", authority, authority
	return u, nil
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
func originURL(target string) (*url.URL, error) {
	path, query, hasQuery := strings.Cut(target, "?")
	u := &url.URL{Path: path, RawQuery: query, ForceQuery: hasQuery && query == ""}
	if strings.IndexByte(path, '%') >= 0 {
		decoded, err := url.PathUnescape(path)
		if err != nil {
			return nil, bad("bad_escape")
		}
		u.Path, u.RawPath = decoded, path
	}
	return u, nil
}

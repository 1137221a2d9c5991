// Package sniff tells protocols apart by the first bytes that a client sent and reads
// what a TLS ClientHello says, without consuming anything and without a TLS stack.
//
// It only describes bytes. Whether a server name is acceptable is its caller's affair,
// so names come out as they were sent, NULs and all.
package sniff

import "bytes"

// Protocol is what the first bytes of a connection look like. The zero value is Unknown.
type Protocol uint8

// The protocols Detect knows.
const (
	Unknown Protocol = iota
	// HTTP is a request head of HTTP/1.x, well-formed or not: Detect is generous here,
	// because what looks like HTTP to any origin must reach the strict parser and not
	// be taken for an unknown protocol.
	HTTP
	// HTTP2Preface is HTTP/2 with prior knowledge in the clear (RFC 9113 section 3.4).
	HTTP2Preface
	// TLS is a handshake record of SSL 3.0 or later. Other record types and the
	// SSLv2-framed hello are Unknown.
	TLS
	SSH
	// SOCKS5 is a greeting that offers at least one method (RFC 1928 section 3).
	SOCKS5
	// MQTT is a CONNECT packet of MQTT 3.1, 3.1.1 or 5.
	MQTT
	// Redis is a command as an array of bulk strings (RESP), or one of the two inline
	// commands that no other protocol begins with: PING alone and HELLO 2 or 3.
	Redis
	// Postgres is a StartupMessage 3.0 or 3.2, SSLRequest, GSSENCRequest or CancelRequest.
	Postgres
	// AMQP is the protocol header of AMQP 0-8 to 1.0.
	AMQP
	// DNS is a query over TCP (RFC 1035 section 4.2.2).
	DNS
	// MongoDB is a first message OP_MSG or OP_QUERY of at most 1 MiB.
	MongoDB
)

var names = [...]string{"unknown", "http", "http2-preface", "tls", "ssh", "socks5", "mqtt", "redis", "postgres", "amqp", "dns", "mongodb"}

// String is a lower-case word, fit for a log or a metrics label.
func (p Protocol) String() string {
	if int(p) < len(names) {
		return names[p]
	}
	return names[Unknown]
}

// MaxPrefix is how many bytes Detect needs at most: with that many it has decided.
const MaxPrefix = 64

const (
	maxMethod = 32
	maxBlank  = 8 // empty lines before a request line that lenient servers skip
)

const (
	sshBanner = "SSH-"
	h2Preface = "PRI * HTTP/2.0\r\n"
)

// Detect says what prefix, the first bytes of a connection, begins. decided is false
// while more bytes could change the answer; a caller that gets no more takes the answer
// Unknown. It neither keeps nor copies prefix.
//
// Of two protocols that the same bytes could begin, the one that is looked into more
// strictly later wins: TLS, SSH, HTTP, then the others (see others). What is one of the
// first three is never anything else.
func Detect(prefix []byte) (p Protocol, decided bool) {
	if len(prefix) == 0 {
		return Unknown, false
	}
	if p, decided = detectFirst(prefix); p != Unknown {
		return p, true
	}
	if !decided {
		return Unknown, len(prefix) >= MaxPrefix
	}
	for i := range others {
		switch others[i].match(prefix) {
		case yes:
			return others[i].protocol, true
		case maybe:
			return Unknown, false
		}
	}
	return Unknown, true
}

// detectFirst knows TLS, SSH and HTTP; Unknown and decided is none of them.
func detectFirst(prefix []byte) (p Protocol, decided bool) {
	if prefix[0] == recordHandshake {
		switch {
		case len(prefix) < 2:
			return Unknown, false
		case prefix[1] == 3:
			return TLS, true
		}
		return Unknown, true
	}
	if full, part := begins(prefix, sshBanner); full {
		return SSH, true
	} else if part {
		return Unknown, false
	}
	if full, part := begins(prefix, h2Preface); full {
		return HTTP2Preface, true
	} else if part {
		return Unknown, false
	}
	return detectHTTP(prefix)
}

// begins reports whether b starts with s, or is itself a proper beginning of s.
func begins(b []byte, s string) (full, part bool) {
	if len(b) >= len(s) {
		return string(b[:len(s)]) == s, false
	}
	return false, s[:len(b)] == string(b)
}

// detectHTTP looks for a token, white space and the beginning of a request target.
func detectHTTP(b []byte) (Protocol, bool) {
	blank := 0
	for blank < len(b) && (b[blank] == '\r' || b[blank] == '\n') {
		blank++
	}
	if blank > maxBlank {
		return Unknown, true
	}
	b = b[blank:]
	end := bytes.IndexFunc(b, func(r rune) bool { return !isToken(r) })
	switch {
	case end < 0 && len(b) <= maxMethod:
		return Unknown, false
	case end <= 0 || end > maxMethod || !isBlank(b[end]):
		return Unknown, true
	}
	if isMethod(b[:end]) {
		return HTTP, true
	}
	return detectTarget(bytes.TrimLeft(b[end:], " \t\v\f"))
}

// detectTarget decides for a method that is not registered by what follows it.
func detectTarget(b []byte) (Protocol, bool) {
	if len(b) == 0 {
		return Unknown, false
	}
	if b[0] == '/' || b[0] == '*' {
		return HTTP, true
	}
	const scheme = "http"
	n := min(len(b), len(scheme))
	if !bytes.EqualFold(b[:n], []byte(scheme[:n])) {
		return Unknown, true
	}
	if n < len(scheme) {
		return Unknown, false
	}
	return HTTP, true
}

// isToken is tchar of RFC 9110 section 5.6.2.
func isToken(r rune) bool {
	switch {
	case r >= 'a' && r <= 'z', r >= 'A' && r <= 'Z', r >= '0' && r <= '9':
		return true
	case r > 0x7f:
		return false
	}
	return bytes.ContainsRune([]byte("!#$%&'*+-.^_`|~"), r)
}

func isBlank(c byte) bool { return c == ' ' || c == '\t' || c == '\v' || c == '\f' }

// isMethod knows the methods of RFC 9110, PATCH, WebDAV's and the ones that are refused
// by name; any case, for some origins fold it.
func isMethod(m []byte) bool {
	switch string(bytes.ToUpper(m)) {
	case "GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "TRACK", "PATCH", "PRI",
		"PROPFIND", "PROPPATCH", "MKCOL", "MKCALENDAR", "COPY", "MOVE", "LOCK", "UNLOCK", "REPORT", "SEARCH",
		"QUERY", "LINK", "UNLINK", "BIND", "UNBIND", "REBIND", "ACL", "LABEL", "MERGE", "UPDATE", "CHECKIN",
		"CHECKOUT", "UNCHECKOUT", "MKACTIVITY", "MKWORKSPACE", "BASELINE-CONTROL", "VERSION-CONTROL",
		"ORDERPATCH", "UPDATEREDIRECTREF", "MKREDIRECTREF", "PURGE":
		return true
	}
	return false
}

package audit

import (
	"net/netip"
	"strconv"
	"strings"
	"time"
	"unicode/utf16"
	"unicode/utf8"
)

// Longest strings that a record keeps, in bytes of input; what is longer ends in "…".
const (
	maxString = 256
	maxPath   = 1024
	maxDetail = 512
)

// Record is one decision: a request, a tunnel or a refusal. It never holds a secret; of
// a credential it names source and version. Empty fields are left out of the line.
type Record struct {
	Time      time.Time
	RequestID string
	Sandbox   string
	Team      string
	// Way in: connect, absolute, socks5, redirect or tproxy.
	Way string
	// Destination is host:port as it was decided on, Address what was dialled for it.
	Destination string
	Address     netip.Addr
	Protocol    string
	Method      string
	// Path without its query; whatever follows a ? or # is dropped here as well.
	Path string

	// Rule decided; Report says that it would have denied, were it enforced.
	Rule   string
	Report bool
	// CredentialRule, Source and Version are of the request-layer credential that was
	// projected, the ClientCert fields of the TLS-layer one. CredentialSkipped is the
	// code of a fail-open credential that could not be resolved.
	CredentialRule    string
	Source            string
	Version           uint64
	ClientCertRule    string
	ClientCertSource  string
	ClientCertVersion uint64
	CredentialSkipped string
	// Scrubbed is how often what was projected was taken out of the answer.
	Scrubbed int

	Status   int
	BytesIn  int64 // from the sandbox
	BytesOut int64 // to the sandbox
	Duration time.Duration
	// Outcome is a word of a closed set, Code the one the client saw if it was refused,
	// Detail for the operator.
	Outcome string
	Code    string
	Detail  string
}

// appendJSON appends r as one line: printable ASCII in valid JSON, whatever bytes are in
// its strings, so that neither a log's reader nor a terminal can be fooled.
func (r *Record) appendJSON(b []byte) []byte {
	b = append(b, `{"time":"`...)
	b = r.Time.UTC().AppendFormat(b, "2006-01-02T15:04:05.000000Z")
	b = append(b, '"')
	b = appendField(b, "requestId", r.RequestID, maxString)
	b = appendField(b, "sandbox", r.Sandbox, maxString)
	b = appendField(b, "team", r.Team, maxString)
	b = appendField(b, "way", r.Way, maxString)
	b = appendField(b, "destination", r.Destination, maxString+len(":65535"))
	if r.Address.IsValid() {
		b = append(b, `,"address":"`...)
		b = r.Address.WithZone("").AppendTo(b)
		b = append(b, '"')
	}
	b = appendField(b, "protocol", r.Protocol, maxString)
	b = appendField(b, "method", r.Method, maxString)
	b = appendField(b, "path", withoutQuery(r.Path), maxPath)
	b = appendField(b, "rule", r.Rule, maxString)
	if r.Report {
		b = append(b, `,"report":true`...)
	}
	b = appendField(b, "credentialRule", r.CredentialRule, maxString)
	b = appendField(b, "source", r.Source, maxString)
	b = appendNumber(b, "version", r.Version)
	b = appendField(b, "clientCertRule", r.ClientCertRule, maxString)
	b = appendField(b, "clientCertSource", r.ClientCertSource, maxString)
	b = appendNumber(b, "clientCertVersion", r.ClientCertVersion)
	b = appendField(b, "credentialSkipped", r.CredentialSkipped, maxString)
	if r.Scrubbed > 0 {
		b = appendNumber(b, "scrubbed", uint64(r.Scrubbed))
	}
	if r.Status > 0 {
		b = appendNumber(b, "status", uint64(r.Status))
	}
	b = append(b, `,"bytesIn":`...)
	b = strconv.AppendInt(b, max(r.BytesIn, 0), 10)
	b = append(b, `,"bytesOut":`...)
	b = strconv.AppendInt(b, max(r.BytesOut, 0), 10)
	b = append(b, `,"durationUs":`...)
	b = strconv.AppendInt(b, max(r.Duration.Microseconds(), 0), 10)
	b = appendField(b, "outcome", r.Outcome, maxString)
	b = appendField(b, "code", r.Code, maxString)
	b = appendField(b, "detail", r.Detail, maxDetail)
	return append(b, '}', '\n')
}

func withoutQuery(p string) string {
	if i := strings.IndexAny(p, "?#"); i >= 0 {
		return p[:i]
	}
	return p
}

func appendNumber(b []byte, key string, n uint64) []byte {
	if n == 0 {
		return b
	}
	b = append(b, ',', '"')
	b = append(b, key...)
	b = append(b, '"', ':')
	return strconv.AppendUint(b, n, 10)
}

func appendField(b []byte, key, v string, limit int) []byte {
	if v == "" {
		return b
	}
	b = append(b, ',', '"')
	b = append(b, key...)
	b = append(b, '"', ':', '"')
	cut := len(v) > limit
	if cut {
		v = v[:limit]
	}
	b = appendEscaped(b, v)
	if cut {
		b = append(b, `\u2026`...)
	}
	return append(b, '"')
}

// appendEscaped copies runs of plain ASCII and escapes the rest as \uXXXX: control
// characters, and everything beyond ASCII, where direction marks and look-alikes are.
func appendEscaped(b []byte, s string) []byte {
	start := 0
	for i := 0; i < len(s); {
		c := s[i]
		if c >= 0x20 && c < 0x7f && c != '"' && c != '\\' {
			i++
			continue
		}
		b = append(b, s[start:i]...)
		if c == '"' || c == '\\' {
			b = append(b, '\\', c)
			i++
		} else {
			r, n := utf8.DecodeRuneInString(s[i:]) // an invalid byte is U+FFFD
			if hi, lo := utf16.EncodeRune(r); hi != utf8.RuneError {
				b = appendUnit(b, hi)
				r = lo
			}
			b = appendUnit(b, r)
			i += n
		}
		start = i
	}
	return append(b, s[start:]...)
}

func appendUnit(b []byte, r rune) []byte {
	const hex = "0123456789abcdef"
	return append(b, '\\', 'u', hex[r>>12&0xf], hex[r>>8&0xf], hex[r>>4&0xf], hex[r&0xf])
}

package sigv4

import (
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Codes of Error.
const (
	CodeUnsigned    = "aws_request_unsigned"      // no signature, and the rule does not say for what to sign
	CodeScope       = "aws_scope_not_allowed"     // region or service outside of the rule's bounds
	CodeUnsupported = "aws_signature_unsupported" // a way of signing that is not done here
	CodeMalformed   = "aws_signature_malformed"   // what cannot be read in only one way
)

// Error says why a request is not signed. Reason holds nothing of the request.
type Error struct{ Code, Reason string }

func (e *Error) Error() string { return "aws sigv4: " + e.Reason }

func malformed(reason string) *Error   { return &Error{CodeMalformed, reason} }
func unsupported(reason string) *Error { return &Error{CodeUnsupported, reason} }

const (
	algorithm  = "AWS4-HMAC-SHA256"
	terminator = "aws4_request"

	unsignedPayload = "UNSIGNED-PAYLOAD"
	unsignedTrailer = "STREAMING-UNSIGNED-PAYLOAD-TRAILER"
	signedChunks    = "STREAMING-AWS4-HMAC-SHA256-PAYLOAD"
	signedTrailer   = "STREAMING-AWS4-HMAC-SHA256-PAYLOAD-TRAILER"
)

// MaxExpires bounds X-Amz-Expires of what leaves.
const MaxExpires = 5 * time.Minute

const (
	maxClientExpires = 7 * 24 * 60 * 60 // AWS's own bound, in seconds
	maxSigned        = 128              // names in a list of signed headers
	maxName          = 64               // bytes of a region or a service
)

// Bounds narrow what may be signed; "" is any.
type Bounds struct{ Region, Service string }

type form uint8

const (
	bare form = iota // no signature
	inHeader
	inQuery
)

// Claim is what a client's signature says. Immutable; made by Read.
type Claim struct {
	form            form
	region, service string
	signed          []string // lower-case names
	payload         string   // X-Amz-Content-Sha256; "" when there is none
	expires         int      // seconds, for inQuery; 0: not given
}

// NeedsBody: Sign has to be given the whole body, because its hash is in the signature
// alone.
func (c *Claim) NeedsBody() bool { return c.payload == "" && !isS3(c.service) }

// Read takes a request's claims. It changes nothing. Errors are *Error.
func Read(h http.Header, rawQuery string, b Bounds) (*Claim, error) {
	pairs, err := splitQuery(rawQuery)
	if err != nil {
		return nil, err
	}
	auth := loose(h, "authorization")
	if len(auth) > 1 {
		return nil, malformed("several Authorization fields")
	}
	q, err := readQuery(pairs)
	switch {
	case err != nil:
		return nil, err
	case q != nil && len(auth) > 0:
		return nil, malformed("signed in the header and in the query")
	}
	c := q
	switch {
	case len(auth) > 0:
		if c, err = readHeader(auth[0]); err != nil {
			return nil, err
		}
	case q == nil:
		if b.Region == "" || b.Service == "" {
			return nil, &Error{CodeUnsigned, "no signature, and the rule does not bind both region and service"}
		}
		c = &Claim{region: b.Region, service: b.Service, signed: []string{"content-type", "content-md5"}}
	}
	if err := b.check(c); err != nil {
		return nil, err
	}
	if err := c.readPayload(h, pairs); err != nil {
		return nil, err
	}
	return c, nil
}

func (b Bounds) check(c *Claim) error {
	switch {
	case b.Region != "" && b.Region != c.region:
		return &Error{CodeScope, "signed for another region than the rule's"}
	case b.Service != "" && b.Service != c.service:
		return &Error{CodeScope, "signed for another service than the rule's"}
	case b.Service == "" && givesCredentials(c.service):
		return &Error{CodeScope, "a service that gives out credentials, which the rule does not name"}
	}
	return nil
}

// givesCredentials are the services whose answers hold keys of the same account.
func givesCredentials(service string) bool {
	switch service {
	case "sts", "iam", "sso", "sso-oauth", "signin", "s3express", "cognito-identity", "rolesanywhere":
		return true
	}
	return false
}

// isS3: services that take a path as it is sent, encoded once, and a body that was not
// hashed.
func isS3(service string) bool {
	switch service {
	case "s3", "s3express", "s3-outposts", "s3-object-lambda":
		return true
	}
	return false
}

// readHeader takes "AWS4-HMAC-SHA256 Credential=…, SignedHeaders=…, Signature=…" apart.
func readHeader(v string) (*Claim, error) {
	rest, ok := strings.CutPrefix(v, algorithm+" ")
	if !ok {
		return nil, unsupported("Authorization is not " + algorithm)
	}
	var credential, signed, signature string
	seen := 0
	for part := range strings.SplitSeq(rest, ",") {
		name, value, _ := strings.Cut(strings.Trim(part, " \t"), "=")
		var to *string
		switch name {
		case "Credential":
			to = &credential
		case "SignedHeaders":
			to = &signed
		case "Signature":
			to = &signature
		default:
			return nil, malformed("Authorization has an unknown part")
		}
		if *to != "" || value == "" {
			return nil, malformed("Authorization has a part twice or empty")
		}
		*to = value
		seen++
	}
	if seen != 3 {
		return nil, malformed("Authorization lacks a part")
	}
	c := &Claim{form: inHeader}
	return c, c.take(credential, signed, signature)
}

// take checks the parts that both forms have.
func (c *Claim) take(credential, signed, signature string) error {
	if !isHex64(signature) {
		return malformed("a signature that is not one")
	}
	scope := strings.Split(credential, "/")
	if len(scope) != 5 || scope[0] == "" || len(scope[1]) != 8 || !isDigits(scope[1]) || scope[4] != terminator {
		return malformed("a credential scope that is not one")
	}
	if c.region, c.service = scope[2], scope[3]; !isName(c.region) || !isName(c.service) {
		return malformed("a credential scope whose region or service is no name")
	}
	c.signed = strings.Split(signed, ";")
	if len(c.signed) > maxSigned {
		return malformed("too many signed headers")
	}
	for _, name := range c.signed {
		if !isFieldName(name) {
			return malformed("a list of signed headers that is not one")
		}
	}
	return nil
}

// readQuery reads a presigned URL's parameters; nil when there are none.
func readQuery(pairs []pair) (*Claim, error) {
	var found [7]string
	var seen [7]int
	for _, p := range pairs {
		if p.loose() == "awsaccesskeyid" {
			return nil, unsupported("signature version 2")
		}
		if i := slices.Index(authParams[:], p.loose()); i >= 0 {
			seen[i]++
			found[i] = p.value
			if p.name != authParamNames[i] || seen[i] > 1 {
				return nil, malformed("a parameter of the signature twice or misspelt")
			}
		}
	}
	if seen[pAlgorithm]+seen[pCredential]+seen[pSigned]+seen[pSignature] == 0 {
		return nil, nil //nolint:nilnil // no claim is no error
	}
	switch {
	case found[pAlgorithm] != algorithm:
		return nil, unsupported("X-Amz-Algorithm is not " + algorithm)
	case seen[pCredential]*seen[pSigned]*seen[pSignature]*seen[pDate] == 0:
		return nil, malformed("a presigned URL that lacks a parameter")
	}
	c := &Claim{form: inQuery}
	if seen[pExpires] > 0 {
		n, err := strconv.Atoi(found[pExpires])
		if err != nil || !isDigits(found[pExpires]) || n < 1 || n > maxClientExpires {
			return nil, malformed("X-Amz-Expires is no number of seconds up to a week")
		}
		c.expires = n
	}
	return c, c.take(found[pCredential], found[pSigned], found[pSignature])
}

// readPayload reads what the client says of its body.
func (c *Claim) readPayload(h http.Header, pairs []pair) error {
	values := loose(h, "x-amz-content-sha256")
	if c.form == inQuery {
		for _, p := range pairs {
			if p.loose() == "x-amz-content-sha256" {
				values = append(values, p.value)
			}
		}
	}
	if len(values) == 0 {
		return nil
	}
	for _, v := range values[1:] {
		if v != values[0] {
			return malformed("several X-Amz-Content-Sha256")
		}
	}
	c.payload = values[0]
	switch {
	case isHex64(c.payload), c.payload == unsignedPayload, c.payload == unsignedTrailer:
		return nil
	case c.payload != signedChunks && c.payload != signedTrailer:
		return unsupported("X-Amz-Content-Sha256 of an unknown kind")
	case c.form != inHeader:
		return unsupported("signed chunks without a signature in the header")
	}
	return nil
}

// loose gives the values of a field however it is spelt: to CGI and WSGI servers "_" is "-".
func loose(h http.Header, name string) []string {
	var out []string
	for k, vs := range h {
		if sameName(k, name) {
			out = append(out, vs...)
		}
	}
	return out
}

func sameName(key, lower string) bool {
	return len(key) == len(lower) && strings.ReplaceAll(strings.ToLower(key), "_", "-") == lower
}

func isHex64(s string) bool { return len(s) == 64 && isHex(s) }

func isHex(s string) bool {
	for _, c := range []byte(s) {
		if unhex(c) < 0 {
			return false
		}
	}
	return s != ""
}

func isDigits(s string) bool {
	for _, c := range []byte(s) {
		if c < '0' || c > '9' {
			return false
		}
	}
	return s != ""
}

func isName(s string) bool {
	for _, c := range []byte(s) {
		if !isUnreserved(c) {
			return false
		}
	}
	return s != "" && len(s) <= maxName
}

// isFieldName: a field name in lower case (RFC 9110, 5.6.2).
func isFieldName(s string) bool {
	for _, c := range []byte(s) {
		letter := 'a' <= c && c <= 'z' || '0' <= c && c <= '9'
		if !letter && strings.IndexByte("!#$%&'*+-.^_`|~", c) < 0 {
			return false
		}
	}
	return s != ""
}

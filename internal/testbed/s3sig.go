package testbed

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// AWSKey is an access key that an AWS-like origin knows; Token is empty for a lasting one.
type AWSKey struct{ ID, Secret, Token string }

// SigV4 verifies AWS Signature Version 4 as the public specification has it, and is stricter
// than AWS: it refuses what two readers could canonicalise in two ways. Safe for
// concurrent use.
type SigV4 struct {
	Region, Service string

	mu  sync.Mutex
	key AWSKey
}

// SetKey changes the one key that is known.
func (v *SigV4) SetKey(k AWSKey) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.key = k
}

func (v *SigV4) now() AWSKey {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.key
}

// awsError has AWS's code first.
func awsError(code, format string, args ...any) error {
	return fmt.Errorf("%s: "+format, append([]any{code}, args...)...)
}

// presented is a signature as it came.
type presented struct {
	credential, signed, signature, date string
	query                               bool
}

// maxAWSBody is how much of a body is looked at.
const maxAWSBody = 64 << 20

// Verify checks a request's signature and returns its decoded body.
func (v *SigV4) Verify(r *http.Request) ([]byte, error) {
	p, err := readPresented(r)
	if err != nil {
		return nil, err
	}
	key := v.now()
	at, scope, err := v.checkScope(p, key)
	if err != nil {
		return nil, err
	}
	if err := checkTime(r, p, at); err != nil {
		return nil, err
	}
	token := r.Header.Values("X-Amz-Security-Token")
	if p.query {
		token = append(token, r.URL.Query()["X-Amz-Security-Token"]...)
	}
	if strings.Join(token, ",") != key.Token {
		return nil, awsError("InvalidToken", "session token is not the key's")
	}
	raw, err := io.ReadAll(io.LimitReader(r.Body, maxAWSBody+1))
	if err != nil || len(raw) > maxAWSBody {
		return nil, awsError("IncompleteBody", "%d bytes, %v", len(raw), err)
	}
	declared, err := v.payload(r, p, raw)
	if err != nil {
		return nil, err
	}
	canonical, err := v.canonical(r, p, declared)
	if err != nil {
		return nil, err
	}
	want := signatureFor(canonical, p.date, scope, key.Secret)
	if !hmac.Equal([]byte(want), []byte(p.signature)) {
		return nil, awsError("SignatureDoesNotMatch", "canonical request %q", canonical)
	}
	if strings.HasPrefix(declared, "STREAMING-") {
		d := &chunkDecoder{declared: declared, header: r.Header, rest: raw, key: signingKey(key.Secret, scope), stamp: p.date, scope: scope, previous: p.signature}
		return d.decode()
	}
	return raw, nil
}

func signatureFor(canonical, date, scope, secret string) string {
	sum := sha256.Sum256([]byte(canonical))
	return hex.EncodeToString(mac(signingKey(secret, scope), "AWS4-HMAC-SHA256\n"+date+"\n"+scope+"\n"+hex.EncodeToString(sum[:])))
}

func readPresented(r *http.Request) (*presented, error) {
	q := r.URL.Query()
	auth := r.Header.Values("Authorization")
	switch {
	case len(auth) > 1 || len(auth) == 1 && q.Has("X-Amz-Signature"):
		return nil, awsError("InvalidArgument", "only one way of authentication")
	case len(auth) == 1:
		p := &presented{date: r.Header.Get("X-Amz-Date")}
		n, err := fmt.Sscanf(auth[0], "AWS4-HMAC-SHA256 Credential=%s SignedHeaders=%s Signature=%s", &p.credential, &p.signed, &p.signature)
		if n != 3 || err != nil {
			return nil, awsError("AuthorizationHeaderMalformed", "%v", err)
		}
		p.credential, p.signed = strings.TrimSuffix(p.credential, ","), strings.TrimSuffix(p.signed, ",")
		return p, nil
	case q.Get("X-Amz-Algorithm") == "AWS4-HMAC-SHA256":
		for _, name := range []string{"X-Amz-Credential", "X-Amz-Date", "X-Amz-SignedHeaders", "X-Amz-Signature"} {
			if len(q[name]) != 1 {
				return nil, awsError("AuthorizationQueryParametersError", "%s %d times", name, len(q[name]))
			}
		}
		return &presented{credential: q.Get("X-Amz-Credential"), signed: q.Get("X-Amz-SignedHeaders"), signature: q.Get("X-Amz-Signature"),
			date: q.Get("X-Amz-Date"), query: true}, nil
	}
	return nil, awsError("AccessDenied", "no signature")
}

func (v *SigV4) checkScope(p *presented, key AWSKey) (at time.Time, scope string, err error) {
	id, scope, _ := strings.Cut(p.credential, "/")
	if id != key.ID || key.ID == "" {
		return at, "", awsError("InvalidAccessKeyId", "key %q", id)
	}
	if at, err = time.Parse("20060102T150405Z", p.date); err != nil {
		return at, "", awsError("AccessDenied", "date: %v", err)
	}
	if want := at.Format("20060102") + "/" + v.Region + "/" + v.Service + "/aws4_request"; scope != want {
		return at, "", awsError("AuthorizationHeaderMalformed", "scope %q, want %q", scope, want)
	}
	return at, scope, nil
}

func checkTime(r *http.Request, p *presented, at time.Time) error {
	age := time.Since(at)
	if age < -15*time.Minute || !p.query && age > 15*time.Minute {
		return awsError("RequestTimeTooSkewed", "%v", age)
	}
	if !p.query {
		return nil
	}
	n, err := strconv.Atoi(r.URL.Query().Get("X-Amz-Expires"))
	if err != nil || n < 1 || n > 7*24*3600 {
		return awsError("AuthorizationQueryParametersError", "X-Amz-Expires")
	}
	if age > time.Duration(n)*time.Second {
		return awsError("AccessDenied", "request has expired")
	}
	return nil
}

// payload is the last line of the canonical request, compared with the body.
func (v *SigV4) payload(r *http.Request, p *presented, raw []byte) (string, error) {
	sum := sha256.Sum256(raw)
	own := hex.EncodeToString(sum[:])
	declared := r.Header.Get("X-Amz-Content-Sha256")
	if p.query && declared == "" {
		declared = r.URL.Query().Get("X-Amz-Content-Sha256")
	}
	switch {
	case declared == "" && v.Service == "s3" && p.query:
		return "UNSIGNED-PAYLOAD", nil
	case declared == "" && v.Service == "s3":
		return "", awsError("InvalidRequest", "missing x-amz-content-sha256")
	case declared == "":
		return own, nil
	case declared == "UNSIGNED-PAYLOAD", strings.HasPrefix(declared, "STREAMING-"):
		return declared, nil
	case declared != own:
		return "", awsError("XAmzContentSHA256Mismatch", "body is %s", own)
	}
	return declared, nil
}

func (v *SigV4) canonical(r *http.Request, p *presented, payload string) (string, error) {
	path, err := v.canonicalPath(r.URL.EscapedPath(), r.RequestURI)
	if err != nil {
		return "", err
	}
	query, err := canonicalQuery(r.URL.RawQuery)
	if err != nil {
		return "", err
	}
	names := strings.Split(p.signed, ";")
	if !slices.IsSorted(names) || !slices.Contains(names, "host") {
		return "", awsError("AccessDenied", "signed headers %q", p.signed)
	}
	for k := range r.Header {
		if low := strings.ToLower(k); strings.HasPrefix(low, "x-amz-") && !slices.Contains(names, low) {
			return "", awsError("AccessDenied", "There were headers present in the request which were not signed: %s", low)
		}
	}
	var b strings.Builder
	b.WriteString(r.Method + "\n" + path + "\n" + query + "\n")
	for _, name := range names {
		values := r.Header.Values(name)
		switch name {
		case "host":
			values = []string{r.Host}
		case "content-length":
			values = []string{strconv.FormatInt(r.ContentLength, 10)}
		}
		if len(values) == 0 {
			return "", awsError("AccessDenied", "signed header %s is not there", name)
		}
		for i := range values {
			values = slices.Clone(values)
			values[i] = strings.Join(strings.Fields(values[i]), " ")
		}
		b.WriteString(name + ":" + strings.Join(values, ",") + "\n")
	}
	return b.String() + "\n" + p.signed + "\n" + payload, nil
}

// canonicalPath wants verifiers that decode first and verifiers that do not to agree.
func (v *SigV4) canonicalPath(escaped, target string) (string, error) {
	sent, _, _ := strings.Cut(target, "?")
	if sent != escaped {
		return "", awsError("AccessDenied", "path %q is not as it was sent, %q", escaped, sent)
	}
	segments := strings.Split(sent, "/")
	for i, s := range segments {
		decoded, err := url.PathUnescape(s)
		if err != nil || uriEncode(decoded) != s {
			return "", awsError("AccessDenied", "path %q can be encoded in another way", sent)
		}
		if v.Service != "s3" {
			segments[i] = uriEncode(s)
		}
	}
	return strings.Join(segments, "/"), nil
}

func canonicalQuery(raw string) (string, error) {
	type param struct{ name, value string }
	var all []param
	for part := range strings.SplitSeq(raw, "&") {
		if part == "" {
			continue
		}
		name, value, _ := strings.Cut(part, "=")
		for _, s := range []string{name, value} {
			decoded, err := url.PathUnescape(s)
			if err != nil || uriEncode(decoded) != s {
				return "", awsError("AccessDenied", "query %q can be encoded in another way", raw)
			}
		}
		if name != "X-Amz-Signature" {
			all = append(all, param{name, value})
		}
	}
	slices.SortFunc(all, func(a, b param) int {
		if n := strings.Compare(a.name, b.name); n != 0 {
			return n
		}
		return strings.Compare(a.value, b.value)
	})
	var parts []string
	for _, p := range all {
		parts = append(parts, p.name+"="+p.value)
	}
	return strings.Join(parts, "&"), nil
}

func uriEncode(s string) string {
	var b strings.Builder
	for _, c := range []byte(s) {
		if bytes.IndexByte([]byte("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~"), c) >= 0 {
			b.WriteByte(c)
		} else {
			fmt.Fprintf(&b, "%%%02X", c)
		}
	}
	return b.String()
}

func signingKey(secret, scope string) []byte {
	k := []byte("AWS4" + secret)
	for part := range strings.SplitSeq(scope, "/") {
		k = mac(k, part)
	}
	return k
}

func mac(key []byte, text string) []byte {
	m := hmac.New(sha256.New, key)
	_, _ = io.WriteString(m, text)
	return m.Sum(nil)
}

// codeOf is what an error answers with.
func codeOf(err error) (int, string) {
	code, _, _ := strings.Cut(err.Error(), ":")
	switch code {
	case "NoSuchKey", "NoSuchBucket", "NoSuchUpload":
		return http.StatusNotFound, code
	case "IncompleteBody", "BadDigest", "InvalidArgument", "InvalidRequest", "InvalidPart", "XAmzContentSHA256Mismatch",
		"AuthorizationHeaderMalformed", "AuthorizationQueryParametersError":
		return http.StatusBadRequest, code
	}
	return http.StatusForbidden, code
}

var errNoObject = errors.New("NoSuchKey: no such object")

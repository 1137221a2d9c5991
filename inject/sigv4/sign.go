package sigv4

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"

	"github.com/egressd/egressd/internal/secret"
)

// Keys are what is signed with.
type Keys struct {
	AccessKeyID     string
	SecretAccessKey secret.String
	SessionToken    secret.String // empty: none
}

// Request is a request on its way out; Sign changes it in place.
type Request struct {
	Method    string
	TLS       bool   // the scheme, which decides what of Authority is signed
	Authority string // the Host field as it is sent
	Path      string // with its percent-encoding
	RawQuery  string
	Header    http.Header // canonical keys, without hop-by-hop fields
	// Body is wrapped where its chunks are signed, and ContentLength then what will come
	// out. Whole is the body where Claim.NeedsBody, and not looked at otherwise.
	Body          io.ReadCloser
	ContentLength int64
	Whole         []byte
}

// Sign signs r with k as of now. On an error (*Error) nothing of k is in r; r is not to be
// sent then. A body of signed chunks that is not as it should be makes its Read fail with
// an *Error.
func (c *Claim) Sign(ctx context.Context, r *Request, k Keys, now time.Time) error {
	s3 := isS3(c.service)
	path, err := encodePath(r.Path, s3)
	if err != nil {
		return err
	}
	pairs, err := splitQuery(r.RawQuery)
	if err != nil {
		return err
	}
	r.Path, r.RawQuery = path, joinQuery(pairs)
	for name := range r.Header {
		if replaced(name) {
			delete(r.Header, name)
		}
	}
	chunks, err := c.prepareChunks(r)
	if err != nil {
		return err
	}
	hash := c.hash(r, s3)
	draft := &http.Request{
		Method: r.Method, Host: r.Authority, Header: c.toSign(r.Header),
		URL: &url.URL{Scheme: scheme(r.TLS), Host: r.Authority, Opaque: "//" + r.Authority + path, RawQuery: r.RawQuery},
	}
	if slices.Contains(c.signed, "content-length") {
		draft.ContentLength = r.ContentLength
	}
	now = now.UTC()
	if err := c.seal(ctx, r, draft, k, hash, now); err != nil {
		return err
	}
	if chunks != nil {
		_, seed, _ := strings.Cut(r.Header.Get("Authorization"), "Signature=")
		chunks.sign = newChunkSigner(k.SecretAccessKey, c.region, c.service, seed, now)
		r.Body = chunks
	}
	return nil
}

// seal has the official signer sign draft and takes what it has made over into r.
func (c *Claim) seal(ctx context.Context, r *Request, draft *http.Request, k Keys, hash string, now time.Time) error {
	creds := aws.Credentials{AccessKeyID: k.AccessKeyID, SecretAccessKey: k.SecretAccessKey.Reveal(), SessionToken: k.SessionToken.Reveal()}
	// A new signer each time: it would keep a key for each region and service ever claimed.
	signer := v4.NewSigner(func(o *v4.SignerOptions) { o.DisableURIPathEscaping, o.DisableHeaderHoisting = isS3(c.service), true })
	if c.form == inQuery {
		return c.presign(ctx, r, signer, draft, creds, hash, now)
	}
	if err := signer.SignHTTP(ctx, creds, draft, hash, c.service, c.region, now); err != nil {
		return unsignable()
	}
	for _, name := range []string{"Authorization", "X-Amz-Date", "X-Amz-Security-Token"} {
		if v := draft.Header.Values(name); len(v) > 0 {
			r.Header[name] = v
		}
	}
	return nil
}

// unsignable: the official signer has no such case; its words could hold the request.
func unsignable() *Error { return malformed("the request cannot be signed") }

// replaced are the fields that a signature brings along.
func replaced(name string) bool {
	switch strings.ReplaceAll(strings.ToLower(name), "_", "-") {
	case "authorization", "x-amz-date", "date", "x-amz-security-token", "x-amz-s3session-token":
		return true
	}
	return false
}

func scheme(tls bool) string {
	if tls {
		return "https"
	}
	return "http"
}

// hash is what the signature says of the body.
func (c *Claim) hash(r *Request, s3 bool) string {
	switch {
	case c.payload != "":
		return c.payload
	case !s3:
		sum := sha256.Sum256(r.Whole)
		return hex.EncodeToString(sum[:])
	case c.form != inQuery: // S3 demands the field there
		r.Header["X-Amz-Content-Sha256"] = []string{unsignedPayload}
	}
	return unsignedPayload
}

// toSign are the fields that the client signed, as far as they are sent, and those that AWS
// wants signed. The official signer signs all that it is given.
func (c *Claim) toSign(h http.Header) http.Header {
	out := http.Header{}
	for name, values := range h {
		lower := strings.ToLower(name)
		if strings.HasPrefix(lower, "x-amz-") || slices.Contains(c.signed, lower) {
			out[name] = slices.Clone(values)
		}
	}
	return out
}

// presign puts the signature into the query, behind what is there.
func (c *Claim) presign(ctx context.Context, r *Request, signer *v4.Signer, draft *http.Request, creds aws.Credentials, hash string, now time.Time) error {
	add := func(more string) {
		if r.RawQuery != "" && more != "" {
			more = "&" + more
		}
		r.RawQuery += more
	}
	if c.expires > 0 {
		add("X-Amz-Expires=" + strconv.Itoa(min(c.expires, int(MaxExpires/time.Second))))
		draft.URL.RawQuery = r.RawQuery
	}
	signed, _, err := signer.PresignHTTP(ctx, creds, draft, hash, c.service, c.region, now)
	_, query, found := strings.Cut(signed, "?")
	if err != nil || !found {
		return unsignable()
	}
	for part := range strings.SplitSeq(query, "&") {
		if name, _, _ := strings.Cut(part, "="); slices.Contains(authParamNames[:], name) && name != authParamNames[pExpires] {
			add(part)
		}
	}
	return nil
}

// prepareChunks readies a body of signed chunks; nil when it is none.
func (c *Claim) prepareChunks(r *Request) (*chunks, error) {
	if c.payload != signedChunks && c.payload != signedTrailer {
		return nil, nil //nolint:nilnil // none is no error
	}
	length, err := decodedLength(r.Header)
	if err != nil {
		return nil, err
	}
	var trailers []string
	if c.payload == signedTrailer {
		if trailers, err = trailerNames(r.Header); err != nil {
			return nil, err
		}
	}
	if r.Body == nil || r.Body == http.NoBody {
		return nil, malformed("signed chunks without a body")
	}
	delete(r.Header, "Content-Length")
	r.ContentLength = encodedLength(length, trailers)
	return newChunks(r.Body, length, trailers), nil
}

// maxDecoded is more than the largest object that S3 takes (50 TB).
const maxDecoded = 1 << 46

func decodedLength(h http.Header) (int64, error) {
	v := loose(h, "x-amz-decoded-content-length")
	if len(v) != 1 || !isDigits(v[0]) {
		return 0, malformed("signed chunks without one X-Amz-Decoded-Content-Length")
	}
	n, err := strconv.ParseInt(v[0], 10, 64)
	if err != nil || n > maxDecoded {
		return 0, malformed("X-Amz-Decoded-Content-Length is out of bounds")
	}
	return n, nil
}

// maxTrailers is one for each checksum that a client could think of.
const maxTrailers = 4

// trailerNames are what X-Amz-Trailer announces.
func trailerNames(h http.Header) ([]string, error) {
	var out []string
	for _, v := range loose(h, "x-amz-trailer") {
		for name := range strings.SplitSeq(v, ",") {
			name = strings.ToLower(strings.TrimSpace(name))
			if checksumLength(name) == 0 {
				return nil, unsupported("a signed trailer that is no checksum known here")
			}
			if slices.Contains(out, name) || len(out) == maxTrailers {
				return nil, malformed("too many trailers")
			}
			out = append(out, name)
		}
	}
	if len(out) == 0 {
		return nil, malformed("signed trailers without X-Amz-Trailer")
	}
	return out, nil
}

// checksumLength is the length of a checksum in base64; 0 when it is not known.
func checksumLength(trailer string) int {
	switch trailer {
	case "x-amz-checksum-crc32", "x-amz-checksum-crc32c":
		return 8
	case "x-amz-checksum-crc64nvme", "x-amz-checksum-xxhash64", "x-amz-checksum-xxhash3":
		return 12
	case "x-amz-checksum-md5", "x-amz-checksum-xxhash128":
		return 24
	case "x-amz-checksum-sha1":
		return 28
	case "x-amz-checksum-sha256":
		return 44
	case "x-amz-checksum-sha512":
		return 88
	}
	return 0
}

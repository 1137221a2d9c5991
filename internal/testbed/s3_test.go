package testbed

import (
	"bytes"
	"encoding/hex"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

const docsSecret = "wJalrXUtnFEMI/K7MDENG/" + "bPxRfiCYEXAMPLEKEY"

// published is a request of AWS's documents.
func published(method, target, host string, body []byte, header ...string) *http.Request {
	r := httptest.NewRequest(method, target, bytes.NewReader(body))
	r.Host = host
	for i := 0; i+1 < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	return r
}

// TestS3VerifiesWhatAWSPublishes: the signatures are AWS's own, the time is not looked at.
func TestS3VerifiesWhatAWSPublishes(t *testing.T) {
	const (
		scope = "20130524/us-east-1/s3/aws4_request"
		empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
		host  = "examplebucket.s3.amazonaws.com"
		auth  = "AWS4-HMAC-SHA256 Credential=EXAMPLE/" + scope + ", SignedHeaders="
		at    = "20130524T000000Z"
	)
	put := "Welcome to Amazon S3."
	for name, r := range map[string]*http.Request{
		"get": published("GET", "/test.txt", host, nil, "Range", "bytes=0-9", "X-Amz-Content-Sha256", empty, "X-Amz-Date", at,
			"Authorization", auth+"host;range;x-amz-content-sha256;x-amz-date, Signature=f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41"),
		"put": published("PUT", "/test%24file.text", host, []byte(put), "Date", "Fri, 24 May 2013 00:00:00 GMT", "X-Amz-Date", at, "X-Amz-Storage-Class", "REDUCED_REDUNDANCY",
			"X-Amz-Content-Sha256", "44ce7dd67c959e0d3524ffac1771dfbba87d2b6b4b4e99e42034a8b803f8b072",
			"Authorization", auth+"date;host;x-amz-content-sha256;x-amz-date;x-amz-storage-class, Signature=98ad721746da40c64f1a55b78f14c238d841ea1380cd77a1b5971af0ece108bd"),
		"list": published("GET", "/?max-keys=2&prefix=J", host, nil, "X-Amz-Content-Sha256", empty, "X-Amz-Date", at,
			"Authorization", auth+"host;x-amz-content-sha256;x-amz-date, Signature=34b48302e7b5fa45bde8084f4b7868a86f0a534bc59db6670ed5711ef69dc6f7"),
	} {
		t.Run(name, func(t *testing.T) { signatureHolds(t, r, scope) })
	}
}

func signatureHolds(t *testing.T, r *http.Request, scope string) {
	t.Helper()
	v := &SigV4{Region: "us-east-1", Service: "s3"}
	p, err := readPresented(r)
	if err != nil {
		t.Fatal(err)
	}
	body := new(bytes.Buffer)
	_, _ = body.ReadFrom(r.Body)
	declared, err := v.payload(r, p, body.Bytes())
	if err != nil {
		t.Fatal(err)
	}
	canonical, err := v.canonical(r, p, declared)
	if err != nil {
		t.Fatal(err)
	}
	if got := signatureFor(canonical, p.date, scope, docsSecret); got != p.signature {
		t.Errorf("signature %s of %q", got, canonical)
	}
	if got := signatureFor(canonical, p.date, scope, docsSecret+"x"); got == p.signature {
		t.Error("any key will do")
	}
}

func TestS3ChunksThatAWSPublishes(t *testing.T) {
	a := func(n int) string { return strings.Repeat("a", n) }
	body := "10000;chunk-signature=b474d8862b1487a5145d686f57f013e54db672cee1c953b3010fb58501ef5aa2\r\n" + a(65536) +
		"\r\n400;chunk-signature=1c1344b170168f8e65b41376b44b20fe354e373826ccbbe2c1d40a8cae51e5c7\r\n" + a(1024) +
		"\r\n0;chunk-signature=2ca2aba2005185cf7159c6277faf83795951dd77a3a99e6e65d5c9f85863f992\r\nx-amz-checksum-crc32c:sOO8/Q==\r\n" +
		"x-amz-trailer-signature:d81f82fc3505edab99d459891051a732e8730629a2e4a59689829ca17fe2e435\r\n\r\n"
	decode := func(body string) ([]byte, error) {
		d := &chunkDecoder{declared: "STREAMING-AWS4-HMAC-SHA256-PAYLOAD-TRAILER", rest: []byte(body), stamp: "20130524T000000Z", scope: "20130524/us-east-1/s3/aws4_request",
			header: http.Header{"X-Amz-Decoded-Content-Length": {"66560"}, "X-Amz-Trailer": {"x-amz-checksum-crc32c"}},
			key:    signingKey(docsSecret, "20130524/us-east-1/s3/aws4_request"), previous: "106e2a8a18243abcf37539882f36619c00e2dfc72633413f02d3b74544bfeb8e"}
		return d.decode()
	}
	if out, err := decode(body); err != nil || string(out) != a(66560) {
		t.Errorf("%d bytes, %v", len(out), err)
	}
	for _, broken := range []string{strings.Replace(body, "aaaa", "aaab", 1), strings.Replace(body, "b474", "b475", 1), strings.Replace(body, "d81f", "d81e", 1),
		strings.Replace(body, "sOO8", "sOO9", 1), body[:len(body)-2], body + "x"} {
		if _, err := decode(broken); err == nil {
			t.Error("a changed body was taken")
		}
	}
}

func TestS3TakesNothingWithoutASignature(t *testing.T) {
	s := NewS3("eu-test-1")
	for _, key := range []AWSKey{{}, {ID: "x", Secret: "y"}} {
		s.SetKey(key)
		for _, auth := range []string{"", "AWS4-HMAC-SHA256 Credential=/20130524/eu-test-1/s3/aws4_request, SignedHeaders=host, Signature=" + hex.EncodeToString(make([]byte, 32))} {
			w := httptest.NewRecorder()
			r := published("PUT", "/bucket/x", "s3.test", []byte("x"))
			if auth != "" {
				r.Header.Set("Authorization", auth)
			}
			s.ServeHTTP(w, r)
			if _, ok := s.Object("bucket", "x"); ok || w.Code < 400 {
				t.Errorf("%d %s", w.Code, w.Body)
			}
		}
	}
}

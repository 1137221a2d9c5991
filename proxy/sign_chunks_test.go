package proxy_test

import (
	"bytes"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"

	"github.com/egressd/egressd/internal/audit"
	"github.com/egressd/egressd/internal/testbed"
)

// chunkedBody is what an AWS client makes of data: chunks of these sizes, signed with a key
// of its own, of which nothing is to be seen here.
func chunkedBody(data []byte, size int, trailer string) []byte {
	signature := ";chunk-signature=" + strings.Repeat("5a", 32) + "\r\n"
	var b bytes.Buffer
	for rest := data; len(rest) > 0; {
		n := min(size, len(rest))
		fmt.Fprintf(&b, "%x%s%s\r\n", n, signature, rest[:n])
		rest = rest[n:]
	}
	b.WriteString("0" + signature)
	if trailer != "" {
		b.WriteString(trailer + "\r\nx-amz-trailer-signature:" + strings.Repeat("5a", 32) + "\r\n")
	}
	b.WriteString("\r\n")
	return b.Bytes()
}

func crc32cTrailer(data []byte) string {
	sum := binary.BigEndian.AppendUint32(nil, crc32.Checksum(data, crc32.MakeTable(crc32.Castagnoli)))
	return "x-amz-checksum-crc32c:" + base64.StdEncoding.EncodeToString(sum)
}

// uploadOf is a signed request for key with body as it stands; decoded is what it says of it.
func (g *awsRig) uploadOf(t testing.TB, key string, body []byte, decoded int, trailer, known bool) *http.Request {
	t.Helper()
	return signedBy(t, http.MethodPut, g.origin.URL("/bucket/"+key), string(body), "s3", "eu-test-1", func(r *http.Request) {
		r.Header.Set("Content-Encoding", "aws-chunked")
		r.Header.Set("X-Amz-Decoded-Content-Length", fmt.Sprint(decoded))
		r.Header.Set("X-Amz-Content-Sha256", "STREAMING-AWS4-HMAC-SHA256-PAYLOAD")
		if trailer {
			r.Header.Set("X-Amz-Content-Sha256", "STREAMING-AWS4-HMAC-SHA256-PAYLOAD-TRAILER")
			r.Header.Set("X-Amz-Trailer", "x-amz-checksum-crc32c")
		}
		if !known {
			r.Body, r.ContentLength = io.NopCloser(io.MultiReader(bytes.NewReader(body))), -1
		}
	})
}

func TestS3SignedChunks(t *testing.T) {
	g := awsAttacked(t, boundToS3, nil)
	bothVersions(t, g.stack, func(t *testing.T, c *http.Client) {
		n := 0
		for _, size := range []int{0, 1, 64 << 10, 64<<10 + 1, 1<<20 + 777} {
			for _, chunk := range []int{8 << 10, 128 << 10, 2 << 20} {
				for _, trailed := range []bool{false, true} {
					n++
					key, data, trailer := fmt.Sprintf("chunks-%d", n), pattern(size), ""
					if trailed {
						trailer = crc32cTrailer(data)
					}
					body := chunkedBody(data, chunk, trailer)
					if a := sent(t, c, g.uploadOf(t, key, body, size, trailed, n%3 != 0)); a.status != http.StatusOK {
						t.Fatalf("%d bytes in chunks of %d, trailer %v: %d %.500s", size, chunk, trailed, a.status, a.body)
					}
					g.stored(t, key, data)
				}
			}
		}
		wrong := chunkedBody(pattern(5000), 1000, crc32cTrailer([]byte("something else")))
		if a := sent(t, c, g.uploadOf(t, "bad-sum", wrong, 5000, true, true)); a.status != http.StatusBadRequest || !strings.Contains(a.body, "BadDigest") {
			t.Errorf("a checksum that does not hold is the store's to refuse: %+v", a)
		}
	})
	g.ours(t)
}

func TestHostileChunksEndTheUpload(t *testing.T) {
	g := awsAttacked(t, boundToS3, nil)
	data := pattern(300_000)
	good := chunkedBody(data, 100_000, "")
	bothVersions(t, g.stack, func(t *testing.T, c *http.Client) {
		for name, tc := range map[string]struct {
			body    []byte
			decoded int
		}{
			"fewer bytes": {good, 300_001}, "more bytes": {good, 299_999}, "none": {good, 0},
			"a request behind": {append(bytes.Clone(good), "GET /bucket/x HTTP/1.1\r\nHost: s3.test\r\n\r\n"...), 300_000},
			"no framing":       {data, 300_000}, "bad size": {append([]byte("-1"), good...), 300_000},
			"bad later": {bytes.Replace(good, []byte("\r\n186a0;"), []byte("\r\n186A1;"), 1), 300_000},
			"small":     {chunkedBody([]byte("abc"), 3, ""), 2},
		} {
			t.Run(name, func(t *testing.T) {
				a := patient(t, c, func() *http.Request { return g.uploadOf(t, "hostile", tc.body, tc.decoded, false, true) })
				// The store may be quicker to say that its body is cut than egressd to say why.
				if code := a.header.Get("X-Egressd-Error"); a.status != http.StatusBadRequest || code != "bad_request" && !strings.Contains(a.body, "IncompleteBody") {
					t.Errorf("%d %v %.300s", a.status, a.header, a.body)
				}
				if _, ok := g.store.Object("bucket", "hostile"); ok {
					t.Error("it was stored")
				}
			})
		}
		g.records.wait(t, func(a audit.Record) bool { return a.Code == "bad_request" })
		g.forget()
		for name, edit := range map[string]func(*http.Request){
			"no length": func(r *http.Request) { r.Header.Del("X-Amz-Decoded-Content-Length") },
			"unknown trailer": func(r *http.Request) {
				r.Header["X-Amz-Content-Sha256"] = []string{"STREAMING-AWS4-HMAC-SHA256-PAYLOAD-TRAILER"}
			},
		} {
			if a := patient(t, c, func() *http.Request {
				r := g.uploadOf(t, "hostile", good, 300_000, false, true)
				edit(r)
				return r
			}); a.status != http.StatusBadRequest || !strings.HasPrefix(a.header.Get("X-Egressd-Error"), "aws_signature_") {
				t.Errorf("%s: %+v", name, a)
			}
		}
	})
	g.ours(t)
}

// What scrubbing takes out of a request is taken out before it is signed.
func TestS3Scrubbed(t *testing.T) {
	g := awsAttacked(t, boundToS3, func(p string) string {
		return strings.Replace(p, "domains: [s3.test]}", "domains: [s3.test], scrub: true}", 1)
	})
	bothVersions(t, g.stack, func(t *testing.T, c *http.Client) {
		cl := g.s3With(c, nil)
		data := []byte("before " + canary + " after")
		// The value is the rule's own, which the leak guard lets through; the answer gives it back.
		if _, err := cl.PutObject(t.Context(), &s3.PutObjectInput{Bucket: aws.String("bucket"), Key: aws.String("echo"), Body: bytes.NewReader(data)}); err != nil {
			t.Fatal(err)
		}
		out, err := cl.GetObject(t.Context(), &s3.GetObjectInput{Bucket: aws.String("bucket"), Key: aws.String("echo"), Range: aws.String("bytes=0-9")})
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = out.Body.Close() }()
		if got, err := io.ReadAll(out.Body); err != nil || string(got) != "before [redacted] after" {
			t.Errorf("%q, %v", got, err)
		}
	})
	g.safe(t)
}

// The leak guard looks into chunks as into any body, and ends the upload before its last one.
func TestLeakGuardLooksIntoChunks(t *testing.T) {
	g := awsAttacked(t, boundToS3, nil)
	g.key(testbed.AWSKey{ID: realID, Secret: "another-key-than-the-token-of-good.test"})
	if a := get(t, g.one(), g.bed.Good.URL("/bearer")); a.status != http.StatusOK { // the token is in memory from here on
		t.Fatalf("%+v", a)
	}
	bothVersions(t, g.stack, func(t *testing.T, c *http.Client) {
		data := append(pattern(200_000), canary...)
		a := patient(t, c, func() *http.Request {
			return g.uploadOf(t, "leak", chunkedBody(data, 70_000, ""), len(data), false, true)
		})
		if code := a.header.Get("X-Egressd-Error"); code != "secret_in_request" && !strings.Contains(a.body, "IncompleteBody") {
			t.Errorf("%+v", a)
		}
		if _, ok := g.store.Object("bucket", "leak"); ok {
			t.Error("it was stored")
		}
	})
	g.ours(t)
}

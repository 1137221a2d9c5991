package sigv4

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"

	"github.com/egressd/egressd/internal/secret"
)

// The keys of AWS's documents; the id is not part of what is signed.
const (
	docsKey  = "wJalrXUtnFEMI/K7MDENG/" + "bPxRfiCYEXAMPLEKEY"
	suiteKey = "wJalrXUtnFEMI/K7MDENG+" + "bPxRfiCYEXAMPLEKEY"
	emptySum = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
)

var (
	docsTime  = time.Date(2013, 5, 24, 0, 0, 0, 0, time.UTC)
	suiteTime = time.Date(2015, 8, 30, 12, 36, 0, 0, time.UTC)
)

// claimed is an Authorization that a sandbox would send.
func claimed(region, service, signed string) string {
	return "AWS4-HMAC-SHA256 Credential=SANDBOX/19700101/" + region + "/" + service + "/aws4_request, SignedHeaders=" + signed + ", Signature=" + strings.Repeat("0a", 32)
}

// resign reads and signs r, whose Authorization is the sandbox's.
func resign(t testing.TB, r *Request, key string, at time.Time) error {
	t.Helper()
	c, err := Read(r.Header, r.RawQuery, Bounds{Service: r.Header.Get("Test-Service")})
	if err != nil {
		return err
	}
	delete(r.Header, "Test-Service")
	return c.Sign(t.Context(), r, Keys{AccessKeyID: "OURS", SecretAccessKey: secret.New(key)}, at)
}

func signatureOf(r *Request) string {
	_, s, _ := strings.Cut(r.Header.Get("Authorization"), "Signature=")
	return s
}

// TestPublishedSignatures reproduces what AWS's documents and its test suite print.
func TestPublishedSignatures(t *testing.T) {
	const bucket = "examplebucket.s3.amazonaws.com"
	for name, tc := range map[string]struct {
		method, host, path, query string
		region, service, signed   string
		header                    http.Header
		key                       string
		at                        time.Time
		want                      string
	}{
		"S3 GET object": {"GET", bucket, "/test.txt", "", "us-east-1", "s3", "host;range;x-amz-content-sha256;x-amz-date",
			http.Header{"Range": {"bytes=0-9"}, "X-Amz-Content-Sha256": {emptySum}}, docsKey, docsTime, "f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41"},
		"S3 GET lifecycle": {"GET", bucket, "/", "lifecycle", "us-east-1", "s3", "host;x-amz-content-sha256;x-amz-date",
			http.Header{"X-Amz-Content-Sha256": {emptySum}}, docsKey, docsTime, "fea454ca298b7da1c68078a5d1bdbfbbe0d65c699e0f91ac7a200a0136783543"},
		"S3 list": {"GET", bucket, "/", "prefix=J&max-keys=2", "us-east-1", "s3", "host;x-amz-content-sha256;x-amz-date",
			http.Header{"X-Amz-Content-Sha256": {emptySum}}, docsKey, docsTime, "34b48302e7b5fa45bde8084f4b7868a86f0a534bc59db6670ed5711ef69dc6f7"},
		"IAM ListUsers": {"GET", "iam.amazonaws.com", "/", "Action=ListUsers&Version=2010-05-08", "us-east-1", "iam", "content-type;host;x-amz-date",
			http.Header{"Content-Type": {"application/x-www-form-urlencoded; charset=utf-8"}}, suiteKey, suiteTime, "5d672d79c15b13162d9279b0855cfba6789a8edb4c82c400e06b5924a6f2b5d7"},
		"get-vanilla": {"GET", "example.amazonaws.com", "/", "", "us-east-1", "service", "host;x-amz-date",
			http.Header{}, suiteKey, suiteTime, "5fa00fa31553b73ebf1942676e86291e8372ff2a2260956d9b8aae1d763fbf31"},
		"get-vanilla-query-order-key-case": {"GET", "example.amazonaws.com", "/", "Param2=value2&Param1=value1", "us-east-1", "service", "host;x-amz-date",
			http.Header{}, suiteKey, suiteTime, "b97d918cfa904a5beff61c982a1b6f458b799221646efd99d3219ec94cdf2500"},
		"post-vanilla": {"POST", "example.amazonaws.com", "/", "", "us-east-1", "service", "host;x-amz-date",
			http.Header{}, suiteKey, suiteTime, "5da7c1a2acd57cee7505fc6676e4e544621c30862966e37dddb68e92efbe5d6b"},
	} {
		t.Run(name, func(t *testing.T) {
			r := &Request{Method: tc.method, TLS: true, Authority: tc.host, Path: tc.path, RawQuery: tc.query, Header: tc.header}
			tc.header.Set("Authorization", claimed(tc.region, tc.service, tc.signed))
			tc.header.Set("Test-Service", tc.service)
			if err := resign(t, r, tc.key, tc.at); err != nil {
				t.Fatal(err)
			}
			if got := signatureOf(r); got != tc.want || !strings.Contains(r.Header.Get("Authorization"), "SignedHeaders="+tc.signed+",") {
				t.Errorf("%s\nwant %s", r.Header.Get("Authorization"), tc.want)
			}
		})
	}
}

// chunked is a body as a sandbox sends it, in chunks of these sizes, signed with nothing.
func chunked(data []byte, sizes []int, trailer string) []byte {
	const signature = ";chunk-signature=0000000000000000000000000000000000000000000000000000000000000000\r\n"
	var b bytes.Buffer
	for i := 0; len(data) > 0; i++ {
		n := min(sizes[min(i, len(sizes)-1)], len(data))
		b.WriteString(hexOf(n) + signature)
		b.Write(data[:n])
		b.WriteString("\r\n")
		data = data[n:]
	}
	b.WriteString("0" + signature)
	if trailer != "" {
		b.WriteString(trailer + "x-amz-trailer-signature:" + strings.Repeat("00", 32) + "\r\n")
	}
	b.WriteString("\r\n")
	return b.Bytes()
}

func hexOf(n int) string {
	const digits = "0123456789abcdef"
	if n < 16 {
		return digits[n : n+1]
	}
	return hexOf(n/16) + digits[n%16:n%16+1]
}

// upload is the request of AWS's example of a chunked upload.
func upload(body []byte, decoded, payload string, more ...string) *Request {
	h := http.Header{"X-Amz-Storage-Class": {"REDUCED_REDUNDANCY"}, "X-Amz-Content-Sha256": {payload}, "Content-Encoding": {"aws-chunked"},
		"X-Amz-Decoded-Content-Length": {decoded}}
	signed := "content-encoding;content-length;host;x-amz-content-sha256;x-amz-date;x-amz-decoded-content-length;x-amz-storage-class"
	for i := 0; i+1 < len(more); i += 2 {
		h.Set(more[i], more[i+1])
		signed = strings.Replace(signed, "content-length;", "", 1) + ";" + strings.ToLower(more[i])
	}
	h.Set("Authorization", claimed("us-east-1", "s3", signed))
	return &Request{Method: "PUT", TLS: true, Authority: "s3.amazonaws.com", Path: "/examplebucket/chunkObject.txt", Header: h,
		Body: io.NopCloser(bytes.NewReader(body)), ContentLength: int64(len(body))}
}

func TestPublishedChunks(t *testing.T) {
	data := bytes.Repeat([]byte{'a'}, 65<<10)
	for name, sizes := range map[string][]int{"as there": {64 << 10}, "small": {100, 9000}, "one": {1 << 20}, "bytes": {1, 2, 3, 60_000, 7}} {
		t.Run(name, func(t *testing.T) {
			r := upload(chunked(data, sizes, ""), "66560", signedChunks)
			if err := resign(t, r, docsKey, docsTime); err != nil {
				t.Fatal(err)
			}
			out, err := io.ReadAll(r.Body)
			want := "10000;chunk-signature=ad80c730a21e5b8d04586a2213dd63b9a0e99e0e2307b0ade35a65485a288648\r\n" + strings.Repeat("a", 65536) +
				"\r\n400;chunk-signature=0055627c9e194cb4542bae2aa5492e3c1575bbb81b612b7d234b86a503ef5497\r\n" + strings.Repeat("a", 1024) +
				"\r\n0;chunk-signature=b6c6ea8a5354eaf15b3cb7646744f4275b71ea724fed81ceb9323e279d449df9\r\n\r\n"
			if err != nil || string(out) != want || r.ContentLength != 66824 || signatureOf(r) != "4f232c4386841ef735655705268965c44a0e4690baa4adea153f7db9fa80a0a9" {
				t.Errorf("%v, %d bytes, announced %d, seed %s", err, len(out), r.ContentLength, signatureOf(r))
			}
		})
		for _, end := range []string{"\r\n", "\n\r\n"} {
			t.Run(name+" with a trailer", func(t *testing.T) {
				r := upload(chunked(data, sizes, "x-amz-checksum-crc32c:sOO8/Q=="+end), "66560", signedTrailer, "X-Amz-Trailer", "x-amz-checksum-crc32c")
				if err := resign(t, r, docsKey, docsTime); err != nil {
					t.Fatal(err)
				}
				out, err := io.ReadAll(r.Body)
				want := "10000;chunk-signature=b474d8862b1487a5145d686f57f013e54db672cee1c953b3010fb58501ef5aa2\r\n" + strings.Repeat("a", 65536) +
					"\r\n400;chunk-signature=1c1344b170168f8e65b41376b44b20fe354e373826ccbbe2c1d40a8cae51e5c7\r\n" + strings.Repeat("a", 1024) +
					"\r\n0;chunk-signature=2ca2aba2005185cf7159c6277faf83795951dd77a3a99e6e65d5c9f85863f992\r\nx-amz-checksum-crc32c:sOO8/Q==\r\n" +
					"x-amz-trailer-signature:d81f82fc3505edab99d459891051a732e8730629a2e4a59689829ca17fe2e435\r\n\r\n"
				if err != nil || string(out) != want || r.ContentLength != 66946 || signatureOf(r) != "106e2a8a18243abcf37539882f36619c00e2dfc72633413f02d3b74544bfeb8e" {
					t.Errorf("%v, %d bytes, announced %d, seed %s: %q", err, len(out), r.ContentLength, signatureOf(r), out[max(0, len(out)-300):])
				}
			})
		}
	}
}

// The official signer of event streams makes the same chain when events have no headers.
func TestChunksAgainstOfficialSigner(t *testing.T) {
	at := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	seed := bytes.Repeat([]byte{7}, 32)
	official := v4.NewStreamSigner(aws.Credentials{AccessKeyID: "x", SecretAccessKey: docsKey}, "s3", "eu-test-1", seed)
	own := newChunkSigner(secret.New(docsKey), "eu-test-1", "s3", strings.Repeat("07", 32), at)
	for n := range 5 {
		data := bytes.Repeat([]byte{byte(n)}, n*1000)
		want, err := official.GetSignature(context.Background(), nil, data, at)
		if err != nil {
			t.Fatal(err)
		}
		if got := own.chunk(data); got != hexString(want) {
			t.Errorf("chunk %d: %s, want %x", n, got, want)
		}
	}
}

func hexString(b []byte) string {
	const digits = "0123456789abcdef"
	var s strings.Builder
	for _, c := range b {
		s.WriteByte(digits[c>>4])
		s.WriteByte(digits[c&15])
	}
	return s.String()
}

func TestHostileChunks(t *testing.T) {
	good := string(chunked([]byte("hello, world"), []int{5}, ""))
	sum := "x-amz-checksum-crc32c:sOO8/Q==\r\n"
	trailed := string(chunked([]byte("hello, world"), []int{12}, sum))
	for name, tc := range map[string]struct {
		body, length string
		trailer      bool
	}{
		"less than announced": {good, "13", false}, "more than announced": {good, "11", false}, "nothing announced": {good, "0", false},
		"cut": {good[:len(good)-1], "12", false}, "cut in data": {good[:88], "12", false}, "empty": {"", "12", false}, "empty of nothing": {"", "0", false},
		"bytes behind": {good + "x", "12", false}, "a request behind": {good + "GET / HTTP/1.1\r\n\r\n", "12", false},
		"bare line feeds": {strings.ReplaceAll(good, "\r\n", "\n"), "12", false}, "bare carriage returns": {strings.ReplaceAll(good, "\r\n", "\r"), "12", false},
		"negative": {strings.Replace(good, "5;", "-5;", 1), "12", false}, "plus": {strings.Replace(good, "5;", "+5;", 1), "12", false},
		"0x": {strings.Replace(good, "5;", "0x5;", 1), "12", false}, "blank": {strings.Replace(good, "5;", "5 ;", 1), "12", false},
		"underscore": {strings.Replace(good, "5;", "0_5;", 1), "12", false}, "no size": {strings.Replace(good, "5;", ";", 1), "12", false},
		"overflow": {strings.Replace(good, "5;", "ffffffffffffffff;", 1), "12", false}, "long": {strings.Replace(good, "5;", strings.Repeat("0", 20)+"5;", 1), "12", false},
		"no signature": {strings.Replace(good, ";chunk-signature=", ";", 1), "12", false}, "short signature": {strings.Replace(good, "=0", "=", 1), "12", false},
		"other extension": {strings.Replace(good, ";chunk", ";a=b;chunk", 1), "12", false}, "endless head": {strings.Repeat("0", 1<<20), "12", false},
		"size that lies": {strings.Replace(good, "5;", "4;", 1), "12", false}, "trailer unasked": {trailed, "12", false},
		"no trailer": {good, "12", true}, "another trailer": {strings.Replace(trailed, "crc32c", "crc32", 1), "12", true},
		"trailer twice": {strings.Replace(trailed, sum, sum+sum, 1), "12", true}, "trailer of another length": {strings.Replace(trailed, "sOO8/Q==", "sOO8", 1), "12", true},
		"trailer not base64": {strings.Replace(trailed, "sOO8/Q==", "sOO8/\r==", 1), "12", true}, "trailer with loose bits": {strings.Replace(trailed, "sOO8/Q==", "sOO8/R==", 1), "12", true},
		"no trailer signature": {strings.Replace(trailed, "x-amz-trailer-signature", "x-amz-trailer-sig", 1), "12", true},
	} {
		t.Run(name, func(t *testing.T) {
			r := upload([]byte(tc.body), tc.length, signedChunks)
			if tc.trailer {
				r = upload([]byte(tc.body), tc.length, signedTrailer, "X-Amz-Trailer", "x-amz-checksum-crc32c")
			}
			if err := resign(t, r, docsKey, docsTime); err != nil {
				t.Fatal(err)
			}
			out, err := io.ReadAll(r.Body)
			var se *Error
			if !errors.As(err, &se) || se.Code != CodeMalformed {
				t.Errorf("%v, %d bytes came out", err, len(out))
			}
			if bytes.Contains(out, []byte("\r\n0;chunk")) {
				t.Errorf("the last chunk came out: %q", out)
			}
		})
	}
}

type failing struct{ error }

func (f failing) Read([]byte) (int, error) { return 0, f.error }

func TestBodyErrorsPass(t *testing.T) {
	broken := errors.New("the client is gone")
	body := chunked(bytes.Repeat([]byte{1}, 1000), []int{500}, "")
	for _, n := range []int{0, 1, 50, 90, 700, len(body) - 1, len(body)} {
		r := upload(nil, "1000", signedChunks)
		r.Body = io.NopCloser(io.MultiReader(bytes.NewReader(body[:n]), failing{broken}))
		if err := resign(t, r, docsKey, docsTime); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadAll(r.Body); !errors.Is(err, broken) {
			t.Errorf("after %d bytes: %v", n, err)
		}
	}
}

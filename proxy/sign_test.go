package proxy_test

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
	"github.com/aws/aws-sdk-go-v2/service/sts"

	"github.com/egressd/egressd/internal/audit"
	"github.com/egressd/egressd/internal/testbed"
)

const awsPolicy = `
apiVersion: egressd/v1
sandboxes:
  - id: one
    team: acme
    identify: {proxyTokens: ["TOKENONE"]}
    network:
      egress:
        trafficRules:
          - {name: all, action: allow, domains: [good.test, evil.test, s3.test, dynamo.test, sts.test]}
        credentialRules:
          - {name: store, credentialRef: keys, protocol: https, domains: [s3.test]}
          - {name: table, credentialRef: anykeys, protocol: https, domains: [dynamo.test, sts.test]}
          - {name: good-token, credentialRef: gh, protocol: https, domains: [good.test]}
      credentialBindings:
        - {ref: keys, sourceRef: aws-source, projection: {type: aws_sigv4, awsSigv4: {BOUNDS}}}
        - {ref: anykeys, sourceRef: aws-source, projection: {type: aws_sigv4}}
        - ref: gh
          sourceRef: gh-source
          projection:
            type: http_headers
            httpHeaders: {headers: [{name: Authorization, valueTemplate: "Bearer {{ .token }}"}]}
  - id: two
    team: other
    identify: {proxyTokens: ["TOKENTWO"]}
    network: {egress: {trafficRules: [{name: all, action: allow, domains: [good.test]}]}}
`

const (
	boundToS3 = "region: eu-test-1, service: s3"
	realID    = "EGDTESTREALKEY01"
	dummyID   = "EGDTESTSANDBOX99"
	dummyKey  = "what-the-sandbox-signs-with"
)

// awsRig is a rig with AWS-like origins.
type awsRig struct {
	*rig
	store   *testbed.S3
	table   *testbed.AWSJSON
	tokens  *testbed.AWSJSON
	origin  *testbed.Origin
	dynamo  *testbed.Origin
	sts     *testbed.Origin
	current testbed.AWSKey
}

func awsAttacked(t testing.TB, bounds string, edit func(policy string) string) *awsRig {
	t.Helper()
	g := &awsRig{rig: attacked(t, options{hosts: map[string]string{"s3.test": "127.0.0.6", "dynamo.test": "127.0.0.7", "sts.test": "127.0.0.8"}})}
	g.store, g.table, g.tokens = testbed.NewS3("eu-test-1"), testbed.NewAWSJSON("eu-test-1", "dynamodb"), testbed.NewAWSJSON("eu-test-1", "sts")
	g.origin = testbed.NewOrigin(t, g.bed.CA, testbed.OriginOptions{IP: "127.0.0.6", Names: []string{"s3.test"}, Handler: g.store})
	g.dynamo = testbed.NewOrigin(t, g.bed.CA, testbed.OriginOptions{IP: "127.0.0.7", Names: []string{"dynamo.test"}, Handler: g.table})
	g.sts = testbed.NewOrigin(t, g.bed.CA, testbed.OriginOptions{IP: "127.0.0.8", Names: []string{"sts.test"}, Handler: g.tokens})
	g.key(testbed.AWSKey{ID: realID, Secret: canary})
	text := strings.Replace(awsPolicy, "BOUNDS", bounds, 1)
	if edit != nil {
		text = edit(text)
	}
	g.use(text)
	return g
}

// key changes the source, and what the origins take.
func (g *awsRig) key(k testbed.AWSKey) {
	g.t.Helper()
	g.current = k
	block := map[string]string{"accessKeyId": k.ID, "secretAccessKey": k.Secret}
	if k.Token != "" {
		block["sessionToken"] = k.Token
	}
	g.put("acme", "aws-source", "aws_access_key", map[string]any{"awsAccessKey": block})
	g.store.SetKey(k)
	g.table.SetKey(k)
	g.tokens.SetKey(k)
}

// s3With is the official client with worthless keys.
func (g *awsRig) s3With(c *http.Client, edit func(*s3.Options)) *s3.Client {
	o := s3.Options{Region: "eu-test-1", BaseEndpoint: aws.String(g.origin.URL("")), UsePathStyle: true, HTTPClient: c,
		Credentials: credentials.NewStaticCredentialsProvider(dummyID, dummyKey, "the-sandbox's-own-token"), RetryMaxAttempts: 1}
	if edit != nil {
		edit(&o)
	}
	return s3.New(o)
}

// stored wants the object to be in the store.
func (g *awsRig) stored(t testing.TB, key string, want []byte) {
	t.Helper()
	if got, ok := g.store.Object("bucket", key); !ok || !bytes.Equal(got, want) {
		t.Errorf("%s: %d bytes stored (%v), want %d; calls %+v", key, len(got), ok, len(want), g.store.Calls())
	}
}

// ours: nothing of the sandbox's signature reached an origin.
func (g *awsRig) ours(t testing.TB) {
	t.Helper()
	for _, o := range []*testbed.Origin{g.origin, g.dynamo, g.sts} {
		testbed.NoLeak(t, "what the origin got", o.Captured(), dummyID, "the-sandbox's-own-token", canary)
		for _, r := range o.Requests() {
			if head := fmt.Sprint(r.Target, r.Header); strings.Contains(head, dummyID) {
				t.Errorf("the origin got %s", head)
			}
		}
	}
	g.safe(t)
}

func pattern(n int) []byte {
	b, _ := io.ReadAll(io.LimitReader(testbed.Pattern(), int64(n)))
	return b
}

func TestS3ClientSignsWithDummyKeys(t *testing.T) {
	g := awsAttacked(t, boundToS3, nil)
	bothVersions(t, g.stack, func(t *testing.T, c *http.Client) {
		cl, bucket := g.s3With(c, nil), aws.String("bucket")
		for _, tc := range []struct {
			key  string
			size int
		}{{"plain.txt", 11}, {"empty", 0}, {"dir/with space+plus(é)!~'*.bin", 300 << 10}, {"a=b&c;d:e@f,g$h", 70_000}} {
			data := pattern(tc.size)
			if _, err := cl.PutObject(t.Context(), &s3.PutObjectInput{Bucket: bucket, Key: &tc.key, Body: bytes.NewReader(data), ContentType: aws.String("text/plain"),
				Metadata: map[string]string{"note": "two  blanks"}}); err != nil {
				t.Fatalf("put %q: %v", tc.key, err)
			}
			g.stored(t, tc.key, data)
			out, err := cl.GetObject(t.Context(), &s3.GetObjectInput{Bucket: bucket, Key: &tc.key})
			if err != nil {
				t.Fatalf("get %q: %v", tc.key, err)
			}
			if got, err := io.ReadAll(out.Body); err != nil || !bytes.Equal(got, data) {
				t.Errorf("get %q: %d bytes, %v", tc.key, len(got), err)
			}
			_ = out.Body.Close()
			if head, err := cl.HeadObject(t.Context(), &s3.HeadObjectInput{Bucket: bucket, Key: &tc.key}); err != nil || *head.ContentLength != int64(tc.size) {
				t.Errorf("head %q: %+v, %v", tc.key, head, err)
			}
		}
		part, err := cl.GetObject(t.Context(), &s3.GetObjectInput{Bucket: bucket, Key: aws.String("plain.txt"), Range: aws.String("bytes=2-5")})
		if err != nil || aws.ToInt64(part.ContentLength) != 4 {
			t.Fatalf("range: %+v, %v", part, err)
		}
		_ = part.Body.Close()
		list, err := cl.ListObjectsV2(t.Context(), &s3.ListObjectsV2Input{Bucket: bucket, Prefix: aws.String("dir/with space+"), MaxKeys: aws.Int32(5)})
		if err != nil || len(list.Contents) != 1 {
			t.Fatalf("list: %+v, %v", list, err)
		}
		if _, err := cl.DeleteObject(t.Context(), &s3.DeleteObjectInput{Bucket: bucket, Key: aws.String("plain.txt")}); err != nil {
			t.Errorf("delete: %v", err)
		}
		if _, ok := g.store.Object("bucket", "plain.txt"); ok {
			t.Error("it was not deleted")
		}
	})
	g.ours(t)
}

func TestS3Multipart(t *testing.T) {
	g := awsAttacked(t, boundToS3, nil)
	bothVersions(t, g.stack, func(t *testing.T, c *http.Client) {
		cl, bucket, key := g.s3With(c, nil), aws.String("bucket"), aws.String("big/"+t.Name())
		begun, err := cl.CreateMultipartUpload(t.Context(), &s3.CreateMultipartUploadInput{Bucket: bucket, Key: key})
		if err != nil {
			t.Fatal(err)
		}
		data := pattern(5<<20 + 12345)
		var parts []types.CompletedPart
		for n := int32(1); int(n-1)<<21 < len(data); n++ {
			piece := data[int(n-1)<<21 : min(int(n)<<21, len(data))]
			out, err := cl.UploadPart(t.Context(), &s3.UploadPartInput{Bucket: bucket, Key: key, UploadId: begun.UploadId, PartNumber: &n, Body: bytes.NewReader(piece)})
			if err != nil {
				t.Fatalf("part %d: %v", n, err)
			}
			parts = append(parts, types.CompletedPart{ETag: out.ETag, PartNumber: &n})
		}
		if _, err := cl.CompleteMultipartUpload(t.Context(), &s3.CompleteMultipartUploadInput{Bucket: bucket, Key: key, UploadId: begun.UploadId,
			MultipartUpload: &types.CompletedMultipartUpload{Parts: parts}}); err != nil {
			t.Fatal(err)
		}
		g.stored(t, *key, data)
	})
	g.ours(t)
}

func TestS3Presigned(t *testing.T) {
	g := awsAttacked(t, boundToS3, nil)
	bothVersions(t, g.stack, func(t *testing.T, c *http.Client) {
		pc := s3.NewPresignClient(g.s3With(c, nil), func(o *s3.PresignOptions) { o.Expires = time.Hour })
		key, data := aws.String("shared/a b.txt"), pattern(100_000)
		put, err := pc.PresignPutObject(t.Context(), &s3.PutObjectInput{Bucket: aws.String("bucket"), Key: key, ContentType: aws.String("text/plain"), ContentLength: aws.Int64(int64(len(data)))})
		if err != nil {
			t.Fatal(err)
		}
		req, _ := http.NewRequest(http.MethodPut, put.URL, bytes.NewReader(data))
		for k, v := range put.SignedHeader {
			if k != "Host" && k != "Content-Length" {
				req.Header[k] = v
			}
		}
		if a := sent(t, c, req); a.status != http.StatusOK {
			t.Fatalf("put: %+v", a)
		}
		g.stored(t, *key, data)
		get, err := pc.PresignGetObject(t.Context(), &s3.GetObjectInput{Bucket: aws.String("bucket"), Key: key, ResponseContentType: aws.String("x/y z")})
		if err != nil {
			t.Fatal(err)
		}
		req, _ = http.NewRequest(http.MethodGet, get.URL, nil)
		if a := sent(t, c, req); a.status != http.StatusOK || a.body != string(data) {
			t.Errorf("get: %d %.200q", a.status, a.body)
		}
		q, _ := url.ParseQuery(g.origin.Last(t).Target[strings.Index(g.origin.Last(t).Target, "?")+1:])
		if q.Get("X-Amz-Expires") != "300" || !strings.HasPrefix(q.Get("X-Amz-Credential"), realID+"/") || q.Get("response-content-type") != "x/y z" || len(q["X-Amz-Signature"]) != 1 {
			t.Errorf("what left: %v", q)
		}
	})
	g.ours(t)
}

func sent(t testing.TB, c *http.Client, req *http.Request) answer {
	t.Helper()
	resp, err := c.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	b, err := io.ReadAll(resp.Body)
	return answer{resp.StatusCode, resp.Header, string(b), err}
}

// patient asks again where the connection ended under the client while it was still sending.
func patient(t testing.TB, c *http.Client, make func() *http.Request) answer {
	t.Helper()
	for try := 0; ; try++ {
		resp, err := c.Do(make())
		if err != nil && try < 10 {
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = resp.Body.Close() }()
		b, err := io.ReadAll(resp.Body)
		return answer{resp.StatusCode, resp.Header, string(b), err}
	}
}

// The three ways in which a client sends a body whose hash it does not know beforehand.
func TestS3StreamingUploads(t *testing.T) {
	g := awsAttacked(t, boundToS3, nil)
	bothVersions(t, g.stack, func(t *testing.T, c *http.Client) {
		data := pattern(1<<20 + 777)
		for _, algorithm := range types.ChecksumAlgorithm("").Values() {
			switch algorithm {
			case types.ChecksumAlgorithmCrc32, types.ChecksumAlgorithmCrc32c, types.ChecksumAlgorithmCrc64nvme, types.ChecksumAlgorithmSha1, types.ChecksumAlgorithmSha256:
			default:
				continue
			}
			key := "trailer-" + string(algorithm)
			_, err := g.s3With(c, nil).PutObject(t.Context(), &s3.PutObjectInput{Bucket: aws.String("bucket"), Key: &key, ChecksumAlgorithm: algorithm,
				Body: struct{ io.Reader }{bytes.NewReader(data)}, ContentLength: aws.Int64(int64(len(data)))})
			if err != nil {
				t.Fatalf("%s: %v", key, err)
			}
			g.stored(t, key, data)
		}
		calls := g.store.Calls()
		if last := calls[len(calls)-1]; last.Payload != "STREAMING-UNSIGNED-PAYLOAD-TRAILER" {
			t.Errorf("%+v", last)
		}
		_, err := g.s3With(c, nil).PutObject(t.Context(), &s3.PutObjectInput{Bucket: aws.String("bucket"), Key: aws.String("unsigned"), Body: struct{ io.Reader }{bytes.NewReader(data)},
			ContentLength: aws.Int64(int64(len(data)))}, s3.WithAPIOptions(v4.SwapComputePayloadSHA256ForUnsignedPayloadMiddleware))
		if err != nil {
			t.Fatal(err)
		}
		g.stored(t, "unsigned", data)
	})
	g.ours(t)
}

func TestS3SessionTokenAndRotation(t *testing.T) {
	g := awsAttacked(t, boundToS3, nil)
	bothVersions(t, g.stack, func(t *testing.T, c *http.Client) {
		cl := g.s3With(c, nil)
		pc := s3.NewPresignClient(cl)
		for i, k := range []testbed.AWSKey{{ID: "EGDTESTTEMPKEY02", Secret: canary + "-2", Token: canary2 + "/token+of=a/session"}, {ID: "EGDTESTREALKEY03", Secret: canary + "-3"}} {
			g.key(k)
			key, data := fmt.Sprintf("rotated-%d", i), pattern(9000+i)
			if _, err := cl.PutObject(t.Context(), &s3.PutObjectInput{Bucket: aws.String("bucket"), Key: &key, Body: bytes.NewReader(data)}); err != nil {
				t.Fatalf("key %d: %v", i, err)
			}
			g.stored(t, key, data)
			get, err := pc.PresignGetObject(t.Context(), &s3.GetObjectInput{Bucket: aws.String("bucket"), Key: &key})
			if err != nil {
				t.Fatal(err)
			}
			req, _ := http.NewRequest(http.MethodGet, get.URL, nil)
			if a := sent(t, c, req); a.status != http.StatusOK || a.body != string(data) {
				t.Errorf("key %d: %d %.300q", i, a.status, a.body)
			}
		}
	})
	g.safe(t)
}

// signedBy is a request that the official signer has signed with keys of the sandbox's own.
func signedBy(t testing.TB, method, target, body, service, region string, edit func(*http.Request)) *http.Request {
	t.Helper()
	req, err := http.NewRequest(method, target, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	if edit != nil {
		edit(req)
	}
	hash := req.Header.Get("X-Amz-Content-Sha256")
	if hash == "" {
		hash = sum(body)
	}
	creds := aws.Credentials{AccessKeyID: dummyID, SecretAccessKey: dummyKey}
	err = v4.NewSigner(func(o *v4.SignerOptions) { o.DisableURIPathEscaping = service == "s3" }).SignHTTP(t.Context(), creds, req, hash, service, region, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	return req
}

func TestAWSServicesOtherThanS3(t *testing.T) {
	g := awsAttacked(t, boundToS3, func(p string) string {
		p = strings.Replace(p, "domains: [dynamo.test, sts.test]}", "domains: [dynamo.test]}\n          - {name: who, credentialRef: stskeys, protocol: https, domains: [sts.test]}", 1)
		return strings.Replace(p, "- {ref: anykeys,", "- {ref: stskeys, sourceRef: aws-source, projection: {type: aws_sigv4, awsSigv4: {service: sts}}}\n        - {ref: anykeys,", 1)
	})
	bothVersions(t, g.stack, func(t *testing.T, c *http.Client) {
		body := `{"TableName": "t"}`
		for _, target := range []string{"/", "/path/with%20space/arn%3Aaws%3Ax%2Fy/(z)!", "/x?b=2&a=1&a=0&c=%2B+d;e&f", "/%C3%A9?q=a%2fb/c"} {
			req := signedBy(t, http.MethodPost, g.dynamo.URL(target), body, "dynamodb", "eu-test-1", func(r *http.Request) {
				r.Header.Set("X-Amz-Target", "DynamoDB_20120810.GetItem")
				r.Header.Set("Content-Type", "application/x-amz-json-1.0")
				r.Header.Set("Date", "Thu, 01 Jan 1970 00:00:00 GMT")
			})
			req.URL, _ = url.Parse(g.dynamo.URL(target)) // the signer has written it anew
			if a := sent(t, c, req); a.status != http.StatusOK || !strings.Contains(a.body, "TableName") {
				t.Errorf("%s: %d %s", target, a.status, a.body)
			}
		}
		who, err := sts.New(sts.Options{Region: "eu-test-1", BaseEndpoint: aws.String(g.sts.URL("")), HTTPClient: c, RetryMaxAttempts: 1,
			Credentials: credentials.NewStaticCredentialsProvider(dummyID, dummyKey, "")}).GetCallerIdentity(t.Context(), nil)
		if err != nil || aws.ToString(who.UserId) != "TESTBED" {
			t.Errorf("%+v, %v", who, err)
		}
		long := func() *http.Request {
			return signedBy(t, http.MethodPost, g.dynamo.URL("/"), strings.Repeat("x", 1<<20+1), "dynamodb", "eu-test-1", nil)
		}
		a := patient(t, c, long)
		if a.status != http.StatusRequestEntityTooLarge || a.header.Get("X-Egressd-Error") != "body_too_large" {
			t.Errorf("a body that cannot be held: %+v", a)
		}
		big := strings.Repeat("x", 1<<20+1)
		if a := sent(t, c, signedBy(t, http.MethodPost, g.dynamo.URL("/"), big, "dynamodb", "eu-test-1", func(r *http.Request) { r.Header.Set("X-Amz-Content-Sha256", sum(big)) })); a.status != http.StatusOK {
			t.Errorf("a body whose hash came with it: %d %.300s", a.status, a.body)
		}
	})
	g.ours(t)
}

func TestAttack_A15_own_aws_key(t *testing.T) {
	g := awsAttacked(t, boundToS3, nil)
	bothVersions(t, g.stack, func(t *testing.T, c *http.Client) {
		at := g.origin.URL("/bucket/x")
		empty := sum("")
		signed := func(region, service string, edit func(*http.Request)) *http.Request {
			return signedBy(t, http.MethodGet, at, "", service, region, func(r *http.Request) {
				r.Header.Set("X-Amz-Content-Sha256", empty)
				if edit != nil {
					edit(r)
				}
			})
		}
		ok := signed("eu-test-1", "s3", nil)
		ok.Header.Set("Cookie", "session=mine")
		ok.Header["X-Amz-Security-Token"] = []string{"the-sandbox's-own-token"}
		if a := sent(t, c, ok); a.status != http.StatusNotFound { // the store's NoSuchKey: it was signed
			t.Errorf("honest: %+v", a)
		}
		if h := g.origin.Last(t).Header; h.Get("Cookie") != "" || h.Get("X-Amz-Security-Token") != "" || !strings.Contains(h.Get("Authorization"), realID) {
			t.Errorf("what left: %v", h)
		}
		presigned := at + "?X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential=" + dummyID + "%2F20260101%2Feu-test-1%2Fs3%2Faws4_request&X-Amz-Date=20260101T000000Z&X-Amz-Expires=60&X-Amz-SignedHeaders=host&X-Amz-Signature=" + empty
		for name, tc := range map[string]struct {
			req    *http.Request
			status int
			code   string
		}{
			"another region":  {signed("us-test-1", "s3", nil), 403, "aws_scope_not_allowed"},
			"another service": {signed("eu-test-1", "dynamodb", nil), 403, "aws_scope_not_allowed"},
			"bearer":          {bareRequest(at, "Authorization", "Bearer mine"), 400, "aws_signature_unsupported"},
			"version 2":       {bareRequest(at, "Authorization", "AWS "+dummyID+":c2lnbmF0dXJl"), 400, "aws_signature_unsupported"},
			"version 2 query": {bareRequest(at+"?AWSAccessKeyId="+dummyID+"&Signature=x&Expires=1", "", ""), 400, "aws_signature_unsupported"},
			"version 4a":      {bareRequest(at, "Authorization", "AWS4-ECDSA-P256-SHA256 Credential="+dummyID+"/20260101/s3/aws4_request, SignedHeaders=host, Signature=00"), 400, "aws_signature_unsupported"},
			"both ways":       {bareRequest(presigned, "Authorization", ok.Header.Get("Authorization")), 400, "aws_signature_malformed"},
			"expires never":   {bareRequest(strings.Replace(presigned, "Expires=60", "Expires=9999999", 1), "", ""), 400, "aws_signature_malformed"},
			"misspelt":        {bareRequest(strings.Replace(presigned, "X-Amz-Signature", "x_amz_signature", 1), "", ""), 400, "aws_signature_malformed"},
			"twice":           {bareRequest(presigned+"&X-Amz-Signature="+empty, "", ""), 400, "aws_signature_malformed"},
			"events":          {signed("eu-test-1", "s3", func(r *http.Request) { r.Header.Set("X-Amz-Content-Sha256", "STREAMING-AWS4-HMAC-SHA256-EVENTS") }), 400, "aws_signature_unsupported"},
			"two signatures": {func() *http.Request {
				r := signed("eu-test-1", "s3", nil)
				r.Header["Authorization"] = append(r.Header["Authorization"], r.Header["Authorization"][0])
				return r
			}(), 400, "aws_signature_malformed"},
		} {
			t.Run("A15 "+name, func(t *testing.T) {
				before := len(g.origin.Requests())
				if a := sent(t, c, tc.req); a.status != tc.status || a.header.Get("X-Egressd-Error") != tc.code {
					t.Errorf("%+v, want %d %s", a, tc.status, tc.code)
				}
				if after := len(g.origin.Requests()); after != before {
					t.Error("the origin was reached")
				}
				g.records.wait(t, func(a audit.Record) bool { return a.Code == tc.code })
			})
		}
	})
	g.ours(t)
}

func bareRequest(target, name, value string) *http.Request {
	req, _ := http.NewRequest(http.MethodGet, target, nil)
	if name != "" {
		req.Header.Set(name, value)
	}
	return req
}

func TestUnsignedAWSRequests(t *testing.T) {
	g := awsAttacked(t, boundToS3, nil)
	bothVersions(t, g.stack, func(t *testing.T, c *http.Client) {
		if a := do(t, c, http.MethodPut, g.origin.URL("/bucket/curl.txt"), func(r *http.Request) {
			r.Body, r.ContentLength = io.NopCloser(strings.NewReader("by curl")), 7
		}); a.status != http.StatusOK {
			t.Errorf("region and service bound: %+v", a)
		}
		g.stored(t, "curl.txt", []byte("by curl"))
		if a := get(t, c, g.dynamo.URL("/")); a.status != http.StatusForbidden || a.header.Get("X-Egressd-Error") != "aws_request_unsigned" {
			t.Errorf("not bound: %+v", a)
		}
		who := signedBy(t, http.MethodPost, g.sts.URL("/"), "Action=GetSessionToken", "sts", "eu-test-1", nil)
		if a := sent(t, c, who); a.status != http.StatusForbidden || a.header.Get("X-Egressd-Error") != "aws_scope_not_allowed" {
			t.Errorf("credentials for the sandbox itself: %+v", a)
		}
	})
	if n := len(g.dynamo.Requests()) + len(g.sts.Requests()); n != 0 {
		t.Errorf("%d requests arrived", n)
	}
	g.ours(t)
}

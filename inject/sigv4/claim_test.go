package sigv4

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"

	"github.com/egressd/egressd/internal/secret"
)

func TestRead(t *testing.T) {
	auth := claimed("eu-test-1", "dynamodb", "content-type;host;x-amz-date")
	sig := strings.Repeat("0a", 32)
	q := "X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential=a%2F20260101%2Feu-test-1%2Fs3%2Faws4_request&X-Amz-Date=20260101T000000Z&X-Amz-SignedHeaders=host&X-Amz-Signature=" + sig
	one := func(name, value string) http.Header { return http.Header{name: {value}} }
	for name, tc := range map[string]struct {
		h      http.Header
		query  string
		bounds Bounds
		code   string // "" when it can be signed
	}{
		"header":                       {one("Authorization", auth), "", Bounds{}, ""},
		"header without blanks":        {one("Authorization", strings.ReplaceAll(auth, ", ", ",")), "", Bounds{}, ""},
		"bounds hold":                  {one("Authorization", auth), "", Bounds{"eu-test-1", "dynamodb"}, ""},
		"presigned":                    {nil, q, Bounds{}, ""},
		"bare, bound":                  {nil, "a=1", Bounds{"eu-test-1", "s3"}, ""},
		"bare":                         {nil, "a=1", Bounds{}, CodeUnsigned},
		"bare, region":                 {nil, "", Bounds{Region: "eu-test-1"}, CodeUnsigned},
		"bare, service":                {nil, "", Bounds{Service: "s3"}, CodeUnsigned},
		"other region":                 {one("Authorization", auth), "", Bounds{Region: "us-test-1"}, CodeScope},
		"other service":                {one("Authorization", auth), "", Bounds{Service: "s3"}, CodeScope},
		"presigned, other":             {nil, q, Bounds{Service: "dynamodb"}, CodeScope},
		"sts":                          {one("Authorization", claimed("eu-test-1", "sts", "host")), "", Bounds{Region: "eu-test-1"}, CodeScope},
		"sts by name":                  {one("Authorization", claimed("eu-test-1", "sts", "host")), "", Bounds{Service: "sts"}, ""},
		"CGI's name":                   {http.Header{"Authorization": {auth}, "AUTHORIZATION": {auth}}, "", Bounds{}, CodeMalformed},
		"two":                          {http.Header{"Authorization": {auth, auth}}, "", Bounds{}, CodeMalformed},
		"both":                         {one("Authorization", auth), q, Bounds{}, CodeMalformed},
		"basic and presigned":          {one("Authorization", "Basic eDp5"), q, Bounds{}, CodeMalformed},
		"basic":                        {one("Authorization", "Basic eDp5"), "", Bounds{"eu-test-1", "s3"}, CodeUnsupported},
		"empty":                        {one("Authorization", ""), "", Bounds{"eu-test-1", "s3"}, CodeUnsupported},
		"v4a":                          {one("Authorization", strings.Replace(auth, "HMAC-SHA256", "ECDSA-P256-SHA256", 1)), "", Bounds{}, CodeUnsupported},
		"v4a presigned":                {nil, strings.Replace(q, "HMAC-SHA256", "ECDSA-P256-SHA256", 1), Bounds{}, CodeUnsupported},
		"v2":                           {one("Authorization", "AWS id:c2ln"), "", Bounds{}, CodeUnsupported},
		"v2 presigned":                 {nil, "awsaccesskeyid=x&Signature=y", Bounds{"eu-test-1", "s3"}, CodeUnsupported},
		"four parts of a scope":        {one("Authorization", strings.Replace(auth, "/aws4_request", "", 1)), "", Bounds{}, CodeMalformed},
		"six parts of a scope":         {one("Authorization", strings.Replace(auth, "SANDBOX/", "SAND/BOX/", 1)), "", Bounds{}, CodeMalformed},
		"no id":                        {one("Authorization", strings.Replace(auth, "SANDBOX/", "/", 1)), "", Bounds{}, CodeMalformed},
		"no region":                    {one("Authorization", strings.Replace(auth, "eu-test-1", "", 1)), "", Bounds{}, CodeMalformed},
		"region with a line feed":      {one("Authorization", strings.Replace(auth, "eu-test-1", "eu\ntest", 1)), "", Bounds{}, CodeMalformed},
		"long service":                 {one("Authorization", strings.Replace(auth, "dynamodb", strings.Repeat("d", 65), 1)), "", Bounds{}, CodeMalformed},
		"no date":                      {one("Authorization", strings.Replace(auth, "19700101", "1970-1-1", 1)), "", Bounds{}, CodeMalformed},
		"terminator":                   {one("Authorization", strings.Replace(auth, "aws4_request", "aws4_requesT", 1)), "", Bounds{}, CodeMalformed},
		"short signature":              {one("Authorization", auth[:len(auth)-1]), "", Bounds{}, CodeMalformed},
		"no signature":                 {one("Authorization", auth[:strings.LastIndex(auth, ",")]), "", Bounds{}, CodeMalformed},
		"signature twice":              {one("Authorization", auth+", Signature="+sig), "", Bounds{}, CodeMalformed},
		"unknown part":                 {one("Authorization", auth+", X=y"), "", Bounds{}, CodeMalformed},
		"no list":                      {one("Authorization", strings.Replace(auth, "content-type;host;x-amz-date", "", 1)), "", Bounds{}, CodeMalformed},
		"upper case in the list":       {one("Authorization", strings.Replace(auth, "host", "Host", 1)), "", Bounds{}, CodeMalformed},
		"long list":                    {one("Authorization", claimed("r", "s", strings.Repeat("a;", 200)+"host")), "", Bounds{}, CodeMalformed},
		"presigned twice":              {nil, q + "&X-Amz-Signature=" + sig, Bounds{}, CodeMalformed},
		"presigned misspelt":           {nil, strings.Replace(q, "X-Amz-Cred", "x%5Famz-cred", 1), Bounds{}, CodeMalformed},
		"presigned without a date":     {nil, strings.Replace(q, "X-Amz-Date=20260101T000000Z&", "", 1), Bounds{}, CodeMalformed},
		"presigned, algorithm alone":   {nil, "X-Amz-Algorithm=AWS4-HMAC-SHA256", Bounds{"eu-test-1", "s3"}, CodeMalformed},
		"presigned, signature alone":   {nil, "X-Amz-Signature=" + sig, Bounds{"eu-test-1", "s3"}, CodeUnsupported},
		"expires 0":                    {nil, q + "&X-Amz-Expires=0", Bounds{}, CodeMalformed},
		"expires -1":                   {nil, q + "&X-Amz-Expires=-1", Bounds{}, CodeMalformed},
		"expires +5":                   {nil, q + "&X-Amz-Expires=%2B5", Bounds{}, CodeMalformed},
		"expires a week":               {nil, q + "&X-Amz-Expires=604800", Bounds{}, ""},
		"expires more":                 {nil, q + "&X-Amz-Expires=604801", Bounds{}, CodeMalformed},
		"percent":                      {nil, q + "&a=%zz", Bounds{}, CodeMalformed},
		"events":                       {http.Header{"Authorization": {auth}, "X-Amz-Content-Sha256": {"STREAMING-AWS4-HMAC-SHA256-EVENTS"}}, "", Bounds{}, CodeUnsupported},
		"v4a chunks":                   {http.Header{"Authorization": {auth}, "X-Amz-Content-Sha256": {"STREAMING-AWS4-ECDSA-P256-SHA256-PAYLOAD"}}, "", Bounds{}, CodeUnsupported},
		"no hash":                      {http.Header{"Authorization": {auth}, "X-Amz-Content-Sha256": {""}}, "", Bounds{}, CodeUnsupported},
		"two hashes":                   {http.Header{"Authorization": {auth}, "X-Amz-Content-Sha256": {emptySum, sig}}, "", Bounds{}, CodeMalformed},
		"unsigned payload":             {http.Header{"Authorization": {auth}, "X-Amz-Content-Sha256": {"UNSIGNED-PAYLOAD"}}, "", Bounds{}, ""},
		"presigned, chunks":            {one("X-Amz-Content-Sha256", signedChunks), q, Bounds{}, CodeUnsupported},
		"presigned, unsigned chunks":   {one("X-Amz-Content-Sha256", unsignedTrailer), q, Bounds{}, ""},
		"presigned, hash in the query": {nil, q + "&X-Amz-Content-Sha256=" + emptySum, Bounds{}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			before := fmt.Sprint(tc.h)
			c, err := Read(tc.h, tc.query, tc.bounds)
			var se *Error
			if errors.As(err, &se) && se.Code == tc.code && c == nil || err == nil && tc.code == "" && c.region == "eu-test-1" {
				if fmt.Sprint(tc.h) != before {
					t.Error("the header was changed")
				}
				return
			}
			t.Errorf("%+v, %v, want %q", c, err, tc.code)
		})
	}
}

func TestSignReplacesWhatTheClientSent(t *testing.T) {
	h := http.Header{
		"Authorization": {claimed("eu-test-1", "s3", "accept;content-length;date;host;te;x-amz-date;x-amz-meta-a;x-gone")},
		"Accept":        {"a", "b"}, "X-Amz-Date": {"20200101T000000Z"}, "X-Amz-Security-Token": {"theirs"}, "X-Amz-S3session-Token": {"theirs"},
		"X_amz_security_token": {"theirs"}, "Date": {"long ago"}, "X-Amz-Meta-A": {"1", "2"}, "X-Amz-Meta-Unlisted": {"signed all the same"},
		"X-Other": {"not signed"}, "Content-Length": {"5"},
	}
	r := &Request{Method: "PUT", TLS: true, Authority: "h.test:8443", Path: "/b/(k)", RawQuery: "b=2&&a=%2f+x&a;c&X-Amz-Date=x&X-Amz-Security-Token=theirs", Header: h,
		Body: io.NopCloser(strings.NewReader("12345")), ContentLength: 5}
	c, err := Read(r.Header, r.RawQuery, Bounds{})
	if err != nil {
		t.Fatal(err)
	}
	keys := Keys{AccessKeyID: "OURS", SecretAccessKey: secret.New(docsKey), SessionToken: secret.New("our-token")}
	if err := c.Sign(t.Context(), r, keys, docsTime); err != nil {
		t.Fatal(err)
	}
	if r.Path != "/b/%28k%29" || r.RawQuery != "b=2&a=%2F%20x&a%3Bc" {
		t.Errorf("%s?%s", r.Path, r.RawQuery)
	}
	auth := h.Get("Authorization")
	if !strings.HasPrefix(auth, "AWS4-HMAC-SHA256 Credential=OURS/20130524/eu-test-1/s3/aws4_request, SignedHeaders="+
		"accept;content-length;host;x-amz-content-sha256;x-amz-date;x-amz-meta-a;x-amz-meta-unlisted;x-amz-security-token, Signature=") {
		t.Error(auth)
	}
	if h.Get("X-Amz-Date") != "20130524T000000Z" || h.Get("X-Amz-Security-Token") != "our-token" || h.Get("X-Amz-Content-Sha256") != unsignedPayload {
		t.Error(h)
	}
	if strings.Contains(fmt.Sprint(h), "theirs") || h.Get("Date") != "" || len(h) != 9 {
		t.Errorf("%d fields: %v", len(h), h)
	}
	if strings.Contains(fmt.Sprint(h, r.Path, r.RawQuery), docsKey) {
		t.Error("the secret key is in the request")
	}
}

func TestPathsThatAreNotNormal(t *testing.T) {
	for _, path := range []string{"/a/../b", "/a/./b", "/a//b", "/a/%2e%2E/b", "/..", "/.", "/a%zz"} {
		r := &Request{Method: "GET", Authority: "h.test", Path: path, Header: http.Header{"Authorization": {claimed("r", "dynamodb", "host")}}}
		if err := resign(t, r, docsKey, docsTime); err == nil {
			t.Errorf("%s was signed as %s", path, r.Path)
		}
		r = &Request{Method: "GET", Authority: "h.test", Path: path, Header: http.Header{"Authorization": {claimed("r", "s3", "host")}}}
		if err := resign(t, r, docsKey, docsTime); (err == nil) != (path != "/a%zz") {
			t.Errorf("S3 takes %s as it is: %v", path, err)
		}
	}
}

func TestUploadsThatCannotBeSigned(t *testing.T) {
	body := chunked([]byte("x"), []int{1}, "")
	for name, edit := range map[string]func(*Request){
		"no length":       func(r *Request) { r.Header.Del("X-Amz-Decoded-Content-Length") },
		"two lengths":     func(r *Request) { r.Header.Add("X-Amz-Decoded-Content-Length", "1") },
		"negative length": func(r *Request) { r.Header.Set("X-Amz-Decoded-Content-Length", "-1") },
		"huge length":     func(r *Request) { r.Header.Set("X-Amz-Decoded-Content-Length", "9223372036854775807") },
		"hugest length":   func(r *Request) { r.Header.Set("X-Amz-Decoded-Content-Length", "99999999999999999999") },
		"no body":         func(r *Request) { r.Body = http.NoBody },
		"no trailer":      func(r *Request) { r.Header.Set("X-Amz-Content-Sha256", signedTrailer) },
		"unknown trailer": func(r *Request) { trailer(r, "x-amz-checksum-crc16") },
		"no such trailer": func(r *Request) { trailer(r, "content-length") },
		"trailer twice":   func(r *Request) { trailer(r, "x-amz-checksum-crc32, X-Amz-Checksum-Crc32") },
		"too many of them": func(r *Request) {
			trailer(r, "x-amz-checksum-crc32,x-amz-checksum-crc32c,x-amz-checksum-sha1,x-amz-checksum-sha256,x-amz-checksum-md5")
		},
	} {
		r := upload(body, "1", signedChunks)
		edit(r)
		var se *Error
		if err := resign(t, r, docsKey, docsTime); !errors.As(err, &se) || signatureOf(r) == "" && r.Header.Get("Authorization") != "" {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func trailer(r *Request, names string) {
	r.Header.Set("X-Amz-Content-Sha256", signedTrailer)
	r.Header.Set("X-Amz-Trailer", names)
}

func TestErrorsTellNothing(t *testing.T) {
	const mark = "sandbox-wrote-this"
	for _, h := range []http.Header{{"Authorization": {mark}}, {"Authorization": {"AWS4-HMAC-SHA256 Credential=" + mark}}, {"Authorization": {claimed(mark, "s3", mark)}, "X-Amz-Content-Sha256": {mark}}} {
		if _, err := Read(h, "", Bounds{}); err == nil || strings.Contains(err.Error(), mark) {
			t.Error(err)
		}
	}
}

func FuzzRead(f *testing.F) {
	f.Add(claimed("eu-test-1", "s3", "host;x-amz-date"), "a=1&b=%2F", "/a%20b/", emptySum)
	f.Add("", "X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential=a%2F20260101%2Fr%2Fs3%2Faws4_request&X-Amz-Date=x&X-Amz-SignedHeaders=host&X-Amz-Signature="+emptySum, "/", "")
	f.Fuzz(func(t *testing.T, auth, query, path, payload string) {
		h := http.Header{"X-Amz-Content-Sha256": {payload}}
		if auth != "" {
			h.Set("Authorization", auth)
		}
		if payload == "" {
			delete(h, "X-Amz-Content-Sha256")
		}
		c, err := Read(h, query, Bounds{})
		if err != nil || !strings.HasPrefix(path, "/") || strings.ContainsAny(path, "?#\\") {
			return
		}
		r := &Request{Method: "GET", TLS: true, Authority: "h.test", Path: path, RawQuery: query, Header: h}
		if err := c.Sign(t.Context(), r, Keys{AccessKeyID: "OURS", SecretAccessKey: secret.New(docsKey)}, docsTime); err != nil {
			return
		}
		u, err := url.ParseRequestURI(r.Path + "?" + r.RawQuery)
		if err != nil {
			t.Fatalf("%q?%q: %v", r.Path, r.RawQuery, err)
		}
		q, err := url.ParseQuery(u.RawQuery)
		if err != nil || (c.form == inQuery) != q.Has("X-Amz-Signature") || (c.form == inQuery) == (h["Authorization"] != nil) {
			t.Fatalf("%v, %v: %v", err, u, h)
		}
		if at := q.Get("X-Amz-Credential") + h.Get("Authorization"); strings.Count(at, "OURS/20130524/") != 1 {
			t.Fatalf("%q", at)
		}
		if again, err := encodePath(r.Path, true); err != nil || again != r.Path {
			t.Fatalf("%q becomes %q, %v", r.Path, again, err)
		}
		was, _ := splitQuery(query)
		is, _ := splitQuery(r.RawQuery)
		own := func(p pair) bool { return isAuthParam(p.loose()) }
		if was, is = slices.DeleteFunc(was, own), slices.DeleteFunc(is, own); !slices.Equal(was, is) {
			t.Fatalf("%q becomes %q", query, r.RawQuery)
		}
	})
}

func FuzzChunks(f *testing.F) {
	f.Add(chunked([]byte("hello, world"), []int{5, 1, 9}, ""), int64(12), false)
	f.Add(chunked([]byte("hello, world"), []int{5}, "x-amz-checksum-crc32c:sOO8/Q==\r\n"), int64(12), true)
	f.Fuzz(func(t *testing.T, body []byte, length int64, trailed bool) {
		if length < 0 || length > maxDecoded {
			return
		}
		var trailers []string
		if trailed {
			trailers = []string{"x-amz-checksum-crc32c"}
		}
		run := func(body []byte) ([]byte, error) {
			c := newChunks(io.NopCloser(bytes.NewReader(body)), length, trailers)
			c.sign = newChunkSigner(secret.New(docsKey), "r", "s3", "", docsTime)
			return io.ReadAll(c)
		}
		out, err := run(body)
		if err != nil {
			var se *Error
			if !errors.As(err, &se) {
				t.Fatal(err)
			}
			return
		}
		if int64(len(out)) != encodedLength(length, trailers) {
			t.Fatalf("%d bytes, announced %d", len(out), encodedLength(length, trailers))
		}
		again, err := run(out)
		if err != nil || !bytes.Equal(again, out) {
			t.Fatalf("what came out does not go in again: %v", err)
		}
	})
}

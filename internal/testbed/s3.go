package testbed

import (
	"bytes"
	"crypto/md5" // what an ETag is
	"encoding/hex"
	"encoding/json"
	"encoding/xml"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// S3 is a store that speaks as much of S3 as its clients need: buckets by path, whole
// objects, multipart uploads, ListObjectsV2, ranges. It verifies every request. Use it as
// OriginOptions.Handler. Safe for concurrent use.
type S3 struct {
	SigV4

	mu      sync.Mutex
	objects map[string]s3Object // "bucket/key"
	uploads map[string]*s3Upload
	calls   []S3Call
	next    int
}

type s3Object struct {
	data        []byte
	contentType string
	at          time.Time
}

type s3Upload struct {
	name  string
	parts map[int][]byte
}

// S3Call is one request: with what it was signed and what came of it.
type S3Call struct{ Method, Target, Payload, Error string }

// NewS3 makes a store with no key: nothing is allowed before SetKey.
func NewS3(region string) *S3 {
	return &S3{SigV4: SigV4{Region: region, Service: "s3"}, objects: map[string]s3Object{}, uploads: map[string]*s3Upload{}}
}

// Object gives what is stored.
func (s *S3) Object(bucket, key string) ([]byte, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	o, ok := s.objects[bucket+"/"+key]
	return o.data, ok
}

// Calls are all requests so far.
func (s *S3) Calls() []S3Call {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.calls)
}

// ServeHTTP verifies and answers.
func (s *S3) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	call := S3Call{Method: r.Method, Target: r.RequestURI, Payload: r.Header.Get("X-Amz-Content-Sha256")}
	body, err := s.Verify(r)
	if err == nil {
		err = checkHeaderSums(r, body)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err == nil {
		err = s.serve(w, r, body)
	}
	if err != nil {
		call.Error = err.Error()
		status, code := codeOf(err)
		w.Header().Set("Content-Type", "application/xml")
		w.WriteHeader(status)
		writeXML(w, struct {
			XMLName xml.Name `xml:"Error"`
			Code    string
			Message string
		}{Code: code, Message: err.Error()})
	}
	s.calls = append(s.calls, call)
}

func checkHeaderSums(r *http.Request, body []byte) error {
	for k, v := range r.Header {
		if low := strings.ToLower(k); strings.HasPrefix(low, "x-amz-checksum-") && low != "x-amz-checksum-mode" &&
			low != "x-amz-checksum-algorithm" && low != "x-amz-checksum-type" && r.Method == http.MethodPut {
			if err := checksum(low, v[0], body); err != nil {
				return err
			}
		}
	}
	return nil
}

func (s *S3) serve(w http.ResponseWriter, r *http.Request, body []byte) error {
	name := strings.TrimPrefix(r.URL.Path, "/")
	bucket, key, _ := strings.Cut(name, "/")
	q := r.URL.Query()
	switch {
	case bucket == "":
		return awsError("InvalidRequest", "no bucket")
	case key == "" && r.Method == http.MethodGet && q.Get("list-type") == "2":
		return s.list(w, bucket, q.Get("prefix"), q.Get("start-after"), q.Get("max-keys"))
	case key == "":
		return awsError("NotImplemented", "%s on a bucket", r.Method)
	case r.Method == http.MethodPost && q.Has("uploads"):
		return s.begin(w, bucket, key)
	case r.Method == http.MethodPost && q.Has("uploadId"):
		return s.complete(w, bucket, key, q.Get("uploadId"), body)
	case r.Method == http.MethodPut && q.Has("uploadId"):
		return s.part(w, name, q.Get("uploadId"), q.Get("partNumber"), body)
	case r.Method == http.MethodPut:
		s.objects[name] = s3Object{data: body, contentType: r.Header.Get("Content-Type"), at: time.Now()}
		w.Header().Set("ETag", etag(body))
	case r.Method == http.MethodGet, r.Method == http.MethodHead:
		o, ok := s.objects[name]
		if !ok {
			return errNoObject
		}
		w.Header().Set("ETag", etag(o.data))
		w.Header().Set("Content-Type", o.contentType)
		http.ServeContent(w, r, "", o.at, bytes.NewReader(o.data))
	case r.Method == http.MethodDelete:
		delete(s.objects, name)
		w.WriteHeader(http.StatusNoContent)
	default:
		return awsError("NotImplemented", "%s", r.Method)
	}
	return nil
}

func (s *S3) list(w http.ResponseWriter, bucket, prefix, after, limit string) error {
	type content struct {
		Key  string
		ETag string
		Size int
	}
	var out struct {
		XMLName     xml.Name `xml:"ListBucketResult"`
		Name        string
		Prefix      string
		KeyCount    int
		MaxKeys     int
		IsTruncated bool
		Contents    []content
	}
	out.Name, out.Prefix, out.MaxKeys = bucket, prefix, 1000
	if n, err := strconv.Atoi(limit); err == nil {
		out.MaxKeys = n
	}
	for name, o := range s.objects {
		if key, ok := strings.CutPrefix(name, bucket+"/"); ok && strings.HasPrefix(key, prefix) && key > after {
			out.Contents = append(out.Contents, content{key, etag(o.data), len(o.data)})
		}
	}
	slices.SortFunc(out.Contents, func(a, b content) int { return strings.Compare(a.Key, b.Key) })
	if len(out.Contents) > out.MaxKeys {
		out.Contents, out.IsTruncated = out.Contents[:out.MaxKeys], true
	}
	out.KeyCount = len(out.Contents)
	writeXML(w, out)
	return nil
}

func (s *S3) begin(w http.ResponseWriter, bucket, key string) error {
	s.next++
	id := fmt.Sprintf("upload-%d", s.next)
	s.uploads[id] = &s3Upload{name: bucket + "/" + key, parts: map[int][]byte{}}
	writeXML(w, struct {
		XMLName  xml.Name `xml:"InitiateMultipartUploadResult"`
		Bucket   string
		Key      string
		UploadId string //nolint:revive // the element's name
	}{Bucket: bucket, Key: key, UploadId: id})
	return nil
}

func (s *S3) part(w http.ResponseWriter, name, id, number string, body []byte) error {
	u, n := s.uploads[id], 0
	if _, err := fmt.Sscan(number, &n); u == nil || u.name != name || err != nil {
		return awsError("NoSuchUpload", "%s part %s", id, number)
	}
	u.parts[n] = body
	w.Header().Set("ETag", etag(body))
	return nil
}

func (s *S3) complete(w http.ResponseWriter, bucket, key, id string, body []byte) error {
	var in struct {
		Part []struct {
			PartNumber int
			ETag       string
		}
	}
	u := s.uploads[id]
	if u == nil || u.name != bucket+"/"+key {
		return awsError("NoSuchUpload", "%s", id)
	}
	if err := xml.Unmarshal(body, &in); err != nil {
		return awsError("InvalidRequest", "%v", err)
	}
	var data []byte
	for _, p := range in.Part {
		part, ok := u.parts[p.PartNumber]
		if !ok || strings.Trim(p.ETag, `"`) != strings.Trim(etag(part), `"`) {
			return awsError("InvalidPart", "%d", p.PartNumber)
		}
		data = append(data, part...)
	}
	delete(s.uploads, id)
	s.objects[u.name] = s3Object{data: data, at: time.Now()}
	writeXML(w, struct {
		XMLName xml.Name `xml:"CompleteMultipartUploadResult"`
		Bucket  string
		Key     string
		ETag    string
	}{Bucket: bucket, Key: key, ETag: etag(data)})
	return nil
}

func etag(b []byte) string {
	sum := md5.Sum(b)
	return `"` + hex.EncodeToString(sum[:]) + `"`
}

func writeXML(w io.Writer, v any) { _ = xml.NewEncoder(w).Encode(v) }

// AWSJSON is a service in the manner of DynamoDB (X-Amz-Target, JSON in and out) or of STS
// (form in, XML out): it answers with who has signed and what came. Use it as
// OriginOptions.Handler. Safe for concurrent use.
type AWSJSON struct{ SigV4 }

// NewAWSJSON makes a service with no key.
func NewAWSJSON(region, service string) *AWSJSON {
	return &AWSJSON{SigV4{Region: region, Service: service}}
}

// ServeHTTP verifies and answers {"path","query","target","body"} or, to a form, the XML of
// GetCallerIdentity.
func (a *AWSJSON) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := a.Verify(r)
	if err != nil {
		status, code := codeOf(err)
		w.Header().Set("Content-Type", "application/x-amz-json-1.0")
		w.WriteHeader(status)
		_ = json.NewEncoder(w).Encode(map[string]string{"__type": code, "message": err.Error()})
		return
	}
	if strings.HasPrefix(r.Header.Get("Content-Type"), "application/x-www-form-urlencoded") {
		w.Header().Set("Content-Type", "text/xml")
		_, _ = io.WriteString(w, `<GetCallerIdentityResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><GetCallerIdentityResult>`+
			`<Arn>arn:aws:iam::000000000000:user/testbed</Arn><UserId>TESTBED</UserId><Account>000000000000</Account></GetCallerIdentityResult>`+
			`<ResponseMetadata><RequestId>1</RequestId></ResponseMetadata></GetCallerIdentityResponse>`)
		return
	}
	w.Header().Set("Content-Type", "application/x-amz-json-1.0")
	_ = json.NewEncoder(w).Encode(map[string]string{"path": r.URL.EscapedPath(), "query": r.URL.RawQuery, "target": r.Header.Get("X-Amz-Target"), "body": string(body)})
}

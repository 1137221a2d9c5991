package proxy_test

import (
	"bytes"
	"context"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/egressd/egressd/internal/testbed"
)

// command runs a client that is not of this program in a sandbox's environment.
func (g *awsRig) command(t testing.TB, name string, args ...string) (string, error) {
	t.Helper()
	dir := t.TempDir()
	ca := filepath.Join(dir, "ca.pem")
	if err := os.WriteFile(ca, g.ca.CertPEM(), 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 40*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, testbed.Tool(t, name), args...)
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + dir, "https_proxy=http://one:" + tokenOne + "@" + g.addr, "SSL_CERT_FILE=" + ca, "CURL_CA_BUNDLE=" + ca,
		"AWS_CA_BUNDLE=" + ca, "AWS_ACCESS_KEY_ID=" + dummyID, "AWS_SECRET_ACCESS_KEY=" + dummyKey, "AWS_SESSION_TOKEN=the-sandbox's-own-token",
		"AWS_DEFAULT_REGION=eu-test-1", "AWS_EC2_METADATA_DISABLED=true", "AWS_PAGER=", "AWS_MAX_ATTEMPTS=1"}
	out, err := cmd.CombinedOutput()
	g.note(out)
	return string(out), err
}

// curl has a signer of its own.
func TestCurlSignsWithDummyKeys(t *testing.T) {
	g := awsAttacked(t, boundToS3, nil)
	for _, version := range []string{"--http1.1", "--http2"} {
		t.Run(version, func(t *testing.T) {
			curl := func(service string, args ...string) string {
				out, err := g.command(t, "curl", append([]string{version, "-sS", "--max-time", "20", "--aws-sigv4", "aws:amz:eu-test-1:" + service, "--user", dummyID + ":" + dummyKey}, args...)...)
				if err != nil {
					t.Fatalf("%v: %s", err, out)
				}
				return out
			}
			if out := curl("s3", "-X", "PUT", "--data-binary", "by curl", g.origin.URL("/bucket/by%20curl.txt")); out != "" {
				t.Fatal(out)
			}
			g.stored(t, "by curl.txt", []byte("by curl"))
			if out := curl("s3", g.origin.URL("/bucket/by%20curl.txt")); out != "by curl" {
				t.Error(out)
			}
			if out := curl("dynamodb", "--data-binary", `{"a":"b"}`, "-H", "Content-Type: application/x-amz-json-1.0", g.dynamo.URL("/x/y%20z")); !strings.Contains(out, `"body":"{\"a\":\"b\"}"`) {
				t.Error(out)
			}
			if out := curl("sts", g.sts.URL("/")); !strings.Contains(out, "aws_scope_not_allowed") {
				t.Error(out)
			}
		})
	}
	g.ours(t)
}

// The command line client of AWS, in Python.
func TestAWSCommandLine(t *testing.T) {
	g := awsAttacked(t, boundToS3, nil)
	dir := t.TempDir()
	big, small := filepath.Join(dir, "big"), filepath.Join(dir, "small")
	data := pattern(9<<20 + 5)
	for path, b := range map[string][]byte{big: data, small: []byte("small")} {
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	cli := func(args ...string) string {
		out, err := g.command(t, "aws", append([]string{"--endpoint-url", g.origin.URL(""), "--cli-read-timeout", "20"}, args...)...)
		if err != nil {
			t.Fatalf("aws %v: %v\n%s\n%+v", args, err, out, g.store.Calls())
		}
		return out
	}
	key := "dir/a b+c(é)!~'*&=;,.bin"
	cli("s3", "cp", "--quiet", small, "s3://bucket/"+key)
	g.stored(t, key, []byte("small"))
	cli("s3", "cp", "--quiet", big, "s3://bucket/big") // in parts
	g.stored(t, "big", data)
	back := filepath.Join(dir, "back")
	cli("s3", "cp", "--quiet", "s3://bucket/big", back) // in ranges
	if got, err := os.ReadFile(back); err != nil || !bytes.Equal(got, data) {
		t.Errorf("%d bytes back, %v", len(got), err)
	}
	cli("s3api", "put-object", "--bucket", "bucket", "--key", "summed", "--body", small, "--checksum-algorithm", "SHA256")
	g.stored(t, "summed", []byte("small"))
	if out := cli("s3api", "list-objects-v2", "--bucket", "bucket", "--prefix", "dir/a b+", "--query", "Contents[].Key", "--output", "text"); strings.TrimSpace(out) != key {
		t.Errorf("%q", out)
	}
	url := strings.TrimSpace(cli("s3", "presign", "s3://bucket/"+key, "--expires-in", "3600"))
	if a := get(t, g.one(), url); a.status != http.StatusOK || a.body != "small" {
		t.Errorf("%s: %+v", url, a)
	}
	cli("s3", "rm", "--quiet", "s3://bucket/"+key)
	if _, ok := g.store.Object("bucket", key); ok {
		t.Error("it was not removed")
	}
	if out, err := g.command(t, "aws", "--endpoint-url", g.sts.URL(""), "sts", "get-caller-identity"); err == nil {
		t.Error(fmt.Sprint("signed for sts: ", out))
	}
	g.ours(t)
}

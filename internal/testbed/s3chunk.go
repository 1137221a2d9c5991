package testbed

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha1" // a checksum of S3's
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"hash"
	"hash/crc32"
	"hash/crc64"
	"net/http"
	"slices"
	"strconv"
	"strings"
)

// chunkDecoder takes an aws-chunked body apart and verifies signatures and checksums.
type chunkDecoder struct {
	declared     string // of X-Amz-Content-Sha256
	header       http.Header
	rest         []byte
	key          []byte
	stamp, scope string
	previous     string
}

func (d *chunkDecoder) decode() ([]byte, error) {
	signed, trailing, err := d.mode()
	if err != nil {
		return nil, err
	}
	want, err := strconv.Atoi(d.header.Get("X-Amz-Decoded-Content-Length"))
	if err != nil {
		return nil, awsError("InvalidRequest", "x-amz-decoded-content-length: %v", err)
	}
	var out []byte
	for sizes := []int{}; ; {
		data, err := d.chunk(signed)
		if err != nil {
			return nil, err
		}
		if len(data) == 0 {
			break
		}
		if sizes = append(sizes, len(data)); len(sizes) > 1 && sizes[len(sizes)-2] < 8<<10 {
			return nil, awsError("InvalidChunkSizeError", "a chunk of less than 8 KiB that is not the last: %v", sizes)
		}
		out = append(out, data...)
	}
	if len(out) != want {
		return nil, awsError("IncompleteBody", "%d bytes, %d announced", len(out), want)
	}
	if trailing {
		if err := d.trailers(signed, out); err != nil {
			return nil, err
		}
	}
	if string(d.rest) != "\r\n" {
		return nil, awsError("IncompleteBody", "%q at the end", d.rest)
	}
	return out, nil
}

func (d *chunkDecoder) mode() (signed, trailing bool, err error) {
	switch d.declared {
	case "STREAMING-AWS4-HMAC-SHA256-PAYLOAD":
		return true, false, nil
	case "STREAMING-AWS4-HMAC-SHA256-PAYLOAD-TRAILER":
		return true, true, nil
	case "STREAMING-UNSIGNED-PAYLOAD-TRAILER":
		return false, true, nil
	}
	return false, false, awsError("InvalidRequest", "x-amz-content-sha256 %q", d.declared)
}

// chunk reads one; the last is empty and what follows it stays.
func (d *chunkDecoder) chunk(signed bool) ([]byte, error) {
	head, rest, ok := bytes.Cut(d.rest, []byte("\r\n"))
	size, signature, has := strings.Cut(string(head), ";chunk-signature=")
	n, err := strconv.ParseUint(size, 16, 31)
	if !ok || has != signed || err != nil || int(n) > len(rest) {
		return nil, awsError("IncompleteBody", "chunk head %q", head)
	}
	data := rest[:n]
	if d.rest = rest[n:]; n > 0 {
		if !bytes.HasPrefix(d.rest, []byte("\r\n")) {
			return nil, awsError("IncompleteBody", "no end of a chunk")
		}
		d.rest = d.rest[2:]
	}
	if signed {
		sum, none := sha256.Sum256(data), sha256.Sum256(nil)
		if err := d.verify(signature, "AWS4-HMAC-SHA256-PAYLOAD", hex.EncodeToString(none[:])+"\n"+hex.EncodeToString(sum[:])); err != nil {
			return nil, err
		}
	}
	return data, nil
}

func (d *chunkDecoder) verify(signature, kind, rest string) error {
	want := hex.EncodeToString(mac(d.key, kind+"\n"+d.stamp+"\n"+d.scope+"\n"+d.previous+"\n"+rest))
	if !hmac.Equal([]byte(want), []byte(signature)) {
		return awsError("SignatureDoesNotMatch", "%s", kind)
	}
	d.previous = want
	return nil
}

func (d *chunkDecoder) trailers(signed bool, data []byte) error {
	announced := strings.Split(d.header.Get("X-Amz-Trailer"), ",")
	var canonical strings.Builder
	for range announced {
		line, rest, _ := bytes.Cut(d.rest, []byte("\r\n"))
		d.rest = rest
		name, value, _ := strings.Cut(string(line), ":")
		if !slices.Contains(announced, name) {
			return awsError("InvalidRequest", "trailer %q was not announced by %q", name, announced)
		}
		canonical.WriteString(name + ":" + strings.TrimSpace(value) + "\n")
		if err := checksum(name, strings.TrimSpace(value), data); err != nil {
			return err
		}
	}
	if !signed {
		return nil
	}
	line, rest, _ := bytes.Cut(d.rest, []byte("\r\n"))
	d.rest = rest
	signature, ok := strings.CutPrefix(string(line), "x-amz-trailer-signature:")
	if !ok {
		return awsError("SignatureDoesNotMatch", "no trailer signature but %q", line)
	}
	sum := sha256.Sum256([]byte(canonical.String()))
	return d.verify(signature, "AWS4-HMAC-SHA256-TRAILER", hex.EncodeToString(sum[:]))
}

// checksum compares an x-amz-checksum-… with data.
func checksum(name, value string, data []byte) error {
	var h hash.Hash
	switch strings.ToLower(name) {
	case "x-amz-checksum-crc32":
		h = crc32.NewIEEE()
	case "x-amz-checksum-crc32c":
		h = crc32.New(crc32.MakeTable(crc32.Castagnoli))
	case "x-amz-checksum-crc64nvme":
		h = crc64.New(crc64.MakeTable(0x9a6c9329ac4bc9b5)) // the reversed polynomial
	case "x-amz-checksum-sha1":
		h = sha1.New()
	case "x-amz-checksum-sha256":
		h = sha256.New()
	default:
		return awsError("InvalidRequest", "checksum %q", name)
	}
	_, _ = h.Write(data)
	if own := base64.StdEncoding.EncodeToString(h.Sum(nil)); own != value {
		return awsError("BadDigest", "%s is %s, announced %s", name, own, value)
	}
	return nil
}

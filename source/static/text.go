package static

import (
	"strings"
	"unicode"

	"github.com/egressd/egressd/source"
)

const (
	maxKeys        = 128
	maxHeaderValue = 16 << 10 // bytes; as the codec's limit of one header line
	maxLogin       = 4 << 10  // bytes; base64 of two of them stays below maxHeaderValue
)

// required gives the value of a member that must be there. Its emptiness is
// checkText's or the PEM reader's to report.
func required(path string, value *string, errs source.FieldErrors) string {
	if value == nil {
		errs.Add(path, "is required")
		return ""
	}
	if *value == "" {
		errs.Add(path, "is empty")
	}
	return *value
}

// optional is "" when left out; given, it may not be empty.
func optional(path string, value *string, errs source.FieldErrors) string {
	if value == nil {
		return ""
	}
	return required(path, value, errs)
}

// checkText holds for what goes into one line of a protocol.
func checkText(path, value string, limit int, errs source.FieldErrors) {
	switch {
	case value == "":
		if _, told := errs[path]; !told {
			errs.Add(path, "is empty")
		}
		return
	case placeholder(value):
		errs.Add(path, "is a placeholder, not the value itself")
	case len(value) > limit:
		errs.Add(path, "is too long")
	}
	if strings.ContainsFunc(value, unicode.IsControl) {
		errs.Add(path, "holds a control character such as a line end")
	}
	if strings.TrimSpace(value) != value {
		errs.Add(path, "begins or ends with white space; a line end at the end of a file is the usual cause")
	}
}

func ascii(value string) bool {
	for _, c := range []byte(value) {
		if c >= 0x80 {
			return false
		}
	}
	return true
}

// keyName is source.KeyPattern.
func keyName(key string) bool {
	if key == "" || len(key) > 64 {
		return false
	}
	for i, c := range []byte(key) {
		letter := c == '_' || 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z'
		if !letter && (i == 0 || c < '0' || c > '9') {
			return false
		}
	}
	return true
}

// placeholder recognises what tools show in a secret's place, so that reading a
// configuration somewhere and writing it back does not destroy the secret.
func placeholder(value string) bool {
	v := strings.ToLower(strings.TrimSpace(value))
	if len(v) >= 3 && strings.Trim(v, "*•●·….") == "" {
		return true
	}
	if v == "redacted" || v == "$encrypted$" {
		return true
	}
	inner := strings.Trim(v, "[]<>(){}_*$%")
	if inner == v {
		return false // the words below are somebody's password unless they are marked
	}
	switch strings.ReplaceAll(inner, "-", " ") {
	case "redacted", "encrypted", "masked", "filtered", "hidden", "secret", "sensitive", "sensitive value", "unchanged", "omitted":
		return true
	}
	return false
}

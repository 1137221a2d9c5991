package static

import (
	"encoding/json"
	"strings"

	"github.com/egressd/egressd/internal/secret"
	"github.com/egressd/egressd/source"
)

// Members of an aws_access_key's block, and the names of its material's Values.
const (
	AccessKeyID     = "accessKeyId"
	SecretAccessKey = "secretAccessKey"
	SessionToken    = "sessionToken"
)

// maxKeyID is AWS's own limit; stores that speak S3 have shorter ones.
const maxKeyID = 128

func decodeAWS(block json.RawMessage, errs source.FieldErrors) source.Parsed {
	var spec struct {
		ID     *string `json:"accessKeyId"`
		Secret *string `json:"secretAccessKey"`
		Token  *string `json:"sessionToken,omitempty"`
	}
	if !decode(block, &spec, errs) {
		return source.Parsed{}
	}
	values := map[string]secret.String{}
	p := source.Parsed{Canonical: spec, Set: []string{AccessKeyID, SecretAccessKey}, Material: &source.Material{Values: values}}
	id := required(AccessKeyID, spec.ID, errs)
	checkText(AccessKeyID, id, maxKeyID, errs)
	if !keyID(id) {
		errs.Add(AccessKeyID, "holds a character that no access key id has (letters, digits, and . _ - are known)")
	}
	key := required(SecretAccessKey, spec.Secret, errs)
	checkText(SecretAccessKey, key, maxLogin, errs)
	if !ascii(key) {
		errs.Add(SecretAccessKey, "holds a character that is not ASCII")
	}
	values[AccessKeyID], values[SecretAccessKey] = secret.New(id), secret.New(key)
	if token := optional(SessionToken, spec.Token, errs); spec.Token != nil {
		checkText(SessionToken, token, maxHeaderValue, errs)
		if !ascii(token) {
			errs.Add(SessionToken, "holds a character that is not ASCII, which a header cannot carry")
		}
		p.Set = append(p.Set, SessionToken)
		values[SessionToken] = secret.New(token)
	} else if strings.HasPrefix(id, "ASIA") {
		p.Warnings = append(p.Warnings, "the access key id is that of a temporary key, and there is no sessionToken")
	}
	return p
}

// keyID: it stands in the scope of a signature, between slashes, commas and blanks.
func keyID(id string) bool {
	for _, c := range []byte(id) {
		letter := 'a' <= c|0x20 && c|0x20 <= 'z'
		if !letter && (c < '0' || c > '9') && c != '.' && c != '_' && c != '-' {
			return false
		}
	}
	return true
}

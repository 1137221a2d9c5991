// Package static has the kinds of sources whose material is what was written: header
// values, a user name and password, a TLS client certificate, an SSH private key, an AWS
// access key.
package static

import (
	"encoding/json"
	"errors"

	"github.com/egressd/egressd/internal/secret"
	"github.com/egressd/egressd/source"
)

// Names of the kinds.
const (
	Headers              = "static_headers"
	UsernamePassword     = "static_username_password"
	TLSClientCertificate = "static_tls_client_certificate"
	SSHPrivateKey        = "static_ssh_private_key"
	AWSAccessKey         = "aws_access_key"
)

// Kinds are all of this package.
func Kinds() []source.Kind {
	return []source.Kind{
		{
			Name: Headers, Block: "staticHeaders",
			About:       "named values that header templates refer to",
			Inputs:      []source.Input{{Name: "values", About: "key → value; a template says {{ .key }}", Map: true, Required: true, Secret: true}},
			Projections: []string{source.HTTPHeaders, source.PlaceholderSubstitution},
			OpenVars:    true,
			Decode:      decodeHeaders,
		},
		{
			Name: UsernamePassword, Block: "staticUsernamePassword",
			About: "a user name and its password",
			Inputs: []source.Input{
				{Name: "username", About: "user name, without a colon", Required: true},
				{Name: "password", About: "password or token", Required: true, Secret: true},
			},
			Projections:  []string{source.UsernamePassword, source.HTTPHeaders, source.PlaceholderSubstitution},
			TemplateVars: []string{"username", "password"},
			NotSecret:    []string{"username"},
			Decode:       decodeUsernamePassword,
		},
		{
			Name: TLSClientCertificate, Block: "staticTLSClientCertificate",
			About: "a certificate and key to authenticate with in TLS",
			Inputs: []source.Input{
				{Name: "certificatePem", About: "certificate, then its intermediates, PEM", Required: true, Multiline: true},
				{Name: "privateKeyPem", About: "its private key, not encrypted, PEM", Required: true, Secret: true, Multiline: true},
				{Name: "caPem", About: "authorities, PEM; the source then goes only to servers that chain to one of them", Multiline: true},
			},
			Projections: []string{source.TLSClientCertificate},
			Decode:      decodeTLS,
		},
		{
			Name: SSHPrivateKey, Block: "staticSSHPrivateKey",
			About: "a private key to log in with over SSH",
			Inputs: []source.Input{
				{Name: "privateKeyPem", About: "private key, OpenSSH or PEM", Required: true, Secret: true, Multiline: true},
				{Name: "passphrase", About: "only when the key is encrypted", Secret: true},
			},
			Projections: []string{source.SSHProxy},
			Decode:      decodeSSH,
		},
		{
			Name: AWSAccessKey, Block: "awsAccessKey",
			About: "an access key of AWS, or of a store that speaks S3, to sign requests with",
			Inputs: []source.Input{
				{Name: AccessKeyID, About: "access key id", Required: true},
				{Name: SecretAccessKey, About: "secret access key", Required: true, Secret: true},
				{Name: SessionToken, About: "only with a temporary key", Secret: true},
			},
			Projections: []string{source.AWSSigV4},
			NotSecret:   []string{AccessKeyID},
			Decode:      decodeAWS,
		},
	}
}

// decode is source.DecodeStrict with its errors added to errs; ok tells whether
// there were none.
func decode(block json.RawMessage, into any, errs source.FieldErrors) (ok bool) {
	err := source.DecodeStrict(block, into)
	if err == nil {
		return true
	}
	var fields source.FieldErrors
	if errors.As(err, &fields) {
		for path, messages := range fields {
			errs[path] = messages
		}
	} else {
		errs.Add("", "cannot be read")
	}
	return false
}

func decodeHeaders(block json.RawMessage, errs source.FieldErrors) source.Parsed {
	var spec struct {
		Values map[string]string `json:"values"`
	}
	if !decode(block, &spec, errs) {
		return source.Parsed{}
	}
	if len(spec.Values) == 0 {
		errs.Add("values", "needs at least one key")
	}
	if len(spec.Values) > maxKeys {
		errs.Add("values", "has more than 128 keys")
		return source.Parsed{}
	}
	p := source.Parsed{Canonical: spec, Material: &source.Material{Values: make(map[string]secret.String, len(spec.Values))}}
	bad := 0
	for key, value := range spec.Values {
		if !keyName(key) {
			// Not named: what does not look like a name may be the secret itself.
			bad++
			continue
		}
		path := "values." + key
		checkText(path, value, maxHeaderValue, errs)
		if !ascii(value) {
			errs.Add(path, "holds a character that is not ASCII, which a header cannot carry")
		}
		p.Set = append(p.Set, path)
		p.Material.Values[key] = secret.New(value)
	}
	if bad > 0 {
		errs.Add("values", "has a key that does not match "+source.KeyPattern)
	}
	return p
}

func decodeUsernamePassword(block json.RawMessage, errs source.FieldErrors) source.Parsed {
	var spec struct {
		Username *string `json:"username"`
		Password *string `json:"password"`
	}
	if !decode(block, &spec, errs) {
		return source.Parsed{}
	}
	user := required("username", spec.Username, errs)
	password := required("password", spec.Password, errs)
	checkText("username", user, maxLogin, errs)
	checkText("password", password, maxLogin, errs)
	for _, c := range []byte(user) {
		if c == ':' {
			errs.Add("username", "holds a colon, which Basic authentication cannot carry (RFC 7617)")
		}
	}
	return source.Parsed{
		Canonical: spec, Set: []string{"username", "password"},
		Material: &source.Material{Values: map[string]secret.String{"username": secret.New(user), "password": secret.New(password)}},
	}
}

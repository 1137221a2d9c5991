package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"regexp"
	"slices"
	"strings"

	"github.com/spf13/pflag"
	"golang.org/x/term"

	"github.com/egressd/egressd/api"
	"github.com/egressd/egressd/source"
	"github.com/egressd/egressd/source/static"
)

// defaultKey is the key of static_headers' values that --token sets.
const defaultKey = "token"

// secretFlags are the ways to hand a secret over.
type secretFlags struct {
	kind                                  string
	token, tokenEnv, tokenFile            string
	sets                                  []string
	username, passwordEnv, passwordFile   string
	cert, key, ca                         string
	sshKey, passphraseEnv, passphraseFile string
	aws                                   awsFlags
	spec                                  string
	given                                 *pflag.FlagSet
}

// awsFlags are those of aws_access_key.
type awsFlags struct{ id, secretEnv, secretFile, tokenEnv, tokenFile string }

func (s *secretFlags) register(fs *pflag.FlagSet) {
	s.given = fs
	fs.StringVar(&s.kind, "kind", "", "resolver kind; default: what the other flags say, else static_headers")
	fs.StringVar(&s.token, "token", "", "the token itself (others can see it in the process list), or @FILE")
	fs.StringVar(&s.tokenEnv, "token-env", "", "environment variable that holds the token")
	fs.StringVar(&s.tokenFile, "token-file", "", "file that holds the token, - for stdin")
	fs.StringArrayVar(&s.sets, "set", nil, "one field: key=value, key=@FILE, key=@- (repeated)")
	fs.StringVar(&s.username, "username", "", "user name")
	fs.StringVar(&s.passwordEnv, "password-env", "", "environment variable that holds the password")
	fs.StringVar(&s.passwordFile, "password-file", "", "file that holds the password, - for stdin")
	fs.StringVar(&s.cert, "cert", "", "client certificate and intermediates (PEM file)")
	fs.StringVar(&s.key, "key", "", "its private key (PEM file)")
	fs.StringVar(&s.ca, "ca", "", "the only authorities to trust for its servers (PEM file)")
	fs.StringVar(&s.sshKey, "ssh-key", "", "SSH private key (file)")
	fs.StringVar(&s.passphraseEnv, "passphrase-env", "", "environment variable that holds the key's passphrase")
	fs.StringVar(&s.passphraseFile, "passphrase-file", "", "file that holds the key's passphrase")
	fs.StringVar(&s.aws.id, "access-key-id", "", "AWS access key id")
	fs.StringVar(&s.aws.secretEnv, "secret-access-key-env", "", "environment variable that holds the AWS secret access key")
	fs.StringVar(&s.aws.secretFile, "secret-access-key-file", "", "file that holds the AWS secret access key, - for stdin")
	fs.StringVar(&s.aws.tokenEnv, "session-token-env", "", "environment variable that holds a temporary key's session token")
	fs.StringVar(&s.aws.tokenFile, "session-token-file", "", "file that holds a temporary key's session token")
	fs.StringVar(&s.spec, "spec", "", "the whole spec as JSON: @FILE, or - for stdin")
}

// any says whether one of the flags was given.
func (s *secretFlags) any() bool {
	if slices.ContainsFunc([]string{"set", "spec", "kind"}, s.given.Changed) {
		return true
	}
	return slices.ContainsFunc(forms(), func(f form) bool { return slices.ContainsFunc(f.flags, s.given.Changed) })
}

// form is a kind and the flags that are for it alone.
type form struct {
	kind  string
	flags []string
}

func forms() []form {
	return []form{
		{static.Headers, []string{"token", "token-env", "token-file"}},
		{static.UsernamePassword, []string{"username", "password-env", "password-file"}},
		{static.TLSClientCertificate, []string{"cert", "key", "ca"}},
		{static.SSHPrivateKey, []string{"ssh-key", "passphrase-env", "passphrase-file"}},
		{static.AWSAccessKey, []string{"access-key-id", "secret-access-key-env", "secret-access-key-file", "session-token-env", "session-token-file"}},
	}
}

func kinds() (*source.Registry, error) { return source.NewRegistry(static.Kinds()...) }

// material is a spec on its way to the API.
type material struct {
	kind string
	spec json.RawMessage
}

// read builds the spec. known is the kind of the source that exists already, "" for a
// new one.
func (s *secretFlags) read(a *app, known string) (material, error) {
	if s.spec != "" {
		return s.readSpec(a, known)
	}
	reg, err := kinds()
	if err != nil {
		return material{}, err
	}
	if _, ok := reg.Kind(s.kind); s.kind != "" && !ok { // before what its flags may be
		return material{}, unknownKind(s.kind, reg)
	}
	name, err := s.kindOf(known)
	if err != nil {
		return material{}, err
	}
	kind, ok := reg.Kind(name)
	if !ok {
		return material{}, unknownKind(name, reg)
	}
	in := &specInput{app: a, kind: kind, fields: map[string]string{}}
	if err := s.collect(in); err != nil {
		return material{}, err
	}
	if err := in.complete(); err != nil {
		return material{}, err
	}
	return material{kind: name, spec: encodeSpec(kind, in.fields)}, nil
}

func unknownKind(name string, reg *source.Registry) error {
	var names []string
	for _, k := range reg.Kinds() {
		names = append(names, k.Name)
	}
	if api.LaterKind(name) {
		return usage("kind %s is not supported yet; known are %s", name, strings.Join(names, ", "))
	}
	return usage("unknown kind %q; known are %s", name, strings.Join(names, ", "))
}

// kindOf infers the kind from the flags; they must agree with --kind and with known.
func (s *secretFlags) kindOf(known string) (string, error) {
	want, because := s.kind, "--kind "+s.kind
	if want == "" {
		want, because = known, "the source is of kind "+known
	}
	for _, f := range forms() {
		i := slices.IndexFunc(f.flags, s.given.Changed)
		if i < 0 {
			continue
		}
		if want != "" && want != f.kind {
			return "", usage("--%s is for kind %s, but %s: use flags of one kind", f.flags[i], f.kind, because)
		}
		want, because = f.kind, fmt.Sprintf("--%s is for kind %s", f.flags[i], f.kind)
	}
	if want == "" {
		want = static.Headers
	}
	return want, nil
}

// collect reads what the flags name.
func (s *secretFlags) collect(in *specInput) error {
	a := in.app
	if s.given.Changed("token") {
		value, err := s.plainToken(a)
		if err != nil {
			return err
		}
		if err := in.set(defaultKey, value, "--token"); err != nil {
			return err
		}
	}
	for _, f := range []struct{ flag, field, value string }{
		{"username", "username", s.username}, {"access-key-id", static.AccessKeyID, s.aws.id},
	} {
		if !s.given.Changed(f.flag) {
			continue
		}
		if err := in.set(f.field, f.value, "--"+f.flag); err != nil {
			return err
		}
	}
	from := []struct {
		flag, field, value string
		env, pem           bool
	}{
		{"token-env", defaultKey, s.tokenEnv, true, false},
		{"token-file", defaultKey, s.tokenFile, false, false},
		{"password-env", "password", s.passwordEnv, true, false},
		{"password-file", "password", s.passwordFile, false, false},
		{"cert", "certificatePem", s.cert, false, true},
		{"key", "privateKeyPem", s.key, false, true},
		{"ca", "caPem", s.ca, false, true},
		{"ssh-key", "privateKeyPem", s.sshKey, false, true},
		{"passphrase-env", "passphrase", s.passphraseEnv, true, false},
		{"passphrase-file", "passphrase", s.passphraseFile, false, false},
		{"secret-access-key-env", static.SecretAccessKey, s.aws.secretEnv, true, false},
		{"secret-access-key-file", static.SecretAccessKey, s.aws.secretFile, false, false},
		{"session-token-env", static.SessionToken, s.aws.tokenEnv, true, false},
		{"session-token-file", static.SessionToken, s.aws.tokenFile, false, false},
	}
	for _, f := range from {
		if !s.given.Changed(f.flag) {
			continue
		}
		value, err := a.secretFrom("--"+f.flag, f.value, f.env, f.pem)
		if err != nil {
			return err
		}
		if err := in.set(f.field, value, "--"+f.flag); err != nil {
			return err
		}
	}
	return s.collectSets(in)
}

// plainToken is the value of --token, or the content of the file that it names with @.
func (s *secretFlags) plainToken(a *app) (string, error) {
	if s.token == "" {
		return "", usage("--token is empty: is the variable that it comes from set?")
	}
	file, is := strings.CutPrefix(s.token, "@")
	if !is {
		a.warn("--token shows the secret in the process list and the shell's history; use --token-env, --token-file or stdin")
		return s.token, nil
	}
	value, err := a.secretFrom("--token", file, false, false)
	if err != nil { // what follows @ may be the secret after all, and is not repeated
		return "", usage("--token: what follows @ is no file that can be read and holds a token; a token that begins with @ goes through --token-env or stdin")
	}
	return value, nil
}

func (s *secretFlags) collectSets(in *specInput) error {
	for _, kv := range s.sets {
		field, value, ok := strings.Cut(kv, "=")
		if !ok || field == "" {
			return usage("--set wants key=value, key=@FILE or key=@-") // what was given may be the secret
		}
		if file, is := strings.CutPrefix(value, "@"); is {
			var err error
			if value, err = in.app.secretFrom("--set "+field, file, false, in.multiline(field)); err != nil {
				return err
			}
		} else if x, ok := in.input(field); !ok || x.Secret {
			in.app.warn("--set %s=… shows the secret in the process list and the shell's history; use --set %s=@FILE or @-", field, field)
		}
		if err := in.set(field, value, "--set "+field); err != nil {
			return err
		}
	}
	return nil
}

// variable is how names of variables are usually written. What looks otherwise may be the
// secret itself, given by mistake, and is not repeated.
var variable = regexp.MustCompile(`^[A-Z_][A-Z0-9_]{0,39}$`)

// secretFrom reads one secret from a variable or a file; - is stdin. A token loses the
// newline that editors and echo leave at the end; PEM stays as it is.
func (a *app) secretFrom(flag, name string, env, pem bool) (string, error) {
	var value string
	switch {
	case name == "":
		return "", usage("%s is empty", flag)
	case env:
		v, ok := a.lookupEnv(name)
		if !ok && !variable.MatchString(name) {
			return "", usage("%s: what it names is no environment variable that is set", flag)
		}
		if !ok {
			return "", usage("%s: the environment variable %s is not set", flag, name)
		}
		value = v
	case name == "-":
		b, err := readAllSmall(a.stdin)
		if err != nil {
			return "", usage("%s: stdin: %w", flag, err)
		}
		value = string(b)
	default:
		b, err := readSmall(name)
		if err != nil {
			return "", usage("%s: %w", flag, fileError(name, err))
		}
		value = string(b)
	}
	if !pem {
		value = strings.TrimSuffix(strings.TrimSuffix(value, "\n"), "\r")
	}
	if value == "" {
		return "", usage("%s: %s is empty", flag, name)
	}
	return value, nil
}

func (s *secretFlags) readSpec(a *app, known string) (material, error) {
	if s.given.Changed("set") || s.given.Changed("token") {
		return material{}, usage("--spec is the whole spec: leave the other secret flags out")
	}
	file, isFile := strings.CutPrefix(s.spec, "@")
	if !isFile && s.spec != "-" {
		return material{}, usage("--spec wants @FILE or - for stdin")
	}
	text, err := a.secretFrom("--spec", file, false, true)
	if err != nil {
		return material{}, err
	}
	var blocks map[string]json.RawMessage
	if json.Unmarshal([]byte(text), &blocks) != nil { // its error would quote the secret
		return material{}, usage(`--spec: not a JSON object such as {"staticHeaders":{"values":{"token":"…"}}}`)
	}
	reg, err := kinds()
	if err != nil {
		return material{}, err
	}
	kind := s.kind
	if kind == "" {
		kind = known
	}
	for _, k := range reg.Kinds() {
		if _, ok := blocks[k.Block]; ok && kind == "" {
			kind = k.Name
		}
	}
	if kind == "" {
		return material{}, usage("--spec: no block of a known kind in it; say which with --kind")
	}
	return material{kind: kind, spec: json.RawMessage(text)}, nil
}

// specInput gathers the fields of one block.
type specInput struct {
	app    *app
	kind   source.Kind
	fields map[string]string // of values, when the kind has a map; else of the block
}

// keyed says whether the block's fields are the source's own keys.
func (in *specInput) keyed() bool { return len(in.kind.Inputs) == 1 && in.kind.Inputs[0].Map }

func (in *specInput) input(field string) (source.Input, bool) {
	i := slices.IndexFunc(in.kind.Inputs, func(x source.Input) bool { return x.Name == field })
	if i < 0 {
		return source.Input{}, false
	}
	return in.kind.Inputs[i], true
}

func (in *specInput) multiline(field string) bool {
	x, _ := in.input(field)
	return x.Multiline
}

func (in *specInput) set(field, value, flag string) error {
	if in.keyed() {
		field = strings.TrimPrefix(field, in.kind.Inputs[0].Name+".")
	} else if _, ok := in.input(field); !ok {
		var names []string
		for _, x := range in.kind.Inputs {
			names = append(names, x.Name)
		}
		return usage("%s: kind %s has no field of this name; it has %s", flag, in.kind.Name, strings.Join(names, ", "))
	}
	if _, dup := in.fields[field]; dup {
		return usage("%s sets %s, which another flag set already", flag, field)
	}
	in.fields[field] = value
	return nil
}

// complete asks for what is required and was not given: at a terminal without echo, or
// from stdin when it is one value.
func (in *specInput) complete() error {
	var missing []source.Input
	if in.keyed() {
		if len(in.fields) == 0 {
			missing = []source.Input{{Name: defaultKey, Secret: true}}
		}
	} else {
		for _, x := range in.kind.Inputs {
			if _, ok := in.fields[x.Name]; x.Required && !ok {
				missing = append(missing, x)
			}
		}
	}
	if len(missing) == 0 {
		return nil
	}
	if tty := in.app.terminal(); tty != nil {
		return in.prompt(tty, missing)
	}
	if len(missing) > 1 || len(in.fields) > 0 {
		return usage("%s is missing: kind %s needs %s", flagFor(in.kind.Name, missing[0].Name), in.kind.Name, missing[0].Name)
	}
	b, err := readAllSmall(in.app.stdin)
	if err != nil {
		return usage("stdin: %w", err)
	}
	value := string(b)
	if !missing[0].Multiline {
		value = strings.TrimSuffix(strings.TrimSuffix(value, "\n"), "\r")
	}
	if value == "" {
		return usage("no %s was given: use --token-env, --token-file, --set %s=@FILE, stdin or a terminal", missing[0].Name, missing[0].Name)
	}
	in.fields[missing[0].Name] = value
	return nil
}

// flagFor is the shortest flag for a field.
func flagFor(kind, field string) string {
	switch {
	case kind == static.TLSClientCertificate && field == "certificatePem":
		return "--cert"
	case kind == static.TLSClientCertificate && field == "privateKeyPem":
		return "--key"
	case field == "username":
		return "--username"
	case field == "password":
		return "--password-env or --password-file"
	case field == static.AccessKeyID:
		return "--access-key-id"
	case field == static.SecretAccessKey:
		return "--secret-access-key-env or --secret-access-key-file"
	}
	return "--set " + field + "=@FILE"
}

// prompt asks on stderr, so that stdout stays clean.
func (in *specInput) prompt(tty *os.File, missing []source.Input) error {
	lines := bufio.NewReader(tty)
	for _, x := range missing {
		value, err := in.ask(tty, lines, x)
		if err != nil {
			return err
		}
		if value == "" {
			return usage("%s is empty: nothing was changed", x.Name)
		}
		in.fields[x.Name] = value
	}
	return nil
}

func (in *specInput) ask(tty *os.File, lines *bufio.Reader, x source.Input) (string, error) {
	switch {
	case x.Multiline:
		in.app.notef("file with %s: ", x.Name)
		name, err := readLine(lines)
		if err != nil {
			return "", err
		}
		return in.app.secretFrom(x.Name, name, false, true)
	case !x.Secret:
		in.app.notef("%s: ", x.Name)
		return readLine(lines)
	}
	in.app.notef("%s (not shown): ", x.Name)
	b, err := term.ReadPassword(int(tty.Fd()))
	in.app.notef("\n")
	if err != nil {
		return "", usage("the terminal cannot be read: %w", err)
	}
	return string(b), nil
}

func readLine(r *bufio.Reader) (string, error) {
	line, err := r.ReadString('\n')
	if err != nil && !errors.Is(err, io.EOF) {
		return "", usage("the terminal cannot be read: %w", err)
	}
	return strings.TrimRight(line, "\r\n"), nil
}

// encodeSpec is {"<block>": {…}}.
func encodeSpec(kind source.Kind, fields map[string]string) json.RawMessage {
	var block any = fields
	if len(kind.Inputs) == 1 && kind.Inputs[0].Map {
		block = map[string]any{kind.Inputs[0].Name: fields}
	}
	b, err := json.Marshal(map[string]any{kind.Block: block})
	if err != nil {
		panic("egressd: maps of strings always encode")
	}
	return b
}

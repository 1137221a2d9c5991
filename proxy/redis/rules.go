package redis

import (
	"slices"
	"strconv"
	"strings"

	"github.com/egressd/egressd/inject"
	"github.com/egressd/egressd/proxy/wire"
)

func appendInt(b []byte, n int) []byte {
	return append(strconv.AppendInt(b, int64(n), 10), '\r', '\n')
}

// looksInto says whether the arguments of a command, its name in upper case, matter.
func looksInto(name string) bool {
	switch name {
	case "AUTH", "HELLO", "RESET", "CONFIG", "ACL", "SENTINEL", "REPLICAOF", "SLAVEOF":
		return true
	}
	// Some servers that speak RESP know subcommands by "CONFIG|GET" as well.
	return strings.Contains(name, "|")
}

// login is AUTH as every version of Redis takes it.
func login(l *inject.Login) []byte {
	if l.Username == "" || l.Username == defaultUser {
		return array("AUTH", l.Password.Reveal())
	}
	return array("AUTH", l.Username, l.Password.Reveal())
}

const defaultUser = "default"

// denied is a command that any server answers with an error that has the code in it. In a
// transaction it also fails the whole.
func denied(code string) []byte { return array("egressd:" + code) }

// rules rewrites what commands looks into.
type rules struct {
	require func(username, password string) bool
	login   func() (*inject.Login, error)
	// resets is told of a RESET before it is sent.
	resets func()
}

func (r *rules) rewrite(args []string) ([]byte, error) {
	switch args[0] {
	case "AUTH":
		u, p, ok := authArgs(args)
		if !ok {
			return array("AUTH"), nil // the error that the sandbox has earned
		}
		return r.auth(u, p)
	case "HELLO":
		return r.hello(args)
	case "RESET":
		if len(args) > 1 {
			return array(args...), nil
		}
		l, err := r.login()
		if err != nil {
			return nil, err
		}
		r.resets()
		return append(array("RESET"), login(l)...), nil
	}
	if looksInto(args[0]) && !harmless(args) {
		return denied(wire.CodePolicyDenied), nil
	}
	return array(args...), nil
}

// authArgs reads AUTH [username] password.
func authArgs(args []string) (username, password string, ok bool) {
	switch len(args) {
	case 2:
		return defaultUser, args[1], true
	case 3:
		return args[1], args[2], true
	}
	return "", "", false
}

func (r *rules) auth(username, password string) ([]byte, error) {
	if r.require != nil && !r.require(username, password) {
		return denied(wire.CodeAuthRequired), nil
	}
	l, err := r.login()
	if err != nil {
		return nil, err
	}
	return login(l), nil
}

// hello is HELLO [protover [AUTH username password] [SETNAME clientname]].
type hello struct {
	version  string
	auth     bool
	u, p     string
	rest     []string
	unlisted bool // it has something that is not known here
}

func parseHello(args []string) hello {
	var h hello
	if len(args) > 1 {
		h.version = args[1]
	}
	for i := 2; i < len(args); {
		switch opt := strings.ToUpper(args[i]); {
		case opt == "AUTH" && i+2 < len(args) && !h.auth:
			h.auth, h.u, h.p = true, args[i+1], args[i+2]
			i += 3
		case opt == "SETNAME" && i+1 < len(args):
			h.rest = append(h.rest, "SETNAME", args[i+1])
			i += 2
		default:
			h.unlisted = true
			return h
		}
	}
	return h
}

func (r *rules) hello(args []string) ([]byte, error) {
	h := parseHello(args)
	switch {
	case h.unlisted:
		return denied(wire.CodeBadRequest), nil
	case !h.auth:
		return array(args...), nil
	case r.require != nil && !r.require(h.u, h.p):
		return denied(wire.CodeAuthRequired), nil
	}
	l, err := r.login()
	if err != nil {
		return nil, err
	}
	user := l.Username
	if user == "" {
		user = defaultUser
	}
	return array(append([]string{"HELLO", h.version, "AUTH", user, l.Password.Reveal()}, h.rest...)...), nil
}

// harmless says of CONFIG, ACL, SENTINEL and replication that they neither show nor change
// nor use elsewhere what the server keeps secret. Redis compares names of parameters as it
// does those of commands, so an argument with a NUL is none.
func harmless(args []string) bool {
	if len(args) < 2 || slices.ContainsFunc(args, func(a string) bool { return strings.Contains(a, "\x00") }) {
		return false
	}
	sub := strings.ToUpper(args[1])
	switch args[0] {
	case "ACL":
		return slices.Contains([]string{"WHOAMI", "CAT", "DRYRUN", "GENPASS", "LOG", "USERS", "HELP"}, sub)
	case "CONFIG":
		return harmlessConfig(sub, args[2:])
	case "SENTINEL":
		if sub == "CONFIG" && len(args) > 2 {
			return harmlessConfig(strings.ToUpper(args[2]), args[3:])
		}
		return sub != "CONFIG" && sub != "SET"
	}
	return false // REPLICAOF and SLAVEOF send masterauth to wherever they say
}

func harmlessConfig(sub string, args []string) bool {
	switch sub {
	case "RESETSTAT", "REWRITE", "HELP":
		return true
	case "GET":
		return !slices.ContainsFunc(args, mayBeSecret)
	case "SET":
		for i := 0; i < len(args); i += 2 {
			if mayBeSecret(args[i]) {
				return false
			}
		}
		return true
	}
	return false
}

// mayBeSecret says whether a name, or a pattern by what stands before its first wildcard,
// could be one of a parameter that holds a secret.
func mayBeSecret(pattern string) bool {
	p := strings.ToLower(pattern)
	i := strings.IndexAny(p, `*?[\`)
	for _, name := range [...]string{
		"requirepass", "masterauth", "masteruser", "primaryauth", "primaryuser", "sentinel-pass", "sentinel-user",
		"tls-key-file-pass", "tls-client-key-file-pass",
	} {
		if p == name || i >= 0 && strings.HasPrefix(name, p[:i]) {
			return true
		}
	}
	return false
}

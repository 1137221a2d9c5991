package sshbridge

import (
	"encoding/binary"
	"errors"
	"strings"

	"golang.org/x/crypto/ssh"

	"github.com/egressd/egressd/policy"
)

// Bounds on what a request may hold.
const (
	maxCommand  = 128 << 10 // what Linux takes as one argument; a packet holds 256 KiB
	maxName     = 256       // names of subsystems
	maxEnvName  = 64
	maxEnvValue = 1024
	maxTerm     = 64
	maxModes    = 2048
)

var errPayload = errors.New("ssh: malformed request")

// stringPayload reads a payload that is one string (RFC 4254, 6.5), which must be text that
// C programs see whole.
func stringPayload(payload []byte, limit int) (string, error) {
	var m struct{ S string }
	if err := ssh.Unmarshal(payload, &m); err != nil || len(m.S) > limit || strings.ContainsRune(m.S, 0) {
		return "", errPayload
	}
	return m.S, nil
}

// asked turns the request that starts a session into what policy decides on.
func asked(kind string, payload []byte) (policy.SSHRequest, error) {
	switch kind {
	case "shell":
		if len(payload) != 0 {
			return policy.SSHRequest{}, errPayload
		}
		return policy.SSHRequest{Kind: policy.SSHShell}, nil
	case "exec":
		text, err := stringPayload(payload, maxCommand)
		return policy.SSHRequest{Kind: policy.SSHExec, Text: text}, err
	case "subsystem":
		text, err := stringPayload(payload, maxName)
		return policy.SSHRequest{Kind: policy.SSHSubsystem, Text: text}, err
	}
	return policy.SSHRequest{}, errPayload
}

// checkPty reads a pty-req (RFC 4254, 6.2 and 8).
func checkPty(payload []byte) error {
	var m struct {
		Term                        string
		Columns, Rows, Width, Heigh uint32
		Modes                       string
	}
	if err := ssh.Unmarshal(payload, &m); err != nil || len(m.Term) > maxTerm || len(m.Modes) > maxModes || !plain(m.Term) {
		return errPayload
	}
	modes := []byte(m.Modes)
	for len(modes) > 0 {
		op := modes[0]
		if op == 0 || op >= 160 { // the end, or not defined and ending it
			return nil
		}
		if len(modes) < 5 {
			return errPayload
		}
		modes = modes[5:]
	}
	return nil // OpenSSH before 3 left the end out
}

// checkFixed reads a payload of n numbers.
func checkFixed(payload []byte, n int) error {
	if len(payload) != 4*n {
		return errPayload
	}
	return nil
}

// checkSignal reads a signal: a name without SIG (RFC 4254, 6.10), or name@domain.
func checkSignal(payload []byte) error {
	name, err := stringPayload(payload, maxEnvName)
	if err != nil || name == "" || !plain(name) {
		return errPayload
	}
	return nil
}

// plain: printable ASCII without spaces.
func plain(s string) bool {
	for i := range len(s) {
		if s[i] <= ' ' || s[i] > '~' {
			return false
		}
	}
	return true
}

// usualEnv are the variables that are passed on. They choose language and terminal, and
// git's protocol version; none is read by a loader, a shell or git as something to run.
const usualEnv = "LANG LANGUAGE LC_* TERM COLORTERM NO_COLOR GIT_PROTOCOL"

// envAllowed says whether an env request may pass (E06).
func envAllowed(payload []byte, more []string) bool {
	var m struct{ Name, Value string }
	if err := ssh.Unmarshal(payload, &m); err != nil || len(m.Name) > maxEnvName || len(m.Value) > maxEnvValue {
		return false
	}
	if m.Name == "" || !plain(m.Name) || strings.ContainsRune(m.Name, '=') || strings.ContainsFunc(m.Value, func(r rune) bool { return r < ' ' || r == 0x7f }) {
		return false
	}
	for pattern := range strings.FieldsSeq(usualEnv) {
		if matchEnv(pattern, m.Name) {
			return true
		}
	}
	for _, pattern := range more {
		if matchEnv(pattern, m.Name) {
			return true
		}
	}
	return false
}

func matchEnv(pattern, name string) bool {
	if prefix, ok := strings.CutSuffix(pattern, "*"); ok {
		return strings.HasPrefix(name, prefix)
	}
	return pattern == name
}

// exitSignal rebuilds an exit-signal (RFC 4254, 6.10) with a message that a terminal may
// show.
func exitSignal(payload []byte) ([]byte, error) {
	var m struct {
		Name    string
		Core    bool
		Message string
		Lang    string
	}
	if err := ssh.Unmarshal(payload, &m); err != nil || len(m.Name) > maxEnvName || !plain(m.Name) {
		return nil, errPayload
	}
	m.Message, m.Lang = oneLine(m.Message, maxMessage), ""
	return ssh.Marshal(m), nil
}

// checkForward reads the data of a direct-tcpip channel (RFC 4254, 7.2).
func checkForward(data []byte) error {
	var m struct {
		Host     string
		Port     uint32
		From     string
		FromPort uint32
	}
	if err := ssh.Unmarshal(data, &m); err != nil || m.Host == "" || len(m.Host) > 255 || !plain(m.Host) || m.Port == 0 || m.Port > 65535 || len(m.From) > 255 {
		return errPayload
	}
	return nil
}

// exitStatus reads an exit-status.
func exitStatus(payload []byte) (uint32, error) {
	if len(payload) != 4 {
		return 0, errPayload
	}
	return binary.BigEndian.Uint32(payload), nil
}

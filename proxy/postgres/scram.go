package postgres

import (
	"encoding/binary"
	"slices"
	"strconv"
	"strings"

	"github.com/xdg-go/scram"

	"github.com/egressd/egressd/proxy/wire"
)

const (
	mechPlain = "SCRAM-SHA-256"
	mechBound = "SCRAM-SHA-256-PLUS"

	// maxIterations bounds what a server may have us compute, about half a second;
	// PostgreSQL's default is 4,096.
	maxIterations = 1_000_000
	// minIterations is for servers that may be anybody (no TLS): less makes what they
	// were sent easy to guess from.
	minIterations = 4096
)

// scramLogin is one SCRAM conversation (RFC 5802, RFC 7677).
type scramLogin struct {
	conv  *scram.ClientConversation
	steps int
}

// beginSCRAM chooses a mechanism of those that the server offers.
func beginSCRAM(a *auth, list []byte) (*scramLogin, []byte, error) {
	var offered []string
	for {
		name, rest, ok := cut(list)
		if !ok {
			return nil, nil, upstreamFailed("a list of mechanisms that does not end")
		}
		if name == "" {
			break
		}
		offered, list = append(offered, name), rest
	}
	// PostgreSQL takes the user name from the start and ignores this one. A password that
	// SASLprep does not allow is used as it is, like PostgreSQL does.
	client, err := scram.SHA256.NewClient("", a.login.Password.Reveal(), "")
	if err != nil {
		client, err = scram.SHA256.NewClientUnprepped("", a.login.Password.Reveal(), "")
	}
	if err != nil {
		return nil, nil, upstreamFailed("scram could not begin") // err might name the password
	}
	client = client.WithMinIterations(minIterations)
	if a.encrypted {
		client = client.WithMinIterations(1)
	}
	mech, conv := choose(a, client, offered)
	if conv == nil {
		return nil, nil, &wire.Refusal{Code: wire.CodeUpstreamLogin, Detail: "the server offers no SCRAM-SHA-256", Err: wire.ErrLogin}
	}
	l := &scramLogin{conv: conv}
	first, err := conv.Step("")
	if err != nil {
		return nil, nil, refusal(wire.CodeUpstream, "scram", err)
	}
	answer := append([]byte(mech), 0)
	answer = binary.BigEndian.AppendUint32(answer, uint32(len(first)))
	return l, append(answer, first...), nil
}

// choose binds to the server's certificate where it can. Where only the server cannot, it
// says so, and a server that can after all knows that somebody took the offer out.
func choose(a *auth, client *scram.Client, offered []string) (string, *scram.ClientConversation) {
	plain, bound := slices.Contains(offered, mechPlain), slices.Contains(offered, mechBound)
	var binding scram.ChannelBinding
	if a.encrypted && a.state != nil {
		// An error is a certificate whose signature has no hash of its own (Ed25519).
		binding, _ = scram.NewTLSServerEndpointBinding(a.state)
	}
	switch {
	case bound && binding.IsSupported():
		return mechBound, client.NewConversationWithChannelBinding(binding)
	case plain && binding.IsSupported():
		return mechPlain, client.NewConversationAdvertisingChannelBinding()
	case plain:
		return mechPlain, client.NewConversation()
	}
	return "", nil
}

// step takes the server's first message, then its last.
func (l *scramLogin) step(final bool, data []byte) ([]byte, error) {
	l.steps++
	if final != (l.steps == 2) {
		return nil, upstreamFailed("scram out of order")
	}
	if !final && iterations(string(data)) > maxIterations {
		return nil, upstreamFailed("scram with more than %d iterations", maxIterations)
	}
	answer, err := l.conv.Step(string(data))
	switch {
	case err != nil && final:
		return nil, &wire.Refusal{Code: wire.CodeUpstreamLogin, Detail: "the server did not prove that it knows the password", Err: wire.ErrLogin}
	case err != nil:
		return nil, refusal(wire.CodeUpstream, "scram", err)
	case final:
		return nil, nil
	}
	return []byte(answer), nil
}

func (l *scramLogin) proven() bool { return l.conv.Valid() }

// iterations is the largest count in a server's first message.
func iterations(msg string) (n int) {
	for field := range strings.SplitSeq(msg, ",") {
		if digits, ok := strings.CutPrefix(field, "i="); ok {
			v, err := strconv.Atoi(digits)
			if err != nil {
				return maxIterations + 1
			}
			n = max(n, v)
		}
	}
	return n
}

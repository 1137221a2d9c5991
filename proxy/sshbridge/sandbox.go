package sshbridge

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/egressd/egressd/proxy/wire"
)

// keyExtension is where a verified key's Permissions hold the key. They are the one thing
// that says who came in: a callback for a key is also called for keys that are only asked
// about (CVE-2024-45337).
const keyExtension = "egressd-sandbox-key"

const maxAuthTries = 12 // clients try the keys they have one by one

var (
	errKey    = errors.New("ssh: not a key of the rule")
	errLogin  = errors.New("ssh: no login upstream")
	errNoAuth = errors.New("ssh: nobody is logged in")
)

// admission lets a sandbox in once the login upstream has succeeded.
type admission struct {
	ctx    context.Context
	up     *login
	watch  *kexWatch
	banner ssh.ServerPreAuthConn
	failed bool // because of the login upstream
}

// accept runs the sandbox's handshake until ctx ends. Any user name will do: who one is
// upstream is the rule's.
func accept(ctx context.Context, s *wire.Session, o Options, up *login) (*leg, error) {
	a := &admission{ctx: ctx, up: up, watch: watchKex(s.Client, strictClient)}
	config := &ssh.ServerConfig{
		Config: serverAlgorithms(o.RekeyBytes), ServerVersion: version, MaxAuthTries: maxAuthTries,
		PublicKeyAuthAlgorithms: userAlgorithms(), PublicKeyCallback: a.offered, VerifiedPublicKeyCallback: a.verified,
		PreAuthConnCallback: func(c ssh.ServerPreAuthConn) { a.banner = c },
	}
	signers, err := o.HostSigners(s.Host, s.Port)
	if err != nil {
		return nil, fmt.Errorf("ssh host key for %s: %w", s.Host, err)
	}
	rekeys := &exchanges{start: time.Now()}
	for _, signer := range signers {
		config.AddHostKey(counted{signer, rekeys})
	}
	if t, ok := ctx.Deadline(); ok {
		_ = s.Client.SetDeadline(t)
	}
	stop := context.AfterFunc(ctx, func() { _ = s.Client.Close() })
	defer stop()
	conn, channels, requests, err := ssh.NewServerConn(a.watch, config)
	if err != nil {
		return nil, a.explain(err)
	}
	if conn.Permissions == nil || !up.allows([]byte(conn.Permissions.Extensions[keyExtension])) {
		_ = conn.Close()
		return nil, &wire.Refusal{Code: wire.CodeAuthRequired, Detail: "the verified key is not the rule's", Err: errNoAuth}
	}
	_ = s.Client.SetDeadline(time.Time{})
	return &leg{conn, channels, requests}, nil
}

// offered says whether a key may be tried. Certificates may not: nobody here knows their
// authorities (E09).
func (a *admission) offered(conn ssh.ConnMetadata, key ssh.PublicKey) (*ssh.Permissions, error) {
	if m, ok := conn.(ssh.AlgorithmsConnMetadata); !ok || a.watch.check(m.Algorithms()) != nil {
		return nil, errStrict
	}
	if _, ok := key.(*ssh.Certificate); ok {
		return nil, errKey
	}
	select {
	case <-a.up.known:
	case <-a.ctx.Done():
		return nil, a.ctx.Err()
	}
	if a.up.who == nil {
		return nil, a.refuse()
	}
	blob := key.Marshal()
	if !a.up.allows(blob) {
		return nil, errKey
	}
	return &ssh.Permissions{Extensions: map[string]string{keyExtension: string(blob)}}, nil
}

// verified holds the answer back until the login upstream has ended.
func (a *admission) verified(_ ssh.ConnMetadata, _ ssh.PublicKey, p *ssh.Permissions, _ string) (*ssh.Permissions, error) {
	select {
	case <-a.up.done:
	case <-a.ctx.Done():
		return nil, a.ctx.Err()
	}
	if a.up.err != nil {
		return nil, a.refuse()
	}
	a.up.mu.Lock()
	text := a.up.banner.String()
	a.up.mu.Unlock()
	if text != "" {
		if err := a.banner.SendAuthBanner(text); err != nil {
			return nil, err
		}
	}
	return p, nil
}

// refuse tells the sandbox, once, why nobody can come in.
func (a *admission) refuse() error {
	<-a.up.done
	if a.failed {
		return errLogin
	}
	a.failed = true
	return &ssh.BannerError{Err: errLogin, Message: fmt.Sprintf("egressd: no login at %s: %s\n", a.up.s.Host, a.up.reason())}
}

func (a *admission) explain(err error) error {
	var auth *ssh.ServerAuthError
	switch {
	case a.ctx.Err() != nil:
		return wire.Bad("ssh: no login in time")
	case errors.As(err, &auth):
		return &wire.Refusal{Code: wire.CodeAuthRequired, Detail: "no key of the rule was shown", Err: err}
	}
	return wire.Bad("ssh handshake: %v", err)
}

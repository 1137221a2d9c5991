package sshbridge

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/egressd/egressd/inject"
	"github.com/egressd/egressd/proxy/wire"
)

// leg is one logged-in end of the bridge.
type leg struct {
	ssh.Conn
	channels <-chan ssh.NewChannel
	requests <-chan *ssh.Request
}

// login is the way to the origin, taken in a goroutine of its own while the sandbox's
// handshake runs.
type login struct {
	s     *wire.Session
	o     Options
	known chan struct{} // closed when who is known
	done  chan struct{} // closed at the end; what is below is set then

	who     *inject.SSHLogin // set when known is closed; nil: the login has failed
	raw     net.Conn
	leg     *leg
	err     error
	hostKey error

	mu     sync.Mutex
	banner strings.Builder
}

func startLogin(ctx context.Context, s *wire.Session, o Options) *login {
	l := &login{s: s, o: o, known: make(chan struct{}), done: make(chan struct{})}
	go func() {
		defer close(l.done)
		defer l.setWho(nil) // when it ended before
		defer func() {
			if r := recover(); r != nil {
				l.err = fmt.Errorf("ssh: panic in the login: %T", r) // the value may hold what was sent
			}
		}()
		l.err = l.run(ctx)
	}()
	return l
}

// setWho is called by the goroutine of the login only.
func (l *login) setWho(who *inject.SSHLogin) {
	select {
	case <-l.known:
	default:
		l.who = who
		close(l.known)
	}
}

// close ends the login and waits for it.
func (l *login) close() {
	<-l.done
	if l.raw != nil {
		_ = l.raw.Close()
	}
}

// run logs in. The material is asked for when the origin is reached, not before.
func (l *login) run(ctx context.Context) error {
	conn, err := l.s.Dial(ctx)
	if err != nil {
		return refusal(wire.CodeUnreachable, "cannot connect", err)
	}
	l.raw = conn
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer stop()
	p, err := l.s.Credential(ctx)
	if err != nil {
		return err
	}
	if p == nil || p.SSH == nil || p.SSH.Signer == nil {
		return errors.New("ssh: the projection is not a login of SSH")
	}
	l.setWho(p.SSH)
	algorithms := p.SSH.KnownHosts.Algorithms(l.s.Host, l.s.Port)
	if len(algorithms) == 0 {
		return refusal(wire.CodeHostKey, "known_hosts has no key for it", inject.ErrHostKeyUnknown)
	}
	signer, err := sha2Only(p.SSH.Signer)
	if err != nil {
		return err
	}
	if t, ok := ctx.Deadline(); ok {
		_ = conn.SetDeadline(t) // an end that has gone says so at the next read
	}
	watch := watchKex(conn, strictServer)
	rekeys := &exchanges{start: time.Now()}
	config := &ssh.ClientConfig{
		Config: clientAlgorithms(l.o.RekeyBytes), User: p.SSH.Username, ClientVersion: version, HostKeyAlgorithms: algorithms,
		HostKeyCallback: func(_ string, _ net.Addr, key ssh.PublicKey) error {
			if err := rekeys.count(); err != nil {
				return err
			}
			l.hostKey = p.SSH.KnownHosts.Check(l.s.Host, l.s.Port, key)
			return l.hostKey
		},
		AuthCallback:   func(c *ssh.ClientAuthContext) (ssh.AuthMethod, error) { return nil, watch.check(c.Algorithms) },
		Auth:           []ssh.AuthMethod{ssh.PublicKeys(signer)},
		BannerCallback: l.addBanner,
	}
	addr := net.JoinHostPort(l.s.Host, strconv.Itoa(int(l.s.Port)))
	c, channels, requests, err := ssh.NewClientConn(watch, addr, config)
	if err != nil {
		return l.explain(ctx, err)
	}
	_ = conn.SetDeadline(time.Time{})
	l.leg = &leg{c, channels, requests}
	return nil
}

func (l *login) addBanner(message string) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if left := maxBanner - l.banner.Len(); left > 0 {
		l.banner.WriteString(printable(message, left))
	}
	return nil
}

// explain finds the word for an error of the handshake.
func (l *login) explain(ctx context.Context, err error) error {
	var negotiation *ssh.AlgorithmNegotiationError
	switch {
	case l.hostKey != nil:
		return refusal(wire.CodeHostKey, l.hostKey.Error(), err)
	case errors.As(err, &negotiation) && strings.Contains(err.Error(), "host key"):
		return refusal(wire.CodeHostKey, "it has no key of a type that is known", err)
	case ctx.Err() != nil:
		return refusal(wire.CodeUpstream, "it did not answer in time", err)
	case strings.Contains(err.Error(), "unable to authenticate"):
		return refusal(wire.CodeUpstreamLogin, "it does not take the key", errors.Join(wire.ErrLogin, err))
	}
	return refusal(wire.CodeUpstream, "no SSH login", err)
}

// refusal gives err a code, unless it has one.
func refusal(code, detail string, err error) error {
	var r *wire.Refusal
	if errors.As(err, &r) {
		return err
	}
	return &wire.Refusal{Code: code, Detail: detail, Err: err}
}

// allows says whether key is one of the rule's.
func (l *login) allows(key []byte) bool {
	if l.who == nil {
		return false
	}
	for _, k := range l.who.SandboxKeys {
		if bytes.Equal(k.Marshal(), key) {
			return true
		}
	}
	return false
}

// reason is what the sandbox is told of a login that has failed: a code and nothing of
// what was tried.
func (l *login) reason() string {
	var r *wire.Refusal
	var e *inject.Error
	switch {
	case errors.As(l.err, &r):
		return r.Code
	case errors.As(l.err, &e):
		return e.Code
	}
	return wire.CodeUpstream
}

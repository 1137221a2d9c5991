package main

import (
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"sync"

	"golang.org/x/crypto/ssh"
)

// sshRelay is what anyone would write with x/crypto/ssh: its defaults, its order, two
// copies for each channel. It decides nothing and writes nothing down.
type sshRelay struct {
	down ssh.ServerConfig
	up   ssh.ClientConfig
}

func newSSHRelay(dir string) (*sshRelay, error) {
	text, err := os.ReadFile(filepath.Join(dir, sshUserFile))
	if err != nil {
		return nil, err
	}
	user, err := ssh.ParsePrivateKey(text)
	if err != nil {
		return nil, err
	}
	if text, err = os.ReadFile(filepath.Join(dir, sshHostFile)); err != nil {
		return nil, err
	}
	host, _, _, _, err := ssh.ParseAuthorizedKey(text)
	if err != nil {
		return nil, err
	}
	r := &sshRelay{
		down: ssh.ServerConfig{PublicKeyCallback: func(ssh.ConnMetadata, ssh.PublicKey) (*ssh.Permissions, error) { return &ssh.Permissions{}, nil }},
		up:   ssh.ClientConfig{User: "git", Auth: []ssh.AuthMethod{ssh.PublicKeys(user)}, HostKeyCallback: ssh.FixedHostKey(host)},
	}
	// Its own host key may be the one that it logs in with: nothing costs less for it.
	r.down.AddHostKey(user)
	return r, nil
}

func (r *sshRelay) serve(c net.Conn, port string) error {
	if _, err := io.WriteString(c, "HTTP/1.1 200 OK\r\n\r\n"); err != nil {
		return err
	}
	here, chans, reqs, err := ssh.NewServerConn(c, &r.down)
	if err != nil {
		return err
	}
	defer func() { _ = here.Close() }()
	go ssh.DiscardRequests(reqs)
	raw, err := net.Dial("tcp4", "127.0.0.1:"+port)
	if err != nil {
		return err
	}
	there, upChans, upReqs, err := ssh.NewClientConn(raw, sshName, &r.up)
	if err != nil {
		return errors.Join(err, raw.Close())
	}
	defer func() { _ = there.Close() }()
	go ssh.DiscardRequests(upReqs)
	go func() {
		for n := range upChans {
			_ = n.Reject(ssh.Prohibited, "")
		}
	}()
	var wg sync.WaitGroup
	defer wg.Wait()
	for n := range chans {
		far, tells, err := there.OpenChannel(n.ChannelType(), n.ExtraData())
		if err != nil {
			_ = n.Reject(ssh.ConnectionFailed, "")
			continue
		}
		near, asks, err := n.Accept()
		if err != nil {
			return err
		}
		wg.Go(func() { sshChannel(near, far, asks, tells) })
	}
	return nil
}

// sshChannel copies both ways until both ends have closed.
func sshChannel(near, far ssh.Channel, asks, tells <-chan *ssh.Request) {
	var wg sync.WaitGroup
	wg.Go(func() { sshRequests(far, asks); _ = far.Close() })
	wg.Go(func() { _, _ = io.Copy(far, near); _ = far.CloseWrite() })
	wg.Go(func() {
		var out sync.WaitGroup
		out.Go(func() { _, _ = io.Copy(near, far) })
		out.Go(func() { _, _ = io.Copy(near.Stderr(), far.Stderr()) })
		sshRequests(near, tells)
		out.Wait()
		_ = near.Close()
	})
	wg.Wait()
}

func sshRequests(to ssh.Channel, from <-chan *ssh.Request) {
	for r := range from {
		ok, _ := to.SendRequest(r.Type, r.WantReply, r.Payload)
		_ = r.Reply(ok, nil)
	}
}

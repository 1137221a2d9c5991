package acceptance

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"
)

// tool runs the real clients of a protocol, one after the other, and says what came of them.
func (p *matrixPlan) tool(c matrixCell) string {
	run := map[string]func(matrixCell) (string, error){
		"curl h1": p.curl, "curl h2": p.curl, "curl sse": p.curl, "git https": p.gitHTTPS, "node ws": p.nodeWS, "nc raw": p.nc,
		"openssh": p.openSSH, "sftp": p.sftp, "scp": p.scp, "rsync": p.rsync, "git ssh": p.gitSSH,
		"redis-cli": p.redisCLI, "mosquitto": p.mosquitto, "psql": p.psql,
	}[c.Protocol]
	if run == nil {
		return "no such client"
	}
	out, err := run(c)
	if err != nil {
		return fmt.Sprintf("%v: %s", err, out)
	}
	return strings.TrimSpace(out)
}

// command runs a client for at most 20 s and gives its stdout, or all that it said.
func (p *matrixPlan) command(stdin string, env []string, name string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env = append(os.Environ(), append([]string{"LC_ALL=C", "HOME=" + p.Dir, "SSH_AUTH_SOCK=", "GIT_CONFIG_NOSYSTEM=1", "GIT_TERMINAL_PROMPT=0",
		"GIT_AUTHOR_NAME=m", "GIT_AUTHOR_EMAIL=m@example.test", "GIT_COMMITTER_NAME=m", "GIT_COMMITTER_EMAIL=m@example.test"}, env...)...)
	var out, errs bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(stdin), &out, &errs
	if err := cmd.Run(); err != nil {
		return out.String() + errs.String(), fmt.Errorf("%s: %w", filepath.Base(name), err)
	}
	return out.String(), nil
}

// proxyURL is what clients that know proxies are told; "": there is none.
func (p *matrixPlan) proxyURL() string {
	u := url.URL{Host: p.Proxy, User: url.UserPassword(p.User, p.Token)}
	switch p.Way {
	case wayConnect:
		u.Scheme = "http"
	case waySOCKS5:
		u.Scheme = "socks5h"
	default:
		return ""
	}
	return u.String()
}

func (p *matrixPlan) curl(c matrixCell) (string, error) {
	args := []string{"-sS", "--fail", "--max-time", "15", "--http1.1", "-w", " %{http_version} %{http_code}"}
	path := "/who"
	switch c.Protocol {
	case "curl h2":
		args[4] = "--http2"
	case "curl sse":
		path = "/sse"
		args = append(args, "-N")
	}
	if u := p.proxyURL(); u != "" {
		args = append(args, "--proxy", u)
	}
	out, err := p.command("", nil, "curl", append(args, p.url(c, path))...)
	return strings.Join(strings.Fields(out), " "), err
}

// scratch is an empty directory for one client.
func (p *matrixPlan) scratch() (string, error) { return os.MkdirTemp(p.Dir, "scratch-") }

// gitHTTPS clones, and pushes a branch of its own.
func (p *matrixPlan) gitHTTPS(c matrixCell) (string, error) {
	dir, err := p.scratch()
	if err != nil {
		return "", err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	var env []string
	if u := p.proxyURL(); u != "" {
		env = []string{"https_proxy=" + u, "GIT_HTTP_PROXY_AUTHMETHOD=basic"}
	}
	return p.clonePush(env, p.url(c, "/git/repo.git"), dir)
}

func (p *matrixPlan) clonePush(env []string, from, dir string) (string, error) {
	work, branch := filepath.Join(dir, "work"), "HEAD:refs/heads/"+p.Way+p.Family+filepath.Base(dir)
	if out, err := p.command("", env, "git", "clone", "-q", from, work); err != nil {
		return out, err
	}
	if out, err := p.command("", env, "git", "-C", work, "commit", "-q", "--allow-empty", "-m", "more"); err != nil {
		return out, err
	}
	if out, err := p.command("", env, "git", "-C", work, "push", "-q", "origin", branch); err != nil {
		return out, err
	}
	text, err := os.ReadFile(filepath.Join(work, "README"))
	return string(text) + "pushed", err
}

// nodeWS is the package ws. What it is to write is node's own.
const nodeWS = `
const [ws, url, token, way, proxy, user, secret] = process.argv.slice(1);
const WebSocket = require(ws), net = require('net'), tls = require('tls');
const u = new URL(url);
const [, at, port] = (proxy || '').match(/^\[?(.*?)\]?:(\d+)$/) || [];
const stop = (e) => { console.log('error: ' + e); process.exit(1); };
setTimeout(() => stop('too late'), 15000);
const read = (s, enough) => new Promise((ok) => {
  let b = Buffer.alloc(0);
  const f = () => { let c; while ((c = s.read(1)) !== null) { b = Buffer.concat([b, c]); if (enough(b)) { s.off('readable', f); return ok(b); } } };
  s.on('readable', f);
});
(async () => {
  let raw = net.connect(way === 'none' ? { host: u.hostname, port: u.port } : { host: at, port });
  raw.on('error', stop);
  await new Promise((ok) => raw.once('connect', ok));
  if (way === 'connect') {
    raw.write('CONNECT ' + u.host + ' HTTP/1.1\r\nHost: ' + u.host + '\r\nProxy-Authorization: Basic ' + Buffer.from(user + ':' + secret).toString('base64') + '\r\n\r\n');
    const head = (await read(raw, (b) => b.includes('\r\n\r\n'))).toString();
    if (!head.startsWith('HTTP/1.1 200')) stop(head);
  } else if (way === 'socks5') {
    raw.write(Buffer.from([5, 1, 2]));
    await read(raw, (b) => b.length === 2);
    raw.write(Buffer.concat([Buffer.from([1, user.length]), Buffer.from(user), Buffer.from([secret.length]), Buffer.from(secret)]));
    await read(raw, (b) => b.length === 2);
    raw.write(Buffer.concat([Buffer.from([5, 1, 0, 3, u.hostname.length]), Buffer.from(u.hostname), Buffer.from([u.port >> 8, u.port & 255])]));
    const b = await read(raw, (b) => b.length === 10);
    if (b[1] !== 0) stop('SOCKS5 ' + b[1]);
  }
  const secure = tls.connect({ socket: raw, servername: u.hostname });
  const c = new WebSocket(url, { createConnection: () => secure, headers: { Authorization: 'Bearer ' + token } });
  c.on('error', stop);
  let who;
  c.on('message', (m) => { if (who === undefined) { who = m.toString(); c.send('ping'); } else { console.log(who + ' ' + m); c.close(); } });
  c.on('close', () => process.exit(0));
})();
`

func (p *matrixPlan) nodeWS(c matrixCell) (string, error) {
	way := p.Way
	if p.proxyURL() == "" {
		way = "none"
	}
	return p.command("", nil, p.Node, "-e", nodeWS, "--", p.WS, strings.Replace(p.url(c, "/ws"), "https", "wss", 1), p.Own.Password, way, p.Proxy, p.User, p.Token)
}

func (p *matrixPlan) nc(c matrixCell) (string, error) {
	args := append(p.ncProxy(), "-"+p.Family, "-N", "-w", "10", p.host(c), strconv.Itoa(int(c.Port)))
	return p.command("\x01\x02 raw \x03\n", nil, "nc", args...)
}

// ncProxy is how OpenBSD's nc takes an explicit way. It knows no password: the address says
// who the sandbox is.
func (p *matrixPlan) ncProxy() []string {
	switch p.Way {
	case wayConnect:
		return []string{"-X", "connect", "-x", p.Proxy}
	case waySOCKS5:
		return []string{"-X", "5", "-x", p.Proxy}
	}
	return nil
}

// sshArgs configure OpenSSH's clients.
func (p *matrixPlan) sshArgs() []string {
	args := []string{"-F", "/dev/null", "-o", "IdentityFile=" + p.SSHKey, "-o", "IdentitiesOnly=yes", "-o", "UserKnownHostsFile=" + p.KnownHosts,
		"-o", "GlobalKnownHostsFile=/dev/null", "-o", "StrictHostKeyChecking=yes", "-o", "BatchMode=yes", "-o", "User=whoever"}
	if nc := p.ncProxy(); nc != nil {
		args = append(args, "-o", "ProxyCommand=nc "+strings.Join(nc, " ")+" %h %p")
	}
	return args
}

func (p *matrixPlan) openSSH(c matrixCell) (string, error) {
	return p.command("to the server", nil, "ssh", append(p.sshArgs(), p.host(c), "echo $WHO; cat; exit 0")...)
}

func (p *matrixPlan) sftp(c matrixCell) (string, error) {
	return p.copied(c, func(from, to, back string) (string, error) {
		batch := "put " + from + " " + to + "\nget " + to + " " + back + "\n"
		return p.command(batch, nil, "sftp", append(p.sshArgs(), "-q", "-b", "-", p.host(c))...)
	})
}

func (p *matrixPlan) scp(c matrixCell) (string, error) {
	return p.copied(c, func(from, to, back string) (string, error) {
		args := append(p.sshArgs(), "-q", "-O") // the old protocol: sftp has its own cell
		if out, err := p.command("", nil, "scp", append(args, from, p.host(c)+":"+to)...); err != nil {
			return out, err
		}
		return p.command("", nil, "scp", append(args, p.host(c)+":"+to, back)...)
	})
}

func (p *matrixPlan) rsync(c matrixCell) (string, error) {
	return p.copied(c, func(from, to, back string) (string, error) {
		shell := "ssh"
		for _, a := range p.sshArgs() {
			shell += " '" + a + "'"
		}
		if out, err := p.command("", nil, "rsync", "-a", "-e", shell, from, p.host(c)+":"+to); err != nil {
			return out, err
		}
		return p.command("", nil, "rsync", "-a", "-e", shell, p.host(c)+":"+to, back)
	})
}

// copied has a file of 300 KiB copied there and back.
func (p *matrixPlan) copied(c matrixCell, there func(from, to, back string) (string, error)) (string, error) {
	dir, err := p.scratch()
	if err != nil {
		return "", err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	text := bytes.Repeat([]byte("0123456789abcde\n"), 300*64)
	from, to, back := filepath.Join(dir, "from"), filepath.Join(dir, "to"), filepath.Join(dir, "back")
	if err := os.WriteFile(from, text, 0o600); err != nil {
		return "", err
	}
	if out, err := there(from, to, back); err != nil {
		return out, err
	}
	got, err := os.ReadFile(back)
	if err == nil && !bytes.Equal(got, text) {
		err = fmt.Errorf("%d bytes came back", len(got))
	}
	return "there and back", err
}

func (p *matrixPlan) gitSSH(c matrixCell) (string, error) {
	dir, err := p.scratch()
	if err != nil {
		return "", err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	shell := "ssh"
	for _, a := range p.sshArgs() {
		shell += " '" + a + "'"
	}
	return p.clonePush([]string{"GIT_SSH_COMMAND=" + shell}, "ssh://"+p.host(c)+p.Git, dir)
}

// local is where a client that knows no proxy finds its server: a forwarder on the
// sandbox's own loopback for explicit ways, else the server itself.
func (p *matrixPlan) local(c matrixCell) (host string, port uint16, stop func(), err error) {
	if p.proxyURL() == "" {
		return p.host(c), c.Port, func() {}, nil
	}
	ln, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		return "", 0, nil, err
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			in, err := ln.Accept()
			if err != nil {
				return
			}
			wg.Go(func() { p.forward(in, c) })
		}
	})
	return "127.0.0.1", uint16(ln.Addr().(*net.TCPAddr).Port), func() { _ = ln.Close(); wg.Wait() }, nil
}

func (p *matrixPlan) forward(in net.Conn, c matrixCell) {
	defer func() { _ = in.Close() }()
	ctx, cancel := context.WithTimeout(context.Background(), 15*time.Second)
	defer cancel()
	out, err := p.dial(ctx, c)
	if err != nil {
		return
	}
	defer func() { _ = out.Close() }()
	_ = in.SetDeadline(time.Now().Add(20 * time.Second))
	var wg sync.WaitGroup
	wg.Go(func() { copyThenClose(out, in) })
	wg.Go(func() { copyThenClose(in, out) })
	wg.Wait()
}

func copyThenClose(to, from net.Conn) {
	_, _ = io.Copy(to, from)
	if half, ok := to.(interface{ CloseWrite() error }); ok {
		_ = half.CloseWrite()
		return
	}
	_ = to.Close()
}

func (p *matrixPlan) redisCLI(c matrixCell) (string, error) {
	host, port, stop, err := p.local(c)
	if err != nil {
		return "", err
	}
	defer stop()
	return p.command("", nil, "redis-cli", "-h", host, "-p", strconv.Itoa(int(port)), "--tls", "--sni", p.host(c), "--cacert", os.Getenv("SSL_CERT_FILE"), "ACL", "WHOAMI")
}

// mosquitto publishes a message that is kept and reads it.
func (p *matrixPlan) mosquitto(c matrixCell) (string, error) {
	host, port, stop, err := p.local(c)
	if err != nil {
		return "", err
	}
	defer stop()
	args := []string{"-h", host, "-p", strconv.Itoa(int(port))}
	if p.Way == waySOCKS5 && p.Family == "4" { // it knows this one itself, but for a proxy's IPv6 address
		args = []string{"-h", p.host(c), "-p", strconv.Itoa(int(c.Port)), "--proxy", p.proxyURL()}
	}
	topic := "u/real/" + p.Way + p.Family
	if out, err := p.command("", nil, "mosquitto_pub", append(args, "-V", "5", "-q", "1", "-r", "-t", topic, "-m", "kept")...); err != nil {
		return out, err
	}
	return p.command("", nil, "mosquitto_sub", append(args, "-W", "10", "-C", "1", "-t", topic)...)
}

func (p *matrixPlan) psql(c matrixCell) (string, error) {
	host, port, stop, err := p.local(c)
	if err != nil {
		return "", err
	}
	defer stop()
	conn := fmt.Sprintf("host=%s port=%d dbname=app user=anybody sslmode=verify-full sslrootcert=%s", p.host(c), port, os.Getenv("SSL_CERT_FILE"))
	if host != p.host(c) {
		conn += " hostaddr=" + host
	}
	return p.command("", nil, "psql", "-X", "-A", "-t", "-w", "-c", "SELECT current_user", conn)
}

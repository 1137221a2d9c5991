package acceptance

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/knownhosts"
	"golang.org/x/net/proxy"
)

// reach is dial, with TLS where the protocol's name ends in s.
func (p *matrixPlan) reach(ctx context.Context, c matrixCell, secure bool) (net.Conn, error) {
	conn, err := p.dial(ctx, c)
	if err != nil || !secure {
		return conn, err
	}
	tc := tls.Client(conn, &tls.Config{ServerName: p.host(c)})
	return tc, tc.HandshakeContext(ctx)
}

// ssh logs in with the key that egressd knows, or, where it does not see inside, with one
// that the server knows; asks the server who it was; and for what a rule forbids.
func (p *matrixPlan) ssh(ctx context.Context, c matrixCell) string {
	key := p.SSHKey
	if c.Kind == toFree {
		key = p.Own.Key
	}
	text, err := os.ReadFile(key)
	if err != nil {
		return brief(err)
	}
	signer, err := ssh.ParsePrivateKey(text)
	if err != nil {
		return brief(err)
	}
	trusted := []string{p.KnownHosts}
	if c.Kind == toFree {
		trusted = append(trusted, filepath.Join(p.Dir, "server_known_hosts"))
	}
	known, err := knownhosts.New(trusted...)
	if err != nil {
		return brief(err)
	}
	conn, err := p.dial(ctx, c)
	if err != nil {
		return brief(err)
	}
	defer func() { _ = conn.Close() }()
	cc, chans, reqs, err := ssh.NewClientConn(conn, p.hostPort(c), &ssh.ClientConfig{
		User: "root", Auth: []ssh.AuthMethod{ssh.PublicKeys(signer)}, HostKeyCallback: known,
		HostKeyAlgorithms: []string{ssh.CertAlgoED25519v01, ssh.KeyAlgoED25519}, Timeout: 15 * time.Second,
	})
	if err != nil {
		return brief(err)
	}
	client := ssh.NewClient(cc, chans, reqs)
	defer func() { _ = client.Close() }()
	if c.Kind == toLimited {
		return fmt.Sprintf("%s; %s", sshRun(client, "echo allowed"), sshRun(client, "cat /etc/hostname"))
	}
	return sshRun(client, "echo $WHO")
}

func sshRun(client *ssh.Client, command string) string {
	s, err := client.NewSession()
	if err != nil {
		return brief(err)
	}
	defer func() { _ = s.Close() }()
	out, err := s.Output(command)
	if err != nil {
		return err.Error()
	}
	return strings.TrimSpace(string(out))
}

// redis asks the server who it is; where egressd does not see inside, it logs in itself.
func (p *matrixPlan) redis(ctx context.Context, c matrixCell) string {
	conn, err := p.reach(ctx, c, c.Protocol == "rediss")
	if err != nil {
		return brief(err)
	}
	defer func() { _ = conn.Close() }()
	in := bufio.NewReader(conn)
	ask := func(words ...string) (string, error) {
		text := fmt.Sprintf("*%d\r\n", len(words))
		for _, w := range words {
			text += fmt.Sprintf("$%d\r\n%s\r\n", len(w), w)
		}
		if _, err := io.WriteString(conn, text); err != nil {
			return "", err
		}
		line, err := in.ReadString('\n')
		if err == nil && line[0] == '$' {
			line, err = in.ReadString('\n')
		}
		return strings.TrimSpace(line), err
	}
	if c.Kind == toFree {
		if said, err := ask("AUTH", p.Own.User, p.Own.Password); err != nil || said != "+OK" {
			return "AUTH: " + said
		}
	}
	who, err := ask("ACL", "WHOAMI")
	if err != nil {
		return brief(err)
	}
	return who
}

// mqtt subscribes, publishes in the place of everybody, and says whose message came back: the
// broker lets a user do so in a place of its own only.
func (p *matrixPlan) mqtt(ctx context.Context, c matrixCell) string {
	conn, err := p.reach(ctx, c, c.Protocol == "mqtts")
	if err != nil {
		return brief(err)
	}
	defer func() { _ = conn.Close() }()
	user, password := "anybody", "anything"
	if c.Kind == toFree {
		user, password = p.Own.User, p.Own.Password
	}
	id := "matrix-" + strings.ReplaceAll(c.String(), "/", "-") + p.Family
	connect := append(mqttText("MQTT"), 4, 0xc2, 0, 60)
	connect = append(append(append(connect, mqttText(id)...), mqttText(user)...), mqttText(password)...)
	packets := mqttPacket(0x10, connect)
	packets = append(packets, mqttPacket(0x82, append(append([]byte{0, 1}, mqttText("u/+/"+id)...), 0))...)
	for _, who := range []string{"real", "certified", p.Own.User} {
		packets = append(packets, mqttPacket(0x30, append(mqttText("u/"+who+"/"+id), "hello from "+who...))...)
	}
	if _, err := conn.Write(packets); err != nil {
		return brief(err)
	}
	for in := bufio.NewReader(conn); ; {
		kind, body, err := mqttRead(in)
		switch {
		case err != nil:
			return brief(err)
		case kind == 0x20 && (len(body) != 2 || body[1] != 0):
			return fmt.Sprintf("CONNACK %x", body)
		case kind == 0x30 && len(body) > 2:
			return string(body[2+binary.BigEndian.Uint16(body):])
		}
	}
}

func mqttText(s string) []byte {
	return append(binary.BigEndian.AppendUint16(nil, uint16(len(s))), s...)
}

func mqttPacket(kind byte, body []byte) []byte {
	return append([]byte{kind, byte(len(body))}, body...) // all are shorter than 128 bytes
}

func mqttRead(in *bufio.Reader) (kind byte, body []byte, err error) {
	if kind, err = in.ReadByte(); err != nil {
		return 0, nil, err
	}
	n, err := binary.ReadUvarint(in)
	if err != nil || n > 1<<16 {
		return 0, nil, errors.Join(err, errors.New("no MQTT"))
	}
	body = make([]byte, n)
	_, err = io.ReadFull(in, body)
	return kind & 0xf0, body, err
}

// postgres asks who it is and whether the server's connection is encrypted.
func (p *matrixPlan) postgres(ctx context.Context, c matrixCell) string {
	cfg, err := pgx.ParseConfig("sslmode=verify-full dbname=app user=anybody password=anything host=" + p.host(c) + " port=" + strconv.Itoa(int(c.Port)))
	if err != nil {
		return brief(err)
	}
	if c.Kind == toFree {
		cfg.User, cfg.Password = p.Own.User, p.Own.Password
	}
	cfg.LookupFunc = func(_ context.Context, host string) ([]string, error) { return []string{host}, nil }
	cfg.DialFunc = func(ctx context.Context, _, _ string) (net.Conn, error) { return p.dial(ctx, c) }
	conn, err := pgx.ConnectConfig(ctx, cfg)
	var said *pgconn.PgError
	if errors.As(err, &said) {
		return said.Code + " " + said.Message
	}
	if err != nil {
		return strings.ReplaceAll(brief(err), p.hostPort(c)+" ("+p.host(c)+")", "NAME")
	}
	defer func() { _ = conn.Close(ctx) }()
	var who string
	var encrypted bool
	err = conn.QueryRow(ctx, "SELECT current_user, ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()").Scan(&who, &encrypted)
	if err != nil {
		return brief(err)
	}
	return fmt.Sprintf("%s, tls %v", who, encrypted)
}

// innerSOCKS goes through a SOCKS5 server in the world to the world's echo.
func (p *matrixPlan) innerSOCKS(ctx context.Context, c matrixCell) string {
	var login *proxy.Auth
	if c.Kind == toFree {
		login = &proxy.Auth{User: p.Own.User, Password: p.Own.Password}
	}
	d, err := proxy.SOCKS5("tcp", "", login, matrixDialer{p, c})
	if err != nil {
		return brief(err)
	}
	conn, err := d.(proxy.ContextDialer).DialContext(ctx, "tcp", net.JoinHostPort(matrixAddr(toFree, p.Family), strconv.Itoa(int(p.Echo))))
	if err != nil {
		return brief(err)
	}
	defer func() { _ = conn.Close() }()
	return echoed(conn)
}

// matrixDialer is the way to a cell's destination, whatever address is asked for.
type matrixDialer struct {
	p *matrixPlan
	c matrixCell
}

func (d matrixDialer) Dial(_, _ string) (net.Conn, error) {
	return nil, errors.New("without a context")
}

func (d matrixDialer) DialContext(ctx context.Context, _, _ string) (net.Conn, error) {
	return d.p.dial(ctx, d.c)
}

// raw sends bytes of no protocol and takes them back.
func (p *matrixPlan) raw(ctx context.Context, c matrixCell) string {
	conn, err := p.dial(ctx, c)
	if err != nil {
		return brief(err)
	}
	defer func() { _ = conn.Close() }()
	return echoed(conn)
}

func echoed(conn net.Conn) string {
	const text = "\xff\xfe no protocol at all \x00\x01\n"
	if _, err := io.WriteString(conn, text); err != nil {
		return brief(err)
	}
	b := make([]byte, len(text))
	if _, err := io.ReadFull(conn, b); err != nil {
		return brief(err)
	}
	if string(b) != text {
		return fmt.Sprintf("%q came back", b)
	}
	return "echo"
}

package acceptance

import (
	"bufio"
	"cmp"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/net/proxy"
)

// The ways into egressd. Each runs the same cells.
const (
	wayConnect  = "connect"
	waySOCKS5   = "socks5"
	wayRedirect = "redirect"
	wayTProxy   = "tproxy"
	wayIsolate  = "isolate"
)

func matrixWays() []string {
	return []string{wayConnect, waySOCKS5, wayRedirect, wayTProxy, wayIsolate}
}

// What a destination of the matrix is for. Each is a name per family with an address of its
// own: headers4.test, headers6.test, …
const (
	toHeaders     = "headers"     // http_headers
	toLogin       = "login"       // username_password
	toPlaceholder = "placeholder" // placeholder_substitution
	toAWS         = "aws"         // aws_sigv4
	toCert        = "cert"        // tls_client_certificate; where there is a login, beside it
	toCertOnly    = "certonly"    // tls_client_certificate without a login
	toSSH         = "ssh"         // ssh_proxy
	toLimited     = "limited"     // ssh_proxy, and a rule for commands
	toFree        = "free"        // allowed, no rule sees inside
	toDenied      = "denied"      // policy refuses what is asked for there
	toUnknown     = "unknown"     // no rule has the name
)

func matrixKinds() []string {
	return []string{toHeaders, toLogin, toPlaceholder, toAWS, toCert, toCertOnly, toSSH, toLimited, toFree, toDenied, toUnknown}
}

// matrixHost is the name of a kind for a family, "4" or "6".
func matrixHost(kind, family string) string { return kind + family + ".test" }

// matrixAddr is its address in the world.
func matrixAddr(kind, family string) string {
	n := 10 + slices.Index(matrixKinds(), kind)
	if family == "6" {
		return fmt.Sprintf("2001:db8:77::%d", n)
	}
	return fmt.Sprintf("192.0.2.%d", n)
}

// matrixCell is one flow of one protocol.
type matrixCell struct {
	Protocol, Kind string
	Port           uint16
}

func (c matrixCell) String() string { return c.Protocol + "/" + c.Kind }

// matrixPlan is what a sandbox's program is told. It holds no secret of the matrix: own is
// an account that the sandbox may have.
type matrixPlan struct {
	Way, Family string
	Proxy       string // host:port, of explicit ways
	User, Token string // for it
	Own         struct{ User, Password, Key string }
	Placeholder string
	AWS         [2]string // id and key that are good for nothing
	SSHKey      string    // file; egressd knows it
	KnownHosts  string    // file
	Cells       []matrixCell
	Tools       []matrixCell
	Dir         string // to write to
	Node, WS    string // node, and where the package ws is
	Echo        uint16 // port of the world's echo
	Git         string // path of a repository on the SSH server
}

func (p *matrixPlan) host(c matrixCell) string { return matrixHost(c.Kind, p.Family) }

func (p *matrixPlan) hostPort(c matrixCell) string {
	return net.JoinHostPort(p.host(c), strconv.Itoa(int(c.Port)))
}

func (p *matrixPlan) url(c matrixCell, path string) string {
	scheme := "https://"
	if strings.HasSuffix(c.Protocol, "clear") {
		scheme = "http://"
	}
	return scheme + p.hostPort(c) + path
}

// matrixChild is the sandbox's program: it runs the cells of the plan and prints what came
// of each as a JSON object.
func matrixChild(file string) int {
	b, err := os.ReadFile(file)
	var p matrixPlan
	if err == nil {
		err = json.Unmarshal(b, &p)
	}
	if p.Way == wayIsolate { // egressd has its own CA there
		p.KnownHosts = os.Getenv("EGRESSD_SSH_KNOWN_HOSTS")
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 3
	}
	var mu sync.Mutex
	var wg sync.WaitGroup
	results := map[string]string{}
	slots := make(chan struct{}, 6)
	each := func(cells []matrixCell, run func(matrixCell) string) {
		for _, c := range cells {
			wg.Go(func() {
				slots <- struct{}{}
				defer func() { <-slots }()
				got := withoutID(run(c))
				mu.Lock()
				defer mu.Unlock()
				results[c.String()] = got
			})
		}
	}
	each(p.Cells, func(c matrixCell) string {
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		defer cancel()
		return p.try(ctx, c)
	})
	each(p.Tools, p.tool)
	wg.Wait()
	if err := json.NewEncoder(os.Stdout).Encode(results); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 3
	}
	return 0
}

// try runs one cell and says in few words what the client saw.
func (p *matrixPlan) try(ctx context.Context, c matrixCell) string {
	run := map[string]func(context.Context, matrixCell) string{
		"h1": p.http, "h2": p.http, "h1 clear": p.http, "h2 clear": p.http, "sse": p.sse, "websocket": p.websocket, "grpc": p.grpc,
		"ssh": p.ssh, "redis": p.redis, "rediss": p.redis, "mqtt": p.mqtt, "mqtts": p.mqtt, "postgres": p.postgres, "socks5": p.innerSOCKS, "raw": p.raw,
	}[c.Protocol]
	if run == nil {
		return "no such protocol"
	}
	return run(ctx, c)
}

// withoutID leaves out the request's id, which tells of one flow only.
func withoutID(text string) string {
	before, after, ok := strings.Cut(text, ", request ")
	if !ok {
		return text
	}
	return before + strings.TrimLeft(after, "0123456789abcdefghijklmnopqrstuvwxyz-")
}

// brief is an error in words that do not depend on the way, as far as it is told to.
func brief(err error) string {
	var r *refusedByProxy
	switch text := err.Error(); {
	case errors.As(err, &r):
		return r.Error()
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), strings.Contains(text, "connection reset by peer"), strings.Contains(text, "broken pipe"):
		return "closed"
	default:
		return "error: " + text
	}
}

// refusedByProxy is an explicit way's own answer.
type refusedByProxy struct{ said string }

func (r *refusedByProxy) Error() string { return "the proxy refused: " + r.said }

// dial connects to the cell's destination by the plan's way.
func (p *matrixPlan) dial(ctx context.Context, c matrixCell) (net.Conn, error) {
	switch p.Way {
	case wayConnect:
		return p.connect(ctx, p.hostPort(c))
	case waySOCKS5:
		return p.socks(ctx, p.hostPort(c))
	}
	addr := matrixAddr(toFree, p.Family) // a name that DNS does not tell: aim somewhere
	if c.Kind != toUnknown {
		all, err := net.DefaultResolver.LookupNetIP(ctx, "ip"+p.Family, p.host(c))
		if err != nil {
			return nil, err
		}
		if len(all) != 1 || all[0].Unmap() != netip.MustParseAddr(matrixAddr(c.Kind, p.Family)) {
			return nil, fmt.Errorf("the resolver says %v", all)
		}
		addr = all[0].String()
	}
	conn, err := new(net.Dialer).DialContext(ctx, "tcp", net.JoinHostPort(addr, strconv.Itoa(int(c.Port))))
	return bounded(conn, err)
}

func bounded(c net.Conn, err error) (net.Conn, error) {
	if err != nil {
		return nil, err
	}
	return c, c.SetDeadline(time.Now().Add(20 * time.Second))
}

// connect asks for a tunnel.
func (p *matrixPlan) connect(ctx context.Context, to string) (net.Conn, error) {
	c, err := bounded(new(net.Dialer).DialContext(ctx, "tcp", p.Proxy))
	if err != nil {
		return nil, err
	}
	auth := base64.StdEncoding.EncodeToString([]byte(p.User + ":" + p.Token))
	if _, err := fmt.Fprintf(c, "CONNECT %s HTTP/1.1\r\nHost: %s\r\nProxy-Authorization: Basic %s\r\n\r\n", to, to, auth); err != nil {
		return nil, err
	}
	// One byte at a time: what follows the answer is the tunnel's.
	var head []byte
	for one := make([]byte, 1); !strings.HasSuffix(string(head), "\r\n\r\n"); head = append(head, one...) {
		if _, err := c.Read(one); err != nil || len(head) > 4096 {
			_ = c.Close()
			return nil, cmp.Or(err, errors.New("a head without an end"))
		}
	}
	resp, err := http.ReadResponse(bufio.NewReader(strings.NewReader(string(head))), nil)
	if err != nil || resp.StatusCode != http.StatusOK {
		_ = c.Close()
		if err == nil {
			err = &refusedByProxy{fmt.Sprintf("%d %s", resp.StatusCode, resp.Header.Get("X-Egressd-Error"))}
		}
		return nil, err
	}
	return c, nil
}

func (p *matrixPlan) socks(ctx context.Context, to string) (net.Conn, error) {
	d, err := proxy.SOCKS5("tcp", p.Proxy, &proxy.Auth{User: p.User, Password: p.Token}, nil)
	if err != nil {
		return nil, err
	}
	c, err := d.(proxy.ContextDialer).DialContext(ctx, "tcp", to)
	if err != nil && strings.Contains(err.Error(), "not allowed") {
		return nil, &refusedByProxy{"SOCKS5 reply 2, not allowed"}
	}
	return bounded(c, err)
}

package acceptance

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"
	"github.com/coder/websocket"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"

	"github.com/egressd/egressd/internal/testbed"
)

// matrixPorts are where the world's servers listen, on every address of it.
func matrixPorts() map[string]uint16 {
	return map[string]uint16{
		"h1": 8441, "h2": 8442, "grpc": 8443, "websocket": 8444, "sse": 8445, "h1 clear": 8080, "h2 clear": 8081,
		"ssh": 22, "redis": 6379, "rediss": 6380, "mqtt": 1883, "mqtts": 8883, "postgres": 5432, "socks5": 1080, "raw": 7777,
	}
}

// Ports of servers that demand a client certificate; PostgreSQL demands it of a role.
const (
	matrixMutualRedis = 6381
	matrixMutualMQTT  = 8884
	matrixOwnSOCKS    = 1081 // for the sandbox's own account: microsocks knows one
)

// matrixWorld are the origins, what opens them, and what they saw.
type matrixWorld struct {
	t           *testing.T
	net         *testbed.Net
	dir         string
	ca, clients *testbed.CA
	cert        tls.Certificate // of the client
	token       string
	real        testbed.Account // what egressd has
	certified   testbed.Account // the same, where a client certificate is demanded
	own         testbed.Account // what the sandbox has
	aws         aws.Credentials
	sshd        *testbed.SSHD
	git         *testbed.Git

	mu   sync.Mutex
	hits map[string]int // requests and streams, by host name
}

func newMatrixWorld(t *testing.T) *matrixWorld {
	t.Helper()
	w := &matrixWorld{
		t: t, net: testbed.NewNet(t), dir: openDir(t), ca: testbed.NewCA(t), clients: testbed.NewCA(t), token: testbed.NewToken(), hits: map[string]int{},
		real: testbed.Account{User: "real", Password: testbed.NewToken()}, certified: testbed.Account{User: "certified", Password: testbed.NewToken()},
		own: testbed.Account{User: "own", Password: testbed.NewToken()},
		aws: aws.Credentials{AccessKeyID: "FAKEKEYID0123456", SecretAccessKey: testbed.NewToken()},
	}
	w.cert = w.clients.ClientCert(t, "matrix")
	var names, addrs []string
	for _, kind := range matrixKinds() {
		for _, family := range []string{"4", "6"} {
			names, addrs = append(names, matrixHost(kind, family)), append(addrs, matrixAddr(kind, family))
		}
	}
	w.net.World.AddAddrs(t, addrs...)
	server := testbed.ServerTLS{Cert: w.ca.Leaf(t, names...), Clients: w.clients}
	ports, world := matrixPorts(), w.net.World
	accounts := []testbed.Account{w.real, w.certified, w.own}
	var parts sync.WaitGroup
	parts.Go(func() { world.StartPostgres(t, server, ports["postgres"], []string{w.certified.User}, accounts...) })
	parts.Go(func() {
		keys := map[string]string{"real": testbed.SSHKey(t, w.dir, "real"), "own": testbed.SSHKey(t, w.dir, "own")}
		testbed.SSHKey(t, w.dir, "sandbox")
		w.sshd = world.StartSSHD(t, keys, ports["ssh"])
		world.StartRedis(t, server, ports["redis"], ports["rediss"], false, accounts...)
		world.StartRedis(t, server, 0, matrixMutualRedis, true, w.certified)
		world.StartMosquitto(t, server, ports["mqtt"], ports["mqtts"], matrixMutualMQTT, accounts...)
		world.StartMicrosocks(t, ports["socks5"], w.real)
		world.StartMicrosocks(t, matrixOwnSOCKS, w.own)
		w.git = testbed.NewGit(t, w.real.User, w.real.Password)
		w.gitDir()
	})
	parts.Wait()
	if t.Failed() {
		t.FailNow()
	}
	w.serveHTTP(server)
	w.serveGRPC(server)
	w.echo(ports["raw"])
	return w
}

// gitDir makes a repository for git over SSH.
func (w *matrixWorld) gitDir() {
	w.t.Helper()
	bare, work := filepath.Join(w.dir, "ssh.git"), w.t.TempDir()
	if err := os.WriteFile(filepath.Join(work, "README"), []byte("hello from git\n"), 0o600); err != nil {
		w.t.Error(err)
	}
	for _, args := range [][]string{{"init", "-q", "--bare", "-b", "main", bare}, {"-C", work, "init", "-q", "-b", "main"}, {"-C", work, "add", "."},
		{"-C", work, "commit", "-q", "-m", "first"}, {"-C", work, "push", "-q", bare, "main"}} {
		testbed.GitRun(w.t, nil, args...)
	}
}

// listen accepts on a port of all addresses.
func (w *matrixWorld) listen(port uint16) net.Listener {
	return w.net.World.Listen(w.t, "tcp", fmt.Sprintf(":%d", port))
}

func (w *matrixWorld) conf(server testbed.ServerTLS) *tls.Config {
	return &tls.Config{Certificates: []tls.Certificate{server.Cert}, ClientCAs: w.clients.Pool(), ClientAuth: tls.VerifyClientCertIfGiven, MinVersion: tls.VersionTLS12}
}

func (w *matrixWorld) serveHTTP(server testbed.ServerTLS) {
	mux := http.NewServeMux()
	mux.HandleFunc("/who", func(rw http.ResponseWriter, r *http.Request) { _, _ = io.WriteString(rw, w.who(r)) })
	mux.HandleFunc("/sse", w.sse)
	mux.HandleFunc("/ws", w.websocket)
	mux.Handle("/git/", w.git)
	count := http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		w.saw(r.Host)
		mux.ServeHTTP(rw, r)
	})
	clear := new(http.Protocols)
	clear.SetHTTP1(true)
	clear.SetUnencryptedHTTP2(true)
	start := func(srv *http.Server, serve func(net.Listener) error, names ...string) {
		var done sync.WaitGroup
		for _, name := range names {
			ln := w.listen(matrixPorts()[name])
			done.Go(func() { _ = serve(ln) })
		}
		w.t.Cleanup(func() { _ = srv.Close(); done.Wait() })
	}
	secure := &http.Server{Handler: count, TLSConfig: w.conf(server), ReadHeaderTimeout: 10 * time.Second}
	start(secure, func(ln net.Listener) error { return secure.ServeTLS(ln, "", "") }, "h1", "h2", "sse", "websocket")
	plain := &http.Server{Handler: count, Protocols: clear, ReadHeaderTimeout: 10 * time.Second}
	start(plain, plain.Serve, "h1 clear", "h2 clear")
}

func (w *matrixWorld) saw(host string) {
	name, _, _ := strings.Cut(host, ":")
	w.mu.Lock()
	defer w.mu.Unlock()
	w.hits[name]++
}

// who says by what a request is known: by the credential that egressd has, in which form, or
// by the sandbox's own.
func (w *matrixWorld) who(r *http.Request) string {
	user, password, basic := r.BasicAuth()
	auth, key := r.Header.Get("Authorization"), r.Header.Get("X-Api-Key")
	switch {
	case auth == "Bearer "+w.token && key == "":
		return "bearer"
	case auth == "Bearer "+w.own.Password && key == "":
		return "own"
	case basic && (testbed.Account{User: user, Password: password}) == w.real && key == "":
		return "basic"
	case strings.HasPrefix(auth, "AWS4-HMAC-SHA256 ") && w.signed(r):
		return "aws"
	case auth == "" && key == w.token:
		return "placeholder"
	case auth == "" && key == "" && r.TLS != nil && len(r.TLS.PeerCertificates) > 0 && r.TLS.PeerCertificates[0].Subject.CommonName == "matrix":
		return "certificate"
	case auth == "" && key == "":
		return "nobody"
	}
	return "somebody else"
}

// signed makes the signature anew with the official signer.
func (w *matrixWorld) signed(r *http.Request) bool {
	auth := r.Header.Get("Authorization")
	at, err := time.Parse("20060102T150405Z", r.Header.Get("X-Amz-Date"))
	_, names, ok := strings.Cut(auth, "SignedHeaders=")
	names, _, _ = strings.Cut(names, ",")
	if err != nil || !ok {
		return false
	}
	again, err := http.NewRequestWithContext(r.Context(), r.Method, "https://"+r.Host+r.URL.RequestURI(), nil)
	if err != nil {
		return false
	}
	for name := range strings.SplitSeq(names, ";") {
		if name != "host" {
			again.Header.Set(name, r.Header.Get(name))
		}
	}
	err = v4.NewSigner().SignHTTP(r.Context(), w.aws, again, r.Header.Get("X-Amz-Content-Sha256"), "s3", "eu-test-1", at)
	return err == nil && again.Header.Get("Authorization") == auth
}

func (w *matrixWorld) sse(rw http.ResponseWriter, r *http.Request) {
	rw.Header().Set("Content-Type", "text/event-stream")
	for range 3 {
		_, _ = fmt.Fprintf(rw, "data: %s\n\n", w.who(r))
		_ = http.NewResponseController(rw).Flush()
		time.Sleep(80 * time.Millisecond)
	}
}

func (w *matrixWorld) websocket(rw http.ResponseWriter, r *http.Request) {
	c, err := websocket.Accept(rw, r, &websocket.AcceptOptions{InsecureSkipVerify: true}) // the Origin header is not the subject here
	if err != nil {
		return
	}
	defer func() { _ = c.CloseNow() }()
	ctx, cancel := context.WithTimeout(r.Context(), 20*time.Second)
	defer cancel()
	for err = c.Write(ctx, websocket.MessageText, []byte(w.who(r))); err == nil; {
		var kind websocket.MessageType
		var text []byte
		if kind, text, err = c.Read(ctx); err == nil {
			err = c.Write(ctx, kind, text)
		}
	}
}

// matrixCalls is the gRPC service.
type matrixCalls struct {
	grpc_testing.UnimplementedTestServiceServer
	w *matrixWorld
}

func (w *matrixWorld) serveGRPC(server testbed.ServerTLS) {
	srv := grpc.NewServer(grpc.Creds(credentials.NewTLS(w.conf(server))))
	grpc_testing.RegisterTestServiceServer(srv, &matrixCalls{w: w})
	ln := w.listen(matrixPorts()["grpc"])
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = srv.Serve(ln)
	}()
	w.t.Cleanup(func() { srv.Stop(); <-done })
}

// who is that of requests, for what a call brings.
func (c *matrixCalls) who(ctx context.Context) string {
	md, _ := metadata.FromIncomingContext(ctx)
	r := &http.Request{Header: http.Header{}}
	for k, v := range md {
		if k == ":authority" {
			c.w.saw(v[0])
			continue
		}
		r.Header.Set(k, v[0])
	}
	if p, ok := peer.FromContext(ctx); ok {
		if info, ok := p.AuthInfo.(credentials.TLSInfo); ok {
			r.TLS = &info.State
		}
	}
	return c.w.who(r)
}

func (c *matrixCalls) UnaryCall(ctx context.Context, _ *grpc_testing.SimpleRequest) (*grpc_testing.SimpleResponse, error) {
	return &grpc_testing.SimpleResponse{Username: c.who(ctx)}, nil
}

func (c *matrixCalls) FullDuplexCall(s grpc_testing.TestService_FullDuplexCallServer) error {
	s.SetTrailer(metadata.Pairs("who", c.who(s.Context())))
	for {
		m, err := s.Recv()
		if err == io.EOF {
			return nil
		}
		if err == nil {
			err = s.Send(&grpc_testing.StreamingOutputCallResponse{Payload: m.GetPayload()})
		}
		if err != nil {
			return err
		}
	}
}

// echo returns what comes.
func (w *matrixWorld) echo(port uint16) {
	ln := w.listen(port)
	var done sync.WaitGroup
	done.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			done.Go(func() {
				_ = c.SetDeadline(time.Now().Add(30 * time.Second))
				_, _ = io.Copy(c, c)
				_ = c.Close()
			})
		}
	})
	w.t.Cleanup(func() { _ = ln.Close(); done.Wait() })
}

// file writes what a sandbox may read.
func (w *matrixWorld) file(name, text string) string {
	w.t.Helper()
	path := filepath.Join(w.dir, name)
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		w.t.Fatal(err)
	}
	return path
}

func (w *matrixWorld) read(name string) string {
	w.t.Helper()
	b, err := os.ReadFile(filepath.Join(w.dir, name))
	if err != nil {
		w.t.Fatal(err)
	}
	return strings.TrimSpace(string(b))
}

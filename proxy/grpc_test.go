package proxy_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/encoding/gzip"
	meta "google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/egressd/egressd/internal/audit"
	"github.com/egressd/egressd/store"
)

const grpcPolicy = `
apiVersion: egressd/v1
sandboxes:
  - id: one
    team: acme
    identify: {proxyTokens: ["TOKENONE"]}
    network:
      egress:
        trafficRules:
          - {name: good, action: allow, domains: [good.test]}
          - {name: clear, action: allow, cidrs: [127.0.0.1/32]}
        protocolRules:
          - {name: no-admin, protocol: http, domains: [good.test], http: {paths: {denied: [/egressd.Test/Forbidden]}}}
        credentialRules:
          - {name: token, credentialRef: gh, protocol: grpc, domains: [good.test]}
      credentialBindings:
        - ref: gh
          sourceRef: gh-source
          projection:
            type: http_headers
            httpHeaders: {headers: [{name: Authorization, valueTemplate: "Bearer {{ .token }}"}]}
`

type blob = wrapperspb.BytesValue

// grpcOrigin is a server of google.golang.org/grpc.
type grpcOrigin struct {
	addr string // host:port
	mu   sync.Mutex
	seen []meta.MD
	gone chan error // contexts of calls that wait
}

func newGRPCOrigin(t *testing.T, host, ip string, creds credentials.TransportCredentials) *grpcOrigin {
	t.Helper()
	ln, err := net.Listen("tcp", ip+":0")
	if err != nil {
		t.Fatal(err)
	}
	o := &grpcOrigin{addr: fmt.Sprintf("%s:%d", host, ln.Addr().(*net.TCPAddr).Port), gone: make(chan error, 10)}
	srv := grpc.NewServer(grpc.Creds(creds), grpc.MaxRecvMsgSize(32<<20), grpc.MaxSendMsgSize(32<<20))
	srv.RegisterService(&grpc.ServiceDesc{ServiceName: "egressd.Test", HandlerType: (*any)(nil),
		Methods: []grpc.MethodDesc{o.unary("Echo", o.echo), o.unary("Forbidden", o.echo), o.unary("Fail", o.fail), o.unary("Wait", o.wait)},
		Streams: []grpc.StreamDesc{
			{StreamName: "Sum", Handler: o.sum, ClientStreams: true},
			{StreamName: "Count", Handler: o.count, ServerStreams: true},
			{StreamName: "Talk", Handler: o.talk, ClientStreams: true, ServerStreams: true},
		}}, o)
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = srv.Serve(ln)
	}()
	t.Cleanup(func() {
		srv.Stop()
		<-done
	})
	return o
}

func (o *grpcOrigin) unary(name string, f func(context.Context, *blob) (*blob, error)) grpc.MethodDesc {
	return grpc.MethodDesc{MethodName: name, Handler: func(_ any, ctx context.Context, decode func(any) error, _ grpc.UnaryServerInterceptor) (any, error) {
		in := new(blob)
		if err := decode(in); err != nil {
			return nil, err
		}
		o.note(ctx)
		return f(ctx, in)
	}}
}

func (o *grpcOrigin) note(ctx context.Context) {
	md, _ := meta.FromIncomingContext(ctx)
	o.mu.Lock()
	defer o.mu.Unlock()
	o.seen = append(o.seen, md)
}

func (o *grpcOrigin) last() meta.MD {
	o.mu.Lock()
	defer o.mu.Unlock()
	if len(o.seen) == 0 {
		return nil
	}
	return o.seen[len(o.seen)-1]
}

func (o *grpcOrigin) calls() int {
	o.mu.Lock()
	defer o.mu.Unlock()
	return len(o.seen)
}

func (o *grpcOrigin) echo(ctx context.Context, in *blob) (*blob, error) {
	_ = grpc.SetHeader(ctx, meta.Pairs("x-head", "h", "x-raw-bin", "\x00\xff"))
	_ = grpc.SetTrailer(ctx, meta.Pairs("x-end", "yes", "x-tail-bin", "\x00\xfe"))
	return in, nil
}

func (o *grpcOrigin) fail(ctx context.Context, _ *blob) (*blob, error) {
	_ = grpc.SetTrailer(ctx, meta.Pairs("x-why", "because"))
	return nil, status.Error(codes.NotFound, "no such thing: é 100%")
}

func (o *grpcOrigin) wait(ctx context.Context, _ *blob) (*blob, error) {
	<-ctx.Done()
	o.gone <- ctx.Err()
	return nil, ctx.Err()
}

func (o *grpcOrigin) sum(_ any, s grpc.ServerStream) error {
	o.note(s.Context())
	for n := 0; ; {
		in := new(blob)
		if err := s.RecvMsg(in); err == io.EOF {
			return s.SendMsg(wrapperspb.Bytes(fmt.Append(nil, n)))
		} else if err != nil {
			return err
		}
		n += len(in.GetValue())
	}
}

func (o *grpcOrigin) count(_ any, s grpc.ServerStream) error {
	o.note(s.Context())
	in := new(blob)
	if err := s.RecvMsg(in); err != nil {
		return err
	}
	for i := range int(in.GetValue()[0]) {
		if err := s.SendMsg(wrapperspb.Bytes(fmt.Append(nil, i))); err != nil {
			return err
		}
	}
	s.SetTrailer(meta.Pairs("x-count", fmt.Sprint(in.GetValue()[0])))
	return nil
}

func (o *grpcOrigin) talk(_ any, s grpc.ServerStream) error {
	o.note(s.Context())
	for {
		in := new(blob)
		if err := s.RecvMsg(in); err == io.EOF {
			s.SetTrailer(meta.Pairs("x-end", "yes"))
			return nil
		} else if err != nil {
			o.gone <- err
			return err
		}
		if err := s.SendMsg(in); err != nil {
			return err
		}
	}
}

// grpcClient is google.golang.org/grpc's, through CONNECT.
func grpcClient(t *testing.T, g *rig, o *grpcOrigin, creds credentials.TransportCredentials) *grpc.ClientConn {
	t.Helper()
	cc, err := grpc.NewClient("passthrough:///"+o.addr, grpc.WithTransportCredentials(creds),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(32<<20), grpc.MaxCallSendMsgSize(32<<20)),
		grpc.WithContextDialer(func(_ context.Context, at string) (net.Conn, error) {
			status, nc, br := g.connect(at, "one", tokenOne)
			if status != 200 || br.Buffered() > 0 {
				return nil, fmt.Errorf("CONNECT: %d", status)
			}
			return nc, nc.SetDeadline(time.Time{})
		}))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cc.Close() })
	return cc
}

func call(t *testing.T, cc *grpc.ClientConn, method string, in []byte, opts ...grpc.CallOption) ([]byte, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(meta.AppendToOutgoingContext(t.Context(), "authorization", "Bearer mine", "x-own", "1", "x-own-bin", "\x00\x01"), 15*time.Second)
	defer cancel()
	out := new(blob)
	err := cc.Invoke(ctx, "/egressd.Test/"+method, wrapperspb.Bytes(in), out, opts...)
	return out.GetValue(), err
}

// grpcRig is an origin in TLS whose calls get a credential, and one in the clear, where
// none does.
func grpcRig(t *testing.T) (g *rig, tlsOrigin, clearOrigin *grpcOrigin, tlsClient, clearClient *grpc.ClientConn) {
	t.Helper()
	g = attacked(t, options{})
	g.use(grpcPolicy)
	leaf := g.bed.CA.Leaf(t, "good.test")
	tlsOrigin = newGRPCOrigin(t, "good.test", "127.0.0.2", credentials.NewTLS(&tls.Config{Certificates: []tls.Certificate{leaf}}))
	clearOrigin = newGRPCOrigin(t, "127.0.0.1", "127.0.0.1", insecure.NewCredentials())
	tlsClient = grpcClient(t, g, tlsOrigin, credentials.NewTLS(&tls.Config{RootCAs: g.roots()}))
	clearClient = grpcClient(t, g, clearOrigin, insecure.NewCredentials())
	return g, tlsOrigin, clearOrigin, tlsClient, clearClient
}

func TestGRPC(t *testing.T) {
	g, secure, clear, tlsClient, clearClient := grpcRig(t)
	for _, way := range []struct {
		name  string
		o     *grpcOrigin
		cc    *grpc.ClientConn
		token string
	}{{"TLS", secure, tlsClient, "Bearer " + canary}, {"in the clear", clear, clearClient, "Bearer mine"}} {
		t.Run("unary "+way.name, func(t *testing.T) {
			var head, tail meta.MD
			got, err := call(t, way.cc, "Echo", []byte("hello"), grpc.Header(&head), grpc.Trailer(&tail))
			if err != nil || string(got) != "hello" {
				t.Fatalf("%q %v", got, err)
			}
			if fmt.Sprint(head["x-head"], head["x-raw-bin"], tail["x-end"], tail["x-tail-bin"]) != fmt.Sprint([]string{"h"}, []string{"\x00\xff"}, []string{"yes"}, []string{"\x00\xfe"}) {
				t.Errorf("metadata: %v %v", head, tail)
			}
			md := way.o.last()
			if auth := strings.Join(md["authorization"], ","); auth != way.token {
				t.Errorf("the origin got authorization %q, want %q", auth, way.token)
			}
			if fmt.Sprint(md["x-own"], md["x-own-bin"]) != fmt.Sprint([]string{"1"}, []string{"\x00\x01"}) {
				t.Errorf("the origin got %v", md)
			}
		})
		t.Run("large "+way.name, func(t *testing.T) {
			big := bytes.Repeat([]byte("0123456789abcdef"), 8<<16) // 8 MiB
			for _, opts := range [][]grpc.CallOption{nil, {grpc.UseCompressor(gzip.Name)}} {
				if got, err := call(t, way.cc, "Echo", big, opts...); err != nil || !bytes.Equal(got, big) {
					t.Errorf("%d bytes, %v", len(got), err)
				}
			}
		})
		t.Run("status "+way.name, func(t *testing.T) {
			var tail meta.MD
			_, err := call(t, way.cc, "Fail", nil, grpc.Trailer(&tail))
			if s := status.Convert(err); s.Code() != codes.NotFound || s.Message() != "no such thing: é 100%" || strings.Join(tail["x-why"], ",") != "because" {
				t.Errorf("%v %v", err, tail)
			}
			if _, err := call(t, way.cc, "Nowhere", nil); status.Code(err) != codes.Unimplemented {
				t.Errorf("a method that is not there: %v", err)
			}
		})
		t.Run("streams "+way.name, func(t *testing.T) { grpcStreams(t, way.cc) })
		t.Run("deadline and cancellation "+way.name, func(t *testing.T) { grpcWaits(t, way.o, way.cc) })
	}
	g.clean(t)
}

func grpcStreams(t *testing.T, cc *grpc.ClientConn) {
	ctx, cancel := context.WithTimeout(t.Context(), 15*time.Second)
	defer cancel()
	open := func(name string) grpc.ClientStream {
		s, err := cc.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true, ClientStreams: true}, "/egressd.Test/"+name)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	send := func(s grpc.ClientStream, b []byte) {
		if err := s.SendMsg(wrapperspb.Bytes(b)); err != nil {
			t.Fatal(err)
		}
	}
	receive := func(s grpc.ClientStream, want string) {
		t.Helper()
		out := new(blob)
		if err := s.RecvMsg(out); err != nil || string(out.GetValue()) != want {
			t.Fatalf("%.40q %v, want %.40q", out.GetValue(), err, want)
		}
	}
	sum := open("Sum")
	for range 40 {
		send(sum, make([]byte, 40<<10))
	}
	_ = sum.CloseSend()
	receive(sum, fmt.Sprint(40*40<<10))

	count := open("Count")
	send(count, []byte{200})
	_ = count.CloseSend()
	for i := range 200 {
		receive(count, fmt.Sprint(i))
	}
	if err := count.RecvMsg(new(blob)); err != io.EOF || strings.Join(count.Trailer()["x-count"], "") != "200" {
		t.Errorf("%v %v", err, count.Trailer())
	}

	var all sync.WaitGroup
	for k := range 20 { // side by side on one connection
		s := open("Talk")
		all.Go(func() {
			for i := range 10 { // each answer comes before the next question
				said := strings.Repeat(fmt.Sprint(k, i), 1000)
				out := new(blob)
				if err := errors.Join(s.SendMsg(wrapperspb.Bytes([]byte(said))), s.RecvMsg(out)); err != nil || string(out.GetValue()) != said {
					t.Errorf("%d: %v", k, err)
					return
				}
			}
			_ = s.CloseSend()
			if err := s.RecvMsg(new(blob)); err != io.EOF || strings.Join(s.Trailer()["x-end"], "") != "yes" {
				t.Errorf("%d: %v %v", k, err, s.Trailer())
			}
		})
	}
	all.Wait()
}

func grpcWaits(t *testing.T, o *grpcOrigin, cc *grpc.ClientConn) {
	ended := func() {
		t.Helper()
		select {
		case err := <-o.gone:
			if err == nil {
				t.Error("the origin was not told")
			}
		case <-time.After(3 * time.Second):
			t.Error("the origin still waits")
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if err := cc.Invoke(ctx, "/egressd.Test/Wait", new(blob), new(blob)); status.Code(err) != codes.DeadlineExceeded {
		t.Error(err)
	}
	ended()
	ctx, cancel = context.WithCancel(t.Context())
	time.AfterFunc(200*time.Millisecond, cancel)
	if err := cc.Invoke(ctx, "/egressd.Test/Wait", new(blob), new(blob)); status.Code(err) != codes.Canceled {
		t.Error(err)
	}
	ended()
	ctx, cancel = context.WithCancel(t.Context())
	defer cancel()
	s, err := cc.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true, ClientStreams: true}, "/egressd.Test/Talk")
	if err != nil {
		t.Fatal(err)
	}
	out := new(blob)
	if err := errors.Join(s.SendMsg(wrapperspb.Bytes([]byte("x"))), s.RecvMsg(out)); err != nil {
		t.Fatal(err)
	}
	cancel()
	ended()
}

// What egressd refuses or cannot do is a status of gRPC's.
func TestGRPCRefusals(t *testing.T) {
	g, secure, clear, tlsClient, clearClient := grpcRig(t)
	was := secure.calls()
	wants := func(name string, cc *grpc.ClientConn, method string, code codes.Code, word string) {
		t.Helper()
		var tail meta.MD
		_, err := call(t, cc, method, []byte("x"), grpc.Trailer(&tail))
		if s := status.Convert(err); s.Code() != code || !strings.Contains(s.Message(), word) {
			t.Errorf("%s: %v %v, want %v %s", name, err, tail, code, word)
		}
	}
	wants("denied by path", tlsClient, "Forbidden", codes.PermissionDenied, "policy_denied")
	g.setStatus(t, "gh-source", store.Disabled)
	wants("source disabled", tlsClient, "Echo", codes.Unavailable, "source_disabled")
	if n := secure.calls(); n != was {
		t.Errorf("%d calls reached the origin", n-was)
	}
	g.setStatus(t, "gh-source", store.Active)
	if _, err := call(t, tlsClient, "Echo", nil); err != nil {
		t.Errorf("enabled again: %v", err)
	}

	closed := &grpcOrigin{addr: "good.test:1"}
	none := grpcClient(t, g, closed, credentials.NewTLS(&tls.Config{RootCAs: g.roots()}))
	wants("nobody there", none, "Echo", codes.Unavailable, "upstream_unreachable")

	// The credential is not for what goes in the clear.
	plain := &grpcOrigin{addr: strings.Replace(clear.addr, "127.0.0.1", "good.test", 1)}
	wants("in the clear with a credential", grpcClient(t, g, plain, insecure.NewCredentials()), "Echo", codes.PermissionDenied, "plaintext_credential_refused")

	if _, err := call(t, clearClient, "Echo", nil); err != nil {
		t.Error(err)
	}
	g.use(strings.Replace(grpcPolicy, "action: allow, cidrs", "action: deny, cidrs", 1))
	wants("denied on an open connection", clearClient, "Echo", codes.PermissionDenied, "policy_denied")
	g.records.wait(t, func(a audit.Record) bool {
		return a.Code == "policy_denied" && a.Rule == "no-admin" && a.Path == "/egressd.Test/Forbidden"
	})
	g.clean(t)
}

// A stream that is open ends when its rule, or its source, goes.
func TestGRPCStreamsEndWithTheirCredential(t *testing.T) {
	g, secure, _, tlsClient, _ := grpcRig(t)
	for name, end := range map[string]func(){
		"policy": func() { g.use(strings.Replace(grpcPolicy, "action: allow, domains", "action: deny, domains", 1)) },
		"source": func() { g.setStatus(t, "gh-source", store.Disabled) },
	} {
		t.Run(name, func(t *testing.T) {
			g.use(grpcPolicy)
			g.setStatus(t, "gh-source", store.Active)
			s, err := tlsClient.NewStream(t.Context(), &grpc.StreamDesc{ServerStreams: true, ClientStreams: true}, "/egressd.Test/Talk", grpc.WaitForReady(true))
			if err != nil {
				t.Fatal(err)
			}
			if err := errors.Join(s.SendMsg(wrapperspb.Bytes([]byte("x"))), s.RecvMsg(new(blob))); err != nil {
				t.Fatal(err)
			}
			begin := time.Now()
			end()
			if err := s.RecvMsg(new(blob)); err == nil || err == io.EOF || time.Since(begin) > 3*time.Second {
				t.Errorf("%v after %v", err, time.Since(begin))
			}
			select {
			case <-secure.gone:
			case <-time.After(3 * time.Second):
				t.Error("the origin still has it")
			}
		})
	}
	g.clean(t)
}

package acceptance

import (
	"bufio"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"
	"github.com/coder/websocket"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

// client is an HTTP client of one protocol that takes the plan's way.
func (p *matrixPlan) client(c matrixCell) *http.Client {
	protos := new(http.Protocols)
	switch c.Protocol {
	case "h2":
		protos.SetHTTP2(true)
	case "h2 clear":
		protos.SetUnencryptedHTTP2(true)
	default:
		protos.SetHTTP1(true)
	}
	return &http.Client{Transport: &http.Transport{
		Protocols: protos, DisableKeepAlives: true, TLSClientConfig: &tls.Config{},
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) { return p.dial(ctx, c) },
	}}
}

// headers are what the sandbox sends of its own: an account, or what stands for one.
func (p *matrixPlan) headers(c matrixCell) http.Header {
	h := http.Header{}
	switch c.Kind {
	case toPlaceholder:
		h.Set("X-Api-Key", p.Placeholder)
	case toAWS: // signed later
	default:
		h.Set("Authorization", "Bearer "+p.Own.Password)
	}
	return h
}

func (p *matrixPlan) request(ctx context.Context, c matrixCell, path string) (*http.Request, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, p.url(c, path), nil)
	if err != nil {
		return nil, err
	}
	req.Header = p.headers(c)
	if c.Kind == toAWS {
		empty := sha256.Sum256(nil)
		hash := hex.EncodeToString(empty[:])
		req.Header.Set("X-Amz-Content-Sha256", hash)
		err = v4.NewSigner().SignHTTP(ctx, aws.Credentials{AccessKeyID: p.AWS[0], SecretAccessKey: p.AWS[1]}, req, hash, "s3", "eu-test-1", time.Now())
	}
	return req, err
}

// http: "HTTP/2.0 200 bearer", the last word being who the origin says it was.
func (p *matrixPlan) http(ctx context.Context, c matrixCell) string {
	req, err := p.request(ctx, c, "/who")
	if err != nil {
		return brief(err)
	}
	resp, err := p.client(c).Do(req)
	if err != nil {
		return p.tlsError(err)
	}
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return brief(err)
	}
	return fmt.Sprintf("%s %d %s", resp.Proto, resp.StatusCode, said(resp, body))
}

// said is egressd's word, or else the origin's.
func said(resp *http.Response, body []byte) string {
	if code := resp.Header.Get("X-Egressd-Error"); code != "" {
		return code
	}
	return string(body)
}

func (p *matrixPlan) tlsError(err error) string {
	var alert tls.AlertError
	if errors.As(err, &alert) || strings.Contains(err.Error(), "remote error: tls: access denied") {
		return "TLS alert: access denied"
	}
	return brief(err)
}

// sse: three events, the first of which has to come before the last is sent.
func (p *matrixPlan) sse(ctx context.Context, c matrixCell) string {
	req, err := p.request(ctx, c, "/sse")
	if err != nil {
		return brief(err)
	}
	resp, err := p.client(c).Do(req)
	if err != nil {
		return brief(err)
	}
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode != http.StatusOK {
		return fmt.Sprintf("%d %s", resp.StatusCode, said(resp, nil))
	}
	var events []string
	var first time.Time
	for lines := bufio.NewScanner(resp.Body); lines.Scan(); {
		if data, ok := strings.CutPrefix(lines.Text(), "data: "); ok {
			if events = append(events, data); len(events) == 1 {
				first = time.Now()
			}
		}
	}
	if time.Since(first) < 30*time.Millisecond {
		return "the events came at once"
	}
	return "200 " + strings.Join(events, ",")
}

// websocket: who the origin says it was, and an echo.
func (p *matrixPlan) websocket(ctx context.Context, c matrixCell) string {
	client := p.client(c)
	ws, resp, err := websocket.Dial(ctx, strings.Replace(p.url(c, "/ws"), "http", "ws", 1), &websocket.DialOptions{HTTPClient: client, HTTPHeader: p.headers(c)})
	if resp != nil && resp.StatusCode != http.StatusSwitchingProtocols {
		return fmt.Sprintf("%d %s", resp.StatusCode, said(resp, nil))
	}
	if err != nil {
		return brief(err)
	}
	defer func() { _ = ws.CloseNow() }()
	_, who, err := ws.Read(ctx)
	if err == nil {
		err = ws.Write(ctx, websocket.MessageBinary, []byte("ping"))
	}
	if err != nil {
		return brief(err)
	}
	_, echo, err := ws.Read(ctx)
	if err != nil {
		return brief(err)
	}
	if err := ws.Close(websocket.StatusNormalClosure, "done"); err != nil {
		return brief(err)
	}
	return fmt.Sprintf("101 %s %s", who, echo)
}

// grpc: one call, one stream both ways with trailers; or the status of a refusal.
func (p *matrixPlan) grpc(ctx context.Context, c matrixCell) string {
	cc, err := grpc.NewClient("passthrough:///"+p.hostPort(c), grpc.WithTransportCredentials(credentials.NewTLS(&tls.Config{})),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return p.dial(ctx, c) }))
	if err != nil {
		return brief(err)
	}
	defer func() { _ = cc.Close() }()
	client := grpc_testing.NewTestServiceClient(cc)
	for k, v := range p.headers(c) {
		ctx = metadata.AppendToOutgoingContext(ctx, strings.ToLower(k), v[0])
	}
	one, err := client.UnaryCall(ctx, &grpc_testing.SimpleRequest{FillUsername: true})
	if err != nil {
		_, err2 := p.stream(ctx, client)
		return fmt.Sprintf("unary %s; stream %s", grpcStatus(err), grpcStatus(err2))
	}
	trailer, err := p.stream(ctx, client)
	if err != nil {
		return "unary " + one.GetUsername() + "; stream " + grpcStatus(err)
	}
	return fmt.Sprintf("unary %s; stream of 3 both ways, trailer %s", one.GetUsername(), trailer)
}

func grpcStatus(err error) string {
	s := status.Convert(err)
	return withoutID(fmt.Sprintf("status %d %s", s.Code(), s.Message()))
}

// stream sends the next message when the answer to the last has come.
func (p *matrixPlan) stream(ctx context.Context, client grpc_testing.TestServiceClient) (trailer string, err error) {
	s, err := client.FullDuplexCall(ctx)
	if err != nil {
		return "", err
	}
	for i := range 3 {
		text := fmt.Appendf(nil, "message %d", i)
		if err := s.Send(&grpc_testing.StreamingOutputCallRequest{Payload: &grpc_testing.Payload{Body: text}}); err != nil && !errors.Is(err, io.EOF) {
			return "", err
		}
		m, err := s.Recv()
		if err != nil {
			return "", err
		}
		if got := m.GetPayload().GetBody(); string(got) != string(text) {
			return "", fmt.Errorf("the stream says %q", got)
		}
	}
	if err := s.CloseSend(); err != nil {
		return "", err
	}
	if _, err := s.Recv(); !errors.Is(err, io.EOF) {
		return "", fmt.Errorf("the stream ends with %w", err)
	}
	return strings.Join(s.Trailer().Get("who"), ","), nil
}

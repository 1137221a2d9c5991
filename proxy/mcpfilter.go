package proxy

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http"

	"github.com/egressd/egressd/internal/scan"
	"github.com/egressd/egressd/proxy/mcp"
)

// filterMCP judges a request by the rules of protocol mcp, and readies its answer to be
// judged.
func (s *Server) filterMCP(r *http.Request, x *record) *refusal {
	rules := x.decision.MCP
	if b, err := x.sess.bind(); err == nil && b.rules.Policy.Reports(b.sandbox) {
		return s.reportMCP(r, x)
	}
	if x.plan.websocket {
		return &refusal{status: http.StatusForbidden, code: codeProtocol, detail: "mcp: a WebSocket cannot be looked into", close: true}
	}
	f := &mcp.Filter{Allows: rules.Allows, MaxRequest: int(s.limits.RewriteBodyBytes)}
	if r.Body != nil && r.Body != http.NoBody {
		held := min(bodySize(r, s.limits.RewriteBodyBytes), s.limits.RewriteBodyBytes)
		if !x.share.hold(held) {
			return tooMuchHeld()
		}
		body, d, err := f.Request(r.Header, r.Body)
		x.share.but(held, int64(len(body)))
		switch {
		case errors.Is(err, errLeak):
			return x.leak.refusal()
		case err != nil:
			return &refusal{status: http.StatusBadRequest, code: codeBadRequest, detail: err.Error(), close: true}
		case !d.Pass:
			return &refusal{status: d.Answer(r.Header), code: codePolicyDenied, rule: d.Rule, detail: "mcp " + string(d.Cause) + ": " + d.Tool,
				body: d.Body, own: true, close: true}
		}
		setBody(r, body)
	}
	seeThrough(r.Header)
	x.plan.mcp = f
	return nil
}

// reportMCP lets pass what filterMCP would refuse, without a credential, and says so in the record.
func (s *Server) reportMCP(r *http.Request, x *record) *refusal {
	limit := s.limits.RewriteBodyBytes
	f := &mcp.Filter{Allows: x.decision.MCP.Allows, MaxRequest: int(limit)}
	denied := x.plan.websocket
	if !denied && r.Body != nil && r.Body != http.NoBody {
		if !x.share.hold(min(bodySize(r, limit), limit)) {
			return limited("bodies held whole")
		}
		seen, err := io.ReadAll(io.LimitReader(r.Body, limit+1))
		switch {
		case errors.Is(err, errLeak):
			return x.leak.refusal()
		case err != nil:
			return &refusal{status: http.StatusBadRequest, code: codeBadRequest, detail: err.Error(), close: true}
		}
		_, d, _ := f.Request(r.Header, bytes.NewReader(seen)) // what is in memory can be read
		denied, x.rule = !d.Pass, d.Rule
		r.Body = &readCloser{io.MultiReader(bytes.NewReader(seen), r.Body), r.Body}
	}
	if denied {
		p := &x.plan
		x.decision.Report, x.source, x.cert = true, nil, nil
		p.cred, p.credFrom, p.key.cred = nil, nil, 0
		p.cert, p.certFrom, p.key.cert = nil, nil, 0
	}
	return nil
}

// filterAnswer puts the filter between the origin and the sandbox.
func filterAnswer(f *mcp.Filter, r *http.Request, resp *http.Response) error {
	if bodiless(r, resp) {
		return nil
	}
	body, err := decoded(resp)
	if err != nil {
		return err
	}
	filtered, err := f.Response(resp.Header.Get("Content-Type"), &readCloser{body, resp.Body})
	if err != nil {
		return fmt.Errorf("%w: %w", errUpstreamResponse, err)
	}
	resp.Body = filtered
	lengthUnknown(resp)
	return nil
}

// seeThrough takes out of a request what would let the origin answer in a form that cannot
// be looked into: parts of a body, and codings that are not decoded here.
func seeThrough(h http.Header) {
	delete(h, "Range")
	delete(h, "If-Range")
	h["Accept-Encoding"] = []string{"gzip, br"}
}

func bodiless(r *http.Request, resp *http.Response) bool {
	return r.Method == http.MethodHead || resp.StatusCode == http.StatusNoContent || resp.StatusCode == http.StatusNotModified
}

// decoded is the body without its coding, and resp without what says that it has one.
func decoded(resp *http.Response) (io.Reader, error) {
	codings := resp.Header["Content-Encoding"]
	if len(codings) > 1 {
		return nil, fmt.Errorf("%w: %w", errUpstreamResponse, scan.ErrEncoding)
	}
	coding := ""
	if len(codings) == 1 {
		coding = codings[0]
	}
	body, err := scan.Decoded(resp.Body, coding, scan.Limits{})
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errUpstreamResponse, err)
	}
	delete(resp.Header, "Content-Encoding")
	return body, nil
}

// lengthUnknown: what leaves is not what came.
func lengthUnknown(resp *http.Response) {
	for _, name := range [...]string{"Content-Length", "Accept-Ranges", "Content-Md5", "Digest", "Content-Digest", "Repr-Digest"} {
		delete(resp.Header, name)
	}
	resp.ContentLength = -1
}

// readCloser reads one and closes the other.
type readCloser struct {
	io.Reader
	under io.Closer
}

func (b *readCloser) Close() error { return b.under.Close() }

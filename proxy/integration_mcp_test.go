package proxy_test

import (
	"compress/gzip"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/andybalholm/brotli"
	"github.com/coder/websocket"

	"github.com/egressd/egressd/internal/audit"
	"github.com/egressd/egressd/internal/testbed"
)

const mcpPolicy = `
apiVersion: egressd/v1
sandboxes:
  - id: one
    team: acme
    identify: {proxyTokens: ["TOKENONE"]}
    network:
      enforcement: ENFORCE
      egress:
        trafficRules:
          - {name: all, action: allow, domains: [tools.test, good.test]}
        protocolRules:
          - {name: tools, protocol: mcp, domains: [tools.test], httpMatch: {pathPrefixes: [/mcp]}, mcp: {tools: {allowed: [read, "größe"]}}}
          - {name: not-that, protocol: mcp, domains: [tools.test], httpMatch: {pathPrefixes: [/mcp]}, mcp: {tools: {denied: [rm]}}}
        credentialRules:
          - {name: token, credentialRef: gh, protocol: https, domains: [tools.test, good.test]}
      credentialBindings:
        - ref: gh
          sourceRef: gh-source
          projection: {type: http_headers, httpHeaders: {headers: [{name: Authorization, valueTemplate: "Bearer {{ .token }}"}]}}
`

// toolServer answers tools/list in each form, and says what it was asked else.
func toolServer(w http.ResponseWriter, r *http.Request) {
	const list = `{"jsonrpc":"2.0","id":1,"result":{"tools":[{"name":"read","description":"x"},{"name":"write"},{"name":"rm"},{"name":"gr\u00f6\u00dfe"}],"nextCursor":"n"}}`
	var out io.Writer = w
	if !strings.Contains(r.Header.Get("Accept-Encoding"), "deflate") {
		switch r.URL.Query().Get("coding") {
		case "gzip":
			w.Header().Set("Content-Encoding", "gzip")
			zw := gzip.NewWriter(w)
			defer func() { _ = zw.Close() }()
			out = zw
		case "br":
			w.Header().Set("Content-Encoding", "br")
			zw := brotli.NewWriter(w)
			defer func() { _ = zw.Close() }()
			out = zw
		}
	}
	switch r.URL.Query().Get("as") {
	case "json":
		w.Header().Set("Content-Type", "application/json")
		_, _ = io.WriteString(out, list)
	case "batch":
		w.Header().Set("Content-Type", "application/json; charset=utf-8")
		_, _ = io.WriteString(out, "["+list+`,{"jsonrpc":"2.0","id":2,"result":{}}]`)
	case "sse":
		w.Header().Set("Content-Type", "text/event-stream")
		for _, piece := range []string{": hi\n\n", "event: message\nid: 7\nda", "ta: ", list[:30], list[30:], "\n\n", "data: {\"jsonrpc\":\"2.0\",\"method\":\"notifications/progress\"}\n\n"} {
			_, _ = io.WriteString(out, piece)
			_ = http.NewResponseController(w).Flush()
		}
	default:
		b, _ := io.ReadAll(r.Body)
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(out).Encode(map[string]any{"jsonrpc": "2.0", "id": 1, "result": map[string]string{"body": string(b), "auth": fmt.Sprint(len(r.Header["Authorization"]))}})
	}
}

// mcpRig is a rig before a server of tools.
func mcpRig(t *testing.T, enforcement string) (*rig, *testbed.Origin) {
	t.Helper()
	g := attacked(t, options{hosts: map[string]string{"tools.test": "127.0.0.2"}})
	origin := testbed.NewOrigin(t, g.bed.CA, testbed.OriginOptions{Names: []string{"tools.test"}, Mount: map[string]http.Handler{"/mcp": http.HandlerFunc(toolServer), "/mcp/ws": http.RedirectHandler("/ws", http.StatusFound)}})
	g.use(strings.Replace(mcpPolicy, "ENFORCE", enforcement, 1))
	return g, origin
}

func rpc(t *testing.T, c *http.Client, target, body string, edit func(*http.Request)) answer {
	t.Helper()
	req, err := http.NewRequest(http.MethodPost, target, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Accept", "application/json, text/event-stream")
	if edit != nil {
		edit(req)
	}
	resp, err := c.Do(req)
	if err != nil {
		return answer{err: err}
	}
	defer func() { _ = resp.Body.Close() }()
	b, err := io.ReadAll(resp.Body)
	return answer{resp.StatusCode, resp.Header, string(b), err}
}

func toolCall(name string) string {
	return `{"jsonrpc":"2.0","id":5,"method":"tools/call","params":{"name":"` + name + `","arguments":{"a":1}}}`
}

func TestMCP(t *testing.T) {
	t.Parallel()
	g, origin := mcpRig(t, "enforce")
	bothVersions(t, g.stack, func(t *testing.T, c *http.Client) {
		for name, body := range map[string]string{
			"allowed": toolCall("read"), "allowed, escaped": toolCall(`gr\u00f6\u00dfe`), "ping": `{"jsonrpc":"2.0","id":1,"method":"ping"}`,
			"batch": `[` + toolCall("read") + `,{"jsonrpc":"2.0","method":"notifications/initialized"}]`,
		} {
			a := rpc(t, c, origin.URL("/mcp"), body, nil)
			var got struct{ Result struct{ Body, Auth string } }
			if err := json.Unmarshal([]byte(a.body), &got); err != nil || a.status != http.StatusOK || got.Result.Body != body || got.Result.Auth != "1" {
				t.Errorf("%s: %+v", name, a)
			}
		}
		for name, tc := range map[string]struct {
			body, want string
			status     int
			edit       func(*http.Request)
		}{
			"not allowed":        {toolCall("write"), `"id":5,"error":{"code":-32602`, 200, nil},
			"denied":             {toolCall("rm"), `"id":5,"error":{"code":-32602`, 200, nil},
			"in a batch":         {`[` + toolCall("read") + `,` + toolCall("write") + `]`, `-32602`, 200, nil},
			"twice":              {`{"id":5,"method":"tools/call","params":{"name":"read","name":"write"}}`, `-32700`, 400, nil},
			"folded case":        {`{"id":5,"method":"tools/call","params":{"name":"read","Name":"write"}}`, `-32600`, 400, nil},
			"not JSON":           {`{"id":5,"method":"tools/call"`, `-32700`, 400, nil},
			"to an older client": {toolCall("write"), `-32602`, 403, func(r *http.Request) { r.Header.Del("Accept") }},
			"coded":              {toolCall("read"), `-32700`, 415, func(r *http.Request) { r.Header.Set("Content-Encoding", "gzip") }},
			"UTF-16":             {toolCall("read"), `-32700`, 415, func(r *http.Request) { r.Header.Set("Content-Type", "application/json; charset=utf-16") }},
			"too large":          {`{"id":5,"method":"ping","params":"` + strings.Repeat("x", 1<<20) + `"}`, `-32600`, 413, nil},
		} {
			t.Run(name, func(t *testing.T) {
				before := len(origin.Requests())
				a := rpc(t, c, origin.URL("/mcp"), tc.body, tc.edit)
				if a.status != tc.status || !strings.Contains(a.body, tc.want) || a.header.Get("X-Egressd-Error") != "policy_denied" || a.header.Get("Content-Type") != "application/json" {
					t.Errorf("%+v", a)
				}
				if len(origin.Requests()) != before {
					t.Error("it reached the server")
				}
			})
		}
		for _, as := range []string{"json", "batch", "sse"} {
			for _, coding := range []string{"", "gzip", "br"} {
				a := rpc(t, c, origin.URL("/mcp?as="+as+"&coding="+coding), `{"jsonrpc":"2.0","id":1,"method":"tools/list"}`, func(r *http.Request) {
					r.Header.Set("Accept-Encoding", "deflate, zstd") // what egressd could not look into is not asked for
				})
				if a.err != nil || a.status != http.StatusOK || !strings.Contains(a.body, `{"name":"read","description":"x"}`) || !strings.Contains(a.body, `gr\u00f6\u00dfe`) ||
					strings.Contains(a.body, "write") || strings.Contains(a.body, `"rm"`) || !strings.Contains(a.body, `"nextCursor":"n"`) {
					t.Errorf("%s, %s: %+v", as, coding, a)
				}
			}
		}
	})
	a := g.records.wait(t, func(a audit.Record) bool { return strings.HasPrefix(a.Detail, "mcp tool: rm") })
	if a.Code != "policy_denied" || a.Outcome != "denied" || a.Source != "" && a.Status == 0 {
		t.Errorf("%+v", a)
	}
	t.Run("WebSocket", func(t *testing.T) {
		before := len(origin.Requests())
		_, resp, err := websocket.Dial(t.Context(), strings.Replace(origin.URL("/mcp/ws"), "https", "wss", 1), &websocket.DialOptions{HTTPClient: g.one()})
		if err == nil || resp == nil || resp.StatusCode != http.StatusForbidden || resp.Header.Get("X-Egressd-Error") != "protocol_not_allowed" || len(origin.Requests()) != before {
			t.Errorf("%v %+v", err, resp)
		}
	})
	g.safe(t)
}

// With enforcement report all of it passes as it is; what would have been refused without a
// credential.
func TestMCPReported(t *testing.T) {
	t.Parallel()
	g, origin := mcpRig(t, "report")
	bothVersions(t, g.stack, func(t *testing.T, c *http.Client) {
		for body, auth := range map[string]string{
			toolCall("read"): "1", toolCall("write"): "0", `{"id":5,"method":"tools/call","params":{"name":"read","name":"write"}}`: "0", "no JSON": "0",
			`{"id":5,"method":"ping","params":"` + strings.Repeat("x", 1<<20) + `"}`: "0",
		} {
			g.forget()
			a := rpc(t, c, origin.URL("/mcp"), body, nil)
			var got struct{ Result struct{ Body, Auth string } }
			if err := json.Unmarshal([]byte(a.body), &got); err != nil || a.status != http.StatusOK || got.Result.Body != body || got.Result.Auth != auth {
				t.Errorf("%.80s: %d, %s credentials, %v", body, a.status, got.Result.Auth, err)
			}
			r := g.records.wait(t, func(a audit.Record) bool { return a.Path == "/mcp" })
			if r.Report != (auth == "0") || (r.Source == "") != (auth == "0") || r.Outcome != "allowed" {
				t.Errorf("%.80s: %+v", body, r)
			}
		}
		if a := rpc(t, c, origin.URL("/mcp?as=json"), `{"id":1,"method":"tools/list"}`, nil); !strings.Contains(a.body, `"write"`) {
			t.Errorf("%+v", a)
		}
	})
	g.clean(t)
}

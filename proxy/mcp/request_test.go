package mcp

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/google/go-cmp/cmp"
)

// only allows the tools named.
func only(names ...string) func(string) (bool, string) {
	return func(tool string) (bool, string) {
		if slices.Contains(names, tool) {
			return true, ""
		}
		return false, "tools-of-team"
	}
}

func jsonHeader() http.Header { return http.Header{"Content-Type": {"application/json"}} }

// refused are the answers of refusals.
func refused(id, message string) string {
	return `{"jsonrpc":"2.0","id":` + id + `,"error":{"code":-32602,"message":"` + message + `"}}`
}

const denied = "tool not allowed by policy"

func TestRequest(t *testing.T) {
	f := &Filter{Allows: only("read", "größe", "")}
	pass := Decision{Pass: true}
	tool := func(name, body string) Decision {
		return Decision{Cause: CauseTool, Tool: name, Rule: "tools-of-team", Status: 200, Body: []byte(body)}
	}
	parse := func(why string) Decision {
		return Decision{Cause: CauseParse, Status: 400, Body: []byte(`{"jsonrpc":"2.0","id":null,"error":{"code":-32700,"message":"parse error` + why + `"}}`)}
	}
	invalid := Decision{Cause: CauseInvalid, Status: 400, Body: []byte(`{"jsonrpc":"2.0","id":null,"error":{"code":-32600,"message":"invalid request"}}`)}
	params := func(id string) Decision {
		return Decision{Cause: CauseInvalid, Status: 200, Body: []byte(refused(id, "invalid params: no name of a tool"))}
	}
	for _, tc := range []struct {
		name, body string
		want       Decision
	}{
		{"allowed", `{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"read","arguments":{"name":"write"}}}`, pass},
		{"allowed, escaped", `{"id":1,"method":"tools\/call","params":{"n\u0061me":"gr\u00f6\u00dfe"}}`, pass},
		{"allowed, empty name", `{"id":1,"method":"tools/call","params":{"name":""}}`, pass},
		{"denied", `{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"write"}}`, tool("write", refused("1", denied))},
		{"denied, escaped", `{"id":1,"m\u0065thod":"tools\u002fcall","params":{"\u006eame":"\u0077rite"}}`, tool("write", refused("1", denied))},
		{"denied, surrogate pair", `{"id":1,"method":"tools/call","params":{"name":"\ud83d\ude00"}}`, tool("😀", refused("1", denied))},
		{"denied, other case", `{"id":1,"method":"tools/call","params":{"name":"Read"}}`, tool("Read", refused("1", denied))},
		{"denied, members in another order", `{"params":{"arguments":{},"name":"write"},"method":"tools/call","id":1}`, tool("write", refused("1", denied))},
		{"denied, space everywhere", " {\n\t\"id\" :\r 1 , \"method\" : \"tools/call\" , \"params\" : { \"name\" : \"write\" } } ", tool("write", refused("1", denied))},
		{"id echoed: number", `{"id":1.50e+3,"method":"tools/call","params":{"name":"write"}}`, tool("write", refused("1.50e+3", denied))},
		{"id echoed: large number", `{"id":123456789012345678901234567890,"method":"tools/call","params":{"name":"write"}}`, tool("write", refused("123456789012345678901234567890", denied))},
		{"id echoed: negative", `{"id":-1,"method":"tools/call","params":{"name":"write"}}`, tool("write", refused("-1", denied))},
		{"id echoed: string", `{"id":"a\u0041\"<&","method":"tools/call","params":{"name":"write"}}`, tool("write", refused(`"a\u0041\"<&"`, denied))},
		{"id echoed: null", `{"id":null,"method":"tools/call","params":{"name":"write"}}`, tool("write", refused("null", denied))},
		{"id: object", `{"id":{},"method":"tools/call","params":{"name":"read"}}`, invalid},
		{"id: array", `{"id":[1],"method":"ping"}`, invalid},
		{"id: true", `{"id":true,"method":"ping"}`, invalid},
		{"denied notification", `{"method":"tools/call","params":{"name":"write"}}`, Decision{Cause: CauseTool, Tool: "write", Rule: "tools-of-team", Status: 202}},
		{"long name", `{"id":1,"method":"tools/call","params":{"name":"` + strings.Repeat("ä", 100) + `"}}`, tool(strings.Repeat("ä", 64), refused("1", denied))},
		{"no params", `{"id":7,"method":"tools/call"}`, params("7")},
		{"no name", `{"id":7,"method":"tools/call","params":{}}`, params("7")},
		{"params by position", `{"id":7,"method":"tools/call","params":["read"]}`, params("7")},
		{"name is no string", `{"id":7,"method":"tools/call","params":{"name":["read"]}}`, params("7")},
		{"name is null", `{"id":7,"method":"tools/call","params":{"name":null}}`, params("7")},
		{"name is half a surrogate pair", `{"id":7,"method":"tools/call","params":{"name":"read\ud800"}}`, params("7")},
		{"other methods", `{"jsonrpc":"2.0","id":"x","method":"tools/list","params":{"cursor":null}}`, pass},
		{"initialize", `{"jsonrpc":"2.0","id":0,"method":"initialize","params":{"capabilities":{"roots":{"listChanged":true}}}}`, pass},
		{"notification", `{"jsonrpc":"2.0","method":"notifications/initialized"}`, pass},
		{"answer of the client", `{"jsonrpc":"2.0","id":1,"result":{"name":"write","method":"tools/call"}}`, pass},
		{"error of the client", `{"jsonrpc":"2.0","id":1,"error":{"code":1,"message":""}}`, pass},
		{"arguments may repeat what differs in case", `{"id":1,"method":"tools/call","params":{"name":"read","arguments":{"PATH":"1","Path":"2"}}}`, pass},
		{"half a pair in arguments", `{"id":1,"method":"tools/call","params":{"name":"read","arguments":{"t":"\udcff"}}}`, pass},

		{"method in another case", `{"id":1,"method":"Tools/Call","params":{"name":"write"}}`, invalid},
		{"method with a Kelvin sign or long s", `{"id":1,"method":"toolſ/call","params":{"name":"write"}}`, invalid},
		{"method with space", `{"id":1,"method":" tools/call\n","params":{"name":"write"}}`, invalid},
		{"method with a zero-width space", `{"id":1,"method":"tools/\u200bcall","params":{"name":"write"}}`, invalid},
		{"method with NUL", `{"id":1,"method":"tools/call\u0000","params":{"name":"write"}}`, invalid},
		{"method is no string", `{"id":1,"method":["tools/call"],"params":{"name":"write"}}`, invalid},
		{"method and result", `{"id":1,"method":"tools/call","result":{},"params":{"name":"read"}}`, invalid},
		{"neither", `{"jsonrpc":"2.0","id":1}`, invalid},
		{"Method", `{"id":1,"Method":"tools/call","params":{"name":"write"}}`, invalid},
		{"Method after method", `{"id":1,"method":"ping","METHOD":"tools/call","params":{"name":"write"}}`, invalid},
		{"paramſ", `{"id":1,"method":"tools/call","params":{"name":"read"},"paramſ":{"name":"write"}}`, invalid},
		{"Name", `{"id":1,"method":"tools/call","params":{"name":"read","Name":"write"}}`, invalid},
		{"a number", `1`, invalid},
		{"a string", `"tools/call"`, invalid},
		{"null", `null`, invalid},
		{"empty batch", `[]`, invalid},
		{"batch in a batch", `[[{"id":1,"method":"ping"}]]`, invalid},
		{"batch with a number", `[{"id":1,"method":"ping"},5]`, invalid},
		{"huge batch", "[" + strings.Repeat(`{"id":1,"method":"m"},`, 1000) + `{"id":1,"method":"m"}]`, invalid},

		{"duplicate method", `{"id":1,"method":"ping","method":"tools/call","params":{"name":"write"}}`, parse(": a member is given twice")},
		{"duplicate method, escaped", `{"id":1,"method":"ping","meth\u006fd":"tools/call","params":{"name":"write"}}`, parse(": a member is given twice")},
		{"duplicate name", `{"id":1,"method":"tools/call","params":{"name":"read","name":"write"}}`, parse(": a member is given twice")},
		{"duplicate in depth", `{"id":1,"method":"ping","params":{"a":[{"b":{"c":1,"c":2}}]}}`, parse(": a member is given twice")},
		{"key of half a pair", `{"id":1,"method":"ping","params":{"\ud800":1}}`, parse(": a name is not Unicode")},
		{"deep enough", `{"id":1,"method":"ping","params":` + strings.Repeat("[", 63) + strings.Repeat("]", 63) + `}`, pass},
		{"too deep", `{"id":1,"method":"ping","params":` + strings.Repeat("[", 64) + strings.Repeat("]", 64) + `}`, parse(": nested too deeply")},
		{"empty", ``, parse("")},
		{"trailing data", `{"id":1,"method":"ping"}{"id":2,"method":"tools/call","params":{"name":"write"}}`, parse("")},
		{"lines", "{\"id\":1,\"method\":\"ping\"}\n{\"id\":2,\"method\":\"tools/call\",\"params\":{\"name\":\"write\"}}", parse("")},
		{"trailing comma", `{"id":1,"method":"ping",}`, parse("")},
		{"comment", `{"id":1/**/,"method":"ping"}`, parse("")},
		{"NaN", `{"id":NaN,"method":"ping"}`, parse("")},
		{"not UTF-8", "{\"id\":1,\"method\":\"tools/call\xff\"}", parse("")},
		{"UTF-16", "{\x00\"\x00i\x00d\x00\"\x00:\x001\x00}\x00", parse("")},
		{"byte order mark", "\ufeff{\"id\":1,\"method\":\"ping\"}", parse("")},
		{"form", `method=tools/call&name=write`, parse("")},

		{"batch", `[{"id":1,"method":"tools/call","params":{"name":"read"}},{"method":"n"},{"id":2,"method":"tools/list"}]`, pass},
		{
			"batch with one denied",
			`[{"id":1,"method":"tools/call","params":{"name":"read"}},{"method":"n"},{"id":9,"result":{}}, {"id":"2","method":"tools/call","params":{"name":"write"}}]`,
			tool("write", "["+refused("1", "batch refused: "+denied)+","+refused(`"2"`, "batch refused: "+denied)+"]"),
		},
		{"batch of denied notifications", `[{"method":"tools/call","params":{"name":"write"}}]`, Decision{Cause: CauseTool, Tool: "write", Rule: "tools-of-team", Status: 202}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			body, d, err := f.Request(jsonHeader(), strings.NewReader(tc.body))
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tc.want, d); diff != "" {
				t.Errorf("%s\nbody %s", diff, d.Body)
			}
			if d.Pass && string(body) != tc.body || !d.Pass && body != nil {
				t.Errorf("pass %v with %d bytes of body", d.Pass, len(body))
			}
			if d.Body != nil && !json.Valid(d.Body) {
				t.Errorf("the answer is no JSON: %s", d.Body)
			}
		})
	}
}

func TestRequestHeaders(t *testing.T) {
	f := &Filter{Allows: only()}
	const ping = `{"id":1,"method":"ping"}`
	for _, tc := range []struct {
		h    http.Header
		want Cause
	}{
		{http.Header{}, ""},
		{http.Header{"Content-Type": {"application/json; charset=UTF-8"}}, ""},
		{http.Header{"Content-Type": {"text/plain"}}, ""},
		{http.Header{"Content-Type": {"application/json; q"}, "Content-Encoding": {"identity", ""}}, ""},
		{http.Header{"Content-Encoding": {"gzip"}}, CauseCoding},
		{http.Header{"Content-Encoding": {"identity", "br"}}, CauseCoding},
		{http.Header{"Content-Encoding": {"identity, gzip"}}, CauseCoding},
		{http.Header{"Content-Type": {"application/json; charset=utf-7"}}, CauseCoding},
		{http.Header{"Content-Type": {"application/json; charset=utf-16"}}, CauseCoding},
		{http.Header{"Content-Type": {"application/json; charset=\"utf-7"}}, CauseCoding},
		{http.Header{"Content-Type": {"application/json", "application/json; charset=utf-7"}}, CauseCoding},
	} {
		_, d, err := f.Request(tc.h, strings.NewReader(ping))
		if err != nil || d.Cause != tc.want || d.Pass != (tc.want == "") {
			t.Errorf("%v: %+v, %v", tc.h, d, err)
		}
		if tc.want != "" && (d.Status != http.StatusUnsupportedMediaType || !json.Valid(d.Body)) {
			t.Errorf("%v: %d %s", tc.h, d.Status, d.Body)
		}
	}
}

func TestRequestSize(t *testing.T) {
	const ping = `{"id":1,"method":"ping"}`
	f := &Filter{MaxRequest: len(ping)}
	if _, d, err := f.Request(nil, strings.NewReader(ping)); err != nil || !d.Pass {
		t.Errorf("%+v, %v", d, err)
	}
	if body, d, err := f.Request(nil, strings.NewReader(ping+" ")); err != nil || d.Pass || d.Cause != CauseSize || d.Status != http.StatusRequestEntityTooLarge || body != nil {
		t.Errorf("%+v, %v", d, err)
	}
	broken := errors.New("broken")
	if _, d, err := f.Request(nil, iotest.ErrReader(broken)); !errors.Is(err, broken) || d.Pass {
		t.Errorf("%+v, %v", d, err)
	}
}

func TestZeroFilterDenies(t *testing.T) {
	var f Filter
	_, d, err := f.Request(nil, strings.NewReader(`{"id":1,"method":"tools/call","params":{"name":"read"}}`))
	if err != nil || d.Pass || d.Cause != CauseTool {
		t.Errorf("%+v, %v", d, err)
	}
	if (Decision{}).Pass {
		t.Error("the zero decision passes")
	}
	if got, _, err := f.filter([]byte(`{"result":{"tools":[{"name":"read"}]}}`)); err != nil || string(got) != `{"result":{"tools":[]}}` {
		t.Errorf("%s, %v", got, err)
	}
}

func TestAnswer(t *testing.T) {
	for accept, want := range map[string]int{"": 403, "*/*": 403, "application/json, text/event-stream": 200, "Text/Event-Stream": 200, "application/json": 200} {
		d := Decision{Status: 200}
		if got := d.Answer(http.Header{"Accept": {accept}}); got != want {
			t.Errorf("%q: %d", accept, got)
		}
		d.Status = 400
		if got := d.Answer(http.Header{"Accept": {accept}}); got != 400 {
			t.Errorf("%q: %d", accept, got)
		}
	}
}

// FuzzRequest: what passes, encoding/json reads as we do, and as no call that is denied.
func FuzzRequest(f *testing.F) {
	for _, s := range []string{
		`{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"read"}}`,
		`[{"id":1,"m\u0065thod":"tools\/call","params":{"name":"write"}},{"method":"x"}]`,
		`{"Method":"tools/call","params":{"Name":"write"}}`, `{"id":1,"result":{}}`, `{"id":"\ud800","method":"\ud83d\ude00"}`,
		`{"method":"a","params":{"a":[[],{},"\"",-1.5e9,true,null]}}`, "\ufeff{}", "[]", "nul", `{"a":1,"a":2}`,
	} {
		f.Add([]byte(s))
	}
	filter := &Filter{Allows: only("read")}
	f.Fuzz(func(t *testing.T, b []byte) {
		body, d, err := filter.Request(nil, bytes.NewReader(b))
		if err != nil {
			t.Fatal(err)
		}
		if !d.Pass {
			if d.Status == 0 || d.Body != nil && !json.Valid(d.Body) || d.Body == nil && d.Status != 202 {
				t.Fatalf("%+v for %q", d, b)
			}
			return
		}
		if !bytes.Equal(body, b) {
			t.Fatalf("%q became %q", b, body)
		}
		messages := []json.RawMessage{b}
		if bytes.TrimSpace(b)[0] == '[' {
			if err := json.Unmarshal(b, &messages); err != nil {
				t.Fatal(err)
			}
		}
		for _, m := range messages {
			if err := sameAsStdlib(m); err != nil {
				t.Fatalf("%v in %q", err, b)
			}
		}
	})
}

func sameAsStdlib(m json.RawMessage) error {
	var std struct {
		Method *string         `json:"method"`
		Params json.RawMessage `json:"params"`
	}
	if err := json.Unmarshal(m, &std); err != nil {
		return err
	}
	at := skipSpace(m, 0)
	ours, err := parse(m, span{at, skipValue(m, at)})
	if err != nil {
		return err
	}
	method := ""
	if std.Method != nil {
		method = *std.Method
	}
	if ours.isCall != strings.EqualFold(method, "tools/call") {
		return fmt.Errorf("method %q, a call to us: %v", method, ours.isCall)
	}
	if !ours.isCall {
		return nil
	}
	var params struct{ Name string }
	if err := json.Unmarshal(std.Params, &params); err != nil {
		return err
	}
	if params.Name != ours.tool || params.Name != "read" {
		return fmt.Errorf("name %q, to us %q", params.Name, ours.tool)
	}
	return nil
}

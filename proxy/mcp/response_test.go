package mcp

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"testing/iotest"
	"time"
)

func read(t *testing.T, f *Filter, contentType, body string) (string, error) {
	t.Helper()
	r, err := f.Response(contentType, io.NopCloser(strings.NewReader(body)))
	if err != nil {
		return "", err
	}
	defer r.Close()
	b, err := io.ReadAll(r)
	return string(b), err
}

func TestResponseJSON(t *testing.T) {
	f := &Filter{Allows: only("read", "größe")}
	malformed := "\x00malformed"
	for _, tc := range []struct{ name, in, want string }{
		{
			"list", `{"jsonrpc":"2.0","id":1,"result":{"tools":[{"name":"read","inputSchema":{"name":"write"}},{"name":"write","description":"tools"}],"nextCursor":"c"}}`,
			`{"jsonrpc":"2.0","id":1,"result":{"tools":[{"name":"read","inputSchema":{"name":"write"}}],"nextCursor":"c"}}`,
		},
		{"first goes", `{"result":{"tools":[{"name":"write"}, {"name":"read"}]}}`, `{"result":{"tools":[ {"name":"read"}]}}`},
		{"middle goes", `{"result":{"tools":[{"name":"read"},{"name":"write"},{"name":"größe"}]}}`, `{"result":{"tools":[{"name":"read"},{"name":"größe"}]}}`},
		{"all go", `{"result":{"tools":[ {"name":"write"} , {"name":"x"} ]}}`, `{"result":{"tools":[]}}`},
		{"none goes, odd spaces stay", " {\n\"result\" : { \"tools\" : [ { \"name\" : \"read\" } ] } }\n", " {\n\"result\" : { \"tools\" : [ { \"name\" : \"read\" } ] } }\n"},
		{"spaces around stay", " {\n\"result\" : { \"tools\" : [ { \"name\" : \"write\" } , { \"name\" : \"read\" }\t] } }\n", " {\n\"result\" : { \"tools\" : [ { \"name\" : \"read\" }\t] } }\n"},
		{"escaped", `{"r\u0065sult":{"\u0074ools":[{"n\u0061me":"\u0077rite"},{"name":"gr\u00f6\u00dfe"}]}}`, `{"r\u0065sult":{"\u0074ools":[{"name":"gr\u00f6\u00dfe"}]}}`},
		{"other things in a list of tools", `{"result":{"tools":[{"name":"read"},5,"write",null,{},{"name":7},{"name":"\ud800"}]}}`, `{"result":{"tools":[{"name":"read"}]}}`},
		{"a name of half a character alone", `{"result":{"tools":[{"name":"\ud800"}]}}`, `{"result":{"tools":[]}}`},
		{"a list of something else", `{"result":{"tools":["hammer",{"title":"saw"}]}}`, `{"result":{"tools":["hammer",{"title":"saw"}]}}`},
		{"capabilities", `{"result":{"capabilities":{"tools":{"listChanged":true}}}}`, `{"result":{"capabilities":{"tools":{"listChanged":true}}}}`},
		{"result of a call", `{"result":{"content":[{"type":"text","text":"{\"result\":{\"tools\":[{\"name\":\"write\"}]}}"}]}}`, `{"result":{"content":[{"type":"text","text":"{\"result\":{\"tools\":[{\"name\":\"write\"}]}}"}]}}`},
		{"duplicates deep in a result", `{"result":{"content":[{"tool":1,"tool":2}]}}`, `{"result":{"content":[{"tool":1,"tool":2}]}}`},
		{"error", `{"id":1,"error":{"code":-1,"message":"no such tool"}}`, `{"id":1,"error":{"code":-1,"message":"no such tool"}}`},
		{"batch", `[{"id":1,"result":{"tools":[{"name":"write"}]}}, {"id":2,"result":{}},7,{"id":3,"result":{"tools":[{"name":"read"},{"name":"write"}]}}]`, `[{"id":1,"result":{"tools":[]}}, {"id":2,"result":{}},7,{"id":3,"result":{"tools":[{"name":"read"}]}}]`},
		{"byte order mark", "\ufeff" + `{"result":{"tools":[{"name":"write"}]}}`, "\ufeff" + `{"result":{"tools":[]}}`},
		{"empty", "", ""},
		{"text", "no such tool", "no such tool"},
		{"not JSON, and no list", `{"a":NaN}`, `{"a":NaN}`},

		{"NaN", `{"a":NaN,"result":{"tools":[{"name":"write"}]}}`, malformed},
		{"two documents", `{}{"result":{"tools":[{"name":"write"}]}}`, malformed},
		{"result twice", `{"result":{},"result":{"tools":[{"name":"write"}]}}`, malformed},
		{"tools twice", `{"result":{"tools":[],"tools":[{"name":"write"}]}}`, malformed},
		{"name twice", `{"result":{"tools":[{"name":"read","name":"write"}]}}`, malformed},
		{"Result", `{"Result":{"tools":[{"name":"write"}]}}`, malformed},
		{"toolſ", `{"result":{"toolſ":[{"name":"write"}]}}`, malformed},
		{"NAME", `{"result":{"tools":[{"NAME":"write"}]}}`, malformed},
		{"not UTF-8", "{\"a\":\"\xff\",\"result\":{\"tools\":[{\"name\":\"write\"}]}}", malformed},
		{"UTF-16", "{\x00\"\x00t\x00o\x00o\x00l\x00s\x00\"\x00", malformed},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got, err := read(t, f, "application/json", tc.in)
			if tc.want == malformed {
				if !errors.Is(err, ErrMalformed) || got != "" {
					t.Errorf("%q, %v", got, err)
				}
				return
			}
			if err != nil || got != tc.want {
				t.Errorf("%s, %v\nwant %s", got, err, tc.want)
			}
		})
	}
}

const twoTools = `{"result":{"tools":[{"name":"write"},{"name":"read"}]}}`
const oneTool = `{"result":{"tools":[{"name":"read"}]}}`

func TestResponseTypes(t *testing.T) {
	f := &Filter{Allows: only("read")}
	for contentType, want := range map[string]string{
		"application/json": oneTool, "Application/JSON ; charset=utf-8": oneTool, "application/problem+json": oneTool, "text/json": oneTool, "": oneTool,
		"text/html": twoTools, "application/octet-stream": twoTools,
		"application/json; charset=utf-16": "", "text/event-stream; charset=utf-7": "", "text/html, application/json": "",
	} {
		got, err := read(t, f, contentType, twoTools)
		if got != want || (err != nil) != (want == "") || err != nil && !errors.Is(err, ErrMalformed) {
			t.Errorf("%q: %s, %v", contentType, got, err)
		}
	}
	body := io.NopCloser(strings.NewReader(""))
	if got, err := f.Response("image/png", body); err != nil || got != body {
		t.Error("another type was wrapped")
	}
}

func TestResponseLimits(t *testing.T) {
	f := &Filter{MaxMessage: 50}
	for _, contentType := range []string{"application/json", "text/event-stream"} {
		if got, err := read(t, f, contentType, "data: "+strings.Repeat("x", 60)); !errors.Is(err, ErrTooLarge) || got != "" {
			t.Errorf("%s: %q, %v", contentType, got, err)
		}
		broken := errors.New("broken")
		r, err := f.Response(contentType, io.NopCloser(io.MultiReader(strings.NewReader("data: {\"half"), iotest.ErrReader(broken))))
		if err != nil {
			t.Fatal(err)
		}
		if got, err := io.ReadAll(r); !errors.Is(err, broken) || len(got) != 0 {
			t.Errorf("%s: %q, %v", contentType, got, err)
		}
	}
	if got, err := read(t, f, "text/event-stream", strings.Repeat("data: 0123456789\n\n", 1000)); err != nil || len(got) != 18000 {
		t.Errorf("many small events: %d bytes, %v", len(got), err)
	}
	if got, err := read(t, f, "text/event-stream", strings.Repeat("data: 0123456789\n", 10)); !errors.Is(err, ErrTooLarge) {
		t.Errorf("many lines in one event: %q, %v", got, err)
	}
}

func TestResponseEvents(t *testing.T) {
	f := &Filter{Allows: only("read")}
	for _, tc := range []struct{ name, in, want string }{
		{"list", "event: message\nid: 7\ndata: " + twoTools + "\n\n", "event: message\nid: 7\ndata: " + oneTool + "\n\n"},
		{"no space", "data:" + twoTools + "\n\n", "data: " + oneTool + "\n\n"},
		{"two spaces", "data:  " + twoTools + "\n\n", "data:  " + oneTool + "\n\n"},
		{"fields after data", "data: " + twoTools + "\nid: 7\nretry: 5\n: comment\n\n", "data: " + oneTool + "\nid: 7\nretry: 5\n: comment\n\n"},
		{"several lines", "data: {\"result\":\nid: 1\ndata: {\"tools\":[{\"name\":\ndata: \"write\"}]}\ndata: }\n\n", "data: {\"result\":\ndata: {\"tools\":[]}\ndata: }\nid: 1\n\n"},
		{"cut in a word: no JSON", "data: {\"result\":{\"to\ndata: ols\":[{\"name\":\"write\"}]}}\n\n", "data: {\"result\":{\"to\ndata: ols\":[{\"name\":\"write\"}]}}\n\n"},
		{"CRLF", "event: message\r\ndata: " + twoTools + "\r\n\r\ndata: x\r\n\r\n", "event: message\r\ndata: " + oneTool + "\r\n\r\ndata: x\r\n\r\n"},
		{"CR", "event: message\rdata: " + twoTools + "\r\rdata: x\r\r", "event: message\rdata: " + oneTool + "\r\rdata: x\r\r"},
		{"mixed", "data: " + twoTools + "\r\n\ndata: " + twoTools + "\n\rdata: y\r\n\r", "data: " + oneTool + "\r\n\ndata: " + oneTool + "\n\rdata: y\r\n\r"},
		{"byte order mark", "\ufeffdata: " + twoTools + "\n\n", "\ufeffdata: " + oneTool + "\n\n"},
		{"mark later is no mark", "\n\ufeffdata: " + twoTools + "\n\n", "\n\ufeffdata: " + twoTools + "\n\n"},
		{"untouched", ": ping\n\nretry: 10\n\nevent: endpoint\ndata: /messages?tool=1\n\ndata\ndata:\ndata: {\"tool\":\ndata: 1}\n\nDATA: " + twoTools + "\n\n", ""},
		{"batch", "data: [" + twoTools + ",{}]\n\n", "data: [" + oneTool + ",{}]\n\n"},
		{"no empty line at the end", "data: " + twoTools, "data: " + oneTool},
		{"one line end at the end", "data: " + twoTools + "\n", "data: " + oneTool + "\n"},
		{"empty", "", ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if tc.want == "" {
				tc.want = tc.in
			}
			for i := range len(tc.in) + 1 {
				for _, size := range []int{3, 4096} {
					src := io.MultiReader(strings.NewReader(tc.in[:i]), strings.NewReader(tc.in[i:]))
					r, err := f.Response("text/event-stream", io.NopCloser(src))
					if err != nil {
						t.Fatal(err)
					}
					got, err := readBy(r, size)
					if err != io.EOF || got != tc.want {
						t.Fatalf("cut at %d: %q, %v\nwant %q", i, got, err, tc.want)
					}
				}
			}
			r, err := f.Response("text/event-stream", io.NopCloser(iotest.OneByteReader(strings.NewReader(tc.in))))
			if err != nil {
				t.Fatal(err)
			}
			if got, err := readBy(r, 100); err != io.EOF || got != tc.want {
				t.Errorf("byte by byte: %q, %v", got, err)
			}
		})
	}
	for name, in := range map[string]string{
		"NaN":        "data: {\"a\":NaN,\"result\":{\"tools\":[{\"name\":\"write\"}]}}\n\n",
		"twice":      "data: {\"result\":{},\"result\":{\"tools\":[{\"name\":\"write\"}]}}\n\n",
		"not UTF-8":  "data: {\"a\":\"\xff\",\"result\":{\"tools\":[{\"name\":\"write\"}]}}\n\n",
		"at the end": "data: {\"result\":{\"tools\":[{\"name\":\"write\"}",
	} {
		if got, err := read(t, f, "text/event-stream", "data: before\n\n"+in); !errors.Is(err, ErrMalformed) || got != "data: before\n\n" {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
}

func readBy(r io.Reader, size int) (string, error) {
	var out []byte
	for p := make([]byte, size); ; {
		n, err := r.Read(p)
		out = append(out, p[:n]...)
		if err != nil {
			return string(out), err
		}
	}
}

// TestEventsLeaveAtOnce lets an origin wait for each piece to be delivered.
func TestEventsLeaveAtOnce(t *testing.T) {
	f := &Filter{Allows: only("read")}
	pr, pw := io.Pipe()
	delivered, done := make(chan string, 100), make(chan struct{})
	go func() {
		defer close(done)
		defer pw.Close()
		for _, e := range []struct{ sent, want string }{
			{": keep-alive\n", ": keep-alive\n"}, {"event: message\n", "event: message\n"}, {"data: {}\n\n", "data: {}\n\n"}, {"data: a\r\n\r\n", "data: a\r\n\r\n"}, {"data: b\r\r", "data: b\r\r"}, {"data: " + twoTools + "\n\n", "data: " + oneTool + "\n\n"},
		} {
			if _, err := io.WriteString(pw, e.sent); err != nil {
				return
			}
			for got := ""; got != e.want; {
				select {
				case s := <-delivered:
					got += s
				case <-time.After(20 * time.Second):
					t.Errorf("only %q of %q was delivered", got, e.want)
					return
				}
			}
		}
	}()
	r, err := f.Response("text/event-stream", pr)
	if err != nil {
		t.Fatal(err)
	}
	for p := make([]byte, 4096); ; {
		n, err := r.Read(p)
		if n > 0 {
			delivered <- string(p[:n])
		}
		if err != nil {
			break
		}
	}
	<-done
	if err := r.Close(); err != nil {
		t.Error(err)
	}
}

func TestStuckSource(t *testing.T) {
	r, err := (&Filter{}).Response("text/event-stream", io.NopCloser(stuck{}))
	if err != nil {
		t.Fatal(err)
	}
	if n, err := r.Read(nil); n != 0 || err != nil {
		t.Errorf("%d, %v", n, err)
	}
	if _, err := r.Read(make([]byte, 10)); !errors.Is(err, io.ErrNoProgress) {
		t.Error(err)
	}
}

type stuck struct{}

func (stuck) Read([]byte) (int, error) { return 0, nil }

// clientTools is what a client that follows HTML's rules, and parses with encoding/json,
// is told of tools.
func clientTools(body []byte) (names []string) {
	text := strings.NewReplacer("\r\n", "\n", "\r", "\n").Replace(strings.TrimPrefix(string(body), "\ufeff"))
	for event := range strings.SplitSeq(text, "\n\n") {
		var data []string
		for l := range strings.SplitSeq(event, "\n") {
			if v, ok := strings.CutPrefix(l, "data:"); ok {
				data = append(data, strings.TrimPrefix(v, " "))
			} else if l == "data" {
				data = append(data, "")
			}
		}
		names = append(names, jsonTools([]byte(strings.Join(data, "\n")))...)
	}
	return names
}

func jsonTools(doc []byte) (names []string) {
	type message struct {
		Result struct{ Tools []struct{ Name string } }
	}
	var batch []json.RawMessage
	if json.Unmarshal(doc, &batch) != nil {
		batch = []json.RawMessage{doc}
	}
	for _, raw := range batch {
		var m message
		_ = json.Unmarshal(raw, &m)
		for _, tool := range m.Result.Tools {
			if tool.Name != "" {
				names = append(names, tool.Name)
			}
		}
	}
	return names
}

// FuzzEvents: in whatever chunks a stream comes, it becomes the same, and tells of no tool
// that is not allowed; one that tells of none is not changed.
func FuzzEvents(f *testing.F) {
	for _, s := range []string{
		"data: " + twoTools + "\n\n", "data: " + twoTools + "\r\n\r\n", "\ufeffdata:" + twoTools + "\r\r", "event: a\ndata: {\"result\":\ndata: {\"tools\":[{\"name\":\"a\"}]}}\n\nid\n",
		": c\n\ndata\n\n", "data: [{\"result\":{\"\\u0074ools\":[{\"name\":\"x\"}]}}]\r\n\n", "data: {\"Result\":{\"TOOLS\":[{\"Name\":\"x\"}]}}\n\n",
	} {
		f.Add([]byte(s), byte(5))
	}
	filter := &Filter{Allows: only("read")}
	f.Fuzz(func(t *testing.T, in []byte, cut byte) {
		whole, wholeErr := fuzzRead(t, filter, bytes.NewReader(in))
		k := min(int(cut), len(in))
		parts, partsErr := fuzzRead(t, filter, io.MultiReader(bytes.NewReader(in[:k]), iotest.OneByteReader(bytes.NewReader(in[k:]))))
		if whole != parts || !errors.Is(partsErr, wholeErr) && fmt.Sprint(partsErr) != fmt.Sprint(wholeErr) {
			t.Fatalf("%q, %v; cut at %d: %q, %v", whole, wholeErr, k, parts, partsErr)
		}
		for _, name := range clientTools([]byte(whole)) {
			if name != "read" {
				t.Fatalf("tool %q is told of in %q, from %q", name, whole, in)
			}
		}
		if wholeErr == nil && whole != string(in) && !bytes.Contains(bytes.ToLower(in), []byte("tool")) && !bytes.Contains(in, []byte(`\u00`)) {
			t.Fatalf("%q became %q", in, whole)
		}
	})
}

func fuzzRead(t *testing.T, f *Filter, r io.Reader) (string, error) {
	body, err := f.Response("text/event-stream", io.NopCloser(r))
	if err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(body)
	return string(b), err
}

func FuzzDocument(f *testing.F) {
	f.Add([]byte(twoTools))
	f.Add([]byte("[" + twoTools + ",{}]"))
	f.Add([]byte(` { "a":[1,-2.5,{"b":null}], "result" : {"\u0074ools": [ {"name":"\ud83d\ude00"} , 7 ] } } `))
	filter := &Filter{Allows: only("read")}
	f.Fuzz(func(t *testing.T, in []byte) {
		out, changed, err := filter.filter(in)
		if err != nil {
			return
		}
		if json.Valid(in) != json.Valid(out) || changed == bytes.Equal(in, out) {
			t.Fatalf("%q became %q, changed: %v", in, out, changed)
		}
		for _, name := range jsonTools(out) {
			if name != "read" {
				t.Fatalf("tool %q is told of in %q, from %q", name, out, in)
			}
		}
	})
}

func BenchmarkEvents(b *testing.B) {
	f := &Filter{Allows: only("read")}
	in := strings.Repeat("event: message\ndata: {\"jsonrpc\":\"2.0\",\"id\":1,\"result\":{\"content\":[{\"type\":\"text\",\"text\":\""+strings.Repeat("some words of text ", 50)+"\"}]}}\n\n", 1000)
	b.SetBytes(int64(len(in)))
	for b.Loop() {
		r, err := f.Response("text/event-stream", io.NopCloser(strings.NewReader(in)))
		if err != nil {
			b.Fatal(err)
		}
		if _, err := io.Copy(io.Discard, r); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkRequest(b *testing.B) {
	f := &Filter{Allows: only("read")}
	in := `{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"read","arguments":{"a":[1,2,3],"text":"` + strings.Repeat("some words ", 100) + `"}}}`
	b.SetBytes(int64(len(in)))
	b.ReportAllocs()
	for b.Loop() {
		if _, d, err := f.Request(nil, strings.NewReader(in)); err != nil || !d.Pass {
			b.Fatal(err)
		}
	}
}

package audit

import (
	"encoding/json"
	"net/netip"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
)

func full() *Record {
	return &Record{
		Time: time.Date(2026, 11, 21, 3, 4, 5, 678901234, time.FixedZone("", 3600)), RequestID: "r-1", Sandbox: "agent-7", Team: "acme", Way: "connect",
		Destination: "api.good.test:443", Address: netip.MustParseAddr("192.0.2.1"), Protocol: "tls", Method: "POST", Path: "/repos/acme/x",
		Rule: "github", Report: true, CredentialRule: "github-api", Source: "gh", Version: 3,
		ClientCertRule: "mtls", ClientCertSource: "cert", ClientCertVersion: 2, CredentialSkipped: "source_unavailable", Scrubbed: 4,
		Status: 200, BytesIn: 12, BytesOut: 3456, Duration: 1234567 * time.Nanosecond, Outcome: "allowed", Code: "policy_denied", Detail: "why",
	}
}

func TestRecord(t *testing.T) {
	for name, tc := range map[string]struct {
		rec  *Record
		want string
	}{
		"full": {full(), `{"time":"2026-11-21T02:04:05.678901Z","requestId":"r-1","sandbox":"agent-7","team":"acme","way":"connect",` +
			`"destination":"api.good.test:443","address":"192.0.2.1","protocol":"tls","method":"POST","path":"/repos/acme/x",` +
			`"rule":"github","report":true,"credentialRule":"github-api","source":"gh","version":3,` +
			`"clientCertRule":"mtls","clientCertSource":"cert","clientCertVersion":2,"credentialSkipped":"source_unavailable",` +
			`"scrubbed":4,"status":200,"bytesIn":12,"bytesOut":3456,"durationUs":1234,"outcome":"allowed","code":"policy_denied","detail":"why"}` + "\n"},
		"empty":                  {&Record{}, `{"time":"0001-01-01T00:00:00.000000Z","bytesIn":0,"bytesOut":0,"durationUs":0}` + "\n"},
		"H04 no negative figure": {&Record{BytesIn: -1, BytesOut: -1, Duration: -time.Second, Status: -1}, `{"time":"0001-01-01T00:00:00.000000Z","bytesIn":0,"bytesOut":0,"durationUs":0}` + "\n"},
	} {
		if d := cmp.Diff(tc.want, string(tc.rec.appendJSON(nil))); d != "" {
			t.Errorf("%s (-want +got):\n%s", name, d)
		}
	}
}

func decode(t *testing.T, line []byte) map[string]any {
	t.Helper()
	var m map[string]any
	if err := json.Unmarshal(line, &m); err != nil {
		t.Fatalf("%q: %v", line, err)
	}
	return m
}

func TestAttack_C35_hostile_strings(t *testing.T) {
	for name, tc := range map[string]struct{ in, want string }{
		"closing the object": {`"}{"admin":true`, `\"}{\"admin\":true`},
		"backslash":          {`a\u0022b`, `a\\u0022b`},
		"newline, escape":    {"/\n\x1b[2J\r", `/\u000a\u001b[2J\u000d`},
		"title":              {"\x1b]0;x\x07", `\u001b]0;x\u0007`},
		"NUL and DEL":        {"a\x00b\x7f", `a\u0000b\u007f`},
		"C1 control":         {"\u009b31m", `\u009b31m`},
		"direction mark":     {"a\u202eb", `a\u202eb`},
		"line separator":     {"a\u2028b", `a\u2028b`},
		"beyond the BMP":     {"😀", `\ud83d\ude00`},
		"invalid UTF-8":      {"a\xff\xc3b", `a\ufffd\ufffdb`},
		"half a surrogate":   {"\xed\xa0\x80", `\ufffd\ufffd\ufffd`},
	} {
		r := full()
		r.Sandbox = tc.in
		line := r.appendJSON(nil)
		if !strings.Contains(string(line), `"sandbox":"`+tc.want+`","team"`) {
			t.Errorf("%s: %s; want %s", name, line, tc.want)
		}
		if got, want := decode(t, line)["sandbox"], strings.ToValidUTF8(tc.in, "\ufffd"); utf8.ValidString(tc.in) && got != want {
			t.Errorf("%s: reads back as %q", name, got)
		}
	}
}

func TestRecord_caps(t *testing.T) {
	long := strings.Repeat("x", 5000)
	r := &Record{RequestID: long, Sandbox: long, Team: long, Way: long, Destination: long, Protocol: long, Method: long, Path: "/" + long, Rule: long,
		CredentialRule: long, Source: long, ClientCertRule: long, ClientCertSource: long, CredentialSkipped: long, Outcome: long, Code: long, Detail: long}
	line := r.appendJSON(nil)
	for k, v := range decode(t, line) {
		s, ok := v.(string)
		if !ok || k == "time" {
			continue
		}
		limit := maxString + 6
		switch k {
		case "path":
			limit = maxPath
		case "detail":
			limit = maxDetail
		}
		if !strings.HasSuffix(s, "x…") || len(s) > limit+len("…") {
			t.Errorf("%s has %d bytes, ends in %q", k, len(s), s[len(s)-6:])
		}
	}
}

func TestRecord_path_without_query(t *testing.T) {
	for in, want := range map[string]string{"/a?token=canary": "/a", "/a#canary": "/a", "?canary": "", "/a": "/a"} {
		got, _ := decode(t, (&Record{Path: in}).appendJSON(nil))["path"].(string)
		if got != want {
			t.Errorf("path %q became %q", in, got)
		}
	}
}

// FuzzRecord holds C35 for any bytes: one line of printable ASCII, valid JSON, bounded.
func FuzzRecord(f *testing.F) {
	f.Add("agent", "/a/b", "good.test:443", "detail")
	f.Add("\"}{", "/\x00\xff?q", "\x1b[2J", "é😀\u202e")
	f.Fuzz(func(t *testing.T, sandbox, path, destination, detail string) {
		r := full()
		r.Sandbox, r.Path, r.Destination, r.Detail = sandbox, path, destination, detail
		line := r.appendJSON(nil)
		for i, c := range line {
			if (c < 0x20 || c > 0x7e) && (c != '\n' || i != len(line)-1) {
				t.Fatalf("byte %#x at %d of %q", c, i, line)
			}
		}
		if len(line) > 16<<10 {
			t.Fatalf("%d bytes", len(line))
		}
		m := decode(t, line)
		if len(sandbox) > 0 && len(sandbox) <= maxString && utf8.ValidString(sandbox) && m["sandbox"] != sandbox {
			t.Fatalf("%q reads back as %q", sandbox, m["sandbox"])
		}
		if len(m) > 27 || m["team"] != "acme" {
			t.Fatalf("members were added: %v", m)
		}
	})
}

func BenchmarkAppend(b *testing.B) {
	r := full()
	buf := make([]byte, 0, 2048)
	b.ReportAllocs()
	for b.Loop() {
		buf = r.appendJSON(buf[:0])
	}
}

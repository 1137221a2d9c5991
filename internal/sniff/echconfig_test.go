package sniff

import (
	"bytes"
	"encoding/hex"
	"strings"
	"testing"
)

func TestECHConfigIDs(t *testing.T) {
	one := func(version, id string) string { return version + "0006" + id + "0020000000" }
	for _, tc := range []struct {
		list string
		ids  string
		ok   bool
	}{
		{"000a" + one("fe0d", "2a"), "2a", true},
		{"0014" + one("fe0d", "01") + one("fe0d", "02"), "0102", true},
		{"0014" + one("fe0a", "01") + one("fe0d", "02"), "02", true}, // a draft's version is passed over
		{"0000", "", true},
		{"", "", false},
		{"000a" + one("fe0d", "2a") + "00", "", false},
		{"0014" + one("fe0d", "2a"), "", false},
		{"000e" + one("fe0d", "2a") + "fe0d0000", "2a", false},
		{"000d" + one("fe0d", "2a") + "fe0d00", "2a", false},
		{"0140" + strings.Repeat(one("fe0d", "07"), 32), strings.Repeat("07", 32), true},
		{"014a" + strings.Repeat(one("fe0d", "07"), 33), strings.Repeat("07", 32), false},
	} {
		list, err := hex.DecodeString(tc.list)
		if err != nil {
			t.Fatal(err)
		}
		if ids, ok := ECHConfigIDs(list); hex.EncodeToString(ids) != tc.ids || ok != tc.ok {
			t.Errorf("%.40s: %x, %v", tc.list, ids, ok)
		}
	}
}

func FuzzECHConfigIDs(f *testing.F) {
	f.Add([]byte("\x00\x0a\xfe\x0d\x00\x06\x2a\x00\x20\x00\x00\x00"))
	f.Fuzz(func(t *testing.T, list []byte) {
		ids, ok := ECHConfigIDs(list)
		again, okAgain := ECHConfigIDs(bytes.Clone(list))
		if len(ids) > maxECHConfigs || !bytes.Equal(ids, again) || ok != okAgain || ok && len(ids)*5 > len(list) {
			t.Errorf("%x, %v", ids, ok)
		}
	})
}

package source_test

import (
	"errors"
	"slices"
	"testing"

	"github.com/egressd/egressd/source"
)

func TestDestinations(t *testing.T) {
	for _, tc := range []struct {
		pattern string
		host    string
		port    uint16
		want    bool
	}{
		{"good.test", "good.test", 443, true},
		{"good.test", "a.good.test", 443, false},
		{"good.test", "evilgood.test", 443, false},
		{"good.test", "good.test.evil.test", 443, false},
		{"GOOD.test.", "good.test", 80, true},
		{"*.good.test", "good.test", 443, true},
		{"*.good.test", "a.b.good.test", 443, true},
		{"*.good.test", "evilgood.test", 443, false},
		{"*.good.test", ".good.test", 443, false},
		{"*.good.test", "xgood.test", 443, false},
		{"*.good.test", "good.test.evil.test", 443, false},
		{"good.test:8443", "good.test", 8443, true},
		{"good.test:8443", "good.test", 443, false},
		{"*.good.test:443", "a.good.test", 443, true},
		{"*.good.test:443", "a.good.test", 444, false},
		{"bücher.test", "xn--bcher-kva.test", 443, true},
		{"192.0.2.7", "192.0.2.7", 443, true},
		{"192.0.2.7:443", "192.0.2.7", 444, false},
		{"2001:DB8::1", "2001:db8::1", 443, true},
		{"[2001:db8::1]:443", "2001:db8::1", 443, true},
		{"[2001:db8::1]:443", "2001:db8::1", 80, false},
		{"[2001:db8::1]", "2001:db8::1", 80, true},
	} {
		d, err := source.ParseDestinations([]string{"never.test", tc.pattern})
		if err != nil {
			t.Errorf("%s: %v", tc.pattern, err)
			continue
		}
		if got := d.Allow(tc.host, tc.port); got != tc.want {
			t.Errorf("%s allows %s:%d: %v", tc.pattern, tc.host, tc.port, got)
		}
	}
	for _, bad := range []string{"", "*", "*.", "a..b", ".a", "a:0", "a:65536", "a:https", "https://good.test", "good.test/x", "a b", "*.192.0.2.7",
		"2130706433", "0x7f.1", "[192.0.2.7]:1", "[::1", "fe80::1%eth0", "a.*.b", "gó od.test", "u@good.test", "127.1"} {
		if _, err := source.ParseDestinations([]string{bad}); !errors.Is(err, source.ErrDestination) {
			t.Errorf("%q: %v", bad, err)
		}
	}
	if !(source.Destinations{}).Allow("any.test", 1) {
		t.Error("an empty list bounds")
	}
}

func TestDestinationsOutside(t *testing.T) {
	d, err := source.ParseDestinations([]string{"api.good.test:443", "*.wide.test"})
	if err != nil {
		t.Fatal(err)
	}
	got := d.Outside([]string{"api.good.test", "*.api.good.test", "wide.test", "*.wide.test", "*.a.wide.test", "*", "evil.test", "API.good.test"})
	if want := []string{"*.api.good.test", "*", "evil.test"}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	if got := (source.Destinations{}).Outside([]string{"*"}); got != nil {
		t.Errorf("no bound: %q", got)
	}
}

// Whatever is taken as a pattern bounds: it does not allow no name, nor two names that
// have nothing in common.
func FuzzDestinations(f *testing.F) {
	for _, s := range []string{"good.test", "*.Good.test.:443", "[2001:db8::1]:1", "192.0.2.7", "xn--bcher-kva.test", "a.b:c"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, pattern string) {
		d, err := source.ParseDestinations([]string{pattern})
		if err != nil {
			return
		}
		if d.Allow("", 443) || d.Allow(".", 443) {
			t.Errorf("%q allows no name", pattern)
		}
		if d.Allow("evil.example", 443) && d.Allow("xgood.test", 443) {
			t.Errorf("%q allows two names that have nothing in common", pattern)
		}
	})
}

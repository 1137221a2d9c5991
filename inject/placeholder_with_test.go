package inject

import (
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/egressd/egressd/internal/secret"
	"github.com/egressd/egressd/policy"
)

func TestPlaceholdersWithMore(t *testing.T) {
	const opaque, value = "egd_abcdefghijklmnopqrstuvwxyz", `real+token/1"=`
	base := one(t, "fixed", policy.InHeader|policy.InBody)
	more := []Opaque{{opaque, secret.New(value), false}, {"egd_line", secret.New("a\nb"), false}, {"egd_long", secret.New(strings.Repeat("x", maxOpaque+1)), false}, {"egd_body", secret.New("refresh"), true}}
	p := base.With(more)
	h := http.Header{"Authorization": {"Bearer " + opaque}, "X-A": {ph}, "X-B": {"egd_line egd_long egd_body"}}
	if n, err := p.Header(h); n != 2 || err != nil || h.Get("Authorization") != "Bearer "+value || h.Get("X-A") != "fixed" || h.Get("X-B") != "egd_line egd_long egd_body" {
		t.Errorf("%d, %v, %v", n, err, h)
	}
	if _, q, n, err := p.Target("/"+opaque, "t="+opaque); q != "t=real%2Btoken%2F1%22%3D" || n != 1 || err != nil {
		t.Errorf("%q, %d, %v", q, n, err)
	}
	if out, n, err := p.Body(form, "", []byte("refresh_token="+opaque+"&s="+ph+"&r=egd_body")); string(out) != "refresh_token=real%2Btoken%2F1%22%3D&s=fixed&r=refresh" || n != 3 || err != nil {
		t.Errorf("%s, %d, %v", out, n, err)
	}
	if p.For(value) != opaque || p.For("fixed") != ph {
		t.Error("a value has lost its placeholder")
	}
	if n, err := base.Header(http.Header{"X": {opaque}}); n != 0 || err != nil {
		t.Errorf("the base has changed: %d, %v", n, err)
	}
	if one(t, "fixed", policy.InHeader).With(more).InBody() {
		t.Error("a body is read for the sake of what was added")
	}
	if n, err := (*Placeholders)(nil).With(more).Header(http.Header{"X": {opaque}}); n != 1 || err != nil {
		t.Errorf("with nothing before: %d, %v", n, err)
	}
	if s := fmt.Sprintf("%v %+v %#v", p, p, p); strings.Contains(s, "real") {
		t.Errorf("printed: %s", s)
	}
}

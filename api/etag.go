package api

import (
	"crypto/subtle"
	"fmt"
	"net/http"
	"strings"

	"github.com/egressd/egressd/store"
)

// etagOf is a strong ETag (RFC 9110 section 8.8.3) of version and revision: it changes with
// metadata too and says nothing of what is stored.
func etagOf(m store.Meta) string { return fmt.Sprintf(`"v%d.%d"`, m.CurrentVersion, m.Rev) }

// conditional says whether the client set a condition.
func conditional(c *call) bool { return len(c.r.Header.Values("If-Match")) > 0 }

// checkIfMatch compares strongly (RFC 9110 section 13.1.1): a weak tag matches nothing.
func (s *Server) checkIfMatch(c *call, m store.Meta) *failure {
	values := c.r.Header.Values("If-Match")
	if len(values) == 0 {
		if s.opt.RequireIfMatch && c.r.Method != http.MethodPost {
			return fail(http.StatusPreconditionRequired, CodePreconditionFailed, ReasonIfMatchRequired, "If-Match with the source's ETag is required")
		}
		return nil
	}
	want, found := etagOf(m), 0
	for tag := range strings.SplitSeq(strings.Join(values, ","), ",") {
		tag = strings.TrimSpace(tag)
		found |= subtle.ConstantTimeCompare([]byte(tag), []byte(want)) | subtle.ConstantTimeCompare([]byte(tag), []byte("*"))
	}
	if found != 1 {
		return failStale()
	}
	return nil
}

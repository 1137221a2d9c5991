package api

import (
	"net/http"
	"net/netip"
	"strings"

	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// OpsHandler serves /healthz, /readyz, /metrics and /api/v1/version without authentication, for
// a listener of its own. It refuses what comes from a page in a browser: another site's
// request, and a Host that is a name which is not ours (an address is let through, since
// probes and scrapers use it and no rebinding can).
func (s *Server) OpsHandler() http.Handler {
	metrics := promhttp.HandlerFor(s.opt.Registry, promhttp.HandlerOpts{DisableCompression: true})
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		secure(w.Header())
		c := &call{r: r, id: newID(), route: &route{status: http.StatusOK}}
		w.Header().Set("X-Request-Id", c.id)
		if f := s.guardOps(r); f != nil {
			s.write(w, c, answer{}, f)
			return
		}
		switch r.URL.EscapedPath() {
		case "/metrics":
			metrics.ServeHTTP(w, r)
		case "/healthz":
			s.write(w, c, answer{data: Health{Status: "ok"}}, nil)
		case "/readyz":
			ans, f := s.ready(r)
			s.write(w, c, ans, f)
		case base + "/version":
			s.write(w, c, answer{data: s.opt.Version}, nil)
		default:
			s.write(w, c, answer{}, failNotFound("resource"))
		}
	})
}

func (s *Server) guardOps(r *http.Request) *failure {
	host := hostOf(r.Host)
	if _, err := netip.ParseAddr(host); err != nil && !s.isOwn(r, host) {
		return s.checkHost(r)
	}
	if f := s.checkOrigin(r); f != nil {
		return f
	}
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		return fail(http.StatusMethodNotAllowed, CodeBadRequest, ReasonMethod, "only GET and HEAD").
			with("Allow", strings.Join([]string{http.MethodGet, http.MethodHead}, ", "))
	}
	return nil
}

func (s *Server) ready(r *http.Request) (answer, *failure) {
	if s.opt.Ready == nil {
		return answer{}, failUnavailable(ReasonNotReady, "readiness is not known", nil)
	}
	if err := s.opt.Ready(r.Context()); err != nil {
		return answer{}, failUnavailable(ReasonNotReady, "not ready; the log says why", err)
	}
	return answer{data: Health{Status: "ready"}}, nil
}

package proxy

import "net/http"

func (s *Server) filterMCP(*http.Request, *record) *refusal {
	return &refusal{status: http.StatusNotImplemented, code: codeInternal}
}

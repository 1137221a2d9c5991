package proxy

import "net/http"

func (s *Server) resign(r *http.Request, x *record, path, query string) (string, string, *refusal) {
	return path, query, &refusal{status: http.StatusNotImplemented, code: codeInternal}
}

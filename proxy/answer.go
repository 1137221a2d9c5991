package proxy

import (
	"net/http"
)

// inspectAnswer puts what a rule wants to see of an answer between the origin and the sandbox.
func (s *Server) inspectAnswer(r *http.Request, resp *http.Response, x *record) error {
	p := &x.plan
	if p.mcp != nil {
		if err := filterAnswer(p.mcp, r, resp); err != nil {
			return err
		}
	}
	if p.seal != nil {
		if err := p.seal.answer(r, resp); err != nil {
			return err
		}
	}
	if p.scrub != nil {
		return p.scrub.answer(r, resp)
	}
	return nil
}

package api

import (
	"context"
	"errors"
	"net/http"
	"time"
)

// ErrNoSandbox is what Policies.Explain returns for a sandbox that does not exist or is not of
// the asked team.
var ErrNoSandbox = errors.New("no such sandbox")

// AllTeams is the scope of a principal that is bound to no team.
const AllTeams = "*"

// Policies is what the management plane may ask about policy; the wiring implements it over
// the ruleset in force. Safe for concurrent use.
type Policies interface {
	// View describes the compiled policy in force, of one team or AllTeams.
	View(ctx context.Context, team string) (PolicyView, error)
	// Check compiles files as one set without putting it in force. The error is for failures
	// of the check itself; what is wrong with the files stands in the report.
	Check(ctx context.Context, files []PolicyFile) (PolicyReport, error)
	// Explain traces one decision of the policy in force. ErrNoSandbox for a sandbox that
	// team (or AllTeams) does not have; an ExplainError for a request that cannot be one.
	Explain(ctx context.Context, team string, r ExplainRequest) (ExplainResult, error)
	// Reload reads the policy directory again. A set that does not compile is reported and
	// the one in force stays.
	Reload(ctx context.Context) (PolicyReport, error)
}

// References tells what in the policy in force refers to a source. Safe for concurrent use.
type References interface {
	// Referrers lists the bindings that name the source, in file order.
	Referrers(team, name string) []Referrer
	// WithReferrers calls f with the same list while no other policy can come in force: what
	// f does and the list belong together. It returns f's error.
	WithReferrers(team, name string, f func(refs []Referrer) error) error
}

// Referrer is one binding that names a source.
type Referrer struct {
	Sandbox  string `json:"sandbox,omitempty"`
	Template string `json:"template,omitempty"`
	Binding  string `json:"binding"`
	File     string `json:"file"`
	Line     int    `json:"line"`
}

// Problem is one error or warning about a policy file.
type Problem struct {
	File    string `json:"file"`
	Line    int    `json:"line"`
	Column  int    `json:"column,omitempty"`
	Path    string `json:"path,omitempty"`
	Message string `json:"message"`
}

// PolicyFile is one YAML file to check.
type PolicyFile struct {
	Name    string `json:"name"`
	Content string `json:"content"`
}

// PolicyReport is the outcome of a check or a reload. OK means that Problems is empty.
type PolicyReport struct {
	OK       bool      `json:"ok"`
	Hash     string    `json:"hash,omitempty"` // of the set that was compiled
	Problems []Problem `json:"problems"`
	Warnings []Problem `json:"warnings"`
}

// PolicyView is the policy in force. Problems are those of the last reload when it was refused.
type PolicyView struct {
	Hash      string        `json:"hash"`
	LoadedAt  time.Time     `json:"loadedAt"`
	Sandboxes []SandboxView `json:"sandboxes"`
	Problems  []Problem     `json:"problems"`
	Warnings  []Problem     `json:"warnings"`
}

// SandboxView is one sandbox after the merge with its template. Network is the merged
// network block in the YAML's own field names.
type SandboxView struct {
	ID       string `json:"id"`
	Team     string `json:"team"`
	Template string `json:"template,omitempty"`
	Network  any    `json:"network,omitempty"`
}

// ExplainRequest is the flow to trace: an HTTP request, a connection of another protocol, or
// one thing that is asked for inside SSH. At most one of Exec, Subsystem, Shell and
// Forwarding is set, and none of them but with SSH.
type ExplainRequest struct {
	Sandbox    string            `json:"sandbox"`
	URL        string            `json:"url"`                // scheme://host[:port][/path]; tcp://host:port is of no known protocol
	Protocol   string            `json:"protocol,omitempty"` // default: from the URL's scheme
	Method     string            `json:"method,omitempty"`   // HTTP only; default GET
	Headers    map[string]string `json:"headers,omitempty"`  // HTTP only
	Exec       string            `json:"exec,omitempty"`     // the command line
	Subsystem  string            `json:"subsystem,omitempty"`
	Shell      bool              `json:"shell,omitempty"`
	Forwarding bool              `json:"forwarding,omitempty"`
}

// ExplainError says which fields of an ExplainRequest are wrong; its messages go to the client.
type ExplainError struct{ Fields map[string][]string }

// Error implements error.
func (*ExplainError) Error() string { return "the request to explain is not valid" }

// ExplainResult is a decision and the walk that led to it.
type ExplainResult struct {
	Action     string             `json:"action"` // deny | pass | inspect
	Reason     string             `json:"reason"`
	Rule       string             `json:"rule,omitempty"`
	Report     bool               `json:"report,omitempty"` // enforcement is report and the walk would have denied
	Credential *ExplainCredential `json:"credential,omitempty"`
	ClientCert *ExplainCredential `json:"clientCertificate,omitempty"`
	Steps      []ExplainStep      `json:"steps"`
}

// ExplainCredential names what would be projected, never its value.
type ExplainCredential struct {
	Rule       string `json:"rule"`
	Binding    string `json:"binding"`
	Source     string `json:"source"`
	Projection string `json:"projection,omitempty"`
	File       string `json:"file,omitempty"`
	Line       int    `json:"line,omitempty"`
}

// ExplainStep is one rule that was looked at.
type ExplainStep struct {
	Stage   string `json:"stage"` // traffic | protocol | credential | mode …
	Rule    string `json:"rule,omitempty"`
	File    string `json:"file,omitempty"`
	Line    int    `json:"line,omitempty"`
	Matched bool   `json:"matched"`
	Detail  string `json:"detail,omitempty"`
}

// MissingKeysError is what Options.CheckBound returns when a bound template needs keys that a
// new version would not have.
type MissingKeysError struct {
	Keys      []string
	Referrers []Referrer
}

// Error implements error.
func (*MissingKeysError) Error() string { return "a bound template needs keys that the spec lacks" }

func (s *Server) viewPolicies(c *call) (answer, *failure) {
	v, err := s.opt.Policies.View(c.ctx, c.who.Team)
	if err != nil {
		return answer{}, failUnavailable("", "the policy cannot be shown now", err)
	}
	v.Sandboxes, v.Problems, v.Warnings = nonNil(v.Sandboxes), nonNil(v.Problems), nonNil(v.Warnings)
	return answer{data: v}, nil
}

// PolicyCheck is the body of POST /policies/check.
type PolicyCheck struct {
	Files []PolicyFile `json:"files"`
}

func (s *Server) checkPolicies(c *call) (answer, *failure) {
	in := c.in.(*PolicyCheck)
	bad := fields{}
	for i, f := range in.Files {
		if f.Name == "" || len(f.Name) > 255 || hasControl(f.Name) {
			bad.add(at("files", i)+".name", "must be 1 to 255 characters without control characters")
		}
	}
	if len(in.Files) == 0 {
		bad.add("files", "must hold at least one file")
	}
	if len(bad) > 0 {
		return answer{}, failFields(bad)
	}
	rep, err := s.opt.Policies.Check(c.ctx, in.Files)
	if err != nil {
		return answer{}, failUnavailable("", "the policy cannot be checked now", err)
	}
	return answer{data: rep.filled()}, nil
}

func (s *Server) explainPolicy(c *call) (answer, *failure) {
	in := c.in.(*ExplainRequest)
	res, err := s.opt.Policies.Explain(c.ctx, c.who.Team, *in)
	var bad *ExplainError
	switch {
	case errors.As(err, &bad):
		return answer{}, failFields(bad.Fields)
	case errors.Is(err, ErrNoSandbox):
		return answer{}, failNotFound("sandbox")
	case err != nil:
		return answer{}, failUnavailable("", "the decision cannot be explained now", err)
	}
	res.Steps = nonNil(res.Steps)
	return answer{data: res}, nil
}

func (s *Server) reloadPolicies(c *call) (answer, *failure) {
	rep, err := s.opt.Policies.Reload(c.ctx)
	if err != nil {
		return answer{}, failUnavailable("", "the policy cannot be reloaded now; the one in force stays", err)
	}
	rep = rep.filled()
	if !rep.OK {
		f := fail(http.StatusUnprocessableEntity, CodeUnprocessable, ReasonPolicyInvalid, "the policy does not compile; the one in force stays")
		f.body.Details.Problems = rep.Problems
		return answer{}, f
	}
	return answer{data: rep}, nil
}

func (r PolicyReport) filled() PolicyReport {
	r.Problems, r.Warnings = nonNil(r.Problems), nonNil(r.Warnings)
	r.OK = len(r.Problems) == 0
	return r
}

func nonNil[T any](s []T) []T {
	if s == nil {
		return []T{}
	}
	return s
}

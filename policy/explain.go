package policy

import (
	"slices"
	"strings"
)

// Step is one thing that a decision looked at. Stage is sandbox, traffic, mode,
// inspect, protocol, credential or decision; Rule, File and Line are set where a rule
// was looked at.
type Step struct {
	Stage   string `json:"stage"`
	Rule    string `json:"rule,omitempty"`
	File    string `json:"file,omitempty"`
	Line    int    `json:"line,omitempty"`
	Matched bool   `json:"matched"`
	Detail  string `json:"detail"`
}

// Explain narrates the walk of Decide: every rule in order with the reason why it
// did or did not hold, up to the one that decided; the last Step is the decision.
func (s *Set) Explain(f *Flow) []Step {
	steps, _ := s.explain(f)
	return steps
}

func (s *Set) explain(f *Flow) ([]Step, Decision) {
	var tr tracer
	d := s.walk(f, &tr)
	return tr.steps, d
}

// tracer takes notes along a walk. All methods do nothing on nil.
type tracer struct {
	steps []Step
	stage string
}

func (tr *tracer) note(stage string, matched bool, detail string) {
	if tr != nil {
		tr.steps = append(tr.steps, Step{Stage: stage, Matched: matched, Detail: detail})
	}
}

func (tr *tracer) rule(stage string, r *rule, matched bool, detail string) {
	if tr != nil {
		tr.steps = append(tr.steps, Step{Stage: stage, Rule: r.label, File: r.at.file, Line: r.at.line, Matched: matched, Detail: detail})
	}
}

// miss notes a rule that does not hold, in the stage that is being walked.
func (tr *tracer) miss(r *rule, detail string) {
	if tr != nil {
		tr.rule(tr.stage, r, false, detail)
	}
}

// applied notes a credential rule that was taken.
func (tr *tracer) applied(r *CredentialRule) {
	if tr != nil {
		tr.rule("credential", &r.rule.rule, true, "projects "+string(r.Binding.Projection.Type)+" of source "+r.Binding.SourceRef)
	}
}

// disabled notes the rules for host that rollout keeps out of the walk.
func (tr *tracer) disabled(rules []*credentialRule, host string) {
	if tr == nil {
		return
	}
	for _, r := range rules {
		if r.disabled && (len(r.domains) == 0 || slices.ContainsFunc(r.domains, func(p DomainPattern) bool { return p.Match(host) })) {
			tr.miss(&r.rule, "rollout is disabled")
		}
	}
}

// enter says which stage misses belong to.
func (tr *tracer) enter(stage string) {
	if tr != nil {
		tr.stage = stage
	}
}

// decided ends the narration and hands the decision through.
func (tr *tracer) decided(d Decision) Decision {
	if tr != nil {
		tr.steps = append(tr.steps, Step{Stage: "decision", Rule: d.Rule, Matched: d.Action != Deny, Detail: d.String()})
	}
	return d
}

// String says a decision in a line, for explanations and logs.
func (d Decision) String() string {
	if d.NeedAddr {
		return "resolve the name and decide again"
	}
	var b strings.Builder
	b.WriteString(d.Action.String())
	b.WriteString(" (" + d.Reason.String() + ")")
	if d.Report {
		b.WriteString(", would be denied: enforcement is report")
	}
	if d.Credential != nil {
		b.WriteString(", credential " + d.Credential.Name)
	}
	if d.ClientCert != nil {
		b.WriteString(", client certificate " + d.ClientCert.Name)
	}
	if d.StripClientAuth {
		b.WriteString(", the client's own credentials removed")
	}
	if d.MCP != nil {
		b.WriteString(", tools limited by " + d.MCP.String())
	}
	if d.Proxy != nil {
		b.WriteString(", by way of a " + string(d.Proxy.Type) + " proxy")
	}
	return b.String()
}

// String names the rules.
func (r *MCPRules) String() string {
	names := make([]string, len(r.rules))
	for i, p := range r.rules {
		names[i] = p.label
	}
	return strings.Join(names, ", ")
}

package proxy

import (
	"crypto/rand"
	"encoding/hex"
	"net/http"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/egressd/egressd/inject"
	"github.com/egressd/egressd/internal/audit"
	"github.com/egressd/egressd/policy"
)

// idSource makes request ids: a random part of the process and a counter.
type idSource struct {
	prefix string
	n      atomic.Uint64
}

func (g *idSource) init() {
	var b [6]byte
	_, _ = rand.Read(b[:]) // never fails (crypto/rand)
	g.prefix = hex.EncodeToString(b[:]) + "-"
}

func (g *idSource) next() string {
	b := make([]byte, 0, 32)
	b = append(b, g.prefix...)
	return string(strconv.AppendUint(b, g.n.Add(1), 36))
}

// record is all that one exchange or tunnel needs while it lasts. It belongs to one
// goroutine.
type record struct {
	facts
	plan   plan
	line   audit.Record
	flight flight
}

// facts are what the audit line says.
type facts struct {
	srv      *Server
	id       string
	start    time.Time
	way      way
	sess     *session
	tunnel   *tunnel
	dest     dest
	protocol string
	method   string
	path     string
	flow     policy.Flow

	grpc     bool   // who asks speaks gRPC
	leak     *leak  // of the body; nil: it is not looked at
	share    *share // of what the sandbox may have held in memory
	cancel   func() // ends it apart from its connection; nil: it goes with that
	ending   bool   // it has its last word; guarded by the flights
	decision policy.Decision
	source   *inject.Projection // request-layer credential that was projected
	cert     *inject.Projection // TLS-layer credential that was offered
	skipped  string             // code of a fail-open credential that could not be resolved

	status   int
	bytesIn  int64
	bytesOut int64
	outcome  outcome
	code     string
	detail   string
	rule     string
}

// records are used again, since what one exchange needs is a few KiB in all.
var records = sync.Pool{New: func() any {
	x := &record{}
	x.flight.ready()
	return x
}}

func (t *tunnel) begin(s *Server) *record {
	x, _ := records.Get().(*record)
	x.srv, x.id, x.start = s, s.ids.next(), time.Now()
	x.way, x.sess, x.tunnel, x.dest = t.way, t.sess, t, t.dest
	return x
}

// over ends an exchange of which nothing is in use any more: x is another's afterwards.
func (x *record) over() {
	x.finish()
	x.flight.clear()
	x.facts, x.plan = facts{}, plan{}
	records.Put(x)
}

// refuse answers with ref and records it.
func (x *record) refuse(w http.ResponseWriter, ref *refusal) {
	x.refused(ref, x.answer(w, ref))
}

// scrubs is what was found in the answer.
func (x *record) scrubs() int {
	if x.plan.scrub == nil {
		return 0
	}
	x.srv.metrics.scrubbed.Add(float64(x.plan.scrub.found))
	return x.plan.scrub.found
}

// answer writes a refusal in the words of who asked.
func (x *record) answer(w http.ResponseWriter, ref *refusal) int64 {
	if x.grpc {
		ref.writeGRPC(w, x.id)
		return 0
	}
	return int64(ref.write(w, x.id))
}

// refused records a refusal whose answer has been written already.
func (x *record) refused(ref *refusal, n int64) {
	x.status, x.code, x.detail, x.bytesOut = ref.status, ref.code, ref.detail, n
	if ref.rule != "" {
		x.rule = ref.rule
	}
	x.outcome = outcomeDenied
	if ref.status >= http.StatusInternalServerError {
		x.outcome = outcomeError
	}
	x.srv.metrics.refusals.WithLabelValues(ref.code).Inc()
	x.finish()
}

// finish writes the audit line and counts. It is called once.
func (x *record) finish() {
	m := x.srv.metrics
	if ref := x.leak.refusal(); ref != nil && x.code == "" { // the origin answered before it had all of the body
		x.code, x.detail, x.outcome = ref.code, ref.detail, outcomeDenied
		m.refusals.WithLabelValues(ref.code).Inc()
	}
	d := time.Since(x.start)
	m.decisions[x.outcome].Inc()
	m.duration.Observe(d.Seconds())
	m.bytesIn.Add(float64(x.bytesIn))
	m.bytesOut.Add(float64(x.bytesOut))
	a := &x.line
	*a = audit.Record{
		Time: x.start, RequestID: x.id, Way: x.way.String(), Destination: x.dest.String(),
		Protocol: x.protocol, Method: x.method, Path: x.path, Status: x.status,
		BytesIn: x.bytesIn, BytesOut: x.bytesOut, Duration: d,
		Outcome: x.outcome.String(), Code: x.code, Detail: x.detail, Rule: x.rule, Report: x.decision.Report,
		CredentialSkipped: x.skipped, Scrubbed: x.scrubs(),
	}
	if x.rule == "" {
		a.Rule = x.decision.Rule
	}
	if a.Detail == "" {
		a.Detail = x.decision.Reason.String()
	}
	if b := x.sess.bound.Load(); b != nil {
		a.Sandbox, a.Team = b.sandbox.ID, b.sandbox.Team
	}
	if x.flow.Addr.IsValid() {
		a.Address = x.flow.Addr
	}
	if c := x.decision.Credential; c != nil && x.source != nil {
		a.CredentialRule, a.Source, a.Version = c.Name, x.source.Source, x.source.Version
		m.injected.Inc()
	}
	if c := x.decision.ClientCert; c != nil && x.cert != nil {
		a.ClientCertRule, a.ClientCertSource, a.ClientCertVersion = c.Name, x.cert.Source, x.cert.Version
	}
	x.srv.audit.Write(a)
}

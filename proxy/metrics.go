package proxy

import (
	"github.com/prometheus/client_golang/prometheus"
)

// outcome is the closed set of ways in which an exchange can end.
type outcome uint8

const (
	outcomeAllowed outcome = iota
	outcomeDenied
	outcomeError
	outcomeAborted // the client or the origin broke off
	outcomes
)

func (o outcome) String() string {
	return [...]string{"allowed", "denied", "error", "aborted"}[o]
}

// way is how a connection came in.
type way uint8

const (
	wayExplicit way = iota
	wayAbsolute
	waySOCKS
	wayRedirect
	wayTProxy
)

func (w way) String() string {
	return [...]string{"connect", "absolute", "socks5", "redirect", "tproxy"}[w]
}

// metrics have labels from closed sets only, so that no sandbox can make series.
type metrics struct {
	decisions   [outcomes]prometheus.Counter
	refusals    *prometheus.CounterVec
	injected    prometheus.Counter
	scrubbed    prometheus.Counter
	duration    prometheus.Histogram
	bytesIn     prometheus.Counter
	bytesOut    prometheus.Counter
	connections prometheus.Gauge
	tunnels     prometheus.Gauge
	panics      prometheus.Counter
	dials       *prometheus.CounterVec
}

func newMetrics(reg prometheus.Registerer) (*metrics, error) {
	m := &metrics{
		refusals: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "egressd_refusals_total", Help: "Answers of egressd's own, by X-Egressd-Error code."}, []string{"code"}),
		injected: prometheus.NewCounter(prometheus.CounterOpts{Name: "egressd_injections_total", Help: "Requests that left with a credential."}),
		scrubbed: prometheus.NewCounter(prometheus.CounterOpts{Name: "egressd_scrubbed_total", Help: "Projected values that were taken out of answers."}),
		duration: prometheus.NewHistogram(prometheus.HistogramOpts{Name: "egressd_exchange_duration_seconds", Help: "From request head to the last byte of the answer.",
			Buckets: []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60, 300}}),
		bytesIn:     prometheus.NewCounter(prometheus.CounterOpts{Name: "egressd_sandbox_received_bytes_total", Help: "Body and tunnel bytes received from sandboxes."}),
		bytesOut:    prometheus.NewCounter(prometheus.CounterOpts{Name: "egressd_sandbox_sent_bytes_total", Help: "Body and tunnel bytes sent to sandboxes."}),
		connections: prometheus.NewGauge(prometheus.GaugeOpts{Name: "egressd_connections", Help: "Client connections open."}),
		tunnels:     prometheus.NewGauge(prometheus.GaugeOpts{Name: "egressd_relays", Help: "Passthrough tunnels and upgraded connections open."}),
		panics:      prometheus.NewCounter(prometheus.CounterOpts{Name: "egressd_panics_total", Help: "Panics recovered, each in one connection."}),
		dials:       prometheus.NewCounterVec(prometheus.CounterOpts{Name: "egressd_upstream_dials_total", Help: "Upstream connections opened, by result."}, []string{"result"}),
	}
	vec := prometheus.NewCounterVec(prometheus.CounterOpts{Name: "egressd_decisions_total", Help: "Exchanges and tunnels by outcome."}, []string{"outcome"})
	for o := range outcomes {
		m.decisions[o] = vec.WithLabelValues(o.String())
	}
	for _, c := range []prometheus.Collector{vec, m.refusals, m.injected, m.scrubbed, m.duration, m.bytesIn, m.bytesOut, m.connections, m.tunnels, m.panics, m.dials} {
		if err := reg.Register(c); err != nil {
			return nil, err
		}
	}
	return m, nil
}

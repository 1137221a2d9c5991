package api

import (
	"fmt"
	"net/http"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// metrics of the management plane. Every label has a closed set of values: patterns of the
// route table, methods of HTTP, status codes, reasons of ours.
type metrics struct {
	requests *prometheus.CounterVec
	took     *prometheus.HistogramVec
	refusals *prometheus.CounterVec
}

func newMetrics(reg *prometheus.Registry) (*metrics, error) {
	m := &metrics{
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "egressd_api_requests_total", Help: "Requests to the management API.",
		}, []string{"route", "method", "status"}),
		took: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "egressd_api_request_seconds", Help: "Time to answer a request to the management API.",
			Buckets: []float64{.001, .003, .01, .03, .1, .3, 1, 3, 10},
		}, []string{"route"}),
		refusals: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "egressd_api_authentication_failures_total", Help: "Requests to the management API that nobody was accepted for.",
		}, []string{"reason"}),
	}
	for _, c := range []prometheus.Collector{m.requests, m.took, m.refusals} {
		if err := reg.Register(c); err != nil {
			return nil, fmt.Errorf("api: register metrics: %w", err)
		}
	}
	return m, nil
}

func (m *metrics) answered(pattern, method string, status int, took time.Duration) {
	m.requests.WithLabelValues(pattern, methodLabel(method), strconv.Itoa(status)).Inc()
	m.took.WithLabelValues(pattern).Observe(took.Seconds())
}

func (m *metrics) refused(reason string) { m.refusals.WithLabelValues(reason).Inc() }

func methodLabel(method string) string {
	switch method {
	case http.MethodGet, http.MethodHead, http.MethodPost, http.MethodPut, http.MethodPatch, http.MethodDelete, http.MethodOptions:
		return method
	}
	return "other"
}

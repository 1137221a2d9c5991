package main

import (
	"context"
	"io"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"github.com/egressd/egressd/internal/audit"
	"github.com/egressd/egressd/internal/config"
)

func (d *daemon) openAudit(context.Context) (err error) {
	log := d.log.Named("audit")
	d.audit, err = audit.Open(audit.Options{
		File: d.cfg.AuditFile(), Overflow: audit.Overflow(d.cfg.Audit.Overflow),
		OnError: func(err error) {
			if err != nil {
				log.Error("audit log cannot be written: records wait in memory", zap.Error(err))
			} else {
				log.Info("audit log is written again")
			}
		},
	})
	if err != nil {
		return fail(exitStore, "%w: set --audit-file to a file that this user may write", err)
	}
	d.onClose(func() {
		if err := d.audit.Close(); err != nil {
			d.log.Error("audit log did not close well", zap.Error(err))
		}
	})
	for name, c := range map[string]struct {
		help string
		get  func() uint64
	}{
		"egressd_audit_written_total": {"Audit records written.", d.audit.Written},
		"egressd_audit_dropped_total": {"Audit records dropped because the log could not keep up.", d.audit.Dropped},
	} {
		get := c.get
		err := d.registry.Register(prometheus.NewCounterFunc(prometheus.CounterOpts{Name: name, Help: c.help}, func() float64 { return float64(get()) }))
		if err != nil {
			return usage("%w", err)
		}
	}
	return nil
}

// openRunAudit records a run only where --audit-file asks for it.
func openRunAudit(cfg *config.Config) (*audit.Log, func(), error) {
	o := audit.Options{File: cfg.Audit.File, Overflow: audit.Overflow(cfg.Audit.Overflow)}
	var l *audit.Log
	var err error
	if o.File == "" {
		l, err = audit.NewWriter(io.Discard, o)
	} else {
		l, err = audit.Open(o)
	}
	if err != nil {
		return nil, nil, fail(exitStore, "%w", err)
	}
	return l, func() { _ = l.Close() }, nil // the command's end is not the place to wait for a disk
}

package main

import (
	"strings"

	"go.uber.org/zap"

	"github.com/egressd/egressd/internal/hardening"
)

// hardenProcess keeps other processes out of this one's memory and looks at the
// environment. It is called before a secret is read.
func hardenProcess(log *zap.Logger, environ []string) error {
	if err := hardening.HardenProcess(); err != nil {
		return usage("%w", err)
	}
	warnings, err := checkEnvironment(environ)
	if err != nil {
		return err
	}
	for _, w := range warnings {
		log.Warn(w)
	}
	return nil
}

// checkEnvironment refuses what would weaken the runtime, and lists what is set but not
// followed.
func checkEnvironment(environ []string) (warnings []string, err error) {
	if err := hardening.CheckEnvironment(environ); err != nil {
		return nil, usage("%s", strings.TrimPrefix(err.Error(), hardening.ErrEnvironment.Error()+": "))
	}
	for _, kv := range environ {
		name, value, _ := strings.Cut(kv, "=")
		if hint, ok := notFollowed(name); ok && value != "" {
			warnings = append(warnings, name+" is set and not followed"+hint)
		}
	}
	return warnings, nil
}

// notFollowed tells the variables that programs like this one usually follow and that
// egressd does not: who can set them could send credentials elsewhere.
func notFollowed(name string) (hint string, ok bool) {
	switch strings.ToUpper(name) {
	case "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY":
		return "", true
	case "SSL_CERT_FILE", "SSL_CERT_DIR":
		return ": use upstream.extraCAFiles", true
	}
	return "", false
}

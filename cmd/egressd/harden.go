package main

import (
	"go.uber.org/zap"
)

// hardenProcess looks at the environment and keeps other processes out of this one's
// memory. It is called before a secret is read.
func hardenProcess(log *zap.Logger, environ []string) error {
	warnings, err := checkEnvironment(environ)
	if err != nil {
		return err
	}
	for _, w := range warnings {
		log.Warn(w)
	}
	return nil
}

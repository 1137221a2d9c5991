// Package hardening makes the process a poor place to read secrets from, and refuses an
// environment that would change how the Go runtime resolves, verifies or parses.
package hardening

import (
	"errors"
	"fmt"
	"strings"
)

// ErrEnvironment: a variable is set that egressd does not start with.
var ErrEnvironment = errors.New("environment is not safe")

// CheckEnvironment looks at environ, which is as of os.Environ. It refuses SSLKEYLOGFILE, which
// asks for the keys of every connection, and each setting of GODEBUG that is not known to
// be harmless: some bring back old behaviour of TLS, certificates, DNS and HTTP. The error
// is one line and says what to do; it names no value.
func CheckEnvironment(environ []string) error {
	for _, kv := range environ {
		name, value, _ := strings.Cut(kv, "=")
		if value == "" {
			continue
		}
		switch {
		case strings.EqualFold(name, "SSLKEYLOGFILE"):
			return fmt.Errorf("%w: %s is set, which asks for TLS keys to be written down: unset it", ErrEnvironment, name)
		case name == "GODEBUG":
			for setting := range strings.SplitSeq(value, ",") {
				key, _, _ := strings.Cut(strings.TrimSpace(setting), "=")
				if key != "" && !harmless(key) {
					return fmt.Errorf("%w: GODEBUG sets %q, which can weaken TLS, DNS or HTTP: take it out of GODEBUG", ErrEnvironment, key)
				}
			}
		}
	}
	return nil
}

// harmless settings watch the runtime or tune its memory, or make cryptography
// stricter. All others are refused, also those that later versions of Go bring.
func harmless(key string) bool {
	switch key {
	case "gctrace", "inittrace", "schedtrace", "scheddetail", "scavtrace", "gcpacertrace", "madvdontneed",
		"asyncpreemptoff", "disablethp", "memprofilerate", "fips140", "containermaxprocs", "updatemaxprocs":
		return true
	}
	return strings.HasPrefix(key, "cpu.")
}

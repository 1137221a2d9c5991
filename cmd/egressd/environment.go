package main

import (
	"strings"
)

// ignored tells the variables that programs like this one usually follow and that
// egressd does not: who can set them could send credentials elsewhere or
// write down the keys of a connection. The configuration has a key for what is wanted.
func ignored(name string) (hint string, ok bool) {
	switch strings.ToUpper(name) {
	case "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "SSLKEYLOGFILE":
		return "", true
	case "SSL_CERT_FILE", "SSL_CERT_DIR":
		return "use upstream.extraCAFiles", true
	}
	return "", false
}

// checkEnvironment refuses what would change how the runtime resolves, verifies or
// parses, and lists what is set but not followed.
func checkEnvironment(environ []string) (warnings []string, err error) {
	for _, kv := range environ {
		name, value, _ := strings.Cut(kv, "=")
		if value == "" {
			continue
		}
		if name == "GODEBUG" {
			return nil, usage("GODEBUG is set and could weaken TLS, DNS or HTTP parsing: unset it")
		}
		hint, ok := ignored(name)
		if !ok {
			continue
		}
		w := name + " is set and not followed"
		if hint != "" {
			w += ": " + hint
		}
		warnings = append(warnings, w)
	}
	return warnings, nil
}

package config

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
)

// shape is the form that a key's value has in YAML.
type shape uint8

const (
	shapeString shape = iota
	shapeInt
	shapeDuration
	shapeSize
	shapeList
	shapeMap
)

func (s shape) String() string {
	return [...]string{"a string", "a whole number", "a duration such as 30s", "a size such as 64KiB", "a list of strings", "a mapping of name to address"}[s]
}

// flagType is what --help shows after the flag's name.
func (s shape) flagType() string {
	return [...]string{"string", "int", "duration", "size", "list", "name=addr"}[s]
}

// Key is one key of the configuration.
type Key struct {
	Path  string // as in the file: upstream.allowCIDRs
	Usage string
	shape shape
	// set replaces the value: one string for a scalar, any number for a list or a
	// mapping (then each "name=value").
	set func(*Config, []string) error
	// get is the value as it stands in YAML: string, int, []string or map[string]string.
	get func(*Config) any
	// unsupported refuses a value other than the default.
	unsupported bool
}

// Flag is the key's flag name without dashes: upstream-allow-cidrs.
func (k Key) Flag() string { return kebab(k.Path) }

// Env is the key's environment variable: EGRESSD_UPSTREAM_ALLOW_CIDRS.
func (k Key) Env() string {
	return "EGRESSD_" + strings.ToUpper(strings.ReplaceAll(kebab(k.Path), "-", "_"))
}

// Keys lists every key in the order of the file.
func Keys() []Key {
	return slices.Concat(listenKeys(), apiKeys(), upstreamKeys(), limitKeys())
}

func listenKeys() []Key {
	return []Key{
		text("stateDir", "directory (0700) of CA, sealing keys, store and audit log", func(c *Config) *string { return &c.StateDir }),
		text("listen.proxy", "address of the forward proxy: HTTP (CONNECT, absolute-form) and SOCKS5", func(c *Config) *string { return &c.Listen.Proxy }),
		text("listen.redirect", "transparent proxy behind NAT REDIRECT (Linux), like :15001; empty: none", func(c *Config) *string { return &c.Listen.Redirect }),
		text("listen.tproxy", "transparent proxy behind TPROXY (Linux, CAP_NET_ADMIN); empty: none", func(c *Config) *string { return &c.Listen.TProxy }),
		text("listen.dns", "policy DNS for sandboxes, UDP and TCP, like :15053; empty: none", func(c *Config) *string { return &c.Listen.DNS }),
		text("listen.ops", "address of /healthz /readyz /metrics, empty for none", func(c *Config) *string { return &c.Listen.Ops }),
	}
}

func apiKeys() []Key {
	return []Key{
		text("api.socket", "unix socket of the API (0600); empty: <stateDir>/api.sock", func(c *Config) *string { return &c.API.Socket }),
		text("api.listen", "TCP address of the API, tokens only; empty: none", func(c *Config) *string { return &c.API.Listen }),
		list("api.hosts", "Host names that the API answers to besides localhost, egressd and its own addresses", func(c *Config) *[]string { return &c.API.Hosts }),
		text("api.tls.certFile", "certificate of the API's TCP address", func(c *Config) *string { return &c.API.TLS.CertFile }),
		text("api.tls.keyFile", "its private key", func(c *Config) *string { return &c.API.TLS.KeyFile }),
		text("api.tls.clientCAFile", "CA that API clients must have a certificate of, besides their token", func(c *Config) *string { return &c.API.TLS.ClientCAFile }),
		text("policy.dir", "directory of the policy's *.yaml files", func(c *Config) *string { return &c.Policy.Dir }),
		text("store.url", "empty: sqlite:<stateDir>/store.db", func(c *Config) *string { return &c.Store.URL }),
		text("store.keyFile", "sealing key (0600); empty: <stateDir>/keys/seal.key", func(c *Config) *string { return &c.Store.KeyFile }),
		later(text("store.key.provider", "custody of the sealing key (not supported yet)", func(c *Config) *string { return &c.Store.KeyProvider })),
		text("intercept.caCertFile", "interception CA; empty: an ECDSA P-256 CA of its own in stateDir", func(c *Config) *string { return &c.Intercept.CACertFile }),
		text("intercept.caKeyFile", "its private key", func(c *Config) *string { return &c.Intercept.CAKeyFile }),
		duration("intercept.leafTTL", "lifetime of the certificates shown to sandboxes", func(c *Config) *time.Duration { return &c.Intercept.LeafTTL }),
	}
}

func upstreamKeys() []Key {
	return []Key{
		list("upstream.extraCAFiles", "CA files (PEM) added to the system's roots", func(c *Config) *[]string { return &c.Upstream.ExtraCAFiles }),
		list("upstream.crlFiles", "revocation lists (PEM or DER): what they name is refused", func(c *Config) *[]string { return &c.Upstream.CRLFiles }),
		hosts("upstream.hosts", "name=address, asked before DNS", func(c *Config) *map[string]netip.Addr { return &c.Upstream.Hosts }),
		list("upstream.resolvers", "DNS servers, host:port; none: the system's", func(c *Config) *[]string { return &c.Upstream.Resolvers }),
		prefixes("upstream.allowCIDRs", "private or loopback ranges that may be dialled", func(c *Config) *[]netip.Prefix { return &c.Upstream.AllowCIDRs }),
		later(text("upstream.proxy", "corporate proxy for all that leaves (not supported yet)", func(c *Config) *string { return &c.Upstream.Proxy })),
		duration("upstream.dialTimeout", "longest TCP connect", func(c *Config) *time.Duration { return &c.Upstream.DialTimeout }),
		duration("upstream.responseHeaderTimeout", "longest wait for an answer's head, 0 for none", func(c *Config) *time.Duration { return &c.Upstream.ResponseHeaderTimeout }),
	}
}

func limitKeys() []Key {
	return []Key{
		number("limits.connections", "open connections in all", func(c *Config) *int { return &c.Limits.Connections }),
		number("limits.connectionsPerSandbox", "open connections of one sandbox", func(c *Config) *int { return &c.Limits.ConnectionsPerSandbox }),
		size("limits.headerBytes", "largest head of a request", func(c *Config) *int64 { return &c.Limits.HeaderBytes }),
		size("limits.rewriteBodyBytes", "largest body that a placeholder rule may rewrite", func(c *Config) *int64 { return &c.Limits.RewriteBodyBytes }),
		size("limits.bandwidthPerSandbox", "bytes per second of one sandbox, each way; 0 for no limit", func(c *Config) *int64 { return &c.Limits.BandwidthPerSandbox }),
		duration("limits.handshakeTimeout", "longest TLS handshake, on either side", func(c *Config) *time.Duration { return &c.Limits.HandshakeTimeout }),
		duration("limits.idleTimeout", "longest silence on a connection", func(c *Config) *time.Duration { return &c.Limits.IdleTimeout }),
		duration("limits.drainTimeout", "time for what is open at SIGTERM", func(c *Config) *time.Duration { return &c.Limits.DrainTimeout }),
		text("log.level", "debug, info, warn or error", func(c *Config) *string { return &c.Log.Level }),
		text("log.format", "json or console, on stderr", func(c *Config) *string { return &c.Log.Format }),
		text("audit.file", "audit log; empty: <stateDir>/audit.jsonl", func(c *Config) *string { return &c.Audit.File }),
		text("audit.overflow", "when the audit log cannot keep up: drop (counted) or block", func(c *Config) *string { return &c.Audit.Overflow }),
	}
}

func later(k Key) Key {
	k.unsupported = true
	return k
}

func text(path, usage string, at func(*Config) *string) Key {
	return Key{Path: path, Usage: usage, shape: shapeString,
		set: func(c *Config, v []string) error { *at(c) = v[0]; return nil },
		get: func(c *Config) any { return *at(c) }}
}

func number(path, usage string, at func(*Config) *int) Key {
	return Key{Path: path, Usage: usage, shape: shapeInt,
		set: func(c *Config, v []string) error {
			n, err := strconv.Atoi(v[0])
			if err != nil {
				return errShape(shapeInt)
			}
			*at(c) = n
			return nil
		},
		get: func(c *Config) any { return *at(c) }}
}

func duration(path, usage string, at func(*Config) *time.Duration) Key {
	return Key{Path: path, Usage: usage, shape: shapeDuration,
		set: func(c *Config, v []string) error {
			d, err := time.ParseDuration(v[0])
			if err != nil {
				return errShape(shapeDuration)
			}
			*at(c) = d
			return nil
		},
		get: func(c *Config) any { return shortDuration(*at(c)) }}
}

func size(path, usage string, at func(*Config) *int64) Key {
	return Key{Path: path, Usage: usage, shape: shapeSize,
		set: func(c *Config, v []string) error {
			n, err := parseSize(v[0])
			if err != nil {
				return err
			}
			*at(c) = n
			return nil
		},
		get: func(c *Config) any { return formatSize(*at(c)) }}
}

func list(path, usage string, at func(*Config) *[]string) Key {
	return Key{Path: path, Usage: usage, shape: shapeList,
		set: func(c *Config, v []string) error { *at(c) = slices.Clone(v); return nil },
		get: func(c *Config) any { return append([]string{}, *at(c)...) }}
}

func prefixes(path, usage string, at func(*Config) *[]netip.Prefix) Key {
	return Key{Path: path, Usage: usage, shape: shapeList,
		set: func(c *Config, v []string) error {
			out := make([]netip.Prefix, 0, len(v))
			for _, s := range v {
				p, err := netip.ParsePrefix(s)
				if err != nil || p != p.Masked() {
					return fmt.Errorf("%q is not an address range such as 10.0.0.0/8", s)
				}
				out = append(out, p)
			}
			*at(c) = out
			return nil
		},
		get: func(c *Config) any {
			out := make([]string, 0, len(*at(c)))
			for _, p := range *at(c) {
				out = append(out, p.String())
			}
			return out
		}}
}

func hosts(path, usage string, at func(*Config) *map[string]netip.Addr) Key {
	return Key{Path: path, Usage: usage, shape: shapeMap,
		set: func(c *Config, v []string) error {
			out := make(map[string]netip.Addr, len(v))
			for _, s := range v {
				name, value, ok := strings.Cut(s, "=")
				addr, err := netip.ParseAddr(value)
				if !ok || name == "" || err != nil || addr.Zone() != "" {
					return fmt.Errorf("%q is not name=address such as api.internal=10.0.0.5", s)
				}
				name = strings.TrimSuffix(strings.ToLower(name), ".")
				if _, dup := out[name]; dup {
					return fmt.Errorf("%q is named twice", name)
				}
				out[name] = addr
			}
			*at(c) = out
			return nil
		},
		get: func(c *Config) any {
			out := make(map[string]string, len(*at(c)))
			for name, addr := range *at(c) {
				out[name] = addr.String()
			}
			return out
		}}
}

func errShape(s shape) error { return fmt.Errorf("want %s", s) }

var units = [...]struct {
	suffix string
	bytes  int64
}{{"GiB", 1 << 30}, {"MiB", 1 << 20}, {"KiB", 1 << 10}, {"B", 1}, {"", 1}}

func parseSize(s string) (int64, error) {
	for _, u := range units {
		digits, ok := strings.CutSuffix(s, u.suffix)
		if !ok {
			continue
		}
		n, err := strconv.ParseInt(digits, 10, 64)
		if err != nil || n < 0 || n > (1<<62)/u.bytes {
			break
		}
		return n * u.bytes, nil
	}
	return 0, errShape(shapeSize)
}

func formatSize(n int64) string {
	for _, u := range units[:3] {
		if n != 0 && n%u.bytes == 0 {
			return strconv.FormatInt(n/u.bytes, 10) + u.suffix
		}
	}
	return strconv.FormatInt(n, 10)
}

// shortDuration is d without the zero parts that time.Duration prints: 24h, not 24h0m0s.
func shortDuration(d time.Duration) string {
	if d == 0 {
		return "0"
	}
	s := d.String()
	if t, ok := strings.CutSuffix(s, "m0s"); ok {
		s = t + "m"
		if t, ok := strings.CutSuffix(s, "h0m"); ok {
			s = t + "h"
		}
	}
	return s
}

// kebab turns upstream.extraCAFiles into upstream-extra-ca-files.
func kebab(path string) string {
	r := []rune(path)
	var b strings.Builder
	for i, c := range r {
		switch {
		case c == '.':
			b.WriteByte('-')
			continue
		case i > 0 && unicode.IsUpper(c) && unicode.IsLower(r[i-1]):
			b.WriteByte('-')
		case i > 0 && unicode.IsUpper(c) && unicode.IsUpper(r[i-1]) && i+1 < len(r) && unicode.IsLower(r[i+1]) && r[i+1] != 's':
			b.WriteByte('-') // the last capital of an acronym begins a word: CAFiles; not so CIDRs
		}
		b.WriteRune(unicode.ToLower(c))
	}
	return b.String()
}

// entries is the value of a key as the strings that set takes.
func entries(v any) []string {
	switch v := v.(type) {
	case string:
		return []string{v}
	case int:
		return []string{strconv.Itoa(v)}
	case []string:
		return v
	case map[string]string:
		out := make([]string, 0, len(v))
		for _, name := range slices.Sorted(maps.Keys(v)) {
			out = append(out, name+"="+v[name])
		}
		return out
	}
	return nil
}

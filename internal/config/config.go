// Package config holds the daemon's own configuration: one strict YAML document, an
// environment variable and a flag for every key, flag over environment over file over
// default. A Config is a value that nothing changes after Load.
package config

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// APIVersion is the only value of apiVersion.
const APIVersion = "egressd/v1"

// Config is the daemon's configuration. Paths are as written, relative ones to the
// working directory; the methods below give those that are derived from stateDir.
type Config struct {
	StateDir  string
	Listen    Listen
	API       API
	Policy    Policy
	Store     Store
	Intercept Intercept
	Upstream  Upstream
	Limits    Limits
	Log       Log
	Audit     Audit
}

// Listen holds the addresses of the data plane and of the ops endpoints, "" for none.
type Listen struct{ Proxy, Redirect, TProxy, DNS, Ops string }

// API says where the management API answers.
type API struct {
	Socket string   // "" : <stateDir>/api.sock
	Listen string   // "" : the socket alone
	Hosts  []string // Host names that it answers to besides localhost, egressd and its own addresses
	TLS    TLS
}

// TLS is the certificate of the API's TCP listener.
type TLS struct{ CertFile, KeyFile, ClientCAFile string }

// Policy says where the policy set is.
type Policy struct{ Dir string }

// Store says where sources are kept and with which key they are sealed.
type Store struct {
	URL         string // "" : sqlite:<stateDir>/store.db
	KeyFile     string // "" : <stateDir>/keys/seal.key
	KeyProvider string // not supported yet
}

// Intercept is the CA that sandboxes trust.
type Intercept struct {
	CACertFile, CAKeyFile string // both "" : made at first start in stateDir
	LeafTTL               time.Duration
}

// Upstream says how egressd reaches origins.
type Upstream struct {
	ExtraCAFiles          []string
	CRLFiles              []string
	Hosts                 map[string]netip.Addr
	Resolvers             []string
	AllowCIDRs            []netip.Prefix
	Proxy                 string
	DialTimeout           time.Duration
	ResponseHeaderTimeout time.Duration // 0: none
}

// Limits bound what one daemon and one sandbox may use. Sizes are in bytes.
type Limits struct {
	Connections           int
	ConnectionsPerSandbox int
	HeaderBytes           int64
	RewriteBodyBytes      int64
	BandwidthPerSandbox   int64 // per second and direction; 0: none
	HandshakeTimeout      time.Duration
	IdleTimeout           time.Duration
	DrainTimeout          time.Duration
}

// Log is the operator's log on stderr.
type Log struct {
	Level  string // debug | info | warn | error
	Format string // json | console
}

// Audit is the record of decisions.
type Audit struct {
	File     string // "" : <stateDir>/audit.jsonl
	Overflow string // drop | block
}

// Default is the configuration of an empty file.
func Default() Config {
	return Config{
		StateDir:  "/var/lib/egressd",
		Listen:    Listen{Proxy: "127.0.0.1:3128", Ops: "127.0.0.1:9464"},
		Policy:    Policy{Dir: "configs/policy"},
		Intercept: Intercept{LeafTTL: 24 * time.Hour},
		Upstream:  Upstream{DialTimeout: 10 * time.Second},
		Limits: Limits{
			Connections: 20000, ConnectionsPerSandbox: 2000,
			HeaderBytes: 64 << 10, RewriteBodyBytes: 1 << 20,
			HandshakeTimeout: 10 * time.Second, IdleTimeout: 5 * time.Minute, DrainTimeout: 30 * time.Second,
		},
		Log:   Log{Level: "info", Format: "json"},
		Audit: Audit{Overflow: "drop"},
	}
}

// SocketPath is the API's unix socket.
func (c *Config) SocketPath() string { return c.orState(c.API.Socket, "api.sock") }

// StorePath is the SQLite file.
func (c *Config) StorePath() string {
	return c.orState(strings.TrimPrefix(c.Store.URL, "sqlite:"), "store.db")
}

// KeyFile is the seal.key.
func (c *Config) KeyFile() string {
	return c.orState(c.Store.KeyFile, filepath.Join("keys", "seal.key"))
}

// AuditFile is the audit log.
func (c *Config) AuditFile() string { return c.orState(c.Audit.File, "audit.jsonl") }

// CAFiles are the interception CA's certificate and key.
func (c *Config) CAFiles() (cert, key string) {
	return c.orState(c.Intercept.CACertFile, "ca.pem"), c.orState(c.Intercept.CAKeyFile, "ca.key")
}

// SSHFiles are the private keys of the CA and of the host that sandboxes see over SSH.
func (c *Config) SSHFiles() (ca, host string) {
	return filepath.Join(c.StateDir, "ssh_ca.key"), filepath.Join(c.StateDir, "ssh_host.key")
}

func (c *Config) orState(set, name string) string {
	if set != "" {
		return set
	}
	return filepath.Join(c.StateDir, name)
}

// Effective is c with every derived path written out, as `config show` prints it.
func (c Config) Effective() Config {
	c.API.Socket = c.SocketPath()
	c.Store.URL = "sqlite:" + c.StorePath()
	c.Store.KeyFile = c.KeyFile()
	c.Audit.File = c.AuditFile()
	c.Intercept.CACertFile, c.Intercept.CAKeyFile = c.CAFiles()
	return c
}

// CheckPolicyDir says in one line what to do when the policy directory cannot be used.
func (c *Config) CheckPolicyDir() error {
	info, err := os.Stat(c.Policy.Dir)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("policy.dir %s does not exist: create it with at least one *.yaml, or set --policy-dir", c.Policy.Dir)
	case err != nil:
		return fmt.Errorf("policy.dir cannot be read: %w", err)
	case !info.IsDir():
		return fmt.Errorf("policy.dir %s is not a directory: name the directory that holds the *.yaml files", c.Policy.Dir)
	}
	return nil
}

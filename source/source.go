// Package source says what a credential source means: kinds, their validation, and the
// Resolver that turns a reference into immutable material.
package source

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/egressd/egressd/internal/secret"
	"github.com/egressd/egressd/store"
)

// Errors of Resolve; Code gives the word for X-Egressd-Error.
var (
	ErrNotFound    = errors.New("source not found")
	ErrDisabled    = errors.New("source is disabled")
	ErrCorrupt     = errors.New("source failed authentication")
	ErrInvalid     = errors.New("source material is not valid")
	ErrUnavailable = errors.New("source cannot be resolved now")
)

// Ref names material: Version 0 is the current one.
type Ref struct {
	Team, Name string
	Version    uint64
}

// Material is one resolved version. Immutable once returned; the pointer is its
// identity (a new version, status or destination bound is a new pointer).
type Material struct {
	Team, Name, Kind string
	Version          uint64
	Rev              store.Rev
	// AllowedDestinations bounds where it may be sent; empty: anywhere policy says.
	AllowedDestinations []string
	ExpiresAt           time.Time

	Values     map[string]secret.String // static_headers; also username, password of static_username_password
	ClientCert *tls.Certificate         // static_tls_client_certificate
	CAs        *x509.CertPool           // its caPem: constrains the upstream's trust for this source, nil if none
	SSH        ssh.Signer               // static_ssh_private_key
}

// Resolving is what injectors need of a Resolver.
type Resolving interface {
	Resolve(ctx context.Context, ref Ref) (*Material, error)
}

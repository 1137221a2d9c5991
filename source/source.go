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

// Code is the word for err in X-Egressd-Error and in events. An error that is none of
// the above (a cancelled context, say) is source_unavailable.
func Code(err error) string {
	switch {
	case errors.Is(err, ErrNotFound):
		return "source_not_found"
	case errors.Is(err, ErrDisabled):
		return "source_disabled"
	case errors.Is(err, ErrCorrupt):
		return "source_corrupt"
	case errors.Is(err, ErrInvalid):
		return "source_invalid"
	default:
		return "source_unavailable"
	}
}

// Ref names material: Version 0 is the current one.
type Ref struct {
	Team, Name string
	Version    uint64
	// MaxAge bounds how old cached material may be, counted from its fetch on the
	// monotonic clock; 0: until it changes. It is no part of the material's identity.
	MaxAge time.Duration
}

// Material is one resolved version. Immutable once returned; the pointer is its
// identity (a new version, status or destination bound is a new pointer).
type Material struct {
	Team, Name, Kind string
	Version          uint64
	Rev              store.Rev
	// ID is random and not 0: a key for what must not outlive this material, such
	// as pooled connections, that does not keep it in memory.
	ID uint64
	// AllowedDestinations bounds where it may be sent; empty: anywhere policy says.
	AllowedDestinations []string
	// ExpiresAt is when the material itself ends (a certificate); zero: never.
	ExpiresAt time.Time

	// Values of static_headers; username and password of static_username_password;
	// accessKeyId, secretAccessKey and sessionToken of aws_access_key. NotSecret are the
	// keys of those that are names, such as the user's.
	Values    map[string]secret.String
	NotSecret []string
	// KeyText are pieces of a private key as it was written, by which a copy of it can be
	// recognised; see Secrets.
	KeyText []secret.String

	ClientCert *tls.Certificate // static_tls_client_certificate
	CAs        *x509.CertPool   // its caPem: narrows the trust in an upstream for this source, nil if none
	SSH        ssh.Signer       // static_ssh_private_key
}

// Resolving is what injectors need of a Resolver.
type Resolving interface {
	Resolve(ctx context.Context, ref Ref) (*Material, error)
}

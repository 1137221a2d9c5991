//go:build !linux

package isolate

import (
	"context"
	"fmt"
)

// Supported says that only Linux has network namespaces.
func Supported() error { return fmt.Errorf("%w: this needs Linux", ErrUnsupported) }

// Start fails: see Supported.
func Start(context.Context, Options) (*Namespace, error) { return nil, Supported() }

// Init fails: see Supported.
func Init() error { return Supported() }

// Exec fails: see Supported.
func (*Namespace) Exec(context.Context, Command) error { return Supported() }

// Close does nothing: no Namespace is made here.
func (*Namespace) Close() {}

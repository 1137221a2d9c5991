//go:build !linux

package redirect

import "fmt"

// Supported is ErrUnsupported.
func Supported() error { return fmt.Errorf("%w: it needs Linux", ErrUnsupported) }

// Install is for Linux.
func Install(Spec) error { return Supported() }

// Remove is for Linux.
func Remove() error { return Supported() }

// Status is for Linux.
func Status(Spec) ([]string, error) { return nil, Supported() }

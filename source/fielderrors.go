package source

import (
	"errors"
	"slices"
	"strings"
)

// ErrTooLarge: a spec over MaxSpec bytes.
var ErrTooLarge = errors.New("spec is too large")

// MaxSpec is the greatest size of a spec in bytes, as submitted.
const MaxSpec = 1 << 20

// FieldErrors says what is wrong with a document: path (dotted, "" for the whole) →
// messages. Messages are written by us and never repeat what was submitted; paths
// hold member names only, and only short plain ones (see pathOf).
type FieldErrors map[string][]string

// Add appends a message to path.
func (e FieldErrors) Add(path, message string) {
	if !slices.Contains(e[path], message) {
		e[path] = append(e[path], message)
	}
}

// Err is e as an error, nil when it is empty.
func (e FieldErrors) Err() error {
	if len(e) == 0 {
		return nil
	}
	return e
}

// Under is e with every path put below prefix.
func (e FieldErrors) Under(prefix string) FieldErrors {
	out := make(FieldErrors, len(e))
	for path, messages := range e {
		out[join(prefix, path)] = messages
	}
	return out
}

// Error lists all, sorted by path.
func (e FieldErrors) Error() string {
	paths := make([]string, 0, len(e))
	for path := range e {
		paths = append(paths, path)
	}
	slices.Sort(paths)
	var parts []string
	for _, path := range paths {
		text := strings.Join(e[path], ", ")
		if path != "" {
			text = path + ": " + text
		}
		parts = append(parts, text)
	}
	return strings.Join(parts, "; ")
}

func join(prefix, path string) string {
	switch {
	case prefix == "":
		return path
	case path == "":
		return prefix
	default:
		return prefix + "." + path
	}
}

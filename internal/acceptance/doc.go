// Package acceptance holds the tests that drive the real binary, from the outside, the
// way an operator and a sandbox do: `egressd serve` and `egressd run` as processes, the
// management API over its socket, origins on loopback, signals by process id.
//
// Each test names in its doc comment the point of the acceptance list that it proves. It
// holds nothing but tests: whatever it needs to know, the binary says on one of its
// surfaces.
package acceptance

// Package certs holds the interception CA, mints the leaf certificates that sandboxes see,
// and gathers trust: the pool that upstreams are verified against and the bundles that a
// sandbox is given.
//
// # Validity, and why
//
// The CA that egressd makes for itself is valid for one year (OwnValidity). Shorter would
// be better for its blast radius, but every sandbox image that has the certificate baked
// in must get the next one first, and egressd does not rotate it by itself; NotAfter is
// exported so that doctor and metrics can warn from RenewBefore on. It signs leaves only
// (path length 0, serverAuth only), and its key never leaves its file. An operator who wants
// less brings an intermediate of their own. A CA for one run (NewEphemeral) lives in
// memory and is valid for EphemeralValidity.
//
// A leaf is valid for LeafTTL at most, never longer than its CA, and is minted anew when
// a quarter of that is left. Its validity begins five minutes ago, for clients whose
// clocks are behind. All of that goes by the wall clock, so that a clock that is set
// forth or back leads to new leaves and not to invalid ones.
//
// All leaves share one P-256 key, made from crypto/rand at start and never stored: a leaf
// costs one signature, and nothing about the key can be derived from the CA.
package certs

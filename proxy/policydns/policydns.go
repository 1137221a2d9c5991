// Package policydns is the name server that sandboxes are given (listen.dns): it answers
// for the names that policy lets a sandbox connect to, and refuses the rest.
//
// server.go and tcp.go take questions from UDP and TCP within the limits of clients.go;
// answer.go makes of one question one answer; https.go takes out of HTTPS records what
// would lead past egressd; memory.go keeps which name a sandbox was told of when it asked
// for an address.
//
// # What a sandbox gets
//
//   - A, AAAA: egressd's own lookup, aliases flattened, addresses as checked by netguard.
//   - HTTPS: without ech, without h3, without address hints; nothing where nothing is left.
//   - Any other type of an allowed name (TXT, MX, SVCB, …): no record, and nobody is asked,
//     so that such types carry nothing out.
//   - A name that policy does not allow, or that no policy could name: REFUSED with the
//     extended error 15, Blocked (RFC 8914). It is not NXDOMAIN because the name may
//     well exist, and because DNS over HTTPS of browsers switches itself off on it. A
//     resolv.conf with a search list must not be used with it: resolvers stop at REFUSED.
//   - Zone transfers, ANY, other classes and operations: REFUSED or NOTIMP.
//   - To somebody who is no sandbox: REFUSED, a few per second, then silence; by TCP the end.
//
// # Tunnelling
//
// What leaves is at most the name of a question, in a lookup of A, AAAA or HTTPS, and only
// where policy allows connections to that name anyway. Against data in the labels under an
// allowed wildcard a sandbox may bring up only so many names that it has not asked for
// before, and labels and names have a length limit (Limits).
package policydns

import (
	"context"
	"net/netip"
	"time"

	"github.com/miekg/dns"
)

// Options of a Server. Identify, MayName and Lookup are needed. All are called from many
// goroutines at once.
type Options struct {
	// Identify says whose address that is; it must be quick.
	Identify func(addr netip.Addr) (sandbox string, ok bool)
	// MayName says whether policy could allow a connection to host, a canonical name. Quick.
	MayName func(sandbox, host string) bool
	// Lookup gives the addresses of host that may be dialled. Errors that are told apart are
	// netguard's: ErrNoSuchHost, ErrBadName, ErrForbiddenAddress.
	Lookup func(ctx context.Context, sandbox, host string) ([]netip.Addr, error)
	// HTTPS gives the HTTPS records of host as they are found; nil: there are none.
	HTTPS func(ctx context.Context, sandbox, host string) ([]dns.RR, error)
	// Memory is told of each answer with addresses; nil: nobody is.
	Memory *Memory
	// Report hears of each question; nil: nobody does. It must be quick, and it is called
	// as often as packets come: count Limited, Unknown and Malformed, log the rest if at all.
	Report func(Event)
	Limits Limits
}

// Limits of a Server; zero values are replaced by the defaults given.
type Limits struct {
	PerSecond float64 // questions of one sandbox: 50
	Burst     int     // of these: 200
	// NewNames per minute, with a burst of twice as many, that a sandbox has not asked for
	// before (of the last 2,048): 120.
	NewNames int
	Label    int // bytes: 50 (the protocol's own is 63)
	Name     int // bytes: 160 (253)
	// Concurrent lookups per sandbox: 32; Total of all: 512. What is more is dropped.
	Concurrent, Total int
	// Connections of TCP per sandbox: 8; of all a quarter of Total.
	Connections int
	// Timeout of one lookup: 4 s, just below what resolvers wait.
	Timeout time.Duration
	// TTL of every answer, which is also how soon a new address is seen: 30 s.
	TTL time.Duration
}

func (l Limits) withDefaults() Limits {
	or(&l.PerSecond, 50)
	or(&l.Burst, 200)
	or(&l.NewNames, 120)
	or(&l.Label, 50)
	or(&l.Name, 160)
	or(&l.Concurrent, 32)
	or(&l.Total, 512)
	or(&l.Connections, 8)
	or(&l.Timeout, 4*time.Second)
	or(&l.TTL, 30*time.Second)
	return l
}

func or[T int | float64 | time.Duration](v *T, def T) {
	if *v <= 0 {
		*v = def
	}
}

// Event is one question as it was answered.
type Event struct {
	Sandbox string // "" for somebody who is none
	// Name is canonical, or "" where there was none to read. For logs, never for a label.
	Name    string
	Type    string // A, AAAA, HTTPS, other, or "" where none was read
	Outcome Outcome
}

// Outcome is what became of a question: a closed set, fit for a metrics label (C36).
type Outcome string

// The outcomes.
const (
	Answered  Outcome = "answered"  // with records
	Empty     Outcome = "empty"     // there are none, or none of that type
	Denied    Outcome = "denied"    // by policy, or no name or operation that could be allowed
	Forbidden Outcome = "forbidden" // the name leads to addresses that may not be dialled
	Tunnel    Outcome = "tunnel"    // too long, or too many new names
	Limited   Outcome = "limited"   // too many questions
	Unknown   Outcome = "unknown"   // from an address that is no sandbox's
	Malformed Outcome = "malformed" // not a question
	Failed    Outcome = "failed"    // the lookup did
)

package h1

// Limits bound one message head. Exceeding one is a 431 (or 414 for the request line).
type Limits struct {
	HeadBytes int // whole head, in bytes
	LineBytes int // one line, in bytes
	Headers   int // number of fields
}

// DefaultLimits are 64 KiB, 16 KiB and 128 fields.
func DefaultLimits() Limits { return Limits{HeadBytes: 64 << 10, LineBytes: 16 << 10, Headers: 128} }

// ProtocolError is a message that was refused. Reason is a word from a closed set; it
// never holds bytes of the message.
type ProtocolError struct {
	Status int // what a server answers; 502 for an origin's message
	Reason string
}

func (e *ProtocolError) Error() string { return "http/1.1: " + e.Reason }

func bad(reason string) *ProtocolError { return &ProtocolError{Status: 400, Reason: reason} }

// Bounds on chunked bodies (RFC 9112 section 7.1).
const (
	maxChunkLine    = 300           // size and extensions
	maxTrailerBytes = bufSize - 256 // all of them; net/http stops at 4 KiB as well
	maxTrailers     = 32
)

// drainLimit is how much of a request body that the handler left is read so that
// the connection can be used again.
const drainLimit = 256 << 10

package postgres

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"

	"github.com/egressd/egressd/proxy/wire"
)

// What a client may open with: the first four bytes behind the length.
const (
	codeCancel = 80877102
	codeTLS    = 80877103
	codeGSS    = 80877104
	majorThree = 3
)

const (
	maxStartup  = 10_000 // PostgreSQL's own limit
	maxParams   = 256
	minCancel   = 16
	maxCancel   = 268 // a key of 256 bytes (protocol 3.2)
	lengthBytes = 4
)

// readPacket reads one message of a client's opening: without a type, whole, its length
// included, and not one byte more.
func readPacket(r io.Reader) (code uint32, packet []byte, err error) {
	var head [2 * lengthBytes]byte
	if _, err := io.ReadFull(r, head[:lengthBytes]); err != nil {
		return 0, nil, fmt.Errorf("reading the start: %w", err)
	}
	n := binary.BigEndian.Uint32(head[:])
	if n < uint32(len(head)) || n > maxStartup {
		return 0, nil, wire.Bad("a start of %d bytes", n)
	}
	packet = make([]byte, n)
	copy(packet, head[:lengthBytes])
	if _, err := io.ReadFull(r, packet[lengthBytes:]); err != nil {
		return 0, nil, fmt.Errorf("reading the start: %w", err)
	}
	return binary.BigEndian.Uint32(packet[lengthBytes:]), packet, nil
}

// startup is a StartupMessage.
type startup struct {
	version uint32
	params  []param // in the order in which they came, without user and database
	user    string
	// database is "" where the client named none.
	database string
}

type param struct{ name, value string }

// parseStartup reads a whole StartupMessage of any minor version of protocol 3. A
// parameter that comes twice is refused: who reads it first and who reads it last would
// not agree.
func parseStartup(packet []byte) (*startup, error) {
	if len(packet) < 2*lengthBytes {
		return nil, wire.Bad("a start of %d bytes", len(packet))
	}
	st := &startup{version: binary.BigEndian.Uint32(packet[lengthBytes:])}
	if st.version>>16 != majorThree {
		return nil, wire.Bad("protocol %d.%d", st.version>>16, st.version&0xffff)
	}
	rest := packet[2*lengthBytes:]
	seen := make(map[string]bool)
	for {
		name, after, ok := cut(rest)
		if !ok {
			return nil, wire.Bad("a start that does not end")
		}
		if name == "" {
			if len(after) != 0 {
				return nil, wire.Bad("%d bytes behind the start", len(after))
			}
			break
		}
		value, after, ok := cut(after)
		if !ok {
			return nil, wire.Bad("a start that does not end")
		}
		if seen[name] || len(seen) == maxParams {
			return nil, wire.Bad("a parameter twice, or more than %d", maxParams)
		}
		seen[name] = true
		st.set(name, value)
		rest = after
	}
	if st.user == "" {
		return nil, wire.Bad("no user name")
	}
	return st, nil
}

func (st *startup) set(name, value string) {
	switch name {
	case "user":
		st.user = value
	case "database":
		st.database = value
	default:
		st.params = append(st.params, param{name, value})
	}
}

// as is the message that logs user in where st asked to go.
func (st *startup) as(user string) []byte {
	database := st.database
	if database == "" {
		database = st.user // as a server would have taken it
	}
	b := binary.BigEndian.AppendUint32(make([]byte, lengthBytes, 256), st.version)
	for _, p := range append([]param{{"user", user}, {"database", database}}, st.params...) {
		b = append(append(append(append(b, p.name...), 0), p.value...), 0)
	}
	b = append(b, 0)
	binary.BigEndian.PutUint32(b, uint32(len(b)))
	return b
}

// cut takes a string that ends with NUL off b.
func cut(b []byte) (s string, rest []byte, ok bool) {
	i := bytes.IndexByte(b, 0)
	if i < 0 {
		return "", nil, false
	}
	return string(b[:i]), b[i+1:], true
}

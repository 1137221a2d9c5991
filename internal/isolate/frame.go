package isolate

import (
	"bytes"
	"encoding/binary"
	"encoding/gob"
	"errors"
	"fmt"
	"io"
)

// maxFrame is more than execve takes for arguments and environment.
const maxFrame = 8 << 20

var errFrame = errors.New("a message is too long")

// The messages between parent and init, in their order.
type (
	// setup goes to the init.
	setup struct {
		Hide   []string // Unix sockets
		Parent int      // process id
	}
	// report comes back, with the descriptors of Listeners.
	report struct {
		Error     string
		Denied    bool // the error is EPERM or EACCES
		Listeners []string
	}
	// outcome comes back after a Command that could not be begun; else the connection ends.
	outcome struct {
		Error string
		Errno int
	}
)

// Kinds of descriptors in report.Listeners.
const (
	kindRedirect = "redirect"
	kindDNS      = "dns"
	kindDNSTCP   = "dnstcp"
)

func encodeFrame(v any) ([]byte, error) {
	var b bytes.Buffer
	if err := gob.NewEncoder(&b).Encode(v); err != nil { // not JSON: arguments need not be UTF-8
		return nil, err
	}
	if b.Len() > maxFrame {
		return nil, errFrame
	}
	return append(binary.BigEndian.AppendUint32(make([]byte, 0, b.Len()+4), uint32(b.Len())), b.Bytes()...), nil
}

// readFrame reads one message into v. io.EOF: the other side ended before it.
func readFrame(r io.Reader, v any) error {
	var head [4]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return err
	}
	n := binary.BigEndian.Uint32(head[:])
	if n > maxFrame {
		return errFrame
	}
	b := make([]byte, n)
	if _, err := io.ReadFull(r, b); err != nil {
		return fmt.Errorf("a message is cut: %w", err)
	}
	return gob.NewDecoder(bytes.NewReader(b)).Decode(v)
}

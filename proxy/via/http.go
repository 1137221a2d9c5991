package via

import (
	"encoding/base64"
	"fmt"
	"io"
	"net/netip"
	"strings"

	"golang.org/x/net/http/httpguts"

	"github.com/egressd/egressd/inject"
)

const (
	maxHead    = 64 << 10 // of the final answer; each interim one as much
	maxInterim = 5
	headEnd    = "\r\n\r\n"
)

func connectHTTP(c io.ReadWriter, target netip.AddrPort, login *inject.Login) error {
	at := target.String()
	req := "CONNECT " + at + " HTTP/1.1\r\nHost: " + at + "\r\n"
	if login != nil {
		if strings.Contains(login.Username, ":") {
			return fmt.Errorf("%w: a user name with a colon cannot be sent (RFC 7617)", ErrLogin)
		}
		pair := login.Username + ":" + login.Password.Reveal()
		req += "Proxy-Authorization: Basic " + base64.StdEncoding.EncodeToString([]byte(pair)) + "\r\n"
	}
	if _, err := io.WriteString(c, req+"\r\n"); err != nil {
		return fmt.Errorf("asking the proxy: %w", err)
	}
	for range maxInterim + 1 {
		head, err := readHead(c)
		if err != nil {
			return err
		}
		status, err := parseHead(head)
		if err != nil {
			return err
		}
		if status < 100 || status >= 200 || status == 101 {
			return judge(status)
		}
	}
	return fmt.Errorf("%w: more than %d interim answers", ErrProtocol, maxInterim)
}

func judge(status int) error {
	kind := ErrProtocol
	switch {
	case status >= 200 && status < 300:
		return nil
	case status == 401 || status == 407:
		kind = ErrLogin
	case status >= 400 && status < 500:
		kind = ErrForbidden
	case status >= 500 && status < 600:
		kind = ErrUnreachable
	}
	return fmt.Errorf("%w: status %d", kind, status)
}

// readHead reads up to the empty line and not a byte more: what is behind it is the
// destination's. It never asks for more bytes than the head must still have.
func readHead(r io.Reader) (string, error) {
	head := make([]byte, 0, 256)
	matched := 0 // bytes of headEnd that head ends with
	for matched < len(headEnd) {
		if len(head) >= maxHead {
			return "", fmt.Errorf("%w: an answer of more than %d bytes", ErrProtocol, maxHead)
		}
		var buf [len(headEnd)]byte
		n, err := io.ReadFull(r, buf[:len(headEnd)-matched])
		for _, b := range buf[:n] {
			head = append(head, b)
			switch {
			case b == headEnd[matched]:
				matched++
			case b == '\n' || matched%2 == 1: // no line ends with LF alone, and no CR is alone
				return "", fmt.Errorf("%w: a line that does not end with CRLF", ErrProtocol)
			case b == '\r':
				matched = 1
			default:
				matched = 0
			}
		}
		if err != nil {
			if err == io.EOF && len(head) > 0 {
				err = io.ErrUnexpectedEOF
			}
			return "", fmt.Errorf("reading the proxy's answer: %w", err)
		}
	}
	return string(head), nil
}

// parseHead is the status of an answer whose lines are what they should be.
func parseHead(head string) (status int, err error) {
	line, fields, _ := strings.Cut(strings.TrimSuffix(head, headEnd), "\r\n")
	version, rest, _ := strings.Cut(line, " ")
	code, reason, _ := strings.Cut(rest, " ")
	if version != "HTTP/1.1" && version != "HTTP/1.0" || len(code) != 3 || !httpguts.ValidHeaderFieldValue(reason) {
		return 0, fmt.Errorf("%w: not a status line of HTTP/1", ErrProtocol)
	}
	for _, c := range []byte(code) {
		if c < '0' || c > '9' {
			return 0, fmt.Errorf("%w: not a status", ErrProtocol)
		}
		status = 10*status + int(c-'0')
	}
	if status < 100 {
		return 0, fmt.Errorf("%w: status %d", ErrProtocol, status)
	}
	for fields != "" {
		line, fields, _ = strings.Cut(fields, "\r\n")
		name, value, ok := strings.Cut(line, ":")
		if !ok || !httpguts.ValidHeaderFieldName(name) || !httpguts.ValidHeaderFieldValue(value) {
			return 0, fmt.Errorf("%w: not a header field", ErrProtocol)
		}
	}
	return status, nil
}

package postgres

import (
	"bytes"
	"context"
	"encoding/binary"
	"net"
	"reflect"
	"testing"
	"time"

	"github.com/egressd/egressd/inject"
	"github.com/egressd/egressd/internal/secret"
	"github.com/egressd/egressd/proxy/wire"
)

// FuzzStart: what is taken as a start means the same when it has been written again, with
// the user name changed and nothing else.
func FuzzStart(f *testing.F) {
	f.Add((&startup{version: 3 << 16, user: "u", database: "d", params: []param{{"application_name", "x"}}}).as("u"))
	f.Add([]byte("\x00\x00\x00\x0f\x00\x03\x00\x00user\x00a\x00\x00"))
	f.Add(request(codeTLS))
	f.Fuzz(func(t *testing.T, b []byte) {
		_, packet, err := readPacket(bytes.NewReader(b))
		if err != nil {
			return
		}
		if !bytes.HasPrefix(b, packet) || int(binary.BigEndian.Uint32(packet)) != len(packet) {
			t.Fatalf("read %q from %q", packet, b)
		}
		st, err := parseStartup(packet)
		if err != nil {
			return
		}
		again, err := parseStartup(st.as("other"))
		if err != nil {
			t.Fatalf("%q is not a start: %v", st.as("other"), err)
		}
		want := *st
		want.user = "other"
		if want.database == "" {
			want.database = st.user
		}
		if !reflect.DeepEqual(&want, again) {
			t.Errorf("%+v became %+v", want, again)
		}
	})
}

// script is a server that has said everything beforehand.
type script struct {
	*bytes.Reader
	sent bytes.Buffer
}

func (s *script) Write(p []byte) (int, error)      { return s.sent.Write(p) }
func (s *script) Close() error                     { return nil }
func (s *script) LocalAddr() net.Addr              { return nil }
func (s *script) RemoteAddr() net.Addr             { return nil }
func (s *script) SetDeadline(time.Time) error      { return nil }
func (s *script) SetReadDeadline(time.Time) error  { return nil }
func (s *script) SetWriteDeadline(time.Time) error { return nil }

// FuzzServer: whatever a server without TLS says, the password does not leave as it is, and
// what the sandbox is told is one message at most.
func FuzzServer(f *testing.F) {
	msg := func(kind byte, data string) []byte {
		return appendMessage(nil, typeAuthentication, append([]byte{0, 0, 0, kind}, data...))
	}
	f.Add(msg(authOK, ""))
	f.Add(msg(authClear, ""))
	f.Add(append(msg(authMD5, "salt"), msg(authOK, "")...))
	f.Add(append(msg(authSASL, mechBound+"\x00"+mechPlain+"\x00\x00"), msg(authSASLContinue, "r=x,s=c2FsdA==,i=4096")...))
	f.Add(append(appendMessage(nil, typeNegotiate, []byte{0, 0, 0, 0, 0, 0, 0, 0}), errorResponse("28P01", "no")...))
	const password = "fuzzed-password-0123456789"
	login := &inject.Projection{Login: &inject.Login{Username: "user", Password: secret.New(password)}}
	s := &wire.Session{Cleartext: true, Credential: func(context.Context) (*inject.Projection, error) { return login, nil }}
	f.Fuzz(func(t *testing.T, said []byte) {
		conn := &script{Reader: bytes.NewReader(said)}
		u := &upstream{conn: conn}
		told, err := u.logIn(context.Background(), s, &startup{version: 3 << 16, user: "agent"})
		if bytes.Contains(conn.sent.Bytes(), []byte(password)) {
			t.Errorf("the password left: %q", conn.sent.Bytes())
		}
		if err != nil && codeOf(err) == "" {
			t.Errorf("an error without a code: %v", err)
		}
		if len(told) > 0 && (told[0] != typeNegotiate || int(binary.BigEndian.Uint32(told[1:]))+1 != len(told)) {
			t.Errorf("the sandbox is told %q", told)
		}
	})
}

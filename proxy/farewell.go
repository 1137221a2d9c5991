package proxy

import (
	"encoding/binary"
	"net/http"

	"github.com/egressd/egressd/policy"
)

// farewell is a refusal of what was sniffed, in the protocol's own words where it has some, so
// that people see why and not just that a connection was closed.
func (r *refusal) farewell(proto policy.Protocol, prefix []byte, requestID string) []byte {
	text := "egressd: " + r.code + ", request " + requestID
	switch proto {
	case policy.HTTP:
		return r.raw(requestID)
	case policy.TLS:
		return r.alert()
	case policy.SSH:
		return sshDisconnect(text)
	case policy.Redis:
		return []byte("-ERR " + text + "\r\n")
	case policy.Postgres:
		return postgresError(text)
	case policy.MQTT:
		return mqttRefusal(prefix)
	case policy.SOCKS5:
		return []byte{socksVersion, 0xff} // no acceptable method
	}
	return nil
}

// alert is what refuses a ClientHello (RFC 8446 section 6).
func (r *refusal) alert() []byte {
	switch {
	case r.code == codeMisdirected:
		return alertUnrecognizedName[:]
	case r.code == codeBadRequest:
		return alertDecodeError[:]
	case r.status >= http.StatusInternalServerError:
		return alertInternalError[:]
	}
	return alertAccessDenied[:]
}

// sshDisconnect is an identification string and SSH_MSG_DISCONNECT "by application" in the
// clear, as before any key exchange (RFC 4253 sections 4.2, 6 and 11.1).
func sshDisconnect(text string) []byte {
	const byApplication, block, least = 11, 8, 4
	payload := []byte{1}
	payload = binary.BigEndian.AppendUint32(payload, byApplication)
	payload = binary.BigEndian.AppendUint32(payload, uint32(len(text)))
	payload = append(payload, text...)
	payload = binary.BigEndian.AppendUint32(payload, 0) // language tag
	pad := block - (5+len(payload))%block
	if pad < least {
		pad += block
	}
	out := []byte("SSH-2.0-egressd\r\n")
	out = binary.BigEndian.AppendUint32(out, uint32(1+len(payload)+pad))
	out = append(out, byte(pad))
	out = append(out, payload...)
	return append(out, make([]byte, pad)...)
}

// postgresError is an ErrorResponse (PostgreSQL, "Message Formats"), which a client takes
// also in answer to an SSLRequest.
func postgresError(text string) []byte {
	var fields []byte
	for _, f := range [...]string{"SFATAL", "VFATAL", "C28000", "M" + text} {
		fields = append(append(fields, f...), 0)
	}
	fields = append(fields, 0)
	out := binary.BigEndian.AppendUint32([]byte{'E'}, uint32(4+len(fields)))
	return append(out, fields...)
}

// mqttRefusal is a CONNACK "not authorized" of the client's own version (MQTT 3.1.1 section
// 3.2, MQTT 5 section 3.2).
func mqttRefusal(connect []byte) []byte {
	i := 1
	for i < len(connect) && i < 5 && connect[i]&0x80 != 0 { // remaining length
		i++
	}
	name := i + 1
	if len(connect) > name+6 && connect[name] == 0 && connect[name+1] == 4 && connect[name+6] == 5 {
		return []byte{0x20, 3, 0, 0x87, 0}
	}
	return []byte{0x20, 2, 0, 5}
}

package sniff

import (
	"encoding/binary"
	"strings"
	"testing"
)

const (
	mqttConnect = "\x10\x10\x00\x04MQTT\x04\x02\x00\x3c\x00\x04abcd"
	sslRequest  = "\x00\x00\x00\x08\x04\xd2\x16\x2f"
	startup     = "\x00\x00\x00\x13\x00\x03\x00\x00user\x00abc\x00\x00"
	dnsQuery    = "\x00\x1b\xbe\xef\x01\x20\x00\x01\x00\x00\x00\x00\x00\x00\x04good\x04test\x00\x00\x01\x00\x01"
	mongoHello  = "\x47\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x00\xdd\x07\x00\x00\x00\x00\x00\x00\x00"
)

func TestDetect_others(t *testing.T) {
	for _, tc := range []struct {
		name, in string
		want     Protocol
		decided  bool
	}{
		{"A10 socks5", "\x05\x01", SOCKS5, true},
		{"socks5 with 255 methods", "\x05\xff" + strings.Repeat("\x07", 255), SOCKS5, true},
		{"socks5, one byte", "\x05", Unknown, false},
		{"B24 socks5 without methods", "\x05\x00\x05\x01\x00\x01", Unknown, true},

		{"mqtt 3.1.1", mqttConnect, MQTT, true},
		{"mqtt 5, long", "\x10\xff\xff\x03\x00\x04MQTT\x05", MQTT, true},
		{"mqtt 3.1", "\x10\x10\x00\x06MQIsdp\x03", MQTT, true},
		{"mqtt of a level that is none", "\x10\x10\x00\x04MQTT\x06\x02", Unknown, true},
		{"mqtt, flags in the fixed header", "\x11\x10\x00\x04MQTT\x04", Unknown, true},
		{"mqtt, length that does not end", "\x10\xff\xff\xff\xff\x00\x04MQTT\x04", Unknown, true},
		{"mqtt cut in its length", "\x10\xff", Unknown, false},
		{"mqtt cut in its name", "\x10\x10\x00\x04MQ", Unknown, false},

		{"redis", "*1\r\n$4\r\nPING\r\n", Redis, true},
		{"redis, many", "*1048576\r\n$4", Redis, true},
		{"redis cut", "*12\r\n", Unknown, false},
		{"redis cut in its digits", "*12", Unknown, false},
		{"redis, empty array", "*0\r\n", Unknown, true},
		{"redis, null array", "*-1\r\n", Unknown, true},
		{"redis, other element", "*1\r\n:1\r\n", Unknown, true},
		{"redis, endless count", "*12345678\r\n$4", Unknown, true},
		{"redis inline", "ping\r\n", Redis, true},
		{"redis hello", "HELLO 3 AUTH a b\r\n", Redis, true},
		{"redis hello alone", "HELLO 2\r\n", Redis, true},
		{"a word with an argument", "PING x\r\n", Unknown, true},
		{"smtp auth", "AUTH PLAIN x\r\n", Unknown, true},
		{"hello of no version", "HELLO 4\r\n", Unknown, true},
		{"a request with Redis's method", "PING / HTTP/1.1\r\n", HTTP, true},
		{"a request with a star for a method", "*1 / HTTP/1.1\r\n", HTTP, true},
		{"a hello that is a request", "HELLO http://good.test/ HTTP/1.1\r\n", HTTP, true},

		{"postgres startup", startup, Postgres, true},
		{"postgres 3.2", "\x00\x00\x00\x13\x00\x03\x00\x02", Postgres, true},
		{"postgres ssl", sslRequest, Postgres, true},
		{"postgres gss", "\x00\x00\x00\x08\x04\xd2\x16\x30", Postgres, true},
		{"postgres cancel", "\x00\x00\x00\x10\x04\xd2\x16\x2e\x00", Postgres, true},
		{"postgres cancel of 3.2", "\x00\x00\x00\x2c\x04\xd2\x16\x2e\x00", Postgres, true},
		{"postgres ssl of a wrong length", "\x00\x00\x00\x09\x04\xd2\x16\x2f", Unknown, true},
		{"postgres 2.0", "\x00\x00\x01\x28\x00\x02\x00\x00", Unknown, true},
		{"postgres too long", "\x00\x00\x27\x11\x00\x03\x00\x00", Unknown, true},
		{"postgres cut", "\x00\x00\x00\x08\x04", Unknown, false},

		{"amqp 0-9-1", "AMQP\x00\x00\x09\x01", AMQP, true},
		{"amqp 1.0 with SASL", "AMQP\x03\x01\x00\x00", AMQP, true},
		{"amqp cut", "AMQP\x00", Unknown, false},
		{"amqp of no version", "AMQP\x04\x01\x00\x00", Unknown, true},
		{"a request with amqp's name", "AMQP / HTTP/1.1\r\n", HTTP, true},

		{"dns", dnsQuery, DNS, true},
		{"dns response", "\x00\x1b\xbe\xef\x81\x80\x00\x01\x00\x00\x00\x00\x00\x00\x04", Unknown, true},
		{"dns update", "\x00\x1b\xbe\xef\x28\x00\x00\x01\x00\x00\x00\x00\x00\x00\x04", Unknown, true},
		{"dns cut", dnsQuery[:10], Unknown, false},
		{"dns of two questions", "\x00\x1b\xbe\xef\x01\x00\x00\x02\x00\x00\x00\x00\x00\x00\x04", Unknown, true},

		{"mongodb OP_MSG", mongoHello, MongoDB, true},
		{"mongodb OP_QUERY", "\x3a\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x00\xd4\x07\x00\x00", MongoDB, true},
		{"mongodb of 261 bytes is socks5", "\x05\x01\x00\x00\x01\x00\x00\x00", SOCKS5, true},
		{"mongodb of 790 bytes is tls", "\x16\x03\x00\x00\x01\x00\x00\x00", TLS, true},
		{"mongodb reply", "\x47\x01\x00\x00\x01\x00\x00\x00\x01\x00\x00\x00\xdd\x07\x00\x00", Unknown, true},
		{"mongodb of another opcode", "\x47\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x00\xd2\x07\x00\x00", Unknown, true},
		{"mongodb cut", mongoHello[:15], Unknown, false},

		{"B20 SSLv2 hello of SSL 2", "\x80\x2e\x01\x00\x02\x00\x15\x00\x00\x00\x10", Unknown, true},
		{"B20 SSLv2 hello shaped like mongodb", "\x80\x2e\x01\x00\x02\x00\x00\x00\x00\x00\x00\x00\xdd\x07\x00\x00", Unknown, true},
		{"B20 SSLv2 hello with padding", "\x00\x2e\x00\x01\x03\x01\x00\x15\x00\x00\x00\x10\x00\x00\x00", Unknown, true},
		{"a TLS alert shaped like mongodb", "\x15\x03\x01\x00\x02\x02\x28\x00\x00\x00\x00\x00\xdd\x07\x00\x00", Unknown, true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got, decided := Detect([]byte(tc.in))
			if got != tc.want || decided != tc.decided {
				t.Errorf("Detect(%q) = %v, %v; want %v, %v", tc.in, got, decided, tc.want, tc.decided)
			}
			for i := range tc.in {
				if p, ok := Detect([]byte(tc.in[:i])); ok && p != tc.want || !ok && p != Unknown {
					t.Errorf("%d of its bytes are %v, %v", i, p, ok)
				}
			}
		})
	}
}

// TestDetect_first_three goes through all beginnings of two bytes: what TLS, SSH and HTTP
// take is what they took before there were others.
func TestDetect_first_three(t *testing.T) {
	var b [4]byte
	for n := range 1 << 16 {
		binary.BigEndian.PutUint16(b[:], uint16(n))
		p, ok := Detect(b[:2])
		first, decided := detectFirst(b[:2])
		if first != Unknown && (p != first || !ok) || !decided && ok {
			t.Fatalf("%x: %v, %v; alone %v, %v", b[:2], p, ok, first, decided)
		}
		if p == TLS != (n == 0x1603) {
			t.Fatalf("%x: %v", b[:2], p)
		}
	}
}

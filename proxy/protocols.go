package proxy

import (
	"github.com/egressd/egressd/internal/sniff"
	"github.com/egressd/egressd/policy"
)

// protocolOf is what rules call what was sniffed.
func protocolOf(p sniff.Protocol) policy.Protocol {
	switch p {
	case sniff.HTTP, sniff.HTTP2Preface:
		return policy.HTTP
	case sniff.TLS:
		return policy.TLS
	case sniff.SSH:
		return policy.SSH
	case sniff.SOCKS5:
		return policy.SOCKS5
	case sniff.MQTT:
		return policy.MQTT
	case sniff.Redis:
		return policy.Redis
	case sniff.Postgres:
		return policy.Postgres
	case sniff.AMQP:
		return policy.AMQP
	case sniff.DNS:
		return policy.DNS
	case sniff.MongoDB:
		return policy.MongoDB
	default:
		return policy.Unknown
	}
}

package policy

// isHTTP reports the protocols whose requests are looked at one by one.
func (p credentialProtocol) isHTTP() bool {
	return p == onlyHTTP || p == onlyHTTPS || p == onlyGRPC
}

// isLogin reports the protocols with a login by user name and password.
func (p credentialProtocol) isLogin() bool {
	switch p {
	case onlySOCKS5, onlyMQTT, onlyRedis, onlyPostgres:
		return true
	}
	return false
}

// maybeClear reports the protocols that can leave without any encryption.
func (p credentialProtocol) maybeClear() bool {
	return p == anyProtocol || p == onlyHTTP || p.isLogin()
}

// layer is where in a connection a credential goes; one rule each can apply.
type layer uint8

const (
	requestLayer layer = iota // in requests, or as the login of a connection
	tlsLayer
	layers
)

func (r *CredentialRule) layer() layer {
	if r.Binding.Projection.Type == TLSClientCertificate {
		return tlsLayer
	}
	return requestLayer
}

// httpRequests are the protocols of request decisions.
const httpRequests = protocolSet(1<<HTTP | 1<<TLS)

// logins are the protocols that log in with a user name and a password.
const logins = protocolSet(1<<SOCKS5 | 1<<MQTT | 1<<Redis | 1<<Postgres)

// servesWith says in which protocols the rule can act with a projection. HTTP and TLS
// stand for requests in clear and inside TLS, the others for connections. A rule with
// httpMatch looks at requests and therefore acts on nothing else.
func (r *credentialRule) servesWith(t ProjectionType) protocolSet {
	var suits protocolSet
	switch t {
	case HTTPHeaders, PlaceholderSubstitution, AWSSigV4:
		suits = httpRequests
	case UsernamePassword:
		suits = httpRequests | logins
	case TLSClientCertificate:
		suits = httpRequests | logins | 1<<AMQP | 1<<MongoDB | 1<<DNS
	case SSHProxy:
		suits = 1 << SSH
	}
	switch r.protocol {
	case anyProtocol, onlyTLS:
	case onlyHTTP:
		suits &= 1 << HTTP
	case onlyHTTPS, onlyGRPC:
		suits &= 1 << TLS
	default:
		p, _ := protocolNamed(string(r.protocol))
		suits &= 1 << p
	}
	if r.match != nil {
		suits &= httpRequests
	}
	return suits
}

// checkProjection refuses pairs of rule and projection that could never act.
func (c *compiler) checkProjection(r *credentialRule, b *bindingDecl) {
	typ := b.Projection.Type
	switch typ {
	case "":
		return
	case TLSClientCertificate:
		c.checkCertificateRule(r)
	case SSHProxy:
		c.checkSSHRule(r)
	default:
		switch {
		case r.protocol == onlyTLS:
			c.fail(r.at, "protocol tls with the projection %s: only a client certificate lives in TLS itself; use https", typ)
		case r.protocol == onlySSH:
			c.fail(r.at, "protocol ssh with the projection %s: it needs ssh_proxy", typ)
		case r.protocol.isLogin() && typ != UsernamePassword:
			c.fail(r.at, "protocol %s with the projection %s: it needs username_password", r.protocol, typ)
		}
	}
	if r.sandboxLogin != nil && typ != UsernamePassword {
		c.fail(r.at, "sandboxLogin with the projection %s: only username_password logs in", typ)
	} else if r.sandboxLogin != nil && r.match != nil {
		c.fail(r.at, "sandboxLogin with httpMatch, which keeps the rule to HTTP requests")
	}
}

func (c *compiler) checkCertificateRule(r *credentialRule) {
	switch {
	case r.protocol == onlyHTTP:
		c.fail(r.at, "protocol http with a client certificate: cleartext has no place for it")
	case r.protocol == onlySSH || r.protocol.isLogin():
		c.fail(r.at, "protocol %s with a client certificate: it lives in TLS itself; use tls", r.protocol)
	case r.allowCleartext:
		c.fail(r.at, "allowCleartext with a client certificate: cleartext has no place for it")
	case r.scrub:
		c.fail(r.at, "scrub with a client certificate, which no answer can repeat")
	}
}

func (c *compiler) checkSSHRule(r *credentialRule) {
	switch {
	case r.protocol != anyProtocol && r.protocol != onlySSH:
		c.fail(r.at, "protocol %s with the projection ssh_proxy: it logs in to SSH servers only", r.protocol)
	case r.protocol == onlySSH: // what is wrong with the rule by itself has been said
	case r.match != nil:
		c.fail(r.at, "httpMatch with the projection ssh_proxy, which looks at no request")
	case r.allowCleartext:
		c.fail(r.at, "allowCleartext with the projection ssh_proxy, which is never cleartext")
	case r.scrub:
		c.fail(r.at, "scrub with the projection ssh_proxy: only answers to HTTP requests are looked through")
	case r.failOpen:
		c.fail(r.at, "fail-open with the projection ssh_proxy: without the credential there is no way to log in")
	}
}

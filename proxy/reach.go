package proxy

import (
	"context"
	"fmt"
	"net"
	"net/netip"

	"github.com/egressd/egressd/inject"
	"github.com/egressd/egressd/policy"
	"github.com/egressd/egressd/proxy/via"
)

// route is how connections leave: straight (zero), or by the sandbox's egress.proxy.
type route struct {
	proxy *policy.Proxy
	login *inject.Projection // of the proxy; nil: none
	from  *inject.Injector   // of login
}

func (r route) held() held {
	if r.from == nil {
		return held{}
	}
	return held{r.from, r.proxy.Host, r.proxy.Port}
}

// routeFor resolves what the decision says of the way out.
func (s *Server) routeFor(ctx context.Context, b *bound, p *policy.Proxy) (route, *refusal) {
	if p == nil {
		return route{}, nil
	}
	r := route{proxy: p}
	if p.Credential != nil {
		r.from = b.rules.Injectors.Injector(p.Credential)
		pr, err := r.from.Resolve(ctx, p.Host, p.Port)
		if err != nil {
			return route{}, unresolved(p.Credential, err)
		}
		r.login = pr
	}
	return r, nil
}

// key tells routes apart in pools: connections through one proxy, logged in there as one.
func (r route) key() string {
	if r.proxy == nil {
		return ""
	}
	id := uint64(0)
	if r.login != nil {
		id = r.login.ID
	}
	return fmt.Sprintf("%s://%s:%d#%x", r.proxy.Type, r.proxy.Host, r.proxy.Port, id)
}

// reach opens a TCP connection to d for a sandbox. addrs are the ones that the decision
// holds for; nil: whatever d resolves to. Only checked addresses are dialled, and a proxy
// is told the address, not the name, so that it is the checked one as well.
func (u *upstream) reach(ctx context.Context, sandbox string, d dest, addrs []netip.Addr, r route) (net.Conn, error) {
	var err error
	if addrs == nil {
		if addrs, err = u.names.lookup(ctx, sandbox, d.host); err != nil {
			u.metrics.dials.WithLabelValues("lookup_failed").Inc()
			return nil, err
		}
	}
	release, ok := u.perSandbox.take(sandbox)
	if !ok {
		u.metrics.dials.WithLabelValues("limited").Inc()
		return nil, errUpstreamLimit
	}
	var nc net.Conn
	if r.proxy == nil {
		nc, err = u.guard.Dial(ctx, addrs, d.port)
	} else {
		nc, err = u.reachVia(ctx, sandbox, d, addrs, r)
	}
	if err != nil {
		release()
		u.metrics.dials.WithLabelValues("failed").Inc()
		return nil, err
	}
	forget := u.dialled.add(nc)
	return metered(nc, func() {
		forget()
		release()
	}), nil
}

func (u *upstream) reachVia(ctx context.Context, sandbox string, d dest, addrs []netip.Addr, r route) (net.Conn, error) {
	target, err := u.checked(addrs, d.port)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, u.limits.HandshakeTimeout)
	defer cancel()
	proxies, err := u.names.lookup(ctx, sandbox, r.proxy.Host)
	if err != nil {
		return nil, fmt.Errorf("egress.proxy: %w", err)
	}
	nc, err := u.guard.Dial(ctx, proxies, r.proxy.Port)
	if err != nil {
		return nil, fmt.Errorf("egress.proxy: %w", err)
	}
	var login *inject.Login
	if r.login != nil {
		login = r.login.Login
	}
	if err := via.Connect(ctx, nc, r.proxy.Type, target, login); err != nil {
		_ = nc.Close()
		return nil, fmt.Errorf("egress.proxy: %w", err)
	}
	return nc, nil
}

// checked is the first address that may be dialled.
func (u *upstream) checked(addrs []netip.Addr, port uint16) (netip.AddrPort, error) {
	var last error
	for _, a := range addrs {
		at := addrPort(a, port)
		if last = u.guard.Check(at); last == nil {
			return at, nil
		}
	}
	if last == nil {
		last = errNoAddress
	}
	return netip.AddrPort{}, last
}

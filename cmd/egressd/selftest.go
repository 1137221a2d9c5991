package main

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/egressd/egressd/internal/selftest"
)

// selftestFlags are the flags of `egressd selftest`.
type selftestFlags struct {
	target4, target6, name, dnsName string
	peers, own, api                 []string
	timeout                         time.Duration
}

func (a *app) selftestCmd() *cobra.Command {
	var f selftestFlags
	cmd := &cobra.Command{
		Use: "selftest", Short: "Try from inside a sandbox to get out past egressd, and say what is really enforced", Args: exactly(),
		Long: `Tries each way out of the sandbox that it runs in: TCP to an address, by name, IPv4 and
IPv6, DNS to another server, DNS over TLS and HTTPS, QUIC, other UDP, ICMP, raw sockets,
metadata addresses, other sandboxes, egressd's own listeners, Unix sockets, VSOCK.

  blocked   refused, or no answer
  governed  egressd answered in its own name
  open      somebody else answered: this is a way out
  unclear   it was accepted or sent, and nobody said who by

Exit code 7 when something is open. Without targets it contacts public resolvers and web
servers (1.1.1.1, 8.8.8.8, 162.159.200.1, one.one.one.one, and their IPv6 addresses). A
target must be one that policy does not allow, and should answer on ports 53, 80, 443 and
853, TCP and UDP.`,
		Example: `  egressd run --isolate --allow example.com -- egressd selftest
  egressd selftest --target4 192.0.2.10:7 --target6 [2001:db8::10]:7 --peer 10.0.0.12 --api 10.0.0.1:9443`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			o, err := f.options()
			if err != nil {
				return err
			}
			return a.tested(selftest.Run(cmd.Context(), o))
		},
	}
	fs := cmd.Flags()
	fs.StringVar(&f.target4, "target4", "", "IPv4 `ADDRESS:PORT` of a machine that answers, instead of public ones")
	fs.StringVar(&f.target6, "target6", "", "IPv6 `[ADDRESS]:PORT` of a machine that answers, instead of public ones")
	fs.StringVar(&f.name, "name", "", "`NAME:PORT` of a TLS server, to be reached by name")
	fs.StringVar(&f.dnsName, "dns-name", "", "`NAME` to ask other DNS servers for (default a random one under example.com)")
	fs.StringArrayVar(&f.peers, "peer", nil, "`HOST[:PORT]` of another sandbox (repeated)")
	fs.StringArrayVar(&f.api, "api", nil, "`HOST:PORT` or socket path of egressd's API (repeated)")
	fs.StringArrayVar(&f.own, "own", nil, "`HOST:PORT` or socket path of another listener of egressd (repeated)")
	fs.DurationVar(&f.timeout, "timeout", 3*time.Second, "bound for each probe")
	return cmd
}

func (f *selftestFlags) options() (selftest.Options, error) {
	o := selftest.Options{Name: f.name, DNSName: strings.TrimSuffix(f.dnsName, "."), Peers: f.peers, Own: append(f.api, f.own...), Timeout: f.timeout}
	if f.timeout <= 0 {
		return o, usage("--timeout: want a duration such as 3s")
	}
	if slices.Contains(f.peers, "") || slices.Contains(o.Own, "") {
		return o, usage("--peer, --api, --own: an empty value names nothing")
	}
	for _, t := range []struct {
		flag, value string
		v4          bool
		like        string
		at          *netip.AddrPort
	}{{"--target4", f.target4, true, "192.0.2.10:7", &o.Target4}, {"--target6", f.target6, false, "[2001:db8::10]:7", &o.Target6}} {
		if t.value == "" {
			continue
		}
		at, err := netip.ParseAddrPort(t.value)
		if err != nil || at.Addr().Is4() != t.v4 || at.Addr().Is4In6() || at.Port() == 0 {
			return o, usage("%s: %q is no IPv%s address with a port, such as %s", t.flag, t.value, t.flag[len(t.flag)-1:], t.like)
		}
		*t.at = at
	}
	if _, _, err := net.SplitHostPort(f.name); f.name != "" && err != nil {
		return o, usage("--name: %q is not NAME:PORT", f.name)
	}
	for _, l := range o.Own {
		if _, _, err := net.SplitHostPort(l); err != nil && !strings.HasPrefix(strings.TrimPrefix(l, "unix:"), "/") {
			return o, usage("--api, --own: %q is neither HOST:PORT nor the path of a socket", l)
		}
	}
	return o, nil
}

// tested prints the results and fails when a way is open.
func (a *app) tested(results []selftest.Result) error {
	counts := map[selftest.Verdict]int{}
	for _, r := range results {
		counts[r.Verdict]++
	}
	open := selftest.Opened(results)
	if a.json {
		a.printData(map[string]any{"ok": len(open) == 0, "open": open, "probes": results})
	} else {
		rows := [][]string{{"PROBE", "TARGET", "RESULT", "DETAIL"}}
		for _, r := range results {
			rows = append(rows, []string{r.Probe, r.Target, string(r.Verdict), r.Detail})
		}
		a.table(rows)
		var parts []string
		for _, v := range []selftest.Verdict{selftest.Blocked, selftest.Governed, selftest.Unclear, selftest.Skipped, selftest.Open} {
			parts = append(parts, fmt.Sprintf("%d %s", counts[v], v))
		}
		a.printf("%s\n", strings.Join(parts, ", "))
	}
	switch {
	case len(open) == 0:
		return nil
	case a.json:
		return &failed{code: exitCheck}
	}
	return fail(exitCheck, "%s open: %s", count(len(open), "way out is", "ways out are"), strings.Join(open, ", "))
}

package main

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/egressd/egressd/internal/config"
	"github.com/egressd/egressd/internal/redirect"
)

func (a *app) redirectCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use: "redirect", Short: "Netfilter rules that make sandboxes' traffic transparent", Args: cobra.ArbitraryArgs, RunE: group,
		Long: `A table of its own, inet egressd, brings sandboxes' TCP to listen.redirect or
listen.tproxy and their DNS to listen.dns, rejects UDP/443 so that clients fall back
to TCP, and drops the rest, in IPv4 and IPv6. It stays when the daemon ends, so that
nothing leaves past it. Linux; all but print need CAP_NET_ADMIN.`,
	}
	cmd.AddCommand(
		a.redirectSub("print", "Show the rules as a script for nft", a.redirectPrint),
		a.redirectSub("install", "Put the rules in force, in place of those that are there", a.redirectInstall),
		a.redirectSub("status", "Compare what is in force with what install would make; exit code 7 when it differs", a.redirectStatus),
		&cobra.Command{
			Use: "remove", Short: "Take away what install made: sandboxes are as free as before", Args: exactly(),
			RunE: func(*cobra.Command, []string) error {
				if err := redirect.Remove(); err != nil {
					return redirectError(err)
				}
				return a.redirectDone(map[string]any{"installed": false}, "removed")
			},
		})
	return cmd
}

// redirectFlags say whose traffic goes where.
type redirectFlags struct {
	config, mode    string
	port, dns, prox uint16
	interfaces      []string
	sources         []string
	uids            []uint
	mark            uint32
}

func (f *redirectFlags) register(fs *pflag.FlagSet) {
	fs.StringVarP(&f.config, "config", "c", "", "the daemon's config (EGRESSD_CONFIG): its listen.* give the ports, and its policy's sourceCIDRs the sources when no flag says whose traffic is meant")
	fs.StringVar(&f.mode, "mode", "", "redirect or tproxy; default: the one that --config listens for, or redirect")
	fs.Uint16Var(&f.port, "port", 0, "port of listen.redirect or listen.tproxy")
	fs.Uint16Var(&f.dns, "dns-port", 0, "port of listen.dns; 0: DNS over UDP is dropped")
	fs.Uint16Var(&f.prox, "proxy-port", 0, "port of listen.proxy, when sandboxes may use it as well; 0: they may not")
	fs.StringSliceVar(&f.interfaces, "interface", nil, "interface that sandboxes' packets arrive on, repeated or parted by commas; veth* is all that begin so")
	fs.StringSliceVar(&f.sources, "source", nil, "addresses of sandboxes, as CIDR")
	fs.UintSliceVar(&f.uids, "uid", nil, "local user whose processes are sandboxes (mode redirect)")
	fs.Uint32Var(&f.mark, "mark", 0, fmt.Sprintf("packet mark and route table of mode tproxy; 0: %d", redirect.DefaultMark))
}

func (a *app) redirectSub(name, short string, run func(redirect.Spec) error) *cobra.Command {
	var f redirectFlags
	cmd := &cobra.Command{
		Use: name, Short: short, Args: exactly(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			spec, err := a.redirectSpec(&f, cmd.Flags().Changed)
			if err != nil {
				return err
			}
			return run(spec)
		},
	}
	f.register(cmd.Flags())
	return cmd
}

// redirectSpec joins flags and configuration; a flag that was given goes first.
func (a *app) redirectSpec(f *redirectFlags, given func(string) bool) (redirect.Spec, error) {
	s := redirect.Spec{Port: f.port, DNSPort: f.dns, ProxyPort: f.prox, Interfaces: f.interfaces, Mark: f.mark}
	for _, u := range f.uids {
		if u > 1<<32-2 {
			return s, usage("--uid %d is no user id", u)
		}
		s.UIDs = append(s.UIDs, uint32(u))
	}
	var err error
	if s.Sources, err = parseSources(f.sources); err != nil {
		return s, err
	}
	var cfg *config.Config
	if file := f.configFile(a); file != "" {
		loaded, err := config.Load(config.Input{File: file, Env: a.environ})
		if err != nil {
			return s, err
		}
		cfg = &loaded.Config
	}
	if s.Mode, err = f.modeOf(cfg); err != nil {
		return s, err
	}
	if cfg != nil {
		if err := a.fromConfig(&s, cfg, given); err != nil {
			return s, err
		}
	}
	switch {
	case s.Port == 0:
		return s, usage("say where connections go: --port, or --config with listen.%s", s.Mode)
	case len(s.Interfaces) == 0 && len(s.Sources) == 0 && len(s.UIDs) == 0:
		return s, usage("say whose traffic is meant: --interface, --source or --uid, or --config with a policy that has identify.sourceCIDRs")
	}
	if err := s.Validate(); err != nil {
		return s, usage("%s", strings.TrimPrefix(err.Error(), redirect.ErrSpec.Error()+": "))
	}
	return s, nil
}

func (f *redirectFlags) configFile(a *app) string {
	if f.config != "" {
		return f.config
	}
	return a.env("EGRESSD_CONFIG")
}

func parseSources(texts []string) ([]netip.Prefix, error) {
	var out []netip.Prefix
	for _, text := range texts {
		p, err := netip.ParsePrefix(text)
		if addr, aerr := netip.ParseAddr(text); aerr == nil && addr.Zone() == "" {
			p, err = netip.PrefixFrom(addr, addr.BitLen()), nil
		}
		if err != nil {
			return nil, usage("--source %q is no CIDR such as 10.200.0.0/24", text)
		}
		out = append(out, p)
	}
	return out, nil
}

func (f *redirectFlags) modeOf(cfg *config.Config) (redirect.Mode, error) {
	switch f.mode {
	case "redirect":
		return redirect.NAT, nil
	case "tproxy":
		return redirect.TProxy, nil
	case "":
	default:
		return 0, usage("--mode %q: want redirect or tproxy", f.mode)
	}
	switch {
	case cfg == nil || cfg.Listen.TProxy == "":
		return redirect.NAT, nil
	case cfg.Listen.Redirect != "":
		return 0, usage("listen.redirect and listen.tproxy are both set: say --mode redirect or --mode tproxy")
	}
	return redirect.TProxy, nil
}

// fromConfig fills in what no flag said.
func (a *app) fromConfig(s *redirect.Spec, cfg *config.Config, given func(string) bool) error {
	key, addr := "listen.redirect", cfg.Listen.Redirect
	if s.Mode == redirect.TProxy {
		key, addr = "listen.tproxy", cfg.Listen.TProxy
	}
	for _, l := range []struct {
		flag, key, addr string
		port            *uint16
	}{{"port", key, addr, &s.Port}, {"dns-port", "listen.dns", cfg.Listen.DNS, &s.DNSPort}} {
		if given(l.flag) || l.addr == "" {
			continue
		}
		loopback, port := listenPort(l.addr)
		switch {
		case port == 0:
			return usage("%s %s has no fixed port: rules need one", l.key, l.addr)
		case loopback && len(s.UIDs) == 0:
			return usage("%s %s is on loopback, where packets of other interfaces never arrive: set it to \":%d\"", l.key, l.addr, port)
		}
		*l.port = port
	}
	if !given("proxy-port") {
		if loopback, port := listenPort(cfg.Listen.Proxy); !loopback || len(s.UIDs) > 0 {
			s.ProxyPort = port
		}
	}
	if len(s.Interfaces) > 0 || len(s.Sources) > 0 || len(s.UIDs) > 0 {
		return nil
	}
	return a.policySources(s, cfg)
}

// policySources takes all addresses that identify sandboxes. Those of this machine alone
// never arrive on an interface.
func (a *app) policySources(s *redirect.Spec, cfg *config.Config) error {
	if err := cfg.CheckPolicyDir(); err != nil {
		return usage("%w", err)
	}
	set, _, err := loadPath(cfg.Policy.Dir)
	if err != nil {
		return err
	}
	for _, sb := range set.View().Sandboxes {
		for _, text := range sb.SourceCIDRs {
			p, err := netip.ParsePrefix(text)
			switch {
			case err != nil:
				return usage("sandbox %s: %w", sb.ID, err)
			case p.Addr().IsLoopback():
				a.warn("sandbox %s: %s is this machine itself and is left out: local processes are redirected by --uid", sb.ID, p)
				continue
			}
			s.Sources = append(s.Sources, p)
		}
	}
	return nil
}

// listenPort reads a listening address that config has checked.
func listenPort(addr string) (loopback bool, port uint16) {
	host, text, err := net.SplitHostPort(addr)
	if err != nil {
		return false, 0
	}
	n, err := strconv.ParseUint(text, 10, 16)
	if err != nil {
		return false, 0
	}
	ip, _ := netip.ParseAddr(host)
	return host == "localhost" || ip.IsLoopback(), uint16(n)
}

func (a *app) redirectPrint(s redirect.Spec) error {
	text, err := s.Text()
	if err != nil {
		return redirectError(err)
	}
	if a.json {
		a.printData(map[string]any{"ruleset": text})
		return nil
	}
	a.printf("%s", text)
	return nil
}

func (a *app) redirectInstall(s redirect.Spec) error {
	if err := redirect.Install(s); err != nil {
		return redirectError(err)
	}
	return a.redirectDone(map[string]any{"installed": true}, "installed: "+describe(s))
}

func (a *app) redirectDone(data map[string]any, line string) error {
	if a.json {
		a.printData(data)
	} else {
		a.printf("%s\n", line)
	}
	return nil
}

func (a *app) redirectStatus(s redirect.Spec) error {
	diffs, err := redirect.Status(s)
	if err != nil {
		return redirectError(err)
	}
	if len(diffs) == 0 {
		return a.redirectDone(map[string]any{"installed": true, "differences": []string{}}, "installed: "+describe(s))
	}
	if a.json {
		a.printData(map[string]any{"installed": false, "differences": diffs})
		return &failed{code: exitCheck}
	}
	for _, d := range diffs {
		a.printf("%s\n", d)
	}
	return fail(exitCheck, "the rules are not those that are asked for: `egressd redirect install` with the same flags puts them in force")
}

// describe is what the rules do, in one line.
func describe(s redirect.Spec) string {
	var whose []string
	if len(s.Interfaces) > 0 {
		whose = append(whose, "on "+strings.Join(s.Interfaces, ", "))
	}
	if n := len(s.Sources); n == 1 {
		whose = append(whose, "from "+s.Sources[0].String())
	} else if n > 1 {
		whose = append(whose, fmt.Sprintf("from %d address ranges", n))
	}
	if len(s.UIDs) > 0 {
		whose = append(whose, "of uid "+strings.Trim(strings.ReplaceAll(fmt.Sprint(s.UIDs), " ", ", "), "[]"))
	}
	dns := "DNS over UDP is dropped"
	if s.DNSPort != 0 {
		dns = fmt.Sprintf("DNS goes to port %d", s.DNSPort)
	}
	return fmt.Sprintf("TCP %s goes to port %d (%s), %s", strings.Join(whose, " and "), s.Port, s.Mode, dns)
}

func redirectError(err error) error {
	switch {
	case errors.Is(err, redirect.ErrPrivilege):
		return fail(exitNetwork, "netfilter rules need CAP_NET_ADMIN in this network namespace: run it as root, or from systemd as ExecStartPre=+…; `egressd redirect print` needs nothing")
	case errors.Is(err, redirect.ErrUnsupported):
		return fail(exitNetwork, "%w", err)
	}
	return fail(exitNetwork, "redirect: %w", err)
}

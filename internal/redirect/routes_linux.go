package redirect

import (
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"syscall"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// family is IPv4 or IPv6 in the terms of routes.
type family struct {
	number int
	name   string
	all    net.IPNet
}

// families are those that the kernel speaks: a route for IPv6 cannot be made where it is
// switched off, nor is one needed.
func families() []family {
	out := []family{{unix.AF_INET, "IPv4", net.IPNet{IP: net.IPv4zero.To4(), Mask: net.CIDRMask(0, 32)}}}
	off, err := os.ReadFile("/proc/sys/net/ipv6/conf/lo/disable_ipv6")
	if err != nil || strings.TrimSpace(string(off)) != "0" {
		return out
	}
	return append(out, family{unix.AF_INET6, "IPv6", net.IPNet{IP: net.IPv6zero, Mask: net.CIDRMask(0, 128)}})
}

// setRoutes makes the policy route of s for TPROXY, and takes away those of ours that s
// has no use for.
func setRoutes(s Spec) error {
	for _, f := range families() {
		rule, route, err := ours(f)
		if err != nil {
			return err
		}
		if err := setRule(s, f, rule); err != nil {
			return explain(f.name+" policy rule", err)
		}
		if err := setRoute(s, f, route); err != nil {
			return explain(f.name+" route", err)
		}
	}
	return nil
}

// ours are the rules and routes that carry our protocol number.
func ours(f family) ([]netlink.Rule, []netlink.Route, error) {
	all, err := netlink.RuleList(f.number)
	if err != nil {
		return nil, nil, explain(f.name+" policy rules", err)
	}
	var rules []netlink.Rule
	for _, r := range all {
		if r.Protocol == routeProtocol {
			rules = append(rules, r)
		}
	}
	routes, err := netlink.RouteListFiltered(f.number, &netlink.Route{Protocol: routeProtocol, Table: unix.RT_TABLE_UNSPEC},
		netlink.RT_FILTER_PROTOCOL|netlink.RT_FILTER_TABLE)
	if err != nil {
		return nil, nil, explain(f.name+" routes", err)
	}
	return rules, routes, nil
}

func setRule(s Spec, f family, have []netlink.Rule) error {
	found := false
	for i := range have {
		if !found && s.Mode == TProxy && s.isRule(&have[i]) {
			found = true
			continue
		}
		have[i].Family = f.number
		if err := netlink.RuleDel(&have[i]); err != nil && !errors.Is(err, syscall.ENOENT) {
			return err
		}
	}
	if found || s.Mode != TProxy {
		return nil
	}
	return netlink.RuleAdd(s.rule(f))
}

func (s Spec) rule(f family) *netlink.Rule {
	r := netlink.NewRule()
	r.Family, r.Mark, r.Table, r.Priority, r.Protocol = f.number, s.mark(), int(s.mark()), rulePriority, routeProtocol
	return r
}

func (s Spec) isRule(r *netlink.Rule) bool {
	return r.Mark == s.mark() && r.Table == int(s.mark()) && r.Priority == rulePriority && (r.Mask == nil || *r.Mask == 0xffffffff) &&
		r.Src == nil && r.Dst == nil && r.IifName == "" && r.OifName == "" && !r.Invert
}

func setRoute(s Spec, f family, have []netlink.Route) error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	found := false
	for i := range have {
		if !found && s.Mode == TProxy && s.isRoute(&have[i], lo) {
			found = true
			continue
		}
		if err := netlink.RouteDel(&have[i]); err != nil && !errors.Is(err, syscall.ESRCH) {
			return err
		}
	}
	if found || s.Mode != TProxy {
		return nil
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		return fmt.Errorf("lo up: %w", err)
	}
	all := f.all
	return netlink.RouteAdd(&netlink.Route{LinkIndex: lo.Attrs().Index, Dst: &all, Table: int(s.mark()), Type: unix.RTN_LOCAL,
		Scope: unix.RT_SCOPE_HOST, Protocol: routeProtocol, Family: f.number})
}

func (s Spec) isRoute(r *netlink.Route, lo netlink.Link) bool {
	everything := r.Dst == nil
	if r.Dst != nil {
		ones, _ := r.Dst.Mask.Size()
		everything = ones == 0
	}
	return everything && r.Table == int(s.mark()) && r.Type == unix.RTN_LOCAL && r.LinkIndex == lo.Attrs().Index
}

func compareRoutes(s Spec) ([]string, error) {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return nil, explain("lo", err)
	}
	var diffs []string
	for _, f := range families() {
		rules, routes, err := ours(f)
		if err != nil {
			return nil, err
		}
		wanted := 0
		if s.Mode == TProxy {
			wanted = 1
		}
		switch {
		case len(rules) > wanted || wanted == 1 && len(rules) == 1 && !s.isRule(&rules[0]):
			diffs = append(diffs, fmt.Sprintf("%s: a policy rule of another installation", f.name))
		case len(rules) < wanted:
			diffs = append(diffs, fmt.Sprintf("%s: the policy rule for mark %#x is missing", f.name, s.mark()))
		}
		switch {
		case len(routes) > wanted || wanted == 1 && len(routes) == 1 && !s.isRoute(&routes[0], lo):
			diffs = append(diffs, fmt.Sprintf("%s: a route of another installation", f.name))
		case len(routes) < wanted:
			diffs = append(diffs, fmt.Sprintf("%s: the local route in table %d is missing", f.name, s.mark()))
		}
	}
	return diffs, nil
}

package redirect

import (
	"bytes"
	"fmt"
	"reflect"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
)

// Status compares what is in force with what Install would make, and gives what differs,
// a line each; none: nothing does. Errors: ErrSpec, ErrPrivilege, ErrUnsupported.
func Status(s Spec) ([]string, error) {
	if err := s.Validate(); err != nil {
		return nil, err
	}
	conn, err := nftables.New()
	if err != nil {
		return nil, explain("netlink", err)
	}
	tables, err := conn.ListTablesOfFamily(nftables.TableFamilyINet)
	if err != nil {
		return nil, explain("netfilter", err)
	}
	var diffs []string
	i := slices.IndexFunc(tables, func(t *nftables.Table) bool { return t.Name == tableName })
	if i < 0 {
		diffs = append(diffs, "table inet "+tableName+" is not installed")
	} else if diffs, err = s.rules().compare(conn, tables[i]); err != nil {
		return nil, explain("netfilter", err)
	}
	routes, err := compareRoutes(s)
	if err != nil {
		return nil, err
	}
	return append(diffs, routes...), nil
}

func (r *ruleset) compare(conn *nftables.Conn, table *nftables.Table) ([]string, error) {
	var diffs []string
	if table.Flags != 0 {
		diffs = append(diffs, "table inet "+tableName+" is dormant or owned")
	}
	sets, err := r.compareSets(conn, table)
	if err != nil {
		return nil, err
	}
	diffs = append(diffs, sets...)
	all, err := conn.ListChainsOfTableFamily(nftables.TableFamilyINet)
	if err != nil {
		return nil, err
	}
	found := map[string]*nftables.Chain{}
	for _, c := range all {
		if c.Table.Name == tableName {
			found[c.Name] = c
		}
	}
	for _, want := range r.chains {
		got := found[want.name]
		delete(found, want.name)
		if got == nil {
			diffs = append(diffs, "chain "+want.name+" is missing")
			continue
		}
		rules, err := conn.GetRules(table, got)
		if err != nil {
			return nil, err
		}
		diffs = append(diffs, want.compare(got, rules)...)
	}
	for name := range found {
		diffs = append(diffs, "chain "+name+" is not ours")
	}
	return diffs, nil
}

func (c chain) compare(got *nftables.Chain, rules []*nftables.Rule) []string {
	want := c.kernel(got.Table)
	if got.Type != want.Type || !same(got.Hooknum, want.Hooknum) || !same(got.Priority, want.Priority) || !same(got.Policy, want.Policy) {
		return []string{"chain " + c.name + " has another hook, priority or policy"}
	}
	for i, r := range c.rules {
		if i >= len(rules) {
			return []string{fmt.Sprintf("chain %s lacks `%s`", c.name, r)}
		}
		if !reflect.DeepEqual(listed(rules[i].Exprs), listed(r.kernel())) {
			return []string{fmt.Sprintf("chain %s has another rule where `%s` should stand", c.name, r)}
		}
	}
	if n := len(rules) - len(c.rules); n > 0 {
		return []string{fmt.Sprintf("chain %s has rules that are not ours: %d", c.name, n)}
	}
	return nil
}

func same[T comparable](a, b *T) bool {
	return a == b || a != nil && b != nil && *a == *b
}

// listed drops what the library does not read back: TPROXY's expression (the port before
// it and the mark after it are compared) and the number that a set had in its transaction.
func listed(exprs []expr.Any) []expr.Any {
	out := make([]expr.Any, 0, len(exprs))
	for _, e := range exprs {
		switch e := e.(type) {
		case *expr.TProxy:
			continue
		case *expr.Lookup:
			plain := *e
			plain.SetID = 0
			out = append(out, &plain)
			continue
		}
		out = append(out, e)
	}
	return out
}

func (r *ruleset) compareSets(conn *nftables.Conn, table *nftables.Table) ([]string, error) {
	all, err := conn.GetSets(table)
	if err != nil {
		return nil, err
	}
	found := map[string]*nftables.Set{}
	for _, s := range all {
		found[s.Name] = s
	}
	var diffs []string
	for _, want := range r.sets {
		got := found[want.name]
		delete(found, want.name)
		if got == nil {
			diffs = append(diffs, "set "+want.name+" is missing")
			continue
		}
		elements, err := conn.GetSetElements(got)
		if err != nil {
			return nil, err
		}
		if !slices.Equal(keysOf(elements), keysOf(want.elements())) {
			diffs = append(diffs, "set "+want.name+" holds other addresses")
		}
	}
	for name := range found {
		diffs = append(diffs, "set "+name+" is not ours")
	}
	return diffs, nil
}

// keysOf makes elements comparable: the kernel lists them in an order of its own.
func keysOf(elements []nftables.SetElement) []string {
	slices.SortFunc(elements, func(a, b nftables.SetElement) int {
		if c := bytes.Compare(a.Key, b.Key); c != 0 || a.IntervalEnd == b.IntervalEnd {
			return c
		} else if a.IntervalEnd {
			return -1
		}
		return 1
	})
	out := make([]string, 0, len(elements))
	for _, e := range elements {
		out = append(out, fmt.Sprintf("%x %t", e.Key, e.IntervalEnd))
	}
	return out
}

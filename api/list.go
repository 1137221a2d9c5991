package api

import (
	"cmp"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"maps"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/egressd/egressd/source"
	"github.com/egressd/egressd/store"
)

const maxPage = 200

func listParams() []param {
	return []param{
		{name: "status", about: "active, disabled or archived; any of several", many: true},
		{name: "resolverKind", about: "any of several", many: true},
		{name: "managedMode", about: "local: values in egressd's own store"},
		{name: "label", about: "key:value; all of several", many: true},
		{name: "name__startswith", about: "the name's beginning"},
		{name: "name__contains", about: "a part of the name"},
		{name: "search", about: "a part of name, description or labels, in any letter case"},
		{name: "updatedAt__gte", about: "RFC 3339 time"},
		{name: "updatedAt__lte", about: "RFC 3339 time"},
		{name: "order_by", about: "name (default), createdAt or updatedAt; with - before it descending"},
		{name: "pageSize", about: "1 to 200; without it all come", number: true},
		{name: "pageToken", about: "nextPageToken of the page before, with the same other parameters"},
	}
}

// listing is a parsed query.
type listing struct {
	keep  []func(store.Meta) bool
	order string
	desc  bool
	size  int // 0: all
	after *cursor
	shape string // fingerprint of everything but the page
}

// cursor is the place in the order after which a page begins.
type cursor struct {
	Shape string `json:"s"`
	Key   string `json:"k"`
	Name  string `json:"n"`
}

func (s *Server) listSources(c *call) (answer, *failure) {
	l, f := parseListing(c.query)
	if f != nil {
		return answer{}, f
	}
	all, err := s.opt.Writer.List(c.ctx, c.team)
	if err != nil {
		return answer{}, failStore(sourceWord, err)
	}
	page, next := l.page(all)
	out := make([]Source, 0, len(page))
	for _, m := range page {
		out = append(out, s.viewNow(m))
	}
	return answer{data: out, next: next}, nil
}

func parseListing(q url.Values) (listing, *failure) {
	l := listing{order: "name", shape: shapeOf(q)}
	for name := range q {
		if f := l.filter(name, q[name]); f != nil {
			return l, f
		}
	}
	if by := q.Get("order_by"); by != "" {
		l.order, l.desc = strings.CutPrefix(by, "-")
		if l.order != "name" && l.order != "createdAt" && l.order != "updatedAt" {
			return l, failParam("order_by", "must be name, createdAt or updatedAt, with - before it for descending")
		}
	}
	if q.Has("pageSize") {
		n, err := strconv.Atoi(q.Get("pageSize"))
		if err != nil || n < 1 || n > maxPage {
			return l, failParam("pageSize", "must be 1 to 200")
		}
		l.size = n
	}
	if token := q.Get("pageToken"); token != "" {
		if l.size == 0 {
			return l, failParam("pageToken", "needs pageSize")
		}
		if l.after = parseCursor(token, l.shape); l.after == nil {
			return l, failParam("pageToken", "is not the nextPageToken of this list")
		}
	}
	return l, nil
}

// filter adds what one parameter keeps.
func (l *listing) filter(name string, values []string) *failure {
	v := values[0]
	add := func(f func(store.Meta) bool) { l.keep = append(l.keep, f) }
	switch name {
	case "status":
		for _, v := range values {
			if statusOf(&v) == nil {
				return failParam(name, "must be active, disabled or archived")
			}
		}
		add(func(m store.Meta) bool { return slices.Contains(values, string(m.Status)) })
	case "resolverKind":
		add(func(m store.Meta) bool { return slices.Contains(values, m.Kind) })
	case "managedMode":
		add(func(store.Meta) bool { return v == "local" })
	case "label":
		for _, v := range values {
			key, want, ok := strings.Cut(v, ":")
			if !ok || key == "" {
				return failParam(name, "must be key:value")
			}
			add(func(m store.Meta) bool { got, has := m.Labels[key]; return has && got == want })
		}
	case "name__startswith":
		add(func(m store.Meta) bool { return strings.HasPrefix(m.Name, v) })
	case "name__contains":
		add(func(m store.Meta) bool { return strings.Contains(m.Name, v) })
	case "search":
		add(func(m store.Meta) bool { return found(m, strings.ToLower(v)) })
	case "updatedAt__gte", "updatedAt__lte":
		t, err := time.Parse(time.RFC3339, v)
		if err != nil {
			return failParam(name, "must be an RFC 3339 time")
		}
		if name == "updatedAt__gte" {
			add(func(m store.Meta) bool { return !m.UpdatedAt.Before(t) })
		} else {
			add(func(m store.Meta) bool { return !m.UpdatedAt.After(t) })
		}
	}
	return nil
}

func found(m store.Meta, lower string) bool {
	hay := append([]string{m.Name, m.Description}, slices.Concat(slices.Collect(maps.Keys(m.Labels)), slices.Collect(maps.Values(m.Labels)))...)
	return slices.ContainsFunc(hay, func(h string) bool { return strings.Contains(strings.ToLower(h), lower) })
}

// page filters, orders and cuts.
func (l *listing) page(all []store.Meta) (page []store.Meta, next string) {
	page = slices.DeleteFunc(all, func(m store.Meta) bool {
		return slices.ContainsFunc(l.keep, func(keep func(store.Meta) bool) bool { return !keep(m) })
	})
	slices.SortFunc(page, func(a, b store.Meta) int { return l.compare(l.key(a), a.Name, l.key(b), b.Name) })
	if l.after != nil {
		from, _ := slices.BinarySearchFunc(page, l.after, func(m store.Meta, at *cursor) int {
			if l.compare(l.key(m), m.Name, at.Key, at.Name) <= 0 {
				return -1
			}
			return 1
		})
		page = page[from:]
	}
	if l.size > 0 && len(page) > l.size {
		page = page[:l.size]
		last := page[l.size-1]
		next = cursor{Shape: l.shape, Key: l.key(last), Name: last.Name}.String()
	}
	return page, next
}

// key is what the list is ordered by, in a form whose byte order is its order.
func (l *listing) key(m store.Meta) string {
	const sortable = "2006-01-02T15:04:05.000000000Z"
	switch l.order {
	case "createdAt":
		return m.CreatedAt.UTC().Format(sortable)
	case "updatedAt":
		return m.UpdatedAt.UTC().Format(sortable)
	}
	return m.Name
}

func (l *listing) compare(aKey, aName, bKey, bName string) int {
	n := cmp.Or(strings.Compare(aKey, bKey), strings.Compare(aName, bName))
	if l.desc {
		return -n
	}
	return n
}

// shapeOf is a fingerprint of a list's parameters apart from its pages.
func shapeOf(q url.Values) string {
	rest := maps.Clone(q)
	delete(rest, "pageToken")
	delete(rest, "pageSize")
	sum := sha256.Sum256([]byte(rest.Encode()))
	return base64.RawURLEncoding.EncodeToString(sum[:6])
}

// String is the opaque form.
func (c cursor) String() string {
	b, err := json.Marshal(c)
	if err != nil {
		return ""
	}
	return base64.RawURLEncoding.EncodeToString(b)
}

func parseCursor(token, shape string) *cursor {
	b, err := base64.RawURLEncoding.DecodeString(token)
	if err != nil || len(token) > 1024 {
		return nil
	}
	c := new(cursor)
	if source.DecodeStrict(b, c) != nil || c.Shape != shape {
		return nil
	}
	return c
}

package config

import (
	"bytes"
	"fmt"
	"maps"
	"net/url"
	"slices"
	"strings"

	"gopkg.in/yaml.v3"
)

// YAML is the effective configuration as a file that Load accepts, with the origin of
// every key that is not at its default as a comment. It holds no secret.
func (l *Loaded) YAML() []byte {
	root := mapNode()
	root.Content = append(root.Content, strNode("apiVersion"), strNode(APIVersion))
	eff := l.Effective()
	for _, k := range Keys() {
		if k.Path == "store.key.provider" {
			continue
		}
		v := valueNode(k.shown(&eff))
		if o := l.Origin[k.Path]; o != "" {
			v.LineComment = "from " + o
		}
		put(root, strings.Split(k.Path, "."), v)
	}
	var b bytes.Buffer
	enc := yaml.NewEncoder(&b)
	enc.SetIndent(2)
	if err := enc.Encode(root); err != nil {
		panic(fmt.Sprintf("config: encoding a tree of our own: %v", err))
	}
	return b.Bytes()
}

// Map is the effective configuration as nested maps, for JSON.
func (l *Loaded) Map() map[string]any {
	out := map[string]any{"apiVersion": APIVersion}
	eff := l.Effective()
	for _, k := range Keys() {
		if k.Path == "store.key.provider" {
			continue
		}
		at, parts := out, strings.Split(k.Path, ".")
		for _, p := range parts[:len(parts)-1] {
			next, ok := at[p].(map[string]any)
			if !ok {
				next = map[string]any{}
				at[p] = next
			}
			at = next
		}
		at[parts[len(parts)-1]] = k.shown(&eff)
	}
	return out
}

// shown is the value without the password that a URL may hold.
func (k Key) shown(c *Config) any {
	v := k.get(c)
	s, ok := v.(string)
	if !ok || !strings.Contains(s, "://") {
		return v
	}
	u, err := url.Parse(s)
	if err != nil {
		return "[redacted]"
	}
	return u.Redacted()
}

func put(at *yaml.Node, path []string, v *yaml.Node) {
	if len(path) == 1 {
		at.Content = append(at.Content, strNode(path[0]), v)
		return
	}
	for i := 0; i < len(at.Content); i += 2 {
		if at.Content[i].Value == path[0] {
			put(at.Content[i+1], path[1:], v)
			return
		}
	}
	next := mapNode()
	at.Content = append(at.Content, strNode(path[0]), next)
	put(next, path[1:], v)
}

func mapNode() *yaml.Node { return &yaml.Node{Kind: yaml.MappingNode, Tag: "!!map"} }

func strNode(s string) *yaml.Node {
	n := &yaml.Node{}
	n.SetString(s)
	return n
}

func valueNode(v any) *yaml.Node {
	switch v := v.(type) {
	case string:
		if v == "0" { // a duration or size of nothing reads best as a number
			return &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!int", Value: v}
		}
		return strNode(v)
	case int:
		return &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!int", Value: fmt.Sprint(v)}
	case []string:
		n := &yaml.Node{Kind: yaml.SequenceNode, Tag: "!!seq", Style: yaml.FlowStyle}
		for _, s := range v {
			n.Content = append(n.Content, strNode(s))
		}
		return n
	case map[string]string:
		n := mapNode()
		n.Style = yaml.FlowStyle
		for _, name := range slices.Sorted(maps.Keys(v)) {
			n.Content = append(n.Content, strNode(name), strNode(v[name]))
		}
		return n
	}
	panic(fmt.Sprintf("config: no YAML form for %T", v))
}

package source

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/egressd/egressd/store"
)

// Names of projections, as policy writes them in projection.type.
const (
	HTTPHeaders             = "http_headers"
	PlaceholderSubstitution = "placeholder_substitution"
	UsernamePassword        = "username_password"
	TLSClientCertificate    = "tls_client_certificate"
	AWSSigV4                = "aws_sigv4"
	SSHProxy                = "ssh_proxy"
)

// expiresSoon is how long before its end material is reported as expiring.
const expiresSoon = 30 * 24 * time.Hour

// Input is one member of a spec's block: what the schema, the OpenAPI document and the
// CLI's prompts are made from.
type Input struct {
	Name      string
	About     string
	Map       bool // string → string, not a string
	Required  bool
	Secret    bool // prompt without echo
	Multiline bool // PEM: from a file or stdin
}

// Parsed is what a kind made of one block.
type Parsed struct {
	// Canonical is marshalled by encoding/json (so: members in a fixed order) and
	// must give the same bytes for the same meaning.
	Canonical any
	Set       []string  // paths below the block that are set
	Material  *Material // without team, name, version
	NotBefore time.Time // zero: no bound
	NotAfter  time.Time
	Warnings  []string // health that does not depend on the time
}

// Kind is one resolverKind. The exported functions of it are safe for concurrent use.
type Kind struct {
	Name  string // resolverKind
	Block string // the one member of spec
	About string
	// Inputs of the block, in the order in which a prompt asks.
	Inputs []Input
	// Projections that suit it, by policy's names.
	Projections []string
	// TemplateVars are the fields that a template may name. OpenVars: the fields are
	// the source's own keys and TemplateVars is empty.
	TemplateVars []string
	OpenVars     bool
	// NotSecret are the Values that name somebody and let nobody in: write-only as all of
	// a spec, and nothing to look for in the traffic.
	NotSecret []string
	// Decode reads the block and adds what is wrong with it to errs, with paths below
	// the block; its result counts only when it added nothing.
	Decode func(block json.RawMessage, errs FieldErrors) Parsed
}

// Inspection is all that the management plane may know of a valid spec; only
// Canonical holds what is secret, and it goes to the Writer and nowhere else.
type Inspection struct {
	Canonical []byte // for store.Put.Spec
	Fields    []store.Field
	Keys      []string // template variables that it offers
	Health    string   // "ok" or warnings
	ExpiresAt time.Time
}

// Inspect checks spec ({"<block>": {…}}) and describes it. The error is ErrTooLarge
// or FieldErrors with paths below spec.
func (k Kind) Inspect(spec []byte, now time.Time) (Inspection, error) {
	p, err := k.parse(spec)
	if err != nil {
		return Inspection{}, err
	}
	canonical, err := json.Marshal(map[string]any{k.Block: p.Canonical})
	if err != nil {
		return Inspection{}, fmt.Errorf("encode spec: %w", err)
	}
	in := Inspection{Canonical: canonical, Keys: k.TemplateVars, Health: p.health(now), ExpiresAt: p.NotAfter}
	slices.Sort(p.Set)
	for _, path := range p.Set {
		in.Fields = append(in.Fields, store.Field{Path: join(k.Block, path), Set: true, Origin: "local"})
	}
	if k.OpenVars {
		for key := range p.Material.Values {
			in.Keys = append(in.Keys, key)
		}
		slices.Sort(in.Keys)
	}
	return in, nil
}

// Check is Inspect for its error.
func (k Kind) Check(spec []byte) error {
	_, err := k.parse(spec)
	return err
}

// Canonical is the form of spec in which equal specs are equal bytes.
func (k Kind) Canonical(spec []byte) ([]byte, error) {
	in, err := k.Inspect(spec, time.Time{})
	return in.Canonical, err
}

// Fields lists the leaves of spec that are set.
func (k Kind) Fields(spec []byte) ([]store.Field, error) {
	in, err := k.Inspect(spec, time.Time{})
	return in.Fields, err
}

// Health is "ok" or what there is to warn of at now.
func (k Kind) Health(spec []byte, now time.Time) (string, error) {
	in, err := k.Inspect(spec, now)
	return in.Health, err
}

// Parse turns spec into material that has no team, name or version yet.
func (k Kind) Parse(spec []byte) (*Material, error) {
	p, err := k.parse(spec)
	if err != nil {
		return nil, err
	}
	p.Material.Kind, p.Material.ExpiresAt, p.Material.NotSecret = k.Name, p.NotAfter, k.NotSecret
	return p.Material, nil
}

func (k Kind) parse(spec []byte) (Parsed, error) {
	if len(spec) > MaxSpec {
		return Parsed{}, ErrTooLarge
	}
	if len(bytes.TrimSpace(spec)) == 0 {
		return Parsed{}, FieldErrors{"": {"is required"}}
	}
	var blocks map[string]json.RawMessage
	if err := DecodeStrict(spec, &blocks); err != nil {
		return Parsed{}, err
	}
	errs := FieldErrors{}
	for i, name := range slices.Sorted(maps.Keys(blocks)) {
		if name != k.Block {
			errs.Add(pathOf(name, i+1), "does not belong here: a "+k.Name+" spec has the one block "+k.Block)
		}
	}
	block, ok := blocks[k.Block]
	if !ok {
		errs.Add(k.Block, "is required")
		return Parsed{}, errs
	}
	inner := FieldErrors{}
	p := k.Decode(block, inner)
	for path, messages := range inner.Under(k.Block) {
		errs[path] = messages
	}
	return p, errs.Err()
}

func (p Parsed) health(now time.Time) string {
	warnings := slices.Clone(p.Warnings)
	switch {
	case now.IsZero():
	case !p.NotAfter.IsZero() && now.After(p.NotAfter):
		warnings = append(warnings, "expired on "+p.NotAfter.UTC().Format(time.DateOnly))
	case !p.NotAfter.IsZero() && p.NotAfter.Sub(now) < expiresSoon:
		warnings = append(warnings, "expires in "+days(p.NotAfter.Sub(now)))
	case now.Before(p.NotBefore):
		warnings = append(warnings, "not valid before "+p.NotBefore.UTC().Format(time.RFC3339))
	}
	if len(warnings) == 0 {
		return "ok"
	}
	return strings.Join(warnings, "; ")
}

func days(d time.Duration) string {
	switch n := int(d / (24 * time.Hour)); n {
	case 0:
		return "less than a day"
	case 1:
		return "1 day"
	default:
		return fmt.Sprintf("%d days", n)
	}
}

// Schema is the JSON Schema (2020-12) of spec for this kind. Everything in it is
// write-only.
func (k Kind) Schema() map[string]any {
	properties, required := map[string]any{}, []string{}
	for _, in := range k.Inputs {
		leaf := map[string]any{"type": "string", "minLength": 1}
		if in.Map {
			leaf = map[string]any{
				"type": "object", "minProperties": 1,
				"propertyNames":        map[string]any{"pattern": KeyPattern},
				"additionalProperties": map[string]any{"type": "string", "minLength": 1},
			}
		}
		leaf["description"], leaf["writeOnly"] = in.About, true
		properties[in.Name] = leaf
		if in.Required {
			required = append(required, in.Name)
		}
	}
	block := map[string]any{"type": "object", "additionalProperties": false, "properties": properties}
	if len(required) > 0 {
		block["required"] = required
	}
	return map[string]any{
		"type": "object", "additionalProperties": false, "writeOnly": true, "description": k.About,
		"required": []string{k.Block}, "properties": map[string]any{k.Block: block},
	}
}

// KeyPattern is what a key of static_headers' values looks like: a name that a
// template can say.
const KeyPattern = `^[A-Za-z_][A-Za-z0-9_]{0,63}$`

// Registry holds the kinds. Immutable once made; the zero value knows none.
type Registry struct{ byName map[string]Kind }

// NewRegistry refuses two kinds of one name or block.
func NewRegistry(kinds ...Kind) (*Registry, error) {
	r := &Registry{byName: make(map[string]Kind, len(kinds))}
	blocks := map[string]bool{}
	for _, k := range kinds {
		if _, twice := r.byName[k.Name]; twice || blocks[k.Block] {
			return nil, fmt.Errorf("kind %s is registered twice", k.Name)
		}
		if k.Name == "" || k.Block == "" || k.Decode == nil {
			return nil, fmt.Errorf("kind %q has no name, block or decoder", k.Name)
		}
		r.byName[k.Name], blocks[k.Block] = k, true
	}
	return r, nil
}

// Kind looks one up.
func (r *Registry) Kind(name string) (Kind, bool) {
	k, ok := r.byName[name]
	return k, ok
}

// Kinds are all, by name.
func (r *Registry) Kinds() []Kind {
	out := make([]Kind, 0, len(r.byName))
	for _, k := range r.byName {
		out = append(out, k)
	}
	slices.SortFunc(out, func(a, b Kind) int { return strings.Compare(a.Name, b.Name) })
	return out
}

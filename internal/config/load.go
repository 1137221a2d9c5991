package config

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"

	"github.com/spf13/pflag"
)

// Flags registers a flag for every key. The flags only collect what was given: Load
// parses it, so that a wrong value reads the same wherever it came from.
func Flags(fs *pflag.FlagSet) { FlagsFor(fs, func(Key) bool { return true }) }

// FlagsFor is Flags for the keys that want picks.
func FlagsFor(fs *pflag.FlagSet, want func(Key) bool) {
	def := Default()
	for _, k := range Keys() {
		if !want(k) {
			continue
		}
		fs.Var(&collected{key: k}, k.Flag(), k.Usage)
		f := fs.Lookup(k.Flag())
		f.DefValue = strings.Join(entries(k.get(&def)), ",")
	}
}

// collected is a flag's raw values.
type collected struct {
	key    Key
	values []string
}

func (c *collected) Set(s string) error {
	if c.key.shape != shapeList && c.key.shape != shapeMap {
		c.values = []string{s}
		return nil
	}
	c.values = append(c.values, split(s)...)
	return nil
}

func (c *collected) String() string { return strings.Join(c.values, ",") }
func (c *collected) Type() string   { return c.key.shape.flagType() }

// split parses a list from a flag or a variable: commas part its items, "" is none.
func split(s string) []string {
	out := []string{}
	for item := range strings.SplitSeq(s, ",") {
		if item = strings.TrimSpace(item); item != "" {
			out = append(out, item)
		}
	}
	return out
}

// Input is where Load reads from.
type Input struct {
	File  string         // "" : none
	Env   []string       // as os.Environ
	Flags *pflag.FlagSet // registered by Flags; nil: none
}

// Loaded is a configuration and where each key that is not at its default came from.
type Loaded struct {
	Config
	Origin map[string]string // path → "file", "env NAME", "flag --name"
}

// Load layers file, environment and flags over the defaults and validates the whole.
// The error is Problems, or the one of reading the file.
func Load(in Input) (*Loaded, error) {
	out := &Loaded{Config: Default(), Origin: map[string]string{}}
	l := loader{out: out, where: map[string]Problem{}}
	if in.File != "" {
		if err := l.file(in.File); err != nil {
			return nil, err
		}
	}
	l.environment(in.Env)
	l.flags(in.Flags)
	if len(l.problems) == 0 {
		for _, f := range out.validate() {
			p := l.where[f.path]
			if p.Path == "" {
				p.Path = f.path
			}
			p.Message = f.message
			l.problems = append(l.problems, p)
		}
	}
	if len(l.problems) > 0 {
		return nil, l.problems
	}
	return out, nil
}

type loader struct {
	out      *Loaded
	where    map[string]Problem // key path → place of the value that holds
	problems Problems
}

func (l *loader) apply(k Key, values []string, at Problem, origin string) {
	def := Default()
	err := k.set(&l.out.Config, values)
	if err == nil && k.unsupported && !slices.Equal(entries(k.get(&l.out.Config)), entries(k.get(&def))) {
		err = errors.New("not supported yet")
	}
	if err != nil {
		at.Message = err.Error()
		l.problems = append(l.problems, at)
		return
	}
	l.where[k.Path] = at
	l.out.Origin[k.Path] = origin
}

func (l *loader) file(name string) error {
	data, err := os.ReadFile(name)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("config file %s does not exist: name another with --config, or leave it out for the defaults", name)
	case err != nil:
		return fmt.Errorf("config file cannot be read: %w", err)
	}
	leaves, problems := decode(name, data, Keys())
	l.problems = append(l.problems, problems...)
	for _, f := range leaves {
		l.apply(f.key, f.values, Problem{File: name, Line: f.node.Line, Column: f.node.Column, Path: f.key.Path}, "file")
	}
	return nil
}

func (l *loader) environment(env []string) {
	values := make(map[string]string, len(env))
	for _, kv := range env {
		name, value, _ := strings.Cut(kv, "=")
		values[name] = value
	}
	for _, k := range Keys() {
		v, ok := values[k.Env()]
		if !ok {
			continue
		}
		vs := []string{v}
		if k.shape == shapeList || k.shape == shapeMap {
			vs = split(v)
		}
		l.apply(k, vs, Problem{Path: k.Env()}, "env "+k.Env())
	}
}

func (l *loader) flags(set *pflag.FlagSet) {
	if set == nil {
		return
	}
	set.Visit(func(f *pflag.Flag) {
		if c, ok := f.Value.(*collected); ok {
			l.apply(c.key, c.values, Problem{Path: "--" + f.Name}, "flag --"+f.Name)
		}
	})
}

// UnknownEnv lists variables that begin with EGRESSD_ and belong to no key, for a
// warning: orchestrators set some of their own, so they are no error.
func UnknownEnv(env []string) []string {
	known := map[string]bool{}
	for _, k := range Keys() {
		known[k.Env()] = true
	}
	for _, name := range []string{"CONFIG", "ADDR", "TOKEN", "TEAM"} {
		known["EGRESSD_"+name] = true
	}
	var out []string
	for _, kv := range env {
		name, _, _ := strings.Cut(kv, "=")
		if strings.HasPrefix(name, "EGRESSD_") && !known[name] {
			out = append(out, name)
		}
	}
	slices.Sort(out)
	return out
}

package store

import (
	"bytes"
	"errors"
	"reflect"
	"strings"
	"testing"
)

func ephemeral(t testing.TB) (Sealer, Opener) {
	t.Helper()
	s, o, err := EphemeralKeys()
	if err != nil {
		t.Fatal(err)
	}
	return s, o
}

var sample = Sealed{Team: "blue", Name: "api", Kind: "static_headers", Version: 3}

func TestAttack_G02_envelope_opens_only_where_it_belongs(t *testing.T) {
	s, o := ephemeral(t)
	good := seal(t, s, sample, "the spec")
	if got, err := o.Open(good); err != nil || string(got) != "the spec" {
		t.Fatalf("%q, %v", got, err)
	}
	for name, swap := range map[string]func(*Sealed){
		"team":              func(x *Sealed) { x.Team = "red" },
		"name":              func(x *Sealed) { x.Name = "api2" },
		"version":           func(x *Sealed) { x.Version = 2 },
		"kind":              func(x *Sealed) { x.Kind = "static_username_password" },
		"team runs into it": func(x *Sealed) { x.Team, x.Name = "blueapi", "" },
		"name moved":        func(x *Sealed) { x.Team, x.Name = "blu", "eapi" },
	} {
		moved := good
		swap(&moved)
		if _, err := o.Open(moved); !errors.Is(err, ErrCorrupt) {
			t.Errorf("%s: %v", name, err)
		}
	}
	_, other := ephemeral(t)
	if _, err := other.Open(good); !errors.Is(err, ErrCorrupt) {
		t.Errorf("another key: %v", err)
	}
}

func TestAttack_G02_no_altered_byte_opens(t *testing.T) {
	s, o := ephemeral(t)
	good := seal(t, s, sample, "the spec")
	for i := range good.Envelope {
		bad := good
		bad.Envelope = bytes.Clone(good.Envelope)
		bad.Envelope[i] ^= 1 << (i % 8)
		if _, err := o.Open(bad); !errors.Is(err, ErrCorrupt) {
			t.Fatalf("byte %d: %v", i, err)
		}
	}
	for n := 0; n < len(good.Envelope); n += 7 {
		bad := good
		bad.Envelope = good.Envelope[:n]
		if _, err := o.Open(bad); !errors.Is(err, ErrCorrupt) {
			t.Fatalf("the first %d bytes: %v", n, err)
		}
	}
	// The halves of two envelopes of one source do not make a third.
	other := seal(t, s, sample, "other one")
	head := len(good.Envelope) - len("the spec") - gcmOverhead
	bad := good
	bad.Envelope = append(bytes.Clone(good.Envelope[:head]), other.Envelope[head:]...)
	if _, err := o.Open(bad); !errors.Is(err, ErrCorrupt) {
		t.Errorf("spliced: %v", err)
	}
}

func TestAttack_G05_every_version_has_its_own_data_key(t *testing.T) {
	s, _ := ephemeral(t)
	a, b := seal(t, s, sample, "same"), seal(t, s, sample, "same")
	if len(a.Envelope) != len(b.Envelope) {
		t.Fatal("lengths differ")
	}
	// All but format, recipient and the key's id must differ: encapsulation, wrapped key, nonce, box.
	const fixed = 2 + keyIDLen + 2
	const chunk = 12
	for i := fixed; i+chunk <= len(a.Envelope); i += chunk {
		if bytes.Equal(a.Envelope[i:i+chunk], b.Envelope[i:i+chunk]) {
			t.Errorf("bytes %d to %d are the same in two envelopes", i, i+chunk)
		}
	}
}

func TestEnvelopeForSeveralRecipients(t *testing.T) {
	one, _ := ephemeral(t)
	two, openTwo := ephemeral(t)
	both := &sealer{digestKey: one.(*sealer).digestKey}
	both.recipients = append(both.recipients, one.(*sealer).recipients[0], two.(*sealer).recipients[0])
	sealed := seal(t, both, sample, "for both")
	if got, err := openTwo.Open(sealed); err != nil || string(got) != "for both" {
		t.Errorf("the second recipient: %q, %v", got, err)
	}
	// Taking a recipient off is an alteration.
	env, err := parseEnvelope(sealed.Envelope)
	if err != nil {
		t.Fatal(err)
	}
	first := 2 + keyIDLen + 2 + len(env.recipients[0].wrapped)
	sealed.Envelope = append([]byte{envelopeFormat, 1}, sealed.Envelope[first:]...)
	if _, err := openTwo.Open(sealed); !errors.Is(err, ErrCorrupt) {
		t.Errorf("with one recipient taken off: %v", err)
	}
}

func TestDigest(t *testing.T) {
	s, _ := ephemeral(t)
	other, _ := ephemeral(t)
	base := s.Digest("t", "n", "k", []byte("spec"))
	if base != s.Digest("t", "n", "k", []byte("spec")) {
		t.Error("not the same for the same")
	}
	for name, d := range map[string][32]byte{
		"team": s.Digest("u", "n", "k", []byte("spec")), "name": s.Digest("t", "m", "k", []byte("spec")),
		"kind": s.Digest("t", "n", "l", []byte("spec")), "spec": s.Digest("t", "n", "k", []byte("sped")),
		"moved": s.Digest("tn", "", "k", []byte("spec")), "key": other.Digest("t", "n", "k", []byte("spec")),
		"use": s.Authenticate(NewRecord("egressd/digest/1").Str("t").Str("n").Str("k").Bytes([]byte("spec"))),
	} {
		if d == base {
			t.Errorf("another %s has the same digest", name)
		}
	}
}

// A Writer must stay without a way to read a spec: the management plane holds one.
func TestAttack_G01_writer_cannot_read_a_spec(t *testing.T) {
	w := reflect.TypeFor[Writer]()
	for m := range w.Methods() {
		for out := range m.Type.Outs() {
			name := out.String()
			if out == reflect.TypeFor[[]byte]() || strings.Contains(name, "Sealed") || strings.Contains(name, "Put") {
				t.Errorf("%s returns %s", m.Name, name)
			}
		}
	}
	meta := reflect.TypeFor[Meta]()
	for f := range meta.Fields() {
		if f.Type == reflect.TypeFor[[]byte]() || strings.Contains(f.Name, "Spec") {
			t.Errorf("Meta has %s", f.Name)
		}
	}
	s, _ := ephemeral(t)
	if _, is := s.(Opener); is {
		t.Error("a Sealer is an Opener")
	}
}

func FuzzOpen(f *testing.F) {
	s, o := ephemeral(f)
	envelope, err := s.Seal(sample.Team, sample.Name, sample.Kind, sample.Version, []byte("the spec"))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(envelope)
	f.Add([]byte{})
	f.Add([]byte{envelopeFormat, maxRecipients})
	f.Add(envelope[:30])
	f.Fuzz(func(t *testing.T, b []byte) {
		in := sample
		in.Envelope = b
		spec, err := o.Open(in)
		if bytes.Equal(b, envelope) {
			return
		}
		if err == nil || !errors.Is(err, ErrCorrupt) || spec != nil {
			t.Fatalf("opened %x: %q, %v", b, spec, err)
		}
	})
}

func BenchmarkSeal(b *testing.B) {
	s, _ := ephemeral(b)
	spec := make([]byte, 512)
	for b.Loop() {
		if _, err := s.Seal("blue", "api", "static_headers", 1, spec); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkOpen(b *testing.B) {
	s, o := ephemeral(b)
	in := sample
	var err error
	if in.Envelope, err = s.Seal(in.Team, in.Name, in.Kind, in.Version, make([]byte, 512)); err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if _, err := o.Open(in); err != nil {
			b.Fatal(err)
		}
	}
}

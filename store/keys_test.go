package store

import (
	"bytes"
	"crypto/rand"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
)

func keyDir(t *testing.T) string {
	t.Helper()
	return filepath.Join(t.TempDir(), "state", "keys")
}

func mustKeys(t *testing.T, dir string) (Sealer, Opener) {
	t.Helper()
	s, o, err := LoadOrCreateKeys(dir)
	if err != nil {
		t.Fatal(err)
	}
	return s, o
}

func seal(t *testing.T, s Sealer, in Sealed, spec string) Sealed {
	t.Helper()
	envelope, err := s.Seal(in.Team, in.Name, in.Kind, in.Version, []byte(spec))
	if err != nil {
		t.Fatal(err)
	}
	in.Envelope = envelope
	return in
}

func TestKeysAreMadeOnceAndPrivate(t *testing.T) {
	dir := keyDir(t)
	s, _ := mustKeys(t, dir)
	for _, name := range []string{"seal.key", "seal.pub", "digest.key"} {
		info, err := os.Stat(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		if info.Mode().Perm() != 0o600 {
			t.Errorf("%s has mode %04o", name, info.Mode().Perm())
		}
	}
	if info, err := os.Stat(dir); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("directory: %v, %v", info.Mode(), err)
	}
	if left, err := filepath.Glob(filepath.Join(dir, "*.new-*")); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
	sealed := seal(t, s, Sealed{Team: "blue", Name: "api", Kind: "k", Version: 1}, "spec")
	again, o := mustKeys(t, dir)
	if got, err := o.Open(sealed); err != nil || string(got) != "spec" {
		t.Errorf("after a restart: %q, %v", got, err)
	}
	if again.Digest("a", "b", "c", []byte("d")) != s.Digest("a", "b", "c", []byte("d")) {
		t.Error("another digest after a restart")
	}
}

func TestKeysOfTwoStartsAtOnceAgree(t *testing.T) {
	dir := keyDir(t)
	const n = 16
	sealers, openers, errs := make([]Sealer, n), make([]Opener, n), make([]error, n)
	start := make(chan struct{})
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() {
			<-start
			sealers[i], openers[i], errs[i] = LoadOrCreateKeys(dir)
		})
	}
	close(start)
	wg.Wait()
	for i := range n {
		if errs[i] != nil {
			t.Fatal(errs[i])
		}
		sealed := seal(t, sealers[i], Sealed{Name: "api", Kind: "k", Version: 1}, "spec")
		if _, err := openers[(i+1)%n].Open(sealed); err != nil {
			t.Fatalf("starts %d and %d have different keys: %v", i, (i+1)%n, err)
		}
	}
}

func TestHalves(t *testing.T) {
	dir := keyDir(t)
	mustKeys(t, dir)
	p := DefaultKeyPaths(dir)
	opener, err := p.LoadOpener()
	if err != nil {
		t.Fatal(err)
	}
	// The management plane's half does not need the private key to be there.
	if err := os.Rename(p.Seal, p.Seal+".away"); err != nil {
		t.Fatal(err)
	}
	sealer, err := p.LoadSealer()
	if err != nil {
		t.Fatal(err)
	}
	if got, err := opener.Open(seal(t, sealer, Sealed{Name: "api", Kind: "k", Version: 7}, "spec")); err != nil || string(got) != "spec" {
		t.Errorf("%q, %v", got, err)
	}
	if _, is := sealer.(Opener); is {
		t.Error("a Sealer can open")
	}
}

func TestDerivedFilesAreMadeAgain(t *testing.T) {
	dir := keyDir(t)
	before, _ := mustKeys(t, dir)
	p := DefaultKeyPaths(dir)
	for _, path := range []string{p.Public, p.Digest} {
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
	}
	after, _ := mustKeys(t, dir)
	if before.Authenticate([]byte("x")) != after.Authenticate([]byte("x")) {
		t.Error("another digest key")
	}
}

func TestAttack_G04_weak_or_absent_keys_are_refused(t *testing.T) {
	good := make([]byte, 32)
	if _, err := rand.Read(good); err != nil {
		t.Fatal(err)
	}
	text := func(b []byte) string { return sealTag + " " + base64.StdEncoding.EncodeToString(b) + "\n" }
	sequence := make([]byte, 32)
	for i := range sequence {
		sequence[i] = byte(i)
	}
	for name, c := range map[string]struct{ content, want string }{
		"16 bytes":    {text(good[:16]), "16 bytes instead of 32"},
		"33 bytes":    {text(append(bytes.Clone(good), 1)), "33 bytes instead of 32"},
		"all zero":    {text(make([]byte, 32)), "all zero"},
		"one byte":    {text(bytes.Repeat([]byte{0xaa}, 32)), "a sequence"},
		"sequence":    {text(sequence), "a sequence"},
		"few bytes":   {text(bytes.Repeat(good[:8], 4)), "too little entropy"},
		"passphrase":  {text([]byte("correct horse battery staple 123")), "passphrase"},
		"raw phrase":  {"correct horse battery staple\n", "not a key file"},
		"not base64":  {strings.Replace(text(good), "=", "!", 1), "damaged"},
		"truncated":   {text(good)[:40], "damaged"},
		"empty":       {"", "not a key file"},
		"another tag": {strings.Replace(text(good), "seal", "mail", 1), "not a key file"},
		"two keys":    {strings.TrimSpace(text(good)) + " " + text(good), "not a key file"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			path := filepath.Join(dir, "seal.key")
			if err := os.WriteFile(path, []byte(c.content), 0o600); err != nil {
				t.Fatal(err)
			}
			_, _, err := LoadOrCreateKeys(dir)
			if !errors.Is(err, ErrKeys) || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), path) {
				t.Errorf("error %v, want %q and the path", err, c.want)
			}
			if strings.Contains(fmt.Sprint(err), base64.StdEncoding.EncodeToString(good)[:12]) || strings.Contains(fmt.Sprint(err), "horse") {
				t.Errorf("the error shows the key: %v", err)
			}
		})
	}
}

func TestAttack_G04_lost_or_swapped_key_files_are_refused(t *testing.T) {
	for name, c := range map[string]struct {
		spoil func(t *testing.T, p KeyPaths)
		want  string
	}{
		"private key lost": {func(t *testing.T, p KeyPaths) { remove(t, p.Seal) }, "seal.key is missing"},
		"only the digest key left": {func(t *testing.T, p KeyPaths) { remove(t, p.Seal); remove(t, p.Public) },
			"seal.key is missing"},
		"public key of another pair": {func(t *testing.T, p KeyPaths) { replace(t, p.Public, func(o KeyPaths) string { return o.Public }) },
			"does not belong to"},
		"private key of another pair": {func(t *testing.T, p KeyPaths) { replace(t, p.Seal, func(o KeyPaths) string { return o.Seal }) },
			"does not belong to"},
		"digest key of another pair": {func(t *testing.T, p KeyPaths) { replace(t, p.Digest, func(o KeyPaths) string { return o.Digest }) },
			"does not belong to"},
		"readable by the group":     {func(t *testing.T, p KeyPaths) { chmod(t, p.Seal, 0o640) }, "chmod 600"},
		"readable by others":        {func(t *testing.T, p KeyPaths) { chmod(t, p.Digest, 0o604) }, "chmod 600"},
		"public key writable":       {func(t *testing.T, p KeyPaths) { chmod(t, p.Public, 0o622) }, "chmod 600"},
		"directory writable":        {func(t *testing.T, p KeyPaths) { chmod(t, filepath.Dir(p.Seal), 0o770) }, "chmod 700"},
		"a directory for a file":    {func(t *testing.T, p KeyPaths) { remove(t, p.Digest); mkdir(t, p.Digest) }, "not a regular file"},
		"bits of the private key":   {func(t *testing.T, p KeyPaths) { flip(t, p.Seal) }, "does not belong to"},
		"bits of the public key":    {func(t *testing.T, p KeyPaths) { flip(t, p.Public) }, "does not belong to"},
		"public key to a dead link": {func(t *testing.T, p KeyPaths) { remove(t, p.Public); link(t, p.Public) }, "seal.pub"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := keyDir(t)
			mustKeys(t, dir)
			c.spoil(t, DefaultKeyPaths(dir))
			_, _, err := LoadOrCreateKeys(dir)
			if !errors.Is(err, ErrKeys) || !strings.Contains(err.Error(), c.want) {
				t.Errorf("error %v, want %q", err, c.want)
			}
		})
	}
}

// somebodyElses is a file of another user, which only root could make.
type somebodyElses struct{ os.FileInfo }

func (somebodyElses) Sys() any { return &syscall.Stat_t{Uid: uint32(os.Geteuid()) + 1} }

func TestAttack_G04_key_file_of_another_user_is_refused(t *testing.T) {
	path := filepath.Join(t.TempDir(), "seal.key")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := checkGuarded(path, info, ownerOnly); err != nil {
		t.Error(err)
	}
	err = checkGuarded(path, somebodyElses{info}, ownerOnly)
	if !errors.Is(err, ErrKeys) || !strings.Contains(err.Error(), "chown") {
		t.Errorf("error %v", err)
	}
}

func TestAttack_G04_management_plane_takes_no_foreign_public_key(t *testing.T) {
	dir := keyDir(t)
	mustKeys(t, dir)
	p := DefaultKeyPaths(dir)
	replace(t, p.Public, func(o KeyPaths) string { return o.Public })
	if _, err := p.LoadSealer(); !errors.Is(err, ErrKeys) {
		t.Errorf("it would seal to somebody else's key: %v", err)
	}
	if _, err := p.LoadOpener(); !errors.Is(err, ErrKeys) {
		t.Errorf("opener: %v", err)
	}
}

func TestAttack_G08_keys_cannot_be_printed(t *testing.T) {
	dir := keyDir(t)
	s, o := mustKeys(t, dir)
	line, err := os.ReadFile(filepath.Join(dir, "digest.key"))
	if err != nil {
		t.Fatal(err)
	}
	key, err := base64.StdEncoding.DecodeString(strings.Fields(string(line))[1])
	if err != nil {
		t.Fatal(err)
	}
	for _, format := range []string{"%v", "%+v", "%#v", "%s", "%x", "%d"} {
		for _, v := range []any{s, o, struct{ S Sealer }{s}} {
			out := fmt.Sprintf(format, v)
			for _, leak := range []string{string(key), hex.EncodeToString(key), fmt.Sprint(key)[1:20]} {
				if strings.Contains(out, leak) {
					t.Errorf("%s of %T prints the key", format, v)
				}
			}
		}
	}
}

func remove(t *testing.T, path string) {
	t.Helper()
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
}

func mkdir(t *testing.T, path string) {
	t.Helper()
	if err := os.Mkdir(path, 0o700); err != nil {
		t.Fatal(err)
	}
}

func link(t *testing.T, path string) {
	t.Helper()
	if err := os.Symlink(path+".nowhere", path); err != nil {
		t.Fatal(err)
	}
}

func chmod(t *testing.T, path string, mode os.FileMode) {
	t.Helper()
	if err := os.Chmod(path, mode); err != nil {
		t.Fatal(err)
	}
}

// replace puts a file of another set of keys in path's place.
func replace(t *testing.T, path string, which func(KeyPaths) string) {
	t.Helper()
	dir := keyDir(t)
	mustKeys(t, dir)
	b, err := os.ReadFile(which(DefaultKeyPaths(dir)))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
}

// flip changes one letter of the key itself, keeping it base64.
func flip(t *testing.T, path string) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	i := bytes.IndexByte(b, ' ') + 10
	if b[i] == 'A' {
		b[i] = 'B'
	} else {
		b[i] = 'A'
	}
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
}

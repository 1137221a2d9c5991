package policy

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os/exec"
	"strings"
	"testing"
)

func TestAttack_E06_shell_metacharacters(t *testing.T) {
	readOnly := sshPolicy{commands: globPolicy{allowed: []glob{"git-upload-pack *"}, limited: true}}
	refuses := func(line string) string {
		var w words
		w.read(line)
		return readOnly.refuses(&SSHRequest{SSHExec, line}, &w)
	}
	for _, line := range []string{
		"git-upload-pack 'x'; rm -rf /", "git-upload-pack x & y", "git-upload-pack x | sh", "git-upload-pack `id`", "git-upload-pack $HOME", "git-upload-pack $(id)", "git-upload-pack x < y",
		"git-upload-pack x > y", "git-upload-pack (x)", "git-upload-pack {a,b}", "git-upload-pack x\nid", "git-upload-pack x\r\nid", "git-upload-pack x\x00y", `git-upload-pack \'x`, "git-upload-pack 'x",
		`git-upload-pack "x`, `git-upload-pack "$(id)"`, "git-upload-pack \"`id`\"", `git-upload-pack "a\"; id"`, `git-upload-pack 'a'\''; id'`, "git-upload-pack x\x7f", "git-upload-pack 'x\ny'",
		"git-upload-pack '\x00'", "git-upload-pack x # y", "git-upload-pack \xff", "git-upload-pack " + strings.Repeat("x", maxCommand), "", " ", "git-upload-packs x", "GIT-UPLOAD-PACK x", " git-upload-pack x", "git-upload-pack",
	} {
		if refuses(line) == "" {
			t.Errorf("%q passes", line)
		}
	}
	for _, line := range []string{"git-upload-pack 'x'", "git-upload-pack '/a/b.git'", "git-upload-pack 'a;b|c$d'", "git-upload-pack \"a b\"", "git-upload-pack a#b", "git-upload-pack ''';id'", "git-upload-pack 'ü'"} {
		if why := refuses(line); why != "" {
			t.Errorf("%q: %s", line, why)
		}
	}
}

func TestGlob(t *testing.T) {
	for _, c := range []struct {
		pattern glob
		text    string
		want    bool
	}{
		{"", "", true}, {"", "a", false}, {"*", "", true}, {"*", "a/b c", true}, {"a*", "a", true}, {"a*", "ba", false}, {"*a", "aab", false}, {"*a", "baa", true},
		{"a*b*c", "a1b2c", true}, {"a*b*c", "acb", false}, {"a**c", "abc", true}, {"a*b", "aXbXb", true}, {"a?c", "abc", false}, {"[a]", "a", false}, {"[a]", "[a]", true}, {"A", "a", false},
	} {
		if got := c.pattern.match(c.text); got != c.want {
			t.Errorf("%q on %q: %v", c.pattern, c.text, got)
		}
	}
	if !glob("A*z").matchFold("aZ") || glob("a").matchFold("b") {
		t.Error("matchFold")
	}
	long := glob(strings.Repeat("*a", 500))
	if long.match(strings.Repeat("a", 4000) + "b") { // ends in time
		t.Error("matches")
	}
}

// A shell reads out of simple commands the very words that words reads.
func TestSimpleCommandsAgainstShell(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	const alphabet = "ab''\"\"  \t=-;$#\\|&%é/.,:@!^"
	letters := []rune(alphabet)
	var in, want bytes.Buffer
	simple := 0
	for simple < 3000 {
		var line strings.Builder
		line.WriteString("x")
		for range r.IntN(14) {
			line.WriteRune(letters[r.IntN(len(letters))])
		}
		var w words
		if !w.read(line.String()) {
			continue
		}
		simple++
		fmt.Fprintln(&in, line.String())
		fmt.Fprintf(&want, "%d:%s\n", w.all, w.buf[:w.n])
	}
	cmd := exec.Command("sh", "-c", `set -f; while IFS= read -r line; do eval "set -- $line"; printf '%d:%s\n' "$#" "$*"; done`)
	cmd.Stdin = &in
	got, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	gotLines, wantLines := strings.Split(string(got), "\n"), strings.Split(want.String(), "\n")
	if len(gotLines) != len(wantLines) {
		t.Fatalf("%d lines, want %d", len(gotLines), len(wantLines))
	}
	for i := range wantLines {
		if gotLines[i] != wantLines[i] {
			t.Errorf("the shell reads %q, we read %q", gotLines[i], wantLines[i])
		}
	}
}

func FuzzSSHCommand(f *testing.F) {
	for _, s := range []string{"git-upload-pack 'a/b.git'", "git-upload-pack 'x'; rm -rf /", `a "b c" 'd;e'`, "git receive-pack x", "\xff", "a\x00b", "env git-receive-pack x", " # "} {
		f.Add(s)
	}
	readOnly := gitPolicy{repositories: globPolicy{allowed: []glob{"a/*"}, limited: true}}
	lists := sshPolicy{commands: globPolicy{allowed: []glob{"*"}, limited: true}}
	f.Fuzz(func(t *testing.T, line string) {
		var w words
		simple := w.read(line)
		if simple != (w.all > 0) {
			t.Fatalf("%q: %v, %d words", line, simple, w.all)
		}
		passes := lists.refuses(&SSHRequest{SSHExec, line}, &w) == ""
		if passes != simple {
			t.Fatalf("%q: simple %v, passes %v", line, simple, passes)
		}
		if simple {
			// What stands outside of single quotes holds nothing that a shell acts on.
			for i, part := range strings.Split(strings.ReplaceAll(line, `"`, ""), "'") {
				if strings.Count(line, `"`) == 0 && i%2 == 0 && strings.ContainsAny(part, shellMeta) {
					t.Fatalf("%q is simple", line)
				}
			}
			if strings.ContainsAny(line, "\n\r\x00") {
				t.Fatalf("%q is simple", line)
			}
		}
		r, ok := gitOverSSH(line, &w)
		if ok && !r.odd {
			if !simple || r.repo == "" || strings.Contains("/"+r.repo+"/", "/../") || strings.ContainsAny(r.repo, " '\"") || r.repo[0] == '-' {
				t.Fatalf("%q: %+v", line, r)
			}
			if why := readOnly.refuses(&r); why == "" && (r.write || !strings.HasPrefix(r.repo, "a/")) {
				t.Fatalf("%q passes as %+v", line, r)
			}
		}
		if !ok && strings.Contains(line, "receive-pack") {
			t.Fatalf("%q is no git", line)
		}
	})
}

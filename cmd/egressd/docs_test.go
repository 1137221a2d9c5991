package main

import (
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/spf13/cobra"

	"github.com/egressd/egressd/inject"
	"github.com/egressd/egressd/internal/config"
	"github.com/egressd/egressd/policy"
)

// commandLine is `egressd …` in an indented or commented block, or between backticks.
var commandLine = regexp.MustCompile("(?m)(?:^ {4}|^# {3}|^ExecStart=[^ ]*/|`|&& )(?:sudo -u egressd )?egressd ((?:[^`\n|]|\\\\`)*)")

// documents are what tells people what to type.
func documents(t *testing.T) map[string]string {
	t.Helper()
	out := map[string]string{}
	for _, glob := range []string{"README.md", "SECURITY.md", "CONTRIBUTING.md", "docs/*.md", "docs/adr/*.md", "configs/*", "configs/policy/*.yaml"} {
		names, err := filepath.Glob(filepath.Join("..", "..", glob))
		if err != nil || len(names) == 0 {
			t.Fatalf("%s: %d files, %v", glob, len(names), err)
		}
		for _, name := range names {
			if info, err := os.Stat(name); err != nil || info.IsDir() {
				continue
			}
			b, err := os.ReadFile(name)
			if err != nil {
				t.Fatal(err)
			}
			out[strings.TrimPrefix(filepath.ToSlash(name), "../../")] = string(b)
		}
	}
	return out
}

// TestDocumentedCommandsExist looks up every command and flag that the documents name.
func TestDocumentedCommandsExist(t *testing.T) {
	a := &app{stdin: strings.NewReader(""), stdout: io.Discard, stderr: io.Discard}
	seen := 0
	for name, text := range documents(t) {
		for _, m := range commandLine.FindAllStringSubmatch(text, -1) {
			seen++
			line, _, _ := strings.Cut(m[1], " #")
			if err := checkCommand(a.root(), strings.Fields(line)); err != "" {
				t.Errorf("%s: egressd %s: %s", name, line, err)
			}
		}
	}
	t.Logf("%d commands", seen)
	if seen < 30 {
		t.Errorf("only %d commands found: does the expression still fit the documents?", seen)
	}
}

func checkCommand(root *cobra.Command, args []string) string {
	var words []string
	for _, w := range args {
		if strings.HasPrefix(w, "-") {
			break
		}
		words = append(words, w)
	}
	cmd, rest, err := root.Find(words)
	switch {
	case err != nil:
		return err.Error()
	case cmd.Hidden:
		return "is not supported yet"
	case cmd.HasSubCommands() && len(rest) > 0 && rest[0] != "…" && !strings.Contains(rest[0], "|"):
		return "has no " + rest[0]
	}
	for _, w := range args {
		switch flag, _, _ := strings.Cut(strings.Trim(w, ".,;:()&"), "="); {
		case w == "--":
			return ""
		case strings.HasPrefix(flag, "--"):
			if cmd.Flag(flag[2:]) == nil {
				return "has no flag " + flag
			}
		case len(flag) == 2 && flag[0] == '-':
			if cmd.Flags().ShorthandLookup(flag[1:]) == nil && cmd.InheritedFlags().ShorthandLookup(flag[1:]) == nil {
				return "has no flag " + flag
			}
		}
	}
	return ""
}

// TestDocumentedVariablesExist does the same for environment variables of the configuration.
func TestDocumentedVariablesExist(t *testing.T) {
	known := map[string]bool{"EGRESSD_CONFIG": true, "EGRESSD_ADDR": true, "EGRESSD_TOKEN": true, "EGRESSD_TEAM": true, "EGRESSD_TORTURE": true,
		"EGRESSD_UPDATE_DOCS": true, "EGRESSD_SSH_KNOWN_HOSTS": true}
	for _, k := range config.Keys() {
		known[k.Env()] = true
	}
	name := regexp.MustCompile(`EGRESSD_[A-Z_]+`)
	docs := documents(t)
	b, err := os.ReadFile("../../Dockerfile")
	if err != nil {
		t.Fatal(err)
	}
	docs["Dockerfile"] = string(b)
	for file, text := range docs {
		for _, v := range name.FindAllString(text, -1) {
			if !known[v] {
				t.Errorf("%s: nothing reads %s", file, v)
			}
		}
	}
}

// TestDocumentedPoliciesCompile compiles the YAML blocks that show a policy, or the network
// block of one sandbox.
func TestDocumentedPoliciesCompile(t *testing.T) {
	fence := regexp.MustCompile("(?ms)^```yaml\n(.*?)^```$")
	seen := 0
	for name, text := range documents(t) {
		for _, m := range fence.FindAllStringSubmatch(text, -1) {
			block := strings.ReplaceAll(m[1], `"sha256:…"`, `"sha256:`+strings.Repeat("0", 64)+`"`)
			switch {
			case strings.HasPrefix(block, "egress:\n"):
				block = "apiVersion: egressd/v1\nsandboxes:\n  - id: a\n    identify: {sourceCIDRs: [192.0.2.1/32]}\n    network:\n      " +
					strings.ReplaceAll(strings.TrimSpace(block), "\n", "\n      ") + "\n"
			case !strings.Contains(block, "\nsandboxes:"):
				continue
			}
			seen++
			set, _, err := policy.Compile([]policy.File{{Name: name, Data: []byte(block)}})
			if err == nil {
				_, err = inject.Compile(set, unresolved{}, func(string, string) (string, bool) { return "", false })
			}
			if err != nil {
				t.Errorf("%v\n%s", err, block)
			}
		}
	}
	if seen < 7 {
		t.Errorf("only %d policies found: does the expression still fit the documents?", seen)
	}
}

// TestEveryCodeIsExplained holds the tables of operations.md to the words that the code has:
// those of X-Egressd-Error, the metrics, and the fields of an audit line.
func TestEveryCodeIsExplained(t *testing.T) {
	text := documents(t)["docs/operations.md"]
	for _, in := range []struct {
		glob, words string
		least       int
	}{
		{"proxy/deny.go", `(?m)^\tcode[A-Z]\w* += "([a-z_]+)"`, 20},
		{"proxy/wire/*.go", `(?m)^\tCode[A-Z]\w* += "([a-z_]+)"`, 8},
		{"inject/*.go", `(?m)^\tCode[A-Z]\w* += "([a-z_]+)"`, 7},
		{"inject/sigv4/*.go", `(?m)^\tCode[A-Z]\w* += "([a-z_]+)"`, 4},
		{"proxy/*.go", `Name: "(egressd_\w+)"`, 11},
		{"internal/audit/record.go", `append(?:Field|Number)\(b, "(\w+)"`, 15},
	} {
		names, err := filepath.Glob(filepath.Join("../..", in.glob))
		if err != nil {
			t.Fatal(err)
		}
		seen := 0
		for _, name := range names {
			b, err := os.ReadFile(name)
			if err != nil {
				t.Fatal(err)
			}
			for _, m := range regexp.MustCompile(in.words).FindAllStringSubmatch(string(b), -1) {
				seen++
				if !regexp.MustCompile("`" + m[1] + "[`{]").MatchString(text) {
					t.Errorf("docs/operations.md does not explain %s of %s", m[1], in.glob)
				}
			}
		}
		if seen < in.least {
			t.Errorf("%s: only %d words found: does the expression still fit the code?", in.glob, seen)
		}
	}
}

// TestDocumentsLinkToFiles follows the relative links.
func TestDocumentsLinkToFiles(t *testing.T) {
	link := regexp.MustCompile(`\]\(([^)#:]+)(?:#[^)]*)?\)`)
	for name, text := range documents(t) {
		if !strings.HasSuffix(name, ".md") {
			continue
		}
		for _, m := range link.FindAllStringSubmatch(text, -1) {
			if _, err := os.Stat(filepath.Join("../..", filepath.Dir(name), m[1])); err != nil {
				t.Errorf("%s: %s does not exist", name, m[1])
			}
		}
	}
}

// TestReadmeShowsTheTree holds the tree at the head of the README to the folders that exist.
func TestReadmeShowsTheTree(t *testing.T) {
	text := documents(t)["README.md"]
	_, tree, _ := strings.Cut(text, "```\n")
	tree, _, ok := strings.Cut(tree, "```")
	if !ok {
		t.Fatal("no tree")
	}
	for _, m := range regexp.MustCompile(`(?m)^([a-z/]+)/ `).FindAllStringSubmatch(tree, -1) {
		if info, err := os.Stat(filepath.Join("../..", m[1])); err != nil || !info.IsDir() {
			t.Errorf("%s is in the tree and does not exist", m[1])
		}
	}
	entries, err := os.ReadDir("../..")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if e.IsDir() && !strings.HasPrefix(e.Name(), ".") && e.Name() != "bin" && !strings.Contains(tree, e.Name()+"/") {
			t.Errorf("%s/ is not in the tree", e.Name())
		}
	}
}

func TestCheckCommand(t *testing.T) {
	a := &app{stdin: strings.NewReader(""), stdout: io.Discard, stderr: io.Discard}
	for line, good := range map[string]bool{
		"source add x --token-env T":              true,
		"policy explain --sandbox s -X POST u":    true,
		"run --inject h=V -- curl --nosuch":       true,
		"source add x --tokenenv T":               false,
		"source frob":                             false,
		"source generate x y":                     false,
		"policy explain -Z POST u":                false,
		"serve --listen-proxi x":                  false,
		"source … --for-team t":                   true,
		"source add github-source --token-file=f": true,
	} {
		if err := checkCommand(a.root(), strings.Fields(line)); (err == "") != good {
			t.Errorf("%s: %q", line, err)
		}
	}
}

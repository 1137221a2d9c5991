package proxy_test

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// Every row of the threat model says who tests it or why nobody does, and every test
// that it names exists.
func TestThreatModelNamesTestsThatExist(t *testing.T) {
	doc, err := os.ReadFile("../docs/threat-model.md")
	if err != nil {
		t.Fatal(err)
	}
	rows := regexp.MustCompile(`(?m)^\| ([A-H]\d\d) \| [^|]+ \|([^|]*)\|([^|]*)\|$`).FindAllStringSubmatch(string(doc), -1)
	if len(rows) != 147 {
		t.Fatalf("%d rows", len(rows))
	}
	named := regexp.MustCompile("([a-z0-9/]+) `(Test\\w+)`")
	sources := map[string]string{}
	for _, row := range rows {
		tests := named.FindAllStringSubmatch(row[2], -1)
		if len(tests) == 0 && row[1] < "G" && row[1] != "B33" { // what that one asks for is the sentence
			t.Errorf("%s: no test", row[1])
		}
		if len(tests) == 0 && strings.TrimSpace(row[3]) == "" {
			t.Errorf("%s: neither a test nor a reason", row[1])
		}
		for _, m := range tests {
			dir := m[1]
			if _, ok := sources[dir]; !ok {
				files, _ := filepath.Glob(filepath.Join("..", dir, "*_test.go"))
				for _, f := range files {
					b, err := os.ReadFile(f)
					if err != nil {
						t.Fatal(err)
					}
					sources[dir] += string(b)
				}
			}
			if !strings.Contains(sources[dir], "func "+m[2]+"(") {
				t.Errorf("%s: there is no %s in %s", row[1], m[2], dir)
			}
		}
	}
}

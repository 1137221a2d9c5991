package main

import (
	"bufio"
	"fmt"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/egressd/egressd/api"
)

func (a *app) table(rows [][]string) {
	w := tabwriter.NewWriter(a.stdout, 0, 0, 2, ' ', 0)
	for _, r := range rows {
		_, _ = fmt.Fprintln(w, strings.Join(r, "\t")) // kept until Flush
	}
	_ = w.Flush() // a reader that went away
}

func stamp(t *time.Time) string {
	if t == nil || t.IsZero() {
		return ""
	}
	return t.UTC().Format(time.RFC3339)
}

func joinMap(m map[string]string) string {
	var out []string
	for _, k := range slices.Sorted(maps.Keys(m)) {
		out = append(out, k+"="+m[k])
	}
	return strings.Join(out, " ")
}

// problemLine is "file:line:col: path: message".
func problemLine(p api.Problem) string {
	var b strings.Builder
	b.WriteString(p.File)
	if p.Line > 0 {
		fmt.Fprintf(&b, ":%d", p.Line)
		if p.Column > 0 {
			fmt.Fprintf(&b, ":%d", p.Column)
		}
	}
	b.WriteString(": ")
	if p.Path != "" {
		b.WriteString(p.Path + ": ")
	}
	b.WriteString(p.Message)
	return b.String()
}

// confirm asks at a terminal before what cannot be undone.
func (a *app) confirm(yes bool, what string) error {
	if yes {
		return nil
	}
	tty := a.terminal()
	if tty == nil {
		return usage("this would %s: say --yes (there is no terminal to ask at)", what)
	}
	a.notef("%s? [y/N] ", what)
	line, err := readLine(bufio.NewReader(tty))
	if err != nil {
		return err
	}
	if l := strings.ToLower(strings.TrimSpace(line)); l != "y" && l != "yes" {
		return usage("nothing was changed")
	}
	return nil
}

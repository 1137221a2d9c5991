package main

import (
	"fmt"
	"os"
	"runtime"
	"slices"
	"strings"
	"time"
)

// gate is one "must" of the project's performance plan.
type gate struct {
	workload string
	against  string // proxy that must have been measured too; "": none
	must     string
	// value is what is compared, for the table; ok is whether the must is met.
	value func(m figures) (value string, ok bool)
}

// figures are medians by workload and proxy.
type figures func(workload, proxy string) float64

func ratio(format string, v float64) string { return fmt.Sprintf(format, v) }

func gates() []gate {
	over := func(workload, ref, must string, limit float64, less bool) gate {
		return gate{workload, ref, must, func(m figures) (string, bool) {
			v := m(workload, egressd) / m(workload, ref)
			return ratio("%.2f ×", v), (less && v <= limit) || (!less && v >= limit)
		}}
	}
	delay := func(workload string) gate {
		return gate{workload, direct, "≤ direct + 150 µs", func(m figures) (string, bool) {
			v := m(workload, egressd) - m(workload, direct)
			return ratio("+%.0f µs", v), v <= 150
		}}
	}
	return []gate{
		over("h1", before, "≥ 0.95 × the build before", 0.95, false),
		over("newconn", before, "≥ 0.95 × the build before", 0.95, false),
		over("h1", relay, "≥ 0.30 × upper bound", 0.30, false),
		over("h1", library, "≥ 0.8 × goproxy's loop", 0.8, false),
		{"latency", direct, "≤ direct + 120 µs", func(m figures) (string, bool) {
			v := m("latency", egressd) - m("latency", direct)
			return ratio("+%.0f µs", v), v <= 120
		}},
		over("latency", library, "≤ 0.7 × goproxy's loop", 0.7, true),
		{"h2", "", "≥ 0.5 × own h1", func(m figures) (string, bool) {
			v := m("h2", egressd) / m("h1", egressd)
			return ratio("%.2f ×", v), v >= 0.5
		}},
		over("newconn", relay, "≥ 0.85 × upper bound", 0.85, false),
		over("resume", relay, "≥ 0.85 × upper bound", 0.85, false),
		{"resume", "", "≥ 99 % resumed", func(m figures) (string, bool) {
			v := m("resumption rate", egressd)
			return ratio("%.1f %%", v*100), v >= 0.99
		}},
		over("cold", relay, "≥ 0.85 × upper bound", 0.85, false),
		over("down", relay, "≤ 1.1 × upper bound", 1.1, true),
		over("up", relay, "≤ 1.1 × upper bound", 1.1, true),
		over("pass-down", library, "≤ 1.1 × goproxy's splice", 1.1, true),
		over("pass-up", library, "≤ 1.1 × goproxy's splice", 1.1, true),
		{"scrub", "", "≤ 1.25 × CPU without", func(m figures) (string, bool) {
			v := m("scrub", egressd) / m("unscrubbed", egressd)
			return ratio("%.2f ×", v), v <= 1.25
		}},
		{"scrub", "", "≥ 0.75 × bytes/s without", func(m figures) (string, bool) {
			v := m("scrubbed MiB/s", egressd) / m("unscrubbed MiB/s", egressd)
			return ratio("%.2f ×", v), v >= 0.75
		}},
		over("ssh", relay, "≥ 0.85 × plain relay", 0.85, false),
		over("ssh-down", relay, "≤ 1.18 × plain relay", 1/0.85, true),
		over("ssh-up", relay, "≤ 1.18 × plain relay", 1/0.85, true),
		delay("sse"),
		delay("ndjson"),
		{"idle", "", "≤ 45 KiB", func(m figures) (string, bool) {
			v := m("idle", egressd)
			return ratio("%.1f KiB", v), v <= 45
		}},
		{"closed", "", "≤ 1.2 × start", func(m figures) (string, bool) {
			v := m("closed", egressd)
			return ratio("%.2f ×", v), v <= 1.2
		}},
		{"mint", "", "one", func(m figures) (string, bool) {
			v := m("mint", egressd)
			return ratio("%.0f", v), v == 1
		}},
	}
}

// table is a report of what was measured.
type table struct {
	head []string
	rows [][]string
	must [][]string
	note string
}

func (b *bench) report(chosen []workload, pinned bool, took time.Duration) table {
	columns, refs := slices.Clone(proxies), []string{relay, library}
	if b.bin.before != "" {
		columns, refs = append(columns, before), append(refs, before)
	}
	t := table{head: append([]string{"work", "unit"}, columns...)}
	for _, ref := range refs {
		t.head = append(t.head, "÷ "+ref)
	}
	ran := map[string]bool{}
	for _, w := range chosen {
		ran[w.name] = true
		row := []string{w.title, w.unit}
		for _, p := range columns {
			row = append(row, b.cell(w.name, p))
		}
		for _, ref := range refs {
			row = append(row, b.over(w.name, ref))
		}
		t.rows = append(t.rows, row)
	}
	m := func(workload, proxy string) float64 { v, _ := b.median(workload, proxy); return v }
	for _, g := range gates() {
		if _, own := b.median(g.workload, egressd); !own || !ran[g.workload] || (g.workload == "h2" && !ran["h1"]) {
			continue
		}
		if _, is := b.median(g.workload, g.against); g.against != "" && !is {
			continue
		}
		v, ok := g.value(m)
		t.must = append(t.must, []string{b.title(g.workload), g.must, v, map[bool]string{true: "pass", false: "FAIL"}[ok]})
	}
	cores := "proxy alone on one core, load and origin on the other"
	if !pinned {
		cores = "NOT PINNED: this machine has fewer than two cores"
	}
	if b.bin.before != "" {
		cores += "; before is " + b.bin.before
	}
	t.note = fmt.Sprintf("%s, %s/%s, %s; %s. Medians of %d interleaved rounds, %.0f s in all, load average %s. Every response was checked for the injected credential.",
		runtime.Version(), runtime.GOOS, runtime.GOARCH, cpuModel(), cores, b.plan.rounds, took.Seconds(), loadAverage())
	return t
}

func (b *bench) title(name string) string {
	for _, w := range workloads() {
		if w.name == name {
			return w.title
		}
	}
	return name
}

func (b *bench) cell(workload, proxy string) string {
	v, ok := b.median(workload, proxy)
	switch {
	case !ok:
		return ""
	case v >= 1000:
		return fmt.Sprintf("%.0f", v)
	case v >= 10:
		return fmt.Sprintf("%.1f", v)
	}
	return fmt.Sprintf("%.2f", v)
}

func (b *bench) over(workload, ref string) string {
	own, ok := b.median(workload, egressd)
	v, is := b.median(workload, ref)
	if !ok || !is || v == 0 {
		return ""
	}
	return fmt.Sprintf("%.2f", own/v)
}

func (t table) text() string {
	var s strings.Builder
	columns(&s, append([][]string{t.head}, t.rows...))
	s.WriteString("\n")
	columns(&s, append([][]string{{"work", "must", "egressd", ""}}, t.must...))
	s.WriteString("\n" + t.note + "\n")
	return s.String()
}

func columns(s *strings.Builder, rows [][]string) {
	width := make([]int, len(rows[0]))
	for _, r := range rows {
		for i, c := range r {
			width[i] = max(width[i], len([]rune(c)))
		}
	}
	for _, r := range rows {
		for i, c := range r {
			pad := strings.Repeat(" ", width[i]-len([]rune(c)))
			if i < 2 {
				s.WriteString(c + pad + "  ")
			} else {
				s.WriteString(pad + c + "  ")
			}
		}
		s.WriteString("\n")
	}
}

func (t table) markdown() string {
	var s strings.Builder
	s.WriteString("# Benchmark\n\nWritten by `make bench`; `bench/doc.go` says what is measured and how.\n\n" + t.note + "\n\n")
	grid := func(head []string, rows [][]string) {
		s.WriteString("| " + strings.Join(head, " | ") + " |\n|" + strings.Repeat("---|", len(head)) + "\n")
		for _, r := range rows {
			s.WriteString("| " + strings.Join(r, " | ") + " |\n")
		}
		s.WriteString("\n")
	}
	grid(t.head, t.rows)
	s.WriteString("## Gates\n\n")
	grid([]string{"work", "must", "egressd", ""}, t.must)
	return s.String()
}

func cpuModel() string {
	text, _ := os.ReadFile("/proc/cpuinfo")
	for line := range strings.Lines(string(text)) {
		if k, v, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(k) == "model name" {
			return strings.TrimSpace(v)
		}
	}
	return "unknown CPU"
}

func loadAverage() string {
	text, _ := os.ReadFile("/proc/loadavg")
	f := strings.Fields(string(text))
	if len(f) == 0 {
		return "unknown"
	}
	return f[0]
}

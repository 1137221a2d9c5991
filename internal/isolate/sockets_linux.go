package isolate

import (
	"bufio"
	"context"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// Bounds of the search for sockets in the file system.
const (
	maxSockets = 10000
	maxEntries = 50000
	maxDepth   = 6
	searchTime = 2 * time.Second
)

// socketsToHide lists the Unix sockets that lead to programs outside: those that this
// network namespace lists, those that were mounted one by one, as into a container, and
// those under the usual directories, which may belong to other namespaces. Those that
// listen under a relative name, or that come later, are not found.
func socketsToHide(ctx context.Context, keep []string) []string {
	found := map[string]bool{}
	for file, parse := range map[string]func(io.Reader) []string{"/proc/net/unix": listedSockets, "/proc/self/mountinfo": mountPoints} {
		f, err := os.Open(file)
		if err != nil {
			continue // then nothing lists them
		}
		for _, path := range parse(f) {
			found[path] = true
		}
		_ = f.Close() // only read
	}
	ctx, cancel := context.WithTimeout(ctx, searchTime)
	defer cancel()
	for _, dir := range []string{"/run", "/var/run", "/tmp", "/var/tmp"} {
		for _, path := range socketsUnder(ctx, dir) {
			found[path] = true
		}
	}
	kept := map[string]bool{}
	for _, path := range keep {
		kept[real(path)] = true
	}
	var out []string
	for _, path := range slices.Sorted(maps.Keys(found)) {
		info, err := os.Stat(path)
		if err == nil && info.Mode()&fs.ModeSocket != 0 && !kept[real(path)] && len(out) < maxSockets {
			out = append(out, path)
		}
	}
	return out
}

func real(path string) string {
	if p, err := filepath.EvalSymlinks(path); err == nil {
		return p
	}
	return filepath.Clean(path)
}

// listedSockets are the absolute names of /proc/net/unix: the eighth field, which may hold
// blanks.
func listedSockets(r io.Reader) []string {
	var out []string
	for lines := bufio.NewScanner(r); lines.Scan() && len(out) < maxSockets; {
		rest := lines.Text()
		for range 7 {
			_, after, _ := strings.Cut(strings.TrimLeft(rest, " "), " ")
			rest = after
		}
		if strings.HasPrefix(rest, "/") {
			out = append(out, rest)
		}
	}
	return out
}

// mountPoints are the fifth fields of mountinfo (proc_pid_mountinfo(5)).
func mountPoints(r io.Reader) []string {
	unescape := strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`)
	var out []string
	for lines := bufio.NewScanner(r); lines.Scan() && len(out) < maxSockets; {
		if fields := strings.Fields(lines.Text()); len(fields) > 4 {
			out = append(out, unescape.Replace(fields[4]))
		}
	}
	return out
}

// socketsUnder walks root, as far as the bounds allow.
func socketsUnder(ctx context.Context, root string) []string {
	var out []string
	entries := 0
	_ = filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error { // it gives our own errors only
		entries++
		switch {
		case entries > maxEntries || ctx.Err() != nil:
			return fs.SkipAll
		case err != nil:
			return nil //nolint:nilerr // what we cannot see the command cannot use
		case d.Type()&fs.ModeSocket != 0:
			out = append(out, path)
		case d.IsDir() && strings.Count(strings.TrimPrefix(path, root), "/") >= maxDepth:
			return fs.SkipDir
		}
		return nil
	})
	return out
}

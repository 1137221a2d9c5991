package inject

import (
	"strings"
)

// InTarget says whether anything is replaced in a path or a query.
func (p *Placeholders) InTarget() bool { return len(p.places().path)+len(p.places().query) > 0 }

// Target replaces in the path and the raw query of a request target (RFC 9112, 3.2.1) and
// returns how many placeholders it replaced. It finds a placeholder however the client has
// percent-encoded it, writes the value with everything but unreserved characters
// percent-encoded (so it is one value in any parser), and leaves every other byte and the
// order of parameters. The error is ErrUnsafePlace where a segment of the path would
// become "." or "..", or ErrGrowth over 64 KiB.
func (p *Placeholders) Target(path, query string) (newPath, newQuery string, n int, err error) {
	by := p.places()
	if len(by.path) > 0 {
		text, at := unpercent(path)
		edits := findEscaped(text, at, 0, by.path, asPercent)
		if newPath, err = apply(path, edits, maxTarget); err != nil {
			return "", "", 0, err
		}
		if len(edits) > 0 && segmentsChange(path, newPath) {
			return "", "", 0, ErrUnsafePlace
		}
		n += len(edits)
	} else {
		newPath = path
	}
	if len(by.query) > 0 {
		text, at := unpercent(query)
		edits := findEscaped(text, at, 0, by.query, asPercent)
		if newQuery, err = apply(query, edits, maxTarget); err != nil {
			return "", "", 0, err
		}
		n += len(edits)
	} else {
		newQuery = query
	}
	if n > 0 && len(newPath)+len(newQuery) > maxTarget {
		return "", "", 0, ErrGrowth
	}
	return newPath, newQuery, n, nil
}

// segmentsChange: another number of segments, or one that was filled is now a step.
func segmentsChange(before, after string) bool {
	was, is := strings.Split(before, "/"), strings.Split(after, "/")
	if len(was) != len(is) {
		return true
	}
	for i := range is {
		if is[i] != was[i] && dotSegment(is[i]) {
			return true
		}
	}
	return false
}

// dotSegment: "." and "..", also encoded, and with the parameters that some servers cut
// off first ("..;x").
func dotSegment(segment string) bool {
	text, _ := unpercent(segment)
	name, _, _ := strings.Cut(text, ";")
	return name == "." || name == ".."
}

// StripQueryAuth is the package's function of this name, except that it leaves the
// parameters in which a placeholder stands that Target is going to replace.
func (p *Placeholders) StripQueryAuth(rawQuery string) string {
	fs := p.places().query
	if len(fs) == 0 {
		return StripQueryAuth(rawQuery)
	}
	return stripQueryAuth(rawQuery, func(pair string) bool {
		text, _ := unpercent(pair)
		return holds(text, fs)
	})
}

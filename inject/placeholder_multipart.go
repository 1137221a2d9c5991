package inject

import (
	"strings"
)

// multipartEdits are those in the content of the parts, each by its own type (RFC 7578;
// without one it is text). What is not in a part's content (the parts' headers, with names
// and file names, and what stands around the parts) stays. A placeholder in a body that is
// cut in a way that readers do not agree on is an error.
func multipartEdits(boundary, raw string, fs []filling) ([]edit, error) {
	parts, ok := splitParts("--"+boundary, raw)
	if !ok {
		if holds(raw, fs) {
			return nil, ErrBodySyntax
		}
		return nil, nil
	}
	var edits []edit
	for _, part := range parts {
		found, err := partEdits(part, raw, fs)
		if err != nil {
			return nil, err
		}
		edits = append(edits, found...)
	}
	for _, e := range edits {
		if strings.Contains(e.with, "--"+boundary) { // the client chose the boundary
			return nil, ErrUnsafePlace
		}
	}
	return edits, nil
}

// part is raw[head:body] and raw[body:end].
type part struct{ head, body, end int }

// splitParts follows RFC 2046, 5.1.1 to the letter, with CRLF everywhere.
func splitParts(delimiter, raw string) (parts []part, ok bool) {
	at := 0
	if !strings.HasPrefix(raw, delimiter) {
		n := strings.Index(raw, "\r\n"+delimiter)
		if n < 0 {
			return nil, false
		}
		at = n + 2
	}
	for {
		at += len(delimiter)
		if strings.HasPrefix(raw[at:], "--") {
			return parts, true
		}
		rest := strings.TrimLeft(raw[at:], " \t")
		if !strings.HasPrefix(rest, "\r\n") {
			return nil, false
		}
		head := len(raw) - len(rest) + 2
		n := strings.Index(raw[head-2:], "\r\n"+delimiter) // the line end before it may be that of the delimiter above
		if n < 0 {
			return nil, false
		}
		end := head - 2 + n
		at = end + 2
		if end < head {
			continue // nothing between two delimiters
		}
		blank := strings.Index(raw[head-2:end], "\r\n\r\n")
		if blank < 0 {
			return nil, false
		}
		parts = append(parts, part{head, head - 2 + blank + 4, end})
	}
}

func partEdits(p part, raw string, fs []filling) ([]edit, error) {
	content := raw[p.body:p.end]
	kind, ok := partType(strings.TrimSuffix(raw[p.head:p.body], "\r\n"))
	if !ok {
		if holds(content, fs) {
			return nil, ErrBodyForm
		}
		return nil, nil
	}
	edits, err := bodyEdits(kind, content, fs)
	for i := range edits {
		edits[i].from += p.body
		edits[i].to += p.body
	}
	return edits, err
}

// partType reads a part's head; ok is false for one that is encoded, made of parts itself,
// or not read the same by all.
func partType(head string) (contentType string, ok bool) {
	contentType = "text/plain"
	typed := false
	for line := range strings.SplitSeq(strings.TrimSuffix(head, "\r\n"), "\r\n") {
		name, value, found := strings.Cut(line, ":")
		value = strings.TrimSpace(value)
		switch {
		case line == "":
		case !found || name != strings.TrimSpace(name): // folded, or no field
			return "", false
		case strings.EqualFold(name, "Content-Type"):
			if typed {
				return "", false
			}
			contentType, typed = value, true
		case strings.EqualFold(name, "Content-Encoding"), strings.EqualFold(name, "Content-Transfer-Encoding"):
			switch strings.ToLower(value) {
			case "7bit", "8bit", "binary", "identity":
			default:
				return "", false
			}
		}
	}
	form, _ := formOf(contentType)
	return contentType, form != formMultipart
}

package inject

import (
	"mime"
	"strings"
)

// InBody says whether anything is replaced in bodies and in WebSocket messages.
func (p *Placeholders) InBody() bool { return len(p.places().body) > 0 }

// bodyForm is how a body is read.
type bodyForm uint8

const (
	formOther bodyForm = iota // not rewritten
	formURL
	formJSON
	formXML
	formText
	formMultipart
)

// Rewrites says whether Body replaces anything in bodies of a Content-Type: forms, JSON,
// XML, text, multipart/form-data. In others a placeholder is an error.
func (p *Placeholders) Rewrites(contentType string) bool {
	form, _ := formOf(contentType)
	return p.InBody() && form != formOther
}

// formOf: what does not parse, or is in a character set that is not ASCII's superset, is
// not rewritten.
func formOf(contentType string) (bodyForm, map[string]string) {
	t, params, err := mime.ParseMediaType(contentType)
	if err != nil {
		return formOther, nil
	}
	switch strings.ToLower(params["charset"]) {
	case "", "utf-8", "utf8", "us-ascii", "ascii", "iso-8859-1", "iso-8859-15", "latin1", "windows-1252":
	default:
		return formOther, nil
	}
	top, sub, _ := strings.Cut(t, "/")
	switch {
	case t == "application/x-www-form-urlencoded":
		return formURL, params
	case t == "multipart/form-data" && params["boundary"] != "":
		return formMultipart, params
	case strings.HasSuffix(sub, "+json"):
		return formJSON, params
	case strings.HasSuffix(sub, "+xml"), sub == "xml", t == "text/html":
		return formXML, params
	}
	switch sub {
	case "json", "x-json", "x-ndjson", "ndjson", "jsonl", "x-jsonlines", "jsonlines":
		return formJSON, params
	case "javascript", "x-javascript", "ecmascript", "graphql", "yaml", "x-yaml", "toml", "sql", "x-sh":
		return formText, params
	}
	if top == "text" {
		return formText, params
	}
	return formOther, params
}

// Body replaces in a whole body and returns how many placeholders it replaced; out is body
// itself when that is none. In form data it works as in a query, in JSON inside string
// literals, in XML and HTML with the five entities (a placeholder that the client has
// written with entities is not found), in text as it is, in
// multipart/form-data in each part by its own type; every other byte stays. The error is
// ErrEncodedBody for every Content-Encoding but identity, ErrBodyForm, ErrBodySyntax,
// ErrUnsafePlace, or ErrGrowth over 1 MiB more than body.
func (p *Placeholders) Body(contentType, contentEncoding string, body []byte) (out []byte, n int, err error) {
	fs := p.places().body
	if len(fs) == 0 || len(body) == 0 {
		return body, 0, nil
	}
	for coding := range strings.SplitSeq(contentEncoding, ",") {
		if coding = strings.TrimSpace(coding); coding != "" && !strings.EqualFold(coding, "identity") {
			return nil, 0, ErrEncodedBody
		}
	}
	raw := string(body)
	edits, err := bodyEdits(contentType, raw, fs)
	if err != nil || len(edits) == 0 {
		return keep(body, err), 0, err
	}
	filled, err := apply(raw, edits, maxGrowth)
	if err != nil {
		return nil, 0, err
	}
	return []byte(filled), len(edits), nil
}

func keep(body []byte, err error) []byte {
	if err != nil {
		return nil
	}
	return body
}

// bodyEdits of a body, or of one part.
func bodyEdits(contentType, raw string, fs []filling) ([]edit, error) {
	form, params := formOf(contentType)
	var edits []edit
	var err error
	switch form {
	case formURL:
		text, at := unpercent(raw)
		edits = findEscaped(text, at, 0, fs, asPercent)
	case formJSON:
		edits, err = jsonEdits(raw, fs)
	case formXML:
		edits, err = xmlEdits(raw, fs)
	case formText:
		edits = findEscaped(raw, nil, 0, fs, asIs)
	case formMultipart:
		return multipartEdits(params["boundary"], raw, fs)
	default:
		if holds(raw, fs) {
			return nil, ErrBodyForm
		}
	}
	if cs := strings.ToLower(params["charset"]); cs != "" && !strings.HasPrefix(cs, "utf") && form != formURL {
		for _, e := range edits {
			if !asciiOnly(e.with) {
				return nil, ErrUnsafePlace
			}
		}
	}
	return edits, err
}

func asciiOnly(s string) bool {
	for i := range len(s) {
		if s[i] >= 0x80 {
			return false
		}
	}
	return true
}

// xmlEdits: in a CDATA section nothing is escaped, and only its end cannot be written.
func xmlEdits(raw string, fs []filling) ([]edit, error) {
	const begin, end = "<![CDATA[", "]]>"
	edits := find(raw, fs)
	inside, done := false, 0
	for i := range edits {
		e := &edits[i]
		for {
			mark := begin
			if inside {
				mark = end
			}
			n := strings.Index(raw[done:e.from], mark)
			if n < 0 {
				break
			}
			done, inside = done+n+len(mark), !inside
		}
		done = e.to
		e.with = e.filling.xml
		if inside {
			if e.with = e.filling.value; strings.ContainsAny(e.with, "]>") { // also a part of the end, which the text around may complete
				return nil, ErrUnsafePlace
			}
		}
	}
	return edits, nil
}

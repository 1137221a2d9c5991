package inject

import (
	"errors"

	"github.com/egressd/egressd/internal/secret"
	"github.com/egressd/egressd/policy"
)

// Opaque is a placeholder that was made up for a value: letters, digits, - . _ ~ alone, and
// never a part of another one.
type Opaque struct {
	Placeholder string
	Value       secret.String
	BodyOnly    bool // it does not belong in headers and queries
}

// CheckOpaque is nil for a value that can stand in headers, queries and bodies.
func CheckOpaque(value string) error {
	if len(value) > maxOpaque {
		return errors.New("value is longer than 16 KiB")
	}
	return checkFilling(value, policy.InHeader|policy.InQuery|policy.InBody)
}

const maxOpaque = 16 << 10

// With is p and beside it more, which are replaced in headers and queries (but for those of
// bodies only), and in bodies where p replaces anything in them: no body is read for their
// sake. Values that
// CheckOpaque refuses are left out. p stays as it is.
func (p *Placeholders) With(more []Opaque) *Placeholders {
	was := p.places()
	out := &fillings{path: was.path, rendered: was.rendered}
	var added, everywhere []filling
	for _, o := range more {
		value := o.Value.Reveal()
		if CheckOpaque(value) != nil {
			continue
		}
		f := filling{placeholder: o.Placeholder, value: value, percent: percentEncode(value), json: jsonEscape(value), xml: xmlEscape(value)}
		added = append(added, f)
		if !o.BodyOnly {
			everywhere = append(everywhere, f)
		}
	}
	out.header = append(append(out.header, was.header...), everywhere...)
	out.query = append(append(out.query, was.query...), everywhere...)
	if out.body = was.body; len(was.body) > 0 {
		out.body = append(append([]filling(nil), was.body...), added...)
	}
	return &Placeholders{&out}
}

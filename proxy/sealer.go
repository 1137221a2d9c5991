package proxy

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/egressd/egressd/inject"
)

// sealer keeps tokens that an origin issues in an answer from the sandbox, which gets an
// opaque placeholder for each (docs/adr/0012).
type sealer struct {
	seals  *seals
	key    sealKey
	source string
	limit  int64
	share  *share
}

var errHeldLimit = errors.New("the sandbox has too many bodies held whole")

// Lives of tokens that do not say how long they are good, and what a clock may be off.
const (
	accessLife  = 24 * time.Hour
	refreshLife = maxSealedLife
	sealLeeway  = time.Minute
)

// tokenKind is the field of a token in an answer (RFC 6749 section 5.1, OpenID Connect Core
// section 3.1.3.3), however it is spelled.
func tokenKind(field string) (refresh, is bool) {
	switch strings.ToLower(strings.NewReplacer("_", "", "-", "").Replace(field)) {
	case "accesstoken", "idtoken":
		return false, true
	case "refreshtoken":
		return true, true
	}
	return false, false
}

// answer replaces tokens in a JSON object or a form, which is read whole for that.
func (e *sealer) answer(r *http.Request, resp *http.Response) error {
	if bodiless(r, resp) || resp.StatusCode >= http.StatusMultipleChoices {
		return nil
	}
	mediaType, _, _ := mime.ParseMediaType(resp.Header.Get("Content-Type"))
	form := mediaType == "application/x-www-form-urlencoded"
	if !form && mediaType != "application/json" && !strings.HasSuffix(mediaType, "+json") {
		return nil
	}
	plain, err := decoded(resp)
	if err != nil {
		return err
	}
	if !e.share.hold(e.limit) {
		return errHeldLimit
	}
	body, err := io.ReadAll(io.LimitReader(plain, e.limit+1))
	e.share.but(e.limit, int64(len(body)))
	if err != nil {
		return fmt.Errorf("%w: %w", errUpstreamResponse, err)
	}
	var rest io.Reader = bytes.NewReader(nil)
	out := body
	switch {
	case int64(len(body)) > e.limit:
		if speaksOfTokens(body) {
			return fmt.Errorf("%w: tokens in an answer of more than %d bytes", errUpstreamResponse, e.limit)
		}
		rest = plain
	case form:
		out = e.form(body)
	default:
		if out, err = e.json(body); err != nil {
			return fmt.Errorf("%w: %w", errUpstreamResponse, err)
		}
	}
	lengthUnknown(resp)
	resp.Body = &readCloser{io.MultiReader(bytes.NewReader(out), rest), resp.Body}
	return nil
}

// speaksOfTokens: a field of a token may be in it.
func speaksOfTokens(body []byte) bool {
	flat := bytes.ToLower(bytes.ReplaceAll(body, []byte("_"), nil))
	for _, name := range [...]string{"accesstoken", "refreshtoken", "idtoken"} {
		if bytes.Contains(flat, []byte(name)) {
			return true
		}
	}
	return false
}

func (e *sealer) life(refresh bool, expires time.Duration) time.Duration {
	switch {
	case refresh:
		return refreshLife
	case expires > 0:
		return expires + sealLeeway
	}
	return accessLife
}

var errTokenForm = errors.New("tokens in an answer that is no JSON")

// json replaces the strings that are values of a token's field, at any depth; every other
// byte stays.
func (e *sealer) json(body []byte) ([]byte, error) {
	found, expires, err := tokensIn(body)
	if err != nil && speaksOfTokens(body) {
		return nil, errTokenForm
	}
	if len(found) == 0 { // as when it is no JSON
		return body, nil
	}
	out := make([]byte, 0, len(body))
	done := 0
	for _, f := range found {
		if inject.CheckOpaque(f.value) != nil {
			return nil, errors.New("a token that cannot stand in a request")
		}
		out = append(out, body[done:f.from]...)
		out = strconv.AppendQuote(out, e.seals.seal(e.key, e.source, f.value, f.refresh, e.life(f.refresh, expires)))
		done = f.to
	}
	return append(out, body[done:]...), nil
}

type foundToken struct {
	from, to int
	value    string
	refresh  bool
}

// tokensIn finds tokens in JSON, and how long they are good.
func tokensIn(body []byte) (found []foundToken, expires time.Duration, err error) {
	d := json.NewDecoder(bytes.NewReader(body))
	d.UseNumber()
	type level struct {
		object, isValue bool
		field           string
	}
	stack := []level{{}}
	for {
		before := int(d.InputOffset())
		tok, err := d.Token()
		if err == io.EOF && len(stack) == 1 {
			return found, expires, nil
		}
		if err != nil {
			return nil, 0, err
		}
		top := &stack[len(stack)-1]
		if delim, ok := tok.(json.Delim); ok {
			if delim == '}' || delim == ']' {
				stack = stack[:len(stack)-1]
				continue
			}
			top.isValue = false
			stack = append(stack, level{object: delim == '{'})
			continue
		}
		text, isText := tok.(string)
		if top.object && !top.isValue {
			top.field, top.isValue = text, true
			continue
		}
		top.isValue = false
		if len(stack) == 2 && strings.EqualFold(top.field, "expires_in") {
			expires = seconds(fmt.Sprint(tok))
		}
		if refresh, is := tokenKind(top.field); is && top.object && isText && text != "" {
			end := int(d.InputOffset())
			from := before + bytes.IndexByte(body[before:end], '"')
			found = append(found, foundToken{from, end, text, refresh})
		}
	}
}

func seconds(s string) time.Duration {
	n, err := strconv.ParseFloat(s, 64)
	if err != nil || n <= 0 || n > maxSealedLife.Seconds() {
		return 0
	}
	return time.Duration(n * float64(time.Second))
}

// form does the same for what GitHub and others answer with. Pairs that do not decode stay.
func (e *sealer) form(body []byte) []byte {
	pairs := strings.Split(string(body), "&")
	var expires time.Duration
	for _, p := range pairs {
		if k, v, _ := strings.Cut(p, "="); k == "expires_in" {
			expires = seconds(v)
		}
	}
	for i, p := range pairs {
		k, v, _ := strings.Cut(p, "=")
		name, err := url.QueryUnescape(k)
		if err != nil {
			continue
		}
		refresh, is := tokenKind(strings.TrimSpace(name))
		value, err := url.QueryUnescape(v)
		if is && err == nil && value != "" && inject.CheckOpaque(value) == nil {
			pairs[i] = k + "=" + e.seals.seal(e.key, e.source, value, refresh, e.life(refresh, expires))
		}
	}
	return []byte(strings.Join(pairs, "&"))
}

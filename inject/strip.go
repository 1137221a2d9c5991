package inject

import (
	"net/http"
	"net/url"
	"strings"
)

// StripClientAuth removes every field by which a client authenticates itself to some
// service, so that nothing leaves under an account of the sandbox's own. It goes over the
// raw keys: http.Header.Del would miss those that are not in canonical case.
func StripClientAuth(h http.Header) {
	for key := range h {
		if isAuthName(key) {
			delete(h, key)
		}
	}
}

// isAuthName: the list is what services document as their way of authentication, and
// any name that says so by its ending. What only accompanies a credential stays,
// because requests break without it and nothing is authenticated by it: X-Csrf-Token,
// X-Amz-Date, X-Amz-Content-Sha256, X-Goog-User-Project, OpenAI-Organization.
func isAuthName(name string) bool {
	const longest = 48
	var buf [longest]byte
	tail := name
	if len(tail) > longest {
		tail = tail[len(tail)-longest:] // no listed name is so long; an ending may be
	}
	folded := buf[:len(tail)]
	for i := range len(tail) {
		folded[i] = fold(tail[i])
	}
	return listedAuthName(folded) || endsAsAuth(folded)
}

func listedAuthName(folded []byte) bool {
	switch string(folded) { // compiles to a search without allocation
	case "authorization", "proxy-authorization", "cookie", "cookie2",
		"dpop", "signature", "signature-input", // RFC 9449, RFC 9421
		"api-key", "apikey", "x-api-key", "x-apikey", "x-api-token", "api-token", "x-token", "x-auth", "x-auth-key", "x-auth-token",
		"x-access-token", "x-session-token", "x-id-token", "x-jwt", "x-jwt-assertion", "x-csrf-secret",
		"x-goog-api-key", "x-goog-iam-authorization-token", "x-goog-iap-jwt-assertion", "x-serverless-authorization",
		"x-amz-security-token", "x-amz-s3session-token", "x-aws-ec2-metadata-token",
		"x-ms-authorization-auxiliary", "ocp-apim-subscription-key", "x-functions-key", "x-zumo-auth",
		"private-token", "job-token", "deploy-token", "x-gitlab-token", "x-registry-auth", "x-registry-config",
		"x-vault-token", "x-consul-token", "x-nomad-token", "x-boundary-token",
		"x-shopify-access-token", "x-shopify-storefront-access-token", "x-figma-token", "x-postmark-server-token",
		"x-postmark-account-token", "x-subscription-token", "x-trackertoken", "x-honeycomb-team", "x-sentry-auth", "x-sentry-token",
		"dd-api-key", "dd-application-key", "x-insert-key", "x-query-key", "x-license-key",
		"circle-token", "fastly-key", "x-jfrog-art-api", "x-rapidapi-key", "x-mashape-key", "x-hasura-admin-secret",
		"cf-access-client-id", "cf-access-client-secret", "cf-access-token", "cf-access-jwt-assertion",
		"x-ibm-client-id", "x-ibm-client-secret", "x-parse-session-token", "x-parse-master-key",
		"x-cisco-meraki-api-key", "x-pm-apitoken", "x-user-token", "x-account-token", "x-service-token", "x-security-token",
		"x-subject-token", "x-storage-token", "x-plex-token", "x-emby-token", "x-stytch-session-token",
		"soapaction-token", "sec-token-binding":
		return true
	}
	return false
}

func endsAsAuth(folded []byte) bool {
	if len(folded) == 0 {
		return false
	}
	switch folded[len(folded)-1] {
	case 'n', 'y', 't': // as all of the below do; most names do not
	default:
		return false
	}
	// No bare "-token" or "-key": continuation and idempotency tokens end so.
	for _, end := range [...]string{
		"authorization", "api-key", "apikey", "access-key", "access-token", "auth-token", "bearer-token",
		"client-secret", "api-secret", "api-token", "secret-key", "authtoken", "accesstoken",
	} {
		if len(folded) >= len(end) && string(folded[len(folded)-len(end):]) == end {
			return true
		}
	}
	return false
}

// StripQueryAuth removes the parameters of a raw query by which a client
// authenticates itself, and leaves every other byte as it is. Parameters end at "&" and, since
// some servers see it so, at ";".
func StripQueryAuth(rawQuery string) string {
	return stripQueryAuth(rawQuery, func(string) bool { return false })
}

// stripQueryAuth leaves parameters that are the operator's own.
func stripQueryAuth(rawQuery string, own func(pair string) bool) string {
	sas := hasSAS(rawQuery)
	var out strings.Builder
	cut := false
	for rest := rawQuery; rest != ""; {
		n := strings.IndexAny(rest, "&;")
		pair, sep := rest, ""
		if n >= 0 {
			pair, sep = rest[:n], rest[n:n+1]
		}
		rest = rest[len(pair)+len(sep):]
		if isAuthParam(pair, sas) && !own(pair) {
			if !cut {
				cut = true
				out.WriteString(rawQuery[:len(rawQuery)-len(rest)-len(pair)-len(sep)])
			}
			continue
		}
		if cut {
			out.WriteString(pair)
			out.WriteString(sep)
		}
	}
	if !cut {
		return rawQuery
	}
	left := out.String()
	if last := len(left) - 1; last >= 0 && !endsInSeparator(rawQuery) && endsInSeparator(left) {
		left = left[:last] // it stood before the parameter that was the last
	}
	return left
}

func endsInSeparator(s string) bool { return strings.HasSuffix(s, "&") || strings.HasSuffix(s, ";") }

// hasSAS: "sig" authenticates only beside the other parts of an Azure shared access
// signature; alone it is a common name for other things.
func hasSAS(rawQuery string) bool {
	sig, version := false, false
	for pair := range strings.FieldsFuncSeq(rawQuery, func(c rune) bool { return c == '&' || c == ';' }) {
		switch paramName(pair) {
		case "sig":
			sig = true
		case "sv", "se", "skn", "sr":
			version = true
		}
	}
	return sig && version
}

func isAuthParam(pair string, sas bool) bool {
	switch name := paramName(pair); name {
	case "access_token", "accesstoken", "auth_token", "authtoken", "oauth_token", "bearer_token", "id_token",
		"refresh_token", "session_token", "token", "jwt", "authorization", "x_api_key", "x_auth_token", "x_access_token",
		"api_key", "apikey", "api_token", "apitoken", "api_secret", "appkey", "app_key", "application_key",
		"access_key", "secret_key", "subscription_key", "private_token", "job_token", "deploy_token",
		"client_secret", "client_assertion", "password", "oauth_signature", "oauth_consumer_key",
		"awsaccesskeyid", "googleaccessid", "ossaccesskeyid", "key_pair_id", "signature",
		"x_amz_algorithm", "x_amz_credential", "x_amz_signature", "x_amz_security_token", "x_amz_signedheaders",
		"x_goog_algorithm", "x_goog_credential", "x_goog_signature", "x_goog_signedheaders", "x_goog_api_key":
		return true
	case "sig":
		return sas
	case "key":
		// Google's APIs take their key as "key", which elsewhere names what is asked for.
		_, value, _ := strings.Cut(pair, "=")
		return strings.HasPrefix(value, "AIza")
	}
	return false
}

// paramName is the name of a parameter as the loosest receiver reads it: decoded,
// lower case, without a trailing "[]", with "-", "." and blanks as "_".
func paramName(pair string) string {
	name, _, _ := strings.Cut(pair, "=")
	if decoded, err := url.QueryUnescape(name); err == nil {
		name = decoded
	}
	name, _, _ = strings.Cut(strings.TrimSpace(name), "[")
	return strings.Map(func(c rune) rune {
		switch {
		case 'A' <= c && c <= 'Z':
			return c + 'a' - 'A'
		case c == '-', c == '.', c == ' ':
			return '_'
		}
		return c
	}, name)
}

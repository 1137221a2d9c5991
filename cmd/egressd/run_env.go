package main

import (
	"net"
	"slices"
	"strings"
)

// shortest is the length in bytes from which a value is looked for in the other
// variables: shorter ones stand in too many by chance.
const shortest = 8

// childEnv is the command's environment: ours without the secrets and without what
// leads around the proxy, and with what leads through it.
func (s *session) childEnv() []string {
	drop, values := s.secrets.vars, s.secrets.values()
	var out []string
	for _, kv := range s.app.environ {
		name, value, _ := strings.Cut(kv, "=")
		switch {
		case slices.Contains(drop, name), strings.HasPrefix(name, "EGRESSD_"), isProxyVar(name):
			continue
		case holdsSecret(value, values):
			if !s.flags.quiet {
				s.app.warn("%s holds one of the secrets and is not given to the command", name)
			}
			continue
		}
		out = append(out, kv)
	}
	for _, v := range s.added() {
		out = slices.DeleteFunc(out, func(kv string) bool { return strings.HasPrefix(kv, v[0]+"=") })
		out = append(out, v[0]+"="+v[1])
	}
	return out
}

func isProxyVar(name string) bool {
	switch strings.ToUpper(name) {
	case "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "FTP_PROXY", "NO_PROXY":
		return true
	}
	return false
}

func holdsSecret(value string, secrets []string) bool {
	return slices.ContainsFunc(secrets, func(s string) bool { return len(s) >= shortest && strings.Contains(value, s) })
}

// caVariables name the file that a runtime takes its CAs from.
func caVariables() []string {
	return []string{
		"SSL_CERT_FILE", "CURL_CA_BUNDLE", "REQUESTS_CA_BUNDLE", "GIT_SSL_CAINFO", "NODE_EXTRA_CA_CERTS",
		"AWS_CA_BUNDLE", "PIP_CERT", "CARGO_HTTP_CAINFO", "DENO_CERT", "NPM_CONFIG_CAFILE", "YARN_HTTPS_CA_FILE_PATH",
		"GRPC_DEFAULT_SSL_ROOTS_FILE_PATH", "BUNDLE_SSL_CA_CERT", "NIX_SSL_CERT_FILE", "PERL_LWP_SSL_CA_FILE",
		"CLOUDSDK_CORE_CUSTOM_CA_CERTS_FILE", "HTTPLIB2_CA_CERTS",
	}
}

func (s *session) added() [][2]string {
	out := [][2]string{{"JAVA_TOOL_OPTIONS", s.javaOptions()}, {"EGRESSD_SSH_KNOWN_HOSTS", s.trust.knownHosts}}
	if s.app.env("GIT_SSH_COMMAND") == "" { // no variable tells ssh itself
		out = append(out, [2]string{"GIT_SSH_COMMAND", "ssh -o GlobalKnownHostsFile=" + s.trust.knownHosts})
	}
	for _, name := range caVariables() {
		out = append(out, [2]string{name, s.trust.bundle})
	}
	if s.in.isolated != nil { // there every way leads to egressd
		return out
	}
	proxy := s.proxyURL()
	for _, name := range []string{"http_proxy", "https_proxy", "all_proxy"} {
		out = append(out, [2]string{name, proxy}, [2]string{strings.ToUpper(name), proxy})
	}
	return append(out,
		[2]string{"no_proxy", ""}, [2]string{"NO_PROXY", ""},
		[2]string{"NODE_USE_ENV_PROXY", "1"},
		[2]string{"GIT_HTTP_PROXY_AUTHMETHOD", "basic"}, // spares a round trip for a 407
	)
}

// javaOptions goes on with what stands in JAVA_TOOL_OPTIONS: the last of two -D holds.
// The JDK leaves Basic out of tunnels unless told otherwise.
func (s *session) javaOptions() string {
	opts := []string{
		"-Djavax.net.ssl.trustStore=" + s.trust.truststore,
		"-Djavax.net.ssl.trustStoreType=PKCS12",
		"-Djavax.net.ssl.trustStorePassword=" + truststorePassword,
	}
	if s.in.isolated == nil {
		opts = append(opts, s.javaProxy()...)
	}
	if before := s.app.env("JAVA_TOOL_OPTIONS"); before != "" && !holdsSecret(before, s.secrets.values()) {
		opts = append([]string{before}, opts...)
	}
	return strings.Join(opts, " ")
}

func (s *session) javaProxy() []string {
	host, port, _ := net.SplitHostPort(s.in.ln.Addr().String())
	opts := []string{"-Djdk.http.auth.tunneling.disabledSchemes=", "-Dhttp.nonProxyHosts="}
	for _, scheme := range []string{"http", "https"} {
		opts = append(opts,
			"-D"+scheme+".proxyHost="+host, "-D"+scheme+".proxyPort="+port,
			"-D"+scheme+".proxyUser="+s.sandbox.ID, "-D"+scheme+".proxyPassword="+s.token.Reveal())
	}
	return opts
}

package archtest

const module = "github.com/egressd/egressd"

// layer says what a package may import of ours. Patterns: a path, or a path that ends in
// "/..." for all below it and itself.
type layer struct {
	pkg    string
	may    []string
	reason string // why not more
}

// layers is searched from the top; the first pattern that matches counts.
var layers = [...]layer{
	{"cmd/...", []string{"..."}, ""},
	{"bench/...", []string{"..."}, ""},
	{"internal/demo/...", []string{"cmd/...", "internal/..."}, "it drives the daemon from outside, like an operator"},
	{"proxy/...", []string{"proxy/...", "inject/...", "policy", "source", "internal/..."},
		"the data plane reads sources through injectors and a Resolver: a store or a driver here would be a second way to a secret, and api a way from a sandbox to the management plane"},
	{"inject/sigv4", []string{"internal/secret"}, "a way of signing: it knows requests and keys, not whose they are"},
	{"inject/...", []string{"policy", "source", "internal/..."}, "projections know rules and material, not where material is kept"},
	{"source", []string{"store", "internal/..."}, "what a source means does not depend on a driver: drivers are handed in by cmd/egressd"},
	{"source/...", []string{"source", "source/sourcetest", "store", "internal/..."}, "a driver knows the contract and no other driver, so that one can be left out of a build"},
	{"api/...", []string{"api/...", "store", "source", "internal/..."},
		"the management plane is another network: reaching proxy or inject would give it material, and a backend the read side of the store"},
	{"policy/...", []string{"policy/..."}, "pure: a decision depends on YAML and a flow alone, and holds no secret"},
	{"store", []string{}, "a leaf: the contract that both planes meet in"},
	{"store/...", []string{"store", "store/storetest", "internal/..."}, "a backend knows the contract and no other backend"},
	{"internal/testbed/...", []string{"internal/..."}, "any package's tests use it, so it must not need any"},
	{"internal/...", []string{}, "a leaf imports nothing of ours: it can be read, tested and fuzzed alone"},
}

// onlyIn bans imports outside certain places. tests says that tests may as well.
var onlyIn = [...]struct {
	path   string // of the import; "/..." as above
	files  []string
	tests  bool
	reason string
}{
	{"github.com/elazarl/goproxy/...", []string{"proxy/explicit*.go", "bench/*"}, true, "only the explicit edge parses with it; its defaults are an open tunnel, the environment's proxies and a public CA"},
	{module + "/source/static/...", []string{"cmd/*"}, true, "drivers are chosen by cmd/egressd"},
	{module + "/store/memory/...", []string{"cmd/*"}, true, "backends are chosen by cmd/egressd"},
	{module + "/store/sqlite/...", []string{"cmd/*"}, true, "backends are chosen by cmd/egressd"},
	{module + "/internal/testbed/...", []string{"bench/*", "internal/testbed/*"}, true, "it holds fake origins and makes certificates for anything"},
	{module + "/store/storetest/...", []string{}, true, "a contract suite is for tests"},
	{"modernc.org/sqlite/...", []string{"store/sqlite/*"}, true, "SQL stays in its backend"},
	{"github.com/spf13/cobra/...", []string{"cmd/*"}, false, "commands are cmd/egressd's"},
	{"github.com/aws/...", []string{"inject/sigv4/*", "internal/testbed/*"}, true, "of the SDK only its signer is used, to sign"},
	{"github.com/google/nftables/...", []string{"internal/redirect/*", "internal/isolate/*"}, true, "rules are written in these two places alone"},
	{"github.com/vishvananda/...", []string{"internal/redirect/*", "internal/isolate/*", "internal/testbed/*"}, true, "interfaces and routes are those of redirection and isolation"},
	{"github.com/xdg-go/scram/...", []string{"proxy/postgres/*"}, true, "a login of PostgreSQL"},
	{"github.com/andybalholm/brotli/...", []string{"internal/scan/*", "internal/testbed/*"}, true, "codings are undone in one place, within its limits (C30)"},
	{"github.com/jackc/pgx/...", []string{}, true, "a client to test with"},
	{"google.golang.org/grpc/...", []string{}, true, "a client and server to test with"},
	{"github.com/coder/websocket/...", []string{"internal/testbed/*"}, true, "a client and server to test with"},
	{"github.com/miekg/dns/...", []string{"internal/netguard/*", "internal/testbed/*", "proxy/policydns/*", "proxy/names.go", "proxy/ech.go"}, true, "names are looked up by netguard alone (B07); policydns answers"},
	{"net/http/pprof", []string{}, false, "registers itself on the default mux, which a sandbox may reach (G23)"},
	{"expvar", []string{}, false, "registers itself on the default mux (G23)"},
	{"math/rand", []string{}, false, "predictable: crypto/rand for secrets, math/rand/v2 for jitter"},
	{"unsafe", []string{}, false, "nothing here is worth it"},
	{"C", []string{}, false, "the binary is static, and cgo's resolver takes 0x7f.1 for an address (B04)"},
	{"plugin", []string{}, false, "code comes with the binary"},
	{"os/exec", []string{"cmd/*", "bench/*", "internal/testbed/*", "internal/demo/*", "internal/testsum/*"}, true, "only egressd run starts programs"},
}

// mentions bans qualified names outside tests.
var mentions = [...]struct {
	pkg, name string // import path and name; "" for any package: a selector or field of that name
	in        []string
	reason    string
}{
	{"context", "Background", []string{"cmd/*", "bench/*", "internal/demo/*", "internal/testbed/*", "internal/testsum/*"}, "every goroutine has an owner: take the context from it"},
	{"context", "TODO", nil, "every goroutine has an owner: take the context from it"},
	{"os", "Getenv", []string{"cmd/*", "internal/config/*", "bench/*", "internal/demo/*", "internal/testbed/*", "internal/testsum/*"}, "what configures the daemon is in one place"},
	{"os", "LookupEnv", []string{"cmd/*", "internal/config/*", "bench/*", "internal/demo/*", "internal/testbed/*", "internal/testsum/*"}, "what configures the daemon is in one place"},
	{"os", "Environ", []string{"cmd/*", "internal/config/*", "bench/*", "internal/demo/*", "internal/testbed/*", "internal/testsum/*"}, "what configures the daemon is in one place"},
	{"net/http", "DefaultClient", nil, "follows redirects and the environment's proxies, and has no deadline (A13, A19)"},
	{"net/http", "DefaultTransport", nil, "follows the environment's proxies (A19)"},
	{"net/http", "DefaultServeMux", nil, "anything may have registered on it (G23)"},
	{"net/http", "ProxyFromEnvironment", nil, "the environment must not choose where traffic goes (A19)"},
	{"net/http", "Get", nil, "uses DefaultClient"},
	{"net/http", "Head", nil, "uses DefaultClient"},
	{"net/http", "Post", nil, "uses DefaultClient"},
	{"net/http", "PostForm", nil, "uses DefaultClient"},
	{"net/http", "ListenAndServe", nil, "a server without any deadline (C23)"},
	{"net/http", "ListenAndServeTLS", nil, "a server without any deadline (C23)"},
	{"net/http", "ReadRequest", []string{"bench/*", "internal/testbed/*"}, "accepts ten classes of input that a server refuses, without a size limit (security.md, line 4)"},
	{"log", "Print", []string{"bench/*", "internal/demo/*"}, "zap, passed and never global; log.New for http.Server.ErrorLog is fine"},
	{"log", "Printf", []string{"bench/*", "internal/demo/*"}, "zap, passed and never global; log.New for http.Server.ErrorLog is fine"},
	{"log", "Println", []string{"bench/*", "internal/demo/*"}, "zap, passed and never global; log.New for http.Server.ErrorLog is fine"},
	{"log", "Fatal", []string{"bench/*", "internal/demo/*"}, "zap, passed and never global; log.New for http.Server.ErrorLog is fine"},
	{"log", "Fatalf", []string{"bench/*", "internal/demo/*"}, "zap, passed and never global; log.New for http.Server.ErrorLog is fine"},
	{"log", "Fatalln", []string{"bench/*", "internal/demo/*"}, "zap, passed and never global; log.New for http.Server.ErrorLog is fine"},
	{"log", "Panic", []string{"bench/*", "internal/demo/*"}, "zap, passed and never global; log.New for http.Server.ErrorLog is fine"},
	{"log", "Panicf", []string{"bench/*", "internal/demo/*"}, "zap, passed and never global; log.New for http.Server.ErrorLog is fine"},
	{"log", "Default", []string{"bench/*", "internal/demo/*"}, "zap, passed and never global; log.New for http.Server.ErrorLog is fine"},
	{"log", "SetOutput", []string{"bench/*", "internal/demo/*"}, "zap, passed and never global; log.New for http.Server.ErrorLog is fine"},
	{"crypto/x509", "SystemCertPool", []string{"bench/*"}, "follows SSL_CERT_FILE: internal/certs knows the fixed places (A19)"},
	{"net", "DefaultResolver", nil, "names are looked up by netguard alone (B07, B10)"},
	{"net", "LookupHost", nil, "names are looked up by netguard alone (B07, B10)"},
	{"net", "LookupIP", nil, "names are looked up by netguard alone (B07, B10)"},
	{"net", "LookupAddr", nil, "names are looked up by netguard alone (B07, B10)"},
	{"net", "ResolveTCPAddr", nil, "looks names up (B07, B10)"},
	{"golang.org/x/crypto/ssh", "InsecureIgnoreHostKey", nil, "a credential goes only to a destination that proved who it is (E01)"},
	{"", "InsecureSkipVerify", []string{"internal/testbed/*", "bench/*"}, "a credential goes only to a destination that proved who it is (A06, D08)"},
	{"", "KeyLogWriter", nil, "session keys in a file undo TLS (A19)"},
}

// readSide is what the management plane must not even name: the store's read side.
var readSide = [...]string{"Reader", "Store", "Opener", "Sealed"}

// Bounds of the house.
const (
	maxFunc    = 80
	maxWiring  = 120
	p90Func    = 45
	maxFile    = 600
	maxMethods = 6
)

// wide lists what may exceed a bound, with the reason.
var wide = map[string]string{
	"store.Store": "what a backend returns; the wiring hands each side only its half",
}

// longTables lists functions that are a table or wiring and may have maxWiring lines.
var longTables = map[string]string{}

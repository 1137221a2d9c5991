#!/usr/bin/env bash
# Runs every fuzz target of the module for $1 each, one after the other. With further
# arguments only the packages that they name: scripts/fuzz.sh 30s ./proxy/...
set -euo pipefail
cd "$(dirname "$0")/.."
time=$1
shift
for pkg in $(go list -f '{{if or .TestGoFiles .XTestGoFiles}}{{.ImportPath}}{{end}}' "${@:-./...}"); do
	# A package that does not compile must not look like one without targets.
	list=$(go test -list '^Fuzz' "$pkg")
	for target in $(grep '^Fuzz' <<<"$list" || true); do
		echo "== $pkg $target"
		go test -run '^$' -fuzz "^$target\$" -fuzztime "$time" "$pkg"
	done
done

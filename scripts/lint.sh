#!/usr/bin/env bash
# lint.sh GOLANGCI_LINT@VERSION GOVULNCHECK@VERSION: installs both into .tools/bin when
# that version is not there yet, and runs them.
set -euo pipefail
cd "$(dirname "$0")/.."
bin=$PWD/.tools/bin
mkdir -p "$bin"

# install MODULE/cmd@VERSION
install() {
	local tool=${1%@*} version=${1#*@}
	local file=$bin/${tool##*/}
	if ! go version -m "$file" 2>/dev/null | grep -q $'\tmod\t.*\t'"$version"; then
		echo "lint: building ${tool##*/} $version (some minutes, once)"
		GOBIN=$bin go install "$1"
	fi
}

# not_checked OUTPUT: the rest of the result stands, but nobody may take it for a clean bill.
not_checked() {
	cat <<-'NOTE'
	############################################################################
	# govulncheck DID NOT RUN: it, or its vulnerability database, cannot be    #
	# had from this machine. Dependencies have NOT been checked. Run           #
	# `make lint` where the network is open before a release.                  #
	############################################################################
	NOTE
	tail -n 2 <<<"$1"
}

install "$1"
gofmt_diff=$(git ls-files -c -o --exclude-standard '*.go' | xargs gofmt -l)
if [ -n "$gofmt_diff" ]; then
	echo "lint: not gofmt'ed:"
	echo "$gofmt_diff"
	exit 1
fi
"$bin/golangci-lint" run ./...

if ! out=$(install "$2" 2>&1); then
	not_checked "$out"
	exit 0
fi
status=0
out=$("$bin/govulncheck" ./... 2>&1) || status=$?
case $status in
0) echo "govulncheck: no known vulnerability reaches this code" ;;
3)
	echo "$out"
	exit 1
	;;
*)
	if ! grep -qiE 'dial tcp|no such host|connection refused|i/o timeout|proxyconnect|fetching|forbidden|x509' <<<"$out"; then
		echo "$out"
		exit 1
	fi
	not_checked "$out"
	;;
esac

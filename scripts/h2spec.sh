#!/usr/bin/env bash
# Builds h2spec, the conformance test of HTTP/2 servers, into .tools/bin from the versions
# that scripts/h2spec/go.mod and go.sum pin. A module of its own, so that the product's has
# none of its dependencies. A second run takes milliseconds.
set -euo pipefail
cd "$(dirname "$0")/h2spec"
bin=$PWD/../../.tools/bin
mkdir -p "$bin"
want=$(sed -n 's/.*github.com\/summerwind\/h2spec \(v[^ ]*\).*/\1/p' go.mod)
if ! go version -m "$bin/h2spec" 2>/dev/null | grep -qF "$want"; then
	echo "h2spec: building $want"
	GOBIN=$bin go install -mod=readonly github.com/summerwind/h2spec/cmd/h2spec
fi

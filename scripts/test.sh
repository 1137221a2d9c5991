#!/usr/bin/env bash
# go test with these arguments; its package lines, the output of what failed, and in the
# end how many passed, failed and were skipped. Tests here do not skip for a missing tool;
# what is skipped is named, with its reason.
set -euo pipefail
cd "$(dirname "$0")/.."
mkdir -p bin
go build -o bin/testsum ./internal/testsum
status=0
go test -json "$@" | bin/testsum || status=$?
exit "$status"

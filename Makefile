# egressd. `make help` lists the targets.
SHELL       := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
export PATH := $(CURDIR)/.tools/bin:$(PATH)
export CGO_ENABLED ?= 0

GOLANGCI_LINT := github.com/golangci/golangci-lint/v2/cmd/golangci-lint@v2.15.0
GOVULNCHECK   := golang.org/x/vuln/cmd/govulncheck@v1.9.0
FUZZTIME      ?= 30s
# Asked for by build and image alone; outside a git checkout it is dev.
VERSION       ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)

.PHONY: help run build test race lint bench fuzz torture image clean deps
.DEFAULT_GOAL := help

help: ## list the targets
	@awk -F':.*## ' '/^[a-z]+:.*## / {printf "  %-8s %s\n", $$1, $$2}' Makefile

run: build ## show egressd at work against an origin of its own, and leave it running
	@go build -o bin/demo ./internal/demo && bin/demo -egressd bin/egressd

build: ## bin/egressd: one static file
	@mkdir -p bin
	go build -trimpath -tags netgo -ldflags '-s -w -X main.version=$(VERSION)' -o bin/egressd ./cmd/egressd

test: deps ## everything that CI runs
	go vet ./...
	@scripts/test.sh -timeout 14m ./...

race: deps ## the tests under the race detector (needs a C compiler)
	@CGO_ENABLED=1 scripts/test.sh -race -timeout 30m ./...

lint: ## golangci-lint and govulncheck, at pinned versions
	@scripts/lint.sh $(GOLANGCI_LINT) $(GOVULNCHECK)

bench: build ## compare with the references that bench/ carries; writes bench/results.md
	@go build -o bin/bench ./bench && bin/bench -egressd bin/egressd $(BENCHFLAGS)

fuzz: ## every fuzz target for FUZZTIME (30s) each
	@scripts/fuzz.sh $(FUZZTIME)

torture: build deps ## the long versions of the fault tests (TestTorture…), up to an hour
	@EGRESSD_TORTURE=1 scripts/test.sh -count=1 -timeout 60m -run Torture ./...

image: ## container image (needs a Docker engine)
	docker build --build-arg VERSION=$(VERSION) -t egressd:dev .

clean: ## what was built; .tools stays, `rm -r .tools` removes it
	rm -rf bin .cache

deps: ## install what the tests need and this machine lacks
	@scripts/deps.sh

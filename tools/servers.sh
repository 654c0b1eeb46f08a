#!/usr/bin/env bash
# Installs the servers that the cloud tests start, as far as that is possible here: nginx from Debian's packages (as root),
# s3rver and azurite from npm into .servers. Tests of a server that is missing are skipped. May be run again. usage: tools/servers.sh
set -euo pipefail
cd "$(dirname "$0")/.."
if ! command -v nginx >/dev/null && ! [ -x /usr/sbin/nginx ]; then
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        # the server that the package would start at once is not wanted
        { apt-get update -qq && RUNLEVEL=1 DEBIAN_FRONTEND=noninteractive apt-get install -y -qq nginx-light; } >/dev/null ||
            echo "nginx could not be installed: its tests will be skipped" >&2
    else
        echo "nginx is not installed: its tests will be skipped" >&2
    fi
fi
install() { # program, package of npm
    if ! [ -x ".servers/node_modules/.bin/$1" ]; then
        if command -v npm >/dev/null; then
            npm install --silent --no-audit --no-fund --prefix .servers "$2" >/dev/null ||
                echo "$1 could not be installed: its tests will be skipped" >&2
        else
            echo "there is no npm to install $1 with: its tests will be skipped" >&2
        fi
    fi
}
install s3rver s3rver@3.7.1
install azurite-blob azurite@3.37.0

#!/usr/bin/env bash
# debian.sh LIST...: installs the Debian packages that the files list, one a line, and starts none of their services.
# Without something to install it needs neither root nor a network.
set -euo pipefail

say() {
  echo "$*" >&2
}

is_installed() {
  [ "$(dpkg-query --show --showformat '${db:Status-Status}' "$1" 2>/dev/null)" = installed ]
}

command -v dpkg-query > /dev/null || { say "dpkg-query is missing: this is not Debian, or a relative of it"; exit 1; }
packages=$(sed 's/#.*//' "$@")
missing=()
for package in $packages; do is_installed "$package" || missing+=("$package"); done
[ ${#missing[@]} -gt 0 ] || exit 0
if [ "$(id -u)" != 0 ]; then
  say "not installed: ${missing[*]}"
  say "TIP: run it as root, or: sudo apt-get install --no-install-recommends ${missing[*]}"
  exit 1
fi

# Debian starts what it installs, and at each boot too, unless this file says no.
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
  trap 'rm -f "$policy"' EXIT
  printf '#!/bin/sh\nexit 101\n' > "$policy"
  chmod 755 "$policy"
fi
export DEBIAN_FRONTEND=noninteractive
apt-get update --quiet --quiet
apt-get install --quiet --quiet --yes --no-install-recommends "${missing[@]}" > /dev/null
if [ -d /run/systemd/system ]; then
  for package in "${missing[@]}"; do systemctl disable --quiet "$package" 2> /dev/null || true; done
fi
say "installed: ${missing[*]}"

#!/usr/bin/env bash
# venv.sh sync VENV LOCK [PYTHON]   makes the virtual environment VENV hold what LOCK lists, and this project; nothing else
# venv.sh add VENV LOCK             adds what LOCK lists to VENV
#
# Nothing is resolved and nothing is built, so an index that has moved on changes nothing. (pip 23.2.1 does not merge a
# pin with the same name's extra: it asks the index for the extra's name, and finds a version that is not in the lock.)
# pip only brings uv, which the lock names too and which installs the rest. A lock without uv is left to pip.
set -euo pipefail

verb=$1 venv=$2 lock=$3
python=$venv/bin/python
export PIP_DISABLE_PIP_VERSION_CHECK=1

say() {
  echo "$*" >&2
}

# uv does not read pip's settings: an index that pip was told of is the one to use.
pip_index() {
  "$python" -m pip config list | sed -n "s/^[^=]*[.:]index-url='\(.*\)'$/\1/p" | tail -n 1
}

run_uv() {
  UV_DEFAULT_INDEX=${UV_DEFAULT_INDEX:-$(pip_index)} "$python" -m uv pip "$@" --python "$python"
}

bring_uv() {
  local pinned
  pinned=$(awk '/^[^ #]/ { is_uv = /^uv==/ } is_uv' "$lock")
  [ -n "$pinned" ] || return 1
  "$python" -m pip install --quiet --no-deps --require-hashes --requirement /dev/stdin <<< "$pinned"
}

if [ "$verb" = sync ]; then
  "${4:-python3}" -m venv "$venv"
  if bring_uv; then
    # Workers of a server write no bytecode, so it is compiled here.
    run_uv sync --no-build --compile-bytecode --require-hashes "$lock"
  else
    say "$lock does not name uv: pip installs, which takes longer"
    "$python" -m pip install --no-deps --only-binary :all: --require-hashes --requirement "$lock"
  fi
  "$python" -m pip install --quiet --no-deps --no-build-isolation --editable .
else
  run_uv install --no-deps --no-build --compile-bytecode --require-hashes --requirement "$lock"
fi
"$python" -m pip check

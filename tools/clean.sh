#!/usr/bin/env bash
# clean.sh VENV: stop the server and remove what `make` can build again.
# clean.sh VENV all: remove everything that git does not keep, after asking; FORCE=1 says yes.
# Runs in the project's root, and needs nothing of what `make setup` installs.
set -euo pipefail
cd -P .
shopt -s nullglob

venv=$1
# What can be built again, but for archives in the model store: only those of a spec are, and have a stamp.
rebuilt=(.marsmith/exports .marsmith/archives .marsmith/run build dist)
# What cannot: the private key, which versions were served and deployed, archives that came from elsewhere.
lost=(.marsmith model_store/*.mar model_store/*.tar.gz model_store/*.sig)
caches=("$venv" .venv-* .cache .mypy_cache .pytest_cache .ruff_cache .hypothesis .benchmarks logs key_file.json)

# Print the processes of this project's server: each carries the folder in its environment.
processes() {
  grep --files-with-matches --no-messages --null-data --fixed-strings --line-regexp \
    -e "MARSMITH_RUN_FOLDER=$PWD/.marsmith/run" -e "MARSMITH_SUPERVISED_FOLDER=$PWD/.marsmith/run" \
    /proc/[0-9]*/environ | cut -d/ -f3 || true
}

stop() {
  [ -d .marsmith/run ] || return 0
  # It also writes down what was served; a set-up that is half there cannot.
  if [ -x "$venv/bin/python" ] && MARSMITH_PROJECT=$PWD "$venv/bin/python" -m marsmith stop; then return; fi
  [ -n "$(processes)" ] || return 0
  echo "stopping the server" >&2
  # A supervisor starts it again unless it was stopped on purpose.
  touch .marsmith/run/stopping
  kill -TERM $(processes) 2>/dev/null || true
  for _ in $(seq 300); do [ -n "$(processes)" ] || return 0; sleep 0.1; done
  kill -KILL $(processes) 2>/dev/null || true
}

# Print the archives in the model store that a spec gives again.
built_archives() {
  local stamp
  for stamp in .marsmith/archives/*.json; do
    local archive=model_store/$(basename "$stamp" .json)
    if [ -e "$archive" ]; then printf '%s\0' "$archive"; fi
  done
}

ask() {
  [ "${FORCE:-}" != 1 ] || return 0
  local each
  echo "This removes what cannot be built again:"
  for each in "${lost[@]}"; do [ ! -e "$each" ] || echo "  $each"; done
  echo "(TLS keys, deploy journals, what was served, archives) and what \`make setup\` installs: $venv"
  if [ ! -t 0 ]; then
    echo "make distclean: nobody to ask; FORCE=1 make distclean removes it all the same" >&2
    return 1
  fi
  read -r -p "Remove all of it? [y/N] " answer
  [[ $answer == [yY]* ]] || { echo "nothing was removed" >&2; return 1; }
}

if [ "${2:-}" = all ]; then
  ask || exit 1
  stop
  rm -rf -- "${rebuilt[@]}" "${lost[@]}" "${caches[@]}"
else
  stop
  built_archives | xargs --null --no-run-if-empty rm -rf --
  rm -rf -- "${rebuilt[@]}"
fi

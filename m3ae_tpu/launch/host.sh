#!/usr/bin/env bash
# Installs, starts, follows or stops a program on one host of a slice. `launch_tpu` copies it there
# with the checkout, and calls it by ssh:
#
#   host.sh install [SETUP]     make .venv with the versions of constraints.txt, then run SETUP
#   host.sh start ID WORDS...   start a program in the background, after the end of an earlier one
#   host.sh follow ID OFFSET    print its log from a byte on, to its end, then its exit code
#   host.sh stop                let it save and end; kill it after STOP_SECONDS
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
export PATH="$PWD/.venv/bin:$HOME/.local/bin:$PATH"
mkdir -p .launch

install() {
  command -v uv >/dev/null || python3 -m pip install --quiet --user uv
  [ -x .venv/bin/python ] || uv venv --quiet --python 3.12 .venv
  uv pip install --quiet --python .venv/bin/python --constraint constraints.txt \
    --editable "${EXTRAS:-.[tpu]}"
  if [ -n "${1:-}" ]; then bash -euo pipefail -c "$1"; fi
}

is_running() { [ -s .launch/pid ] && kill -0 -- "-$(cat .launch/pid)" 2>/dev/null; }

stop() {
  is_running || return 0
  kill -TERM -- "-$(cat .launch/pid)" || return 0
  for _ in $(seq $((4 * ${STOP_SECONDS:-120}))); do
    is_running || return 0
    sleep 0.25
  done
  kill -KILL -- "-$(cat .launch/pid)" || true
}

start() {
  stop
  rm -f .launch/exit_code
  echo "$1" > .launch/id
  shift
  # The shell outlives a signal to all of its group, to write the exit code.
  nohup setsid bash -c 'trap : TERM INT; "$@"; echo $? > .launch/exit_code' program "$@" \
    > .launch/log.txt 2>&1 < /dev/null &
  echo $! > .launch/pid
}

follow() {
  local code=none
  if [ "$(cat .launch/id 2>/dev/null)" = "$1" ]; then
    tail --bytes="+$2" --follow --pid="$(cat .launch/pid)" .launch/log.txt
    # A program that was killed with its shell left none.
    code=$(cat .launch/exit_code 2>/dev/null || echo 137)
  fi
  printf '\nlaunch_tpu: exit code %s\n' "$code"
}

"$@"

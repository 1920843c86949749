#!/usr/bin/env bash
# One machine with several GPUs: a single process drives them all, and is started again when it fails.
#
#   launch/gpu_host.sh --config=configs/vit_mask.py --workdir=runs/in1k
#
# CUDA_VISIBLE_DEVICES=0,1 takes some of the GPUs only; RETRIES (3) says how often a failed run goes on from its last
# checkpoint. Ctrl-C, SIGTERM and SIGHUP end it: it saves first, and exits with 75. A terminal that is closed ends it
# at once; with nohup or in tmux it goes on.
set -euo pipefail

python=${PYTHON:-.venv/bin/python}
told=
pid=
# SIGTERM for all of them: a process that a script starts with & ignores SIGINT.
trap 'told=1; [[ -z $pid ]] || kill -TERM "$pid" 2>/dev/null || true' INT TERM HUP
for ((try = 0; ; try++)); do
  pid=
  "$python" -m bjax.main --distributed=off "$@" &
  pid=$!
  if [[ -n $told ]]; then kill -TERM "$pid" 2>/dev/null || true; fi  # told between the two lines above
  # A trap interrupts `wait`: the process is still saving.
  while kill -0 "$pid" 2>/dev/null; do wait "$pid" || true; done
  code=0
  wait "$pid" || code=$?
  # 0: done. 2: a mistake that no retry mends.
  if [[ -n $told || $code == 0 || $code == 2 ]] || ((try >= ${RETRIES:-3})); then
    exit "$code"
  fi
  echo "$0: exit code $code; goes on from the last checkpoint" >&2
done

#!/usr/bin/env bash
# One machine with several GPUs: a single process drives them all, and is started again when it fails.
#
#   launch/gpu_host.sh --config=configs/vit_mask.py --workdir=runs/in1k
#
# CUDA_VISIBLE_DEVICES=0,1 takes some of the GPUs only; RETRIES (3) says how often a failed run goes on from its last
# checkpoint. Ctrl-C and SIGTERM end it: with SIGTERM it saves first.
set -euo pipefail

python=${PYTHON:-.venv/bin/python}
pid=
trap 'told=1; [[ -z $pid ]] || kill -TERM "$pid"' TERM
told=
for ((try = 0; ; try++)); do
  code=0
  "$python" -m bjax.main --distributed=off "$@" &
  pid=$!
  wait "$pid" || code=$?
  # A trap interrupts `wait`: the process is still saving.
  while kill -0 "$pid" 2>/dev/null; do
    code=0
    wait "$pid" || code=$?
  done
  # 0: done. 2: a mistake that no retry mends. 130: Ctrl-C.
  if [[ -n $told || $code == 0 || $code == 2 || $code == 130 ]] || ((try >= ${RETRIES:-3})); then
    exit "$code"
  fi
  echo "$0: exit code $code; goes on from the last checkpoint" >&2
done

#!/usr/bin/env bash
# The same as gke_tpu.yaml or gke_gpu.yaml without YAML: XPK (pip install xpk) writes the JobSet.
#
# Edit the lines under "Edit"; then, in the repository:
#
#   launch/gke_xpk.sh --config=configs/vit_mask.py --workdir=/data/runs/in1k --config.data.data_dir=/data
set -euo pipefail

# --- Edit
cluster=${CLUSTER:-bjax}                # made by: xpk cluster create --cluster=bjax --tpu-type=v5litepod-16 …
project=${PROJECT:?set PROJECT}
zone=${ZONE:-us-central2-b}
device=(--tpu-type="${TPU_TYPE:-v5litepod-16}")   # GPUs: --device-type=h100-80gb-8 --num-nodes=2
image=${IMAGE:?set IMAGE to that of the Dockerfile, with bjax and this repository as its working directory}

printf -v arguments '%q ' "$@"
# XPK restarts after codes 42 and 127 to 255, and those named here: 75 is told to stop and saved, 2 a mistake in the
# command. Waiting for a node that comes late is none, and must not end with 2.
xpk workload create --workload="bjax-$(date +%m%d-%H%M)" --cluster="$cluster" --project="$project" --zone="$zone" \
  "${device[@]}" --docker-image="$image" --max-restarts=100 --restart-on-exit-codes=1,75 \
  --command="python -m bjax.main --distributed=on --distributed_timeout=3600 $arguments"

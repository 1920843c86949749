#!/usr/bin/env bash
# One run on a TPU VM or a pod of them, without Kubernetes: the same command on every host.
#
# Before: gcloud compute tpus tpu-vm create bjax --zone=us-central2-b --accelerator-type=v4-32 --version=tpu-ubuntu2204-base
# Edit the lines under "Edit"; then, in the repository (--workdir and data_dir where every host can read and write,
# such as a mounted bucket):
#
#   launch/tpu_vm.sh install
#   launch/tpu_vm.sh --config=configs/vit_mask.py --workdir=/mnt/data/runs/in1k --config.data.data_dir=/mnt/data
#
# The run goes on when this terminal closes: `launch/tpu_vm.sh log` shows it, `launch/tpu_vm.sh stop` makes it save and
# end. The same command goes on from there.
set -euo pipefail

# --- Edit
name=${TPU_NAME:-bjax}
zone=${ZONE:-us-central2-b}
source=${REPOSITORY:-$(git remote get-url origin)}

everywhere() {
  gcloud compute tpus tpu-vm ssh "$name" --zone="$zone" --worker=all --command="$1"
}

case ${1:-} in
  install)
    everywhere "sudo apt-get install -y -qq python3-venv && (test -d bjax || git clone -q '$source' bjax) && cd bjax &&
      git pull -q && python3 -m venv .venv && .venv/bin/pip install -q -c constraints.txt -e '.[tpu]'"
    ;;
  log) gcloud compute tpus tpu-vm ssh "$name" --zone="$zone" --worker=0 --command="tail -n 50 -f bjax/run.log" ;;
  stop) everywhere "kill -TERM \$(cat bjax/run.pid)" ;;
  --config=*)
    printf -v arguments '%q ' "$@"
    everywhere "cd bjax && { nohup .venv/bin/python -m bjax.main --distributed=on $arguments >run.log 2>&1 </dev/null &
      echo \$! >run.pid; }"
    ;;
  *)
    echo "usage: $0 install | log | stop | --config=FILE.py[:ARGS] …" >&2
    exit 2
    ;;
esac

#!/usr/bin/env bash
# One run on a Slurm cluster, one process per GPU. Stopped by the time limit, a preemption or `scontrol requeue`, it
# saves, queues itself again and goes on where it was.
#
# Edit the #SBATCH lines (or give them to sbatch) and the lines under "Edit"; then, in the repository:
#
#   sbatch launch/slurm.sh --config=configs/vit_mask.py --workdir=runs/in1k
#
# In a container: CONTAINER=image.sqsh sbatch … (Pyxis), or CONTAINER=image.sif sbatch … (Apptainer); bjax and its
# packages are then the image's, the repository is mounted.
#SBATCH --job-name=bjax
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=8      # one process per GPU
#SBATCH --gres=gpu:8             # not --gpus-per-task: JAX wants every process to see all GPUs of its node
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@120        # seconds before the time limit in which to save
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.out
set -euo pipefail

# --- Edit
python=${PYTHON:-.venv/bin/python}                # the interpreter that bjax is installed for (image: python)
container=${CONTAINER:-}                          # an image, or nothing
mounts=${MOUNTS:-$PWD,${TFDS_DATA_DIR:-$HOME}}    # what the container sees of the file system, comma-separated

case $container in
  "") task=("$python") ;;
  *.sif) task=(apptainer exec --nv --bind "$mounts" --pwd "$PWD" "$container" "${PYTHON:-python}") ;;
  *) task=("${PYTHON:-python}") ;;
esac
step=(srun --kill-on-bad-exit=1)  # one process that dies ends the others at once
if [[ -n $container && $container != *.sif ]]; then
  places=""
  IFS=, read -ra folders <<<"$mounts"
  for folder in "${folders[@]}"; do places+=${places:+,}$folder:$folder; done
  step+=(--container-image="$container" --container-mounts="$places" --container-workdir="$PWD")
fi

code=0
"${step[@]}" "${task[@]}" -m bjax.main --distributed=auto "$@" || code=$?
if ((code == 75)); then  # told to stop, and saved
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"

"""A run of seconds, what it leaves when nothing disturbs it, and whether another one left the same."""

import dataclasses
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp

ROOT = Path(__file__).parents[2]
STEPS, EVERY = 12, 4
OPTIONS = {
    "model.options.variant": "Ti/8",
    "model.options.depth": 1,
    "model.options.width": 32,
    "model.options.heads": 2,
    "data.image_size": 16,
    "data.threads": 2,
    "batch_size": 16,
    "steps": STEPS,
    "checkpoint_every": EVERY,
    "log_every": 1,
    "optim.warmup": 2,
    "eval_only": "sharp",
    "eval.sharp.split": "test[:32]",
    "eval_batch_size": 16,
    "gallery": 0,
}


@dataclasses.dataclass(frozen=True)
class Place:
    """Where the runs are, and where their data set and compiled programs are."""

    folder: Path
    data_dir: str

    def arguments(self, workdir: Path, *more: str) -> list[str]:
        options = OPTIONS | {"data.data_dir": self.data_dir}
        config = f"--config={ROOT}/configs/vit_mask.py:demo"
        return [config, f"--workdir={workdir}", *(f"--config.{k}={v}" for k, v in options.items()), *more]

    def start_several(self, workdir: Path, number: int = 2) -> list[subprocess.Popen]:
        """The command in several processes that are one run, each on one device."""
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            shared = {"JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{s.getsockname()[1]}", "JAX_NUM_PROCESSES": str(number)}
        flag = "--distributed_timeout=30"  # how long a process that is gone may go unnoticed
        return [self.start(workdir, flag, **shared, JAX_PROCESS_ID=str(i)) for i in range(number)]

    def start(self, workdir: Path, *more: str, **variables: str) -> subprocess.Popen:
        """The command in a process of its own, on one device; stdout and stderr are pipes of text."""
        command = [sys.executable, "-m", "bjax.main", *self.arguments(workdir, *more)]
        environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONUNBUFFERED": "1", **variables}
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        return subprocess.Popen(command, cwd=ROOT, env=environment, **pipes)

    def finish(self, workdir: Path) -> tuple[int, str]:
        """Runs the command to its end; its code and what it wrote to stderr."""
        process = self.start(workdir)
        _, err = process.communicate(timeout=600)
        return process.returncode, err


def left(workdir: Path) -> tuple:
    """What a finished run left, columns of time aside: results, rows, arrays."""
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    rows = [{k: v for k, v in row.items() if k != "images_per_second"} for row in rows]
    step = (workdir / "checkpoints" / str(STEPS) / "default").absolute()
    return json.loads((workdir / "results.json").read_text()), rows, arrays(step)


def arrays(step: Path) -> dict[str, bytes]:
    """{path: bytes} of every array of a checkpoint, however many processes wrote it."""
    held = ocp.StandardCheckpointHandler().metadata(step).tree
    as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), held)
    tree = ocp.PyTreeCheckpointHandler().restore(step, args=ocp.args.PyTreeRestore(restore_args=as_numpy))
    flat = {}

    def walk(path, node):
        if isinstance(node, dict | list | tuple):
            for key, child in node.items() if isinstance(node, dict) else enumerate(node):
                walk(f"{path}/{key}", child)
        elif node is not None:
            flat[path] = np.asarray(node).tobytes()

    walk("", tree)
    return flat

"""Several processes as one run: who they are (JAX's own cluster detection), when all of them stop, how they part.

Under Slurm, Open MPI, Cloud TPU and GKE nothing needs to be said. Elsewhere each process gets three variables:
JAX_COORDINATOR_ADDRESS=HOST:PORT (of process 0), JAX_NUM_PROCESSES and JAX_PROCESS_ID (0, 1, …);
JAX_LOCAL_DEVICE_IDS says which of a host's devices are its own.
"""

import contextlib
import importlib.util
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Mapping

import jax
import numpy as np
from jax.experimental import multihost_utils

from bjax.errors import UserError
from bjax.runtime import stop
from bjax.runtime.stop import STOPPED, defer

MODES = ("auto", "on", "off")
HEARTBEAT = 100  # seconds of silence after which a process counts as dead; JAX's default
VARIABLES = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
SLURM_TASK = ("SLURM_STEP_NODELIST", "SLURM_PROCID", "SLURM_LOCALID")  # what srun gives; JAX needs them all


class Stopped(Exception):
    """The process was told to stop, and what it had done is saved; the same command goes on from there."""


def initialize(mode: str, timeout: int) -> None:
    """Joins the processes of a run. To be called before anything touches a device.

    mode: "auto" (joins where the environment names several processes), "on" (an error where it names none), "off".
    timeout: seconds to wait for the others; then the process ends with one line and code 2. It also bounds how long
    a process that died goes unnoticed (at most HEARTBEAT) and how long the first to end waits for the last.
    From here on only process 0 writes to stdout. Raises UserError where the environment is incomplete.
    """
    cluster = None if mode == "off" else find(os.environ)
    if cluster is None:
        if mode == "on":
            raise UserError(
                "--distributed=on: no Slurm, Open MPI, TPU or Kubernetes job found; start with srun or mpirun, or "
                f"give every process {', '.join(VARIABLES)}"
            )
        return
    joined = threading.Event()
    threading.Thread(target=_give_up, args=(joined, timeout, cluster), daemon=True).start()
    try:
        jax.distributed.initialize(
            **cluster,
            # JAX's own limit aborts with a stack trace: _give_up comes first.
            initialization_timeout=timeout + 60,
            heartbeat_timeout_seconds=min(timeout, HEARTBEAT),
            shutdown_timeout_seconds=timeout,
        )
    except (RuntimeError, ValueError) as e:
        if mode == "auto" and not cluster and not isinstance(e, RuntimeError):
            return  # libtpu is installed, but this is no TPU
        raise UserError(f"--distributed={mode}: {str(e).splitlines()[0]}") from None
    finally:
        joined.set()
    # Now the others count on this one, and SIGTERM is the preemption service's.
    defer()
    signal.signal(signal.SIGUSR1, lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    if jax.process_index():
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 (it stays open)


def find(environ: Mapping[str, str]) -> dict | None:
    """What `jax.distributed.initialize` needs to be told; {} where JAX finds it; None for a single process."""
    given = {name: environ.get(name) for name in VARIABLES}
    if any(given.values()):
        # mpirun numbers its processes, but only Open MPI 4 tells JAX where the first one is.
        given["JAX_NUM_PROCESSES"] = given["JAX_NUM_PROCESSES"] or environ.get("OMPI_COMM_WORLD_SIZE")
        given["JAX_PROCESS_ID"] = given["JAX_PROCESS_ID"] or environ.get("OMPI_COMM_WORLD_RANK")
        missing = [name for name, value in given.items() if not value]
        if missing:
            there = next(name for name, value in given.items() if value)
            raise UserError(f"{there} is set, but {' and '.join(missing)} not; set all three or --distributed=off")
        address, count, index = given.values()
        if not (count.isdigit() and index.isdigit() and int(index) < int(count)):
            raise UserError(f"JAX_PROCESS_ID={index} of JAX_NUM_PROCESSES={count}: expected numbers 0 <= ID < NUM")
        if not address.rpartition(":")[2].isdigit():
            raise UserError(f"JAX_COORDINATOR_ADDRESS={address}: expected HOST:PORT of process 0")
        local = environ.get("OMPI_COMM_WORLD_LOCAL_RANK")
        return {
            "coordinator_address": address,
            "num_processes": int(count),
            "process_id": int(index),
            "local_device_ids": [int(local)] if local and "JAX_LOCAL_DEVICE_IDS" not in environ else None,
            "cluster_detection_method": "deactivate",
        }
    if int(environ.get("SLURM_NTASKS", 1)) > 1:
        missing = [name for name in SLURM_TASK if name not in environ]
        if missing:
            raise UserError(
                f"a Slurm job of {environ['SLURM_NTASKS']} tasks, but this process is none ({missing[0]} is not "
                "set); start it with srun, or alone with --distributed=off"
            )
        return {"cluster_detection_method": "slurm"}
    if int(environ.get("OMPI_COMM_WORLD_SIZE", 1)) > 1:
        if "OMPI_MCA_orte_hnp_uri" not in environ:
            raise UserError(
                "mpirun does not say where process 0 is (Open MPI 5): mpirun -x JAX_COORDINATOR_ADDRESS=HOST:PORT"
            )
        return {"cluster_detection_method": "ompi"}
    if importlib.util.find_spec("libtpu"):
        return {}
    if "KUBERNETES_SERVICE_HOST" in environ and "JOB_COMPLETION_INDEX" in environ:
        if importlib.util.find_spec("kubernetes") is None:
            raise UserError(
                f"an indexed Kubernetes job: set {', '.join(VARIABLES)} as launch/gke_gpu.yaml does, or install "
                "jax[k8s], or run alone with --distributed=off"
            )
        return {"cluster_detection_method": "k8s"}
    return None


_asked = [lambda: False]  # signals are sent to a process, so what listens to them belongs to the process as well


def stopping() -> bool:
    """Whether all processes are to stop now. To be asked by every process equally often, within `stop_requests`."""
    return _asked[-1]()


@contextlib.contextmanager
def stop_requests() -> Iterator[None]:
    """Within it `stopping` hears SIGTERM and SIGUSR1, the requests to stop.

    A process alone that listens (`stop.listen`) ends at once all the same until it calls `defer`. Among several one
    that hears it is enough: JAX's preemption service lets them agree on the first call of `stopping` that none has
    made. Its handler is in place from `initialize` on.
    """
    if jax.distributed.is_initialized():
        calls, agreed = 0, False

        def asked() -> bool:
            nonlocal calls, agreed
            # The service counts from 1 and agrees on one number that nobody has asked for yet.
            calls += 1
            agreed = multihost_utils.reached_preemption_sync_point(calls) or agreed
            return agreed

        _asked.append(asked)
        try:
            yield
        finally:
            _asked.pop()
        return
    _asked.append(stop.told.is_set)
    try:
        with stop.heard():
            yield
    finally:
        _asked.pop()


def worst(value: int) -> int:
    """The largest of what all processes say. To be called by all of them."""
    return int(multihost_utils.process_allgather(np.array(value)).max()) if jax.process_count() > 1 else value


def by_main(action: Callable[[], object]) -> None:
    """Lets process 0 do something that a user's mistake or a disk may forbid: then no process goes on.

    To be called by all of them. Raises on process 0 what `action` does, on the others UserError.
    """
    failed = None
    if jax.process_index() == 0:
        try:
            action()
        except (UserError, OSError) as error:
            failed = error
    if worst(int(failed is not None)):
        raise failed or UserError("process 0 cannot go on; its own line says why")


def leave(code: int) -> int:
    """Ends this process's part of the run. A good end waits for the others; a bad one never does.

    Returns `code` or, where this process failed among others, ends it at once: they would wait for its part of the
    next step, and its own exit for theirs.
    """
    if not jax.distributed.is_initialized():
        return code
    if code not in (0, STOPPED):
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    jax.distributed.shutdown()
    return code


def name() -> str:
    """What this process calls itself in messages."""
    return f"bjax (process {jax.process_index()})" if jax.distributed.is_initialized() else "bjax"


def _give_up(joined: threading.Event, timeout: int, job: dict) -> None:
    if joined.wait(timeout):
        return
    address = job.get("coordinator_address") or "the address the scheduler gives"
    who = f"process {job['process_id']} of {job['num_processes']}" if "process_id" in job else "this process"
    why = "not all of the others have come"
    if "process_id" in job:
        host, _, port = address.rpartition(":")
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=2).close()
        except OSError as e:
            why = f"process 0 cannot be reached ({e.strerror or e})"
    print(
        f"bjax: --distributed: {who} waited {timeout} s at {address}: {why}; see whether all were started, or wait "
        "longer with --distributed_timeout=SECONDS",
        file=sys.stderr,
        flush=True,
    )
    os._exit(2)

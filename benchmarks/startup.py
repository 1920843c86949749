"""How long a run takes to start, and what holds its loop up: imports, compilation, checkpoints, host syncs.

    python -m benchmarks.startup [--rounds=3] [--config=vit.py:demo] [--json=FILE]

- import: seconds of `import MODULE` after `import jax`, each in a fresh process, interleaved. Python keeps its modules
  compiled, as it does unless PYTHONDONTWRITEBYTECODE is set, which costs every start half a second.
- start: seconds from starting `python -m bjax.main` on the embedded photographs to the first step in metrics.jsonl,
  with an empty compilation cache (cold) and with the one that this left (warm); the process is ended there. The
  photographs are prepared before. A ratio is the median of those within rounds.
- checkpoint: seconds that `bjax.runtime.checkpoint.save` holds the loop up for the state of a ViT-S with AdamW, when
  the one before is on the disk, beside those until this one is.
- host syncs: whether steps of the loop's own update, with batches put as it puts them, pass
  `jax.transfer_guard("disallow")`: nothing goes to the device or back unasked. The loop waits only where it says so
  (`in_flight`, logs, checkpoints). That the guard finds a sync that is planted is tried first; on a CPU, whose memory
  is the host's, it lets arrays back unseen, and only the way to the device is known.
"""

import functools
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.errors
import numpy as np

from benchmarks import rates, save
from bjax import models
from bjax.data import loader
from bjax.errors import Parser, UserError, as_command, new_file, positive
from bjax.runtime import checkpoint, sharding
from bjax.runtime.timing import timed
from bjax.step import optim, state
from bjax.step.train_step import compiled

MODULES = ("bjax", "bjax.models", "bjax.blur", "bjax.predict", "bjax.train")
ROOT = Path(__file__).parents[1]
LONGEST = 900  # seconds that a start may take


@as_command
def main(argv: list[str]) -> None:
    parser = Parser("python -m benchmarks.startup", __doc__.splitlines()[0])
    parser.add_argument("--rounds", type=positive, default=3, help="default: %(default)s")
    parser.add_argument("--config", default="vit.py:demo", help="of the start (default: %(default)s)")
    parser.add_argument("--variant", default="S/16", help="of the ViT whose state is saved (default: %(default)s)")
    parser.add_argument("--json", type=new_file, help="write the numbers here")
    flags = parser.parse_args(argv)
    found = {"device": jax.devices()[0].device_kind, "rounds": flags.rounds, "versions": rates.versions()}
    print(f"{found['device']}, {flags.rounds} rounds; {rates.listed(found['versions'])}", flush=True)
    parts = {
        "import": lambda: imports(flags.rounds),
        "start": lambda: starts(flags.config, flags.rounds),
        "checkpoint": lambda: stalls(flags.variant, flags.rounds),
        "host_syncs": host_syncs,
    }
    for name, part in parts.items():
        print(f"{name} …", file=sys.stderr, flush=True)
        found[name] = part()
        print(f"{name}: {_line(found[name])}", flush=True)
        if flags.json:
            save(flags.json, found)


def _line(found: dict) -> str:
    return ", ".join(f"{k} {v:.3g}" if isinstance(v, float) else f"{k} {v}" for k, v in found.items())


def imports(rounds: int) -> dict[str, float]:
    """Seconds beyond jax, of each of `MODULES`."""
    run = {"jax": "import jax"} | {name: f"import jax, {name}" for name in MODULES}
    programs = {name: functools.partial(_python, "-c", text) for name, text in run.items()}
    timed(programs, 1)  # reads the files
    seconds = timed(programs, rounds)
    return {name: beyond(seconds["jax"], seconds[name]) for name in MODULES}


def beyond(base: list[float], seconds: list[float]) -> float:
    """The median of the differences within rounds."""
    return statistics.median(s - b for b, s in zip(base, seconds, strict=True))


def _python(*arguments: str) -> None:
    subprocess.run([sys.executable, *arguments], check=True, env=_environment())


def _environment(**more: str) -> dict[str, str]:
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    return {**os.environ, "PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "", **more}


def starts(config: str, rounds: int) -> dict[str, float]:
    """Median seconds to the first step, cold and warm, and their ratio."""
    cold, warm = [], []
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        loader.open_split("photos", "train", data_dir=place / "data")
        first_step(config, place / "unmeasured", place, place / "cache_unmeasured")
        for i in range(rounds):
            for times, name in ((cold, "cold"), (warm, "warm")):
                times.append(first_step(config, place / f"{name}{i}", place, place / f"cache{i}"))
                print(f"start, {name}: {times[-1]:.1f} s", file=sys.stderr, flush=True)
    ratio = statistics.median(w / c for c, w in zip(cold, warm, strict=True))
    return {"cold": statistics.median(cold), "warm": statistics.median(warm), "warm/cold": ratio}


def first_step(config: str, workdir: Path, place: Path, cache: Path) -> float:
    """Seconds from the start of a run to its first step, where it is ended."""
    command = [sys.executable, "-m", "bjax.main", f"--config={config}", f"--workdir={workdir}", "--config.log_every=1"]
    command.append(f"--config.data.data_dir={place / 'data'}")
    told = workdir.with_suffix(".log")
    with told.open("w") as log:
        start = time.perf_counter()
        environment = _environment(JAX_COMPILATION_CACHE_DIR=str(cache))
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)
        try:
            while not _has_row(workdir / "metrics.jsonl"):
                if process.poll() is not None or time.perf_counter() - start > LONGEST:
                    last = told.read_text().strip().rpartition("\n")[2]
                    raise UserError(f"--config={config}: there was no first step: {last}")
                time.sleep(0.01)
            return time.perf_counter() - start
        finally:
            process.kill()
            process.wait()


def _has_row(path: Path) -> bool:
    return path.is_file() and b"\n" in path.read_bytes()


def stalls(variant: str, rounds: int) -> dict[str, float]:
    """Median seconds that saving takes of the loop, those until it is done, and the bytes saved."""
    _, held, _ = _loop(models.build("vit", variant=variant), 224)
    waited, written = [], []
    with tempfile.TemporaryDirectory() as folder, checkpoint.manager(folder) as manager:
        for step in range(rounds + 1):
            start = time.perf_counter()
            checkpoint.save(manager, step, held)
            waited.append(time.perf_counter() - start)
            manager.wait_until_finished()
            written.append(time.perf_counter() - start)
    size = sum(x.nbytes for x in jax.tree.leaves(held))
    # The first makes folders and threads.
    return {"seconds": statistics.median(waited[1:]), "until written": statistics.median(written[1:]), "bytes": size}


def host_syncs(steps: int = 3) -> dict[str, str]:
    """{"none": yes, or no and what was seen; "guard watches": which ways it does here}"""
    update, held, mesh = _loop(models.build("vit", variant="Ti/16", depth=1), 32)
    key, batch = jax.random.key(0), rates.batch_of(rates.Sizes(jax.device_count(), 32, "float32", 1, 1, False))
    held, values = update(key, held, sharding.put(batch, mesh))  # compiles
    planted = {"to the device": lambda: values["loss"] + np.ones(()), "back": lambda: float(values["loss"])}
    watched = " and ".join(way for way, sync in planted.items() if seen(sync)) or "nothing"

    def loop():
        nonlocal held
        for _ in range(steps):
            held, values = update(key, held, sharding.put(batch, mesh))
        values["loss"].block_until_ready()

    found = seen(loop)
    return {"none": f"no: {found}" if found else "yes", "guard watches": watched}


def seen(run: Callable[[], object]) -> str:
    """What the transfer guard says of it; empty where nothing went unasked."""
    try:
        with jax.transfer_guard("disallow"):
            run()
    except jax.errors.JaxRuntimeError as error:
        if "Disallowed" not in str(error):
            raise
        return " ".join(str(error).split())[:200]
    return ""


def _loop(model, size: int):
    """(the update of a run's loop, its first state, the mesh)"""
    mesh = sharding.make_mesh(-1, 1)
    tx = optim.build(rates.ADAMW, 1000)
    init = functools.partial(state.init, model=model, tx=tx, image_size=size, ema=False)
    plan = sharding.plan(jax.eval_shape(init, jax.random.key(0)), mesh, ((".*", "fsdp"),))
    held = jax.jit(init, out_shardings=plan)(jax.random.key(0, impl="rbg"))
    options = {"model": model, "tx": tx, "inputs": rates.INPUTS, "objective": rates.OBJECTIVE}
    return compiled(plan, **options, mesh=mesh), held, mesh


if __name__ == "__main__":
    sys.exit(main())

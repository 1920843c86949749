"""The command line of training and evaluation.

python -m bjax.main --config=configs/vit_mask.py:demo --workdir=runs/demo
python -m bjax.main --config=configs/vit_mask.py --workdir=runs/in1k --config.optim.lr=3e-4 --config.batch_size=512
python -m bjax.main --config=configs/vit_mask.py:demo --workdir=runs/demo --mode=eval
srun python -m bjax.main --config=configs/vit_mask.py --workdir=runs/in1k    (launch/ has the scripts)
"""

from bjax.runtime import stop

# Before JAX and all that needs seconds to import.
if __name__ == "__main__":
    stop.listen()
    import gc
    import os

    gc.disable()  # a sixth of the start went into looking for garbage among what was just imported, which stays
    # XLA's alarm at a slow compilation breaks into the bar and alarms without need. What is fatal is told all the same,
    # and errors are raised.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import argparse
import re
import sys
import traceback
from pathlib import Path

import jax

from bjax import config as configs
from bjax import evaluate, experiment, report, small, train
from bjax.errors import Parser, UserError, command, new_folder, positive
from bjax.report import render
from bjax.runtime import compile_cache, distributed, sharding
from bjax.runtime.workdir import refused


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns the exit code.

    0; 2: a user's mistake, told in one line on stderr; 75: told to stop (SIGTERM or SIGUSR1), to be run again;
    130: Ctrl-C.
    """
    try:
        code = command(_run, argv, name=distributed.name)
    except Exception:
        if not jax.distributed.is_initialized():
            raise
        traceback.print_exc()
        code = 1
    return distributed.leave(code)


def _run(argv: list[str]) -> int | None:
    overrides, rest = configs.split_arguments(argv)
    args = _parser().parse_args(rest)
    workdir = Path(args.workdir or default_workdir(args.config)).expanduser()
    try:
        return _in(workdir, args, overrides)
    except distributed.Stopped as stopped:
        print(f"bjax: {stopped}")
        return distributed.STOPPED
    except KeyboardInterrupt:
        raise KeyboardInterrupt("interrupted; the same command goes on from the last checkpoint") from None
    except UserError:
        raise
    except Exception as error:
        if line := refused(error, workdir):
            raise UserError(line) from None
        raise


def _in(workdir: Path, args: argparse.Namespace, overrides: list[tuple[str, str]]) -> None:
    if args.report:
        render.check_installed()  # before the hours of a run
    if workdir.exists() and not workdir.is_dir():
        raise UserError(f"--workdir={workdir}: is a file; name a folder")
    if args.config:
        config = configs.load(args.config, overrides)
    elif (workdir / "config.json").is_file():
        config = configs.reload(workdir / "config.json", overrides)
    elif (workdir / "checkpoints").exists():
        raise UserError(f"--workdir={workdir}: its config.json is missing; name its --config")
    else:
        raise UserError("--config: missing; for example --config=configs/vit_mask.py:demo")
    chooses = bool(args.config) and config.recipe == "small"  # a run's own config.json has what was chosen
    if not chooses:
        experiment.build(config, num_classes=2)  # finds mistakes before any data or device is touched
    if not args.print_config:
        if config.deterministic:
            sharding.make_deterministic()
        compile_cache.keep()
        distributed.initialize(args.distributed, args.distributed_timeout)
    if chooses:
        config, table = small.fit(config, overrides)
        experiment.build(config, num_classes=2)
        if jax.process_index() == 0:
            print(table, file=sys.stderr if args.print_config else sys.stdout, flush=True)
    if args.print_config:
        print(configs.to_json(config), end="")
        return
    if args.mode == "train":
        train.run(config, workdir)
    elif args.mode == "adapt":
        evaluate.run_adapt(config, workdir)
    else:
        evaluate.run(config, workdir, bn_twins=args.mode == "bn_adapt")
    if args.report and jax.process_index() == 0:
        report.tell([workdir], args.report)


def default_workdir(spec: str | None) -> str:
    """runs/vit_mask_demo for configs/vit_mask.py:demo; overrides are not part of it."""
    path, _, args = (spec or "").partition(":")
    return str(Path("runs") / re.sub(r"[^\w.=-]+", "_", "_".join(filter(None, (Path(path).stem, args)))))


def _parser() -> Parser:
    p = Parser(
        "python -m bjax.main",
        "Train and evaluate an image classifier on sharp and blurred images.",
        epilog="--config.KEY=VALUE changes one field; --print_config lists them, bjax/specs.py explains them.",
    )
    p.add_argument(
        "--config",
        metavar="FILE.py[:ARGS]",
        help="experiment, such as vit_mask.py:demo: a file, or one of bjax.configs (default: that of WORKDIR)",
    )
    p.add_argument("--workdir", metavar="DIR", help="where the run lives (default: runs/NAME_ARGS)")
    p.add_argument(
        "--mode",
        choices=("train", "eval", "bn_adapt", "adapt"),
        default="train",
        help="eval: the newest checkpoint, or the weights config.init_from, without training; "
        "bn_adapt: the same, and again with BatchNorm statistics of blurred images; adapt: what adapting at test time "
        "gives on streams of images, and what it costs (config.adapt)",
    )
    p.add_argument(
        "--distributed",
        choices=distributed.MODES,
        default="auto",
        help="several processes as one run: auto joins those of a Slurm, Open MPI, TPU or GKE job, or those named by "
        f"{', '.join(distributed.VARIABLES)}; on insists on it; off runs alone",
    )
    p.add_argument(
        "--distributed_timeout",
        type=positive,
        default=300,
        metavar="SECONDS",
        help="how long to wait for the other processes (default: %(default)s)",
    )
    p.add_argument("--report", type=new_folder, metavar="DIR", help="write the run's report there when it is done")
    p.add_argument("--print_config", action="store_true", help="print the resolved config as JSON and stop")
    return p


if __name__ == "__main__":
    gc.freeze()
    gc.enable()
    stop.leave(main())

"""The command line of training and evaluation.

python -m bjax.main --config=configs/vit_mask.py:demo --workdir=runs/demo
python -m bjax.main --config=configs/vit_mask.py --workdir=runs/in1k --config.optim.lr=3e-4 --config.batch_size=512
python -m bjax.main --config=configs/vit_mask.py:demo --workdir=runs/demo --mode=eval
"""

import argparse
import os
import re
import sys
from pathlib import Path

import jax

from bjax import config as configs
from bjax import evaluate, experiment, train
from bjax.errors import UserError


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns the exit code: 0, or 2 for a user's mistake, told in one line on stderr."""
    try:
        overrides, rest = configs.split_arguments(sys.argv[1:] if argv is None else argv)
        args = _parser().parse_args(rest)
        workdir = Path(args.workdir or default_workdir(args.config)).expanduser()
        if workdir.exists() and not workdir.is_dir():
            raise UserError(f"--workdir={workdir}: is a file; name a folder")
        if args.config:
            config = configs.load(args.config, overrides)
        elif (workdir / "config.json").is_file():
            config = configs.reload(workdir / "config.json", overrides)
        else:
            raise UserError("--config: missing; for example --config=configs/vit_mask.py:demo")
        experiment.build(config, num_classes=2)  # finds mistakes before data and devices are touched
        if args.print_config:
            print(configs.to_json(config), end="")
            return 0
        _use_compilation_cache()
        if args.mode == "train":
            train.run(config, workdir)
        else:
            evaluate.run(config, workdir, adapt=args.mode == "bn_adapt")
        return 0
    except UserError as e:
        print(f"bjax: {e}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("bjax: interrupted; the same command goes on from the last checkpoint", file=sys.stderr)
        return 130


def default_workdir(spec: str | None) -> str:
    """runs/vit_mask_demo for configs/vit_mask.py:demo; overrides are not part of it."""
    path, _, args = (spec or "").partition(":")
    return str(Path("runs") / re.sub(r"[^\w.=-]+", "_", "_".join(filter(None, (Path(path).stem, args)))))


class _Parser(argparse.ArgumentParser):
    def error(self, message: str):
        raise UserError(f"{message} (see --help)")


def _parser() -> argparse.ArgumentParser:
    p = _Parser(
        prog="python -m bjax.main",
        description="Train and evaluate an image classifier on sharp and blurred images.",
        epilog="--config.KEY=VALUE changes one field; --print_config lists them, configs/common.py explains them.",
        allow_abbrev=False,
    )
    p.add_argument(
        "--config",
        metavar="FILE.py[:ARGS]",
        help="experiment, such as configs/vit_mask.py:demo (default: that of WORKDIR)",
    )
    p.add_argument("--workdir", metavar="DIR", help="where the run lives (default: runs/NAME_ARGS)")
    p.add_argument(
        "--mode",
        choices=("train", "eval", "bn_adapt"),
        default="train",
        help="eval: the newest checkpoint, or the weights config.init_from, without training; "
        "bn_adapt: the same, and again with BatchNorm statistics of blurred images",
    )
    p.add_argument("--print_config", action="store_true", help="print the resolved config as JSON and stop")
    return p


def _use_compilation_cache() -> None:
    """Compiled steps are kept between runs: a resumed or repeated run starts in seconds. JAX's own variable wins."""
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        jax.config.update("jax_compilation_cache_dir", str(Path.home() / ".cache" / "bjax" / "xla"))


if __name__ == "__main__":
    sys.exit(main())

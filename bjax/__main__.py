"""`bjax COMMAND …`, which is `python -m MODULE …`."""

import runpy
import sys

import bjax
from bjax.errors import UserError, command, nearest

COMMANDS = {
    "train": ("bjax.main", "train, or evaluate what was trained (--mode=eval)"),
    "predict": ("bjax.predict", "ask a run about photographs"),
    "report": ("bjax.report", "runs and sweeps as one page with tables and figures"),
    "export": ("bjax.export", "a run as a program that needs jax and flatbuffers alone"),
    "sweep": ("bjax.launch.sweep", "many runs: a grid, or the sweep of a config"),
    "local": ("bjax.launch.local", "several processes of this machine as one run"),
    "thresholds": ("bjax.thresholds", "which photographs are blurred, and a mask's threshold"),
    "preflight": ("bjax.launch.preflight", "does a run fit on a GPU or TPU, how fast at best? needs none"),
    "weights": ("bjax.weights", "published weights by name; does a file fit a model?"),
    "prepare": ("bjax.data.prepare", "ImageNet, or a folder of images, as a data set"),
}


HELP = """\
usage: bjax COMMAND …

Classify blurred images without deblurring them.

{}

bjax COMMAND --help has its flags; bjax --version the version. A beginning:
  bjax train --config=vit_mask.py:demo"""


def main(argv: list[str] | None = None) -> int:
    """Runs the command, which ends the process with its own code; returns the exit code of anything else."""
    name, *rest = (sys.argv[1:] if argv is None else argv) or ["--help"]
    if name not in COMMANDS:
        return command(_no_command, [name])
    sys.argv = [f"bjax {name}", *rest]  # so a parser calls itself
    if "" not in sys.path:
        sys.path.insert(0, "")  # as of `python -m`: a user's config may import what lies beside it
    runpy.run_module(COMMANDS[name][0], run_name="__main__")  # not imported: it listens for SIGTERM before JAX is there


def _no_command(argv: list[str]) -> None:
    if argv[0] in ("-h", "--help", "help"):
        print(HELP.format("\n".join(f"  {name:11} {what}" for name, (_, what) in COMMANDS.items())))
    elif argv[0] == "--version":
        print(f"bjax {bjax.__version__}")
    else:
        raise UserError(f"{argv[0]}: no such command{nearest(argv[0], COMMANDS)}; there are: {', '.join(COMMANDS)}")


if __name__ == "__main__":
    sys.exit(main())

"""One command for the day a GPU is there: is all right on it, and how fast is it?

    python -m benchmarks.gpu --minutes=9 --out=DIR [--only=checks,train-vit] [--dry]

Needs jax, flax, optax, numpy and jaxtyping, and PyTorch with torchvision where there are peers to measure; no data set,
no network. First what differs between platforms is checked (`benchmarks.checks`), then rates are measured in the order
of what they are worth: bjax's own, then beside PyTorch's in interleaved rounds, as in `benchmarks.train` and
`benchmarks.infer`. DIR/gpu.json and DIR/gpu.md are written after each cell, so that a run that is cut leaves what it
had; none is begun that would take longer than what is left of the minutes, if it takes as long as the longest so far.

On a CPU, or with --dry, all runs at tiny sizes: that shows that the command works, and the cells that only a GPU can
fill stay empty.
"""

import functools
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np

from benchmarks import checks, peers, rates, roofline, save
from benchmarks.rates import MODELS, Sizes
from bjax import blur
from bjax.errors import Parser, as_command, new_folder, positive, some_of
from bjax.runtime.timing import timed
from bjax.sums import replace

OWN = ("train-resnet50", "train-vit", "blur-gaussian", "blur-motion", "blur-defocus", "infer-resnet50", "infer-vit")
OWN += ("train-densenet121", "train-googlenet", "train-vgg19", "infer-densenet121", "infer-googlenet", "infer-vgg19")
ORDER = ("resnet50", "vit", "densenet121", "googlenet", "vgg19")
CELLS = ("checks", *OWN, *(f"peers-{mode}-{name}" for mode in ("train", "infer") for name in ORDER))
GOALS = {  # of an H200: share of the roofline, ratio to torch
    "train-resnet50": (0.45, 1.0),
    "train-vit": (0.55, 1.0),
    "train-vgg19": (0.70, 0.95),
    "train-densenet121": (0.40, 1.1),
    "train-googlenet": (0.30, 1.1),
}
BLURS_GOAL = {"blur-gaussian": 400_000}  # images a second
HEADER = ("cell", "images/s", "lowest–highest", "of roofline", "goal", "peer", "images/s", "form", "ratio", "goal")
HEADER += ("off by", "peak GB", "seconds")
SPARE = 5  # seconds left for what the machine does after the command


@as_command
def main(argv: list[str]) -> int:
    parser = Parser("python -m benchmarks.gpu", __doc__.splitlines()[0])
    parser.add_argument("--minutes", type=positive, default=9, help="that it may take (default: %(default)s)")
    parser.add_argument("--out", type=new_folder, required=True, help="folder for gpu.json and gpu.md")
    parser.add_argument("--only", type=some_of(CELLS), default=",".join(CELLS), help="of: " + ", ".join(CELLS))
    parser.add_argument("--dry", action="store_true", help="tiny sizes, as on a CPU")
    flags = parser.parse_args(argv)
    rates.share_memory()
    if not (jax.config.jax_compilation_cache_dir or "JAX_COMPILATION_CACHE_DIR" in os.environ):
        jax.config.update("jax_compilation_cache_dir", str(Path.home() / ".cache" / "bjax" / "xla"))
    dry = flags.dry or jax.default_backend() != "gpu"
    sizes = Sizes(2, 64, "bfloat16", 1, 1, False) if dry else Sizes(256, 224, "bfloat16", 5, 10, True)
    report = {**rates.about(sizes), "dry": dry, "checks": {}, "rows": {}, "failed": {}, "left_out": []}
    print(rates.told(report), flush=True)
    cells = {name: cell for name, cell in cells_of(sizes, report, flags.out).items() if name in flags.only}
    run(cells, report, flags.out, 60 * flags.minutes - SPARE)
    return int(bool(report["failed"]) or not all(found["ok"] for found in report["checks"].values()))


def cells_of(sizes: Sizes, report: dict, out: Path) -> dict[str, Callable[[], None]]:
    """{name: what fills that cell of the report}, in the order of `CELLS`."""

    @functools.cache
    def rivals():
        return rates.present(None)

    def own(name):
        mode, _, model = name.partition("-")
        report["rows"][name] = rates.measured(model, mode, sizes, [])

    def beside(name):
        _, mode, model = name.split("-")
        if rivals():
            report["rows"][f"{mode}-{model}"] = rates.measured(model, mode, sizes, rivals())

    def blurs(name):
        report["rows"][name] = blurred(name.removeprefix("blur-"), sizes)

    def check(_):
        checked(report, sizes, out)

    filling = {"checks": check, "peers": beside, "blur": blurs, "train": own, "infer": own}
    return {name: functools.partial(filling[name.partition("-")[0]], name) for name in CELLS}


def run(cells: dict[str, Callable[[], None]], report: dict, out: Path, seconds: float) -> None:
    """Fills the cells while there is time, and writes the report after each."""
    start, longest = time.monotonic(), 0.0

    def cut():
        print(f"cut after {seconds:.0f} s: {out} has what was measured", flush=True)
        os._exit(0)  # whatever is being compiled

    watch = threading.Timer(seconds, cut)
    watch.daemon = True
    watch.start()
    try:
        for name, fill in cells.items():
            began = time.monotonic()
            if began - start + longest > seconds:
                report["left_out"].append(name)
                continue
            try:
                fill()
            except Exception as error:  # a cell that fails leaves the others
                traceback.print_exc()
                report["failed"][name] = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
                print(f"{name}: FAILED", flush=True)
            took = time.monotonic() - began
            longest = max(longest, took)
            key = name.removeprefix("peers-")
            if key in report["rows"]:
                report["rows"][key]["took"] = took
                print(" | ".join(x for line in lines(key, report) for x in line), flush=True)
            write(report, out)
    finally:
        watch.cancel()
    write(report, out)


def checked(report: dict, sizes: Sizes, out: Path) -> None:
    """Makes all checks, and tells and writes each."""
    for name, check in checks.checks(MODELS, sizes.size).items():
        try:
            error, tolerated = check()
        except Exception as e:  # told, and the next one is made
            traceback.print_exc()
            found = {"ok": False, "raised": f"{type(e).__name__}: {' '.join(str(e).split())[:300]}"}
        else:
            found = {"ok": error <= tolerated, "error": error, "tolerated": tolerated}
        report["checks"][name] = found
        print(told(name, found), flush=True)
        write(report, out)


def told(name: str, found: dict) -> str:
    """A check in a line."""
    verdict = "ok" if found["ok"] else "FAILED"
    return f"{verdict}: {name}: " + (found.get("raised") or f"off by {found['error']:.1e} (≤ {found['tolerated']:.1e})")


def blurred(kind: str, sizes: Sizes) -> dict:
    """The rate of a blur of float32 images, each with a parameter of its own."""
    images = jax.device_put(np.float32(peers.photos(sizes.batch, sizes.size)) / 255)
    share = np.linspace(0, 1, sizes.batch, dtype=np.float32)
    parameters = {"gaussian": (1 + share,), "motion": (7 + 10 * share, np.pi * share), "defocus": (2 + 4 * share,)}
    program = jax.jit(getattr(blur, kind))
    arguments = jax.device_put(parameters[kind])

    def run():
        for _ in range(sizes.steps):
            blurred = program(images, *arguments)
        blurred.block_until_ready()

    timed({"": run}, 2)
    row = {"model": kind, "mode": "blur", "peers": {}}
    row |= rates.spread(timed({"": run}, sizes.rounds)[""], sizes.batch * sizes.steps)
    if chip := roofline.chip(jax.devices()[0].device_kind):
        least = roofline.seconds(0, 2 * images.nbytes, chip, "float32")  # each image is read and written once
        row["of_roofline"] = row["images_per_s"] * least / sizes.batch
    return row


def write(report: dict, out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    save(out / "gpu.json", report)
    replace(out / "gpu.md", page(report).encode())


def page(report: dict) -> str:
    """The report as a page in Markdown."""
    names = list(dict.fromkeys(name.removeprefix("peers-") for name in CELLS if name != "checks"))
    table = [HEADER, ("---",) * len(HEADER), *(line for name in names for line in lines(name, report))]
    notes = [f"- {name}: {why}" for name, why in report["failed"].items()]
    notes += [f"- {name}: no time was left" for name in report["left_out"]]
    dry = (
        "A dry run at tiny sizes: it shows that the command works, and fills no cell of a GPU's. "
        if report["dry"]
        else ""
    )
    return f"""\
# Rates on a GPU

{dry}`python -m benchmarks.gpu`: {rates.told(report)}. Rates are medians of interleaved rounds; a ratio is above 1 where
bjax is faster; the roofline is that of `benchmarks/roofline.py` by the chip's published figures. Goals are an H200's.

{chr(10).join("| " + " | ".join(line) + " |" for line in table)}

{chr(10).join(f"- {told(name, found)}" for name, found in report["checks"].items())}
{chr(10).join(notes)}
"""


def lines(name: str, report: dict) -> list[tuple[str, ...]]:
    """The lines of a cell under `HEADER`, one a peer; empty where it was not measured, or not on a GPU."""
    share, faster = GOALS.get(name, (None, None))
    goal = f"≥ {share:.0%}" if share else f"≥ {BLURS_GOAL[name]:,} images/s" if name in BLURS_GOAL else ""
    ratio = f"≥ {faster:g}" if faster else ""
    row = report["rows"].get(name)
    if row is None or report["dry"]:
        return [(name, "", "", "", goal, *("",) * 4, ratio, "", "", f"{row['took']:.0f}" if row else "")]
    own = [f"{row['images_per_s']:,.0f}", f"{row['lowest']:,.0f}–{row['highest']:,.0f}"]
    own += [f"{row['of_roofline']:.0%}" if "of_roofline" in row else "", goal]
    end = f"{row['peak'] / 1e9:.1f}" if "peak" in row else "", f"{row['took']:.0f}"
    found = []
    for peer, x in row["peers"].items():
        off = f"{x['off_by']:.1e} (≤ {x['tolerance']:.1e})" if "off_by" in x else ""
        found.append((peer, f"{x['images_per_s']:,.0f}", x["form"], f"{x['ratio']:.2f}", ratio, off))
    first, *others = found or [("", "", "", "", ratio, "")]
    return [(name, *own, *first, *end), *(("",) * 5 + other + ("", "") for other in others)]


if __name__ == "__main__":
    sys.exit(main())

"""Images a second of bjax's own compiled steps, training and inference, beside PyTorch's on the same device."""

import argparse
import contextlib
import dataclasses
import functools
import gc
import importlib.metadata
import os
import statistics
import sys
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import installed, kernels, peers, roofline, save
from benchmarks.checks import apart
from bjax import models
from bjax.aot import flops
from bjax.errors import Parser, UserError, new_file, positive, some_of
from bjax.runtime import sharding
from bjax.runtime.timing import timed
from bjax.specs import MaskSpec, Optim
from bjax.step import optim
from bjax.step import state as states
from bjax.step.inputs import Inputs, apply, image_keys, see
from bjax.step.losses import Objective
from bjax.step.train_step import compiled

MODELS = {"resnet50": {}, "vgg19": {}, "googlenet": {}, "densenet121": {}, "vit": {"variant": "B/16"}}
CLASSES = 1000
# Learning rates so small that noise is learned without an overflow: chips are faster at NaNs.
SGD = Optim(name="sgd", lr=1e-4, momentum=0.9, weight_decay=1e-4, decay="all", schedule="constant")
ADAMW = Optim(name="adamw", lr=1e-5, weight_decay=0.1, decay="all", schedule="constant")
OBJECTIVE = Objective("object", CLASSES, aux=peers.AUX)
INPUTS = Inputs(None, MaskSpec(), 16, peers.MEAN, peers.STD)  # no blur, no mask
# Of logits, tolerated beside twice what the peer's own type changes: TF32 is float32 on GPUs.
FLOAT32 = 0.01
PAUSE = {"cpu": 0.3}  # seconds before each run: the last one's threads may still be spinning, waiting for work
PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy", "torch", "torchvision", "timm")
HEADER = ("model", "images/s", "spread", "of roofline", "peer", "images/s", "spread", "form", "ratio", "off by")


@dataclasses.dataclass(frozen=True)
class Sizes:
    """batch: images a step; size: side, pixels; steps: of a round, before it waits; compile: torch.compile too."""

    batch: int
    size: int
    dtype: str
    rounds: int
    steps: int
    compile: bool


@dataclasses.dataclass(frozen=True)
class Own:
    """bjax's step of a model: run makes a round and waits; logits gives float32[B, classes] (inference alone)."""

    run: Callable[[], object]
    logits: Callable[[dict], np.ndarray] | None
    operations: float
    moved: int  # bytes, see benchmarks.roofline
    peak: int  # bytes of memory that the program takes
    text: Callable[[], str]  # of the compiled program


def main(mode: str, doc: str, argv: list[str]) -> None:
    """The command benchmarks.train or benchmarks.infer: mode is train | infer, doc its help."""
    flags = _parser(mode, doc).parse_args(argv)
    share_memory()
    sizes = sizes_of(flags)
    if sizes.size % 16 or sizes.size < 32:
        raise UserError(f"--size={sizes.size}: expected a multiple of 16 from 32 on")
    rivals = present(flags.against)
    facts = about(sizes)
    print(f"{mode}, {told(facts)}", flush=True)
    rows = []
    for name in flags.models:
        rows.append(measured(name, mode, sizes, rivals, by_kernel=flags.kernels))
        if flags.json:
            save(flags.json, facts | {"mode": mode, "rows": rows})
    from bjax.runtime.console import columns  # which needs more than a bare machine has

    print(columns(HEADER, [line for row in rows for line in cells(row)]))
    if flags.kernels:
        print("\nOf the time of bjax's kernels, summed over threads:")
        print("\n".join(kernels.told(row["model"], row["kernels"]) for row in rows))


def _parser(mode: str, doc: str) -> Parser:
    parser = Parser(f"python -m benchmarks.{mode}", doc.splitlines()[0])
    parser.add_argument("--models", type=some_of(MODELS), default=",".join(MODELS), help=", ".join(MODELS))
    known = "torch (torchvision's models), timm (its ViT); default: those that are installed"
    parser.add_argument("--against", type=some_of(peers.MODULES), help=known)
    parser.add_argument("--batch", type=positive, help="images a step (default: 256; on a CPU 8)")
    parser.add_argument("--size", type=positive, default=224, help="side of the images, pixels (default: %(default)s)")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="default: bfloat16; on a CPU float32")
    parser.add_argument("--rounds", type=positive, default=10, help="default: %(default)s")
    parser.add_argument("--steps", type=positive, help="of a round (default: 10; on a CPU 1)")
    two = "torch.compile beside eager torch (default: on a GPU); the better counts"
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, help=two)
    parser.add_argument("--kernels", action="store_true", help="tell by the profiler which kernels take the time")
    parser.add_argument("--json", type=new_file, help="write the numbers here")
    return parser


def share_memory() -> None:
    """Before JAX looks for devices: of a GPU's memory it takes 45 %, not 75 %, so that PyTorch has as much."""
    os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", ".45")


def sizes_of(flags: argparse.Namespace) -> Sizes:
    """What the flags say, and by the platform what they leave open."""
    cpu = jax.default_backend() == "cpu"
    return Sizes(
        batch=flags.batch or (8 if cpu else 256),
        size=flags.size,
        dtype=flags.dtype or ("float32" if cpu else "bfloat16"),
        rounds=flags.rounds,
        steps=flags.steps or (1 if cpu else 10),
        compile=jax.default_backend() == "gpu" if flags.compile is None else flags.compile,
    )


def present(asked: list[str] | None) -> list[str]:
    """The peers that are installed and can compute where JAX does; the others are told. UserError as of `installed`."""
    rivals = installed(asked, peers.MODULES)
    if rivals and not peers.device():
        print(f"{', '.join(rivals)} left out: this PyTorch does not compute on a {jax.default_backend()}", flush=True)
        return []
    return rivals


def versions() -> dict[str, str]:
    """Of `PACKAGES`, those that are installed."""
    found = {}
    for package in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found


def listed(versions: dict[str, str]) -> str:
    return ", ".join(f"{package} {version}" for package, version in versions.items())


def about(sizes: Sizes) -> dict:
    """Device, versions and sizes, for people and for files."""
    device = jax.devices()[0].device_kind
    return {"device": device, "platform": jax.default_backend(), "versions": versions(), **dataclasses.asdict(sizes)}


def told(facts: dict) -> str:
    """`about` in a line."""
    work = f"{facts['batch']} images of {facts['size']} px, {facts['dtype']}, {facts['rounds']} rounds"
    return f"{work} of {facts['steps']} steps on one {facts['device']}; {listed(facts['versions'])}"


def measured(name: str, mode: str, sizes: Sizes, rivals: list[str], *, by_kernel: bool = False) -> dict:
    """The rates of a model and of its peers, in interleaved rounds, as a row for `cells` and for JSON.

    mode: train | infer. Every program first runs once, which compiles it, and makes a round that is not counted. The
    weights of each peer have to find their places in the model, and in inference its logits are compared.
    by_kernel: one more round with the profiler, see `benchmarks.kernels`.
    """
    row = _measured(name, mode, sizes, rivals, by_kernel)
    gc.collect()  # the programs and what they hold
    if rivals:
        peers.free()
    return row


def _measured(name: str, mode: str, sizes: Sizes, rivals: list[str], by_kernel: bool) -> dict:
    say = functools.partial(print, file=sys.stderr, flush=True)
    say(f"{mode} {name}: compiling …")
    model = models.build(name, num_classes=CLASSES, dtype=jnp.dtype(sizes.dtype), **MODELS[name])
    batch = batch_of(sizes)
    own = {"train": training, "infer": inference}[mode](model, name, batch, sizes)
    row = {"model": name, "mode": mode, "peers": {}}
    runs = {("bjax", ""): own.run}
    for peer in rivals:
        theirs = peers.build(peer, name, sizes.size)
        if theirs is None:
            continue
        weights = converted(name, peers.tensors(theirs), model, sizes.size)
        row["peers"][peer] = found = {"failed": {}}
        for form in ("eager", "compiled")[: 1 + sizes.compile]:
            say(f"{mode} {name}: {peer}, {form} …")
            options = {"steps": sizes.steps, "compile": form == "compiled"}
            try:
                if mode == "infer":
                    run, logits = peers.inference(theirs, batch["image"], sizes.dtype, **options)
                else:
                    run = peers.training(theirs, batch, sizes.dtype, optim_of(name), **options)
                run()
            except Exception as error:  # whatever torch.compile makes of the machine
                if form == "eager":
                    raise
                found["failed"][form] = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
                say(f"{mode} {name}: {peer}, {form} does not work here: {found['failed'][form]}")
                continue
            runs[peer, form] = run
            if mode == "infer" and form == "eager":
                right = logits("float32")
                found["off_by"] = apart(own.logits(weights), right)
                found["tolerance"] = FLOAT32 + 2 * apart(logits(sizes.dtype), right)
    timed(runs, 1)
    say(f"{mode} {name}: measuring …")
    pause = PAUSE.get(jax.default_backend(), 0.0)
    row |= compared(timed(runs, sizes.rounds, pause=pause), row["peers"], sizes.batch * sizes.steps)
    chip = roofline.chip(jax.devices()[0].device_kind)
    if chip:
        least = roofline.seconds(own.operations, own.moved, chip, sizes.dtype)
        row["of_roofline"] = row["images_per_s"] * least / sizes.batch
    if by_kernel:
        row["kernels"] = kernels.seconds(own.run, own.text())
    return row | {"operations": own.operations, "moved": own.moved, "peak": own.peak}


def compared(seconds: dict, found: dict[str, dict], images: int) -> dict:
    """What the seconds of rounds say: of bjax, and of each peer in its better form, added to `found`.

    seconds: by (who, form), of whom bjax has none; images: of a round. Returns the row of bjax. A ratio above 1 says
    that bjax is faster.
    """
    ours = seconds["bjax", ""]
    for peer, row in found.items():
        forms = {key[1]: times for key, times in seconds.items() if key[0] == peer}
        form = min(forms, key=lambda form: statistics.median(forms[form]))
        row |= {"form": form, "forms": list(forms), "ratio": ratio(ours, forms[form]), **spread(forms[form], images)}
    return spread(ours, images)


def ratio(ours: list[float], theirs: list[float]) -> float:
    """How many times as fast ours is: the median of the ratios within rounds."""
    return statistics.median(t / o for o, t in zip(ours, theirs, strict=True))


def spread(seconds: list[float], images: int) -> dict:
    """Images a second of rounds that took so long: median, lowest and highest."""
    rates = [images / s for s in seconds]
    return {"images_per_s": statistics.median(rates), "lowest": min(rates), "highest": max(rates), "seconds": seconds}


def cells(row: dict) -> list[tuple[str, ...]]:
    """The lines of a row of `measured` under `HEADER`, one a peer."""

    def rates(x):
        return f"{x['images_per_s']:.1f}", f"{x['lowest']:.1f}–{x['highest']:.1f}"

    own = row["model"], *rates(row), f"{100 * row['of_roofline']:.0f} %" if "of_roofline" in row else ""
    lines = []
    for peer, x in row["peers"].items():
        # A peer that computes something else is none.
        off = ""
        if "off_by" in x:
            off = f"{x['off_by']:.1e} ({'≤' if x['off_by'] <= x['tolerance'] else '>'} {x['tolerance']:.1e})"
        lines.append((*(own if not lines else ("",) * 4), peer, *rates(x), x["form"], f"{x['ratio']:.2f}", off))
    return lines or [(*own, *("",) * 6)]


def batch_of(sizes: Sizes) -> dict[str, np.ndarray]:
    """What the loader would give."""
    return {
        "image": peers.photos(sizes.batch, sizes.size),
        "label": np.random.default_rng(1).integers(0, CLASSES, sizes.batch, np.int32),
        "id": np.arange(sizes.batch, dtype=np.uint32),
        "mask": np.ones(sizes.batch, bool),
    }


def optim_of(name: str) -> Optim:
    return ADAMW if name == "vit" else SGD


def _state(model, name: str, size: int, mesh):
    """(optimiser, init, shapes of the state, plan)"""
    tx = optim.build(optim_of(name), 1000)
    init = functools.partial(states.init, model=model, tx=tx, image_size=size, ema=False)
    shapes = jax.eval_shape(init, jax.random.key(0))
    return tx, init, shapes, sharding.plan(shapes, mesh, ((".*", "replicate"),))


def converted(name: str, tensors: dict, model, size: int) -> dict:
    """The model's variables from a PyTorch state dict; raises UserError where it is another model's."""
    from bjax import weights  # which needs more than a bare machine has

    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, size, size, 3)))
    return weights.convert(name, tensors, like=shapes)


def training(model, name: str, batch: dict, sizes: Sizes, inputs: Inputs = INPUTS) -> Own:
    """The step of a run on one device, by default without blur."""
    mesh = sharding.make_mesh(1, 1, jax.devices()[:1])
    tx, init, shapes, plan = _state(model, name, sizes.size, mesh)
    batch, key = sharding.put(batch, mesh), jax.random.key(0)
    kept = [jax.jit(init, out_shardings=plan)(jax.random.key(0, impl="rbg"))]
    step = compiled(plan, model=model, tx=tx, inputs=inputs, objective=OBJECTIVE, mesh=mesh)
    operations = flops.of(step, key, kept[0], batch, device=jax.devices()[0])
    program = step.lower(key, kept[0], batch).compile()

    def run():
        for _ in range(sizes.steps):
            kept[0], metrics = program(key, kept[0], batch)
        jax.block_until_ready((kept[0], metrics))

    run()
    return Own(run, None, operations, _moved(model, shapes, sizes, train=True), _peak(program), program.as_text)


def inference(model, name: str, batch: dict, sizes: Sizes) -> Own:
    """From uint8 images on the device to logits there: what evaluation does before it counts."""
    mesh = sharding.make_mesh(1, 1, jax.devices()[:1])
    _, init, shapes, plan = _state(model, name, sizes.size, mesh)
    batch, key = sharding.put(batch, mesh), jax.random.key(0)
    variables = jax.jit(lambda key: init(key).variables, out_shardings=plan.variables)(jax.random.key(0, impl="rbg"))

    @jax.jit
    def answer(variables, batch):
        seen = see(image_keys(key, batch["id"]), batch["image"], INPUTS, mesh)
        return apply(model, variables, seen.images, seen.kept, train=False)

    operations = flops.of(answer, variables, batch, device=jax.devices()[0])
    program = answer.lower(variables, batch).compile()

    def run():
        for _ in range(sizes.steps):
            logits = program(variables, batch)
        logits.block_until_ready()

    def logits(weights):
        placed = jax.device_put({**variables, **weights}, plan.variables)
        return np.asarray(program(placed, batch), np.float32)

    run()
    return Own(run, logits, operations, _moved(model, shapes, sizes, train=False), _peak(program), program.as_text)


def _moved(model, shapes, sizes: Sizes, *, train: bool) -> int:
    images = jax.ShapeDtypeStruct((sizes.batch, sizes.size, sizes.size, 3), jnp.float32)
    return roofline.moved(model, shapes, images, train=train)


def _peak(program: jax.stages.Compiled) -> int:
    return program.memory_analysis().peak_memory_in_bytes

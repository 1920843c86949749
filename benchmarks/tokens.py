"""Time that masks save: `python -m benchmarks.tokens --keep=1,.75,.5,.25 --mode=train|infer [--json=FILE]`.

What is timed is the own step of a run (`bjax.step`): uint8 images in, scores, choice, normalisation, gather, the
ViT and the loss, and in training the gradients and AdamW. Its speed-up over the step without a mask is divided by the
ideal one: the ratio of the matrix products' operations (`ViT.flops`),

    F(T) = 2(T-1)·3p²·D + Σ over blocks (8TD² + 4T²D + 4TDM) + 2DC,   ideal = F(N + 1) / F(K + 1),

for N patches of p pixels, K of them kept, width D, MLP width M and C classes. EViT and ToMe, with their usual settings,
and highpass are measured in the same rounds against their own ideals; their T falls from block to block.

Everything runs interleaved, A B C A B C, on all devices. A speed-up is the median over rounds of the ratio to the
unmasked step of the same round, so that a machine whose speed drifts slows both alike. Where others use the machine in
bursts that is not enough: the last column compares the fastest rounds, which they disturb least. If the two columns
differ by more than a few per cent, repeat. A first round compiles.
"""

import functools
import statistics
import sys

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from benchmarks import save
from bjax import models
from bjax.blur.sample import BlurSpec
from bjax.errors import Parser, UserError, as_command, new_file, positive, some_of
from bjax.models.vit import ViT
from bjax.runtime import sharding
from bjax.runtime.timing import timed
from bjax.specs import SIGMA_PATCH
from bjax.step import optim
from bjax.step.eval_step import eval_step
from bjax.step.inputs import Inputs
from bjax.step.losses import Objective
from bjax.step.state import init as init_state
from bjax.step.train_step import compiled
from bjax.tokens import MaskSpec, budget

RIVALS = {"evit .7": {"evit_keep": 0.7}, "evit .5": {"evit_keep": 0.5}}
RIVALS |= {"tome 8": {"tome_r": 8}, "tome 13": {"tome_r": 13}}
RIVALS |= {"high .7": {"highpass_keep": 0.7}, "high .5": {"highpass_keep": 0.5}}
CLASSES = 1000


@as_command
def main(argv: list[str]) -> None:
    flags = _parser().parse_args(argv)
    if flags.batch % jax.device_count():
        raise UserError(f"--batch={flags.batch}: expected a multiple of {jax.device_count()}, the devices")
    entries = compared(flags)
    prepare = {"infer": inference, "train": training}[flags.mode]
    batch = noise(flags.batch, flags.size)
    runs = {name: prepare(model, mask, batch) for name, (model, mask, _) in entries.items()}
    rows = measure(runs, flags.rounds)
    print(
        f"{flags.mode}, ViT-{flags.variant}, {flags.dtype}, {flags.batch} images of {flags.size} px, "
        f"{flags.rounds} rounds on {jax.device_count()} × {jax.devices()[0].device_kind}"
    )
    print(f"{'':10}{'ms':>9}{'images/s':>10}{'speed-up':>10}{'ideal':>8}{'of ideal':>10}{'fastest':>10}")
    for name, row in rows.items():
        row["ideal"] = entries[name][2]
        row["of_ideal"] = row["speed_up"] / row["ideal"]
        row["of_ideal_fastest"] = row["speed_up_of_fastest"] / row["ideal"]
        row["images_per_s"] = flags.batch / row["seconds"]
        print(
            f"{name:10}{1e3 * row['seconds']:9.1f}{row['images_per_s']:10.1f}{row['speed_up']:10.3f}"
            f"{row['ideal']:8.3f}{row['of_ideal']:10.3f}{row['of_ideal_fastest']:10.3f}"
        )
    if flags.json:
        about = {k: v for k, v in vars(flags).items() if k != "json"}
        about["device"] = jax.devices()[0].device_kind
        save(flags.json, {**about, "rows": rows})


def _parser() -> Parser:
    parser = Parser("python -m benchmarks.tokens", __doc__.split("\n")[0])
    parser.add_argument("--keep", default="1,.75,.5,.25", help="shares of the patches, comma-separated")
    parser.add_argument("--mode", choices=("infer", "train"), default="infer")
    parser.add_argument("--selector", default="laplacian", help="of the masks: a focus measure, random, …")
    rivals = "comma-separated, of: " + ", ".join(RIVALS)
    parser.add_argument("--rivals", type=some_of(RIVALS), default=",".join(RIVALS), help=rivals)
    parser.add_argument("--variant", default="S/16")
    parser.add_argument("--depth", type=positive, help="blocks, instead of the variant's own")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--batch", type=positive, default=8, help="images a step, over all devices")
    parser.add_argument("--size", type=positive, default=224, help="side of the images, pixels")
    parser.add_argument("--rounds", type=positive, default=15)
    parser.add_argument("--json", type=new_file, help="write the numbers here")
    return parser


def compared(flags) -> dict[str, tuple[ViT, MaskSpec, float]]:
    """{name: (model, mask, ideal speed-up)}; the first is the model without a mask."""
    try:
        keeps = [float(keep) for keep in flags.keep.split(",")]
        masks = {k: MaskSpec("gather", selector=flags.selector, keep_rate=k) for k in keeps}
    except ValueError as error:
        raise UserError(f"--keep={flags.keep} --selector={flags.selector}: {error}") from None
    if any(mask.needs_truth for mask in masks.values()):
        raise UserError(f"--selector={flags.selector}: needs a map of the blur, which is no part of what is timed")
    options = {"variant": flags.variant, "dtype": jnp.dtype(flags.dtype)}
    options |= {"depth": flags.depth} if flags.depth else {}
    build = functools.partial(models.build, "vit", num_classes=CLASSES, **options)
    try:
        full = build()
    except ValueError as error:
        raise UserError(f"--variant={flags.variant}: {error}") from None
    if flags.size % full.patch_size:
        raise UserError(f"--size={flags.size}: expected a multiple of the patch size {full.patch_size}")
    if flags.selector == "sigma" and full.patch_size < SIGMA_PATCH:
        raise UserError(f"--variant={flags.variant}: --selector=sigma needs patches of at least {SIGMA_PATCH} px")
    patches = (flags.size // full.patch_size) ** 2
    cost = full.flops(patches + 1)
    entries = {"no mask": (full, MaskSpec(), 1.0)}
    for keep, mask in masks.items():
        entries[f"keep {keep:g}"] = full, mask, cost / full.flops(budget(mask, patches) + 1)
    for name in flags.rivals:
        model = build(**RIVALS[name])
        entries[name] = model, MaskSpec(), cost / model.flops(patches + 1)
    return entries


def noise(batch, size):
    rng = np.random.default_rng(0)
    return {
        "image": rng.integers(0, 256, (batch, size, size, 3), np.uint8),
        "label": rng.integers(0, CLASSES, batch, np.int32),
        "id": np.arange(batch, dtype=np.uint32),
        "mask": np.ones(batch, bool),
    }


def step_of(model, mask, mesh):
    """What the steps that train and evaluate are told."""
    normalize = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    inputs = Inputs(BlurSpec({"sharp": 1}), mask, model.patch_size, *normalize)
    return {"model": model, "inputs": inputs, "objective": Objective("object", CLASSES), "mesh": mesh}


def inference(model, mask, batch):
    """A function that evaluates the batch and waits for the result."""
    mesh = sharding.make_mesh(-1, 1)
    batch = sharding.put(batch, mesh)
    variables = jax.jit(model.init)(jax.random.key(0, impl="rbg"), batch["image"][:1].astype(jnp.float32))
    evaluate = jax.jit(functools.partial(eval_step, **step_of(model, mask, mesh)))
    return lambda: jax.block_until_ready(evaluate(jax.random.key(0), variables, batch))


def training(model, mask, batch):
    """A function that makes one update and waits for it."""
    from bjax.configs.common import default

    mesh = sharding.make_mesh(-1, 1)
    size = batch["image"].shape[1]
    batch = sharding.put(batch, mesh)
    tx = optim.build(default().optim, 1000)
    init = functools.partial(init_state, model=model, tx=tx, image_size=size, ema=False)
    plan = sharding.plan(jax.eval_shape(init, jax.random.key(0)), mesh, ((".*", "fsdp"),))
    state = jax.jit(init, out_shardings=plan)(jax.random.key(0, impl="rbg"))
    train = compiled(plan, tx=tx, **step_of(model, mask, mesh))

    def run():
        nonlocal state
        state, metrics = train(jax.random.key(0), state, batch)
        jax.block_until_ready(metrics)

    return run


def measure(runs, rounds):
    """Median seconds of every run; its speed-up over the first, the median within rounds and that of the fastest."""
    for name, run in runs.items():
        print(f"compiling {name} …", file=sys.stderr, flush=True)
        run()
    seconds = {name: [] for name in runs}
    for _ in tqdm(range(rounds), "measuring", unit="round"):
        for name, times in timed(runs, 1).items():
            seconds[name] += times
    base = next(iter(seconds.values()))
    return {
        name: {
            "seconds": statistics.median(times),
            "speed_up": statistics.median(b / t for b, t in zip(base, times, strict=True)),
            "speed_up_of_fastest": min(base) / min(times),
        }
        for name, times in seconds.items()
    }


if __name__ == "__main__":
    sys.exit(main())

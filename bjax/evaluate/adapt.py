"""Adapting at test time, with a clock: every method on every stream of one condition's images, beside not adapting.

Methods: none; bn_train, BatchNorm's statistics of training images that are blurred like the condition's, whatever the
stream, taken before it (`bn_adapt`); bn_stream, each batch normalised by its own statistics (Schneider et al. 2020);
tent, a step down the entropy of each batch's answers (Wang et al. 2021). Streams show the same images: independent,
shuffled; single, one at a time; mixed, with kinds and strengths of blur mixed within a batch; imbalanced, sorted by
class.

The last batch has what is left. It is a batch of its own, of so many images and no padding, which would enter its
statistics: all images count in the accuracy, whole batches alone in the time.

Timed is what adapting changes: normalised images on one device -> answers, and what is learned of them. All methods run
interleaved, batch by batch, each in turn the first, compiled before; each has the median over its batches.
"""

import dataclasses
import functools
import statistics
import time
from collections.abc import Callable, Iterator

import jax
import numpy as np

from bjax import config as configs
from bjax import experiment, models, stats
from bjax.blur.sample import KINDS, BlurSpec
from bjax.data import loader
from bjax.data.loader import Source
from bjax.errors import UserError
from bjax.evaluate import bn_adapt
from bjax.evaluate.conditions import images_of
from bjax.evaluate.summary import summarise
from bjax.experiment import SEED, Experiment, eval_batches
from bjax.runtime import distributed, memory, sharding
from bjax.runtime.console import COMPILING, Progress, columns
from bjax.specs import METHODS, STREAMS, gaussian_size
from bjax.step.adapt_step import PUBLISHED_BATCH, tent, tent_start, unchanged
from bjax.step.eval_step import prepare

FILE = "adapt.json"
HOW = "from normalised images to answers and what is learned of them; median over whole batches"
MIXED = BlurSpec(dict.fromkeys(KINDS, 0.25), sigma=(0.0, 4.0), kernel_size=gaussian_size(4.0))
ROW = ("n", "n_photographs", "top1", "top1_95", "top1_95_photographs", "loss", "ece")  # of `summarise`
FEW = stats.COVERED[0][0]  # photographs that a difference needs, see docs/intervals.md

Stream = Iterator[dict[str, np.ndarray]]


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is measured, once it is known to be possible. left_out: {method: why}. config: evaluates the condition."""

    config: object
    condition: str
    methods: tuple[str, ...]
    streams: tuple[str, ...]
    left_out: dict[str, str]


def plan(config) -> Plan:
    """What `config.adapt` asks for; touches no device. Raises UserError for what cannot be."""
    name = _condition(config)
    config = configs.copied(config)
    config.eval_only = name
    exp = experiment.build(config, num_classes=2)
    methods, left_out = _possible(config, exp.conditions[name].model)
    _check_sizes(config, exp.conditions[name].split)
    return Plan(config, name, methods, _listed(config.adapt.streams) or STREAMS, left_out)


def _listed(text: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))


def _condition(config) -> str:
    if config.task != "object":
        why = "a blur that is mixed or sorted would be the answer itself"
        raise UserError(f"config.task={config.task}: --mode=adapt is for classes of objects; {why}")
    fit = [k for k, c in config.eval.items() if not c.bn_adapt and c.mask.mode != "bucket"]
    blurred = [k for k in fit if config.eval[k].corruption or config.eval[k].blur.kinds.sharp < 1]
    name = config.adapt.condition or next(iter(blurred), "")
    if not name:
        raise UserError(f"config.adapt.condition: none of config.eval is blurred; name one of {', '.join(fit)}")
    if name not in fit:
        why = "adapts by itself" if config.eval[name].bn_adapt else "groups the images of a stream anew (bucket)"
        raise UserError(f"config.adapt.condition={name}: {why}; name one of {', '.join(fit)}")
    return name


def _possible(config, model) -> tuple[tuple[str, ...], dict[str, str]]:
    """The methods, none first, and, where the config names none, {method: why} of those that the model cannot have."""
    norm, called = models.norm_of(model), config.model.name
    lacking = {"bn_train": "BatchNorm", "bn_stream": "BatchNorm", "tent": "norm layers"}
    if norm == "BatchNorm":
        lacking = {}
    elif norm:
        del lacking["tent"]
    named = _listed(config.adapt.methods)
    possible = [method for method in METHODS if method not in lacking]
    for method in named:
        if method in lacking:
            way = f"leave it out, of {', '.join(possible)}" if norm else "take a model with norms"
            raise UserError(f"config.adapt.methods={config.adapt.methods}: {called} has no {lacking[method]}; {way}")
    if possible == ["none"] and not named:
        raise UserError(f"config.model.name={called}: --mode=adapt needs norm layers, it has none; take another model")
    left_out = {} if named else {method: f"{called} has no {what}" for method, what in lacking.items()}
    return tuple(method for method in possible if method == "none" or not named or method in named), left_out


def _check_sizes(config, split: str) -> None:
    source = loader.open_split(config.data.name, split, data_dir=config.data.data_dir)
    number, size = _number(config, source), config.adapt.batch_size
    if size > number:
        what = f"{source.name} {split}" + (" that config.adapt.images takes" if number < len(source) else "")
        raise UserError(
            f"config.adapt.batch_size={size}: more than the {number} images of {what}; use at most {number}"
        )
    image = 3 * config.data.image_size**2
    if (fits := memory.of_host() // (2 * image)) < number:  # once in batches, once as a whole
        raise UserError(
            f"config.adapt.images={config.adapt.images}: {number:,} are more than fit; use at most {fits:,}"
        )


def _number(config, source: Source) -> int:
    return min(config.adapt.images or len(source), len(source))


def measure(exp: Experiment, variables: dict, asked: Plan) -> dict[str, object]:
    """The content of adapt.json. exp: of `asked.config`.

    condition, what (as in config.json), data, n, skipped (images that could not be decoded), batch_size, lr, prior,
    bn_train_images, device, how, left_out, and streams: {name: {about, last, methods: {method: row}}}. last: images of
    the last batch where it is smaller, else 0. A row has what `summarise` gives, ms (an image's) and, beside none, the
    difference of top-1 over the same images, its 95 % interval (`paired`) and its verdict: helps, hurts, or "" where
    that may be chance. Raises UserError where no image can be decoded and for losses that are not finite.
    """
    if "bn_train" in asked.methods:
        others = ",".join(method for method in asked.methods if method != "bn_train")
        bn_adapt.check_sizes(exp, f"--config.adapt.methods={others}")
    condition, config = exp.conditions[asked.condition], exp.config
    source = exp.splits[condition.split]
    batch, of = _read(exp, source)
    at_rest = {}
    if "bn_train" in asked.methods:
        at_rest["batch_stats"] = bn_adapt.statistics(exp, variables, condition.inputs)
    # A stream has an order, and batches of one image: it goes to one device.
    exp = dataclasses.replace(exp, mesh=sharding.make_mesh(1, 1, jax.devices()[:1]))
    variables, at_rest = jax.device_put((variables, at_rest), jax.sharding.NamedSharding(exp.mesh, jax.P()))
    streams = {}
    for name in asked.streams:
        size = 1 if name == "single" else config.adapt.batch_size
        inputs = condition.inputs
        if name == "mixed":
            where = {"ramp": "regions"}.get(inputs.blur.where, inputs.blur.where)  # a ramp is of Gaussians alone
            blur = dataclasses.replace(MIXED, noise=inputs.blur.noise, where=where)
            inputs = dataclasses.replace(inputs, blur=blur, corruption=None)
        order = ordered(name, batch["label"])
        see = functools.partial(prepare, inputs=inputs, objective=exp.objective, mesh=exp.mesh, score=False)
        steps = _steps(exp, asked, variables, at_rest, size)
        found = follow(_batches({k: v[order] for k, v in batch.items()}, size, name), see, steps, exp.mesh)
        rows = _rows(found, {k: v[order] for k, v in of.items()}, config)
        streams[name] = {"about": _about(name, inputs, size), "last": len(order) % size, "methods": rows}
    return {
        "condition": asked.condition,
        "what": config.eval[asked.condition].to_dict(),
        "data": f"{source.name} {condition.split}",
        "n": len(of["id"]),
        "skipped": _number(config, source) - len(of["id"]),
        **{key: config.adapt[key] for key in ("batch_size", "lr", "prior")},
        "bn_train_images": bn_adapt.batches_of(exp) * config.eval_batch_size if at_rest else 0,
        "device": jax.devices()[0].device_kind,
        "how": HOW,
        "left_out": asked.left_out,
        "streams": streams,
    }


def _read(exp: Experiment, source: Source) -> tuple[dict, dict]:
    """The images as a batch on the host, and which they are (`images_of`), without those that cannot be decoded."""
    part, number = source, _number(exp.config, source)
    if number < len(source):
        chosen = np.sort(np.random.default_rng(SEED).permutation(len(source))[:number])
        part = dataclasses.replace(source, records=[source.records[int(i)] for i in chosen])
    batches = list(eval_batches(exp, part))
    seen = {k: np.concatenate([batch[k] for batch in batches]) for k in batches[0]}
    if not seen["mask"].any():
        raise UserError(f"{source.name} {source.split}: none of its {number} images could be decoded")
    return {k: v[seen["mask"]] for k, v in seen.items()}, images_of(source, seen)


def ordered(stream: str, labels: np.ndarray) -> np.ndarray:
    """int[n]: in which order a stream shows images of these labels, int[n]; always the same."""
    shuffled = np.random.default_rng(SEED).permutation(len(labels))
    return shuffled[np.argsort(labels[shuffled], kind="stable")] if stream == "imbalanced" else shuffled


def _batches(batch: dict[str, np.ndarray], size: int, name: str) -> Stream:
    number = len(batch["id"])
    bar = Progress(-(-number // size), 0, f"adapt, {name}", shown=True, unit="batch", first=COMPILING)
    for start in range(0, number, size):
        if distributed.stopping():
            raise distributed.Stopped("told to stop while adapting; the same command measures again")
        yield {k: v[start : start + size] for k, v in batch.items()}
        bar.advance()
    bar.close()


def _steps(exp: Experiment, asked: Plan, variables: dict, at_rest: dict, size: int) -> dict[str, tuple]:
    """{method: (state, step)} before a stream in batches of `size`."""
    model, adapt = exp.conditions[asked.condition].model, exp.config.adapt
    batch_norm = models.norm_of(model) == "BatchNorm"
    options = {"objective": exp.objective, "mesh": exp.mesh}
    steps = {}
    for method in asked.methods:
        of_batch, own = model, dict(options)
        if batch_norm and method in ("bn_stream", "tent"):
            of_batch = model.clone(norm_prior=adapt.prior if method == "bn_stream" else 0.0)
        state = variables | (at_rest if method == "bn_train" else {})
        if method == "tent":
            state, own["lr"] = tent_start(variables), adapt.lr * size / PUBLISHED_BATCH
        steps[method] = state, functools.partial(tent if method == "tent" else unchanged, model=of_batch, **own)
    return steps


def follow(stream: Stream, see: Callable, steps: dict[str, tuple], mesh) -> dict[str, tuple[dict, list]]:
    """{method: (answers, times)} over a stream: arrays over its images, and of every batch (seconds, images).

    see: `prepare` but for key and batch. steps: {method: (state, step)}, the step from (state, batch) to (state,
    answers).
    """
    key, known = jax.random.key(SEED), set()
    states = {method: state for method, (state, _) in steps.items()}
    answers, times = ({method: [] for method in steps} for _ in range(2))
    for number, batch in enumerate(stream):
        prepared = jax.block_until_ready(see(key, sharding.put(batch, mesh)))
        first = number % len(steps)  # whichever is the first after the host's work takes longer
        for method, (_, step) in [*list(steps.items())[first:], *list(steps.items())[:first]]:
            if (method, len(batch["id"])) not in known:
                jax.block_until_ready(step(states[method], prepared))  # compiles; the state stays as it was
                known.add((method, len(batch["id"])))
            since = time.perf_counter()
            states[method], rows = jax.block_until_ready(step(states[method], prepared))
            times[method].append((time.perf_counter() - since, len(batch["id"])))
            answers[method].append(jax.device_get({k: v for k, v in rows.items() if k != "logits"}))
    merged = {
        m: {k: np.concatenate([rows[k] for rows in all_rows]) for k in all_rows[0]} for m, all_rows in answers.items()
    }
    return {method: (merged[method], times[method]) for method in steps}


def _rows(found: dict[str, tuple[dict, list]], of: dict[str, np.ndarray], config) -> dict[str, dict]:
    """{method: row} of what `follow` found; of: which images they are, in the stream's order."""
    rows, hits = {}, found["none"][0]["top1"]
    for method, (answers, times) in found.items():
        if nonfinite := int((~np.isfinite(answers["loss"])).sum()):
            way = "train again, or evaluate others"
            if method == "tent" and np.isfinite(found["none"][0]["loss"]).all():
                way = f"lower --config.adapt.lr={config.adapt.lr:g}, or leave tent out"
            raise UserError(
                f"--mode=adapt: the loss of {nonfinite} images under {method} is not a finite number; {way}"
            )
        del answers["mask"]
        row = {k: v for k, v in summarise(answers | of).items() if k in ROW}
        most = max(images for _, images in times)
        row["ms"] = 1000 * statistics.median(seconds / images for seconds, images in times if images == most)
        if method != "none":
            row |= paired(answers["top1"], hits, of.get("photograph"))
        rows[method] = row
    return rows


def paired(hits: np.ndarray, others: np.ndarray, photographs: np.ndarray | None = None) -> dict[str, object]:
    """{difference, difference_95, verdict} of hits − others, float[n] of the same images: Student's t over the images,
    or over the photographs, str[n], that they are crops of.

    verdict: helps or hurts where the interval does not hold 0, else "": of fewer than `FEW` photographs, and where all
    differ by the same, chance is not told.
    """
    differences = np.float64(hits) - others
    mean, enough = float(differences.mean()), True
    if photographs is not None:
        _, of, images = np.unique(photographs, return_inverse=True, return_counts=True)
        # What each adds to the mean over images, however many it has; their own means where all have as many.
        differences = mean + (np.bincount(of, differences) - mean * images) * len(images) / len(of)
        enough = len(images) >= FEW
    low, high = map(float, stats.t_interval(differences, within=(-1.0, 1.0)))
    told = enough and high - low > 1e-9 and not low <= 0 <= high
    verdict = ("helps" if mean > 0 else "hurts") if told else ""
    return {"difference": mean, "difference_95": [low, high], "verdict": verdict}


def _about(name: str, inputs, size: int) -> str:
    """What a stream is, in words."""
    if name == "single":
        return "shuffled, one image at a time"
    text = f"{'sorted by class' if name == 'imbalanced' else 'shuffled'}, batches of {size}"
    if name == "mixed":
        text += "; in a batch sharp images, Gaussian blur (σ {:g} to {:g} px)".format(*inputs.blur.sigma)
        text += ", motion ({:g} to {:g} px) and defocus".format(*inputs.blur.length)
        text += " ({:g} to {:g} px), a quarter each".format(*inputs.blur.radius)
    return text


def table(content: dict[str, object]) -> str:
    """adapt.json as text of 80 columns: a row for every stream and method, and where adapting helps or hurts."""
    rows, verdicts, photographs = [], {"helps": [], "hurts": []}, 0
    for stream, measured in content["streams"].items():
        for method, row in measured["methods"].items():
            low, high = stats.interval(row)
            gap = ""
            if "difference" in row:
                ends = (f"{100 * x:+.1f}" for x in row["difference_95"])
                gap = f"{100 * row['difference']:+.1f} ({' to '.join(ends)})"
            if row.get("verdict"):
                verdicts[row["verdict"]].append(f"{method} on {stream} ({100 * row['difference']:+.1f})")
            share = f"{100 * row['top1']:.1f} ({100 * low:.1f}–{100 * high:.1f})"
            rows.append(
                (stream, method, share, gap, f"{100 * row['ece']:.1f}", f"{row['ms']:.{1 if row['ms'] >= 100 else 2}f}")
            )
            photographs = row.get("n_photographs", 0)
    crops = f", crops of {photographs:,} photographs" if photographs else ""
    lines = [columns(("stream", "method", "top-1 % (95 %)", "beside none", "ECE %", "ms"), rows, left=2)]
    lines.append(f"each of {content['n']:,} images of {content['data']}, {content['condition']}{crops}")
    lines.append(f"ms: an image's, {content['how']}")
    for stream, measured in content["streams"].items():
        last = measured["last"]
        lines.append(f"{stream}: {measured['about']}" + (f"; the last of {last}, not in the ms" if last else ""))
    if content["bn_train_images"]:
        lines.append(f"bn_train: has seen {content['bn_train_images']:,} training images before, not in the ms")
    lines += [f"left out: {method}, {why}" for method, why in content["left_out"].items()]
    if content["skipped"]:
        lines.append(f"{content['skipped']} images could not be decoded and were left out")
    for verdict, cases in verdicts.items():
        lines.append(f"{verdict} beyond chance: {', '.join(cases) or 'none'}")
    return "\n".join(lines)

"""What every config shares: all fields with their defaults, said once, and the parser of the text after the colon.

A config file defines `get_config(arg="")` and returns an `ml_collections.ConfigDict` made by `default()` and changed
where the experiment differs. Any leaf can be set from the command line: `--config.optim.lr=3e-4`,
`--config.blur.sigma=1,3`, `--config.eval.sharp.split=validation[:10%]`.
"""

from functools import partial

import ml_collections
from ml_collections.config_dict import placeholder

from bjax import options, specs
from bjax.errors import nearest

ConfigDict = partial(ml_collections.ConfigDict, sort_keys=False)  # results come in the order written here

# Instead of ImageNet: the embedded photographs, ten classes downloaded on first use, or some images of one's own
# (--config.data.name=…), for which bjax.small chooses what depends on them.
SOURCES = ("demo", "imagenette", "small")
TRAIN_BLURS = {  # paper 1, section 4.2: the three training sets
    "sharp": {"sharp": 1.0},
    "blurred": {"gaussian": 1.0},
    "mix": {"sharp": 0.5, "gaussian": 0.5},
}
SIMILARITY_IMAGES = 256  # of curves: the mean of a condition is then known to about 0.02
PARTIAL = "partial"  # the fourth, which no paper has: every image blurred, each in regions of its own
AUGMIX = {"augmix": "sharp", "blurred+augmix": "blurred"}  # AugMix, and the blur of what it mixes


def parse_arg(arg, **defaults):
    """Reads the text after the colon of `configs/NAME.py:ARGS` into a ConfigDict.

    `arg` is a comma-separated list of words and `key=value` pairs. A word of `SOURCES` sets `source` (without one it is
    "imagenet2012"); a pair sets one of `defaults` and takes its type. Anything else is a ValueError that lists what is
    known.
    """
    args = ConfigDict({"source": "imagenet2012", **defaults})
    known = [*SOURCES, *(f"{key}=…" for key in defaults)]
    for item in filter(None, arg.split(",")):
        key, equals, value = item.partition("=")
        if not equals and key in SOURCES:
            args.source = key
        elif equals and key in defaults:
            kind = type(defaults[key])
            try:
                args[key] = {"true": True, "false": False}[value.lower()] if kind is bool else kind(value)
            except (KeyError, ValueError):
                expected = f"{kind.__name__}, such as {key}={defaults[key]}"
                raise ValueError(f"{key}={value}: expected {expected}") from None
        else:
            hint = nearest(key, [*SOURCES, *defaults])
            raise ValueError(f"unknown argument {item!r}{hint}; known: {', '.join(known)}")
    trainings = (*TRAIN_BLURS, PARTIAL, *AUGMIX)
    if "train" in args and args.train not in trainings:
        raise ValueError(f"train={args.train}: expected one of {', '.join(trainings)}")
    return args


def group(kind):
    """The options of a group of `bjax.specs` with their defaults, in its order; `None` is a number that is not set."""
    return _node(options.defaults(kind))


def _node(values):
    if isinstance(values, dict):
        return ConfigDict({key: _node(value) for key, value in values.items()})
    return placeholder(float) if values is None else values


def blur(kinds=None, **changes):
    """A blur distribution. `kinds` gives the probability of each kind of blur; without it every image stays sharp."""
    c = group(specs.BlurSpec)
    if kinds:
        c.kinds.update({**dict.fromkeys(specs.KINDS, 0.0), **kinds})
    c.update(changes)
    return c


def mask(mode="none", **changes):
    """A token mask: which patches are left out, and what leaving out means."""
    c = group(specs.MaskSpec)
    c.update({"mode": mode, **changes})
    return c


def condition(split, blurred=None, masked=None, **token_options):
    """One row of the results: a split, how it is blurred (not at all by default), which patches are left out (none).

    `token_options` are those of the ViT that need no other weights: evit_keep, evit_layers, tome_r, highpass_keep.
    """
    c = group(specs.Condition)
    c.split = split
    c.blur, c.mask = blurred or blur(), masked or mask()
    c.options = ConfigDict(token_options)
    return c


def default():
    """Every field of a run, as `bjax.specs.Run` has them."""
    return group(specs.Run)


def use_source(c, arg):
    """Points `c` at the source of `arg`, with its blur, its AugMix and its share of the images.

    Sets the conditions of paper 1's tables: sharp, blurred, and blurred with patches removed: on both sides of its
    threshold, because it says "above 100" although a low variance means blurry, each beside a random choice of as many.
    Returns the name of the split they are evaluated on.
    """
    c.data.name = {"demo": "photos", "small": ""}.get(arg.source, arg.source)
    c.recipe = "small" if arg.source == "small" else "given"
    if arg.fraction != 100:
        c.data.train = f"train[:{arg.fraction}%]"
    train = AUGMIX.get(arg.train, arg.train)
    c.blur = GAUSSIAN(where="regions") if train == PARTIAL else blur(TRAIN_BLURS[train])
    c.augmix.width = 3 if arg.train in AUGMIX else 0  # as in its paper
    split = arg.eval_split or {"demo": "test", "small": ""}.get(arg.source, "validation")
    c.eval.sharp = condition(split)
    c.eval.blurred = condition(split, GAUSSIAN())
    for drop in ("below", "above"):
        for selector in ("laplacian", "random"):
            masked = mask("zero_pixels", selector=selector, drop=drop, threshold=100.0)
            c.eval[f"blurred_drop_{drop}{CONTROL[selector]}"] = condition(split, GAUSSIAN(), masked)
    if arg.get("curves"):
        c.eval.update(curves(split))
        c.similarity_images = SIMILARITY_IMAGES
    return split


def curves(split):
    """Accuracy against blur: of fixed strengths, of which σ = 0 is `sharp`, and ImageNet-C's at all severities."""
    conditions = ConfigDict()
    for sigma in (0.5, 1.0, 1.5, 2.0, 3.0, 4.0):
        name = f"sigma_{sigma:g}".replace(".", "p")
        conditions[name] = condition(split, GAUSSIAN(sigma=(sigma, sigma), kernel_size=33))
    for length in (5.0, 9.0, 13.0, 21.0):
        conditions[f"length_{length:g}"] = condition(split, blur({"motion": 1.0}, length=(length, length)))
    for radius in (1.5, 3.0, 4.5, 6.0):
        name = f"radius_{radius:g}".replace(".", "p")
        conditions[name] = condition(split, blur({"defocus": 1.0}, radius=(radius, radius)))
    for name in ("gaussian_blur", "defocus_blur", "glass_blur", "motion_blur", "zoom_blur"):
        for severity in range(1, 6):
            conditions[f"{name}_{severity}"] = corrupted = condition(split)
            corrupted.corruption, corrupted.severity = name, severity
    return conditions


GAUSSIAN = partial(blur, {"gaussian": 1.0})  # paper 1's test blur: σ ~ U(1, 2), 19 taps
CONTROL = {"laplacian": "", "random": "_random"}  # what a condition's name ends with


def cnn(arg, name, *, lr):
    """torchvision's recipe of 2017 for a CNN: SGD, 90 epochs of batch 256, the rate falling tenfold every 30.

    Differs from it where biases and norms do not decay. The demo takes AdamW, which gets there in fewer steps.
    """
    c = default()
    c.model.name = name
    c.dtype = "bfloat16"
    c.batch_size, c.eval_batch_size = 256, 256
    c.optim.name, c.optim.schedule, c.optim.lr, c.optim.weight_decay = "sgd", "step", lr, 1e-4
    split = use_source(c, arg)
    if name != "vgg19":  # the one without BatchNorm
        c.eval.blurred_bn_adapt = condition(split, GAUSSIAN())
        c.eval.blurred_bn_adapt.bn_adapt = True
    if arg.source == "demo":
        demo(c)
        c.data.image_size = 64
        c.batch_size, c.steps = 32, 120
        c.optim.name, c.optim.schedule, c.optim.lr, c.optim.warmup = "adamw", "cosine", 1e-3, 12
    return c


def demo(c):
    """Sizes for two CPU cores and a few minutes, on crops of photographs that ship inside scikit-image."""
    c.data.image_size = 96
    c.data.resize = 0
    c.data.scale = (0.25, 1.0)
    c.data.threads = 2
    c.dtype = "float32"
    c.batch_size, c.eval_batch_size = 64, 128
    c.steps = 300
    c.log_every = 25
    c.checkpoint_every = 50
    c.eval_every = 0
    c.gallery = 6

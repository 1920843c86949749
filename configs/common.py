"""What every config shares: all fields with their defaults, said once, and the parser of the text after the colon.

A config file defines `get_config(arg="")` and returns an `ml_collections.ConfigDict` made by `default()` and changed
where the experiment differs. Any leaf can be set from the command line: `--config.optim.lr=3e-4`,
`--config.blur.sigma=1,3`, `--config.eval.sharp.split=validation[:10%]`.
"""

import difflib
from functools import partial

import ml_collections
from ml_collections.config_dict import placeholder

ConfigDict = partial(ml_collections.ConfigDict, sort_keys=False)  # results come in the order written here

SOURCES = (
    "demo",
    "imagenette",
)  # instead of ImageNet: the embedded photographs, or ten classes downloaded on first use
TRAIN_BLURS = {  # paper 1, section 4.2: the three training sets
    "sharp": {"sharp": 1.0},
    "blurred": {"gaussian": 1.0},
    "mix": {"sharp": 0.5, "gaussian": 0.5},
}


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
                raise ValueError(
                    f"{key}={value}: expected {kind.__name__}, such as {key}={defaults[key]}"
                ) from None
        else:
            near = difflib.get_close_matches(key, [*SOURCES, *defaults], n=1)
            hint = f" (did you mean {near[0]!r}?)" if near else ""
            raise ValueError(f"unknown argument {item!r}{hint}; known: {', '.join(known)}")
    if "train" in args and args.train not in TRAIN_BLURS:
        raise ValueError(f"train={args.train}: expected one of {', '.join(TRAIN_BLURS)}")
    return args


def blur(kinds=None, **changes):
    """A blur distribution. `kinds` gives the probability of each kind of blur; without it every image stays sharp."""
    probabilities = {
        "sharp": 0.0,
        "gaussian": 0.0,
        "motion": 0.0,
        "defocus": 0.0,
        **(kinds or {"sharp": 1.0}),
    }
    c = ConfigDict()
    c.kinds = probabilities  # probability of each kind; they are drawn per image and must sum to 1
    c.sigma = (1.0, 2.0)  # Gaussian: standard deviation in pixels, uniform in this range
    c.kernel_size = 19  # Gaussian: taps per axis, odd; 8σ + 1 hold it, fewer than 6σ + 1 give a warning
    c.psf_size = 21  # motion and defocus: side of the kernel, odd
    c.length = (7.0, 17.0)  # motion: length of the line in pixels
    c.angle = (0.0, 3.141592653589793)  # motion: direction in radians
    c.radius = (2.0, 6.0)  # defocus: radius of the disk in pixels
    c.noise = (0.0, 0.0)  # standard deviation of Gaussian noise added last, on the 0..1 scale
    c.update(changes)
    return c


def mask(mode="none", **changes):
    """A token mask: which patches are left out, and what leaving out means."""
    c = ConfigDict()
    c.mode = mode  # none | zero_pixels | zero_tokens | attend (masked keys) | gather, bucket (fewer tokens computed)
    c.selector = "laplacian"  # a focus measure, or a control at the same keep rate: random | inverse | centre
    c.drop = (
        "below"  # which side of the score is left out: below (blurry patches) | above (paper 1's wording)
    )
    c.threshold = placeholder(float)  # score on the 0..255 scale; paper 1 uses 100
    c.keep_rate = placeholder(float)  # at most this share of the patches stays, in (0, 1]
    c.scope = "image"  # Laplacian over the whole image, or per patch with a border of its own: image | patch
    c.fill = "black"  # what zero_pixels writes: black (0 before normalisation) | mean (0 after it)
    c.update(changes)
    return c


def condition(split, blurred=None, masked=None, **options):
    """One row of the results: a split, how it is blurred (not at all by default), which patches are left out (none).

    `options` are those of the ViT that need no other weights: evit_keep, evit_layers, tome_r.
    """
    c = ConfigDict()
    c.split = split  # TFDS split, sub-splits such as validation[:10%] included
    c.blur = blurred or blur()
    c.mask = masked or mask()
    c.options = ConfigDict(options)  # of the ViT, beside model.options: evit_keep, evit_layers, tome_r
    c.corruption = (
        ""  # ImageNet-C's blur of the crop instead of `blur`: gaussian_blur | defocus_blur | motion_blur | …
    )
    c.severity = 1  # of that corruption, 1 to 5
    c.bn_adapt = False  # with BatchNorm statistics of training images that are blurred and masked like these
    return c


def default():
    """Every field of a run. Units: images, steps, pixels; sizes are those of all devices together.

    A new field needs an entry in `bjax.config.ADDED`, so that runs without it can still be read.
    """
    c = ConfigDict()
    c.seed = 0  # of the weights, the order of the examples, the crops and the blur drawn in training
    c.task = "object"  # what is predicted: object (the dataset's label) | blur_type (the kind of blur that was drawn)
    c.batch_size = 1024  # images per step, over all devices
    c.epochs = 90.0  # passes over the training split (ignored where steps is set)
    c.steps = 0  # length of the run in steps; 0: from epochs
    c.dtype = "float32"  # of activations: float32 | bfloat16; parameters stay float32
    c.init_from = ""  # weight file to start from (.safetensors, .npz, .pth); empty: random weights
    c.init_new_head = False  # leave that file's last layer out, for other classes than the file's

    c.data = ConfigDict()
    c.data.name = "imagenet2012"  # photos | imagenet2012 | imagenette | a name given to bjax.data.prepare
    c.data.data_dir = ""  # where datasets are; empty: TFDS's own (TFDS_DATA_DIR or ~/tensorflow_datasets)
    c.data.train = "train"  # training split; paper 1 uses train[:20%]
    c.data.image_size = 224  # side of what the model sees, pixels
    c.data.crop = "resized"  # training crop: resized (random area and shape, rescaled) | random (same scale)
    c.data.scale = (0.08, 1.0)  # resized crop: share of the image's area
    c.data.flip = True  # mirror half of the training images
    c.data.resize = 256  # evaluation: shorter side before the centre crop; 0: no rescaling
    c.data.interpolation = "bilinear"  # evaluation: of that rescaling: bilinear | bicubic
    c.data.threads = 16  # decoding threads per process; each makes a whole batch at a time
    c.data.prefetch = 16  # batches decoded ahead and held in memory; fewer than threads leaves threads idle
    c.data.on_corrupt = "raise"  # an image that cannot be decoded: raise | skip (left out, counted, reported)

    c.normalize = ConfigDict()
    c.normalize.mean = (0.485, 0.456, 0.406)  # per RGB channel on the 0..1 scale
    c.normalize.std = (0.229, 0.224, 0.225)

    c.model = ConfigDict()
    c.model.name = "vit"  # resnet50 | vgg19 | googlenet | densenet121 | vit | …
    c.model.options = ConfigDict()  # of that model's constructor, such as variant="S/16"

    c.blur = blur()  # of the training images
    c.mask = mask()  # of the training images

    c.loss = ConfigDict()
    c.loss.label_smoothing = 0.0  # share of the probability spread over all classes
    c.loss.mixup = 0.0  # Beta parameter of mixup, one draw per step; 0: off
    c.loss.cutmix = 0.0  # Beta parameter of cutmix; where both are on each step takes one of them
    c.loss.aux = 0.3  # weight of each auxiliary head (GoogLeNet)
    c.loss.parameters = (
        0.0  # blur_type: weight of estimating the blur's strength and angle as well; 0: not estimated
    )

    c.optim = ConfigDict()
    c.optim.name = "adamw"  # adamw | sgd (Nesterov off, momentum below)
    c.optim.lr = 1e-3  # peak learning rate, for batch_size as given
    c.optim.momentum = 0.9  # sgd
    c.optim.b1 = 0.9  # adamw
    c.optim.b2 = 0.999  # adamw
    c.optim.weight_decay = 0.1  # adamw: decoupled, times the learning rate; sgd: added to the gradient
    c.optim.decay = "kernels"  # what decays: kernels (not biases, norms, embeddings) | all
    c.optim.schedule = "cosine"  # cosine | step (× 0.1 every third of the run) | constant
    c.optim.warmup = 0  # steps of linear warm-up
    c.optim.clip = 0.0  # largest global gradient norm; 0: off
    c.optim.accumulate = 1  # parts in which each batch is computed, gradients averaged
    c.optim.ema = 0.0  # decay of the averaged weights and statistics, which evaluation then uses; 0: off

    c.eval = ConfigDict()  # {name: condition(...)}, the rows of results.json
    c.eval_only = ""  # names of the conditions to evaluate, separated by commas; empty: all
    c.eval_batch_size = 512  # images per evaluation step, over all devices
    c.eval_every = 10_000  # steps between evaluations during training; 0: only at the end

    c.gallery = 0  # images of each of the first conditions kept as they were seen, in gallery.npz; 0: none
    c.speed_rounds = 0  # rounds in which every condition is timed at the end, for speed.json; 0: not at all
    c.mask_quality = ConfigDict()  # what masks find of blurred regions, for mask_quality.json
    c.mask_quality.masks = ConfigDict()  # {name: mask(...)}; none: not measured
    c.mask_quality.split = "validation"
    c.mask_quality.sigma = (1.0, 2.0, 4.0)  # of the blur inside the regions, pixels; one result for each

    c.bn_adapt_batches = 32  # of eval_batch_size, of training images: what bn_adapt takes statistics from

    c.log_every = 50  # steps between rows of metrics.jsonl
    c.checkpoint_every = 1000  # steps between checkpoints; one is always written at the end
    c.checkpoint_keep = 2  # checkpoints kept

    c.mesh = ConfigDict()
    c.mesh.data = -1  # devices the batch is split over; -1: all that fsdp leaves
    c.mesh.fsdp = 1  # devices that parameters and optimiser state (and the batch) are split over
    c.mesh.rules = (
        (".*", "fsdp"),
    )  # (pattern of a parameter's path, fsdp | replicate); the first match counts
    return c


def use_source(c, arg):
    """Points `c` at ImageNet, imagenette or the embedded photographs, with the blur and the share of images of `arg`.

    Sets the conditions of paper 1's tables: sharp, blurred, and blurred with patches removed: on both sides of its
    threshold, because it says "above 100" although a low variance means blurry, each beside a random choice of as many.
    Returns the name of the split they are evaluated on.
    """
    c.data.name = {"demo": "photos"}.get(arg.source, arg.source)
    if arg.fraction != 100:
        c.data.train = f"train[:{arg.fraction}%]"
    c.blur = blur(TRAIN_BLURS[arg.train])
    split = arg.eval_split or {"demo": "test"}.get(arg.source, "validation")
    c.eval.sharp = condition(split)
    c.eval.blurred = condition(split, GAUSSIAN())
    for drop in ("below", "above"):
        for selector in ("laplacian", "random"):
            masked = mask("zero_pixels", selector=selector, drop=drop, threshold=100.0)
            c.eval[f"blurred_drop_{drop}{CONTROL[selector]}"] = condition(split, GAUSSIAN(), masked)
    if arg.get("curves"):
        c.eval.update(curves(split))
    return split


def curves(split):
    """Accuracy against blur: Gaussians of fixed σ, whose σ = 0 is `sharp`, and ImageNet-C's blurs at all severities."""
    conditions = ConfigDict()
    for sigma in (0.5, 1.0, 1.5, 2.0, 3.0, 4.0):
        name = f"sigma_{sigma:g}".replace(".", "p")
        conditions[name] = condition(split, GAUSSIAN(sigma=(sigma, sigma), kernel_size=33))
    for name in ("gaussian_blur", "defocus_blur", "glass_blur", "motion_blur", "zoom_blur"):
        for severity in range(1, 6):
            conditions[f"{name}_{severity}"] = condition(split)
            conditions[f"{name}_{severity}"].update({"corruption": name, "severity": severity})
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
    c.data.interpolation = "bilinear"  # evaluation: of that rescaling: bilinear | bicubic
    c.data.threads = 2
    c.dtype = "float32"
    c.batch_size, c.eval_batch_size = 64, 128
    c.steps = 300
    c.log_every = 25
    c.checkpoint_every = 50
    c.eval_every = 0
    c.gallery = 6

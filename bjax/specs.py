"""What can be asked for: every option of a run once, with its default, bounds or choices, meaning and effect.

The groups are read through `bjax.options`. `BlurSpec` and `MaskSpec` check themselves, since they are made in Python
too: a ValueError that names the field.
"""

import dataclasses

# What can be asked for is found here, whichever file says it.
from bjax.blur_spec import KINDS, PARAMETERS, WHERE, BlurSpec, check_cut, check_kernel_size, gaussian_size  # noqa: F401
from bjax.options import group, number, one_of, plain, wrong

MEASURES = ("laplacian", "tenengrad", "modified_laplacian", "high_frequency", "sigma")  # of bjax.sharpness
LARGEST_SIGMA = 8.0  # px: what `sharpness.sigma` tells at most
SIGMA_PATCH = 16  # px: the least patches that it takes; fewer hold too few gradients to tell how they fall
# The sharpest patch of each 2×2 cell of patches first, then the second of each: spread over the image as well as sharp.
STRATIFIED = "stratified"
# Selectors that keep as many patches and look at less, at the other end, or at what no image shows (oracle).
CONTROLS = ("random", "inverse", "centre", "oracle")
SIMILARITY_WINDOW = 11  # px a side, of the structural similarity
# Beyond this no photograph needs to go, and a mistyped digit would take hours and all memory to be noticed.
LARGEST_SIDE = 16_384  # pixels
CORRUPTIONS = ("gaussian_blur", "defocus_blur", "motion_blur", "zoom_blur", "glass_blur")  # of ImageNet-C

# Of --mode=adapt, see `bjax.evaluate.adapt`: nothing, BatchNorm's statistics of training images blurred alike, those of
# each batch of the stream, entropy minimised (TENT); and the streams.
METHODS = ("none", "bn_train", "bn_stream", "tent")
STREAMS = ("independent", "single", "mixed", "imbalanced")


# --- groups that are made in Python too


@dataclasses.dataclass(frozen=True)
class MaskSpec:
    """What is left out of an image, and what leaving out means.

    mode: none; zero_pixels (patches painted with `fill`, every model); zero_tokens (embeddings zeroed); attend (all
      tokens computed, dropped ones masked as keys: no influence, no saving); gather (a static number of tokens
      enters the encoder: compute falls); bucket (inference under a threshold: images are grouped by how many they
      keep, and compute falls with each image's own number, see `bjax.evaluate.bucket`).
    selector: a focus measure of `sharpness.MEASURES` (sigma, the blur in pixels: the least blurred are the sharpest,
      patches that it cannot tell rank after all others, at both ends); or stratified, the Laplacian variance within
      each 2×2 cell of patches, the best of every cell before the second of any: sharpness traded for coverage; or a
      control that keeps as many patches of each image as the Laplacian variance would: random, inverse (the other end
      of the scores), centre (nearest the centre first), oracle (the least blurred, as the drawn blur's map knows).
    drop: below keeps the highest scores (of oracle and sigma: the least blurred), above the lowest (the most blurred).
    threshold: a score on the 0..255 scale, of sigma at most 8 pixels; patches on the dropped side of it go. Those that
      sigma cannot tell count as exactly at it: they stay, the last within a keep_rate.
    keep_rate: at most round(keep_rate · patches) stay, and at least one may; with a threshold, a budget.
    scope: image | patch, see `sharpness.laplacian_variance`.
    fill: of zero_pixels: black (zero before normalisation) | mean (the dataset's mean colour: zero after it). A zero
      token is a mode of its own, zero_tokens.

    Raises ValueError naming the field for a value outside these.
    """

    mode: str = one_of("none", "zero_pixels", "zero_tokens", "attend", "gather", "bucket")
    selector: str = one_of(*MEASURES, STRATIFIED, *CONTROLS)
    drop: str = one_of("below", "above")
    threshold: float | None = plain(None)  # paper 1 uses 100
    keep_rate: float | None = plain(None)
    scope: str = one_of("image", "patch")
    fill: str = one_of("black", "mean")

    @property
    def measure(self) -> str:
        """The focus measure of its scores and its threshold, a key of `sharpness.MEASURES`."""
        return self.selector if self.selector in MEASURES else "laplacian"

    @property
    def needs_truth(self) -> bool:
        """Whether it can be had only where it is known how blurred each patch is."""
        return self.mode != "none" and self.selector == "oracle"

    def __post_init__(self):
        for f in dataclasses.fields(self):
            value = getattr(self, f.name)
            if "choices" in f.metadata and (expected := wrong(value, f.metadata)):
                raise ValueError(f"{f.name}={value}: {expected}")
        if self.keep_rate is not None and not 0 < self.keep_rate <= 1:
            raise ValueError(f"keep_rate={self.keep_rate}: expected a share of the patches in (0, 1]")
        if self.threshold is not None and not self.threshold >= 0:
            raise ValueError(f"threshold={self.threshold}: expected a score of at least 0")
        if self.selector == "sigma" and self.threshold is not None and self.threshold > LARGEST_SIGMA:
            why = f"selector=sigma measures blur in pixels, at most {LARGEST_SIGMA:g}"
            raise ValueError(f"threshold={self.threshold:g}: {why}; use 1.5, say")
        if self.mode != "none" and self.threshold is None and self.keep_rate is None:
            raise ValueError(f"mode={self.mode}: needs a threshold, a keep_rate, or both")
        if self.mode == "gather" and self.keep_rate is None:
            raise ValueError("mode=gather: needs a keep_rate, the static number of tokens that are computed")
        if self.mode == "bucket" and self.threshold is None:
            why = "at a keep_rate alone all images keep as many"
            raise ValueError(f"mode=bucket: needs a threshold; {why}: use gather")


# --- a run


@dataclasses.dataclass(frozen=True)
class Data:
    # photos | imagenet2012 | imagenette | as bjax.data.prepare has it
    name: str = plain("imagenet2012", affects="weights")
    # where datasets are; empty: TFDS_DATA_DIR or ~/tensorflow_datasets
    data_dir: str = plain("", affects="nothing")
    train: str = plain("train")  # training split; paper 1 uses train[:20%]
    # side of what the model sees, pixels
    image_size: int = number(224, low=1, high=LARGEST_SIDE, affects="weights")
    # of training: resized (random area and shape, rescaled) | random (same scale)
    crop: str = one_of("resized", "random")
    scale: tuple[float, float] = plain((0.08, 1.0))  # resized crop: share of the image's area
    flip: bool = plain(True)  # mirror half of the training images
    # shorter side before the centre crop; 0: no rescaling
    resize: int = number(256, low=0, high=LARGEST_SIDE, affects="evaluation")
    interpolation: str = one_of("bilinear", "bicubic", added=True, affects="evaluation")  # of that rescaling
    # that decode, per process; each makes a whole batch at a time
    threads: int = number(16, low=1, high=1024, affects="nothing")
    # batches ahead, in memory; fewer than threads leaves some idle
    prefetch: int = number(16, low=1, high=1024, affects="nothing")
    # of weights by name: logits of ImageNet's classes that the dataset lacks do not compete in evaluation
    only_known_classes: bool = plain(False, added=True, affects="evaluation")
    on_corrupt: str = one_of("raise", "skip", affects="evaluation")  # an image that cannot be decoded; skip: counted


@dataclasses.dataclass(frozen=True)
class Normalize:
    mean: tuple[float, float, float] = plain((0.485, 0.456, 0.406))  # per RGB channel on the 0..1 scale
    std: tuple[float, float, float] = number((0.229, 0.224, 0.225), above=0)


@dataclasses.dataclass(frozen=True)
class Model:
    name: str = plain("vit")  # resnet50 | vgg19 | googlenet | densenet121 | vit | …, see bjax.models
    options: dict = plain({})  # of that model's constructor, such as variant="S/16"


@dataclasses.dataclass(frozen=True)
class Norm:
    # of BatchNorm in training: consecutive images per statistic, of each part of optim.accumulate; 0: all of them
    group: int = number(0, low=0, added=True)


@dataclasses.dataclass(frozen=True)
class AugMix:
    """Of training images, before their blur: chains of random operations mixed with the image, see `step.augmix`."""

    width: int = number(0, low=0, added=True)  # chains; 3 in the paper; 0: off
    depth: int = number(-1, low=-1, added=True)  # operations of a chain; -1 or 0: 1 to 3, drawn for each
    # of the operations; the paper's 1 on ImageNet, 3 on CIFAR
    severity: int = number(1, low=1, high=10, added=True)
    alpha: float = number(1.0, above=0, added=True)  # of the Dirichlet and Beta distributions of the shares


@dataclasses.dataclass(frozen=True)
class Loss:
    label_smoothing: float = number(0.0, low=0, high=1)  # share of the probability spread over all classes
    mixup: float = number(0.0, low=0)  # Beta parameter of mixup, one draw per step; 0: off
    # Beta parameter of cutmix; where both are on each step takes one of them
    cutmix: float = number(0.0, low=0)
    aux: float = number(0.3, low=0)  # weight of each auxiliary head (GoogLeNet)
    # blur_type: weight of estimating the blur's strength and angle; 0: not
    parameters: float = number(0.0, low=0, added=True)
    # weight of the Jensen–Shannon divergence between an image and two mixes of it (augmix); 12 in the paper; 0: off
    jsd: float = number(0.0, low=0, added=True)


@dataclasses.dataclass(frozen=True)
class Optim:
    name: str = one_of("adamw", "sgd")  # sgd: Nesterov off, momentum below
    lr: float = number(1e-3, low=0)  # peak learning rate, for batch_size as given
    momentum: float = number(0.9, low=0, high=1)  # sgd
    b1: float = number(0.9, low=0, below=1)  # adamw
    b2: float = number(0.999, low=0, below=1)  # adamw
    # adamw: decoupled, times the learning rate; sgd: added to the gradient
    weight_decay: float = number(0.1, low=0)
    decay: str = one_of("kernels", "all")  # what decays: kernels (not biases, norms, embeddings) | all
    schedule: str = one_of("cosine", "step", "constant")  # step: × 0.1 every third of the run
    warmup: int = number(0, low=0)  # steps of linear warm-up
    clip: float = number(0.0, low=0)  # largest global gradient norm; 0: off
    accumulate: int = number(1, low=1)  # parts in which each batch is computed, gradients averaged
    # decay of averaged weights and statistics, for evaluation; 0: off
    ema: float = number(0.0, low=0, below=1)


@dataclasses.dataclass(frozen=True)
class MaskQuality:
    masks: dict = plain({}, added=True)  # {name: mask}; none: not measured
    split: str = plain("validation", added=True)
    sigma: tuple[float, ...] = plain((1.0, 2.0, 4.0), added=True)  # of the blur inside the regions, pixels


@dataclasses.dataclass(frozen=True)
class Adapt:
    """What --mode=adapt measures; lists are by commas, empty: all (methods: all that the model has norms for)."""

    # of eval, what is adapted to; empty: the first that is blurred
    condition: str = plain("", added=True)
    methods: str = plain("", added=True)  # of METHODS; none is always measured, beside which the others stand
    streams: str = plain("", added=True)  # of STREAMS
    batch_size: int = number(64, low=1, added=True)  # images at once; of the stream `single` it is 1
    # of tent at batches of 64, as published for ImageNet; of others in proportion to their size
    lr: float = number(0.00025, low=0, added=True)
    # bn_stream: images that the running statistics count for beside a batch's own; 0: not
    prior: float = number(0.0, low=0, added=True)
    images: int = number(2000, low=0, added=True)  # of the split at most, drawn once for all streams; 0: all


@dataclasses.dataclass(frozen=True)
class MeshSpec:
    data: int = plain(-1)  # devices the batch is split over; -1: all that fsdp leaves
    fsdp: int = number(1, low=1)  # devices that parameters and optimiser state (and the batch) are split over
    # (pattern of a parameter's path, fsdp | replicate); the first match counts
    rules: tuple = plain(((".*", "fsdp"),))


@dataclasses.dataclass(frozen=True)
class Condition:
    """One row of the results."""

    split: str = plain("")  # TFDS split, sub-splits such as validation[:10%] included
    blur: BlurSpec = group(BlurSpec)
    mask: MaskSpec = group(MaskSpec)
    # of the ViT, beside model.options: evit_keep, evit_layers, tome_r, highpass_keep
    options: dict = plain({}, added=True)
    # ImageNet-C's blur of the crop instead of `blur`, one of CORRUPTIONS; empty: none
    corruption: str = plain("", added=True)
    severity: int = number(1, low=1, high=5, added=True)  # of that corruption
    # with BatchNorm statistics of training images blurred and masked like these
    bn_adapt: bool = plain(False, added=True)


@dataclasses.dataclass(frozen=True)
class Run:
    """Every option of a run. Units: images, steps, pixels; sizes are those of all devices together."""

    # of weights, order of examples, crops and the blur drawn in training
    seed: int = number(0, low=0, high=2**32 - 1)
    # the dataset's label | the kind of blur that was drawn
    task: str = one_of("object", "blur_type", affects="weights")
    # small: what the command line does not give is chosen from the data set and the device, see bjax.small
    recipe: str = one_of("given", "small", added=True, affects="nothing")
    batch_size: int = number(1024, low=1)  # images per step, over all devices
    epochs: float = number(90.0, above=0)  # passes over the training split (ignored where steps is set)
    steps: int = number(0, low=0)  # length of the run in steps; 0: from epochs
    dtype: str = one_of("float32", "bfloat16")  # of activations; parameters stay float32
    # the same bits again on GPUs of the same kind and number, by the same versions; slower
    deterministic: bool = plain(False, added=True, affects="nothing")
    # a step whose loss or gradient is not finite; skip: weights, statistics and optimiser stay, counted as `skipped`
    nonfinite: str = one_of("stop", "skip", added=True, affects="nothing")
    # such steps in a row that are skipped; the next one stops the run
    nonfinite_limit: int = number(10, low=1, added=True, affects="nothing")
    # weights to start from, a file or a name (python -m bjax.weights lists them); empty: random ones
    init_from: str = plain("", affects="weights")
    # leave its last layer out, for other classes than the file's
    init_new_head: bool = plain(False, added=True, affects="weights")
    data: Data = group(Data)
    normalize: Normalize = group(Normalize, affects="weights")
    model: Model = group(Model, affects="weights")
    norm: Norm = group(Norm)
    augmix: AugMix = group(AugMix)
    blur: BlurSpec = group(BlurSpec)  # of the training images
    mask: MaskSpec = group(MaskSpec)  # of the training images
    loss: Loss = group(Loss)
    optim: Optim = group(Optim)
    eval: dict = plain({}, affects="evaluation")  # {name: Condition}, the rows of results.json
    # names of the conditions to evaluate, by commas; empty: all
    eval_only: str = plain("", added=True, affects="nothing")
    eval_batch_size: int = number(512, low=1, affects="nothing")  # images per evaluation step, over all devices
    eval_every: int = number(10_000, low=0, affects="nothing")  # steps between evaluations; 0: only at the end
    # images of each of the first conditions kept in gallery.npz
    gallery: int = number(0, low=0, added=True, affects="nothing")
    # rounds of timing every condition for speed.json; 0: none
    speed_rounds: int = number(0, low=0, added=True, affects="nothing")
    # images of each condition without a mask whose structural similarity to the unblurred is measured; 0: none
    similarity_images: int = number(0, low=0, added=True, affects="nothing")
    mask_quality: MaskQuality = group(MaskQuality, affects="nothing")  # what masks find of blurred regions
    # of eval_batch_size, of training images
    bn_adapt_batches: int = number(32, low=1, added=True, affects="evaluation")
    adapt: Adapt = group(Adapt, affects="nothing")  # of --mode=adapt
    # print every module's parameters before training, instead of their sum alone
    list_parameters: bool = plain(False, added=True, affects="nothing")
    log_every: int = number(50, low=1, affects="nothing")  # steps between rows of metrics.jsonl
    # steps between them; one is written before every evaluation, so at the end, too
    checkpoint_every: int = number(1000, low=1, affects="nothing")
    checkpoint_keep: int = number(2, low=1, affects="nothing")  # newest checkpoints kept
    # beside them, for ever, those of steps that this divides; 0: none
    checkpoint_keep_every: int = number(0, low=0, added=True, affects="nothing")
    # beside them, this many of the best by checkpoint_best, chosen after each evaluation (eval_every)
    checkpoint_keep_best: int = number(0, low=0, added=True, affects="nothing")
    # CONDITION/METRIC, such as sharp/top1; METRIC: top1, top5 or loss (lower is better); empty: top1 of the first
    checkpoint_best: str = plain("", added=True, affects="nothing")
    mesh: MeshSpec = group(MeshSpec, affects="nothing")

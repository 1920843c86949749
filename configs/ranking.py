"""The blur ranking: weights as they are, under σ, ImageNet-C's blurs and blur of parts, beside what others published.

    python -m launch.sweep --config=configs/ranking.py --jobs=1           one of each architecture, on ImageNet
    python -m launch.sweep --config=configs/ranking.py:weights=torchvision:resnet50+timm:resnet50.am_in1k
    python -m launch.sweep --config=configs/ranking.py:weights=DIR        every file of weights in a folder
    python -m launch.sweep --config=configs/ranking.py:imagenette         ten classes, downloaded on first use
    python -m launch.sweep --config=configs/ranking.py:demo --jobs=1      the embedded photographs, CPU
    python -m bjax.main --config=configs/ranking.py:weights=torchvision:resnet50 --mode=eval     one of them alone
    python -m bjax.report runs/sweep_ranking --out=report                 its section "Blur ranking", and the CSV

ARGS: demo | imagenette, weights=NAMES (of python -m bjax.weights, and files, joined by +; or a folder of files),
eval_split=validation, train=sharp|blurred|mix|partial (of the demo without weights).

A file is taken for what its name begins with, before a dash: resnet50-0676ba61.pth, resnet50-mine.npz and
vit_b_16-blurred.safetensors are of these models. Everything is evaluated on the benchmark's images, whatever it was
published with: the shorter side 256 by bilinear rescaling, the middle 224 pixels; a position embedding for another
number of patches is resized. Colours are normalised as the weights want them.

Blur mCE is told on ImageNet alone, whose classes and images AlexNet's errors and the published rows are of; elsewhere
the mean accuracy ranks. No published weights know the 14 classes of the demo's photographs: without `weights` it trains
a small ViT on each of the four training blurs in their place, with them it wants files of 14 classes.
"""

from bjax import published
from bjax.configs import vit
from bjax.configs.common import (
    GAUSSIAN,
    PARTIAL,
    SIMILARITY_IMAGES,
    TRAIN_BLURS,
    ConfigDict,
    condition,
    curves,
    default,
    demo,
    parse_arg,
    use_source,
)
from bjax.specs import gaussian_size

# One of each architecture that has weights for images of 224 px; of ResNet50 also torchvision's second, and AugMix's.
WEIGHTS = (
    *(f"torchvision:resnet{depth}" for depth in (18, 34, 50)),
    "torchvision:resnet50-v2",
    "timm:resnet50.am_in1k",
    *(f"torchvision:{name}" for name in ("resnet101", "resnet152", "vgg19", "vgg19_bn", "googlenet")),
    *(f"torchvision:densenet{depth}" for depth in (121, 169, 201)),
    "timm:vit_small_patch16_224.augreg_in1k",
    "torchvision:vit_b_16",
    "torchvision:vit_b_32",
    "torchvision:vit_l_16",
)
REGIONS = (2.0, 4.0, 8.0)  # σ inside of one to three rectangles, half of the image on average; pixels


def get_config(arg=""):
    arg = parsed(arg)
    if trains(arg):
        c = vit.recipe(arg)
        c.steps = 150
    else:
        c = given(arg)
    split = c.eval.sharp.split
    c.similarity_images = SIMILARITY_IMAGES
    c.eval = ConfigDict({"sharp": condition(split), **curves(split), **regions(split)})
    return c


def sweep(arg=""):
    arg = parsed(arg)
    words = [] if arg.source == "imagenet2012" else [arg.source]
    words += [f"eval_split={arg.eval_split}"] if arg.eval_split else []
    if trains(arg):
        each, mode = [f"train={train}" for train in (*TRAIN_BLURS, PARTIAL)], "train"
    else:
        each, mode = [f"weights={name}" for name in published.several(arg.weights or "+".join(WEIGHTS))], "eval"
    for word in each:
        yield {"config": f"configs/ranking.py:{','.join([*words, word])}", "mode": mode}


def parsed(arg):
    arg = parse_arg(arg, weights="", train="sharp", eval_split="")
    arg.fraction, arg.variant = 100, ""
    if arg.source == "small":
        raise ValueError("small: chooses how to train; name the data set instead, --config.data.name=NAME")
    if arg.train != "sharp" and not trains(arg):
        raise ValueError(f"train={arg.train}: weights are evaluated as they are, only the demo without weights trains")
    return arg


def trains(arg):
    return arg.source == "demo" and not arg.weights


def given(arg):
    """Of published weights, or of a file, on the benchmark's images."""
    ((name, weights), *more) = published.several(arg.weights or WEIGHTS[0]).items()
    if more:
        raise ValueError(f"weights={arg.weights}: {1 + len(more)} of them, a run has one; launch.sweep runs them all")
    c = default()
    c.init_from, c.model.name = name, weights.model
    if weights.variant:
        c.model.options.variant = weights.variant
    c.normalize.mean, c.normalize.std = weights.mean, weights.std
    c.eval_batch_size = 256
    use_source(c, arg)
    if arg.source == "demo":
        demo(c)
    return c


def regions(split):
    """{name: condition}: one to three rectangles of each image blurred by a Gaussian of fixed σ."""
    return {
        f"regions_{sigma:g}": condition(
            split, GAUSSIAN(where="regions", sigma=(sigma, sigma), kernel_size=gaussian_size(sigma))
        )
        for sigma in REGIONS
    }

"""The words that a report has for what a config says: blurs, masks, models; and what of a condition has an effect."""

import re

from bjax.specs import CONTROLS, KINDS

# Paper 1's, of kind gaussian
PAPER_BLUR = {"sigma": [1.0, 2.0], "kernel_size": 19, "noise": [0.0, 0.0], "where": "whole"}
MEASURES = {  # what the scores of patches are
    "laplacian": "variance of the Laplacian",
    "tenengrad": "mean squared Sobel gradient (tenengrad)",
    "modified_laplacian": "sum-modified Laplacian",
    "high_frequency": "energy of high frequencies",
    "sigma": "estimated blur, σ in pixels",
}
# What a config leaves out has these values.
BLUR_DEFAULTS = {"kernel_size": 19, "psf_size": 21, "noise": [0.0, 0.0], "where": "whole", "impl": "auto"}
MASK_DEFAULTS = {"scope": "image", "fill": "black"}
# What decides the blur of each kind.
BLUR_FIELDS = {
    "sharp": (),
    "gaussian": ("sigma", "kernel_size", "impl"),
    "motion": ("length", "angle", "psf_size"),
    "defocus": ("radius", "psf_size"),
}


def kinds_of(blur: dict) -> dict[str, float]:
    """The kinds of blur that occur, in the order of sharp, gaussian, motion, defocus."""
    return {k: blur["kinds"][k] for k in KINDS if blur["kinds"].get(k)}


def is_noisy(blur: dict) -> bool:
    """Whether noise is added to the images, sharp ones too."""
    return any(blur.get("noise") or ())


def is_papers(blur: dict) -> bool:
    """Whether its Gaussian is paper 1's: σ uniform in 1 to 2 pixels, 19 taps, no noise, all over the image."""
    blur = BLUR_DEFAULTS | blur
    return all(blur[key] == value for key, value in PAPER_BLUR.items())


def where_of(blur: dict) -> str:
    """Which part of an image is blurred, see `bjax.specs.BlurSpec`; whole where nothing is."""
    return (BLUR_DEFAULTS | blur)["where"] if list(kinds_of(blur)) != ["sharp"] else "whole"


def blur_text(blur: dict) -> str:
    kinds, where = kinds_of(blur), where_of(blur)
    text = f"σ = {value_text(blur['sigma'])}" if list(kinds) == ["gaussian"] else " + ".join(kinds)
    text += "" if where == "whole" else f", {where}"
    text += ", by dm-pix" if "gaussian" in kinds and blur.get("impl") == "pix" else ""
    return text + (f", noise {value_text(blur['noise'])}" if is_noisy(blur) else "")


def mask_text(mask: dict) -> str:
    which, threshold = mask["selector"], mask["threshold"]
    end = "" if which in CONTROLS else {"below": "sharpest ", "above": "blurriest "}[mask["drop"]]
    side, unit = mask["drop"], ""
    if which == "sigma":
        side, unit = {"below": "blurrier than", "above": "sharper than"}[mask["drop"]], " px"
    rule = [f"{side} {threshold:g}{unit} dropped"] if threshold is not None else []
    rule += [f"{end}{100 * mask['keep_rate']:g} % kept"] if mask["keep_rate"] is not None else []
    subject = "" if which == "laplacian" else f"{which}, "
    subject += "as many as " if threshold is not None and which not in MEASURES else ""
    return subject + ", ".join(rule) + ("" if mask["mode"] == "zero_pixels" else f" ({mask['mode']})")


NAMES = {"resnet": "ResNet", "vgg": "VGG", "googlenet": "GoogLeNet", "densenet": "DenseNet-", "vit": "ViT"}


def model_text(model: dict) -> str:
    family, size = re.fullmatch(r"([a-z]+)(.*)", model["name"]).groups()
    options = dict(model.get("options", {}))
    text = NAMES.get(family, family) + size.replace("_bn", " (BatchNorm)")
    if "variant" in options:
        text += f"-{options.pop('variant')}"
    return text + (f" ({', '.join(f'{k} {v}' for k, v in options.items())})" if options else "")


def effective(condition: dict) -> dict:
    """{dotted key: value} of what in a condition has an effect on its numbers; bn_adapt, told anyhow, is not in it."""
    effect = {"split": condition["split"]}
    if condition.get("corruption"):
        effect |= {"corruption": condition["corruption"], "severity": condition.get("severity", 1)}
    else:
        blur = BLUR_DEFAULTS | condition["blur"]
        kinds = kinds_of(blur)
        fields = ("noise", *(field for kind in kinds for field in BLUR_FIELDS[kind]))
        drawn = {"kinds": kinds, "where": where_of(blur), **{field: blur.get(field) for field in fields}}
        effect |= leaves({"blur": drawn})
    mask = MASK_DEFAULTS | condition["mask"]
    unused = set() if mask["mode"] == "zero_pixels" else {"fill"}
    if mask["selector"] in ("random", "centre", "oracle") and mask["threshold"] is None:  # no score decides
        unused |= {"scope"} if mask["selector"] == "oracle" else {"drop", "scope"}
    if mask["mode"] == "none":
        unused = mask.keys() - {"mode"}
    effect |= leaves({"mask": {field: value for field, value in mask.items() if field not in unused}})
    return effect | leaves({"options": condition.get("options", {})})


def value_text(value) -> str:
    """A field in words: a range of blur as such, of one number as that number."""
    if isinstance(value, list) and len(value) == 2:
        return "–".join(dict.fromkeys(f"{x:g}" for x in value))
    return str(value)


def leaves(node: dict, prefix: str = "") -> dict:
    """{dotted key: value} of a nested dictionary."""
    flat = {}
    for key, value in node.items():
        flat |= leaves(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat

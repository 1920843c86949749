"""Options that cannot be asked for together: told from a config alone, before data or a device is touched."""

from ml_collections import ConfigDict

from bjax.errors import UserError, nearest
from bjax.specs import METHODS, SIGMA_PATCH, SIMILARITY_WINDOW, STREAMS


def check(config: ConfigDict) -> None:
    """Raises UserError naming the first option of `config` that does not go with another."""
    _check_sizes(config)
    _check_sigma(config)
    _check_adapt(config)
    if _keeps_by_truth(config):
        _check_oracle("", config)
        if config.loss.mixup or config.loss.cutmix:
            way = "set config.loss.mixup and config.loss.cutmix to 0"
            raise UserError(f"config.mask.selector=oracle: of mixed images it does not know what is blurred; {way}")
    _check_jsd(config)
    for name, condition in config.eval.items():
        if _keeps_by_truth(condition):
            _check_oracle(f"eval.{name}.", condition)


def _check_sizes(config: ConfigDict) -> None:
    if (batch := config.batch_size) % (parts := config.optim.accumulate):
        raise UserError(f"config.batch_size={batch}: not divisible by config.optim.accumulate={parts}")
    if (size := config.norm.group) and (images := batch // parts) % size:
        fits = max(n for n in range(1, size) if images % n == 0)
        raise UserError(f"config.norm.group={size}: does not divide {images} images at once; use {fits}, or 0 for all")
    scale, size, resize = config.data.scale, config.data.image_size, config.data.resize
    if not 0 < scale[0] <= scale[1] <= 1:
        raise UserError(f"config.data.scale={scale}: expected 0 < low <= high <= 1, such as 0.08,1")
    if 0 < resize < size:
        way = "use 0 for no rescaling, or at least image_size"
        raise UserError(f"config.data.resize={resize}: smaller than config.data.image_size={size}; {way}")
    if (images := config.similarity_images) and size < SIMILARITY_WINDOW:
        why = f"its window has {SIMILARITY_WINDOW} px, config.data.image_size={size} is less"
        raise UserError(f"config.similarity_images={images}: {why}; raise the size, or set similarity_images to 0")


def _check_sigma(config: ConfigDict) -> None:
    """Its patches are the model's: of a ViT its variant's; without patches of their own models get 16 px."""
    variant = config.model.options.get("variant", "")
    patch = str(variant).partition("/")[2]
    if config.model.name != "vit" or not patch.isdecimal() or int(patch) >= SIGMA_PATCH:
        return
    masks = {"mask": config.mask} | {f"eval.{name}.mask": condition.mask for name, condition in config.eval.items()}
    masks |= {f"mask_quality.masks.{name}": mask for name, mask in config.mask_quality.masks.items()}
    for key, mask in masks.items():
        if mask.mode != "none" and mask.selector == "sigma":
            why = f"needs patches of at least {SIGMA_PATCH} px, config.model.options.variant={variant} has {patch}"
            raise UserError(f"config.{key}.selector=sigma: {why}; choose another selector, or S/{SIGMA_PATCH}, say")


def _check_jsd(config: ConfigDict) -> None:
    loss = config.loss
    if loss.jsd and not config.augmix.width:
        why = "compares an image with mixes of it, of which there are none"
        raise UserError(f"config.loss.jsd={loss.jsd:g}: {why}; set config.augmix.width=3, or train=augmix")
    if loss.jsd and (loss.mixup or loss.cutmix):
        why = "compares an image with mixes of it alone, not of others"
        raise UserError(f"config.loss.jsd={loss.jsd:g}: {why}; set config.loss.mixup and config.loss.cutmix to 0")


def _check_adapt(config: ConfigDict) -> None:
    for key, known in {"methods": METHODS, "streams": STREAMS}.items():
        given = config.adapt[key]
        for name in filter(None, (name.strip() for name in given.split(","))):
            if name not in known:
                expected = f"expected some of {', '.join(known)}"
                raise UserError(f"config.adapt.{key}={given}: no {name}, {expected}{nearest(name, known)}")
    if (name := config.adapt.condition) and name not in config.eval:
        raise UserError(
            f"config.adapt.condition={name}: expected one of {', '.join(config.eval)}{nearest(name, config.eval)}"
        )


def _keeps_by_truth(node: ConfigDict) -> bool:
    return node.mask.mode != "none" and node.mask.selector == "oracle"


def _check_oracle(key: str, node: ConfigDict) -> None:
    """node: the run or a condition, under `key`, whose mask keeps what a map of the blur says."""
    if node.get("corruption"):
        why = f"corruption={node.corruption} has no map of what it blurs; use blur in its place, with"
    elif not any(share for kind, share in node.blur.kinds.items() if kind != "sharp"):
        why = "nothing is blurred; set a blur and"
    elif node.blur.where == "whole":
        why = "all patches are blurred alike; set"
    else:
        return
    parts = f"config.{key}blur.where to regions, ramp, centre or surround, or choose another selector"
    raise UserError(f"config.{key}mask.selector=oracle: {why} {parts}")

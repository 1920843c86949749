"""A ViT that leaves out patches by their Laplacian variance (paper 1, section 4.3 and table 5), with controls.

    python -m bjax.main --config=configs/vit_mask.py:demo                       the embedded photographs, CPU
    python -m bjax.main --config=configs/vit_mask.py:demo,grid=true             the same, with the grid of masks
    python -m bjax.report runs/vit_mask_demo_grid=true --out=report             its table and figures
    python -m bjax.main --config=configs/vit_mask.py:imagenette,variant=Ti/16   ten classes, downloaded on first use
    python -m bjax.main --config=configs/vit_mask.py                            ImageNet, ViT-S/16, 90 epochs

ARGS: demo | imagenette | small, variant=S/16 (demo: Ti/16), train=mix|sharp|blurred|partial|augmix|blurred+augmix,
fraction=100 (per cent of the images; paper 1: 20), keep=0.5 (share of the patches that each training image keeps,
chosen at random; 1 trains on all of them), grid=true (evaluate the grid below).

The recipe is that of `vit.py`. Training on a random half of the patches (PatchDropout, Liu et al. 2022) nearly halves
its cost and prepares the model for masks; `keep=1` is paper 1's. Beside paper 1's conditions the sharper half of the
patches is evaluated as fewer tokens. `--config.eval.blurred_drop_below.mask.mode=bucket` does so with paper 1's
threshold, under which every image keeps another number of patches.

The grid asks whether it matters which patches stay: selector × polarity × keep rate × blur σ, all at the same keep
rates, beside EViT, ToMe and highpass on the same weights; how fast each of them is; and, where only parts of an image
are blurred, whether the masks drop those parts.

Demo: 300 steps, about 2 minutes on 2 CPU cores, 76 % top-1 on sharp test crops (14 classes).
"""

from bjax.configs import vit
from bjax.configs.common import CONTROL, GAUSSIAN, ConfigDict, blur, condition, mask, parse_arg

KEEP = (0.75, 0.5, 0.25)
SIGMA = (0.0, 1.0, 2.0)  # 0: sharp
NO_POLARITY = ("random", "centre")
# selector, drop: which of the patches stay
CHOICES = (
    *((selector, drop) for selector in ("laplacian", "tenengrad") for drop in ("below", "above")),
    *((selector, "below") for selector in NO_POLARITY),
)
EVIT = (0.9, 0.7, 0.5)  # kept by each of three layers, as in its paper; highpass has the same
# Share of the patches merged, over all layers in equal steps; of 196 patches in 12 blocks: r = 4, 8, 12
TOME = (0.25, 0.5, 0.75)


def get_config(arg=""):
    arg = parse_arg(arg, variant="", train="mix", fraction=100, eval_split="", keep=0.5, grid=False)
    c = vit.recipe(arg)
    if arg.keep != 1:
        c.mask = mask("gather", selector="random", keep_rate=arg.keep)
    split = c.eval.sharp.split
    for selector in ("laplacian", "random"):
        half = mask("gather", selector=selector, keep_rate=0.5)
        c.eval[f"blurred_keep_half{CONTROL[selector]}"] = condition(split, GAUSSIAN(), half)
    if arg.grid:
        rivals = {f"{name}_{round(100 * k)}": {f"{name}_keep": k} for name in ("evit", "highpass") for k in EVIT}
        rivals |= {f"tome_r{r}": {"tome_r": r} for r in tome_rs(c.model.options, c.data.image_size)}
        c.eval = grid(split, rivals)
        c.speed_rounds = 5
        c.mask_quality.split = split
        c.mask_quality.masks = masks_alone()
    return c


def grid(split, rivals):
    """Every choice of patches at every keep rate under every blur, the whole image, and the rivals."""
    conditions = ConfigDict()
    for sigma in SIGMA:
        blurred = GAUSSIAN(sigma=(sigma, sigma)) if sigma else blur()
        at = f"sigma{sigma:g}"
        conditions[f"all_{at}"] = condition(split, blurred)
        for name, masked in masks("gather").items():
            conditions[f"{name}_{at}"] = condition(split, blurred, masked)
        for name, options in rivals.items():
            conditions[f"{name}_{at}"] = condition(split, blurred, **options)
    return conditions


def tome_rs(options, image_size):
    size, _, patch = options.variant.partition("/")
    depth = options.get("depth") or {"L": 24, "H": 32}.get(size, 12)
    patches = (image_size // (int(patch) if patch.isdecimal() else 16)) ** 2
    return [max(1, round(share * patches / depth)) for share in TOME]


def masks_alone():
    """The grid's masks, and paper 1's threshold, for where they meet images that are blurred in parts."""
    return ConfigDict({"laplacian_below_100": mask("attend", threshold=100.0), **masks("attend")})


def masks(mode):
    """{name: mask} of every choice of patches at every keep rate."""
    named = {}
    for selector, drop in CHOICES:
        name = selector if selector in NO_POLARITY else f"{selector}_{drop}"
        for keep in KEEP:
            named[f"{name}_{round(100 * keep)}"] = mask(mode, selector=selector, drop=drop, keep_rate=keep)
    return named


def sweep(arg=""):
    """Paper 1's threshold beside others, on both sides of it: trained and evaluated with the same zeroed patches."""
    del arg  # every source takes the same
    for drop in ("below", "above"):
        for threshold in (50.0, 100.0, 200.0):
            overrides = {"mask.mode": "zero_pixels", "mask.selector": "laplacian", "mask.keep_rate": None}
            overrides |= {"mask.drop": drop, "mask.threshold": threshold}
            evaluated = (f"blurred_drop_{drop}{control}" for control in CONTROL.values())
            yield overrides | {f"eval.{name}.mask.threshold": threshold for name in evaluated}

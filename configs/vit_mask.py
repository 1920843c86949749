"""A ViT that leaves out patches by their Laplacian variance (paper 1, section 4.3 and table 5), with controls.

    python -m bjax.main --config=configs/vit_mask.py:demo                       the embedded photographs, CPU
    python -m bjax.main --config=configs/vit_mask.py:imagenette,variant=Ti/16   ten classes, downloaded on first use
    python -m bjax.main --config=configs/vit_mask.py                            ImageNet, ViT-S/16, 90 epochs

ARGS: demo | imagenette, variant=S/16 (demo: Ti/16), train=mix|sharp|blurred, fraction=100 (per cent of the images;
paper 1: 20), keep=0.5 (share of the patches that each training image keeps, chosen at random; 1 trains on all of them).

The recipe is that of `vit.py`. Training on a random half of the patches (PatchDropout, Liu et al. 2022) nearly halves
its cost and prepares the model for masks; `keep=1` is paper 1's. Beside paper 1's conditions the sharper half of the
patches is evaluated as fewer tokens.

Demo: 300 steps, about 2 minutes on 2 CPU cores, 76 % top-1 on sharp test crops (14 classes).
"""

from configs import vit
from configs.common import CONTROL, GAUSSIAN, condition, mask, parse_arg


def get_config(arg=""):
    arg = parse_arg(arg, variant="", train="mix", fraction=100, eval_split="", keep=0.5)
    c = vit.recipe(arg)
    if arg.keep != 1:
        c.mask = mask("gather", selector="random", keep_rate=arg.keep)
    for selector in ("laplacian", "random"):
        half = mask("gather", selector=selector, keep_rate=0.5)
        c.eval[f"blurred_keep_half{CONTROL[selector]}"] = condition(c.eval.sharp.split, GAUSSIAN(), half)
    return c

"""A ViT that leaves out patches by their Laplacian variance (paper 1, section 4.3 and table 5), with controls.

    python -m bjax.main --config=configs/vit_mask.py:demo                       the embedded photographs, CPU
    python -m bjax.main --config=configs/vit_mask.py:imagenette,variant=Ti/16   ten classes, downloaded on first use
    python -m bjax.main --config=configs/vit_mask.py                            ImageNet, ViT-S/16, 90 epochs

ARGS: demo | imagenette, variant=S/16 (demo: Ti/16), train=mix|sharp|blurred, fraction=100 (per cent of the images;
paper 1: 20), keep=0.5 (share of the patches that each training image keeps, chosen at random; 1 trains on all of them).

The recipe is big_vision's `vit_s16_i1k.py`: batch 1024, AdamW 1e-3, decay 1e-4, 10k steps of warm-up, cosine, mixup
0.2. Training on a random half of the patches (PatchDropout, Liu et al. 2022) nearly halves its cost and prepares the
model for masks; `keep=1` is paper 1's. Paper 1 drops patches whose score is *above* 100 although a low variance means
blurry, so both polarities are evaluated, each beside a random choice of as many patches, and so is the sharper half
of the patches, as fewer tokens.

Demo: 300 steps, about 2 minutes on 2 CPU cores, 76 % top-1 on sharp test crops (14 classes).
"""

from configs.common import TRAIN_BLURS, blur, condition, default, mask, parse_arg, use_source


def get_config(arg=""):
    arg = parse_arg(arg, variant="", train="mix", fraction=100, keep=0.5)
    c = default()
    split = use_source(c, arg.source, eval_split="validation")
    c.model.name = "vit"
    c.model.options.variant = arg.variant or {"demo": "Ti/16"}.get(arg.source, "S/16")
    c.blur = blur(TRAIN_BLURS[arg.train])
    if arg.keep != 1:
        c.mask = mask("gather", selector="random", keep_rate=arg.keep)
    if arg.fraction != 100:
        c.data.train = f"train[:{arg.fraction}%]"

    c.optim.warmup = 10_000
    c.optim.clip = 1.0
    c.loss.mixup = 0.2
    c.dtype = "bfloat16"

    gaussian = blur({"gaussian": 1.0})
    c.eval.sharp = condition(split)
    c.eval.blurred = condition(split, gaussian)
    for drop in ("below", "above"):
        for selector in ("laplacian", "random"):
            masked = mask("zero_pixels", selector=selector, drop=drop, threshold=100.0)
            c.eval[f"blurred_drop_{drop}" + ("_random" if selector == "random" else "")] = condition(
                split, gaussian, masked
            )
    for selector in ("laplacian", "random"):
        half = mask("gather", selector=selector, keep_rate=0.5)
        c.eval["blurred_keep_half" + ("_random" if selector == "random" else "")] = condition(
            split, gaussian, half
        )
    if arg.source == "imagenette":
        c.batch_size, c.eval_batch_size = 256, 256
        c.optim.warmup = 500
    if arg.source == "demo":
        demo(c)
    return c


def demo(c):
    """A ViT small enough for two CPU cores, on crops of photographs that ship inside scikit-image."""
    c.model.options.depth = 6
    c.data.image_size = 96
    c.data.resize = 0
    c.data.scale = (0.25, 1.0)
    c.data.threads = 2
    c.dtype = "float32"
    c.batch_size = 64
    c.eval_batch_size = 128
    c.steps = 300
    c.optim.warmup = 50
    c.optim.weight_decay = 0.05
    c.loss.mixup = 0.0
    c.log_every = 25
    c.checkpoint_every = 50

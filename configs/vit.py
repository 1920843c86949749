"""A ViT without masks in training, on sharp, blurred or mixed images.

    python -m bjax.main --config=configs/vit.py:demo                        the embedded photographs, CPU
    python -m bjax.main --config=configs/vit.py:imagenette,variant=Ti/16    ten classes, downloaded on first use
    python -m bjax.main --config=configs/vit.py:train=blurred               ImageNet, ViT-S/16, 90 epochs
    python -m bjax.main --config=configs/vit.py:variant=B/16 --mode=eval --config.init_from=vit_b_16-c867db91.pth

ARGS: demo | imagenette, variant=S/16 (demo: Ti/16), train=sharp|blurred|mix, fraction=100 (per cent of the images).

The recipe is big_vision's `vit_s16_i1k.py`: batch 1024, AdamW 1e-3, decay 1e-4, 10k steps of warm-up, cosine, mixup
0.2; 76.5 % top-1 on ImageNet there.
"""

from configs.common import default, demo, parse_arg, use_source


def get_config(arg=""):
    return recipe(parse_arg(arg, variant="", train="sharp", fraction=100))


def recipe(arg):
    """The config of `arg.source`, `arg.variant`, `arg.train` and `arg.fraction`."""
    c = default()
    c.model.name = "vit"
    c.model.options.variant = arg.variant or {"demo": "Ti/16"}.get(arg.source, "S/16")
    c.dtype = "bfloat16"
    c.optim.warmup, c.optim.clip, c.loss.mixup = 10_000, 1.0, 0.2
    use_source(c, arg)
    if arg.source == "imagenette":
        c.batch_size, c.eval_batch_size, c.optim.warmup = 256, 256, 500
    if arg.source == "demo":
        demo(c)
        c.model.options.depth = 6
        c.optim.warmup, c.optim.weight_decay, c.loss.mixup = 50, 0.05, 0.0
    return c

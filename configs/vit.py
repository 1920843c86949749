"""A ViT without masks in training, on sharp, blurred or mixed images.

    python -m bjax.main --config=configs/vit.py:demo                        the embedded photographs, CPU
    python -m bjax.main --config=configs/vit.py:imagenette,variant=Ti/16    ten classes, downloaded on first use
    python -m bjax.main --config=configs/vit.py:train=blurred               ImageNet, ViT-S/16, 90 epochs
    python -m bjax.main --config=configs/vit.py:variant=B/16 --mode=eval --config.init_from=torchvision:vit_b_16 \\
        --workdir=runs/vit_b_16_v1

ARGS: demo | imagenette | small, variant=S/16 (demo: Ti/16), train=sharp|blurred|mix|partial|augmix|blurred+augmix,
fraction=100 (per cent of the images), curves=false (accuracy against blur as well: grids of strengths, and ImageNet-C's
blurs).

The recipe follows big_vision's `vit_s16_i1k.py`: batch 1024, Adam 1e-3, weight decay 1e-4 a step (0.1 here, where the
learning rate multiplies it), 10k steps of warm-up, cosine, mixup 0.2, 90 epochs. That one reaches 76.5 % on ImageNet
with RandAugment, pooled tokens and fixed position embeddings, which this one does without.

Weights of timm's augreg and of vision_transformer want the images that they were trained on:
--config.normalize.mean=.5,.5,.5 --config.normalize.std=.5,.5,.5 --config.data.interpolation=bicubic
--config.data.resize=248.

Demo: 300 steps, 5 CPU minutes (3 minutes on 2 cores), 79 % top-1 on sharp and on blurred test crops.
"""

from bjax.configs.common import default, demo, parse_arg, use_source


def get_config(arg=""):
    return recipe(parse_arg(arg, variant="", train="sharp", fraction=100, eval_split="", curves=False))


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

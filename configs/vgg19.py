"""VGG19 on sharp, blurred or mixed images (paper 1, tables 1 to 4).

    python -m bjax.main --config=configs/vgg19.py:demo                      the embedded photographs, CPU; vgg19_bn
    python -m bjax.main --config=configs/vgg19.py:train=mix,fraction=20     paper 1's data: a fifth of ImageNet
    python -m bjax.main --config=configs/vgg19.py --mode=eval --config.init_from=torchvision:vgg19 \\
        --config.dtype=float32 --workdir=runs/vgg19_v1

ARGS: demo | imagenette | small, train=sharp|blurred|mix|partial|augmix|blurred+augmix, fraction=100 (per cent of the
images), curves=false (accuracy against blur as well: grids of strengths, and ImageNet-C's blurs), bn=false (vgg19_bn).

The recipe is torchvision's of 2017: SGD 0.01, batch 256, decay 1e-4, 90 epochs; 72.38 % top-1 on ImageNet there.

Demo: 120 steps, 12 CPU minutes, 60 % top-1 on sharp and 38 % on blurred test crops.
"""

from bjax.configs.common import cnn, parse_arg


def get_config(arg=""):
    arg = parse_arg(arg, train="sharp", fraction=100, eval_split="", curves=False, bn=False)
    # Nineteen layers without normalisation do not get going within a demo.
    name = "vgg19_bn" if arg.bn or arg.source == "demo" else "vgg19"
    c = cnn(arg, name, lr=0.01)
    if arg.source == "demo":
        c.model.options.hidden, c.model.options.dropout = 256, 0.0
        c.optim.lr = 3e-4
    return c

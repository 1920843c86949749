"""ResNet50 on sharp, blurred or mixed images (paper 1, tables 1 to 4).

    python -m bjax.main --config=configs/resnet50.py:demo                      the embedded photographs, CPU
    python -m bjax.main --config=configs/resnet50.py:train=mix,fraction=20     paper 1's data: a fifth of ImageNet
    python -m bjax.main --config=configs/resnet50.py --mode=eval --config.init_from=torchvision:resnet50 \\
        --config.dtype=float32 --workdir=runs/resnet50_v1

ARGS: demo | imagenette | small, train=sharp|blurred|mix|partial|augmix|blurred+augmix, fraction=100 (per cent of the
images), curves=false (accuracy against blur as well: grids of strengths, and ImageNet-C's blurs).

The recipe is torchvision's of 2017: SGD 0.1, batch 256, decay 1e-4, 90 epochs; 76.13 % top-1 on ImageNet there.

Demo: 120 steps, 9 CPU minutes (about 5 minutes on 2 cores), 72 % top-1 on sharp and 46 % on blurred test crops.
"""

from bjax.configs.common import cnn, parse_arg


def get_config(arg=""):
    return cnn(parse_arg(arg, train="sharp", fraction=100, eval_split="", curves=False), "resnet50", lr=0.1)

"""GoogLeNet on sharp, blurred or mixed images (paper 1, tables 1 to 4).

    python -m bjax.main --config=configs/googlenet.py:demo                      the embedded photographs, CPU
    python -m bjax.main --config=configs/googlenet.py:train=mix,fraction=20     paper 1's data: a fifth of ImageNet
    python -m bjax.main --config=configs/googlenet.py --mode=eval --config.init_from=torchvision:googlenet \\
        --config.dtype=float32 --workdir=runs/googlenet_v1

ARGS: demo | imagenette | small, train=sharp|blurred|mix|partial|augmix|blurred+augmix, fraction=100 (per cent of the
images), curves=false (accuracy against blur as well: grids of strengths, and ImageNet-C's blurs).

The recipe is torchvision's for CNNs without residuals: SGD 0.01, batch 256, decay 1e-4, 90 epochs, auxiliary heads
with weight 0.3. torchvision's own weights (69.78 % top-1) were trained elsewhere.

Demo: 120 steps, 2.5 CPU minutes (under 2 minutes on 2 cores), 67 % top-1 on sharp and 48 % on blurred test crops.
"""

from bjax.configs.common import cnn, parse_arg


def get_config(arg=""):
    return cnn(parse_arg(arg, train="sharp", fraction=100, eval_split="", curves=False), "googlenet", lr=0.01)

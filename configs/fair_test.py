"""Does it matter which patches stay? Images of which a part is blurred, and every way to choose patches, with controls.

    python -m launch.sweep --config=configs/fair_test.py:demo --jobs=2       the embedded photographs, CPU, 3 seeds
    python -m launch.sweep --config=configs/fair_test.py --executor=slurm …  ImageNet, ViT-S/16
    python -m bjax.report runs/sweep_fair_test_demo --out=report             the answer, its figure and its table
    python -m bjax.main --config=configs/fair_test.py:demo,train=partial     one run of it

ARGS: demo | imagenette | small, variant=S/16 (demo: Ti/16), train=sharp|blurred|mix|partial, fraction=100 (per cent of
the images), keep=0.5 (share of the patches that each training image keeps, chosen at random; 1 trains on all of them).

Paper 1 blurs whole images and then leaves out blurry patches: there is nothing left to find. Here a part of each image
is blurred (random rectangles, all but the middle, or the middle), by 3 to 16 pixels, and at each keep rate the patches
are chosen by the drawn blur itself (oracle), by sharpness in pixels (sigma), by the variance of the Laplacian, by that
within cells (stratified), and at random, which is the control; all patches are what a mask gives up. Which patches stay
matters where a choice is right more often than the random one of as many, on the same images.

The recipe is that of `vit_mask.py`; training blur is as strong as the test's, σ from 1 to 8 pixels, over whole images
(blurred) or in rectangles (partial). The sweep is of sharp, blurred and partial, three seeds each.
"""

from bjax.configs import vit
from bjax.configs.common import GAUSSIAN, ConfigDict, condition, mask, parse_arg

KEEP = (0.5, 0.25)
SELECTORS = ("oracle", "sigma", "laplacian", "stratified", "random")
# Where an image is blurred, and how strongly: σ in pixels.
BLURRED = (("regions", 3.0), ("regions", 8.0), ("regions", 16.0), ("surround", 8.0), ("centre", 8.0))
TRAINED = (1.0, 8.0)  # σ, pixels
TRAININGS = ("sharp", "blurred", "partial")
SEEDS = 3


def get_config(arg=""):
    arg = parse_arg(arg, variant="", train="sharp", fraction=100, eval_split="", keep=0.5)
    c = vit.recipe(arg)
    split = c.eval.sharp.split
    if arg.train != "sharp":
        c.blur.sigma, c.blur.kernel_size = TRAINED, kernel_size(TRAINED[1])
    if arg.keep != 1:
        c.mask = mask("gather", selector="random", keep_rate=arg.keep)
    c.eval = ConfigDict({"sharp": condition(split)})
    for selector in SELECTORS[1:]:  # where nothing is blurred: what a mask costs
        c.eval[f"sharp_{selector}_50"] = condition(split, masked=kept(selector, 0.5))
    for where, sigma in BLURRED:
        blurred = GAUSSIAN(sigma=(sigma, sigma), kernel_size=kernel_size(sigma), where=where)
        name = f"{where}_sigma{sigma:g}"
        c.eval[name] = condition(split, blurred)
        for keep in KEEP:
            for selector in SELECTORS:
                c.eval[f"{name}_{selector}_{round(100 * keep)}"] = condition(split, blurred, kept(selector, keep))
    return c


def sweep(arg=""):
    for train in TRAININGS:
        for seed in range(SEEDS):
            yield {"config": f"configs/fair_test.py:{','.join(filter(None, (arg, f'train={train}')))}", "seed": seed}


def kept(selector, keep):
    return mask("gather", selector=selector, keep_rate=keep)


def kernel_size(sigma):
    return 2 * round(3 * sigma) + 1  # 3σ to either side

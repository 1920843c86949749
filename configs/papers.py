"""Both papers' experiments as one sweep: model × training blur × test condition, and the types of blur.

    python -m launch.sweep --config=configs/papers.py:demo --jobs=1          the embedded photographs, CPU
    python -m launch.sweep --config=configs/papers.py --seeds=3              a fifth of ImageNet, as paper 1
    python -m launch.sweep --config=configs/papers.py:imagenette --seeds=3
    python -m launch.sweep --config=configs/papers.py:weights=torchvision
    python -m bjax.report runs/sweep_papers_demo --out=report                the tables, beside the papers'

ARGS: demo | imagenette, fraction=20 (per cent of the training images; 100 where ImageNet is not the data),
weights=torchvision|DIR.

Every model is trained on sharp, blurred and mixed images of the same fraction: sharp is the control that paper 1, which
compares weights of the whole ImageNet with its own of a fifth, does not have. With `weights`, torchvision's by name or
a folder of its files, those are evaluated as they are (paper 1's tables 1, 2 and 5) and fine-tuned on blurred and on
mixed images at a tenth of the learning rate for a tenth of the epochs; on other data than ImageNet they are only
fine-tuned.
Paper 2's DenseNet-121 tells blur types apart, beside the other models (not in the demo).
"""

from bjax.configs.common import TRAIN_BLURS, parse_arg

# torchvision's name and file: those of paper 1's tables 1 and 2, and its ViT-B/16.
WEIGHTS = {
    "resnet50": ("resnet50", "resnet50-0676ba61.pth"),
    "vgg19": ("vgg19", "vgg19-dcbb9e9d.pth"),
    "googlenet": ("googlenet", "googlenet-1378be20.pth"),
    "vit": ("vit_b_16", "vit_b_16-c867db91.pth"),
}
# Their recipes at a tenth of the learning rate and of the epochs.
TUNING = {
    "resnet50": {"optim.lr": 0.01, "epochs": 9},
    "vgg19": {"optim.lr": 0.001, "epochs": 9},
    "googlenet": {"optim.lr": 0.001, "epochs": 9},
    "vit": {"optim.lr": 1e-4, "epochs": 9, "optim.warmup": 200},
}
# Shorter than their own demos, so that all of them take minutes.
SMALL = {"data.image_size": 48, "steps": 60, "optim.warmup": 6}
DEMO = {"resnet50": SMALL, "vgg19": SMALL, "googlenet": SMALL | {"steps": 120}, "vit": {"steps": 150}}
CNNS = ("resnet50", "vgg19", "googlenet")
# Beside DenseNet-121 at telling blurs apart: its recipe, changed where the model asks for it.
ADAMW = {"optim.name": "adamw", "optim.lr": 3e-4, "optim.weight_decay": 0.1, "optim.schedule": "cosine"}
BASELINES = {
    "resnet50": {},
    "vgg19_bn": {"optim.lr": 0.01},
    "googlenet": {"optim.lr": 0.01},
    "vit": {"model.options.variant": "S/16", **ADAMW, "optim.warmup": 5000, "optim.clip": 1.0},
}


def sweep(arg=""):
    arg = parse_arg(arg, fraction=0, weights="")
    data = [] if arg.source == "imagenet2012" else [arg.source]
    fraction = arg.fraction or (20 if arg.source == "imagenet2012" else 100)
    data += [f"fraction={fraction}"] if fraction != 100 else []

    def config(name, *words):
        return {"config": ":".join(filter(None, (f"configs/{name}.py", ",".join([*data, *words]))))}

    for model in (*CNNS, "vit"):
        # A curve takes 39 conditions more: on a CPU, of one model only.
        words = ["curves=true"] if arg.source != "demo" or model == "vit" else []
        for train in TRAIN_BLURS:
            yield config(model, f"train={train}", *words) | (DEMO[model] if arg.source == "demo" else {})
    yield config("densenet121")
    for model, changes in BASELINES.items() if arg.source != "demo" else ():
        yield config("densenet121") | {"model.name": model} | changes
    if not arg.weights:
        return
    for model, (name, file) in WEIGHTS.items():
        words = ["variant=B/16"] if model == "vit" else []
        given = {"init_from": f"torchvision:{name}" if arg.weights == "torchvision" else f"{arg.weights}/{file}"}
        if arg.source == "imagenet2012":
            yield config(model, *words) | given | {"mode": "eval", "dtype": "float32"}
        for train in ("blurred", "mix"):
            tuned = config(model, f"train={train}", *words) | given
            yield tuned | {"init_new_head": arg.source != "imagenet2012"} | TUNING[model]

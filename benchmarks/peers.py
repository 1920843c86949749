"""torchvision's and timm's models in the form that does best: channels last, autocast, eager and compiled.

PyTorch is imported where it is asked for: a machine need not have it.
"""

import functools
import sys
import types
from collections.abc import Callable

import jax
import numpy as np

MODULES = {"torch": "torchvision", "timm": "timm"}  # what each peer needs
TIMM = {"vit": "vit_base_patch16_224"}
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
AUX = 0.3  # weight of GoogLeNet's auxiliary heads


def device() -> str | None:
    """PyTorch's name of the kind of device that JAX computes on; None where this build of it has none."""
    import torch

    kind = {"gpu": "cuda", "cpu": "cpu"}.get(jax.default_backend())
    return kind if kind == "cpu" or (kind and torch.cuda.is_available()) else None


def build(peer: str, name: str, size: int):
    """The model `name` of a peer, float32 in channels last on `device()`; None where the peer has none.

    What torch leaves at zero is drawn at random, and BatchNorm's statistics are those of a batch, as they would be
    after training: else outputs would be zero, or of no order of magnitude, and comparing them would tell little.
    """
    if peer == "timm" and name not in TIMM:
        return None
    import torch

    torch.manual_seed(0)
    torch.set_float32_matmul_precision("high")  # TF32 on GPUs, as in JAX
    torch.backends.cudnn.benchmark = True
    if peer == "timm":
        import timm

        model = timm.create_model(TIMM[name], img_size=size)
    else:
        model = _torchvision(name, size)
    model = model.to(device(), memory_format=torch.channels_last)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1 and not parameter.any():
                torch.nn.init.normal_(parameter, std=0.02)
        norms = [m for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)]
        for norm in norms:
            norm.momentum = 1.0
        model.train()(_normaliser()(_images(photos(4, size))))
        for norm in norms:
            norm.momentum = 0.1
    return model


def _torchvision(name: str, size: int):
    # torchvision registers its compiled operators on import, which fails beside a PyTorch of another build. The models
    # need none of them.
    sys.modules.setdefault("torchvision._meta_registrations", types.ModuleType("torchvision._meta_registrations"))
    from torchvision import models

    if name == "vit":
        return models.vit_b_16(image_size=size)
    more = {"aux_logits": True, "transform_input": True, "init_weights": False} if name == "googlenet" else {}
    return getattr(models, name)(**more)


def photos(batch: int, size: int) -> np.ndarray:
    """uint8[batch, size, size, 3]: coloured squares under noise, so that every image has its own features."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (batch, 8, 8, 3), np.uint8)
    side = -(-size // 8)
    squares = coarse.repeat(side, axis=1).repeat(side, axis=2)[:, :size, :size]
    return squares // 2 + rng.integers(0, 128, (batch, size, size, 3), np.uint8)


def tensors(model) -> dict[str, np.ndarray]:
    """The state dict as NumPy arrays."""
    return {key: value.detach().cpu().numpy().copy() for key, value in model.state_dict().items()}


def _images(images: np.ndarray):
    """uint8 NHWC -> a tensor NCHW in channels last on the device."""
    import torch

    return torch.from_numpy(images).to(device()).permute(0, 3, 1, 2)


def _normaliser() -> Callable:
    """A function from uint8 images to normalised ones, which copies nothing from the host."""
    import torch

    mean, std = (torch.tensor(x, device=device()).view(1, 3, 1, 1) for x in (MEAN, STD))
    return lambda images: (images.float() / 255 - mean) / std


def inference(model, images: np.ndarray, dtype: str, *, steps: int, compile: bool) -> tuple[Callable, Callable]:
    """(a function that classifies the uint8 images `steps` times and waits, one that gives their logits in a type)."""
    import torch

    model.eval()
    batch, normalised, kind = _images(images), _normaliser(), device()

    def forward(batch, dtype=dtype):
        with torch.autocast(kind, torch.bfloat16, enabled=dtype == "bfloat16"):
            return model(normalised(batch))

    classify = torch.compile(forward) if compile else forward

    @torch.inference_mode()
    def run():
        for _ in range(steps):
            classify(batch)
        _wait()

    @torch.inference_mode()
    def logits(dtype: str) -> np.ndarray:
        return forward(batch, dtype).float().cpu().numpy()

    return run, logits


def training(model, batch: dict[str, np.ndarray], dtype: str, optim, *, steps: int, compile: bool) -> Callable:
    """A function that makes `steps` updates and waits. optim: `bjax.specs.Optim`, with decay of all parameters."""
    import torch

    model.train()
    images, normalised, kind = _images(batch["image"]), _normaliser(), device()
    labels = torch.from_numpy(batch["label"]).long().to(device())
    fused = {"fused": True} if device() == "cuda" else {}
    if optim.name == "sgd":
        make = functools.partial(torch.optim.SGD, momentum=optim.momentum)
    else:
        make = functools.partial(torch.optim.AdamW, betas=(optim.b1, optim.b2))
    optimiser = make(model.parameters(), lr=optim.lr, weight_decay=optim.weight_decay, **fused)

    def loss_of(images, labels):
        with torch.autocast(kind, torch.bfloat16, enabled=dtype == "bfloat16"):
            outputs = model(normalised(images))
            outputs, aux = (outputs[0], outputs[1:]) if isinstance(outputs, tuple) else (outputs, ())
            loss = torch.nn.functional.cross_entropy(outputs, labels)
            for more in aux:
                loss = loss + AUX * torch.nn.functional.cross_entropy(more, labels)
            return loss

    loss_of = torch.compile(loss_of) if compile else loss_of

    def run():
        for _ in range(steps):
            optimiser.zero_grad(set_to_none=True)
            loss_of(images, labels).backward()
            optimiser.step()
        _wait()

    return run


def _wait():
    import torch

    if device() == "cuda":
        torch.cuda.synchronize()


def free() -> None:
    """Gives the device's memory back that PyTorch holds for nothing."""
    import torch

    torch._dynamo.reset()
    if device() == "cuda":
        torch.cuda.empty_cache()

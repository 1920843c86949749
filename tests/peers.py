"""What the tests compare with: PyTorch's model zoos, skipped by name where they are not installed."""

import sys
import types
import warnings

import numpy as np
import pytest


def torchvision_models():
    """`torchvision.models`."""
    pytest.importorskip("torch", reason="PyTorch is not installed")
    # torchvision registers its compiled operators on import, which fails beside a PyTorch of another build.
    # The models need none of them.
    name = "torchvision._meta_registrations"
    sys.modules.setdefault(name, types.ModuleType(name))
    return pytest.importorskip("torchvision.models", reason="torchvision is not installed")


def timm():
    """`timm`, whose import warns of its own deprecations."""
    torchvision_models()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("timm", reason="timm is not installed")


def random_tensors(shapes: dict[str, tuple[int, ...]], gain: float = 1.0) -> dict[str, np.ndarray]:
    """Weights, the same every time, for a state dict of these shapes.

    The BatchNorm statistics shrink activations by 0.8 a layer on average, as a residual network needs to stay
    of order one to ten; elsewhere `gain=1.25` makes up for it, or the logits would not depend on the image.

    RandomState, since NumPy promises never to change its stream: the golden files depend on it.
    """
    random = np.random.RandomState(0)
    tensors = {}
    for key, shape in shapes.items():
        if key.endswith("num_batches_tracked"):
            tensors[key] = np.array(7)
        elif key.endswith("running_var"):
            tensors[key] = random.uniform(0.5, 1.5, shape).astype(np.float32)
        elif key.endswith("weight") and len(shape) == 1:
            tensors[key] = random.uniform(0.5, 1.0, shape).astype(np.float32)
        elif len(shape) <= 1:
            tensors[key] = random.uniform(-0.3, 0.3, shape).astype(np.float32)
        else:
            bound = gain * np.sqrt(6 / np.prod(shape[1:]))
            tensors[key] = random.uniform(-bound, bound, shape).astype(np.float32)
    return tensors


def random_images(size: int, batch: int = 2) -> np.ndarray:
    """float32[batch, size, size, 3], as if normalised: noise around another colour in every image."""
    random = np.random.RandomState(1)
    colour = random.uniform(-1, 1, (batch, 1, 1, 3))
    return (colour + random.uniform(-1.5, 1.5, (batch, size, size, 3))).astype(np.float32)


def with_random_weights(build, gain: float = 1.0):
    """The PyTorch model `build()` in evaluation mode with random weights, and these as numpy arrays."""
    import torch

    with torch.device("meta"):
        model = build()
    tensors = random_tensors({key: tuple(value.shape) for key, value in model.state_dict().items()}, gain)
    model.load_state_dict({key: torch.from_numpy(value) for key, value in tensors.items()}, assign=True)
    return model.eval(), tensors


def run(model, images: np.ndarray) -> np.ndarray:
    """A PyTorch model's output for NHWC images."""
    import torch

    with torch.inference_mode():
        return model(torch.from_numpy(images.transpose(0, 3, 1, 2).copy())).numpy()

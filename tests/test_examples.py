"""What README and docstrings show as Python runs as it stands there."""

import doctest
import importlib
import re
from pathlib import Path

import numpy as np
import pytest

from bjax import blur, sharpness, tokens

ROOT = Path(__file__).parents[1]
PUBLIC = {  # bjax.predictor has its own, in tests/test_predict.py, where a run is
    "bjax.blur.convolve": {"gaussian", "motion", "defocus"},
    "bjax.blur.imagenet_c": {"mean_corruption_error"},
    "bjax.blur.one": {"corrupt"},
    "bjax.sharpness": {*(f.__name__ for f in sharpness.MEASURES.values()), "threshold", "whole", "own_blur"},
    "bjax.tokens": {"budget", "select", "overlap", "erase"},
}


@pytest.mark.parametrize("name", PUBLIC)
def test_the_examples_of_docstrings_give_what_they_say(name):
    module = importlib.import_module(name)
    examples = [test for test in doctest.DocTestFinder().find(module) if test.examples]
    assert {test.name.removeprefix(f"{name}.") for test in examples} == PUBLIC[name]
    failed, tried = doctest.testmod(module)
    assert failed == 0 and tried >= len(examples)


def test_the_readmes_python_runs_as_printed():
    (snippet,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    names = {}
    exec(snippet, names)
    assert names["logits"].shape == (1, 10)
    assert names["worse"].dtype == np.uint8 and names["worse"].shape == names["photo"].shape


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_images_of_numpy_need_no_conversion(dtype):
    """A warning, such as JAX has of float64, is an error here."""
    images = np.random.default_rng(0).random((1, 32, 32, 3)).astype(dtype)
    blurred = [blur.gaussian(images, 1.0), blur.motion(images, 3, 0), blur.defocus(images, 2)]
    kept = tokens.Tokens(np.ones((1, 4), bool), None, mode="zero_pixels")
    painted = tokens.erase(images, kept, 16, 0.5)
    scores = sharpness.laplacian_variance(images, 16)
    assert all(result.dtype == np.float32 for result in (*blurred, painted, scores))

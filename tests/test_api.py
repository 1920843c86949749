"""One calling convention for every function on images: key, images, parameters; options by keyword only."""

import inspect

import pytest

import bjax.blur
from bjax import sharpness, tokens
from bjax.step import augment, augmix

IMAGES = ("images", "image")
MODULES = (
    bjax.blur.convolve,
    bjax.blur.imagenet_c,
    bjax.blur.one,
    bjax.blur.psf,
    bjax.blur.sample,
    bjax.blur.varying,
    augment,
    augmix,
    sharpness,
    tokens,
)
FUNCTIONS = {
    f"{module.__name__}.{name}": function
    for module in MODULES
    for name, function in vars(module).items()
    if not name.startswith("_")
    and callable(function)
    and not inspect.isclass(function)
    and function.__module__ == module.__name__
}
ON_IMAGES = {
    name: function
    for name, function in FUNCTIONS.items()
    if set(inspect.signature(function).parameters) & {"key", *IMAGES}
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_public_functions_have_docstrings(name):
    assert inspect.getdoc(FUNCTIONS[name])


@pytest.mark.parametrize("name", ON_IMAGES)
def test_key_comes_first_then_images_then_parameters(name):
    names = list(inspect.signature(ON_IMAGES[name]).parameters)
    leading = [n for n in names if n == "key"] + [n for n in names if n in IMAGES]
    assert names[: len(leading)] == leading


@pytest.mark.parametrize("name", ON_IMAGES)
def test_options_are_keyword_only(name):
    parameters = inspect.signature(ON_IMAGES[name]).parameters.values()
    optional = [p.name for p in parameters if p.default is not p.empty and p.kind is not p.KEYWORD_ONLY]
    assert not optional


def test_the_documented_functions_are_among_them():
    documented = "blur.convolve.gaussian blur.imagenet_c.corrupt blur.sample.draw blur.varying.ramp"
    documented += " blur.convolve.separable sharpness.laplacian_variance tokens.select tokens.erase"
    assert {f"bjax.{name}" for name in documented.split()} <= set(ON_IMAGES)
    for module in ("imagenet_c", "psf", "sample", "varying"):
        assert inspect.ismodule(getattr(bjax.blur, module))

"""What is chosen for small data sets: from facts, within what a run accepts, and never what the command line gives."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from bjax import config as configs
from bjax import small
from bjax.data import prepare
from bjax.errors import UserError
from bjax.main import main
from bjax.small import Facts

CONFIGS = ("vit.py", "vit_mask.py", "resnet50.py", "vgg19.py", "googlenet.py", "densenet121.py")
SIZES = ("batch_size", "eval_batch_size", "epochs", "optim.warmup", "optim.lr", "data.image_size", "dtype")


def facts(images, platform="cpu", devices=1, side=480, splits=("train", "validation")):
    return Facts(images=images, classes=3, side=side, splits=splits, platform=platform, devices=devices, cores=2)


def chosen(what, config="vit_mask.py", overrides=(), args=""):
    """{key: value} of the choices, and the config with them."""
    c = configs.load(f"{config}:small{args}", list(overrides))
    keys = {key for key, _ in overrides}
    made = {}
    for key, value, _ in small.choices(c, what):
        if key not in keys:
            made[key] = value
            configs.override(c, key, ",".join(map(str, value)) if isinstance(value, tuple) else str(value))
    configs.validate(c)
    return made, c


@pytest.mark.parametrize(
    ("images", "platform", "init_from", "expected"),
    [
        (48, "cpu", "", (16, 48, 300, 45, 1e-4, 96, "float32")),
        (480, "cpu", "", (64, 128, 102, 38, 2e-4, 96, "float32")),
        (4_800, "cpu", "", (64, 128, 32, 120, 2e-4, 96, "float32")),
        (4_800, "gpu", "", (128, 128, 32, 60, 2.8e-4, 224, "bfloat16")),
        (48, "cpu", "torchvision:vit_b_16", (16, 48, 60, 18, 1e-4, 224, "float32")),
        (480, "gpu", "torchvision:vit_b_16", (128, 128, 20, 8, 2.8e-4, 224, "bfloat16")),
        (4_800, "tpu", "torchvision:vit_b_16", (128, 128, 10, 38, 2.8e-4, 224, "bfloat16")),
    ],
)
def test_choices(images, platform, init_from, expected):
    _, c = chosen(facts(images, platform), overrides=[("init_from", init_from)] if init_from else ())
    values = dict(configs.leaves(c))
    assert tuple(values[key] for key in SIZES) == expected
    assert c.init_new_head == bool(init_from)
    assert {condition.split for condition in c.eval.values()} == {"validation"}


@pytest.mark.parametrize("config", CONFIGS)
@settings(max_examples=15, deadline=None)
@given(
    images=st.integers(small.FEWEST, 20_000),
    platform=st.sampled_from(("cpu", "gpu", "tpu")),
    devices=st.sampled_from((1, 2, 8)),
    side=st.integers(1, 4_000),
)
def test_every_choice_is_one_that_a_run_takes(config, images, platform, devices, side):
    _, c = chosen(facts(images, platform, devices, side), config)
    configs.check_devices(c, devices)
    assert c.batch_size <= images
    assert c.eval_batch_size <= max(images, devices)
    assert 0 <= c.optim.warmup < c.epochs * images / c.batch_size
    assert c.data.image_size <= max(side, 64)


def test_what_is_given_stays_and_the_rest_follows():
    free, _ = chosen(facts(480))
    overrides = [("data.image_size", "64"), ("batch_size", "16"), ("epochs", "10"), ("eval.sharp.split", "test")]
    bound, c = chosen(facts(480), overrides=overrides)
    assert free.keys() - bound.keys() == {key for key, _ in overrides}
    assert c.data.resize == round(64 * 8 / 7)
    assert c.optim.lr == pytest.approx(2e-4 / 2)
    assert c.optim.warmup == 15  # 5 % of 10 × 480 / 16
    assert (c.eval.sharp.split, c.eval.blurred.split) == ("test", "validation")
    made, c = chosen(facts(480), overrides=[("steps", "40")])
    assert "epochs" not in made
    assert c.optim.warmup == 2


def test_new_cnns_take_a_higher_rate_than_vits_and_weights():
    rates = [chosen(facts(480), config)[1].optim.lr for config in CONFIGS]
    assert rates == [2e-4, 2e-4, 1e-3, 1e-3, 1e-3, 1e-3]
    assert chosen(facts(480), "resnet50.py", [("init_from", "torchvision:resnet50")])[1].optim.lr == 2e-4


def test_kinds_of_blur_keep_their_pixels():
    made, c = chosen(facts(480), "densenet121.py")
    assert not made.keys() & {"data.resize", "data.scale"}
    assert (c.data.crop, c.data.resize) == ("random", 0)


@pytest.mark.parametrize(
    ("splits", "args", "train", "evaluated"),
    [
        (("train", "validation", "test"), "", "train", "validation"),
        (("train", "test"), "", "train", "test"),
        (("train", "validation", "test"), ",eval_split=test", "train", "test"),
        (("train",), "", "train[:80%]", "train[80%:]"),
    ],
)
def test_the_split_that_is_evaluated(splits, args, train, evaluated):
    made, c = chosen(facts(100, splits=splits), args=args)
    assert c.data.train == train
    assert {condition.split for condition in c.eval.values()} == {evaluated}
    assert made["batch_size"] == (16 if train == "train[:80%]" else 32)


@pytest.mark.parametrize("name", ["vgg19", "vgg19_bn"])
def test_vgg_takes_norms_and_a_small_head_unless_from_weights(name):
    _, c = chosen(facts(480), "vgg19.py", [("model.name", name)] if name == "vgg19" else ())
    assert (c.model.name, c.model.options.hidden) == (name, 256)
    _, c = chosen(facts(480), "vgg19.py", [("init_from", "torchvision:vgg19")])
    assert c.model.name == "vgg19"
    assert "hidden" not in c.model.options


@pytest.fixture(scope="module")
def pets(tmp_path_factory):
    """A data set of 40 images in folders of two classes, and its data_dir."""
    folder, rng = tmp_path_factory.mktemp("own"), np.random.default_rng(0)
    for label in ("cat", "dog"):
        (folder / "pets" / label).mkdir(parents=True)
        for i in range(20):
            image = Image.fromarray(rng.integers(0, 256, (40, 60, 3), np.uint8))
            image.save(folder / "pets" / label / f"{label}{i}.png")
    command = ["folder", "pets", f"--source={folder / 'pets'}", "--split=0.8", f"--data_dir={folder}"]
    assert prepare.main(command) == 0
    return folder


TINY = {"variant": "Ti/8", "depth": 1, "width": 16, "heads": 2}


def test_two_commands_from_folders_to_a_report(pets, tmp_path, capsys):
    """The other one is the fixture's."""
    model = [f"--config.model.options.{key}={value}" for key, value in TINY.items()]
    data = ["--config.data.name=pets", f"--config.data.data_dir={pets}", "--config.eval_only=sharp"]
    workdir = tmp_path / "run"
    command = ["--config=vit.py:small", f"--workdir={workdir}", *data, *model, "--config.steps=2"]
    assert main([*command, f"--report={tmp_path / 'report'}"]) == 0
    printed = capsys.readouterr().out
    assert "small: 32 training images in 2 classes, about 40 px; 8 cpu devices, " in printed
    assert "eval.*.split " in printed
    c = json.loads((workdir / "config.json").read_text())
    assert (c["recipe"], c["batch_size"], c["steps"], c["data"]["image_size"]) == ("small", 8, 2, 64)
    assert "report.html" in {file.name for file in (tmp_path / "report").iterdir()}
    assert main(command) == 0  # chosen again, alike
    assert "small: 32 " in (again := capsys.readouterr().out) and "finished: step 2 of 2" in again
    assert main([f"--workdir={workdir}"]) == 0  # as it was chosen
    assert "small:" not in (again := capsys.readouterr().out) and "finished: step 2 of 2" in again


def test_what_cannot_be_chosen_for(pets, capsys):
    def refused(*flags):
        assert main(["--config=vit.py:small", f"--config.data.data_dir={pets}", *flags, "--print_config"]) == 2
        return capsys.readouterr().err

    assert "config.data.name: small needs a data set of yours" in refused()
    assert "unknown data set 'pet' (did you mean pets?)" in refused("--config.data.name=pet")
    few = refused("--config.data.name=pets", "--config.data.train=train[:5]")
    assert "config.data.train=train[:5]: 5 images; small needs at least 12" in few
    assert "did you mean small" in refused("--config=vit.py:smal")


@pytest.mark.parametrize(("overrides", "args"), [([("data.train", "train[:50%]")], ""), ([], ",fraction=50")])
def test_a_held_out_fifth_needs_the_whole_train_split(overrides, args):
    with pytest.raises(UserError, match=r"=train\[:50%\]: .*has no split validation or test to evaluate on; leave it"):
        chosen(facts(50, splits=("train",)), overrides=[*overrides, ("data.name", "pets")], args=args)


def test_images_that_are_trained_on_and_evaluated_are_called_so():
    c = configs.load("vit.py:small", [("data.train", "train+validation")])
    assert {why for key, _, why in small.choices(c, facts(50)) if key.endswith(".split")} == {
        "TRAINED ON: data.train=train+validation has it"
    }


def test_weights_of_a_file_are_tuned_at_the_size_of_the_config():
    made, c = chosen(facts(480), "resnet50.py", [("init_from", "resnet50-0676ba61.pth")])
    assert "data.image_size" not in made
    assert (c.data.image_size, c.data.resize) == (224, 256)


def test_more_devices_than_images_are_refused():
    with pytest.raises(UserError, match="small: 20 training images are fewer than the 32 devices"):
        chosen(facts(20, devices=32))

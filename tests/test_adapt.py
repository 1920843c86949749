"""TENT and BatchNorm of a stream against PyTorch; streams, their clock and table; what cannot be is refused."""

import copy
import dataclasses
import functools
import json
import shutil
import time
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bjax import config, experiment, models
from bjax.errors import UserError
from bjax.evaluate import adapt
from bjax.evaluate.conditions import evaluate
from bjax.main import main
from bjax.models.layers import BatchNorm, batch_norm, normalised
from bjax.runtime import sharding
from bjax.step.adapt_step import entropy, tent, tent_start, unchanged
from bjax.step.losses import Objective

ROOT = Path(__file__).parents[1]
CONFIGS = ROOT / "configs"
RANDOM = np.random.RandomState(0)


class Tiny(nn.Module):
    """A convolution, a norm and a linear layer."""

    num_classes: int = 14
    norm_group: int = 0
    norm_prior: float | None = None

    @nn.compact
    def __call__(self, images, *, train=False):
        norm = BatchNorm(use_running_average=not train, prior=self.norm_prior, name="norm")
        x = nn.relu(normalised(nn.Conv(6, (3, 3), name="conv"), norm, images))
        return nn.Dense(self.num_classes, name="head")(x.mean(axis=(1, 2)))


@pytest.fixture(scope="module")
def variables():
    """Of `Tiny`, no two statistics, scales or biases alike."""
    shapes = jax.eval_shape(Tiny().init, jax.random.key(0), jnp.zeros((1, 8, 8, 3)))
    return jax.tree.map(lambda x: RANDOM.uniform(0.5, 1.5, x.shape).astype("f4") - 0.9 * (x.ndim > 1), shapes)


def options(model, classes=14):
    mesh = sharding.make_mesh(1, 1, jax.devices()[:1])
    return {"model": model, "objective": Objective("object", classes), "mesh": mesh}


def prepared_of(images, ids=None):
    n = len(images)
    labels = jnp.arange(n) if ids is None else ids
    return jnp.asarray(images), None, labels.astype(jnp.int32) % 14, {"mask": jnp.ones(n, bool)}


def images_of(number, strength=1.0):
    return (strength * RANDOM.normal(0.3, 1, (number, 8, 8, 3))).astype("f4")


def peer_of(variables):
    """`Tiny` in PyTorch, normalising by the batch's own statistics."""
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    from torch import nn as peers

    class Peer(peers.Module):
        def __init__(self):
            super().__init__()
            self.conv = peers.Conv2d(3, 6, 3, padding=1)
            self.norm = peers.BatchNorm2d(6, track_running_stats=False)
            self.head = peers.Linear(6, 14)

        def forward(self, images):
            x = torch.relu(self.norm(self.conv(images.permute(0, 3, 1, 2))))
            return self.head(x.mean(dim=(2, 3)))

    params, peer = variables["params"], Peer()
    tensors = {
        "conv.weight": params["conv"]["kernel"].transpose(3, 2, 0, 1),
        "conv.bias": params["conv"]["bias"],
        "norm.weight": params["norm"]["scale"],
        "norm.bias": params["norm"]["bias"],
        "head.weight": params["head"]["kernel"].T,
        "head.bias": params["head"]["bias"],
    }
    peer.load_state_dict({k: torch.tensor(np.array(v)) for k, v in tensors.items()})
    return torch, peer.train()


def test_three_steps_of_tent_are_torchs(variables):
    torch, peer = peer_of(variables)
    for name, parameter in peer.named_parameters():
        parameter.requires_grad_(name.startswith("norm"))
    optimiser = torch.optim.SGD(peer.norm.parameters(), lr=0.5, momentum=0.9)
    start = state = tent_start(variables)
    before = jax.tree.map(np.array, start)
    for number in (8, 8, 5):
        images = images_of(number, strength=number / 6)
        state, answers = tent(state, prepared_of(images), lr=0.5, **options(Tiny(norm_prior=0.0)))
        logits = peer(torch.tensor(images))
        np.testing.assert_allclose(answers["logits"], logits.detach().numpy(), atol=1e-5)  # of before the step
        np.testing.assert_array_equal(answers["prediction"], logits.argmax(1))
        optimiser.zero_grad()
        torch.distributions.Categorical(logits=logits).entropy().mean().backward()
        optimiser.step()
    for name, theirs in {"scale": peer.norm.weight, "bias": peer.norm.bias}.items():
        ours = state.affine["norm", name]
        np.testing.assert_allclose(ours, theirs.detach().numpy(), atol=1e-5)
        assert np.abs(ours - before.affine["norm", name]).max() > 1e-2
    assert set(state.affine) == {("norm", "scale"), ("norm", "bias")}
    jax.tree.map(np.testing.assert_array_equal, start, before)  # a state is a value
    jax.tree.map(np.testing.assert_array_equal, state.rest, before.rest)


def test_a_stream_is_normalised_as_torch_does_in_training(variables):
    torch, peer = peer_of(variables)
    images = images_of(7)
    state, answers = unchanged(variables, prepared_of(images), **options(Tiny(norm_prior=0.0)))
    assert state is variables
    np.testing.assert_allclose(answers["logits"], peer(torch.tensor(images)).detach().numpy(), atol=1e-5)


def test_a_prior_counts_as_so_many_images_with_the_running_statistics(variables):
    of_norm = {kind: variables[kind]["norm"] for kind in ("params", "batch_stats")}
    x = RANDOM.normal(2, 3, (5, 4, 4, 6)).astype("f4")
    for prior in (0.0, 3.0, 1e9):
        made = BatchNorm(use_running_average=True, prior=prior).apply(of_norm, x)
        of_source, of_batch = prior / (prior + 5), 5 / (prior + 5)
        mean = of_source * of_norm["batch_stats"]["mean"] + of_batch * x.mean(axis=(0, 1, 2))
        var = of_source * of_norm["batch_stats"]["var"] + of_batch * x.var(axis=(0, 1, 2))
        expected = (x - mean) / np.sqrt(var + 1e-5) * of_norm["params"]["scale"] + of_norm["params"]["bias"]
        np.testing.assert_allclose(made, expected, rtol=2e-4, atol=2e-4)
    alone = BatchNorm(use_running_average=True).apply(of_norm, x)
    np.testing.assert_allclose(made, alone, rtol=1e-4, atol=1e-4)  # of a thousand million images


def test_entropy_is_in_nats_and_classes_that_do_not_compete_have_none():
    out = jnp.array([[0.0, 0.0, -1e30], [5.0, 5.0, 5.0], [1e4, 0.0, 0.0]])
    np.testing.assert_allclose(entropy(out), [np.log(2), np.log(3), 0], rtol=1e-6)
    assert np.isfinite(jax.grad(lambda x: entropy(x).sum())(out)).all()


def test_which_norms_a_model_has():
    found = {name: models.norm_of(models.build(name)) for name in models.MODELS}
    assert (found.pop("vit"), found.pop("vgg19")) == ("LayerNorm", None)
    assert set(found.values()) == {"BatchNorm"}
    for family in ("resnet", "densenet", "googlenet", "vgg"):
        assert "batch_norm(self, train" in (ROOT / f"bjax/models/{family}.py").read_text()
    assert batch_norm(models.build("resnet50").clone(norm_prior=3.0), train=False)().prior == 3
    vit = models.build("vit", variant="Ti/8", depth=1, width=16, heads=2, num_classes=3)
    shapes = jax.eval_shape(vit.init, jax.random.key(0), jnp.zeros((1, 16, 16, 3)))
    start = jax.eval_shape(tent_start, shapes)
    norms = [("block_0", "norm1"), ("block_0", "norm2"), ("norm",)]
    assert set(start.affine) == {(*norm, kind) for norm in norms for kind in ("scale", "bias")}
    with pytest.raises(ValueError, match="have none"):
        tent_start({"params": {"head": {"kernel": 0, "bias": 0}}})


# --- streams


def followed(variables, images, size, **methods):
    """Answers by method to images in batches of `size`; methods: (state, model)."""
    steps = {name: (state, functools.partial(unchanged, **options(model))) for name, (state, model) in methods.items()}
    batch = {"image": images, "id": np.arange(len(images), dtype=np.uint32)}
    stream = ({k: v[i : i + size] for k, v in batch.items()} for i in range(0, len(images), size))
    found = adapt.follow(
        stream, lambda key, batch: prepared_of(batch["image"], batch["id"]), steps, options(None)["mesh"]
    )
    return {name: answers for name, (answers, _) in found.items()}


def test_only_what_adapts_depends_on_the_batch_and_the_last_has_its_own_statistics(variables):
    images = images_of(11)
    methods = {"none": (variables, Tiny()), "bn_stream": (variables, Tiny(norm_prior=0.0))}
    whole, parts = (followed(variables, images, size, **methods) for size in (11, 4))
    for name in ("prediction", "top1"):
        np.testing.assert_array_equal(whole["none"][name], parts["none"][name])
    np.testing.assert_allclose(whole["none"]["loss"], parts["none"]["loss"], rtol=1e-5)
    assert np.abs(whole["bn_stream"]["loss"] - parts["bn_stream"]["loss"]).max() > 1e-3
    last = Tiny(norm_prior=0.0).apply(variables, images[8:])
    confidence = jax.nn.softmax(last).max(axis=1)
    np.testing.assert_allclose(parts["bn_stream"]["confidence"][8:], confidence, rtol=1e-5)
    assert len(parts["bn_stream"]["confidence"]) == 11


def test_streams_show_all_images_in_an_order_that_stays():
    labels = np.array([2, 0, 1, 1, 0, 2, 1, 0, 0, 2])
    orders = {name: adapt.ordered(name, labels) for name in adapt.STREAMS}
    for order in orders.values():
        assert sorted(order) == list(range(10))
    for name in ("single", "mixed"):
        np.testing.assert_array_equal(orders[name], orders["independent"])
    by_class = orders["imbalanced"]
    assert (np.diff(labels[by_class]) >= 0).all()
    assert (np.diff(labels[orders["independent"]]) < 0).any()
    firsts = [i for i in orders["independent"] if labels[i] == 0]
    assert list(by_class[: len(firsts)]) == firsts  # within a class as shuffled


@pytest.fixture(scope="module")
def measured(data_dir, variables):
    values = {"data.data_dir": data_dir, "data.image_size": 32, "eval_batch_size": 32, "bn_adapt_batches": 1}
    values |= {"eval.blurred.split": "test[:16]", "adapt.batch_size": 8, "adapt.lr": 20.0}
    asked = adapt.plan(config.load(f"{CONFIGS}/resnet50.py:demo", [(k, str(v)) for k, v in values.items()]))
    exp = experiment.build(asked.config)
    own = {name: dataclasses.replace(condition, model=Tiny()) for name, condition in exp.conditions.items()}
    exp = dataclasses.replace(exp, model=Tiny(), conditions=own)
    return exp, asked, adapt.measure(exp, variables, asked)


@pytest.mark.slow
def test_every_method_on_every_stream_has_its_row(measured):
    _, asked, content = measured
    assert (asked.condition, asked.methods, asked.left_out) == ("blurred", adapt.METHODS, {})
    json.dumps(content, allow_nan=False)
    assert list(content["streams"]) == list(adapt.STREAMS)
    assert (content["n"], content["skipped"], content["bn_train_images"]) == (16, 0, 32)
    rows = {name: stream["methods"] for name, stream in content["streams"].items()}
    for methods in rows.values():
        assert tuple(methods) == adapt.METHODS
        for method, row in methods.items():
            assert row["n"] == 16 and row["ms"] > 0 and 0 <= row["ece"] <= 1
            assert ("difference" in row) == (method != "none")
            if method != "none":
                assert row["difference"] == pytest.approx(row["top1"] - methods["none"]["top1"])
                low, high = row["difference_95"]
                assert low <= row["difference"] <= high
    for name in ("single", "imbalanced"):  # the same images, blurred alike
        for method in ("none", "bn_train"):
            assert rows[name][method]["loss"] == pytest.approx(rows["independent"][method]["loss"], rel=1e-5)
            assert rows[name][method]["top1"] == rows["independent"][method]["top1"]
        for method in ("bn_stream", "tent"):
            assert rows[name][method]["loss"] != pytest.approx(rows["independent"][method]["loss"], rel=1e-3)
    assert rows["mixed"]["none"]["loss"] != pytest.approx(rows["independent"]["none"]["loss"], rel=1e-3)
    for method in ("bn_train", "bn_stream"):
        assert rows["independent"][method]["loss"] != pytest.approx(rows["independent"]["none"]["loss"], rel=1e-3)
    assert rows["independent"]["tent"]["loss"] != pytest.approx(rows["independent"]["bn_stream"]["loss"], rel=1e-3)


@pytest.mark.slow
def test_none_is_the_evaluation_of_the_condition(measured, variables):
    exp, _, content = measured
    (row,), none = evaluate(exp, variables).values(), content["streams"]["independent"]["methods"]["none"]
    assert {k: none[k] for k in ("n", "top1", "top1_95")} == {k: row[k] for k in ("n", "top1", "top1_95")}
    assert none["loss"] == pytest.approx(row["loss"], rel=1e-5)


@pytest.mark.slow
def test_of_more_images_some_are_drawn(measured):
    exp, asked, _ = measured
    few = config.copied(exp.config)
    few.adapt.images = 5
    source = exp.splits[exp.conditions[asked.condition].split]
    batch, of = adapt._read(dataclasses.replace(exp, config=few), source)
    everything, _ = adapt._read(exp, source)
    assert len(batch["image"]) == len(of["id"]) == 5 and len(everything["id"]) == 16
    place = [list(everything["id"]).index(i) for i in batch["id"]]
    assert place == sorted(place) != list(range(5))
    np.testing.assert_array_equal(batch["image"], everything["image"][place])


def test_compiling_is_not_timed_and_moves_no_state():
    seen = set()

    def step(state, prepared):
        if len(prepared) not in seen:
            time.sleep(0.2)
        seen.add(len(prepared))
        return state + 1, {"state": np.full(len(prepared), state)}

    stream = iter([{"id": np.arange(n)} for n in (4, 4, 3)])
    mesh = options(None)["mesh"]
    answers, times = adapt.follow(stream, lambda key, batch: batch["id"], {"tent": (0, step)}, mesh)["tent"]
    assert answers["state"].tolist() == [0] * 4 + [1] * 4 + [2] * 3
    assert [n for _, n in times] == [4, 4, 3] and max(seconds for seconds, _ in times) < 0.2


@pytest.mark.slow
def test_the_table_fits_and_says_where_adapting_hurts(measured):
    content = copy.deepcopy(measured[2])
    row = content["streams"]["single"]["methods"]["bn_stream"]
    row |= {"top1": 0.1, "difference": -0.6, "difference_95": [-0.7, -0.5], "verdict": "hurts"}
    row |= {"top1_95_photographs": [0.1, 1.0], "ms": 1234.567, "ece": 1.0}
    lines = adapt.table(content).splitlines()
    assert max(map(len, lines[:19])) <= 80
    assert lines[-1].startswith("hurts beyond chance: ") and "bn_stream on single (-60.0)" in lines[-1]
    assert any(line.startswith("independent: shuffled, batches of 8") for line in lines)
    assert any("32 training images before" in line for line in lines)


def test_differences_are_paired_by_image_or_by_photograph():
    ours, theirs = np.array([1, 1, 1, 1, 0, 1.0]), np.array([0, 1, 0, 1, 0, 0.0])
    alone = adapt.paired(ours, theirs)
    assert alone["difference"] == 0.5 and alone["verdict"] == ""
    half = 2.5706 * np.sqrt(0.3 / 6)  # Student's t of 5; more than all cannot be
    np.testing.assert_allclose(alone["difference_95"], [0.5 - half, 1], atol=1e-4)
    many = np.repeat(ours, 9), np.repeat(theirs, 9)
    assert adapt.paired(*many)["verdict"] == "helps" and adapt.paired(*many[::-1])["verdict"] == "hurts"
    even = adapt.paired(*many, np.repeat(list("abcdef"), 9))  # of six that are alike in themselves
    assert even["difference_95"] == pytest.approx(alone["difference_95"]) and even["verdict"] == ""
    uneven = adapt.paired(ours, theirs, np.array(list("abbbcc")))  # gains of 1, 1 and 1 of 1, 3 and 2 images
    spread = np.std([0.5 + (gain - 0.5 * n) * 3 / 6 for gain, n in ((1, 1), (1, 3), (1, 2))], ddof=1)
    assert uneven["difference"] == 0.5
    assert uneven["difference_95"][0] == pytest.approx(0.5 - 4.3027 * spread / np.sqrt(3), abs=1e-4)
    assert adapt.paired(np.ones(8), np.zeros(8), np.repeat(list("abc"), [3, 3, 2]))["verdict"] == ""  # too few
    assert adapt.paired(ours, ours) == {"difference": 0.0, "difference_95": [0.0, 0.0], "verdict": ""}


def test_losses_that_are_no_numbers_are_told(variables):
    answers = {"loss": np.array([1.0, np.nan]), "top1": np.zeros(2)}
    whole = {"loss": np.ones(2), "top1": np.zeros(2)}
    conf = config.load(f"{CONFIGS}/resnet50.py:demo", [])
    with pytest.raises(UserError, match=r"1 images under tent .* lower --config.adapt.lr=0.00025"):
        adapt._rows({"tent": (answers, []), "none": (whole, [])}, {}, conf)
    with pytest.raises(UserError, match=r"2 images under none .* train again"):
        adapt._rows({"none": (answers | {"loss": np.full(2, np.inf)}, [])}, {}, conf)


# --- the command


@pytest.mark.slow
def test_none_is_what_the_run_reached_and_a_vit_has_no_batch_norm(tiny_run, tmp_path, capsys):
    run = shutil.copytree(tiny_run, tmp_path / "run")
    flags = ["--mode=adapt", "--config.adapt.condition=sharp", "--config.adapt.streams=independent"]
    assert main([f"--workdir={run}", *flags, "--config.adapt.batch_size=60"]) == 0
    said = capsys.readouterr().out
    assert "left out: bn_stream, vit has no BatchNorm" in said and "; the last of 44, not in the ms" in said
    content = json.loads((run / "adapt.json").read_text())
    row, found = json.loads((run / "results.json").read_text())["sharp"], content["streams"]["independent"]["methods"]
    assert set(found) == {"none", "tent"}
    for key in ("n", "top1", "top1_95", "top1_95_photographs"):
        assert found["none"][key] == row[key]
    assert found["none"]["loss"] == pytest.approx(row["loss"], rel=1e-5)
    assert content["left_out"] == dict.fromkeys(("bn_train", "bn_stream"), "vit has no BatchNorm")
    assert json.loads((run / "run.json").read_text())["sessions"][-1]["mode"] == "adapt"
    assert main([f"--workdir={run}", "--mode=adapt", "--config.adapt.methods=bn_stream"]) == 2
    assert "config.adapt.methods=bn_stream: vit has no BatchNorm" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("spec", "overrides", "message"),
    [
        (
            "vgg19.py",
            {"methods": "tent", "model.name": "vgg19"},
            r"adapt.methods=tent: vgg19 has no norm layers; take a model with norms",
        ),
        ("vgg19.py", {"model.name": "vgg19"}, r"config.model.name=vgg19: --mode=adapt needs norm layers"),
        ("vit.py", {"methods": "none,bn_train"}, r"bn_train: vit has no BatchNorm; leave it out, of none, tent"),
        (
            "resnet50.py",
            {"batch_size": 225},
            r"batch_size=225: more than the 224 images of photos test; use at most 224",
        ),
        (
            "resnet50.py",
            {"images": 9},
            r"batch_size=64: more than the 9 images of photos test that config.adapt.images",
        ),
        (
            "resnet50.py",
            {"methods": "none, tnet"},
            r"config.adapt.methods=none, tnet: no tnet, .* \(did you mean tent\?",
        ),
        ("resnet50.py", {"streams": "mixd"}, r"config.adapt.streams=mixd: no mixd, .* \(did you mean mixed\?\)"),
        ("resnet50.py", {"condition": "blured"}, r"config.adapt.condition=blured: .* \(did you mean blurred\?\)"),
        ("resnet50.py", {"condition": "blurred_bn_adapt"}, r"condition=blurred_bn_adapt: adapts by itself; name one"),
        ("densenet121.py", {}, r"config.task=blur_type: --mode=adapt is for classes of objects"),
    ],
)
def test_what_cannot_be_is_refused_before_a_device_is_touched(spec, overrides, message, data_dir, monkeypatch):
    def touched(*_):
        raise AssertionError("a device is touched")

    for name in ("devices", "device_count", "local_devices", "process_index", "device_put"):
        monkeypatch.setattr(jax, name, touched)
    pairs = [("data.data_dir", data_dir), *((k if "." in k else f"adapt.{k}", str(v)) for k, v in overrides.items())]
    with pytest.raises(UserError, match=message) as error:
        adapt.plan(config.load(f"{CONFIGS}/{spec}:demo", pairs))
    assert "\n" not in str(error.value)


def test_none_is_measured_and_possible_methods_are_kept(data_dir):
    pairs = [("data.data_dir", data_dir), ("adapt.methods", "tent"), ("adapt.streams", "single")]
    asked = adapt.plan(config.load(f"{CONFIGS}/vit.py:demo", pairs))
    assert (asked.methods, asked.streams, asked.left_out) == (("none", "tent"), ("single",), {})
    assert asked.config.eval_only == asked.condition == "blurred"

"""Configs: what loads, what is refused, and the one line that says so."""

import json
from pathlib import Path

import pytest

from bjax import config, experiment, options, specs
from bjax.configs import common
from bjax.data import loader
from bjax.errors import UserError

ROOT = Path(__file__).parents[1]
OTHERS = ("__init__", "common", "papers")  # papers.py is a sweep over the others
CONFIGS = sorted(p for p in (ROOT / "configs").glob("*.py") if p.stem not in OTHERS)
DEMO = str(ROOT / "configs" / "vit_mask.py") + ":demo,keep=1"


def load(*overrides, spec=DEMO):
    return config.load(spec, [tuple(o.split("=", 1)) for o in overrides])


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
@pytest.mark.parametrize("args", ["", ":demo", ":imagenette"])
def test_every_config_builds(path, args):
    c = config.load(f"{path}{args}")
    experiment.build(c, num_classes=10)
    assert not config.differences(c, config.from_json(config.to_json(c)))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_every_config_tells_its_command(path):
    assert f"python -m bjax.main --config=configs/{path.name}" in path.read_text()


def test_a_sweep_is_no_config():
    with pytest.raises(UserError, match=r"papers\.py: defines no get_config.*bjax sweep --config="):
        config.load(f"{ROOT}/configs/papers.py:demo")


def test_overrides_take_the_type_of_the_field():
    c = load(
        "optim.lr=3e-4",
        "batch_size=1e2",
        "data.flip=False",
        "blur.sigma=(0.5, 3)",
        "mask.threshold=50",
        "data.train=train[:20%]",
        "model.options.heads=2",
        "mesh.rules=(('head','replicate'),('.*','fsdp'))",
        "eval.sharp.split=unseen",
    )
    assert c.optim.lr == 3e-4 and c.batch_size == 100 and isinstance(c.batch_size, int)
    assert c.data.flip is False
    assert c.blur.sigma == (0.5, 3.0)
    assert c.mask.threshold == 50.0
    assert c.data.train == "train[:20%]"
    assert c.model.options.heads == 2
    assert c.mesh.rules == (("head", "replicate"), (".*", "fsdp"))
    assert c.eval.sharp.split == "unseen"
    assert load("eval.blurred_drop_below.mask.threshold=none").eval.blurred_drop_below.mask.threshold is None


def test_an_override_changes_one_condition():
    grid = f"{ROOT / 'configs' / 'vit_mask.py'}:demo,grid=true"
    changes = [("eval.all_sigma1.blur.sigma", "3,3"), ("eval.all_sigma1.blur.kinds.sharp", "0.5")]
    assert config.differences(config.load(grid), config.load(grid, changes)) == [
        "eval.all_sigma1.blur.kinds.sharp: 0.0 → 0.5",
        "eval.all_sigma1.blur.sigma: (1.0, 1.0) → (3.0, 3.0)",
    ]


OWN = """
from bjax.configs import common

def get_config(arg=""):
    c = common.default()
    c.blur = common.blur({"gaussian": 1.0}, sigma=(1, 2))
    masked = common.mask("zero_pixels", keep_rate=0.5)
    for name in "abc":
        c.eval[name] = common.condition("test", c.blur, masked)
    c.model.options = {"evit_layers": (1, 2), "depth": None}
    return c
"""


@pytest.fixture
def own(tmp_path):
    """A user's config, which names one blur and one mask in several places."""
    (tmp_path / "own.py").write_text(OWN)
    return str(tmp_path / "own.py")


def test_a_users_config_may_name_a_group_in_several_places(own):
    changes = {"eval.b.mask.threshold": "50", "eval.c.mask.keep_rate": "none", "eval.a.blur.kernel_size": "9"}
    plain, changed = config.load(own), config.load(own, [*changes.items(), ("blur.noise", "0,0.1")])
    assert sorted(config.differences(plain, changed)) == [
        "blur.noise: (0.0, 0.0) → (0.0, 0.1)",
        "eval.a.blur.kernel_size: 19 → 9",
        "eval.b.mask.threshold: None → 50.0",
        "eval.c.mask.keep_rate: 0.5 → None",
    ]
    assert list(changed.eval.c) == list(common.condition("test"))  # in the order written there
    assert isinstance(changed.eval.b.mask.threshold, float)


@pytest.mark.parametrize(
    ("program", "said"),
    [
        ("def get_config(arg=''):\n    return x +", ", line 2: SyntaxError: "),
        ("import nothing_of_that_name", ", line 1: ModuleNotFoundError: No module named"),
        ("\nx = 1 / 0", ", line 2: ZeroDivisionError: division by zero"),
        ("raise SystemExit(3)", ", line 1: SystemExit: 3"),
        ("import math\ndef get_config(arg=''):\n    math.sqrt(\n        -1)", ", line 3: math domain error"),
        (
            "from bjax.specs import MaskSpec\ndef get_config(arg=''):\n    return MaskSpec(mode='attend')",
            ", line 3: mode=attend: needs a threshold",
        ),
        (
            "from bjax.configs import common\ndef get_config(arg='x=1'):\n    return common.parse_arg('x=1', y=2)",
            ": unknown argument 'x=1'",
        ),
        ("get_config = 7", ": TypeError: 'int' object is not callable"),
        ("def get_config():\n    return 7", ": TypeError: get_config() takes 0 positional arguments"),
        (
            "from bjax.configs import common\ndef get_config(arg=''):\n    return common.blur(1, 2, 3, 4)",
            ", line 3: TypeError: blur() takes ",
        ),
        (
            "from bjax.configs import common\ndef get_config(arg):\n    c = common.default()\n    c.seed = 'many'",
            ", line 4: TypeError: ",
        ),
        (
            "def get_config(arg=''):\n    pass",
            ": get_config returned NoneType, not a ConfigDict; start from ",
        ),
        ("def get_config(arg=''):\n    return {'seed': 1}", ": get_config returned dict, not a ConfigDict"),
        ("def get_config(arg=''):\n    return get_config(arg)", ", line 2: RecursionError: "),
        ("\0", "source code string cannot contain null bytes"),
        ("x = '\xe9'", "SyntaxError: "),
    ],
)
def test_a_broken_config_file_is_told_by_its_line(program, said, tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(program, encoding="latin-1")
    with pytest.raises(UserError) as e:
        config.load(str(file))
    assert str(e.value).startswith(f"--config={file}")
    assert said in str(e.value)
    assert len(str(e.value).splitlines()) == 1


def test_whole_numbers_of_a_range_may_become_others(own):
    c = config.load(own, [("blur.sigma", "1.5,2.5"), ("eval.a.blur.sigma", "2.0,3")])
    assert c.blur.sigma == (1.5, 2.5)
    assert c.eval.a.blur.sigma == (2, 3) and all(isinstance(x, int) for x in c.eval.a.blur.sigma)
    layers = config.load(own, [("model.options.evit_layers", "2.7,3")])
    with pytest.raises(UserError, match=r"config\.model\.options\.evit_layers=\(2\.7, 3\): expected layers from 0"):
        experiment.build(layers, num_classes=10)


def test_conditions_to_evaluate_may_be_listed_with_spaces():
    c = load("eval_only= sharp, blurred ,")
    assert list(experiment.build(c, num_classes=10).conditions) == ["sharp", "blurred"]


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("optim.lrr=1", ["optim.lrr", "did you mean --config.optim.lr?"]),
        ("lr=1", ["lr", "did you mean --config.optim.lr?"]),
        ("zzz=1", ["zzz", "batch_size"]),
        ("optim.zzz=1", ["optim.zzz", "optim has:", "weight_decay"]),
        ("optim=1", ["optim is a group", "optim.lr"]),
        ("optim.lr.x=1", ["optim.lr.x"]),
        ("seed.zzz=1", ["seed.zzz", "seed is one value"]),
        ("optim.lr=fast", ["optim.lr", "a number", "fast"]),
        ("blur.kinds.sharp=None", ["blur.kinds.sharp", "a number", "'None'"]),
        ("optim.lr=none", ["optim.lr", "a number", "'none'"]),
        ("data.scale=none,1", ["data.scale", "a number", "'none'"]),
        ("batch_size=1.5", ["batch_size", "whole number"]),
        ("batch_size=0", ["batch_size=0", "at least 1"]),
        ("data.image_size=1000000", ["config.data.image_size=1000000", "at most 16384"]),
        ("data.threads=1000000000", ["config.data.threads=1000000000", "at most 1024"]),
        ("data.flip=maybe", ["data.flip", "true or false"]),
        ("blur.sigma=1", ["blur.sigma", "2 numbers"]),
        ("blur.sigma=a,b", ["blur.sigma", "a number", "'a'"]),
        ("task=blurtype", ["task=blurtype", "blur_type"]),
        ("data.resize=64", ["data.resize=64", "image_size=96"]),
        ("data.scale=0.5,0.2", ["data.scale"]),
        ("batch_size=1e999", ["batch_size", "a number"]),
        ("optim.ema=1", ["optim.ema=1", "less than 1"]),
        ("mesh.rules=(('[','fsdp'),)", ["mesh.rules", "regular expression"]),
        ("mesh.rules=(('a',),)", ["mesh.rules", "regular expression"]),
        ("optim.accumulate=7", ["batch_size=64", "accumulate=7"]),
    ],
)
def test_a_wrong_override_is_told_in_one_line(override, parts):
    with pytest.raises(UserError) as e:
        load(override)
    assert "\n" not in str(e.value)
    for part in parts:
        assert part in str(e.value)


@pytest.mark.parametrize(
    ("overrides", "parts"),
    [
        (["data.image_size=100"], ["config.data.image_size=100", "patch size 16", "96"]),
        (["mask.mode=gather", "mask.keep_rate=1.5"], ["config.mask.keep_rate=1.5", "(0, 1]"]),
        (["mask.mode=gather", "mask.threshold=100"], ["config.mask.mode=gather", "keep_rate"]),
        (["mask.mode=attend"], ["config.mask.mode=attend", "threshold", "keep_rate"]),
        (["mask.selector=laplacain"], ["config.mask.selector=laplacain", "did you mean laplacian?"]),
        (
            ["eval.blurred_drop_above.mask.drop=over"],
            ["config.eval.blurred_drop_above.mask.drop=over", "above"],
        ),
        (["blur.kinds.gaussian=0.7"], ["config.blur.", "kinds"]),
        (["eval_only=sharp,blured"], ["config.eval_only", "no condition blured", "blurred_drop_above"]),
        (["model.options.depth=-1"], ["config.model.options.depth=-1", "at least 1"]),
        (["model.options.depth=1000000"], ["config.model.options.depth=1000000", "at most 1,000"]),
        (["blur.kernel_size=100001"], ["config.blur.kernel_size=100001", "up to 1,025"]),
        (["model.options.depth=six"], ["config.model.options.depth=six", "a number"]),
        (["model.options.dropout=2"], ["config.model.options.dropout=2", "[0, 1)"]),
        (["model.name=resnet5"], ["config.model.name=resnet5", "resnet50"]),
        (["model.options.varant=S/16"], ["config.model.options", "variant"]),
        (["model.options.variant=XL/16"], ["config.model.options.variant", "S/16"]),
    ],
)
def test_an_impossible_combination_is_told_in_one_line(overrides, parts):
    with pytest.raises(UserError) as e:
        experiment.build(load(*overrides), num_classes=10)
    assert "\n" not in str(e.value)
    for part in parts:
        assert part in str(e.value)


def test_the_blur_type_demo_is_tested_on_photographs_that_it_does_not_train_on(data_dir):
    c = config.load(f"{ROOT / 'configs' / 'densenet121.py'}:demo")
    built = experiment.build(c, num_classes=14)
    assert built.objective.num_classes == 4
    assert list(built.conditions) == ["unseen"]
    assert built.conditions["unseen"].inputs.blur == built.train.blur

    def photographs(split):
        examples = loader.open_split(c.data.name, split, data_dir=data_dir)
        return {example["file_name"].split(f"_{split}_")[0] for example in examples}

    train, unseen = photographs(c.data.train), photographs(c.eval.unseen.split)
    assert len(train) == 10 and len(unseen) == 4
    assert not train & unseen


def test_a_cnn_takes_only_erased_pixels():
    c = load()
    c.model.name, c.model.options, c.eval = "resnet50", {}, {}
    experiment.build(c, num_classes=10)
    c.mask.update(mode="attend", threshold=100.0)
    with pytest.raises(UserError, match=r"config.mask.mode=attend: resnet50 has no tokens"):
        experiment.build(c, num_classes=10)


@pytest.mark.parametrize(
    ("name", "smallest"), [("vgg19", 32), ("vgg19_bn", 32), ("googlenet", 15), ("densenet121", 29)]
)
def test_images_too_small_for_a_model_are_refused_before_anything_runs(name, smallest):
    c = load()
    c.model.name, c.model.options, c.eval, c.mask.mode = name, {}, {}, "none"
    c.data.image_size = smallest
    experiment.build(c, num_classes=10)
    c.data.image_size = smallest - 1
    message = rf"config\.data\.image_size={smallest - 1}: {name} needs at least {smallest} pixels a side"
    with pytest.raises(UserError, match=message):
        experiment.build(c, num_classes=10)


@pytest.mark.parametrize(
    ("spec", "parts"),
    [
        ("configs/vit_maks.py", ["no such file", "did you mean configs/vit_mask.py?"]),
        (f"{DEMO},variant", ["unknown argument 'variant'", "variant=…"]),
        (f"{DEMO.partition(':')[0]}:dmeo", ["unknown argument 'dmeo'", "demo?"]),
        (f"{DEMO},train=blur", ["train=blur", "mix"]),
        (f"{DEMO},fraction=some", ["fraction=some", "int"]),
    ],
)
def test_a_wrong_config_argument_is_told_in_one_line(spec, parts, monkeypatch):
    monkeypatch.chdir(ROOT)
    with pytest.raises(UserError) as e:
        config.load(spec)
    assert "\n" not in str(e.value)
    for part in parts:
        assert part in str(e.value)


@pytest.mark.parametrize(
    ("overrides", "devices", "message"),
    [
        (["batch_size=60"], 8, r"config.batch_size=60: not divisible by the 8 devices; .* such as 64"),
        (["eval_batch_size=60"], 8, r"config.eval_batch_size=60: .* such as 64"),
        (["batch_size=64", "optim.accumulate=16"], 8, r"in 16 parts: .* multiple of 128, such as 128"),
        (["mesh.fsdp=3"], 8, r"config.mesh.fsdp=3: does not divide the 8 devices"),
        (["mesh.data=3", "mesh.fsdp=2"], 8, r"config.mesh.data=3: with fsdp=2, 8 devices need 4"),
    ],
)
def test_batches_and_mesh_must_fit_the_devices(overrides, devices, message):
    with pytest.raises(UserError, match=message):
        config.check_devices(load(*overrides), devices)
    config.check_devices(load(), devices)


def test_arguments_are_separated():
    overrides, rest = config.split_arguments(["--config=x", "--config.a.b=1=2", "--mode=eval"])
    assert overrides == [("a.b", "1=2")]
    assert rest == ["--config=x", "--mode=eval"]
    with pytest.raises(UserError, match=r"expected --config\.KEY=VALUE"):
        config.split_arguments(["--config.a.b", "1"])


# --- config.json of earlier versions


def unset(config, key):
    """Removes a dotted key from nested dictionaries; "*" stands for every name."""
    head, _, rest = key.partition(".")
    for name in list(config) if head == "*" else [head]:
        if rest:
            unset(config[name], rest)
        else:
            del config[name]


def added():
    for key, f in (*options.leaves(specs.Run), *options.leaves(specs.Condition, "eval.*.")):
        if f.metadata["added"]:
            yield key, f.default


def test_fields_that_were_added_are_filled_and_named(tmp_path):
    c = config.load(f"{ROOT / 'configs' / 'vit.py'}:demo", [("gallery", "0")])
    old = json.loads(config.to_json(c))
    for key, _ in added():
        unset(old, key)
    (tmp_path / "config.json").write_text(json.dumps(old))
    told = []
    read = config.read(tmp_path / "config.json", told.append)
    assert not config.differences(read, c)
    [line] = told
    assert line.startswith(f"{tmp_path}/config.json: older than some fields; ")
    for key, value in added():
        assert f"{key}={value!r}" in line
    told.clear()
    (tmp_path / "config.json").write_text(config.to_json(read))
    config.read(tmp_path / "config.json", told.append)
    assert not told


def test_every_field_is_known_to_old_runs():
    """An option that bjax.specs gets is to be marked as added, with what a run without it did as its default."""
    defaults = common.default()
    defaults.eval.x = common.condition("test")
    old = config.from_json_values(
        config.read_plain(ROOT / "tests" / "golden" / "config.json")
    )  # as version 0.1.0 left it
    old.eval = {"x": old.eval.sharp}
    keys = {
        name: {k for k, _ in config.leaves(c) if not k.startswith("model.options.")}
        for name, c in {"old": old, "new": defaults}.items()
    }
    assert keys["old"] == keys["new"]
    values = dict(config.leaves(defaults))
    assert {k: values[k.replace("*", "x")] for k, _ in added()} == dict(added())


@pytest.mark.parametrize("text", ["[]", "1", "{", "\0", "\xff"])
def test_a_damaged_config_of_a_run_is_told_in_one_line(text, tmp_path):
    (tmp_path / "config.json").write_text(text, encoding="latin-1")
    with pytest.raises(UserError, match=r"config\.json: damaged .*; delete it"):
        config.read(tmp_path / "config.json")


def test_a_field_that_is_missing_is_named(tmp_path):
    old = json.loads(config.to_json(load()))
    unset(old, "optim.lr")
    (tmp_path / "config.json").write_text(json.dumps(old))
    with pytest.raises(UserError, match=r"config\.optim\.lr: missing; .*configs\.common\.default"):
        config.reload(tmp_path / "config.json")

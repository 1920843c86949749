"""Any text for a config, any bytes of a weight file or of a data set's description: a value, or a UserError."""

import io
import struct
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bjax import config as configs
from bjax import experiment, models, weights
from bjax.data import prepared
from bjax.errors import UserError, command
from tests.conftest import ROOT

QUICK = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
BASE = configs.load(f"{ROOT}/configs/vit_mask.py:demo")
KEYS = sorted(key for key, _ in configs.leaves(BASE))
NUMBERS = st.one_of(st.integers(), st.floats(), st.sampled_from([10**400, -(10**400), 2**63, 1e308]))
VALUES = st.recursive(
    st.none() | st.booleans() | NUMBERS | st.text(max_size=8),
    lambda x: st.lists(x, max_size=3) | st.lists(x, max_size=3).map(tuple) | st.dictionaries(st.text(max_size=3), x),
    max_leaves=6,
)
ODD = ["(" * 3000, "{[]: 1}", "'\\d'", "1" * 5000, "9e9999", "1_0", "0x10", "1if 1else 2"]
TEXTS = st.one_of(st.text(max_size=30), VALUES.map(repr), st.sampled_from(ODD))


@given(st.sampled_from(KEYS) | st.text(max_size=20), TEXTS)
@QUICK
def test_an_override_is_a_value_or_a_user_error(key, text):
    config = configs.copied(BASE)
    try:
        configs._overridden(config, [(key, text)])
        experiment.build(config, num_classes=3)
    except UserError:
        return
    assert configs.from_json(configs.to_json(config)).to_dict().keys() == config.to_dict().keys()


OPTIONS = {
    "resnet18": ("stages", "bottleneck", "width"),
    "vgg19": ("stages", "batch_norm", "hidden", "dropout"),
    "googlenet": ("aux_heads", "transform_input", "dropout", "aux_dropout"),
    "densenet121": ("stages", "growth", "width", "dropout"),
    "vit": ("variant", "depth", "width", "heads", "mlp_dim", "dropout", "representation_size", "evit_keep", "tome_r"),
    "vit ": ("drop_path", "tanh_gelu", "evit_layers"),
}


@given(st.data())
@QUICK
def test_an_option_of_a_model_is_good_or_a_user_error(data):
    name = data.draw(st.sampled_from(sorted(OPTIONS)))
    option, value = data.draw(st.sampled_from(OPTIONS[name])), data.draw(VALUES)
    try:
        model = models.build(name.strip(), num_classes=3, **{option: value})
    except UserError as error:
        told = str(error)
    else:
        told = option if getattr(model, "smallest", 1) >= 1 else ""
    assert option in told


@pytest.mark.parametrize("name", ["vgg19", "densenet121", "resnet50"])
@pytest.mark.parametrize("stages", ["3", "(3, 4.5)", "()", "((3, 4), 5)", "three", "(0,)", "None", "True"])
def test_wrong_stages_name_their_key(name, stages):
    config = configs.copied(BASE)
    pairs = [("model.name", name), ("model.options.stages", stages), ("mask.mode", "none"), ("eval_only", "sharp")]
    for option in list(config.model.options):
        del config.model.options[option]
    config = configs._overridden(config, pairs)
    with pytest.raises(UserError, match=r"^config\.model\.options\.stages=.*: expected "):
        experiment.build(config, num_classes=3)


def test_a_mistake_is_one_line_whatever_text_it_repeats(capsys):
    def run(argv):
        raise UserError(f"--config.lr={argv[0]}: expected a number")

    assert command(run, ["1\n2\x1b[2J\udcff"]) == 2
    assert capsys.readouterr().err == "bjax: --config.lr=1\\n2\\x1b[2J\\udcff: expected a number\n"


def _files() -> dict[str, bytes]:
    tensors = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.zeros(0, np.float16)}
    archive = io.BytesIO()
    np.savez(archive, **tensors)
    return {"x.npz": archive.getvalue(), "x.safetensors": safetensors.numpy.save(tensors)}


FILES = _files()


@st.composite
def spoiled(draw):
    """A weight file's name, and its bytes with some changed, cut, or with another header."""
    name = draw(st.sampled_from(sorted(FILES)))
    data = bytearray(FILES[name])
    for _ in range(draw(st.integers(0, 4))):
        data[draw(st.integers(0, len(data) - 1))] = draw(st.integers(0, 255))
    if name.endswith("tensors") and draw(st.booleans()):
        header = draw(st.text(max_size=60)).encode()
        data = bytearray(struct.pack("<Q", draw(st.sampled_from([len(header), 0, 2**40, 2**63]))) + header)
    return name, bytes(data[: draw(st.integers(0, len(data)))] if draw(st.booleans()) else data)


@given(spoiled() | st.tuples(st.sampled_from(["x.npz", "x.safetensors", "x.pth", "x"]), st.binary(max_size=60)))
@QUICK
def test_a_weight_file_is_tensors_or_a_user_error(tmp_path, file):
    path = tmp_path / file[0]
    path.write_bytes(file[1])
    try:
        tensors, told = weights.read(path), str(path)
    except UserError as error:
        tensors, told = {}, str(error)
    assert str(path) in told
    assert all(isinstance(x, np.ndarray) for x in tensors.values())


@given(st.sampled_from(["dataset_info.json", "features.json", "label.labels.txt"]), st.data())
@settings(parent=QUICK, max_examples=40)
def test_a_description_of_a_data_set_is_good_or_named(tmp_path, described, name, data):
    content = bytearray(described[name])
    if data.draw(st.booleans()):
        content = data.draw(
            st.binary(max_size=50) | VALUES.map(lambda x: repr(x).replace("'", '"').encode(errors="replace"))
        )
    else:
        for _ in range(data.draw(st.integers(1, 5))):
            content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    folder = tmp_path / "1.1.0"
    folder.mkdir(exist_ok=True)
    for file, good in (described | {name: bytes(content)}).items():
        (folder / file).write_bytes(good)
    fault = prepared.fault_of(folder)
    assert fault is None or name in fault or name == "features.json"


@pytest.fixture(scope="module")
def described(data_dir):
    """{file: bytes} of what describes the embedded photographs."""
    folder = Path(prepared.find("photos", data_dir).data_dir)
    return {name: (folder / name).read_bytes() for name in ("dataset_info.json", "features.json", "label.labels.txt")}

"""The arithmetic of the benchmarks of rates, what they need, and that their checks find what is wrong."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import checks, compiled, gpu, rates, roofline, startup
from bjax import models
from bjax.aot import hlo, programs, targets
from bjax.aot.targets import CHIPS
from bjax.runtime import sharding

ROOT = Path(__file__).parents[1]
SECONDS = {("bjax", ""): [1.0, 2.0, 4.0], ("torch", "eager"): [3.0, 3.0, 6.0], ("torch", "compiled"): [1.0, 2.2, 8.0]}


def test_a_ratio_is_that_within_rounds_and_the_better_form_counts():
    found = {"torch": {"failed": {}}}
    ours = rates.compared(SECONDS, found, images=8)
    assert ours == {"images_per_s": 4.0, "lowest": 2.0, "highest": 8.0, "seconds": [1.0, 2.0, 4.0]}
    # Of the medians 3.0 and 2.2 the second is less; its ratios are 1, 1.1 and 2.
    theirs = found["torch"]
    assert (theirs["form"], theirs["forms"]) == ("compiled", ["eager", "compiled"])
    assert theirs["ratio"] == pytest.approx(1.1)
    assert (theirs["images_per_s"], theirs["lowest"], theirs["highest"]) == pytest.approx((8 / 2.2, 1.0, 8.0))


def test_a_peer_that_is_slower_has_a_ratio_above_one():
    assert rates.ratio([1.0, 1.0, 1.0], [2.0, 1.5, 9.0]) == 2.0


def test_cells_say_what_is_off_and_by_how_much_is_tolerated():
    own = rates.spread([1.0], 10)
    peer = {"form": "eager", "ratio": 1.25, "off_by": 0.02, "tolerance": 0.01, **rates.spread([1.25], 10)}
    (line,) = rates.cells({"model": "vit", "of_roofline": 0.456, "peers": {"torch": peer}, **own})
    assert dict(zip(rates.HEADER, line, strict=True))["off by"] == "2.0e-02 (> 1.0e-02)"
    assert line[:4] == ("vit", "10.0", "10.0–10.0", "46 %")
    assert len(rates.cells({"model": "vit", "peers": {}, **own})[0]) == len(rates.HEADER)


def test_devices_are_known_by_their_whole_names():
    assert roofline.chip("NVIDIA H200") is CHIPS["h200"]
    assert roofline.chip("TPU v5 lite") is CHIPS["v5e"]
    assert roofline.chip("TPU v5") is CHIPS["v5p"]
    # Of another memory, or a part of one.
    for kind in ("cpu", "NVIDIA H100 PCIe", "NVIDIA A100-SXM4-40GB", "NVIDIA H200 MIG 1g.18gb"):
        assert roofline.chip(kind) is None
    assert {*roofline.KINDS.values()} == {*CHIPS}


@pytest.mark.parametrize(
    ("name", "train", "expected"),
    # Of an image of 224 px in bfloat16: ResNet50's convolutions write 11.1 million numbers and read 10.6, and BatchNorm
    # passes eight times over the former: 2 · (3 · 21.7 + 8 · 11.1) = 308 MB in training, beside the weights.
    [("resnet50", True, 310e6), ("resnet50", False, 43.6e6), ("vit", False, 73e6)],
)
def test_bytes_are_those_of_layer_by_layer(name, train, expected):
    model = models.build(name, dtype=jnp.bfloat16, **rates.MODELS[name])
    mesh = sharding.make_mesh(1, 1, jax.devices()[:1])
    shapes = rates._state(model, name, 224, mesh)[2]
    images = jax.ShapeDtypeStruct((256, 224, 224, 3), jnp.float32)
    assert roofline.moved(model, shapes, images, train=train) / 256 == pytest.approx(expected, rel=0.02)


def test_the_longer_of_operations_and_bytes_is_the_bound():
    chip = CHIPS["h200"]
    assert roofline.seconds(989e12, 1, chip, "bfloat16") == pytest.approx(1)
    assert roofline.seconds(989e12, 1, chip, "float32") == pytest.approx(989 / 494)
    assert roofline.seconds(1, 9.6e12, chip, "bfloat16") == pytest.approx(2)


def test_the_command_for_a_gpu_needs_no_more_than_a_bare_machine_has():
    program = """
import sys
sys.argv = ["benchmarks.gpu"]
import benchmarks.gpu
heavy = "tensorflow_datasets grain orbax ml_collections PIL scipy dm_pix tqdm requests torch timm cv2 tensorboardX"
print(sorted(x for x in heavy.split() if x in sys.modules))
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode, done.stdout, done.stderr) == (0, "[]\n", "")


def test_a_check_finds_another_blur_and_another_gradient(monkeypatch):
    assert checks.blurred("defocus", 32)[0] <= checks.blurred("defocus", 32)[1]
    monkeypatch.setitem(checks.BLURS, "defocus", lambda images: images)
    error, tolerated = checks.blurred("defocus", 32)
    assert error > tolerated
    pool = checks.POOLS["3/2 padded"]
    assert checks.pooled(*pool, "float32") == (0.0, 0.0)
    monkeypatch.setattr(checks, "max_pool", lambda x, window, stride, **_: x[:, ::2, ::2])
    assert checks.pooled(*pool, "float32")[0] > 0


def report_of(tmp_path, cells, seconds=60.0, dry=False):
    report = {"checks": {}, "rows": {}, "failed": {}, "left_out": [], "dry": dry}
    report |= rates.about(rates.Sizes(2, 64, "bfloat16", 1, 1, False))
    gpu.run(cells(report), report, tmp_path, seconds)
    return json.loads((tmp_path / "gpu.json").read_text()), (tmp_path / "gpu.md").read_text()


def test_the_page_of_compiled_steps_has_every_kind(monkeypatch, tmp_path):
    module = hlo.parse((ROOT / "tests" / "hlo" / "h200x8.txt").read_text())
    found = hlo.by_kind(hlo.kernels(module))
    kinds = {kind: {**k, "bytes": 10**9 * (n + 1)} for n, (kind, k) in enumerate(found.items())}
    program = programs.Program(1.0, peak=2 * 10**9, traffic=45 * 10**9, kinds=kinds)
    monkeypatch.setattr(targets, "check_installed", lambda target: None)
    monkeypatch.setattr(targets, "devices", lambda target: jax.devices()[:1])
    monkeypatch.setattr(programs, "train", lambda exp: program)
    monkeypatch.setattr(programs, "evaluation", lambda exp, condition: program)
    assert compiled.main(["--on=h200x1", "--models=densenet121,vit_mask", f"--out={tmp_path / 'page.md'}"]) == 0
    page = (tmp_path / "page.md").read_text()
    for name in ("densenet121", "vit_mask"):
        train, infer = (line.split(" | ") for line in page.splitlines() if line.startswith(f"| {name}"))
        assert train[2:4] == ["train", "45.0"] and infer[2] == "infer"
        assert sum(float(x.strip(" |") or 0) for x in train[7:]) == sum(range(1, len(kinds) + 1))
    assert float(train[4]) > float(infer[4])  # half of the tokens, three times
    assert "- vit_mask, train, h200x1: 2 convolution, 3 matmul" in page


def row(**more):
    return {"model": "resnet50", "mode": "train", "peers": {}, **rates.spread([0.1], 512), **more}


def test_a_cell_that_fails_leaves_the_others_and_what_is_too_long_is_left_out(tmp_path, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(gpu, "time", SimpleNamespace(monotonic=lambda: clock[0]))

    def cells(report):
        def slow():
            clock[0] += 30
            report["rows"]["train-resnet50"] = row(of_roofline=0.5)

        def fails():
            clock[0] += 1
            raise ValueError("no such kernel")

        return {"train-resnet50": slow, "infer-vit": fails, "train-vit": lambda: pytest.fail("there was no time")}

    found, page = report_of(tmp_path, cells, seconds=60)
    assert found["failed"] == {"infer-vit": "ValueError: no such kernel"}
    assert found["left_out"] == ["train-vit"]
    assert "| train-resnet50 | 5,120 | 5,120–5,120 | 50% | ≥ 45% |" in page
    assert "- infer-vit: ValueError: no such kernel\n- train-vit: no time was left" in page


def test_a_dry_run_fills_no_cell_of_a_gpus(tmp_path):
    def cells(report):
        return {"train-resnet50": lambda: report["rows"].update({"train-resnet50": row()})}

    _, page = report_of(tmp_path, cells, dry=True)
    assert "| train-resnet50 |  |  |  | ≥ 45% |" in page
    assert "5,120" not in page


def test_a_sync_that_is_planted_is_seen():
    x = jnp.ones(3)
    assert "Disallowed host-to-device transfer" in startup.seen(lambda: x + np.ones(3, np.float32))
    assert startup.seen(lambda: jax.device_put(np.ones(3))) == ""
    assert startup.beyond([1.0, 2.0, 5.0], [2.0, 2.5, 9.0]) == 1.0


@pytest.mark.slow
def test_rates_of_the_same_function_beside_torch(tmp_path, capsys):
    if not importlib.util.find_spec("torchvision"):
        pytest.skip("torchvision is not installed")
    from benchmarks import infer, train

    out = tmp_path / "rates.json"
    tiny = ["--batch=2", "--size=64", "--rounds=1", "--against=torch", f"--json={out}"]
    assert infer.main(["--models=resnet50,vit", *tiny]) == 0
    for found in json.loads(out.read_text())["rows"]:
        peer = found["peers"]["torch"]
        assert peer["off_by"] <= peer["tolerance"]
        assert peer["ratio"] == pytest.approx(peer["seconds"][0] / found["seconds"][0])
    assert train.main(["--models=vit", "--kernels", *tiny]) == 0
    (row,) = json.loads(out.read_text())["rows"]
    assert row["model"] == "vit"
    assert row["kernels"]["matmul"] > 0 and list(row["kernels"].values()) == sorted(row["kernels"].values())[::-1]
    assert " % matmul" in capsys.readouterr().out


@pytest.mark.slow
def test_the_command_for_a_gpu_runs_dry(tmp_path):
    assert gpu.main([f"--out={tmp_path}", "--only=blur-gaussian,blur-defocus,infer-resnet50"]) == 0
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert found["dry"]
    assert list(found["rows"]) == ["blur-gaussian", "blur-defocus", "infer-resnet50"]
    assert np.isfinite(found["rows"]["blur-gaussian"]["images_per_s"])

"""Programs for chips that are not there: what is counted in their text, and what the chips' rates make of it."""

import json
import subprocess
import sys
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax

from bjax.aot import bounds, flops, hlo, programs, targets
from bjax.errors import UserError
from bjax.runtime import sharding
from launch import preflight

# A small step (convolution, max-pooling, slices, products; its gradient) as both kinds of compilers left it.
EXCERPTS = Path(__file__).parent / "hlo"


def found(text: str) -> dict[str, hlo.Kernel]:
    return {k.name: k for k in hlo.kernels(hlo.parse(text))}


def excerpt(name: str) -> str:
    return (EXCERPTS / f"{name}.txt").read_text()


# --- what programs do


def test_a_gpus_pooling_writes_four_indices_beside_each_maximum():
    kernel = found(excerpt("h200x8"))["loop_reduce_window_fusion"]
    image, pooled = 8 * 32 * 32 * 32, 8 * 16 * 16 * 32
    assert (kernel.kind, kernel.read, kernel.written) == ("pooling", 2 * image * 2, pooled * 5 * 4)


def test_kinds_and_collectives_of_a_gpus_program():
    module = hlo.parse(excerpt("h200x8"))
    kinds = hlo.by_kind(hlo.kernels(module))
    assert {k: row["kernels"] for k, row in kinds.items() if k in ("convolution", "matmul", "scatter", "pooling")} == {
        "convolution": 2,
        "matmul": 3,
        "scatter": 1,
        "pooling": 3,
    }
    # The loss and a gradient of 48 × 16 in float32; the kernel's gradient of 3 × 3 × 8 × 32 in bfloat16.
    assert hlo.collectives(module) == {"all-reduce": {"calls": 2, "arrays": 2, "bytes": 4 * 769 + 2 * 2304}}


def test_room_to_work_in_is_no_traffic():
    product = found(excerpt("h200x8"))["custom-call.7"]  # its last result is of 4 MiB
    assert product.written == 8 * 16 * 4 and product.read == 8 * 48 * 4 + 48 * 16 * 4


def test_what_stays_in_a_tpus_vector_memory_is_no_traffic():
    kernels = found(excerpt("v5e-1"))
    moved = kernels["copy-start"]  # from memory to where the units read it
    assert moved.kind == "copy" and moved.read == 64 * 32 * 32 * 8 * 2 and moved.written == 0
    assert sum(k.read + k.written for k in kernels.values()) < 2e6  # of 93 MB that the units read and write
    sent = hlo.collectives(hlo.parse("  %a = (f32[4]{0:S(1)}, f32[2]{0}) all-reduce(%b, %c)"))
    assert sent["all-reduce"]["bytes"] == 24  # what is sent is sent from there too


def test_of_what_is_cut_on_the_way_to_vector_memory_only_the_cut_is_read():
    text = """
  %whole = f32[1000,8]{1,0} parameter(0)
  %inside = f32[1000,8]{1,0:S(1)} parameter(1)
  %to = ((f32[1000,8]{1,0}), f32[10,8]{1,0:T(8,128)S(1)}, s32[]{:S(2)}) slice-start(%whole), slice={[0:10], [0:8]}
  %done = f32[10,8]{1,0:S(1)} slice-done(%to)
  %back = ((f32[1000,8]{1,0:S(1)}), f32[10,8]{1,0:T(8,128)}, s32[]{:S(2)}) slice-start(%inside), slice={[0:10], [0:8]}
  %at_once = f32[10,8]{1,0:S(1)} slice(%whole), slice={[0:10], [0:8]}
"""
    moved = {k.name: (k.kind, k.read, k.written) for k in hlo.kernels(hlo.parse(text))}
    cut = 10 * 8 * 4
    assert moved["to"] == moved["at_once"] == ("copy", cut, 0)
    assert moved["done"] == ("copy", 0, 0) and moved["back"] == ("copy", 0, cut)


LOOP = """
%slice_of (p0: f32[1000,8], p1: s32[]) -> f32[1,8] {
  %p0 = f32[1000,8]{1,0} parameter(0)
  %p1 = s32[] parameter(1)
  %zero = s32[] constant(0)
  %cut = f32[1,8]{1,0} dynamic-slice(%p0, %p1, %zero), dynamic_slice_sizes={1,8}
  ROOT %twice = f32[1,8]{1,0} add(%cut, %cut)
}

%put (q0: f32[1000,8], q1: f32[1,8], q2: s32[]) -> f32[1000,8] {
  %q0 = f32[1000,8]{1,0} parameter(0)
  %q1 = f32[1,8]{1,0} parameter(1)
  %q2 = s32[] parameter(2)
  %none = s32[] constant(0)
  ROOT %updated = f32[1000,8]{1,0} dynamic-update-slice(%q0, %q1, %q2, %none)
}

%body (c: (s32[], f32[1000,8])) -> (s32[], f32[1000,8]) {
  %c = (s32[], f32[1000,8]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%c), index=0
  %x = f32[1000,8]{1,0} get-tuple-element(%c), index=1
  %part = f32[1,8]{1,0} fusion(%x, %i), kind=kLoop, calls=%slice_of
  %all = f32[1000,8]{1,0} fusion(%x, %part, %i), kind=kLoop, calls=%put
  ROOT %next = (s32[], f32[1000,8]{1,0}) tuple(%i, %all)
}

ENTRY %main (a: (s32[], f32[1000,8])) -> (s32[], f32[1000,8]) {
  %a = (s32[], f32[1000,8]{1,0}) parameter(0)
  ROOT %loop = (s32[], f32[1000,8]{1,0}) while(%a), body=%body, backend_config={"known_trip_count":{"n":"500"}}
}
"""


def test_of_what_a_fusion_is_given_only_what_it_needs_is_read_and_updates_are_in_place():
    kernels = found(LOOP)
    row = 8 * 4
    assert kernels["part"].read == row + 4 and kernels["part"].written == row and kernels["part"].times == 500
    assert kernels["all"].read == row + 4 and kernels["all"].written == row
    assert hlo.by_kind(list(kernels.values()))["copy"] == {"kernels": 500, "bytes": 500 * (2 * row + 4)}


@pytest.mark.parametrize(
    "function",
    [
        lambda x: jnp.tanh(x[:, :100]) + x[:, 100:200],
        lambda x: jnp.concatenate([x[:, :7], 2 * x], axis=1),
        lambda x: (x - x.mean(axis=1, keepdims=True)).astype(jnp.bfloat16),
        lambda x: jnp.tanh(x @ x.T),
        lambda x: jnp.pad(x, ((1, 2), (3, 4))) * 2,
    ],
)
def test_bytes_are_those_of_xlas_own_analysis(function):
    program = jax.jit(function).lower(jax.ShapeDtypeStruct((300, 1000), jnp.float32)).compile()
    kernels = hlo.kernels(hlo.parse(program.as_text()))
    ours = sum(k.times * (k.read + k.written) for k in kernels)
    assert ours == pytest.approx(program.cost_analysis()["bytes accessed"], rel=0.01)


@settings(max_examples=30, deadline=None)
@given(
    size=st.integers(5, 13),
    window=st.integers(1, 4),
    stride=st.integers(1, 3),
    dilation=st.integers(1, 2),
    groups=st.sampled_from([1, 2]),
    padding=st.sampled_from(["SAME", ((0, 1), (2, 0))]),
)
def test_operations_of_convolutions_and_their_gradients_are_xlas(size, window, stride, dilation, groups, padding):
    def convolve(x, w):
        numbers = ("NHWC", "HWIO", "NHWC")
        return lax.conv_general_dilated(
            x,
            w,
            (stride, stride),
            padding,
            rhs_dilation=(dilation, dilation),
            dimension_numbers=numbers,
            feature_group_count=groups,
        )

    x = jax.ShapeDtypeStruct((4, size, size + 2, 6), jnp.float32)
    w = jax.ShapeDtypeStruct((window, window, 6 // groups, 8), jnp.float32)
    y = jax.eval_shape(convolve, x, w)

    def both(x, w, g):
        result, back = jax.vjp(convolve, x, w)
        return result, back(g)

    for function, args in ((convolve, (x, w)), (both, (x, w, y))):
        theirs = jax.jit(function).lower(*args).cost_analysis().get("flops", 0.0)
        assert flops.of(function, *args, device=jax.devices()[0]) == theirs


def test_operations_in_loops_and_branches_and_on_several_devices():
    x = jax.ShapeDtypeStruct((8, 16, 16), jnp.float32)
    one = 2 * 16**3

    def looped(x):
        return lax.scan(lambda c, m: (c @ m, None), jnp.eye(16), x)[0]

    def branched(x):
        return lax.cond(x[0, 0, 0] > 0, lambda m: m @ m @ m, lambda m: m @ m, x[0])

    mesh = sharding.make_mesh(-1, 1, jax.devices()[:4])
    split = jax.shard_map(lambda x: x @ x, mesh=mesh, in_specs=sharding.BATCH, out_specs=sharding.BATCH)
    device = jax.devices()[0]
    assert [flops.of(f, x, device=device) for f in (looped, branched, split)] == [8 * one, 2 * one, 8 * one]


@pytest.mark.parametrize(("platform", "products"), [("cpu", 0), ("tpu", 2), ("gpu", 1)])
def test_operations_are_those_of_the_platform(platform, products):
    def blur(x):
        return lax.platform_dependent(x, cpu=jnp.sin, tpu=lambda x: x @ x @ x, cuda=lambda x: x @ x, default=jnp.cos)

    def library(x):
        return lax.platform_dependent(x, cuda=jnp.sin, default=lambda x: x @ x)

    device = types.SimpleNamespace(platform=platform)
    assert flops.of(blur, jnp.eye(16), device=device) == products * 2 * 16**3
    assert flops.of(library, jnp.eye(16), device=device) == 2 * 16**3


# --- what chips make of them


def test_a_bound_is_the_longest_of_three():
    on = targets.target("h100x4")
    program = programs.Program(
        4e12, traffic=10**9, collectives={"all-reduce": {"calls": 1, "arrays": 1, "bytes": 10**9}}
    )
    found = bounds.bound(program, on, "bfloat16")
    assert (found.compute, found.memory, found.links) == pytest.approx((1e12 / 989e12, 1e9 / 3.35e12, 1.5e9 / 450e9))
    assert found.reason == "links" and found.seconds == found.links
    slower = bounds.bound(program, targets.target("h100x16"), "bfloat16")  # two hosts: through the network
    assert slower.links == pytest.approx(2 * 15 / 16 * 1e9 / 50e9)
    assert bounds.bound(program, on, "float32").compute == pytest.approx(1e12 / 494e12)


def test_what_is_sent_is_sent_among_the_devices_that_share():
    on = targets.target("h200x8")
    for kind, sent in (("all-gather", 3 / 4), ("reduce-scatter", 3), ("all-reduce", 1)):  # 2 × 4: of 4, 4 and 2
        program = programs.Program(0, collectives={kind: {"calls": 1, "arrays": 1, "bytes": 450 * 10**9}})
        assert bounds.bound(program, on, "bfloat16", fsdp=4).links == pytest.approx(sent)


@pytest.mark.parametrize(
    ("name", "chips", "shape"),
    [
        ("v5e-1", 1, (1, 1)),
        ("v5e-8", 8, (2, 4)),
        ("v6e-16", 16, (4, 4)),
        ("v4-8", 4, (2, 2, 1)),
        ("v5p-32", 16, (2, 2, 4)),
    ],
)
def test_tpus_are_counted_as_the_clouds_do(name, chips, shape):
    on = targets.target(name)
    assert on.number == chips and targets.slice_of(on) == shape


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("h300x8", "--on=h300x8: no such chip (did you mean h200?); there are a100x8"),
        ("h200", "--on=h200: how many is said as in h200x1"),
        ("v5e", "--on=v5e: how many is said as in v5e-8"),
        ("v5ex8", "--on=v5ex8: how many is said as in v5e-8"),
        ("v5e-7", "--on=v5e-7: there are v5e-N of N = 1, 4, 8, 16"),
        ("h200x12", "--on=h200x12: there are h200xN of N = 1, 2, 3"),
        ("v4-4", "--on=v4-4: there are v4-N of N = 8, 16"),
    ],
)
def test_a_target_that_is_none_is_refused_with_those_there_are(name, told):
    with pytest.raises(UserError) as error:
        targets.target(name)
    assert str(error.value).startswith(told)


@pytest.mark.parametrize(
    ("told", "peak"),
    [
        (
            "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries (160.00G) "
            "exceeds available HBM (15.75G).",
            160 * 2**30,
        ),
        ("RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 20.50G of 15.75G hbm.", 20.5 * 2**30),
    ],
)
def test_a_program_too_big_for_a_tpu_says_how_big(told, peak):
    program = programs.too_big(1e12, told)
    assert program.peak == peak and program.too_big and program.flops == 1e12


# --- the command


@pytest.fixture
def on_cpus(monkeypatch, tmp_path):
    """Targets are this machine's own devices, and nothing is remembered."""
    monkeypatch.setattr(targets, "check_installed", lambda target: None)
    monkeypatch.setattr(targets, "devices", lambda target: jax.devices()[: target.number])
    monkeypatch.setattr(programs, "KEPT", tmp_path / "kept")
    return tmp_path


TINY = ["--config=vit.py", "--config.data.image_size=32", "--config.model.options.variant=Ti/16"]
TINY += ["--config.model.options.depth=1", "--config.batch_size=64", "--config.eval_batch_size=64"]


def test_preflight_tells_what_fits_and_how_fast_it_is_at_best(on_cpus, capsys, monkeypatch):
    file, page = on_cpus / "rows.json", on_cpus / "page.md"
    assert preflight.main([*TINY, "--on=h200x1,v5e-4", f"--json={file}", f"--out={page}"]) == 0
    told, rows = capsys.readouterr().out, json.loads(file.read_text())
    assert "vit.py on h200x1: fits" in told and "vit.py on v5e-4: fits" in told
    assert all(len(line) <= 80 for line in told.splitlines())
    one, four = rows
    assert one["collectives"] == {} and four["collectives"]["all-reduce"]["calls"] >= 1
    assert one["flops"] == four["flops"] > 0 and four["peak"] < one["peak"]
    assert one["steps"] == -(-90 * 1_281_167 // 64) and one["memory"] == one["traffic"] / 4.8e12
    assert page.read_text().count("| vit.py |") == 2
    assert not (on_cpus / "sums.sha256").exists()  # as of a run's files
    assert len(list((on_cpus / "kept").iterdir())) == 4  # train and evaluation of both

    def nothing(*args):
        raise AssertionError("compiled again")

    monkeypatch.setattr(jax.stages.Lowered, "compile", nothing)
    assert preflight.main([*TINY, "--on=h200x1"]) == 0


def test_a_run_that_does_not_fit_is_told_with_what_does(on_cpus, capsys, monkeypatch):
    small = targets.CHIPS["v5e"]
    monkeypatch.setitem(targets.CHIPS, "v5e", type(small)(**{**vars(small), "memory": 13 * 10**6}))
    assert preflight.main([*TINY, "--on=v5e-1", "--config.batch_size=2048", "--fit"]) == 2
    told = capsys.readouterr().out
    assert "vit.py on v5e-1: DOES NOT FIT" in told
    assert "--config.batch_size=" in told and " fits: " in told
    assert preflight.main([*TINY, "--on=v5e-1", "--config.batch_size=2048"]) == 2
    assert "--fit looks for" in capsys.readouterr().out


def test_what_jax_leaves_of_a_gpu_is_told():
    sizes = {"batch_size": 1, "fsdp": 1, "chips": 1, "state": 1, "usable": 75.0, "evaluation_peak": 1, "traffic": 1}
    for peak, hint in ((90, True), (96, False)):
        found = preflight.Row(
            config="x", target="h100x1", fits=False, peak=peak, evaluation="sharp", memory=1.0, **sizes
        )
        assert ("XLA_PYTHON_CLIENT_MEM_FRACTION=0.95" in preflight.told(found, 700)) is hint


def test_mistakes_are_told_before_anything_is_compiled(on_cpus, monkeypatch, capsys):
    monkeypatch.setattr(programs, "train", lambda exp: pytest.fail("compiled"))
    for more, told in (
        (["--on=h200x1,h200x7"], "vit.py on h200x7: config.batch_size=64"),
        (["--on= "], "--on: names no target"),
        (["--on=h200x1", "--config=vit.py:small"], "--config=vit.py:small: small chooses by the device"),
        (["--on=h200x1", "--config.data.name=pets"], "unknown data set 'pets'"),
        (["--on=h200x1", "--config.data.train=tran"], "config.data.train=tran: names no part of train"),
    ):
        assert preflight.main([*TINY, *more]) == 2
        assert capsys.readouterr().err.startswith(f"bjax: {told}")


def test_a_config_is_called_as_it_was_given_without_its_folder():
    args = preflight._parser().parse_args(["--config=configs/vit.py:variant=L/16", "--on=h200x1"])
    assert preflight._run(args.config[0], [], args).name == "vit.py:variant=L/16"


def test_a_plugin_that_is_missing_is_named(monkeypatch):
    monkeypatch.setattr(targets, "PLUGINS", {"gpu": ("no.such", "preflight-gpu"), "tpu": ("no_such", "preflight-tpu")})
    for name, extra in (("h200x1", "gpu"), ("v5e-4", "tpu")):
        with pytest.raises(UserError, match=rf"--on={name}: .*pip install 'bjax\[preflight-{extra}\]'"):
            targets.check_installed(targets.target(name))


@pytest.mark.plugins
@pytest.mark.parametrize("name", ["h200x1", "h200x8", "v5e-1", "v5e-4"])
def test_real_compilers(name, tmp_path):
    try:
        targets.check_installed(targets.target(name))
    except UserError as error:
        pytest.skip(str(error))
    command = [sys.executable, "-m", "launch.preflight", *TINY, f"--on={name}", f"--json={tmp_path / 'rows.json'}"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    (row,) = json.loads((tmp_path / "rows.json").read_text())
    assert row["fits"] and row["traffic"] > row["state"] and bool(row["collectives"]) == (row["chips"] > 1)
    assert "all-gather" not in row["collectives"]  # no activations

"""What fsdp saves and what training sends, read off compiled programs: memory a device, collectives a step."""

import functools

import jax
import pytest

from benchmarks import scaling
from bjax import models
from bjax.aot import hlo, programs
from bjax.configs import common
from bjax.runtime import sharding
from bjax.step import optim, state

PARAMETERS = 1024 * 768 + 1024 + (4 + 1 + 1) * 1024 + 2 * 1024 + 1024 * 1000 + 1000 + 12 * 1024**2 + 13 * 1024
# The embedding of ViT-L, its head and one of its blocks.
ONE_BLOCK = {"model.options.depth": 1, "batch_size": 8, "data.image_size": 32, "dtype": "float32", "loss.mixup": 0}


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """{fsdp: the measurements of a step of a block of ViT-L on eight devices}"""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(programs, "KEPT", tmp_path_factory.mktemp("kept"))
        return {n: scaling.measure("vit", jax.devices(), n, ONE_BLOCK) for n in (1, 8)}


def test_data_parallel_training_reduces_the_gradient_once_and_gathers_nothing(compiled):
    found = compiled[1]["collectives"]
    assert set(found) == {"all-reduce"}
    assert found["all-reduce"]["calls"] == 2  # the number of images that count, before; gradient and metrics, after
    # Within 0.1 %: the class token's gradient is a row of the position embedding's, sent once.
    assert found["all-reduce"]["bytes"] == pytest.approx(4 * PARAMETERS, rel=1e-3)


def test_the_memory_of_a_device_falls_with_fsdp(compiled):
    assert compiled[8]["state"] < compiled[1]["state"] / 7.9
    for row in compiled.values():  # the compiled program takes what the plan says, and the batch
        assert row["arguments"] == pytest.approx(row["state"], rel=1e-3)


def test_fsdp_gathers_the_weights_once_and_moves_no_activations(compiled):
    found = compiled[8]["collectives"]
    assert set(found) == {"all-gather", "all-reduce"}
    weights = 4 * PARAMETERS
    assert 0.98 * weights < found["all-gather"]["bytes"] <= weights  # biases and norms are whole on every device
    assert found["all-reduce"]["bytes"] == pytest.approx(weights, rel=1e-3)


def test_a_device_holds_its_part_of_vgg19s_classifier():
    model = models.build("vgg19", num_classes=1000)
    tx = optim.build(common.default().optim, 100)
    init = functools.partial(state.init, model=model, tx=tx, image_size=224, ema=False)
    shapes = jax.eval_shape(init, jax.random.key(0))
    held = {}
    for fsdp in (1, 8):
        plan = sharding.plan(shapes, sharding.make_mesh(8 // fsdp, fsdp), ((".*", "fsdp"),))
        held[fsdp] = (
            sharding.held(shapes, plan),
            sharding.held(shapes.params["classifier_0"], plan.params["classifier_0"]),
        )
    assert held[1] == (pytest.approx(12 * 143_667_240, rel=1e-6), 4 * (25088 + 1) * 4096)
    assert held[8][1] == 4 * (25088 // 8 + 1) * 4096
    assert held[8][0] < held[1][0] / 7.8


def test_collectives_are_read_from_hlo():
    text = """
  %all-reduce.1 = (f32[4,8]{1,0}, /*index=1*/bf16[3]{0}) all-reduce(%a, %b), channel_id=1
  ROOT %ag = f32[2,2]{1,0} all-gather(%c), dimensions={0}
  %all-gather-start.2 = f32[] all-gather-start(%c), dimensions={0}
  %done = f32[] all-gather-done(%all-gather-start.2)
  %x = f32[4]{0} add(%all-reduce.1, %y)
"""
    assert hlo.collectives(hlo.parse(text)) == {
        "all-reduce": {"calls": 1, "arrays": 2, "bytes": 134},
        "all-gather": {"calls": 2, "arrays": 2, "bytes": 20},
    }


def test_collectives_in_a_loop_count_as_often_as_it_runs():
    text = """
HloModule step

%add (a: f32[], b: f32[]) -> f32[] {
  ROOT %sum = f32[] add(%a, %b)
}

%inner.1 (p: (s32[], f32[4])) -> (s32[], f32[4]) {
  %all-reduce.1 = (f32[4]{0}, f32[]) all-reduce(%x, %y), channel_id=1, to_apply=%add
}

%outer (p: (s32[], f32[4])) -> (s32[], f32[4]) {
  %while.1 = (s32[], f32[4]{0}) while(%p), condition=%c, body=%inner.1, backend_config={"known_trip_count":{"n":"3"}}
  %all-gather.1 = f32[8]{0} all-gather(%x), dimensions={0}
}

%unknown (p: (s32[], f32[4])) -> (s32[], f32[4]) {
  %while.2 = (s32[], f32[4]{0}) while(%p), condition=%c, body=%inner.1, backend_config={"known_trip_count":{"n":"3"}}
}

%sometimes (p: f32[2]) -> f32[2] {
  ROOT %permute = f32[2]{0} collective-permute(%p), source_target_pairs={{0,1}}
}

%never (p: f32[2]) -> f32[2] {
  ROOT %permute.1 = f32[2]{0} collective-permute(%p), source_target_pairs={{0,1}}
}

ENTRY %main (p: f32[4]) -> f32[4] {
  %all-reduce.2 = f32[] all-reduce(%x), channel_id=2, to_apply=%add
  %while.3 = (s32[], f32[4]{0}) while(%t), condition=%c, body=%outer, backend_config={"known_trip_count":{"n":"2"}}
  ROOT %x = f32[2]{0} conditional(%i, %p, %p), branch_computations={%sometimes, %add}
}
"""
    found = {
        "all-reduce": {"calls": 1 + 2 * 3, "arrays": 1 + 2 * 3 * 2, "bytes": 4 + 2 * 3 * 20},
        "all-gather": {"calls": 2, "arrays": 2, "bytes": 2 * 32},
        "collective-permute": {"calls": 1, "arrays": 1, "bytes": 8},
    }
    assert hlo.collectives(hlo.parse(text)) == found
    # A loop of unknown length: at least once what is in it.
    text = text.replace("conditional(%i", "while(%i").replace("branch_computations={%sometimes, %add}", "body=%unknown")
    del found["collective-permute"]
    found["all-reduce"] = {"calls": 7 + 3, "arrays": 13 + 6, "bytes": 124 + 60, "at_least": 3}
    assert hlo.collectives(hlo.parse(text)) == found


@pytest.mark.parametrize(
    ("start", "by", "end", "of", "trips"),
    [
        (0, 1, 20, 1, 20),
        (0, 2, 7, 1, 4),
        (0, 1, 0, 1, 0),
        (1, 1, 20, 1, None),
        (0, 0, 20, 1, None),
        (0, -1, 20, 1, None),
        (0, 1, "{20}", 1, None),
        (0, 1, 20, 2, None),  # adds to another number
    ],
)
def test_loops_on_tpus_are_counted_by_their_counter(start, by, end, of, trips):
    text = f"""
%test (p: (f32[4], s32[], s32[])) -> pred[] {{
  %p = (f32[4]{{0}}, s32[], s32[]) parameter(0)
  %end = s32[]{{:T(128)}} constant({end}), metadata={{op_name="jit(f)"}}
  %i = s32[]{{:T(128)}} get-tuple-element(%p), index=1
  ROOT %less = pred[] compare(%i, %end), direction=LT
}}

%body (p.1: (f32[4], s32[], s32[])) -> (f32[4], s32[], s32[]) {{
  %p.1 = (f32[4]{{0}}, s32[], s32[]) parameter(0)
  %i.1 = s32[]{{:T(128)}} get-tuple-element(%p.1), index={of}
  %by = s32[]{{:T(128)}} constant({by})
  %next = s32[]{{:T(128)}} add(%i.1, %by)
  %x = f32[4]{{0}} get-tuple-element(%p.1), index=0
  %sent = f32[4]{{0}} collective-permute(%x), source_target_pairs={{{{0,1}}}}
  ROOT %out = (f32[4]{{0}}, s32[], s32[]) tuple(%sent, %next, %i.1)
}}

ENTRY %main (a: f32[4]) -> (f32[4], s32[], s32[]) {{
  %a = f32[4]{{0}} parameter(0)
  %start = s32[]{{:T(128)}} constant({start})
  %copy = s32[]{{:T(128)}} copy(%start)
  %t = (f32[4]{{0}}, s32[], s32[]) tuple(%a, %copy, %start)
  ROOT %loop = (f32[4]{{0}}, s32[], s32[]) while(%t), condition=%test, body=%body, metadata={{op_name="jit(f)/while"}}
}}
"""
    module = hlo.parse(text)
    times = 1 if trips is None else trips
    sent = {"calls": times, "arrays": times, "bytes": 16 * times} | ({"at_least": 1} if trips is None else {})
    assert hlo.collectives(module) == {"collective-permute": sent}
    assert [k.times for k in hlo.kernels(module) if k.name == "sent"] == [times]


def test_what_is_gathered_while_other_work_is_done_counts_once():
    text = """
%start (p0: bf16[2,8]) -> (bf16[2,8], bf16[16,8], u32[]) {
  %p0 = bf16[2,8]{1,0} parameter(0)
  %sent = bf16[16,8]{1,0} all-gather(%p0), channel_id=7, dimensions={0}
  ROOT %begun = (bf16[2,8]{1,0}, bf16[16,8]{1,0}, u32[]) custom-call(%sent), custom_call_target="AsyncCollectiveStart"
}

%beside (q0: bf16[2,8], q1: bf16[16,8], q2: f32[4]) -> (f32[4], bf16[2,8], bf16[16,8], bf16[16,8]) {
  %q0 = bf16[2,8]{1,0} parameter(0)
  %q1 = bf16[16,8]{1,0} parameter(1)
  %q2 = f32[4]{0} parameter(2)
  %going = bf16[16,8]{1,0} all-gather(%q0), channel_id=7, dimensions={0}
  %work = f32[4]{0} negate(%q2)
  ROOT %all = (f32[4]{0}, bf16[2,8]{1,0}, bf16[16,8]{1,0}, bf16[16,8]{1,0}) tuple(%work, %q0, %q1, %going)
}

%end (r0: bf16[2,8], r1: bf16[16,8]) -> bf16[16,8] {
  %r0 = bf16[2,8]{1,0} parameter(0)
  %r1 = bf16[16,8]{1,0} parameter(1)
  %there = bf16[16,8]{1,0} all-gather(%r0), channel_id=7, dimensions={0}
  ROOT %done = bf16[16,8]{1,0} custom-call(%r0, %r1, %there), custom_call_target="AsyncCollectiveDone"
}

ENTRY %main (a: bf16[2,8], b: f32[4]) -> bf16[16,8] {
  %a = bf16[2,8]{1,0} parameter(0)
  %b = f32[4]{0} parameter(1)
  %x = (bf16[2,8]{1,0}, bf16[16,8]{1,0}, u32[]{:S(2)}) fusion(%a), kind=kCustom, calls=%start
  %part = bf16[2,8]{1,0} get-tuple-element(%x), index=0
  %whole = bf16[16,8]{1,0} get-tuple-element(%x), index=1
  %y = (f32[4]{0}, bf16[2,8]{1,0}, bf16[16,8], bf16[16,8]) fusion(%part, %whole, %b), kind=kLoop, calls=%beside
  ROOT %z = bf16[16,8]{1,0} fusion(%part, %whole), kind=kCustom, calls=%end
}
"""
    module = hlo.parse(text)
    assert hlo.collectives(module) == {"all-gather": {"calls": 1, "arrays": 1, "bytes": 256}}
    kernels = {k.name: (k.kind, k.read, k.written) for k in hlo.kernels(module)}
    assert kernels == {
        "x": ("collective", 32, 256 + 32 + 4),
        "y": ("elementwise", 16, 16),
        "z": ("collective", 0, 0),
    }


def test_a_batch_in_parts_reduces_the_gradient_of_every_part(tmp_path, monkeypatch):
    """Partitioned by XLA, the sum over devices stays in the loop: --config.optim.accumulate saves memory, not bytes."""
    tiny = ONE_BLOCK | {"model.options.variant": "Ti/16", "batch_size": 32}
    monkeypatch.setattr(programs, "KEPT", tmp_path)
    sent = {}
    for parts in (1, 4):
        row = scaling.measure("vit", jax.devices(), 1, tiny | {"optim.accumulate": parts})
        sent[parts] = row["collectives"]["all-reduce"]["bytes"]
        assert "at_least" not in row["collectives"]["all-reduce"]
    assert sent[1] == pytest.approx(row["checkpoint"] / 3, rel=1e-2)
    assert sent[4] == pytest.approx(4 * sent[1], rel=1e-2)

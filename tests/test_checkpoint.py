"""Checkpoints: what comes back is what was saved, on other devices too, and what does not fit is refused."""

import functools
import json
import math
import shutil
import subprocess

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bjax import manifest, models
from bjax.errors import UserError
from bjax.runtime import checkpoint, sharding
from bjax.step import state


def parts(mesh, width=64, ema=True):
    model = models.build("vit", num_classes=4, variant="Ti/8", depth=1, width=width, heads=2)
    init = functools.partial(
        state.init, model=model, tx=optax.chain(optax.clip(1.0), optax.adamw(1e-3)), image_size=16, ema=ema
    )
    shapes = jax.eval_shape(init, jax.random.key(0))
    return init, shapes, sharding.plan(shapes, mesh, ((".*", "fsdp"),))


def test_a_state_comes_back_on_another_mesh(tmp_path):
    init, shapes, plan = parts(sharding.make_mesh(2, 4))
    saved = jax.jit(init, out_shardings=plan)(jax.random.key(3))
    with checkpoint.manager(tmp_path) as manager:
        assert checkpoint.restore(manager, shapes, plan) is None
        checkpoint.save(manager, 7, saved)
    _, shapes, plan = parts(sharding.make_mesh(1, 2, jax.devices()[:2]))
    with checkpoint.manager(tmp_path) as manager:
        restored = checkpoint.restore(manager, shapes, plan)
    for (path, a), b, place in zip(
        jax.tree_util.tree_leaves_with_path(saved),
        jax.tree.leaves(restored),
        jax.tree.leaves(plan),
        strict=True,
    ):
        np.testing.assert_array_equal(a, b, err_msg=jax.tree_util.keystr(path))
        assert b.dtype == a.dtype
        assert b.sharding.is_equivalent_to(place, b.ndim)


def test_the_newest_is_restored_and_the_oldest_goes(tmp_path):
    init, shapes, plan = parts(sharding.make_mesh(1, 1, jax.devices()[:1]), ema=False)
    current = jax.jit(init, out_shardings=plan)(jax.random.key(0))
    with checkpoint.manager(tmp_path, keep=2) as manager:
        for step in (1, 2, 3):
            current = current.replace(step=jnp.int32(step))
            checkpoint.save(manager, step, current)
    (tmp_path / "4.orbax-checkpoint-tmp").mkdir()  # a killed process leaves such folders
    with checkpoint.manager(tmp_path, keep=2) as manager:
        assert int(checkpoint.restore(manager, shapes, plan).step) == 3
    assert sorted(p.name for p in tmp_path.iterdir()) == ["2", "3"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"width": 32}, r"at 57 arrays; .* is \(\(256,\), .* there and \(\(128,\)"),
        ({"ema": True}, "ema/.* is absent there"),
    ],
)
def test_a_checkpoint_of_another_model_is_refused(tmp_path, changes, message):
    mesh = sharding.make_mesh(1, 1, jax.devices()[:1])
    init, _, plan = parts(mesh, ema=False)
    with checkpoint.manager(tmp_path) as manager:
        checkpoint.save(manager, 1, jax.jit(init, out_shardings=plan)(jax.random.key(0)))
    _, shapes, plan = parts(mesh, **{"ema": False, **changes})
    with checkpoint.manager(tmp_path) as manager, pytest.raises(UserError, match=message) as e:
        checkpoint.restore(manager, shapes, plan)
    assert "use another --workdir" in str(e.value)


DAMAGES = {
    "flip": lambda data: bytes([*data[: len(data) // 2], data[len(data) // 2] ^ 1, *data[len(data) // 2 + 1 :]]),
    "cut": lambda data: data[: len(data) // 2],
    "zeros": lambda data: bytes(len(data)),
    "delete": None,
}


def damage(path, kind):
    if kind == "delete":
        path.unlink()
    else:
        path.write_bytes(DAMAGES[kind](path.read_bytes()))


@pytest.fixture(scope="module")
def two_steps(tmp_path_factory):
    """A folder with the steps 1 and 2, and the shapes and plan of its states."""
    folder = tmp_path_factory.mktemp("checkpoints")
    init, shapes, plan = parts(sharding.make_mesh(1, 1, jax.devices()[:1]), ema=False)
    state = jax.jit(init, out_shardings=plan)(jax.random.key(0))
    with checkpoint.manager(folder) as manager:
        for step in (1, 2):
            state = state.replace(step=jnp.int32(step))
            checkpoint.save(manager, step, state, {"recent": [{"loss": 0.1}], "corrupt": step})
    return folder, shapes, plan


def restored(folder, shapes, plan, read_only=False):
    with checkpoint.manager(folder, read_only=read_only) as manager:
        state = checkpoint.restore(manager, shapes, plan)
        return int(state.step), checkpoint.notes(manager)


def copied(two_steps, tmp_path):
    folder, *rest = two_steps
    shutil.copytree(folder, tmp_path / "copy")
    return tmp_path / "copy", *rest


@pytest.mark.parametrize("kind", DAMAGES)
def test_damage_to_any_file_of_a_step_is_named_and_the_step_before_is_used(two_steps, tmp_path, kind, capsys):
    folder, *rest = two_steps
    files = sorted(p.relative_to(folder / "2") for p in (folder / "2").rglob("*") if p.stat().st_size)
    for i, file in enumerate(f for f in files if (folder / "2" / f).is_file()):
        broken = tmp_path / str(i)
        shutil.copytree(folder, broken)
        damage(broken / "2" / file, kind)
        capsys.readouterr()
        step, notes = restored(broken, *rest)
        said = capsys.readouterr().err
        if str(file) in checkpoint.LATER:  # nothing is read from them
            assert (step, said) == (2, "")
            continue
        assert (step, notes["corrupt"]) == (1, 1), file
        missing = "missing" if kind == "delete" else "damaged"
        assert said.splitlines() == [
            f"bjax: {broken}/2: {file} is {missing}; left out, kept as 2.damaged, goes back to step 1"
        ]
        assert (broken / "2.damaged").is_dir() and not (broken / "2").exists()


def test_who_only_reads_puts_nothing_aside(two_steps, tmp_path, capsys):
    folder, *rest = copied(two_steps, tmp_path)
    damage(folder / "2" / "notes.json", "cut")
    assert restored(folder, *rest, read_only=True)[0] == 1
    assert "notes.json is damaged; left out, goes back to step 1" in capsys.readouterr().err
    assert (folder / "2").is_dir()


def test_where_no_step_is_whole_it_is_told_and_nothing_is_deleted(two_steps, tmp_path):
    folder, *rest = copied(two_steps, tmp_path)
    for step in ("1", "2"):
        damage(folder / step / checkpoint.NOTES, "zeros")
    before = sorted(folder.rglob("*"))
    with pytest.raises(UserError, match=r"no checkpoint in it is whole \(2: notes.json is damaged; 1: notes"):
        restored(folder, *rest)
    assert sorted(folder.rglob("*")) == before


def test_a_step_of_before_manifests_is_used_with_a_warning(two_steps, tmp_path, capsys):
    folder, *rest = copied(two_steps, tmp_path)
    for step in (1, 2):
        (folder / str(step) / checkpoint.NOTES).unlink()
        (folder / str(step) / manifest.NAME).unlink()
        path = folder / str(step) / checkpoint.METADATA
        metadata = json.loads(path.read_text()) | {"custom_metadata": {"recent": [], "corrupt": 7}}
        path.write_text(json.dumps(metadata))
    assert restored(folder, *rest) == (2, {"recent": [], "corrupt": 7})
    assert capsys.readouterr().err == (
        f"bjax: {folder}/2: not verified: it is older than manifests, so damage would not be seen\n"
    )
    # Damage that Orbax does see leads to the step before.
    damage(folder / "2" / "default" / "manifest.ocdbt", "zeros")
    assert restored(folder, *rest)[0] == 1
    lines = capsys.readouterr().err.splitlines()
    assert "2: not verified" in lines[0] and "1: not verified" in lines[1]
    assert "2: cannot be read (" in lines[2] and len(lines) == 3


def test_a_step_that_had_a_manifest_is_not_used_without(two_steps, tmp_path, capsys):
    folder, *rest = copied(two_steps, tmp_path)
    damage(folder / "2" / manifest.NAME, "delete")
    assert restored(folder, *rest)[0] == 1
    assert "2: manifest.sha256 is missing; left out" in capsys.readouterr().err


@pytest.mark.parametrize("also", [[checkpoint.METADATA], [checkpoint.NOTES], [checkpoint.METADATA, checkpoint.NOTES]])
def test_a_step_that_lost_more_than_its_manifest_is_not_taken_for_an_old_one(also, two_steps, tmp_path, capsys):
    folder, *rest = copied(two_steps, tmp_path)
    for name in (manifest.NAME, *also):
        damage(folder / "2" / name, "delete")
    assert restored(folder, *rest)[0] == 1
    assert "2: manifest.sha256 is missing; left out" in capsys.readouterr().err


def test_a_step_whose_metadata_changed_as_well_is_not_taken_for_an_old_one(two_steps, tmp_path, capsys):
    folder, *rest = copied(two_steps, tmp_path)
    damage(folder / "2" / manifest.NAME, "delete")
    path = folder / "2" / checkpoint.METADATA
    path.write_text(path.read_text().replace("custom_metadata", "custom_metadatb"))
    assert restored(folder, *rest)[0] == 1
    assert "2: manifest.sha256 is missing; left out" in capsys.readouterr().err


def test_a_manifest_is_what_sha256sum_reads(two_steps, tmp_path):
    folder, *_ = copied(two_steps, tmp_path)
    command = ["sha256sum", "--check", "--strict", "--quiet", manifest.NAME]
    assert subprocess.run(command, cwd=folder / "2").returncode == 0
    damage(folder / "2" / "default" / "_METADATA", "flip")
    assert subprocess.run(command, cwd=folder / "2", capture_output=True).returncode == 1
    # A part of the files is for each of several processes, and one of them finds what is wrong.
    assert [manifest.wrong(folder / "2", (i, 3)) is None for i in range(3)].count(False) == 1


def test_the_newest_the_best_and_every_so_manieth_step_stay():
    steps = list(range(1, 13))
    scores = {2: 0.5, 4: 0.9, 6: 0.7, 8: math.nan, 10: 0.1}
    assert checkpoint.Kept(2).of(steps, scores) == {11, 12}
    assert checkpoint.Kept(1, every=5).of(steps, {}) == {5, 10, 12}
    assert checkpoint.Kept(1, best=2).of(steps, scores) == {4, 6, 12}
    assert checkpoint.Kept(1, every=5, best=1).of(steps, scores) == {4, 5, 10, 12}
    assert checkpoint.Kept(1, best=3).of([3], {}) == {3}


def test_a_step_that_is_not_kept_goes_and_what_was_left_of_one_too(two_steps, tmp_path):
    folder, shapes, plan = copied(two_steps, tmp_path)
    (folder / "removed.7").mkdir()
    with checkpoint.manager(folder, keep=1, best=1) as manager:
        state = checkpoint.restore(manager, shapes, plan)
        manager.scores = {1: 0.9, 2: 0.1}
        checkpoint.save(manager, 3, state)
    assert sorted(p.name for p in folder.iterdir()) == ["1", "3"]

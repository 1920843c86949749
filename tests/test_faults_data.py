"""The short part of tests/faults/data.py, and what its cases do not meet."""

import shutil
from pathlib import Path

import pytest
import tensorflow_datasets as tfds

from bjax.data import loader, prepare
from bjax.data.builder import SIZES
from bjax.errors import UserError
from bjax.manifest import NAME
from tests.faults import data as faults


def test_a_damaged_data_set_is_refused_or_does_no_harm(data_dir, tiny_run):
    counts = faults.datasets(6, seed=3, data_dir=data_dir, run=tiny_run)
    assert set(counts) <= {f"{old}{x}" for old in ("", "old: ") for x in (faults.REFUSED, faults.HARMLESS)}
    assert counts[faults.REFUSED] >= 2


@pytest.fixture
def home(tmp_path, data_dir) -> Path:
    """A copy of the embedded photographs, as plain TFDS would have written them."""
    loader.open_split("photos", "test", data_dir=data_dir)
    shutil.copytree(f"{data_dir}/photos", tmp_path / "photos")
    home = next(tmp_path.glob("photos/*.*.*/"))
    for name in (SIZES, NAME):
        (home / name).unlink()
    return home


def refusal(home, split="test"):
    with pytest.raises(UserError) as error:
        list(loader.open_split("photos", split, data_dir=home.parents[1]))
    assert "\n" not in str(error.value)
    assert str(error.value).startswith("data set photos")
    assert "prepare it again (python -m bjax.data.prepare … --overwrite)" in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("lines", [7, 0])
def test_a_cut_labels_file_is_refused_without_sums_too(home, lines):
    file = home / "label.labels.txt"
    file.write_text("".join(file.read_text().splitlines(keepends=True)[:lines]))
    assert f"label.labels.txt is damaged: it names {lines} of 14 classes" in refusal(home)


def test_fewer_records_than_are_declared_and_the_reverse(home):
    info = home / "dataset_info.json"
    info.write_text(info.read_text().replace('"224"', '"124"'))
    assert "photos-test.array_record-00000-of-00001 holds 224 records instead of 124" in refusal(home)
    assert len(loader.open_split("photos", "train", data_dir=home.parents[1])) == 672


def test_a_label_beyond_the_classes_names_its_record(home):
    for name, old in (("features.json", '"14"'), ("label.labels.txt", "\ntext\n")):
        text = (home / name).read_text()
        assert old in text
        (home / name).write_text(text.replace(old, {'"14"': '"13"'}.get(old, "\n")))
    assert len(loader.open_split("photos", "test", data_dir=home.parents[1]).class_names) == 13
    assert "text_test_y" in (told := refusal(home))
    assert "has the label 13, but there are 13 classes" in told


@pytest.mark.parametrize("content", [b"", b"[]", b'{"pythonClassName": "os.system"}', b"\xff", None])
def test_a_damaged_description_is_named(home, content):
    for name in ("features.json", "dataset_info.json"):
        whole = (home / name).read_bytes()
        if content is not None:
            (home / name).write_bytes(content)
            assert f"{name} is damaged (" in refusal(home)
        elif name == "features.json":
            (home / name).unlink()
            assert f"{name} is missing" in refusal(home)
        (home / name).write_bytes(whole)
    assert len(loader.open_split("photos", "test", data_dir=home.parents[1])) == 224


def test_a_damaged_data_set_is_not_said_to_be_there_and_is_written_anew(home, capsys):
    command = ["photos", f"--data_dir={home.parents[1]}"]
    assert prepare.main(command) == 0
    assert "It was there already" in capsys.readouterr().out
    for name in ("features.json", "dataset_info.json"):
        (home / name).write_bytes(bytes(50))
        assert prepare.main(command) == 2
        assert f"{name} is damaged" in (err := capsys.readouterr().err)
        assert err.count("\n") == 1
        assert prepare.main([*command, "--overwrite"]) == 0
        assert capsys.readouterr().out.startswith("photos: 672 train, 224 test")
    assert (home / NAME).is_file()
    assert len(tfds.data_source("photos", split="test", data_dir=home.parents[1], builder_kwargs=None)) == 224


def test_a_folder_of_ones_own_without_its_description_is_not_an_unknown_data_set(home):
    own = home.parents[1] / "pets"
    home.parent.rename(own)
    (own / home.name / "features.json").unlink()
    with pytest.raises(UserError, match=r"^data set pets in .*: features.json is missing; prepare it again"):
        loader.open_split("pets", "test", data_dir=own.parent)

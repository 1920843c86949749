"""The short part of tests/faults/photos.py, and what its cases do not meet."""

import os
import threading

import numpy as np
import pytest
from PIL import Image

from bjax import predict, thresholds
from bjax.data import decode
from bjax.errors import UserError, shown
from tests.faults import photos


def test_a_corpus_is_answered_or_named_in_bounded_memory(tiny_run):
    counts = photos.photographs(20, seed=0, run=tiny_run, commands=("predict",))
    assert not photos.failures(counts)
    assert counts["predict: answered"] + counts["predict: named in one line"] >= 80


def test_a_photograph_is_not_kept_for_its_crop():
    image = np.zeros((50, 60, 3), np.uint8)
    for crop in (
        decode.random_crop(np.random.default_rng(0), image, 8),
        decode.center_crop(image, 8),
        decode.center_crop(image, 60),
    ):
        assert not np.shares_memory(crop, image)


def test_what_is_read_at_a_time_is_bounded(tmp_path):
    Image.new("RGB", (100, 50)).save(tmp_path / "small.png")
    size = (tmp_path / "small.png").stat().st_size
    assert decode.memory(tmp_path / "small.png") == 14 * 5000 + size
    (tmp_path / "none.png").write_bytes(b"no image")
    os.mkfifo(tmp_path / "pipe.png")
    assert [decode.memory(tmp_path / f"{name}.png") for name in ("none", "pipe", "missing")] == [0, 0, 0]
    room, most, lock = predict._Room(10), [0, 0], threading.Lock()

    def work(amount):
        with room.taken(amount):
            with lock:
                most[0] += min(amount, 10)
                most[1] = max(most)
            with lock:
                most[0] -= min(amount, 10)

    threads = [threading.Thread(target=work, args=(1 + 4 * (i % 5),)) for i in range(50)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert not any(thread.is_alive() for thread in threads)
    assert most[1] <= 10 and room.free == 10


def test_names_are_shown_on_one_line():
    assert shown("grün σ.jpg") == "grün σ.jpg"
    assert shown(os.fsdecode(b"a\xff\n\x1b[2J.jpg")) == r"a\udcff\n\x1b[2J.jpg"


def test_a_folder_that_cannot_be_read_and_a_name_that_is_too_long_are_told(tmp_path, monkeypatch):
    (tmp_path / "closed").mkdir()
    Image.new("RGB", (9, 9)).save(tmp_path / "photo.png")
    with pytest.raises(UserError, match=r"^x{300}: File name too long$"):
        decode.find([tmp_path.joinpath("x" * 300).relative_to(tmp_path)])
    walk = os.scandir

    def refuses(path):
        if "closed" in os.fspath(path):
            raise PermissionError(13, "Permission denied", os.fspath(path))
        return walk(path)

    monkeypatch.setattr(os, "scandir", refuses)  # root may read everything
    with pytest.raises(UserError, match=r"closed: Permission denied$"):
        decode.find([tmp_path])


@pytest.mark.skipif(not os.path.exists("/proc/version"), reason="needs Linux's /proc")
def test_a_file_without_a_size_is_empty():
    assert decode.read("/proc/version") == b""  # others there never end


def test_thresholds_go_on_without_what_cannot_be_read(tmp_path, capsys):
    Image.effect_noise((64, 64), 50).convert("RGB").save(tmp_path / "good.png")
    (tmp_path / "bad.png").write_bytes(b"no image")
    assert thresholds.main([str(tmp_path), "--size=32"]) == 1
    said = capsys.readouterr()
    assert said.err.startswith(f"bjax: {tmp_path}/bad.png: cannot be read as a photograph (no image format")
    assert "1 photographs" in said.out
    (tmp_path / "good.png").write_bytes(b"")
    assert thresholds.main([str(tmp_path), "--size=32"]) == 2
    assert capsys.readouterr().err.splitlines()[-1] == "bjax: none of the 2 photographs can be read"
    assert thresholds.main([str(tmp_path), "--size=100000"]) == 2
    assert "at most 16,384" in capsys.readouterr().err

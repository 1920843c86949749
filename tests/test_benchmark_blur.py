"""The blur benchmark and the figure run, and what the benchmark compares is the same blur."""

import json

import pytest
from PIL import Image

from benchmarks import blur


def test_benchmark_compares_the_same_blurs(tmp_path, capsys):
    out = tmp_path / "blur.json"
    blur.main(["--against=cv2,pix", "--batch=2", "--size=32", "--rounds=1", f"--json={out}"])
    rows = json.loads(out.read_text())["rows"]
    assert {row["blur"]: set(row["peers"]) for row in rows} == {
        "gaussian": {"cv2", "pix"},
        "motion": {"cv2"},
        "defocus": {"cv2"},
    }
    for row in rows:
        for peer in row["peers"].values():
            assert peer["difference"] < 2e-6
            assert peer["ratio"] == pytest.approx(peer["ms"] / row["ms"])
    assert "bjax is" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("peers", "message"),
    [("cv2,scipy", "expected some of cv2, torch, pix"), ("torch", "torch is not installed; leave torch out")],
)
def test_benchmark_names_unknown_and_missing_peers(monkeypatch, capsys, peers, message):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "torch" else name)
    assert blur.main([f"--against={peers}"]) == 2
    assert message in capsys.readouterr().err


def test_benchmark_leaves_absent_peers_out_with_a_line(monkeypatch, capsys):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name if name == "dm_pix" else None)
    assert blur.main(["--batch=1", "--size=32", "--rounds=1"]) == 0
    out = capsys.readouterr().out
    assert "cv2 is left out: cv2 is not installed\ntorch is left out: torch is not installed\n" in out
    assert "pix" in out.partition("left out: torch")[2]


@pytest.mark.slow
@pytest.mark.parametrize("more", [[], ["--parts"]])
def test_figure_is_drawn(more, tmp_path):
    pytest.importorskip("matplotlib")
    from benchmarks import figure_blur

    out = tmp_path / "docs" / "blur.png"
    figure_blur.main([f"--out={out}", *more])
    with Image.open(out) as figure:
        assert figure.width > figure.height > 300

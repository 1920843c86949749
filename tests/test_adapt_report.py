"""The report's answer to whether adapting helps: no more than the intervals say, with its rival and its clock."""

import json

import made_up
import pytest

pytest.importorskip("matplotlib")
pytest.importorskip("jinja2")

from bjax.report import adapt, read, seeds


def reported(tmp_path, verdicts):
    """The section with a run whose adapting has these differences: {stream: {method: points}}, ± 5."""
    spec = "configs/resnet50.py:demo"
    sharp, blurred = (
        made_up.run(tmp_path / "sharp", spec),
        made_up.run(tmp_path / "blurred", f"{spec},train=blurred", top1=0.7),
    )
    streams = {}
    for stream, methods in verdicts.items():
        rows = {"none": {"n": 224, "top1": 0.5, "top1_95": [0.43, 0.57], "ece": 0.1, "ms": 2.0}}
        for method, points in methods.items():
            verdict = "" if abs(points) < 5 else "helps" if points > 0 else "hurts"
            gap = {"difference": points / 100, "difference_95": [points / 100 - 0.05, points / 100 + 0.05]}
            rows[method] = (
                rows["none"]
                | gap
                | {"top1": 0.5 + points / 100, "ms": 6.0 if method == "tent" else 2.1, "verdict": verdict}
            )
        streams[stream] = {"about": "made up", "last": 3, "methods": rows}
    content = {"condition": "blurred", "what": made_up.conditions(spec)["blurred"], "data": "photos test", "n": 224}
    content |= {
        "device": "cpu",
        "lr": 0.00025,
        "prior": 0.0,
        "bn_train_images": 640,
        "left_out": {},
        "streams": streams,
    }
    (sharp / "adapt.json").write_text(json.dumps(content))
    runs, notes = seeds.merge(read.load([sharp, blurred])[0])
    assert not notes
    return adapt.helps(runs)


def test_the_report_answers_by_the_intervals_and_names_the_rival(tmp_path):
    some = {"independent": {"bn_train": 12, "bn_stream": 1, "tent": 3}, "single": {"bn_stream": -40, "tent": -30}}
    first, rival, items, about, heading, table = reported(tmp_path, some)
    begin = "It depends: BatchNorm of the stream hurts on single images: −40.0 points (−45.0 to −35.0); "
    assert first.text.startswith(
        begin + "BatchNorm of training images blurred alike helps on independent images: +12.0"
    )
    assert " Of 5 comparisons 1 are better and 2 worse than not adapting beyond chance, each" in first.text
    assert first.text.endswith(" TENT takes 3.0 times as long for an image.")
    assert rival.text.startswith(
        "The rival of run 1, which costs nothing at test time: ResNet50 trained on blurred (run 2)"
    )
    assert "is right on 70.1 % (" in rival.text and rival.text.endswith(", more than chance explains.")
    assert items.lines[0] == "224 images of photos test, σ = 1–2 (blurred)"
    assert items.lines[1] == "independent: made up; the last of 3, which counts but is not timed"
    assert about.text == adapt.ABOUT and heading.text == "sharp (run 1)"
    rows = {(row[0], row[1]): row for row in table.rows}
    assert str(rows["single", "BatchNorm of the stream"][3]) == "_−40.0 (−45.0 to −35.0)_"
    assert rows["single", "TENT"][5] == "6.0 (× 3.0)" and rows["single", "none"][5] == "2.0"
    trained = rows["independent", "none, but trained on blurred (run 2)"]
    assert trained[2].startswith("70.1 (") and str(trained[3]).startswith("**+20.1 (")
    assert "its steps themselves add +2.0 to +10.0 points (learning rate 0.00025 at batches of 64)" in table.caption


@pytest.mark.parametrize(
    ("points", "answer"),
    [
        ({"tent": -20}, "No: TENT hurts on independent images: −20.0 points"),
        ({"tent": 20}, "Yes: TENT helps on independent images: +20.0 points"),
        (
            {"tent": -2, "bn_train": 3},
            "Not that it could be told: no difference is beyond chance; the largest, BatchNorm of",
        ),
    ],
)
def test_the_answer_is_no_more_than_the_intervals_say(points, answer, tmp_path):
    assert reported(tmp_path, {"independent": points})[0].text.startswith(answer)


def test_a_damaged_measurement_is_a_note(tmp_path):
    run = made_up.run(tmp_path / "run", "configs/resnet50.py:demo")
    (run / "adapt.json").write_text('{"condition": "blurred", "streams": 3}')
    runs, notes = read.load([run])
    assert runs[0].adapt is None and "adapt.json: what is missing or damaged" in notes[0]

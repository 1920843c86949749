"""The temperature against a grid, an optimiser of PyTorch and made-up truth; folds that keep photographs apart."""

import json

import made_up as runs
import numpy as np
import pytest

from bjax import report
from bjax.evaluate import calibration


def made_up(n=4000, classes=7, temperature=2.5, seed=0):
    """Logits that are `temperature` times what the labels were drawn from."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 1.5, (n, classes))
    labels = (logits + rng.gumbel(size=logits.shape)).argmax(axis=1)  # of softmax(logits)
    return (temperature * logits).astype(np.float32), labels


def nll(logits, labels, temperature):
    scaled = logits.astype(np.float64) / temperature
    scaled -= scaled.max(axis=1, keepdims=True)
    return -(scaled[np.arange(len(labels)), labels] - np.log(np.exp(scaled).sum(axis=1))).mean()


@pytest.mark.parametrize("truth", [0.4, 1.0, 2.5])
def test_the_temperature_is_the_best_of_a_grid(truth):
    logits, labels = made_up(temperature=truth)
    found = calibration.temperature(logits, labels)
    assert found == pytest.approx(truth, rel=0.06)
    grid = np.geomspace(calibration.LOWEST, calibration.HIGHEST, 2001)
    best = grid[np.argmin([nll(logits, labels, t) for t in grid])]
    assert found == pytest.approx(best, rel=grid[1] / grid[0] - 1)


def test_the_temperature_is_that_of_lbfgs():
    torch = pytest.importorskip("torch")
    logits, labels = made_up(n=500)
    inverse = torch.ones((), dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS([inverse], lr=1, max_iter=100, tolerance_change=1e-14, line_search_fn="strong_wolfe")
    tensors = torch.tensor(logits, dtype=torch.float64), torch.tensor(labels)

    def closure():
        optimiser.zero_grad()
        loss = torch.nn.functional.cross_entropy(tensors[0] * inverse, tensors[1])
        loss.backward()
        return loss

    optimiser.step(closure)
    assert calibration.temperature(logits, labels) == pytest.approx(1 / inverse.item(), rel=1e-4)


def test_images_that_are_all_right_or_all_wrong_end_at_a_bound():
    logits, _ = made_up(50)
    assert calibration.temperature(logits, logits.argmax(axis=1)) == calibration.LOWEST
    assert calibration.temperature(logits, logits.argmin(axis=1)) == calibration.HIGHEST


def test_images_that_are_all_right_tell_no_temperature():
    logits, _ = made_up(24, classes=3)
    answers = {"label": logits.argmax(axis=1), "id": np.arange(24)}
    found = calibration.of_answers(logits, answers)
    assert (found["temperature"], found["after"]) == (None, None)
    answers["label"][:3] = logits[:3].argmin(axis=1)
    assert calibration.of_answers(logits, answers)["temperature"] > 1
    answers["label"] = logits.argmin(axis=1)
    assert calibration.of_answers(logits, answers)["temperature"] == calibration.HIGHEST


def test_after_is_of_images_whose_photographs_did_not_choose_it():
    logits, labels = made_up(n=600)
    photographs = np.array([f"p{i % 12:02}" for i in range(600)])
    answers = {"label": labels, "id": np.arange(600, dtype=np.uint32), "photograph": photographs}
    found = calibration.of_answers(logits, answers)
    json.dumps(found, allow_nan=False)
    assert (found["n"], found["n_photographs"], found["folds"]) == (600, 12, 5)
    assert found["temperature"] == calibration.temperature(logits, labels)
    assert found["before"]["nll"] == pytest.approx(nll(logits, labels, 1), rel=1e-5)
    scaled = logits.copy()
    for k in range(5):
        held_out = np.isin(photographs, [f"p{i:02}" for i in range(k, 12, 5)])
        scaled[held_out] /= calibration.temperature(logits[~held_out], labels[~held_out])
    assert found["after"]["nll"] == pytest.approx(nll(scaled, labels, 1), rel=1e-5)
    assert found["after"]["nll"] < found["before"]["nll"]
    assert found["after"]["ece"] < found["before"]["ece"] / 2
    # By image where each is a photograph of its own, whatever the order of the images.
    del answers["photograph"]
    alone, order = calibration.of_answers(logits, answers), np.random.default_rng(0).permutation(600)
    assert "n_photographs" not in alone
    assert alone["after"] != found["after"]
    mixed = calibration.of_answers(logits[order], {k: v[order] for k, v in answers.items()})
    assert mixed["after"]["nll"] == pytest.approx(alone["after"]["nll"], rel=1e-5)


def test_one_photograph_has_no_after():
    logits, labels = made_up(20)
    answers = {"label": labels, "id": np.arange(20), "photograph": np.array(["p"] * 20)}
    found = calibration.of_answers(logits, answers)
    assert found["after"] is None
    assert found["folds"] == 1
    assert found["n_photographs"] == 1


def test_a_run_leaves_its_calibration_beside_unchanged_results(tiny_run):
    found = json.loads((tiny_run / "calibration.json").read_text())
    row = json.loads((tiny_run / "results.json").read_text())["sharp"]
    assert found["before"]["nll"] == pytest.approx(row["loss"], rel=1e-5)
    assert found["before"]["ece"] == pytest.approx(row["ece"], abs=1e-6)
    assert (found["n"], found["n_photographs"]) == (row["n"], row["n_photographs"])
    assert not {"logits", "temperature", "calibration"} & set(row)


def test_the_report_has_it_before_and_after(tmp_path):
    run = runs.run(tmp_path / "run", "configs/vit_mask.py:demo")
    fitted = {"temperature": 1.2345, "n": 224, "n_photographs": 14, "folds": 5}
    fitted |= {"before": {"nll": 1.25, "ece": 0.132}, "after": {"nll": 1.125, "ece": 0.051}}
    (run / "calibration.json").write_text(json.dumps(fitted))

    def written():
        report.write([run], tmp_path / "out")
        return (tmp_path / "out/report.md").read_text()

    text = written()
    (row,) = [line for line in text.splitlines() if "224 of 14" in line]
    assert row.replace("|", " ").split()[-10:] == ["13.2", "5.1", "1.250", "1.125", "1.23", "5", "224", "of", "14", "1"]
    (run / "calibration.json").write_text(json.dumps(fitted | {"after": None}))
    text = written()
    assert "1.23" in text
    (run / "calibration.json").write_text(json.dumps(fitted | {"temperature": None, "after": None}))
    (row,) = [line for line in written().splitlines() if "224 of 14" in line]
    assert row.replace("|", " ").split()[-7:] == ["13.2", "1.250", "5", "224", "of", "14", "1"]
    (run / "calibration.json").write_text(json.dumps(fitted | {"after": {"nll": "?"}}))
    text = written()
    assert "calibration.json: after is missing or damaged; evaluate the run again" in text
    assert "1.23 " not in text

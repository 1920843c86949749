"""The short part of tests.faults: a few of each fault, so that the long part is known to work."""

import random

import jax
import pytest

from tests.faults import __main__ as faults
from tests.faults import drivers
from tests.faults.tiny import Place, left


@pytest.fixture(scope="module")
def place(tmp_path_factory, data_dir):
    return Place(tmp_path_factory.mktemp("faults"), data_dir)


@pytest.fixture(scope="module")
def reference(place):
    code, err = place.finish(place.folder / "undisturbed")
    assert (code, err) == (0, "")
    return left(place.folder / "undisturbed")


@pytest.fixture(scope="module")
def half(place):
    return drivers.stopped_half_way(place)


@pytest.fixture
def one_device(monkeypatch):
    """The tests have eight devices, and the undisturbed run had one."""
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    one = jax.devices()[:1]
    monkeypatch.setattr(jax, "devices", lambda *_: one)


@pytest.mark.slow
def test_damage_leads_to_the_same_bytes(place, reference, half, one_device):
    rng = random.Random(1)
    outcomes = [drivers.damage(place, reference, rng, half) for _ in range(5)]
    assert all(outcome.endswith("the same bytes") and outcome[0].islower() for outcome in outcomes), outcomes
    assert any("recovered" in outcome for outcome in outcomes)


@pytest.mark.slow
def test_damage_beside_the_checkpoints_is_named_mended_or_of_nothing_that_is_read(place, reference, half, one_device):
    whole = place.folder / "undisturbed"
    outcomes = {drivers.damage_beside(place, reference, random.Random(i), half, whole) for i in range(30)}
    assert not any(word.isupper() and len(word) > 2 for outcome in outcomes for word in outcome.split()), outcomes
    assert len(outcomes) >= 5


@pytest.mark.slow
def test_two_processes_of_which_one_is_killed_end_with_the_same_bytes(place):
    def whole():
        return drivers.ended(place.start_several(place.folder / "of_two"), 600)

    assert whole() == [(0, ""), (0, "")]
    assert drivers.processes(place, left(place.folder / "of_two"), random.Random(3), 10).endswith(drivers.SAME)


@pytest.mark.slow
def test_a_full_disk_is_told_in_one_line(place, reference):
    with faults._disk(place.folder / "disk") as disk:
        if disk is None:
            pytest.skip("no tmpfs can be mounted here")
        outcome = drivers.full(place, reference, random.Random(0), disk, 700_000)
    assert outcome == "told in one line, went on: the same bytes"


def test_an_outcome_in_capitals_is_a_failure(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(faults, "_undisturbed", lambda place: ((), 1.0))
    seen = [("kills", "ended with the same bytes", 3), ("damages", drivers.OTHER, 1)]
    monkeypatch.setattr(faults, "_outcomes", lambda *_: iter(seen))
    assert faults.main([f"--out={tmp_path / 'page.md'}", "--kills=3"]) == 1
    assert "| damages | SILENT: ended with other bytes | 1 |" in (tmp_path / "page.md").read_text()
    seen.pop()
    assert faults.main(["--kills=3"]) == 0
    assert "--kills=3" in capsys.readouterr().out

"""Runs that cannot fit are refused before anything is allocated; what fits is not."""

import re

import jax
import numpy as np
import pytest

from bjax import experiment
from bjax.config import load
from bjax.errors import UserError
from bjax.main import main
from bjax.runtime import memory
from tests.conftest import ROOT, TINY


@pytest.fixture
def host(monkeypatch):
    """Sets how many bytes of memory this machine is taken to have."""
    return lambda size: monkeypatch.setattr(memory, "of_host", lambda: size)


def config(**options):
    pairs = [(key, str(value)) for key, value in (TINY | options).items()]
    return load(f"{ROOT}/configs/vit_mask.py:demo", pairs)


def test_what_is_counted_is_what_a_training_holds(data_dir, host):
    """By hand: params, their two moments, averages and gradients, on 8 devices that hold all of it each."""
    exp = experiment.build(config(**{"data.data_dir": data_dir, "model.options.width": 128}))
    *_, shapes, _ = experiment.state_of(exp, 1)
    count = sum(x.size for x in jax.tree.leaves(shapes.params))
    counters = 4 * sum(x.size for x in jax.tree.leaves(shapes.opt_state) if not x.shape)
    need = 5 * 4 * count + counters
    host(8 * need)
    memory.check_state(exp.config, exp.mesh, shapes, memory.TRAINING)
    host(8 * (need - 1))
    with pytest.raises(UserError, match=r"^config.mesh.fsdp=1: parameters, .* use --config.mesh.fsdp=2$"):
        memory.check_state(exp.config, exp.mesh, shapes, memory.TRAINING)
    host(8 * 4 * count)
    memory.check_state(exp.config, exp.mesh, shapes, memory.WEIGHTS)
    with pytest.raises(UserError, match=r"^config.mesh.fsdp=1: weights take .* use --config.mesh.fsdp=\d$"):
        memory.check_state(exp.config, exp.mesh, shapes, memory.RESTORED)
    host(8000)
    with pytest.raises(UserError, match=r"use a smaller model .*, or at least \d+ such devices with mesh.fsdp=\d+$"):
        memory.check_state(exp.config, exp.mesh, shapes, memory.RESTORED)


def test_a_value_that_fits_is_named_and_fits(host):
    given = config(**{"data.image_size": 64, "batch_size": 1600, "data.prefetch": 4})
    image = 3 * 64 * 64
    host(4 * 1600 * image)
    memory.check_batches(given, batch_size=9999, eval_batch_size=9999)
    host(4 * 1600 * image - 1)
    with pytest.raises(UserError, match=r"^config.batch_size=1600: the 4 batches .*; use at most 1592, or") as error:
        memory.check_batches(given, eval_batch_size=9999, batch_size=9999)
    given.batch_size = int(re.search(r"at most (\d+)", str(error.value))[1])
    memory.check_batches(given, batch_size=9999)
    host(4 * 7 * image)
    with pytest.raises(UserError, match=r"config.data.image_size=64 is too large: use at most 59 with a batch of 8"):
        memory.check_batches(given, batch_size=9999)
    given.data.image_size, given.batch_size = 59, 8
    memory.check_batches(given, batch_size=9999)


def test_batches_that_never_are_there_are_not_counted(host):
    given = config(**{"data.image_size": 64, "batch_size": 1600, "eval_batch_size": 800, "data.prefetch": 4})
    image = 3 * 64 * 64
    host(2 * 1600 * image)
    memory.check_batches(given, batch_size=3200, eval_batch_size=2401)
    host(2 * 1600 * image - 1)
    memory.check_batches(given, eval_batch_size=2400)
    with pytest.raises(UserError, match=r"^config.batch_size=1600: the 2 batches .*; use at most 792, or"):
        memory.check_batches(given, batch_size=3200)


def test_training_is_refused_before_anything_is_said_of_the_model(data_dir, tmp_path, host, capsys):
    values = TINY | {"data.data_dir": data_dir}
    command = [f"--config={ROOT}/configs/vit_mask.py:demo", *(f"--config.{k}={v}" for k, v in values.items())]
    command += [f"--workdir={tmp_path}"]
    host(90_000)
    assert main(command) == 2
    said = capsys.readouterr()
    assert said.err.startswith("bjax: config.batch_size=16: the 2 batches that are read ahead take ")
    host(100_000_000)
    assert main([*command, "--config.model.options.width=4096"]) == 2
    said = capsys.readouterr()
    assert said.err.startswith("bjax: config.mesh.fsdp=1: parameters, gradients and optimiser take ")
    assert said.err.count("\n") == 1
    assert "model  " not in said.out


def test_evaluation_is_refused_in_one_line(tiny_run, host, capsys):
    host(100_000)
    assert main([f"--workdir={tiny_run}", "--mode=eval"]) == 2
    assert capsys.readouterr().err.startswith("bjax: config.eval_batch_size=112: the 2 batches that are read ahead ")
    options = ["--config.eval_batch_size=8", "--config.data.prefetch=1"]
    assert main([f"--workdir={tiny_run}", "--mode=eval", *options]) == 2
    assert capsys.readouterr().err.startswith("bjax: config.mesh.fsdp=1: weights take ")


def test_this_machine_has_memory(tmp_path, monkeypatch):
    assert 2**28 < memory.of_device(jax.devices()[0]) <= memory.of_host() / 8
    for content, expected in (("max", memory.of_host()), ("1000000", 1_000_000)):
        (tmp_path / "memory.max").write_text(f"{content}\n")
        monkeypatch.setattr(memory, "CGROUP", tmp_path / "memory.max")
        assert memory.of_host() == expected
    assert np.isfinite(memory.of_host())

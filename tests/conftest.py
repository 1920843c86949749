"""Eight CPU devices, one compilation cache and one copy of the embedded photographs for the whole run."""

import os
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Most of the tests' time is compilation: XLA tries less hard, here and in subprocesses, where `optimized` is not used.
os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"

import jax
import pytest
from jax._src import compiler

# The emitters of before compile twice as fast; jaxlib 0.12 does not have them, and knows no such flag.
EMITTERS = "xla_cpu_use_fusion_emitters" if jax.__version__.startswith("0.10.") else None
if EMITTERS and EMITTERS not in os.environ.get("XLA_FLAGS", ""):  # a worker has the flags of who started it
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --{EMITTERS}=false".strip()
# Tests of sharding need devices. Not by XLA_FLAGS: subprocesses have one device, as a user has, and the same programs.
jax.config.update("jax_num_cpu_devices", 8)

ROOT = Path(__file__).parents[1]


# Files of 15 seconds and more, the longest first: one of them at the end would leave the other workers idle.
LONG = """
faults loop distributed step report weights bucket sweep blur predict run_files blur_draw export intervals gallery
calibration checkpoint models loader published imagenet_c prepare decode mask_quality
"""
LONG = [f"test_{name}" for name in LONG.split()]


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: LONG.index(item.path.stem) if item.path.stem in LONG else len(LONG))


def pytest_xdist_make_scheduler(config, log):
    """A file's tests stay on one worker, so that what they share is made once."""
    from xdist.scheduler import LoadFileScheduling

    config.option.loadscopereorder = False  # by the number of tests, of which the longest files have few
    return LoadFileScheduling(config, log)


@pytest.fixture(scope="session")
def shared_dir(tmp_path_factory) -> Path:
    """One folder for all test processes of this run (pytest-xdist gives each worker a folder beside the others)."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if os.environ.get("PYTEST_XDIST_WORKER") else base


@pytest.fixture(scope="session")
def data_dir(shared_dir) -> str:
    """Where the tests keep prepared datasets; `photos` is there, so that no command tells of preparing it."""
    from bjax.data import loader

    path = shared_dir / "datasets"
    path.mkdir(exist_ok=True)
    loader.open_split("photos", "train", data_dir=path)
    return str(path)


@pytest.fixture(scope="session", autouse=True)
def compilation_cache(shared_dir):
    """Programs that several tests or their subprocesses need are compiled once per run."""
    options = {
        "jax_compilation_cache_dir": str(shared_dir / "compiled"),
        "jax_persistent_cache_min_compile_time_secs": 0.2,
    }
    for name, value in options.items():
        os.environ[name.upper()] = str(value)
        jax.config.update(name, value)


def use_emitters_of_users(patched):
    intact = compiler.get_compile_options

    def options(*args, **more):
        compile_options = intact(*args, **more)
        compile_options.env_option_overrides = [*compile_options.env_option_overrides, (EMITTERS, True)]
        return compile_options

    if EMITTERS:
        patched.setattr(compiler, "get_compile_options", options)
        patched.setenv("XLA_FLAGS", os.environ["XLA_FLAGS"].replace(f"--{EMITTERS}=false", "").strip())


@pytest.fixture
def emitters_of_users(monkeypatch):
    """Fused as for users: two programs that share a part compute it bit for bit alike."""
    use_emitters_of_users(monkeypatch)


@pytest.fixture(scope="module")
def optimized():
    """Programs as users get them: for tests of numbers against somebody else's."""
    name = "jax_disable_most_optimizations"
    with pytest.MonkeyPatch.context() as patched:
        patched.delenv(name.upper())
        use_emitters_of_users(patched)
        jax.clear_caches()  # They do not tell one from the other.
        jax.config.update(name, False)
        yield
    jax.config.update(name, True)
    jax.clear_caches()


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory, data_dir) -> Path:
    """The workdir of a finished run: a ViT of one block on the embedded photographs, two steps at a high rate."""
    from bjax.main import main

    workdir = tmp_path_factory.mktemp("runs") / "tiny"
    values = TINY | {"data.data_dir": data_dir}
    flags = [f"--config.{key}={value}" for key, value in values.items()]
    assert main([f"--config={ROOT}/configs/vit_mask.py:demo", f"--workdir={workdir}", *flags]) == 0
    return workdir


TINY = {
    "model.options.variant": "Ti/8",
    "model.options.depth": 1,
    "model.options.width": 32,
    "model.options.heads": 2,
    "data.image_size": 32,
    "steps": 2,
    "batch_size": 16,
    "eval_batch_size": 112,
    "eval_only": "sharp",
    "optim.lr": 0.05,
    "optim.warmup": 0,
    "optim.ema": 0.5,
}

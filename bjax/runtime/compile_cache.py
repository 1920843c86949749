"""Compiled programs, kept between processes."""

import os
from pathlib import Path

import jax


def keep() -> None:
    """Keeps them in ~/.cache/bjax/xla: a repeated command starts in seconds. JAX's own variables win.

    All of them: JAX leaves out those that took less than a second, of which a run has dozens.
    """
    folder = str(Path.home() / ".cache" / "bjax" / "xla")
    for name, value in (("compilation_cache_dir", folder), ("persistent_cache_min_compile_time_secs", 0.0)):
        if f"JAX_{name.upper()}" not in os.environ:
            jax.config.update(f"jax_{name}", value)

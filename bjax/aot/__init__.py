"""Ahead of time: a run's programs compiled for chips that are not there, and what can be read off them."""

import os

# What Triton's products need would be found out on the GPU itself.
FLAGS = "--xla_gpu_enable_triton_gemm=false"
# XLA tells at length what it could not fit, and libtpu that it finds no chips.
QUIET = {"TF_CPP_MIN_LOG_LEVEL": "3", "TPU_SKIP_MDS_QUERY": "1"}
QUIET |= {"TPU_WORKER_HOSTNAMES": "localhost", "TPU_ACCELERATOR_TYPE": "v5e-4"}
# Its lock is for who uses chips: several processes may compile at once.
QUIET |= {"ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}


def prepare() -> None:
    """To be called before JAX is imported, in a process that compiles and computes nothing."""
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {FLAGS}".strip()
    import jax  # only now

    jax.config.update("jax_platforms", "cpu")

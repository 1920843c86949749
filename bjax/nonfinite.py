"""A loss or a gradient that is no finite number: which step it was, whose fault it is, and how to see it again.

Looked for where metrics are read anyway, so that no step waits for it, and before a checkpoint takes such a state in.
"""

import math
from pathlib import Path

import jax
import numpy as np

from bjax.errors import UserError
from bjax.experiment import Experiment
from bjax.runtime import workdir as workdirs
from bjax.runtime.checkpoint import Manager

FILE = "nonfinite.json"


def check(
    recent: list[dict[str, float]],
    step: int,
    ids: list[np.ndarray],
    manager: Manager,
    exp: Experiment,
    workdir: Path,
) -> None:
    """Raises UserError where a metric of `recent`, the steps up to `step`, is not finite; leaves `FILE` in the workdir.

    ids: of the images of the last of these steps, one array of this process's part a step. FILE holds the step, its
    metrics, its images' ids, and the checkpoint from which the same command comes to it again.
    """
    bad = [
        (offset, name)
        for offset, values in enumerate(recent, 1 - len(recent))
        for name in sorted(values, key=lambda name: name != "loss")
        if not math.isfinite(values[name])
    ]
    if not bad:
        return
    offset, name = bad[0]
    values = recent[offset - 1]
    manager.wait_until_finished()
    # JSON has no NaN.
    metrics = {k: v if math.isfinite(v) else str(v) for k, v in values.items()}
    seen = ids[offset - 1].tolist() if 1 - offset <= len(ids) else []
    before = max((s for s in manager.steps() if s < step + offset), default=0)
    left = {"step": step + offset, "metrics": metrics, "from_step": before, "image_ids": seen}
    if jax.process_index() == 0:
        workdirs.write(workdir / FILE, left)
    optim = exp.config.optim
    cause = f"try a lower --config.optim.lr than {optim.lr:g}, or --config.optim.clip=1"
    if manager.unverified:
        cause = f"the checkpoint {manager.directory}/{manager.restored}, which could not be verified, may be damaged"
    raise UserError(
        f"the {name} is {values[name]} at step {step + offset}; {cause}; in another --workdir, since the same command "
        f"in this one comes to it again from step {before} ({workdir / FILE} has its images)"
    )

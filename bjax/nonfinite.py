"""A loss or a gradient that is no finite number: which step it was, whose fault it is, and how to see it again.

Looked for where metrics are read anyway, so that no step waits for it, and before a checkpoint takes such a state in.
Where `config.nonfinite` says skip, the compiled step has left the state as it was, and steps in a row are counted here.
optax.apply_if_finite would not do: it sees neither the loss nor BatchNorm's statistics, and in the end lets a NaN in.
"""

import math
from pathlib import Path
from typing import NoReturn

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
    in_a_row: int = 0,
) -> int:
    """Raises UserError where a metric of `recent`, the steps up to `step`, is not finite; leaves `FILE` in the workdir.

    Where such steps are skipped that is said of the first beyond `config.nonfinite_limit` of them in a row.

    ids: of the images of the last of these steps, those not checked before, one array of this process's part a step.
    in_a_row: skipped steps in a row before these; returned is their number at the end. FILE holds the step, its
    metrics, its images' ids, and the checkpoint from which the same command comes to it again.
    """
    skips = exp.objective.skip_nonfinite
    limit = exp.config.nonfinite_limit if skips else 0
    new = recent[len(recent) - len(ids) :]
    for offset, values in enumerate(new, 1 - len(new)):
        bad = [n for n in sorted(values, key=lambda n: n != "loss") if not math.isfinite(values[n])]
        in_a_row = in_a_row + 1 if bad else 0
        if in_a_row > limit:
            _stop(step + offset, bad[0], values, ids[offset - 1].tolist(), manager, exp, workdir)
    return in_a_row


def counted(recent: list[dict[str, float]]) -> list[dict[str, float]]:
    """`recent` without the loss and the like of steps that were skipped."""
    return [{k: x[k] for k in ("skipped", "corrupt")} if x.get("skipped") else x for x in recent]


def _stop(
    step: int, name: str, values: dict, seen: list[int], manager: Manager, exp: Experiment, workdir: Path
) -> NoReturn:
    manager.wait_until_finished()
    # JSON has no NaN.
    metrics = {k: v if math.isfinite(v) else str(v) for k, v in values.items()}
    before = max((s for s in manager.steps() if s < step), default=0)
    left = {"step": step, "metrics": metrics, "from_step": before, "image_ids": seen}
    if jax.process_index() == 0:
        workdirs.write(workdir / FILE, left)
    config = exp.config
    cause = f"try a lower --config.optim.lr than {config.optim.lr:g}, or --config.optim.clip=1"
    if manager.unverified:
        cause = f"the checkpoint {manager.directory}/{manager.restored}, which could not be verified, may be damaged"
    skips, limit = exp.objective.skip_nonfinite, config.nonfinite_limit
    row = f", like the {limit} steps before, which were skipped (config.nonfinite_limit={limit})" if skips else ""
    here = "" if skips else ", or in this one --config.nonfinite=skip"
    raise UserError(
        f"the {name} is {values[name]} at step {step}{row}; {cause}; in another --workdir, since the same command "
        f"in this one comes to it again from step {before} ({workdir / FILE} has its images){here}"
    )

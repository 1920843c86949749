"""Measurements that are not part of a run: speed beside others' code, what a step sends, coverage of intervals."""

import importlib.util
import json
from pathlib import Path

from bjax.errors import UserError
from bjax.sums import replace


def save(path: Path, numbers) -> None:
    """Writes `numbers` as JSON, into a folder that need not be there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    replace(path, f"{json.dumps(numbers, indent=2, allow_nan=False)}\n".encode())


def installed(asked: list[str] | None, modules: dict[str, str]) -> list[str]:
    """The peers that are measured: those asked for, or of all those that are there; the others are told.

    modules: what each peer needs. Raises UserError where one that was asked for is not installed.
    """
    absent = [peer for peer in asked or modules if not importlib.util.find_spec(modules[peer])]
    if absent and asked:
        raise UserError(f"--against: {modules[absent[0]]} is not installed; leave {absent[0]} out")
    for peer in absent:
        print(f"{peer} is left out: {modules[peer]} is not installed", flush=True)
    return [peer for peer in asked or modules if peer not in absent]

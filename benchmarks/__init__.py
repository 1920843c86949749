"""Measurements that are not part of a run: speed beside others' code, what a step sends, coverage of intervals."""

from pathlib import Path

from bjax.runtime.workdir import to_json
from bjax.sums import replace


def save(path: Path, numbers) -> None:
    """Writes `numbers` as JSON, into a folder that need not be there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    replace(path, to_json(numbers).encode())

"""How an option is said: once, as a field of a frozen dataclass, with its default, bounds or choices, and effect.

A group of options is such a dataclass (`bjax.specs` has them), its fields made by `number`, `one_of`, `plain` and
`group`. What reads them: the fields of a config and their defaults (`defaults`), the check of a value (`wrong`), and
what may be changed when (`affecting`): weights, what a run's weights mean; training, what they become; evaluation, the
results; nothing, none of these. An option is `added` where the first runs did not have it: one whose config.json lacks
it did what the default does.
"""

import dataclasses
import operator
from collections.abc import Iterator, Mapping

from bjax.errors import nearest


def number(default, *, low=None, high=None, above=None, below=None, affects="training", added=False):
    """A number, or a tuple of them, with bounds: low and high may be reached, above and below may not."""
    bounds = {"low": low, "above": above, "high": high, "below": below}
    return _field(default, affects, added, {k: v for k, v in bounds.items() if v is not None})


def one_of(*choices, affects="training", added=False):
    """One of `choices`; the first is the default."""
    return _field(choices[0], affects, added, {"choices": choices})


def plain(default, *, affects="training", added=False):
    """A text, a truth value, or what is checked elsewhere."""
    return _field(default, affects, added, {})


def group(kind: type, *, affects: str | None = None):
    """A group of options; affects: of all of them, whatever they say themselves."""
    return dataclasses.field(default_factory=kind, metadata={"group": kind, "affects": affects})


def _field(default, affects: str, added: bool, limits: dict):
    is_open = isinstance(default, dict)  # its keys are free
    metadata = {"affects": affects, "added": added, "open": is_open, **limits}
    if is_open:
        return dataclasses.field(default_factory=lambda: dict(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


BOUNDS = {
    "low": (operator.ge, "at least"),
    "above": (operator.gt, "more than"),
    "high": (operator.le, "at most"),
    "below": (operator.lt, "less than"),
}


def wrong(value, limits: Mapping) -> str | None:
    """What was expected instead of `value`, limits being its field's metadata; None where it is right."""
    if "choices" in limits:
        choices = limits["choices"]
        return None if value in choices else f"expected one of {', '.join(choices)}{nearest(value, choices)}"
    bounds = [(*BOUNDS[k], limits[k]) for k in BOUNDS if k in limits]
    values = value if isinstance(value, tuple | list) else (value,)
    if all(x is not None and test(x, bound) for test, _, bound in bounds for x in values):
        return None
    return "expected " + " and ".join(f"{word} {bound}" for _, word, bound in bounds)


def defaults(kind: type) -> dict:
    """The fields of a group with their defaults, groups as dictionaries; `None` stands for a number that is not set."""

    def default(f: dataclasses.Field):
        if nested := f.metadata.get("group"):
            return defaults(nested)
        return f.default_factory() if f.metadata["open"] else f.default

    return {f.name: default(f) for f in dataclasses.fields(kind)}


def leaves(kind: type, prefix: str = "") -> Iterator[tuple[str, dataclasses.Field]]:
    """(dotted key, field) of every option of a group and of those in it, but for groups whose keys are free."""
    for f in dataclasses.fields(kind):
        nested = f.metadata.get("group")
        if nested:
            yield from leaves(nested, f"{prefix}{f.name}.")
        elif not f.metadata["open"]:
            yield f"{prefix}{f.name}", f


def affecting(kind: type, *effects: str) -> tuple[str, ...]:
    """The keys of the options of a group, or of whole groups in it, whose effect is one of `effects`."""
    keys = []
    for f in dataclasses.fields(kind):
        effect = f.metadata["affects"]
        if effect is None:
            keys += [f"{f.name}.{key}" for key in affecting(f.metadata["group"], *effects)]
        elif effect in effects:
            keys.append(f.name)
    return tuple(keys)

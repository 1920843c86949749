"""From `--config=FILE.py[:ARGS]` and `--config.KEY=VALUE` to one checked ConfigDict.

Everything that can be wrong in a config is found here or in the constructors that `experiment.build` calls, before any
device is touched, and told in one line: the key, its value, what is allowed, the nearest valid key.
"""

import ast
import contextlib
import copy
import functools
import importlib.util
import json
import operator
import re
import sys
import traceback
import types
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

from ml_collections import ConfigDict

from bjax import combinations, options, specs, sums
from bjax.errors import UserError, closest, nearest

Note = Callable[[str], None] | None  # what is told a line, for people
# Dictionaries that may get keys a config did not list: constructors check them.
OPEN = re.compile(r"model\.options|eval\.[^.]+\.options")
# Leaves that may be None; any other float leaf is a number.
MAY_BE_NONE = tuple(key.split(".")[-1] for key, f in options.leaves(specs.MaskSpec) if f.default is None)
# Fields that are gone, with the value at which they did nothing. A run with another is evaluated, but not gone on with.
REMOVED = {"dead_leaves": 0.0, "dead_leaves_steps": 0}


def load(spec: str, overrides: list[tuple[str, str]] = ()) -> ConfigDict:
    """Runs `get_config` of the file named in `spec` ("FILE.py[:ARGS]"), applies (key, text) pairs, checks the result.

    Raises UserError for whatever the user can mend: no such file, unknown words, keys, types, values and combinations.
    """
    path, _, args = spec.partition(":")
    file = module(path := located(path))
    if not hasattr(file, "get_config"):
        way = f"; it is a sweep: bjax sweep --config={spec}" if hasattr(file, "sweep") else ""
        raise UserError(f"--config={path}: defines no get_config(arg){way}")
    with _one_line(path):
        try:
            config = file.get_config(args)
        except ValueError as e:  # what the arguments or values may be, as the file or what it calls says it
            told = traceback.extract_tb(e.__traceback__)[-1].name == "parse_arg"  # of the arguments, in no line of it
            raise UserError(f"--config={spec}{'' if told else _line(e, path)}: {e}") from None
    if not isinstance(config, ConfigDict):
        what = f"get_config returned {type(config).__name__}, not a ConfigDict"
        raise UserError(f"--config={path}: {what}; start from bjax.configs.common.default() and return it")
    # A group that stands in several places would change in all of them at an override: the copy has it once for each.
    return _overridden(copied(config), overrides)


def reload(path: Path, overrides: list[tuple[str, str]] = (), note: Note = None) -> ConfigDict:
    """The config of a run, from its config.json, with (key, text) pairs applied.

    Raises UserError as `load` does. note: as of `read`.
    """
    return _overridden(read(path, note), overrides)


def read(path: Path, note: Note = None) -> ConfigDict:
    """The config in a run's config.json; a damaged file is a UserError.

    Fields that the file is too old to have are filled with their defaults; `note` is told which, in one line.
    """
    return from_json_values(read_plain(path, note))


def read_plain(path: Path, note: Note = None) -> dict:
    """What `read` reads, as the nested dictionaries and lists of JSON; for many of them, it is much faster."""
    try:
        config = json.loads(sums.read(path))
        if not isinstance(config, dict):
            raise ValueError("no JSON object")
    except ValueError as e:
        way = "delete it to go on with the config of the command line"
        raise UserError(f"{path}: damaged ({e}); {way}") from None
    filled = fill(config)
    if filled and note:
        note(f"{path}: older than some fields; filled with what such a run did: {', '.join(filled)}")
    return config


def fill(config: dict) -> list[str]:
    """Adds to a run's config, nested dictionaries, the options that came after it; returns them as "key=value".

    Options of `REMOVED` that were off are taken out.
    """
    for key, off in REMOVED.items():
        if config.get(key) == off:
            del config[key]
    filled = list(_fill(config, specs.Run, ""))
    conditions = config.get("eval")
    for condition in conditions.values() if isinstance(conditions, dict) else ():
        if isinstance(condition, dict):
            filled += _fill(condition, specs.Condition, "eval.*.")
    return list(dict.fromkeys(filled))


def _fill(node: dict, kind: type, prefix: str) -> Iterator[str]:
    for name, f in kind.__dataclass_fields__.items():
        inside = f.metadata.get("group")
        if inside and isinstance(node.setdefault(name, {}), dict):
            yield from _fill(node[name], inside, f"{prefix}{name}.")
        elif not inside and f.metadata["added"] and name not in node:
            value = {} if f.metadata["open"] else f.default
            node[name] = list(value) if isinstance(value, tuple) else value
            if not f.metadata["open"]:
                yield f"{prefix}{name}={value!r}"


def _overridden(config, overrides) -> ConfigDict:
    for key, text in overrides:
        override(config, key, text)
    validate(config)
    return config


def copied(node: ConfigDict) -> ConfigDict:
    """A copy in the same order; a leaf that may be None keeps its type."""
    made = ConfigDict(sort_keys=False)
    for key, value in node.items(preserve_field_references=True):
        made[key] = copied(value) if isinstance(value, ConfigDict) else copy.deepcopy(value)
    return made


def located(path: str) -> str:
    """`path`, where it is a .py file, or bjax.configs' file for `vit_mask.py` and `configs/vit_mask.py`; UserError."""
    file, packaged = Path(path), Path(__file__).parent / "configs"
    if file.is_file() and file.suffix == ".py":
        return path
    beside, names = (
        {p.name for p in d.glob("*.py")} - {"__init__.py", "common.py"} for d in (Path("configs"), packaged)
    )
    if file.name in names and path in (file.name, f"configs/{file.name}"):
        return str(packaged / file.name)
    known = [*(f"configs/{name}" for name in sorted(beside)), *sorted(names - beside)]
    cause = "is no .py file" if file.is_file() else "no such file"
    raise UserError(f"--config={path}: {cause}{nearest(path, known)}; there are: {', '.join(known)}")


def module(path: str) -> types.ModuleType:
    """The config file at `path`, run. Raises UserError."""
    spec = importlib.util.spec_from_file_location(Path(path).stem, path)
    loaded = importlib.util.module_from_spec(spec)
    with _one_line(path):
        spec.loader.exec_module(loaded)
    return loaded


@contextlib.contextmanager
def _one_line(path: str) -> Iterator[None]:
    """Whatever goes wrong while a config file runs, as a UserError that names its line."""
    try:
        yield
    except UserError:
        raise
    except (Exception, SystemExit) as e:  # the user's program: anything can come out of it
        said = " ".join(str(e.msg if isinstance(e, SyntaxError) else e).split())
        raise UserError(f"--config={path}{_line(e, path)}: {type(e).__name__}: {said}") from None


def _line(error: BaseException, path: str) -> str:
    """Where in the file at `path` an error arose, as ", line 3"; empty where it did not."""
    lines = [at.lineno for at in traceback.extract_tb(error.__traceback__) if at.filename == str(Path(path))]
    inside = isinstance(error, SyntaxError) and error.filename == str(Path(path))
    line = error.lineno if inside else [None, *lines][-1]
    return f", line {line}" if line else ""


def override(config: ConfigDict, key: str, text: str) -> None:
    """Sets the leaf `key` ("optim.lr") of `config` to `text`, read as the type that the leaf has."""
    *parents, name = parts = key.split(".")
    node = config
    for depth, part in enumerate(parts, start=1):
        may_be_new = depth == len(parts) and OPEN.fullmatch(".".join(parents))
        if not isinstance(node, ConfigDict) or not (part in node or may_be_new):
            raise _unknown_key(config, key, ".".join(parts[:depth]))
        node = node[part] if depth < len(parts) else node
    if name not in node:
        node[name] = _literal(text)
    elif isinstance(node[name], ConfigDict):
        inside = ", ".join(f"{key}.{k}" for k in node[name])
        raise UserError(f"--config.{key}={text}: {key} is a group; set one of {inside}")
    else:
        none = node[name] is None or name in MAY_BE_NONE
        node[name] = _read(f"--config.{key}={text}", text, node[name], node.get_type(name), none=none)


def validate(config: ConfigDict) -> None:
    """Checks values and combinations that a config alone decides; raises UserError naming the first bad key."""
    values = dict(leaves(config))
    for key, f in options.leaves(specs.Run):
        if key not in values:
            raise UserError(f"config.{key}: missing; a config starts from bjax.configs.common.default(), which has it")
        if expected := options.wrong(values[key], f.metadata):
            raise UserError(f"config.{key}={values[key]}: {expected}")
    for rule in config.mesh.rules:
        try:
            pattern, _ = rule
            re.compile(pattern)
        except (re.error, ValueError, TypeError):
            raise UserError(f"config.mesh.rules: {rule}: expected (regular expression, fsdp | replicate)") from None
    combinations.check(config)


def check_devices(config: ConfigDict, devices: int) -> None:
    """Checks that mesh and batch sizes fit the number of devices; raises UserError."""
    fsdp, data = config.mesh.fsdp, config.mesh.data
    if devices % fsdp:
        raise UserError(f"config.mesh.fsdp={fsdp}: does not divide the {devices} devices")
    if data not in (-1, need := devices // fsdp):
        raise UserError(f"config.mesh.data={data}: with fsdp={fsdp}, {devices} devices need {need} (or -1)")
    for key, parts in {"batch_size": config.optim.accumulate, "eval_batch_size": 1}.items():
        size, step = config[key], devices * parts
        if size % step:
            in_parts = f" in {parts} parts" if parts > 1 else ""
            raise UserError(
                f"config.{key}={size}{in_parts}: not divisible by the {devices} devices; "
                f"use a multiple of {step}, such as {-(-size // step) * step}"
            )


def leaves(config: ConfigDict, prefix: str = "") -> Iterator[tuple[str, object]]:
    """Yields (dotted key, value) for every leaf, in order."""
    for key, value in config.items():
        if isinstance(value, ConfigDict):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def to_json(config: ConfigDict) -> str:
    """The config as indented JSON; `from_json` reads it back to an equal config."""
    return json.dumps(config.to_dict(), indent=2) + "\n"


def from_json(text: str) -> ConfigDict:
    """The config that `to_json` wrote; JSON lists become tuples again."""
    return from_json_values(json.loads(text))


def from_json_values(x):
    """JSON's dictionaries and lists as ConfigDicts, in their order, and tuples."""
    if isinstance(x, dict):
        return ConfigDict({k: from_json_values(v) for k, v in x.items()}, sort_keys=False)
    return tuple(map(from_json_values, x)) if isinstance(x, list) else x


def differences(old: ConfigDict, new: ConfigDict) -> list[str]:
    """One "key: old → new" for every leaf that differs."""
    a, b = dict(leaves(old)), dict(leaves(new))
    differ = [k for k in {**a, **b} if a.get(k, ()) != b.get(k, ())]
    return [f"{k}: {a.get(k, 'absent')} → {b.get(k, 'absent')}" for k in differ]


def _read(what: str, text: str, old: object, kind: type, *, none: bool) -> object:
    """Reads `text` as `kind`, or as None where `none` says so.

    Tuples take the types of their present elements and keep their length; whole numbers there may become others.
    """
    lowered = text.strip().lower()
    if kind is str:
        return text
    if kind is bool:
        if lowered not in ("true", "false"):
            raise UserError(f"{what}: expected true or false")
        return lowered == "true"
    if lowered == "none" and none:
        return None
    if kind is int:
        value = _number(what, text)
        if value != int(value):
            raise UserError(f"{what}: expected a whole number, such as {old}")
        return int(value)
    if kind is float or kind is type(None):
        return float(_number(what, text))
    if isinstance(old[0], tuple):
        value = _literal(text)
        if not isinstance(value, tuple) or not all(isinstance(x, tuple) for x in value):
            raise UserError(f"{what}: expected a tuple of tuples, such as {old}")
        return value
    parts = text.strip().removeprefix("(").removesuffix(")").removesuffix(",").split(",")
    if len(parts) != len(old):
        raise UserError(f"{what}: expected {len(old)} numbers, such as {','.join(map(str, old))}")
    return tuple(
        # (1, 2) may be a range of σ as well as two layers: that 1.5 is no layer is known where layers are.
        x if isinstance(c, int) and x != int(x) else type(c)(x)
        for c, x in zip(old, (_number(what, part.strip()) for part in parts), strict=True)
    )


def _number(what: str, text: str) -> float:
    value = _literal(text)
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not abs(value) <= sys.float_info.max:
        raise UserError(f"{what}: expected a number, got {text!r}")
    return value


def _literal(text: str) -> object:
    """`text` as a Python literal, or itself where it is none: S/16 stays a string."""
    try:
        with warnings.catch_warnings(action="ignore"):  # of Python source that nobody meant to write
            return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):  # the last three: {[]: 1} and ((((…
        return text


def _unknown_key(config: ConfigDict, key: str, bad: str) -> UserError:
    known = [k for k, _ in leaves(config)]
    last = key.split(".")[-1]
    near = closest(key, known, cutoff=0.75) or next((k for k in known if k.split(".")[-1] == last), None)
    if near:
        return UserError(f"--config.{key}: no such key {bad!r} (did you mean --config.{near}?)")
    where = bad.rpartition(".")[0]
    parent = functools.reduce(operator.getitem, where.split("."), config) if where else config
    if not isinstance(parent, ConfigDict):
        return UserError(f"--config.{key}: no such key {bad!r}; {where} is one value")
    return UserError(f"--config.{key}: no such key {bad!r}; {where or 'config'} has: {', '.join(parent)}")


def split_arguments(argv: list[str]) -> tuple[list[tuple[str, str]], list[str]]:
    """Separates `--config.KEY=VALUE` from the other arguments; returns ([(key, text)], the rest)."""
    overrides, rest = [], []
    for argument in argv:
        match = re.match(r"--?config\.([^=]*)(=?)(.*)", argument, re.DOTALL)
        if not match:
            rest.append(argument)
        elif not match[2]:
            raise UserError(f"{argument}: expected --config.KEY=VALUE")
        else:
            overrides.append((match[1], match[3]))
    return overrides, rest

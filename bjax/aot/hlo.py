"""What a compiled program does, read off the text of its optimised HLO: bytes by kind of kernel, and collectives.

A kernel is an instruction of the entry, or of a loop that it runs, which counts as often as it does. Everything is of
one device, as the program is. Buffers that live in a TPU's own vector memory (`S(1)` in a layout) are no traffic.
"""

import dataclasses
import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterator

BYTES = {0.5: ("s4", "u4", "f4e2m1fn"), 1: ("pred", "s8", "u8"), 2: ("bf16", "f16", "s16", "u16")}
BYTES |= {4: ("s32", "u32", "f32"), 8: ("s64", "u64", "f64", "c64"), 16: ("c128",)}
SIZES = {name: size for size, names in BYTES.items() for name in names}
COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
FREE = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "partition-id", "replica-id"}
FREE |= {"opt-barrier", "add-dependency", "get-dimension-size"}
# What an instruction runs: the body of a loop, an asynchronous call, branches; not what a fusion or a reduction is of.
RUNS = re.compile(r"(?:body|calls|to_apply|(?:branch|true|false)_computations?)=(\{[^}]*\}|[\w.%-]+)")
IN_VECTOR_MEMORY = re.compile(r"S\(1\)")
SCRATCH = re.compile(r"[su]8\[\d*\](\{[^}]*\})?\)$")
RUNNING = {"while", "call", "conditional", "async-start"}
# The kind of a fusion is that of the first of these that it holds.
KINDS = {
    "convolution": ("convolution",),
    "matmul": ("dot",),
    "scatter": ("scatter", "select-and-scatter"),
    "pooling": ("reduce-window",),
    "transpose": ("transpose",),
    "gather": ("gather",),
    "reduce": ("reduce",),
    "pad": ("pad",),
    "copy": ("copy", "concatenate", "dynamic-update-slice"),
}
TARGETS = {"conv": "convolution", "cublas": "matmul", "fmha": "attention", "Conv": "convolution", "Sort": "other"}


@dataclasses.dataclass(frozen=True)
class Instruction:
    name: str
    shape: str  # its type, as the text has it
    opcode: str
    operands: tuple[str, ...]  # names
    rest: str  # its attributes


@dataclasses.dataclass(frozen=True)
class Kernel:
    """One kernel: its kind, the bytes that it reads and writes, and how often it runs."""

    name: str
    kind: str
    read: int
    written: int
    times: int
    where: str = ""  # the operation in the source that it stems from


Module = dict[str, dict[str, Instruction]]  # computations by name, the entry's is ""; instructions by name, in order


def parse(text: str) -> Module:
    """The computations of an optimised module's text, as `Compiled.as_text` returns it."""
    body = {}
    module = {"": body}
    for line in text.splitlines():
        if header := re.match(r"(ENTRY )?%?([\w.-]+) \(.*\{$", line):
            body = {}
            module["" if header[1] else header[2]] = body
        elif match := re.match(r"\s+(?:ROOT )?%?([\w.-]+) = (.*)$", line):
            shape, after = _first_type(match[2])
            opcode, _, after = after.partition("(")
            operands, rest = _closed(after)
            names = () if opcode in ("parameter", "constant") else tuple(re.findall(r"%([\w.-]+)", operands))
            rest = operands if opcode in ("parameter", "constant") else rest  # its number, its value
            body[match[1]] = Instruction(match[1], shape, opcode, names, rest)
    return module


def size(shape: str) -> int:
    """Bytes in a device's main memory of a type such as `(f32[8,128]{1,0}, bf16[])`, without a layout's padding."""
    return math.ceil(sum(_arrays(shape)))


def kernels(module: Module) -> list[Kernel]:
    """Every kernel of one run of the program, in the text's order."""
    return [_kernel(module, body, i, times) for body, i, times, _ in _run(module) if i.opcode not in FREE]


def by_kind(found: list[Kernel]) -> dict[str, dict[str, int]]:
    """{kind: {kernels, bytes}} of one run, the largest first."""
    totals = defaultdict(Counter)
    for k in found:
        totals[k.kind].update(kernels=k.times, bytes=k.times * (k.read + k.written))
    return dict(sorted(((kind, dict(row)) for kind, row in totals.items()), key=lambda row: -row[1]["bytes"]))


def collectives(module: Module) -> dict[str, dict[str, int]]:
    """{kind: {calls, arrays, bytes}} of one run; bytes of the results on one device.

    What lies in a loop counts as often as the loop runs, each branch of a condition once. Where nothing says how often
    a loop runs, that counts once, and the row says so: at_least, the number of calls in such loops. On TPUs
    one that is sent while other work is done stands in each of the fusions meanwhile, and is told by its channel.
    """
    counted, channels = defaultdict(Counter), set()
    for _, run, times, known in _run(module):
        fused = module.get(_called(run), {}) if run.opcode == "fusion" else {}
        for i in (run, *fused.values()):
            channel = re.search(r"channel_id=\d+", i.rest)
            if (kind := _collective(i)) is None or (fused and channel and channel[0] in channels):
                continue
            channels |= {channel[0]} if channel else set()
            results = _results(i)
            counted[kind].update(calls=times, arrays=len(results) * times, bytes=math.ceil(sum(results)) * times)
            if not known:
                counted[kind].update(at_least=times)
    return {kind: dict(row) for kind, row in counted.items()}


def _collective(i: Instruction) -> str | None:
    kind = i.opcode.removesuffix("-start")
    return kind if kind in COLLECTIVES else None


def _results(i: Instruction) -> list[float]:
    """Bytes of each array that a collective leaves; the types of some name what it was given before them."""
    arrays = _arrays(IN_VECTOR_MEMORY.sub("", i.shape))  # what is sent is sent from there too
    if i.opcode == "collective-permute-start":
        return arrays[1:2] or arrays
    if i.opcode in ("all-gather-start", "reduce-scatter-start") and len(arrays) > 1:
        return arrays[len(arrays) // 2 :]
    return arrays


def _run(
    module: Module, name: str = "", times: int = 1, known: bool = True
) -> Iterator[tuple[dict[str, Instruction], Instruction, int, bool]]:
    """(Its computation, an instruction, how often it runs, whether that is known) of all that one run reaches."""
    for i in module[name].values():
        if i.opcode not in RUNNING:
            yield module[name], i, times, known
            continue
        trips = _trips(module, module[name], i) if i.opcode == "while" else 1
        inner, sure = times * (1 if trips is None else trips), known and trips is not None
        for called in re.findall(r"[\w.-]+", " ".join(RUNS.findall(i.rest))):
            yield from _run(module, called, inner, sure)


def _trips(module: Module, body: dict[str, Instruction], loop: Instruction) -> int | None:
    """How often a loop runs: as the module says or, on TPUs, where it does not, as its counter does, which goes from 0
    by a constant to another; None where neither tells."""
    if said := re.search(r"known_trip_count\W+n\W+(\d+)", loop.rest):
        return int(said[1])
    inside = {word: module.get(name) for word, name in re.findall(r"(condition|body)=%?([\w.-]+)", loop.rest)}
    condition, run = inside.get("condition"), inside.get("body")
    before = body.get(loop.operands[0])
    if not condition or not run or before is None or before.opcode != "tuple":
        return None
    (*_, test), (*_, after) = condition.values(), run.values()
    if test.opcode != "compare" or "direction=LT" not in test.rest or after.opcode != "tuple":
        return None
    counter, end = (_copied(condition, name) for name in test.operands)
    place = re.search(r"index=(\d+)", counter.rest)
    if counter.opcode != "get-tuple-element" or place is None:
        return None
    start, step = (_copied(c, t.operands[int(place[1])]) for c, t in ((body, before), (run, after)))
    added = [_copied(run, name) for name in step.operands if step.opcode == "add"]
    numbers = [x.rest for x in (start, end, *added) if x.opcode == "constant"]
    counts = any(x.opcode == "get-tuple-element" and f"index={place[1]}," in f"{x.rest}," for x in added)
    if not counts or len(numbers) != 3 or not all(map(str.isdecimal, numbers)):
        return None
    first, last, by = map(int, numbers)
    return -(-last // by) if first == 0 and by > 0 else None


def _copied(computation: dict[str, Instruction], name: str) -> Instruction:
    """What this is a copy of."""
    i = computation[name]
    return _copied(computation, i.operands[0]) if i.opcode in ("copy", "bitcast") else i


def _kernel(module: Module, body: dict[str, Instruction], i: Instruction, times: int) -> Kernel:
    fused = module.get(_called(i)) if i.opcode == "fusion" else None
    operands = [body[name] for name in i.operands]
    if fused is None:
        read, written = sum(size(x.shape) for x in operands), size(i.shape)
        if i.opcode == "slice-start":  # its type is what it cuts from, what it cuts, and a context
            cut = re.findall(r"\w+\[[\d,]*\](?:\{[^}]*\})?", i.shape)[-2]
            read, written = _cut(cut, operands[0]), size(cut)
        elif i.opcode in ("dynamic-slice", "gather", "slice"):
            read = _cut(i.shape, operands[0]) + sum(size(x.shape) for x in operands[1:])
        elif i.opcode == "copy-start":  # its type is what it copies to, what from, and a context
            written = math.ceil(_arrays(i.shape)[0])
        elif i.opcode.endswith("-done") or i.opcode == "async-update":
            read = written = 0
        elif _collective(i) and i.opcode.endswith("-start"):  # its type may name what it was given as well
            written = read
        elif i.opcode == "custom-call":  # a library's; its last result is room to work in
            written -= size(SCRATCH.search(i.shape)[0]) if SCRATCH.search(i.shape) else 0
    elif _asynchronous(fused) == "AsyncCollectiveDone":
        read = written = 0
    else:
        read, written = _moved(fused, operands)
    where = re.search(r'op_name="([^"]*)"', i.rest)
    return Kernel(i.name, _kind(i, fused), round(read), round(written), times, where[1] if where else "")


def _kind(i: Instruction, fused: dict[str, Instruction] | None) -> str:
    if _collective(i) or i.opcode.removesuffix("-done") in COLLECTIVES or (fused and _asynchronous(fused)):
        return "collective"
    if i.opcode == "custom-call":
        target = re.search(r'custom_call_target="([^"]*)"', i.rest)
        return next((kind for part, kind in TARGETS.items() if target and part in target[1]), "other")
    if i.opcode.startswith("slice"):
        return "copy"
    opcodes = {x.opcode for x in fused.values()} if fused else {i.opcode.removesuffix("-start").removesuffix("-done")}
    return next((kind for kind, words in KINDS.items() if opcodes & set(words)), "elementwise")


def _asynchronous(fused: dict[str, Instruction]) -> str:
    """AsyncCollectiveStart or AsyncCollectiveDone, where a fusion does nothing else."""
    *_, root = fused.values()
    found = re.search(r'custom_call_target="(AsyncCollective\w+)"', root.rest)
    return found[1] if found else ""


def _moved(fused: dict[str, Instruction], operands: list[Instruction]) -> tuple[float, float]:
    """(Bytes that are read, bytes that are written) by a fusion: of what it is given often only a slice.

    What is only passed through a `dynamic-update-slice` is updated in place: the update alone is written, and nothing
    of the rest is read. What is handed on, as a collective that is under way, is neither.
    """
    *_, root = fused.values()
    results = [root]
    if root.opcode == "tuple":
        results = [i for i in map(fused.get, root.operands) if i.opcode != "parameter" and not _collective(i)]
    updates = {i.name: fused[i.operands[1]] for i in results if i.opcode == "dynamic-update-slice"}
    written = sum(size(i.shape) * _share(updates.get(i.name, i), i) for i in results)
    needed = defaultdict(float) | {i.name: _numbers(i.shape) for i in results}  # elements
    for i in reversed(fused.values()):
        whole = _numbers(i.shape)
        needed[i.name] = min(needed[i.name], whole)
        if i.opcode == "tuple" and i is root:
            continue
        for n, name in enumerate(i.operands):
            part = needed[i.name] / whole if whole else 0.0
            if n == 0 and i.name in updates:
                part = 0.0
            elif n == 0 and i.opcode in ("slice", "dynamic-slice", "gather", "broadcast"):
                part = min(needed[i.name] / max(_numbers(fused[name].shape), 1), 1.0)
            needed[name] += part * _numbers(fused[name].shape)
    parameters = {int(i.rest): i for i in fused.values() if i.opcode == "parameter"}
    read = 0.0
    for n, given in enumerate(operands):
        inside = parameters[n]
        read += size(given.shape) * min(needed[inside.name] / max(_numbers(inside.shape), 1), 1.0)
    return read, written


def _cut(shape: str, whole: Instruction) -> float:
    """Bytes of a slice of this type that are read, wherever they are put."""
    return size(whole.shape) * min(_numbers(shape) / max(_numbers(whole.shape), 1), 1.0)


def _share(part: Instruction, whole: Instruction) -> float:
    return _numbers(part.shape) / max(_numbers(whole.shape), 1)


def _called(i: Instruction) -> str:
    match = re.search(r"calls=%?([\w.-]+)", i.rest)
    return match[1] if match else ""


def _arrays(shape: str) -> list[float]:
    """Bytes of each array of a type."""
    found = re.findall(r"(\w+)\[([\d,<=]*)\](\{[^}]*\})?", shape)
    return [_bytes(name) * _count(dims) if "S(1)" not in layout else 0.0 for name, dims, layout in found]


def _numbers(shape: str) -> int:
    return sum(_count(dims) for _, dims in re.findall(r"(\w+)\[([\d,<=]*)\]", shape))


def _count(dims: str) -> int:
    return math.prod(int(n.lstrip("<=")) for n in dims.split(",") if n)


def _bytes(name: str) -> float:
    return SIZES.get(name, 1.0 if name.startswith("f8") else 0.0)  # tokens and opaque values take none


def _first_type(text: str) -> tuple[str, str]:
    """(The type that `text` begins with, what follows it)."""
    if text.startswith("("):
        inner, rest = _closed(text[1:])
        return f"({inner})", rest.lstrip()
    shape, _, rest = text.partition(" ")
    return shape, rest


def _closed(text: str) -> tuple[str, str]:
    """(What stands before the bracket that closes, what follows it)."""
    depth = 1
    for at, c in enumerate(text):
        depth += (c == "(") - (c == ")")
        if not depth:
            return text[:at], text[at + 1 :]
    return text, ""

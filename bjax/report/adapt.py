"""What adapting at test time gives and costs, stream by stream, beside runs that were trained on blur (adapt.json)."""

from typing import NamedTuple

from bjax.report import intervals
from bjax.report.intervals import accuracy, signed
from bjax.report.pairs import Pair, row_like
from bjax.report.render import Heading, Items, Mark, Table, Text
from bjax.report.runs import Row, Run, grouped, in_order
from bjax.report.words import kinds_of

METHODS = {
    "none": "none",
    "bn_train": "BatchNorm of training images blurred alike",
    "bn_stream": "BatchNorm of the stream",
    "tent": "TENT",
}
ON = {
    "independent": "independent images",
    "single": "single images",
    "mixed": "batches of mixed blur",
    "imbalanced": "images sorted by class",
}
MARKS = {"helps": "strong", "hurts": "em"}
ABOUT = (
    "Beside none: points of top-1 over the same images, paired, with the 95 % interval of Student's t over the "
    "photographs' differences, or over the images where each is a photograph of its own; bold helps, italic hurts "
    "beyond chance. ECE: 15 bins, of the largest probability. ms: what answering and learning take for an image on one "
    "device, compiled before, the median over whole batches, and how many times as long as without adapting."
)
SLOW = 1.5  # times as long as not adapting: worth a sentence


class Case(NamedTuple):
    """One method on one stream of one run: a row of adapt.json."""

    run: Run
    stream: str
    method: str
    result: dict

    @property
    def row(self) -> Row:
        what = self.run.adapt["what"]
        return Row(f"{self.method} on {self.stream}", what, self.result, run=self.run.number)

    @property
    def points(self) -> str:
        low, high = (signed(100 * x) for x in self.result["difference_95"])
        return f"{signed(100 * self.result['difference'])} points ({low} to {high})"

    @property
    def name(self) -> str:
        return METHODS.get(self.method, self.method)

    @property
    def times(self) -> float:
        """How many times as long as not adapting it takes."""
        return self.result["ms"] / self.run.adapt["streams"][self.stream]["methods"]["none"]["ms"]

    def text(self, verb: str, *, several: bool) -> str:
        how = f"trained on {self.run.regimen}" if self.run.trained else self.run.regimen
        who = f" (run {self.run.number}, {self.run.model} {how})" if several else ""
        return f"{self.name} {verb} on {ON.get(self.stream, self.stream)}{who}: {self.points}"


def helps(runs: list[Run]) -> list:
    """The answer, in a sentence, with its rival and its clock; a table for every run that measured it."""
    adapted = in_order([run for run in runs if run.adapt])
    beside = [case for run in adapted for case in _cases(run) if "difference" in case.result]
    if not beside:
        return []
    rivals = {run.number: _rivals(run, runs) for run in adapted}
    blocks = [Text(f"{answer(beside, several=len(adapted) > 1)} {clock(beside)}")]
    for run in adapted:
        blocks += [Text(_told(run, *rival)) for rival in rivals[run.number]]
    abouts = [_abouts(run) for run in adapted]
    alike = all(lines == abouts[0] for lines in abouts)
    blocks += [Items(abouts[0])] if alike else []
    blocks.append(Text(ABOUT))
    for run, lines in zip(adapted, abouts, strict=True):
        blocks.append(Heading(f"{run.name} (run {run.number})", 3))
        blocks += [Items(lines)] if not alike else []
        blocks.append(_table(run, rivals[run.number]))
    return blocks


def _cases(run: Run) -> list[Case]:
    streams = run.adapt["streams"].items()
    return [Case(run, name, method, row) for name, found in streams for method, row in found["methods"].items()]


def answer(cases: list[Case], *, several: bool) -> str:
    """Whether adapting helps, by the paired intervals: where it hurts and helps most, and how often."""
    better, worse = ([c for c in cases if c.result["verdict"] == verdict] for verdict in ("helps", "hurts"))
    told = []
    if worse:
        told.append(min(worse, key=lambda c: c.result["difference"]).text("hurts", several=several))
    if better:
        told.append(max(better, key=lambda c: c.result["difference"]).text("helps", several=several))
    if not told:
        most = max(cases, key=lambda c: abs(c.result["difference"]))
        told.append("no difference is beyond chance; the largest, " + most.text("differs", several=several))
    verdict = {(True, True): "It depends", (False, True): "No", (True, False): "Yes"}
    first = f"{verdict.get((bool(better), bool(worse)), 'Not that it could be told')}: {'; '.join(told)}."
    count = f"{len(better)} are better and {len(worse)} worse than not adapting beyond chance"
    return f"{first} Of {len(cases)} comparisons {count}, each looked at on its own."


def clock(cases: list[Case]) -> str:
    """Which methods take longer."""
    slow = []
    for name, some in grouped(cases, lambda case: case.name).items():
        low, high = min(case.times for case in some), max(case.times for case in some)
        if high >= SLOW:
            slow.append(f"{name} takes {'–'.join(dict.fromkeys(f'{x:.1f}' for x in (low, high)))} times as long")
    return f"{'; '.join(slow) or f'None takes {SLOW} times as long'} for an image."


def _rivals(run: Run, runs: list[Run]) -> list[tuple[Run, Pair]]:
    """Runs of its model and images that were trained on blur, each with its row of the condition beside this run's."""
    own = row_like(run, run.adapt["what"])
    found = []
    for other in runs:
        alike = other.model == run.model and other.config["data"]["name"] == run.config["data"]["name"]
        blurred = other.trained and set(kinds_of(other.config["blur"])) != {"sharp"}
        row = row_like(other, run.adapt["what"])
        if other is not run and alike and blurred and row and own:
            found.append((other, Pair(other.regimen, row, own)))
    return found


def _told(run: Run, other: Run, pair: Pair) -> str:
    value, _, behind = accuracy(pair.row).partition(" ")
    return (
        f"The rival of run {run.number}, which costs nothing at test time: {other.model} trained on {other.regimen} "
        f"(run {other.number}), not adapting, is right on {value} % {behind} of {pair.row.result['n']:,} such images, "
        f"{pair.points}, {pair.verdict}."
    )


def _table(run: Run, rivals: list[tuple[Run, Pair]]) -> Table:
    content, body, cases = run.adapt, [], _cases(run)
    for case in cases:
        gap = case.points.replace(" points", "") if "difference" in case.result else ""
        verdict = MARKS.get(case.result.get("verdict", ""))
        times = f" (× {case.times:.1f})" if gap else ""
        cells = [accuracy(case.row), Mark(gap, verdict) if verdict else gap, f"{100 * case.result['ece']:.1f}"]
        body.append([case.stream, case.name, *cells, f"{case.result['ms']:.1f}{times}"])
    for other, pair in rivals:
        gap = Mark(pair.text, "strong" if pair.sign > 0 else "em") if pair.sign else pair.text
        error = f"{100 * pair.row.result['ece']:.1f}" if "ece" in pair.row.result else ""
        name = f"none, but trained on {other.regimen} (run {other.number})"
        body.append(["independent", name, accuracy(pair.row), gap, error, ""])
    header = ["stream", "adapting", "top-1 % (95 %)", "beside none", "ECE %", "ms"]
    rows = [case.row for case in cases] + [pair.row for _, pair in rivals]
    notes = [intervals.kinds(rows, "brackets")]
    if doubted := sum(map(intervals.doubtful, rows)):
        notes.append(f"{intervals.doubt(doubted)}.")
    notes += [_steps(cases), f"Timed on {content['device']}."]
    if content["bn_train_images"]:
        seen = f"{content['bn_train_images']:,} training images were seen before the stream"
        notes.append(f"BatchNorm of training images: {seen}, which takes no time of it.")
    if content["left_out"]:
        notes.append(f"Not there: {', '.join(dict.fromkeys(content['left_out'].values()))}.")
    if len(run.seeds) > 1:
        notes.append("Of several seeds the first that measured it.")
    return Table(header, body, " ".join(filter(None, notes)), left=2)


def _steps(cases: list[Case]) -> str:
    """What TENT's steps add to BatchNorm of the stream, with which they begin."""
    if not cases or cases[0].run.adapt["prior"]:
        return ""
    top1 = {(case.method, case.stream): case.result["top1"] for case in cases}
    gains = [top1["tent", s] - top1["bn_stream", s] for m, s in top1 if m == "tent" and ("bn_stream", s) in top1]
    if not gains:
        return ""
    low, high = (signed(100 * x) for x in (min(gains), max(gains)))
    what = "change no accuracy" if low == high == signed(0.0) else f"add {low} to {high} points"
    rate = f"learning rate {cases[0].run.adapt['lr']:g} at batches of 64"
    return f"TENT begins with BatchNorm of the stream; its steps themselves {what} ({rate})."


def _abouts(run: Run) -> list[str]:
    """The images, and what each stream does with them."""
    content, row = run.adapt, _cases(run)[0].row
    lines = [f"{content['n']:,} images of {content['data']}, {row.blur} ({content['condition']})"]
    for name, stream in content["streams"].items():
        last = f"; the last of {stream['last']}, which counts but is not timed" if stream["last"] else ""
        lines.append(f"{name}: {stream['about']}{last}")
    return lines

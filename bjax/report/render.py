"""What a section is made of (blocks), and the two renderers: Markdown with figures beside it, and one HTML file."""

import base64
import collections
import dataclasses
import functools
import html
import importlib.util
import io
import re
from collections.abc import Callable
from pathlib import Path

from bjax.errors import UserError
from bjax.report.runs import Run


@dataclasses.dataclass(frozen=True)
class Heading:
    text: str
    level: int = 2


@dataclasses.dataclass(frozen=True)
class Text:
    """A paragraph."""

    text: str


@dataclasses.dataclass(frozen=True)
class Items:
    """A list of lines."""

    lines: list[str]


@dataclasses.dataclass(frozen=True)
class Mark:
    """A table cell that stands out: strong or em."""

    text: str
    kind: str

    def __str__(self) -> str:
        """As Markdown marks it."""
        sign = {"strong": "**", "em": "_"}[self.kind]
        return f"{sign}{self.text}{sign}"


@dataclasses.dataclass(frozen=True)
class Table:
    """Cells are text. left: how many columns hold words; the others hold numbers and are set to the right.

    groups: (title, columns) over the header, from the first column on; an empty title over columns that need none.
    """

    header: list[str]
    rows: list[list[str | Mark]]
    caption: str = ""
    left: int = 1
    groups: tuple[tuple[str, int], ...] = ()


def condensed(table: Table) -> Table:
    """Columns of words that say the same in every row go to the caption; one column of words stays."""
    alike = [i for i in range(table.left) if len({str(row[i]) for row in table.rows}) == 1]
    if len(alike) == table.left:
        del alike[0]
    told = "; ".join(f"{table.header[i]} {table.rows[0][i]}" for i in alike if str(table.rows[0][i]))
    caption = " ".join(filter(None, [f"In every row: {told}." if told else "", table.caption]))
    return dataclasses.replace(_without(table, alike), caption=caption)


def without_empty(table: Table, name: str) -> Table:
    """The columns of that name go where no row has anything in any of them."""
    named = [i for i, header in enumerate(table.header) if header == name]
    return table if any(str(row[i]) for row in table.rows for i in named) else _without(table, named)


def _without(table: Table, columns: list[int]) -> Table:
    kept = [i for i in range(len(table.header)) if i not in columns]
    groups, place = [], 0
    for title, number in table.groups:
        groups.append((title, sum(i in kept for i in range(place, place + number))))
        place += number
    header, *rows = ([row[i] for i in kept] for row in (table.header, *table.rows))
    left = sum(i < table.left for i in kept)
    return dataclasses.replace(table, header=header, rows=rows, left=left, groups=tuple(g for g in groups if g[1]))


@dataclasses.dataclass(frozen=True)
class Figure:
    """name: of the file, without .png. drawing: a matplotlib Figure. caption: what is measured, and of how many."""

    name: str
    drawing: object
    caption: str
    alt: str

    @property
    def width(self) -> int:
        """On a page, pixels: letters of all figures are then of one size."""
        return round(96 * self.drawing.get_figwidth())

    @functools.cached_property
    def png(self) -> bytes:
        buffer = io.BytesIO()
        # No software version and no date inside: the same results give the same file.
        self.drawing.savefig(buffer, format="png", dpi=160, metadata={"Software": None})
        return buffer.getvalue()

    @property
    def source(self) -> str:
        """What an <img> of it shows, inside the page."""
        return f"data:image/png;base64,{base64.b64encode(self.png).decode()}"


@dataclasses.dataclass(frozen=True)
class Answers:
    """The first screen: sentences with numbers, and the figure of these."""

    lines: list[str]
    figure: Figure


@dataclasses.dataclass(frozen=True)
class Details:
    """Text as it is, folded away."""

    summary: str
    text: str


def slug(text: str) -> str:
    """`text` as part of a file name or an anchor."""
    return re.sub(r"[^\w.=-]+", "_", text).strip("_")


def per_run(section: Callable[[Run], list]) -> Callable[[list[Run]], list]:
    """The section that has the blocks of every run that gives some, under the run's name."""

    def blocks(runs: list[Run]) -> list:
        made = []
        for run in runs:
            if content := section(run):
                made += [Heading(f"{run.name} (run {run.number})", 3), *content]
        return made

    return blocks


# --- Markdown


def markdown(title: str, blocks: list, out: Path) -> str:
    """The report as Markdown; figures are written into `out`."""
    return "\n\n".join([f"# {_md(title)}", *(_markdown(block, out) for block in blocks)]) + "\n"


def _markdown(block, out: Path) -> str:
    match block:
        case Heading():
            return f"{'#' * block.level} {_md(block.text)}"
        case Text():
            return _md(block.text)
        case Items():
            return "\n".join(f"- {_md(line)}" for line in block.lines)
        case Table():
            return _markdown_table(block)
        case Answers():
            return "\n\n".join(_markdown(part, out) for part in (Items(block.lines), block.figure))
        case Figure():
            file = out / f"{block.name}.png"
            file.write_bytes(block.png)
            return f"![{_md(block.alt)}]({file.name})\n\n{_md(block.caption)}"
        case Details():
            text = html.escape(block.text, quote=False)
            return f"<details><summary>{_md(block.summary)}</summary>\n\n<pre>\n{text}\n</pre>\n\n</details>"


def _markdown_table(table: Table) -> str:
    """Columns are padded: it reads well as text too."""
    header, place = list(table.header), 0
    for title, columns in table.groups:
        # Markdown has one header: every column carries its group's title where its own would be ambiguous.
        for i in range(place, place + columns):
            if title and (i == place or table.header.count(table.header[i]) > 1):
                header[i] = f"{title}: {header[i]}"
        place += columns
    body = [[_md(str(cell)) for cell in row] for row in (header, *table.rows)]
    widths = [max(3, *(len(row[i]) for row in body)) for i in range(len(header))]
    form = " | ".join(f"{{:{'<' if i < table.left else '>'}{width}}}" for i, width in enumerate(widths))
    lines = [f"| {form.format(*row)} |" for row in body]
    rule = ["-" * (w + 2) if i < table.left else "-" * (w + 1) + ":" for i, w in enumerate(widths)]
    text = "\n".join([lines[0], f"|{'|'.join(rule)}|", *lines[1:]])
    return f"{text}\n\n{_md(table.caption)}" if table.caption else text


def _md(text: str) -> str:
    """Nothing of a name becomes markup of its own."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace("|", "\\|").replace("\n", " ")


# --- HTML


def check_installed() -> None:
    """Raises UserError where what a report is written and drawn with is missing."""
    if missing := [name for name in ("jinja2", "matplotlib") if importlib.util.find_spec(name) is None]:
        raise UserError(f'--report: needs {" and ".join(missing)}; pip install "bjax[report]"')


def page(title: str, blocks: list) -> str:
    """The report as one HTML file that needs no other: style inside, figures as base64. page.html is its template."""
    try:
        import jinja2
    except ModuleNotFoundError:
        way_out = 'pip install "bjax[report]"'
        raise UserError(f"bjax.report: writes its page with jinja2, which is missing; {way_out}") from None
    options = {"undefined": jinja2.StrictUndefined, "trim_blocks": True, "lstrip_blocks": True}
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    templates = jinja2.Environment(loader=loader, autoescape=True, **options)
    parts, anchors = [], collections.Counter()
    for block in blocks:
        anchor = slug(block.text).lower() if isinstance(block, Heading) else ""
        anchors[anchor] += 1
        parts.append((type(block).__name__, block, anchor + (f"-{n}" if (n := anchors[anchor]) > 1 else "")))
    first = next((i for i, (kind, *_) in enumerate(parts) if kind == "Heading"), len(parts))
    return templates.get_template("page.html").render(title=title, before=parts[:first], after=parts[first:])

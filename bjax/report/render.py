"""What a section is made of (blocks), and the two renderers: Markdown with figures beside it, and one HTML file."""

import base64
import dataclasses
import functools
import html
import io
import re
from collections.abc import Callable
from pathlib import Path

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


@dataclasses.dataclass(frozen=True)
class Details:
    """Text as it is, folded away."""

    summary: str
    text: str


def slug(text: str) -> str:
    """`text` as part of a file name or an anchor."""
    return re.sub(r"[^\w.=-]+", "_", text).strip("_")


def each(runs: list[Run], section: Callable[[Run], list]) -> list:
    """The blocks of every run that has some, under its name."""
    blocks = []
    for run in runs:
        if own := section(run):
            blocks += [Heading(f"{run.name} (run {run.number})", 3), *own]
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
    body = [[_md(_marked(cell)) for cell in row] for row in (header, *table.rows)]
    widths = [max(3, *(len(row[i]) for row in body)) for i in range(len(header))]
    lines = []
    for row in body:
        cells = [
            c.ljust(w) if i < table.left else c.rjust(w)
            for i, (c, w) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append(f"| {' | '.join(cells)} |")
    rule = ["-" * (w + 2) if i < table.left else "-" * (w + 1) + ":" for i, w in enumerate(widths)]
    text = "\n".join([lines[0], f"|{'|'.join(rule)}|", *lines[1:]])
    return f"{text}\n\n{_md(table.caption)}" if table.caption else text


def _marked(cell: str | Mark) -> str:
    if isinstance(cell, str):
        return cell
    sign = {"strong": "**", "em": "_"}[cell.kind]
    return f"{sign}{cell.text}{sign}"


def _md(text: str) -> str:
    """Nothing of a name becomes markup of its own."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace("|", "\\|").replace("\n", " ")


# --- HTML

STYLE = """
:root { color-scheme: light dark; --ink: #1c1e21; --soft: #5d646d; --line: #d9dde2; --page: #fff; --tint: #f5f6f8;
  --link: #0b4f8a; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e6e9; --soft: #a0a7b0; --line: #3a3f46; --page: #16181b;
  --tint: #1f2226; --link: #7db7ec; } }
* { box-sizing: border-box; }
html { scroll-behavior: smooth; }
body { margin: 0 auto; padding: 2.5rem 1.25rem 4rem; max-width: 76rem; background: var(--page); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0 0 .4rem; }
h2 { font-size: 1.35rem; margin: 3rem 0 .8rem; padding-top: 1.1rem; border-top: 1px solid var(--line); }
h3 { font-size: 1.08rem; margin: 2rem 0 .6rem; }
p, ul { max-width: 46rem; margin: .7rem 0; }
a { color: var(--link); text-decoration: none; }
a:hover { text-decoration: underline; }
nav { margin: 1.6rem 0 0; padding: .9rem 1.1rem; background: var(--tint); border-radius: 6px; }
nav ol { margin: 0; padding-left: 1.3rem; columns: 20rem auto; column-gap: 3rem; }
nav li { break-inside: avoid; }
figure { margin: 1.2rem 0 1.8rem; }
figcaption { max-width: 46rem; margin-top: .5rem; color: var(--soft); font-size: .88rem; line-height: 1.45; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .84rem; font-variant-numeric: tabular-nums; line-height: 1.35; }
th, td { padding: .34rem .7rem; text-align: right; vertical-align: baseline; white-space: nowrap; }
th { white-space: normal; min-width: 4rem; }
th.w, td.w { text-align: left; white-space: normal; min-width: 5.5rem; overflow-wrap: break-word; }
th.w:first-child, td.w:first-child { min-width: 2rem; }
th.g { text-align: center; border-bottom: 1px solid var(--line); }
th { font-weight: 600; vertical-align: bottom; }
thead tr:last-child th { border-bottom: 1.5px solid var(--soft); }
tbody td { border-bottom: 1px solid var(--line); }
th:first-child, td:first-child { padding-left: .2rem; }
img { display: block; max-width: 100%; height: auto; background: #fff; border-radius: 4px; }
details { margin: .6rem 0; }
summary { cursor: pointer; }
pre { overflow-x: auto; padding: .8rem 1rem; background: var(--tint); border-radius: 6px; font-size: .8rem;
  line-height: 1.4; }
@media (max-width: 40rem) { body { padding: 1.2rem .9rem 3rem; font-size: 15px; } th, td { padding: .3rem .5rem; } }
@media print { :root { color-scheme: light; --ink: #000; --soft: #444; --line: #bbb; --page: #fff; --tint: #fff; }
  body { max-width: none; padding: 0; font-size: 10pt; } nav { display: none; } h2, h3 { break-after: avoid; }
  tr, img { break-inside: avoid; } .scroll { overflow: visible; } table { font-size: 7.5pt; }
  th, td { padding: .2rem .35rem; white-space: normal; } a { color: inherit; } }
"""


def page(title: str, blocks: list) -> str:
    """The report as one HTML file that needs no other: style inside, figures as base64."""
    anchors, contents, body = {}, [], []
    for block in blocks:
        if isinstance(block, Heading):
            anchor = _anchor(block.text, anchors)
            body.append(f'<h{block.level} id="{anchor}">{html.escape(block.text)}</h{block.level}>')
            if block.level == 2:
                contents.append(f'<li><a href="#{anchor}">{html.escape(block.text)}</a></li>')
            continue
        body.append(_html(block))
    first = next((i for i, block in enumerate(blocks) if isinstance(block, Heading)), len(blocks))
    nav = f'<nav aria-label="Contents"><ol>{"".join(contents)}</ol></nav>'
    return "\n".join(
        [
            '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{html.escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>",
            f"<h1>{html.escape(title)}</h1>",
            *body[:first],
            nav,
            *body[first:],
            "</body>\n</html>\n",
        ]
    )


def _anchor(text: str, taken: dict[str, int]) -> str:
    anchor = slug(text).lower()
    taken[anchor] = taken.get(anchor, 0) + 1
    return anchor if taken[anchor] == 1 else f"{anchor}-{taken[anchor]}"


def _html(block) -> str:
    match block:
        case Text():
            return f"<p>{html.escape(block.text)}</p>"
        case Items():
            return f"<ul>{''.join(f'<li>{html.escape(line)}</li>' for line in block.lines)}</ul>"
        case Table():
            return _html_table(block)
        case Figure():
            data = base64.b64encode(block.png).decode()
            return (
                f'<figure><img alt="{html.escape(block.alt)}" width="{block.width}" src="data:image/png;base64,{data}">'
                f"<figcaption>{html.escape(block.caption)}</figcaption></figure>"
            )
        case Details():
            return (
                f"<details><summary>{html.escape(block.summary)}</summary>"
                f"<pre>{html.escape(block.text)}</pre></details>"
            )


def _html_table(table: Table) -> str:
    def line(cells, tag):
        made = []
        for i, cell in enumerate(cells):
            kind = ' class="w"' if i < table.left else ""
            scope = ' scope="col"' if tag == "th" else ""
            text = html.escape(cell if isinstance(cell, str) else cell.text)
            made.append(f"<{tag}{kind}{scope}>{_emphasis(cell, text)}</{tag}>")
        return f"<tr>{''.join(made)}</tr>"

    groups = "".join(
        f'<th class="g" scope="colgroup" colspan="{n}">{html.escape(title)}</th>'
        if title
        else f'<td colspan="{n}"></td>'
        for title, n in table.groups
    )
    head = (f"<tr>{groups}</tr>" if groups else "") + line(table.header, "th")
    body = "".join(line(row, "td") for row in table.rows)
    caption = f"<figcaption>{html.escape(table.caption)}</figcaption>" if table.caption else ""
    made = f"<table><thead>{head}</thead><tbody>{body}</tbody></table>"
    return f'<figure><div class="scroll">{made}</div>{caption}</figure>'


def _emphasis(cell: str | Mark, text: str) -> str:
    return text if isinstance(cell, str) else f"<{cell.kind}>{text}</{cell.kind}>"

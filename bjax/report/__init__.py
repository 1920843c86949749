"""Finished runs -> tables and figures, beside the papers': `python -m bjax.report RUN_OR_SWEEP… --out=DIR`.

Reads what runs and sweeps left (config.json, results.json, and speed.json, mask_quality.json, similarity.json,
adapt.json, run.json where there are any) and writes into DIR:

    report.html   the answers first, then everything, in one file that needs no other
    report.md     the same, with the figures beside it
    results.csv   a row for every run and condition
    unaggregated_results_….csv    models under ImageNet-C's blurs, in RobustBench's layout: one for every set of images

Runs that differ in their seed alone are shown as one, with means and intervals over the seeds. A run that is missing,
failed or half-written is named with the reason and left out; a section without data is left out and named at the end.
"""

import shutil
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

from bjax.errors import Parser, UserError, as_command, new_folder
from bjax.report import (
    adapt,
    answers,
    calibration,
    curves,
    facts,
    masks,
    matrix,
    paper1,
    paper2,
    patches,
    ranking,
    read,
    render,
    seeds,
    sweeps,
)
from bjax.report.render import Heading, Items, Text, per_run
from bjax.report.runs import Run

SECTIONS: dict[str, Callable[[list[Run]], list]] = {
    "Sweeps": sweeps.grids,
    "Runs": facts.overview,
    "Paper 1: its tables beside ours": paper1.tables,
    "Model × training blur × test condition": matrix.matrix,
    "Does adapting at test time help?": adapt.helps,
    "Accuracy and calibration against Gaussian σ": curves.sigma_curves,
    "Calibration: one temperature, before and after": calibration.table,
    "Blur ranking": ranking.ranking,
    "ImageNet-C: error against severity": curves.imagenet_c,
    "Accuracy against structural similarity": curves.similarity,
    "Abstention: accuracy against coverage": curves.abstention,
    "Does it matter which patches stay?": patches.section,
    "Selection or deletion: top-1 accuracy at matched keep rates": per_run(masks.matched_rates),
    "Accuracy against kept fraction": per_run(masks.accuracy_against_kept),
    "Accuracy against measured speed": per_run(masks.accuracy_against_speed),
    "Do masks drop what is blurred?": per_run(masks.mask_quality),
    "Gallery": masks.gallery,
    "Paper 2: its accuracy beside ours": paper2.headline,
    "Blur types: what is taken for what": per_run(paper2.confusion),
    "Blur types: accuracy against strength": per_run(paper2.strengths),
    "Blur types: errors of the estimates": paper2.estimates,
    "Photographs": facts.photographs,
    "Facts": facts.facts,
}


def write(folders: list[Path], out: Path, title: str = "") -> list[str]:
    """Writes the files above into `out`; returns the title and the answers.

    folders: workdirs and sweeps. title: by default what was run. Raises UserError where no run is finished.
    """
    single, notes = read.load(folders)
    if not single:
        raise UserError("nothing to report: " + "; ".join(notes))
    runs, doubles = seeds.merge(single)
    notes += doubles
    title, first = title or answers.title(runs), answers.answers(runs, *filter(None, [patches.answer(runs)]))
    blocks, empty = [first], []
    if notes:
        blocks += [Text("Left out:"), Items(notes)]
    for name, section in SECTIONS.items():
        if content := section(runs):
            blocks += [Heading(name), *content]
        else:
            empty.append(name)
    if empty:
        blocks.append(Text(f"Sections left out, for want of data: {'; '.join(empty)}."))
    page = render.page(title, blocks)  # first, for where jinja2 is missing
    out.mkdir(parents=True, exist_ok=True)
    (out / "report.md").write_text(render.markdown(title, blocks, out))
    (out / "report.html").write_text(page)
    for name, text in {"results.csv": facts.table(single), **ranking.files(runs)}.items():
        (out / name).write_text(text)
    return [title, *first.lines]


def tell(folders: list[Path], out: Path, title: str = "") -> None:
    """`write`, with the answers on the terminal."""
    title, *lines = write(folders, out, title)
    width = min(100, shutil.get_terminal_size().columns)
    told = [textwrap.fill(line, width, initial_indent="- ", subsequent_indent="  ") for line in lines]
    print("\n".join([title, *told]))
    print(f"\nwrote {out / 'report.html'}, report.md and results.csv beside it", file=sys.stderr)


@as_command
def main(argv: list[str]) -> None:
    """Runs the command; returns the exit code: 0, or 2 for a user's mistake, told in one line on stderr."""
    parser = Parser("python -m bjax.report", "Tables and figures of finished runs.")
    what = "a run's workdir, or the folder of a sweep"
    parser.add_argument("folders", nargs="+", type=Path, metavar="RUN_OR_SWEEP", help=what)
    parser.add_argument("--out", type=new_folder, required=True, metavar="DIR", help="where the report goes")
    parser.add_argument("--title", default="", help="of the report (default: what was run)")
    args = parser.parse_args(argv)
    tell(args.folders, args.out, args.title)

"""Writes data sets to disk for training: python -m bjax.data.prepare {photos,imagenette,imagenet2012,folder}.

  photos                               crops of scikit-image's photographs; seconds, nothing is downloaded
  imagenette                           ten classes of ImageNet; downloads 340 MB
  imagenet2012 --manual_dir=DIR        from ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar in DIR
  folder NAME --source=DIR             from DIR/train/CLASS/IMAGE and DIR/val/… or DIR/test/…
  folder NAME --source=DIR --split=0.8 from DIR/CLASS/IMAGE: 80 % of each class to train on, the others to validate on

Killed at any moment, the same command starts afresh and cleans up; finished, it says so and does nothing.
"""

import argparse
import math
import sys

import tensorflow_datasets as tfds

from bjax.data import prepared
from bjax.data.builder import data_root, prepare, some
from bjax.data.folder import Folder
from bjax.data.imagenet import Imagenet2012
from bjax.data.imagenette import Imagenette
from bjax.data.photos import Photos
from bjax.errors import Parser, UserError, as_command, new_folder


@as_command
def main(argv: list[str]) -> int | None:
    """Runs the command; returns the exit code: 0; 2: a user's mistake, told in one line on stderr; 130: Ctrl-C."""
    args = vars(_parser().parse_args(argv))
    dataset, builder, overwrite = (args.pop(name) for name in ("dataset", "builder", "overwrite"))
    place = f" --config.data.data_dir={args['data_dir']}" if args["data_dir"] else ""
    args["data_dir"] = data_root(args["data_dir"])
    name = args.get("name", dataset)
    home = prepared.home(args["data_dir"], name, builder)
    if (home / "dataset_info.json").exists() and (fault := prepared.fault_of(home)):
        if not overwrite:
            raise UserError(f"data set {name} in {home}: {fault}; --overwrite writes it anew")
        (home / "dataset_info.json").unlink()  # or TFDS would read it, and what it leads to
    try:
        builder = builder(**args)
        written = prepare(builder, overwrite=overwrite)
    except KeyboardInterrupt:
        way = "the same command starts afresh"
        raise KeyboardInterrupt(f"interrupted: nothing new of {dataset} was kept; {way}") from None
    done = tfds.builder_from_directory(builder.data_dir)
    splits = ", ".join(f"{info.num_examples:,} {split}" for split, info in done.info.splits.items())
    print(f"{done.name}: {splits}, {done.info.features['label'].num_classes} classes in {builder.data_dir}")
    if together := getattr(builder, "together", []):
        largest = sorted(together, key=lambda group: (-len(group), sorted(group)))[:3]
        examples = "; ".join(" = ".join(sorted(group)[:3]) for group in largest)
        print(f"Versions of one picture by their names, kept on one side: {len(together)} groups, such as {examples}")
    if ignored := getattr(builder, "ignored", []):
        print(f"Ignored, being no images: {some([str(path) for path in ignored])}")
    if corrupt := getattr(builder, "corrupt", {}):
        left_out = some([f"{file_name} ({cause})" for file_name, cause in corrupt.items()])
        print(f"Left out {len(corrupt)} corrupt images: {left_out}")
    if isinstance(builder, Folder):
        flags = f"--config.data.name={done.name}{place} --workdir=runs/{done.name} --report=report"
        print(f"next: python -m bjax.main --config=vit_mask.py:small {flags}")
    if not written:
        print("It was there already; --overwrite writes it anew.")


def _parser() -> Parser:
    parser = Parser("python -m bjax.data.prepare", __doc__, formatter_class=argparse.RawTextHelpFormatter)
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument(
        "--data_dir",
        type=lambda text: new_folder(data_root(text)),
        help="where data sets lie (default: TFDS_DATA_DIR, ~/tensorflow_datasets)",
    )
    common.add_argument("--overwrite", action="store_true", help="write it anew if it is there")
    checked = argparse.ArgumentParser(add_help=False)
    checked.add_argument(
        "--on_corrupt",
        choices=("raise", "skip"),
        default="raise",
        help="refuse damaged images, or leave them out",
    )
    datasets = parser.add_subparsers(dest="dataset", required=True)
    datasets.add_parser("photos", parents=[common]).set_defaults(builder=Photos)
    datasets.add_parser("imagenette", parents=[common]).set_defaults(builder=Imagenette)
    imagenet = datasets.add_parser("imagenet2012", parents=[common, checked])
    imagenet.set_defaults(builder=Imagenet2012)
    imagenet.add_argument("--manual_dir", required=True, help="folder of the official tars")
    imagenet.add_argument("--splits", type=_splits, default="train,validation", help="train, validation or both")
    folder = datasets.add_parser("folder", parents=[common, checked])
    folder.set_defaults(builder=Folder)
    folder.add_argument("name", help="what to call the data set: data.name in a config")
    folder.add_argument("--source", required=True, help="folder that holds train/ and val/ or test/, or the classes")
    folder.add_argument(
        "--split",
        type=_share,
        metavar="SHARE",
        help="where DIR holds the classes: the share of the images that are trained on, such as 0.8",
    )
    folder.add_argument("--seed", type=int, default=0, help="which images these are (default: %(default)s)")
    return parser


def _share(text: str) -> float:
    try:
        share = float(text)
    except ValueError:
        share = math.nan
    if not 0 < share < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a share of the images between 0 and 1, such as 0.8")
    return share


def _splits(text: str) -> tuple[str, ...]:
    splits = tuple(text.split(","))
    if not set(splits) <= {"train", "validation"}:
        raise argparse.ArgumentTypeError(f"{text!r}: expected train, validation or train,validation")
    return splits


if __name__ == "__main__":
    sys.exit(main())

"""Data sets from one's own folders of images."""

import os
import re
from collections.abc import Iterator
from pathlib import Path

import tensorflow_datasets as tfds

from bjax.data.builder import dataset_info, intact, some
from bjax.data.split import split as split_by_file
from bjax.errors import UserError

SPLITS = {"train": "train", **dict.fromkeys(("val", "valid", "validation"), "validation"), "test": "test"}
Tree = dict[str, dict[str, dict[str, Path]]]
EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")


class Folder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """An ImageFolder tree, SPLIT/CLASS/…/image, as torchvision reads it; files are stored as they are."""

    VERSION = tfds.core.Version("1.0.0")

    def __init__(
        self,
        *,
        name: str,
        source: str | os.PathLike,
        split: float | None = None,
        seed: int = 0,
        on_corrupt: str = "raise",
        **kwargs,
    ):
        """Constructs the builder.

        source: the folder that holds train/, val/ or test/; with `split`, one that holds a folder a class.
        split: the share of the images that are trained on, drawn with `seed`; see `bjax.data.split`.
        on_corrupt: "raise" refuses damaged images, "skip" leaves them out; see `corrupt`.
        kwargs: of TFDS's builder: data_dir.

        Raises UserError where the name (of the data set) cannot be used or the tree is not as it should be.
        """
        if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
            raise UserError(f"data set name {name!r}: lower-case letters, digits and _ only, a letter first")
        if name in ("photos", "imagenette", "imagenet2012"):
            raise UserError(f"data set name {name!r} is taken: choose another")
        self.name = name
        self.corrupt = {}
        self._source = Path(source).expanduser()
        self._on_corrupt = on_corrupt
        self.together = []
        try:
            if split is None:
                self._tree, self.ignored = scan(self._source)
            else:
                classes, self.ignored = scan_classes(self._source)
                self._tree, self.together = split_by_file(classes, split, seed)
        except OSError as error:
            raise UserError(f"--source={source} cannot be read: {error}") from None
        super().__init__(file_format="array_record", **kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        return dataset_info(self, _classes(self._tree))

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Iterator]:
        del dl_manager
        return {split: self._generate_examples(split) for split in self._tree}

    def _generate_examples(self, split: str) -> Iterator[tuple[str, dict]]:
        classes = self._tree[split].items()
        files = [(name, label, path) for label, images in classes for name, path in images.items()]
        return intact(
            files,
            total=len(files),
            title=f"{self.name} {split}",
            where=self._source,
            on_corrupt=self._on_corrupt,
            corrupt=self.corrupt,
        )


def scan(source: Path) -> tuple[Tree, list[Path]]:
    """Lists an ImageFolder tree: {split: {class: {"class/…/image": path}}}, and the files and folders that are no part
    of it.

    source: folder that holds train/, val/ (or valid/, validation/) or test/, each with a folder a class; images may lie
        deeper in these. Hidden files and folders are passed over.

    Raises UserError for no such split, one split twice, a class without images, a class that train has not, names that
    cannot be stored and links in a circle; OSError where a folder cannot be read.
    """
    if not source.is_dir():
        raise UserError(f"--source={source} is no folder")
    entries = _visible(source)
    folders = [entry for entry in entries if entry.is_dir() and entry.name in SPLITS]
    if not folders:
        held = some([entry.name for entry in entries]) or "nothing"
        expected = "train/, val/ or test/, with a folder a class in each"
        flat = any(entry.is_dir() for entry in entries)
        way = "; are these the classes? --split=0.8 trains on 80 % of their images" if flat else ""
        raise UserError(f"{source} must hold {expected}; it holds {held}{way}")
    ignored = [entry for entry in entries if entry not in folders]
    tree = {}
    for folder in folders:
        split = SPLITS[folder.name]
        if split in tree:
            same = " and ".join(f"{entry.name}/" for entry in folders if SPLITS[entry.name] == split)
            raise UserError(f"{source} holds {same}, which are the same split: keep one")
        tree[split] = {}
        for entry in _visible(folder):
            if entry.is_dir():
                tree[split][entry.name] = _images(entry, ignored)
            else:
                ignored.append(entry)
        if not tree[split]:
            raise UserError(f"{folder} holds no classes, that is folders of images")
    for folder in folders:  # only now is train/ known: test/ comes before it
        classes = tree[SPLITS[folder.name]]
        if unknown := sorted(set(classes) - set(tree.get("train", classes))):
            raise UserError(f"{folder} holds classes that train/ has not: {some(unknown)}")
    return tree, ignored


def scan_classes(source: Path) -> tuple[dict[str, dict[str, Path]], list[Path]]:
    """Lists a folder that holds a folder a class: {class: {"class/…/image": path}}, and what is no part of it.

    Raises UserError and OSError as `scan` does, and for less than two classes.
    """
    if not source.is_dir():
        raise UserError(f"--source={source} is no folder")
    entries = _visible(source)
    folders = [entry for entry in entries if entry.is_dir()]
    if split := [entry.name for entry in folders if entry.name in SPLITS]:
        raise UserError(
            f"{source} holds {some([f'{name}/' for name in split])}: it is split already; leave --split out"
        )
    if len(folders) < 2:
        held = some([entry.name for entry in entries]) or "nothing"
        raise UserError(f"{source} must hold a folder a class, two at least; it holds {held}")
    ignored = [entry for entry in entries if entry not in folders]
    return {folder.name: _images(folder, ignored) for folder in folders}, ignored


def _visible(folder: Path) -> list[Path]:
    return sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))


def _images(folder: Path, ignored: list[Path]) -> dict[str, Path]:
    """The images of a class; what is none is added to `ignored`."""
    if folder.name.splitlines() != [folder.name.strip()]:  # TFDS stores a line a class
        raise UserError(f"{str(folder)!r}: a class's name has no space at its ends and is one line")

    def fail(error: OSError):
        raise error

    images = {}
    within = {folder: [folder.resolve()]}  # of each folder, those that it lies in and itself, without links
    for place, folders, files in os.walk(folder, followlinks=True, onerror=fail):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for inner in (Path(place, name) for name in folders):
            if inner.resolve() in within[Path(place)]:
                raise UserError(f"{inner} links to a folder that it lies in: remove it")
            within[inner] = [*within[Path(place)], inner.resolve()]
        for path in sorted(Path(place) / file for file in files if not file.startswith(".")):
            if path.suffix.lower() in EXTENSIONS:
                name = path.relative_to(folder.parent).as_posix()
                if name.encode(errors="replace").decode() != name:
                    raise UserError(f"{str(path)!r}: a name that is no UTF-8 cannot be stored; rename it")
                images[name] = path
            else:
                ignored.append(path)
    if not images:
        kinds = " ".join(EXTENSIONS)
        raise UserError(f"{folder} holds no images ({kinds}): remove the class or fill it")
    return images


def _classes(tree: Tree) -> list[str]:
    return sorted(tree["train"] if "train" in tree else set().union(*tree.values()))

"""ImageNet (ILSVRC 2012) from its official tars, as TFDS's `imagenet2012`, without TensorFlow."""

import contextlib
import dataclasses
import io
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO

import tensorflow_datasets as tfds
from PIL import Image
from tensorflow_datasets.datasets.imagenet2012 import imagenet2012_dataset_builder as stock

from bjax.data import decode
from bjax.data.builder import intact, some
from bjax.errors import UserError

File = tuple[str, str, bytes]  # file name, class, content
TARS = {"train": "ILSVRC2012_img_train.tar", "validation": "ILSVRC2012_img_val.tar"}


@dataclasses.dataclass(frozen=True)
class Counts:
    """What the complete tars hold."""

    classes: int = 1000
    train: int = 1_281_167
    validation: int = 50_000


COMPLETE = Counts()


class Imagenet2012(stock.Builder, skip_registration=True):
    """TFDS's builder with its reading of the tars replaced; what it stores, and where, stays the same.

    The stock builder needs TensorFlow, reads the validation labels even where only train is wanted, and
    pairs sorted names with labels, so that one missing image would shift the labels of all after it.
    """

    name = "imagenet2012"

    def __init__(
        self,
        *,
        manual_dir: str,
        splits: Iterable[str] = tuple(TARS),
        on_corrupt: str = "raise",
        counts: Counts = COMPLETE,
        **kwargs,
    ):
        """Constructs the builder.

        manual_dir: folder of the official tars.
        splits: which of train and validation to write.
        on_corrupt: "raise" refuses damaged images, "skip" leaves them out; see `corrupt`.
        counts: what the tars must hold.
        kwargs: of TFDS's builder: data_dir.
        """
        self.corrupt = {}
        self._paths = {split: Path(manual_dir).expanduser() / TARS[split] for split in splits}
        self._on_corrupt = on_corrupt
        self._counts = counts
        super().__init__(file_format="array_record", **kwargs)

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Iterator]:
        del dl_manager
        missing = [path for path in self._paths.values() if not path.is_file()]
        if missing:
            names = " and ".join(path.name for path in missing)
            raise UserError(
                f"imagenet2012: {missing[0].parent} lacks {names}, to be had from image-net.org; "
                "--splits=train or --splits=validation prepares one without the other"
            )
        # Both tars are looked through before hours go into writing the first.
        files = {}
        if "train" in self._paths:
            classes = self.info.features["label"].names
            files["train"] = train_files(self._paths["train"], classes, self._counts.classes)
        if "validation" in self._paths:
            files["validation"] = validation_files(self._paths["validation"], self._counts.validation)
        return {split: self._generate_examples(split, files[split]) for split in files}

    def _generate_examples(self, split: str, files: Iterable[File]) -> Iterator[tuple[str, dict]]:
        return intact(
            files,
            total=getattr(self._counts, split),
            title=f"{self.name} {split}",
            where=self._paths[split],
            on_corrupt=self._on_corrupt,
            corrupt=self.corrupt,
            convert=as_rgb_jpeg,
        )


def train_files(path: Path, classes: Iterable[str], count: int) -> Iterator[File]:
    """Checks that the tar of training images holds a tar a class, and reads these.

    path: of the tar.
    classes: the names that classes can have.
    count: how many of them there must be.

    Raises UserError where a class is missing or unknown, or the tar is damaged (this also while iterating).
    """
    with _open(path) as tar:
        held = {Path(member.name).stem for member in _members(tar)}
    if unknown := sorted(held - set(classes)):
        raise UserError(f"imagenet2012: {path} holds {some(unknown)}, no classes of ImageNet")
    if len(held) != count:
        held_of = f"{len(held)} classes of {count}, lacking {some(sorted(set(classes) - held))}"
        raise UserError(f"imagenet2012: {path} holds {held_of}; get it again")

    def read() -> Iterator[File]:
        with _open(path) as tar:
            for member in _members(tar):
                with _open(path, tar.extractfile(member)) as images:
                    for image in _members(images):
                        yield Path(image.name).name, Path(member.name).stem, _read(images, image)

    return read()


def validation_files(path: Path, count: int) -> Iterator[File]:
    """Checks that the tar of validation images holds exactly the images 1 to count, and reads them.

    Labels belong to the sorted names; since all names are checked, none can shift.

    path: of the tar.
    count: how many images there must be.

    Raises UserError where an image is missing or unknown, or the tar is damaged (this also while iterating).
    """
    names = [f"ILSVRC2012_val_{number:08d}.JPEG" for number in range(1, count + 1)]
    with _open(path) as tar:
        held = {Path(member.name).name for member in _members(tar)}
    if lacks := sorted(set(names) - held):
        raise UserError(f"imagenet2012: {path} lacks {some(lacks)} of {count} images; get it again")
    if extra := sorted(held - set(names)):
        raise UserError(f"imagenet2012: {path} holds {some(extra)} besides {names[0]} to {names[-1]}")
    labels = tfds.core.tfds_path("datasets/imagenet2012/validation_labels.txt").read_text().split()
    label_of = dict(zip(names, labels, strict=False))

    def read() -> Iterator[File]:
        with _open(path) as tar:
            for member in _members(tar):
                name = Path(member.name).name
                yield name, label_of[name], _read(tar, member)

    return read()


def as_rgb_jpeg(data: bytes) -> bytes:
    """Bytes of an image file: RGB and grey JPEG as they are, all else as RGB JPEG of quality 100, as in TFDS.

    ImageNet holds 22 CMYK images and a PNG, all named .JPEG; they are told by their content.
    """
    with decode.opened(data) as image:
        if image.format in ("JPEG", "MPO") and image.mode in ("RGB", "L"):
            return data
    jpeg = io.BytesIO()
    Image.fromarray(decode.decode(data)).save(jpeg, "JPEG", quality=100, subsampling="4:2:0")
    return jpeg.getvalue()


@contextlib.contextmanager
def _open(path: Path, file: IO[bytes] | None = None) -> Iterator[tarfile.TarFile]:
    try:
        with tarfile.open(path, mode="r:", fileobj=file) as tar:
            yield tar
    except tarfile.ReadError as error:
        raise UserError(f"imagenet2012: {path} is truncated or no tar ({error}); get it again") from error


def _members(tar: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    return (member for member in tar if member.isfile())


def _read(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    return tar.extractfile(member).read(decode.LARGEST_FILE)  # a sparse member can be larger than its tar

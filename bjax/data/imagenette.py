"""Imagenette: ten classes of ImageNet, distributed as a folder of images in an archive."""

import tarfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import requests
import tensorflow_datasets as tfds
from tensorflow_datasets.core.download.download_manager import NonMatchingChecksumError
from tensorflow_datasets.datasets.imagenette import imagenette_dataset_builder as stock

from bjax.data.builder import dataset_info, intact
from bjax.data.folder import SPLITS
from bjax.errors import UserError

COUNTS = {"train": 9469, "validation": 3925}
URL = "https://s3.amazonaws.com/fast-ai-imageclas/imagenette2-320.tgz"


class Imagenette(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Ten classes of ImageNet, shorter side 320 px."""

    name = "imagenette"
    VERSION = tfds.core.Version("1.0.0")
    url_infos = stock.Builder.url_infos  # the archive's checksum

    def __init__(self, **kwargs):
        super().__init__(file_format="array_record", **kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        names = tfds.core.tfds_path("image_classification/imagenette_labels.txt").read_text().split()
        return dataset_info(self, names)

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Iterator]:
        file = Path(URL)
        downloads = Path(self.data_dir_root) / "downloads"
        try:
            if not any(downloads.rglob(f"*{file.stem}*")):
                # TFDS retries for minutes before it says that there is no internet.
                requests.head(URL, timeout=30).raise_for_status()
            tfds.enable_progress_bar()
            archive = dl_manager.download(URL)
            tfds.disable_progress_bar()
        except (requests.RequestException, tfds.download.DownloadError) as error:
            raise UserError(
                f"imagenette: downloading {URL} failed ({type(error).__name__}); without internet "
                f"put {file.name} into {downloads / 'manual'}"
            ) from error
        except NonMatchingChecksumError as error:
            raise UserError(
                f"imagenette: {file.name} in {downloads} is not the published file (other SHA-256); "
                "remove it and get it again"
            ) from error
        return {split: self._generate_examples(archive, split) for split in COUNTS}

    def _generate_examples(self, archive: Path, split: str) -> Iterator[tuple[str, dict]]:
        files, title = _members(archive, split), f"{self.name} {split}"
        return intact(files, total=COUNTS[split], title=title, where=archive)


def _members(archive: Path, split: str) -> Iterator[tuple[str, str, bytes]]:
    """The images of one split of Imagenette's archive, imagenette2-320/{train,val}/CLASS/IMAGE.JPEG."""
    with tarfile.open(archive, mode="r:gz") as tar:
        for member in tar:
            path = PurePosixPath(member.name)
            if member.isfile() and path.suffix == ".JPEG" and SPLITS[path.parts[1]] == split:
                yield f"{path.parent.name}/{path.name}", path.parent.name, tar.extractfile(member).read()

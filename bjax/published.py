"""Published weights by name: which there are, where they are, and what they want.

Read off torchvision 0.28 and timm 1.0.31, with which a test compares. Accuracy stands where paper 1 leans on it.
"""

import dataclasses
import os.path
import re
import urllib.parse
from pathlib import Path

from bjax.errors import UserError, nearest

# NAME, model and variant, file, parameters, side of the images, resize before the crop, its interpolation, licence
# (SWAG: github.com/facebookresearch/SWAG, not for commerce; torchvision names none for the others), top-1 and top-5 of
# ImageNet's validation images, per cent. The eight digits in a file's name begin its SHA-256.
TORCHVISION = (
    ("resnet18", "resnet18", "resnet18-f37072fd.pth", 11_689_512, 224, 256, "bilinear", ""),
    ("resnet34", "resnet34", "resnet34-b627a593.pth", 21_797_672, 224, 256, "bilinear", ""),
    ("resnet50", "resnet50", "resnet50-0676ba61.pth", 25_557_032, 224, 256, "bilinear", "", 76.13, 92.862),
    ("resnet50-v2", "resnet50", "resnet50-11ad3fa6.pth", 25_557_032, 224, 232, "bilinear", ""),
    ("resnet101", "resnet101", "resnet101-63fe2227.pth", 44_549_160, 224, 256, "bilinear", ""),
    ("resnet101-v2", "resnet101", "resnet101-cd907fc2.pth", 44_549_160, 224, 232, "bilinear", ""),
    ("resnet152", "resnet152", "resnet152-394f9c45.pth", 60_192_808, 224, 256, "bilinear", ""),
    ("resnet152-v2", "resnet152", "resnet152-f82ba261.pth", 60_192_808, 224, 232, "bilinear", ""),
    ("vgg19", "vgg19", "vgg19-dcbb9e9d.pth", 143_667_240, 224, 256, "bilinear", "", 72.376, 90.876),
    ("vgg19_bn", "vgg19_bn", "vgg19_bn-c79401a0.pth", 143_678_248, 224, 256, "bilinear", ""),
    ("googlenet", "googlenet", "googlenet-1378be20.pth", 6_624_904, 224, 256, "bilinear", "", 69.778, 89.53),
    ("densenet121", "densenet121", "densenet121-a639ec97.pth", 7_978_856, 224, 256, "bilinear", ""),
    ("densenet169", "densenet169", "densenet169-b2777c0a.pth", 14_149_480, 224, 256, "bilinear", ""),
    ("densenet201", "densenet201", "densenet201-c1103571.pth", 20_013_928, 224, 256, "bilinear", ""),
    ("vit_b_16", "vit B/16", "vit_b_16-c867db91.pth", 86_567_656, 224, 256, "bilinear", ""),
    ("vit_b_16-swag", "vit B/16", "vit_b_16_swag-9ac1b537.pth", 86_859_496, 384, 384, "bicubic", "SWAG"),
    ("vit_b_16-swag-linear", "vit B/16", "vit_b_16_lc_swag-4e70ced5.pth", 86_567_656, 224, 224, "bicubic", "SWAG"),
    ("vit_b_32", "vit B/32", "vit_b_32-d86f8d99.pth", 88_224_232, 224, 256, "bilinear", ""),
    ("vit_l_16", "vit L/16", "vit_l_16-852ce7e3.pth", 304_326_632, 224, 242, "bilinear", ""),
    ("vit_l_16-swag", "vit L/16", "vit_l_16_swag-4f3808c9.pth", 305_174_504, 512, 512, "bicubic", "SWAG"),
    ("vit_l_16-swag-linear", "vit L/16", "vit_l_16_lc_swag-4d563306.pth", 304_326_632, 224, 224, "bicubic", "SWAG"),
    ("vit_l_32", "vit L/32", "vit_l_32-c7638314.pth", 306_535_400, 224, 256, "bilinear", ""),
    ("vit_h_14-swag", "vit H/14", "vit_h_14_swag-80465313.pth", 633_470_440, 518, 518, "bicubic", "SWAG"),
    ("vit_h_14-swag-linear", "vit H/14", "vit_h_14_lc_swag-c1eb923e.pth", 632_045_800, 224, 224, "bicubic", "SWAG"),
)
# NAME, model and variant, parameters, side of the images, resize, interpolation, whether mean and deviation are 0.5
# (otherwise ImageNet's), licence. Those of ImageNet's 1,000 classes.
TIMM = (
    ("densenet121.ra_in1k", "densenet121", 7_978_856, 224, 256, "bicubic", False, "Apache-2.0"),
    ("densenet121.tv_in1k", "densenet121", 7_978_856, 224, 256, "bicubic", False, "Apache-2.0"),
    ("densenet169.tv_in1k", "densenet169", 14_149_480, 224, 256, "bicubic", False, "Apache-2.0"),
    ("densenet201.tv_in1k", "densenet201", 20_013_928, 224, 256, "bicubic", False, "Apache-2.0"),
    ("resnet18.a1_in1k", "resnet18", 11_689_512, 224, 235, "bicubic", False, "Apache-2.0"),
    ("resnet18.a2_in1k", "resnet18", 11_689_512, 224, 235, "bicubic", False, "Apache-2.0"),
    ("resnet18.a3_in1k", "resnet18", 11_689_512, 160, 168, "bicubic", False, "Apache-2.0"),
    ("resnet18.fb_ssl_yfcc100m_ft_in1k", "resnet18", 11_689_512, 224, 256, "bilinear", False, "CC-BY-NC"),
    ("resnet18.fb_swsl_ig1b_ft_in1k", "resnet18", 11_689_512, 224, 256, "bilinear", False, "CC-BY-NC"),
    ("resnet18.gluon_in1k", "resnet18", 11_689_512, 224, 256, "bicubic", False, "Apache-2.0"),
    ("resnet18.tv_in1k", "resnet18", 11_689_512, 224, 256, "bilinear", False, "BSD-3"),
    ("resnet34.a1_in1k", "resnet34", 21_797_672, 224, 235, "bicubic", False, "Apache-2.0"),
    ("resnet34.a2_in1k", "resnet34", 21_797_672, 224, 235, "bicubic", False, "Apache-2.0"),
    ("resnet34.a3_in1k", "resnet34", 21_797_672, 160, 168, "bicubic", False, "Apache-2.0"),
    ("resnet34.bt_in1k", "resnet34", 21_797_672, 224, 256, "bicubic", False, "Apache-2.0"),
    ("resnet34.gluon_in1k", "resnet34", 21_797_672, 224, 256, "bicubic", False, "Apache-2.0"),
    ("resnet34.ra4_e3600_r224_in1k", "resnet34", 21_797_672, 224, 248, "bicubic", True, "Apache-2.0"),
    ("resnet34.tv_in1k", "resnet34", 21_797_672, 224, 256, "bilinear", False, "BSD-3"),
    ("resnet50.a1_in1k", "resnet50", 25_557_032, 224, 235, "bicubic", False, "Apache-2.0"),
    ("resnet50.a1h_in1k", "resnet50", 25_557_032, 176, 195, "bicubic", False, "Apache-2.0"),
    ("resnet50.a2_in1k", "resnet50", 25_557_032, 224, 235, "bicubic", False, "Apache-2.0"),
    ("resnet50.a3_in1k", "resnet50", 25_557_032, 160, 168, "bicubic", False, "Apache-2.0"),
    ("resnet50.am_in1k", "resnet50", 25_557_032, 224, 256, "bicubic", False, "Apache-2.0"),
    ("resnet50.b1k_in1k", "resnet50", 25_557_032, 224, 235, "bicubic", False, "Apache-2.0"),
    ("resnet50.b2k_in1k", "resnet50", 25_557_032, 224, 235, "bicubic", False, "Apache-2.0"),
    ("resnet50.bt_in1k", "resnet50", 25_557_032, 224, 256, "bicubic", False, "Apache-2.0"),
    ("resnet50.c1_in1k", "resnet50", 25_557_032, 224, 235, "bicubic", False, "Apache-2.0"),
    ("resnet50.c2_in1k", "resnet50", 25_557_032, 224, 235, "bicubic", False, "Apache-2.0"),
    ("resnet50.d_in1k", "resnet50", 25_557_032, 224, 235, "bicubic", False, "Apache-2.0"),
    ("resnet50.fb_ssl_yfcc100m_ft_in1k", "resnet50", 25_557_032, 224, 256, "bilinear", False, "CC-BY-NC"),
    ("resnet50.fb_swsl_ig1b_ft_in1k", "resnet50", 25_557_032, 224, 256, "bilinear", False, "CC-BY-NC"),
    ("resnet50.gluon_in1k", "resnet50", 25_557_032, 224, 256, "bicubic", False, "Apache-2.0"),
    ("resnet50.ra_in1k", "resnet50", 25_557_032, 224, 256, "bicubic", False, "Apache-2.0"),
    ("resnet50.ram_in1k", "resnet50", 25_557_032, 224, 256, "bicubic", False, "Apache-2.0"),
    ("resnet50.tv2_in1k", "resnet50", 25_557_032, 176, 201, "bilinear", False, "BSD-3"),
    ("resnet50.tv_in1k", "resnet50", 25_557_032, 224, 256, "bilinear", False, "BSD-3"),
    ("resnet101.a1_in1k", "resnet101", 44_549_160, 224, 235, "bicubic", False, "Apache-2.0"),
    ("resnet101.a1h_in1k", "resnet101", 44_549_160, 224, 235, "bicubic", False, "Apache-2.0"),
    ("resnet101.a2_in1k", "resnet101", 44_549_160, 224, 235, "bicubic", False, "Apache-2.0"),
    ("resnet101.a3_in1k", "resnet101", 44_549_160, 160, 168, "bicubic", False, "Apache-2.0"),
    ("resnet101.gluon_in1k", "resnet101", 44_549_160, 224, 256, "bicubic", False, "Apache-2.0"),
    ("resnet101.tv2_in1k", "resnet101", 44_549_160, 176, 201, "bilinear", False, "BSD-3"),
    ("resnet101.tv_in1k", "resnet101", 44_549_160, 224, 256, "bilinear", False, "BSD-3"),
    ("resnet152.a1_in1k", "resnet152", 60_192_808, 224, 235, "bicubic", False, "Apache-2.0"),
    ("resnet152.a1h_in1k", "resnet152", 60_192_808, 224, 235, "bicubic", False, "Apache-2.0"),
    ("resnet152.a2_in1k", "resnet152", 60_192_808, 224, 235, "bicubic", False, "Apache-2.0"),
    ("resnet152.a3_in1k", "resnet152", 60_192_808, 160, 168, "bicubic", False, "Apache-2.0"),
    ("resnet152.gluon_in1k", "resnet152", 60_192_808, 224, 256, "bicubic", False, "Apache-2.0"),
    ("resnet152.tv2_in1k", "resnet152", 60_192_808, 176, 201, "bilinear", False, "BSD-3"),
    ("resnet152.tv_in1k", "resnet152", 60_192_808, 224, 256, "bilinear", False, "BSD-3"),
    ("vgg19.tv_in1k", "vgg19", 143_667_240, 224, 256, "bilinear", False, "BSD-3"),
    ("vgg19_bn.tv_in1k", "vgg19_bn", 143_678_248, 224, 256, "bilinear", False, "BSD-3"),
    ("vit_base_patch8_224.augreg2_in21k_ft_in1k", "vit B/8", 86_576_872, 224, 248, "bicubic", True, "Apache-2.0"),
    ("vit_base_patch8_224.augreg_in21k_ft_in1k", "vit B/8", 86_576_872, 224, 248, "bicubic", True, "Apache-2.0"),
    ("vit_base_patch16_224.augreg2_in21k_ft_in1k", "vit B/16", 86_567_656, 224, 248, "bicubic", True, "Apache-2.0"),
    ("vit_base_patch16_224.augreg_in1k", "vit B/16", 86_567_656, 224, 248, "bicubic", True, "Apache-2.0"),
    ("vit_base_patch16_224.augreg_in21k_ft_in1k", "vit B/16", 86_567_656, 224, 248, "bicubic", True, "Apache-2.0"),
    ("vit_base_patch16_224.orig_in21k_ft_in1k", "vit B/16", 86_567_656, 224, 248, "bicubic", True, "Apache-2.0"),
    ("vit_base_patch16_224.sam_in1k", "vit B/16", 86_567_656, 224, 248, "bicubic", True, "Apache-2.0"),
    ("vit_base_patch16_384.augreg_in1k", "vit B/16", 86_859_496, 384, 384, "bicubic", True, "Apache-2.0"),
    ("vit_base_patch16_384.augreg_in21k_ft_in1k", "vit B/16", 86_859_496, 384, 384, "bicubic", True, "Apache-2.0"),
    ("vit_base_patch16_384.orig_in21k_ft_in1k", "vit B/16", 86_859_496, 384, 384, "bicubic", True, "Apache-2.0"),
    ("vit_base_patch32_224.augreg_in1k", "vit B/32", 88_224_232, 224, 248, "bicubic", True, "Apache-2.0"),
    ("vit_base_patch32_224.augreg_in21k_ft_in1k", "vit B/32", 88_224_232, 224, 248, "bicubic", True, "Apache-2.0"),
    ("vit_base_patch32_224.sam_in1k", "vit B/32", 88_224_232, 224, 248, "bicubic", True, "Apache-2.0"),
    ("vit_base_patch32_384.augreg_in1k", "vit B/32", 88_297_192, 384, 384, "bicubic", True, "Apache-2.0"),
    ("vit_base_patch32_384.augreg_in21k_ft_in1k", "vit B/32", 88_297_192, 384, 384, "bicubic", True, "Apache-2.0"),
    ("vit_large_patch16_224.augreg_in21k_ft_in1k", "vit L/16", 304_326_632, 224, 248, "bicubic", True, "Apache-2.0"),
    ("vit_large_patch16_384.augreg_in21k_ft_in1k", "vit L/16", 304_715_752, 384, 384, "bicubic", True, "Apache-2.0"),
    ("vit_large_patch32_384.orig_in21k_ft_in1k", "vit L/32", 306_632_680, 384, 384, "bicubic", True, "Apache-2.0"),
    ("vit_small_patch16_224.augreg_in1k", "vit S/16", 22_050_664, 224, 248, "bicubic", True, "Apache-2.0"),
    ("vit_small_patch16_224.augreg_in21k_ft_in1k", "vit S/16", 22_050_664, 224, 248, "bicubic", True, "Apache-2.0"),
    ("vit_small_patch16_384.augreg_in1k", "vit S/16", 22_196_584, 384, 384, "bicubic", True, "Apache-2.0"),
    ("vit_small_patch16_384.augreg_in21k_ft_in1k", "vit S/16", 22_196_584, 384, 384, "bicubic", True, "Apache-2.0"),
    ("vit_small_patch32_224.augreg_in21k_ft_in1k", "vit S/32", 22_878_952, 224, 248, "bicubic", True, "Apache-2.0"),
    ("vit_small_patch32_384.augreg_in21k_ft_in1k", "vit S/32", 22_915_432, 384, 384, "bicubic", True, "Apache-2.0"),
    ("vit_tiny_patch16_224.augreg_in21k_ft_in1k", "vit Ti/16", 5_717_416, 224, 248, "bicubic", True, "Apache-2.0"),
    ("vit_tiny_patch16_384.augreg_in21k_ft_in1k", "vit Ti/16", 5_790_376, 384, 384, "bicubic", True, "Apache-2.0"),
)
HOSTS = {"torchvision": "https://download.pytorch.org", "timm": "https://huggingface.co"}
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # mean, deviation
HALF = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
SUFFIXES = (".safetensors", ".npz", ".pth", ".pt", ".bin")  # of files that `bjax.weights` reads
IMAGES = ("image_size", "resize", "interpolation")  # what may differ from how they were evaluated


@dataclasses.dataclass(frozen=True)
class Published:
    """Weights that have a name."""

    zoo: str  # torchvision | timm
    short: str  # the name within it
    model: str  # a key of `bjax.models.MODELS`
    variant: str  # of the ViT, such as "B/16"; empty: of others
    file: str  # as the cache calls it
    path: str  # on the zoo's host
    parameters: int
    image_size: int  # that they are meant for, pixels
    resize: int  # of the shorter side before the crop, pixels
    interpolation: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    licence: str  # empty: none is named
    top1: float | None = None  # on ImageNet's validation images, per cent
    top5: float | None = None

    @property
    def name(self) -> str:
        """As `config.init_from` has it."""
        return f"{self.zoo}:{self.short}"

    @property
    def digits(self) -> str:
        """The first digits of the file's SHA-256 that its name tells; empty: none."""
        match = re.search(r"-([0-9a-f]{8})\.pth$", self.file)
        return match[1] if match else ""

    def url(self, mirror: str = "") -> str:
        """Where the file is; mirror: a server that has the same paths, instead of the zoo's host."""
        return (mirror or HOSTS[self.zoo]).rstrip("/") + self.path


def _torchvision(short, model, file, parameters, size, resize, interpolation, *licence_and_accuracy):
    model, _, variant = model.partition(" ")
    images = size, resize, interpolation, *IMAGENET
    weights = "torchvision", short, model, variant, file, f"/models/{file}", parameters
    return Published(*weights, *images, *licence_and_accuracy)


def _timm(short, model, parameters, size, resize, interpolation, half, licence):
    model, _, variant = model.partition(" ")
    path = f"/timm/{urllib.parse.quote(short)}/resolve/main/model.safetensors"
    images = size, resize, interpolation, *(HALF if half else IMAGENET)
    return Published("timm", short, model, variant, f"{short}.safetensors", path, parameters, *images, licence)


PUBLISHED = {w.name: w for w in [*(_torchvision(*row) for row in TORCHVISION), *(_timm(*row) for row in TIMM)]}


def find(given: str) -> Published | None:
    """The weights called `given`; None where that is no name but a file. Raises UserError for an unknown name."""
    zoo, colon, _ = given.partition(":")
    if not colon or zoo not in HOSTS or Path(given).exists():
        return None
    if given not in PUBLISHED:
        way = "python -m bjax.weights lists them, and any file can be named instead"
        raise UserError(f"{given}: no such weights{nearest(given, PUBLISHED)}; {way}")
    return PUBLISHED[given]


def several(given: str) -> dict[str, Published]:
    """{weights as `config.init_from` has them: what they are}, of names, files and folders of files joined by "+".

    A file is taken for what its name begins with, before a dash: a name of torchvision's or timm's, so that
    `resnet50-0676ba61.pth` and `resnet50-mine.npz` are of that model, for images of these colours. Raises UserError for
    an unknown name, no such file, an empty folder, and a file whose name does not tell its model.
    """
    weights = {}
    for part in given.split("+"):
        if os.path.isdir(os.path.expanduser(part)):
            files = sorted(file for file in os.listdir(os.path.expanduser(part)) if file.endswith(SUFFIXES))
            if not files:
                raise UserError(f"{part}: holds no {', '.join(SUFFIXES)} file")
            weights |= {path: _of_file(path) for path in (os.path.join(part, file) for file in files)}
        else:
            weights[part] = find(part) or _of_file(part)
    return weights


def _of_file(path: str) -> Published:
    """What the weights in a file are, by its name."""
    if not os.path.isfile(os.path.expanduser(path)):
        meant = "".join(f" (did you mean {w.name}?)" for w in PUBLISHED.values() if w.short == path)
        raise UserError(f"{path}: no such file or folder, and not the name of weights{meant}")
    name, suffix = os.path.basename(path), os.path.splitext(path)[1]
    short = name.removesuffix(suffix).partition("-")[0]
    of_name = [w for w in PUBLISHED.values() if name == w.file or short == w.short]
    if not of_name:
        way = f"begin it with a name of python -m bjax.weights and a dash, as in resnet50-{name}"
        raise UserError(f"{path}: the file's name does not tell the model; {way}")
    return of_name[0]


def named(config) -> Published | None:
    """The weights that `config.init_from` names; None where it names none.

    Raises UserError for an unknown name, and, with the flags that mend it, where the config's model is another one or
    normalises its images otherwise.
    """
    weights = find(config.init_from)
    if weights is None:
        return None
    wanted = {"model.name": (config.model.name, weights.model)}
    if weights.variant:
        wanted["model.options.variant"] = (config.model.options.get("variant"), weights.variant)
    wanted |= {f"normalize.{name}": (config.normalize[name], getattr(weights, name)) for name in ("mean", "std")}
    if other := _flags(wanted):
        raise UserError(f"config.init_from={weights.name}: needs {other}")
    return weights


def advice(weights: Published, config) -> str:
    """How `weights` are evaluated where they come from, in a line; empty where the config does so too."""
    flags = _flags({f"data.{name}": (config.data[name], getattr(weights, name)) for name in IMAGES})
    return f"{weights.name}: its published accuracy is that of {flags}" if flags else ""


def _flags(wanted: dict[str, tuple]) -> str:
    """The flags that set what differs, of {key: (what it is, what it should be)}."""
    differ = {key: value for key, (value_is, value) in wanted.items() if value_is != value}
    text = {key: ",".join(map(str, value)) if isinstance(value, tuple) else value for key, value in differ.items()}
    return " ".join(f"--config.{key}={value}" for key, value in text.items())

"""Weights by name: the table, the download, and what is evaluated with them on folders named by wnid."""

import dataclasses
import gzip
import hashlib
import http.server
import importlib.util
import json
import re
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import numpy as np
import peers
import pytest
import safetensors.numpy
from PIL import Image

from bjax import config as configs
from bjax import models, predict, published, weights
from bjax.data import known, loader
from bjax.data.builder import prepare
from bjax.data.folder import Folder
from bjax.errors import UserError
from bjax.main import main
from bjax.specs import Data
from bjax.weights import cache
from bjax.weights.__main__ import main as weights_main

ROOT = Path(__file__).parents[1]
WNIDS = ("n01440764", "n02102040", "n03000684")  # ImageNet's classes 0, 217 and 491


class Server(http.server.ThreadingHTTPServer):
    """Serves `files` by path, with ranges and, where `sums` are on, the hub's redirection with the SHA-256."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files, self.asked, self.sums, self.cut = {}, [], True, None

    def handle_error(self, request, client_address):
        """A client that leaves in the middle is what is tested: nothing to print."""

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}"


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        path, server = self.path.removeprefix("/blob"), self.server
        data = server.files.get(path)
        if data is None:
            return self.send_error(404)
        if self.path == path and path.endswith(".safetensors"):
            self.send_response(302)
            self.send_header("Location", f"/blob{path}")
            if server.sums:
                self.send_header("X-Linked-Etag", f'"{hashlib.sha256(data).hexdigest()}"')
            self.send_header("Content-Length", "0")
            return self.end_headers()
        start = int((self.headers.get("Range") or "bytes=0-")[6:-1])
        server.asked.append((path, start))
        if start >= len(data):
            return self.send_error(416)
        self.send_response(206 if start else 200)
        self.send_header("ETag", '"0123456789abcdef"')
        self.send_header("Content-Length", str(len(data) - start))
        self.end_headers()
        self.wfile.write(data[start : server.cut])

    def log_message(self, *args):
        pass


@pytest.fixture
def server(tmp_path, monkeypatch):
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        monkeypatch.setenv("BJAX_WEIGHTS_URL", server.url)
        monkeypatch.setenv("BJAX_CACHE", str(tmp_path / "cache"))
        yield server
        server.shutdown()
        thread.join()


def tiny_tensors(width=8):
    """A state dict of ImageNet's classes for `resnet50` with stages (1, 1, 1, 1) and that width."""
    golden = json.loads(gzip.decompress((Path(__file__).parent / "golden" / "models.json.gz").read_bytes()))["resnet50"]
    shapes = {k: tuple(d * width // 64 if d >= 64 else d for d in shape) for k, shape in golden["shapes"].items()}
    shapes |= {"fc.weight": (1000, 32 * width), "fc.bias": (1000,)}
    return peers.random_tensors(shapes)


TINY = {"model.options.stages": "(1, 1, 1, 1)", "model.options.width": "8"}


@pytest.fixture
def tiny(server, monkeypatch):
    """`timm:tiny` on the server, beside the published ones."""
    given = dataclasses.replace(published.PUBLISHED["timm:resnet50.tv_in1k"], short="tiny", file="tiny.safetensors")
    given = dataclasses.replace(given, path="/timm/tiny/resolve/main/model.safetensors")
    monkeypatch.setitem(published.PUBLISHED, given.name, given)
    server.files[given.path] = safetensors.numpy.save(tiny_tensors())
    return given


def numbered(server, content):
    """Weights on the server whose file name tells their hash, as torchvision's do; .safetensors needs no PyTorch."""
    file = f"some-{hashlib.sha256(content).hexdigest()[:8]}.pth"
    given = dataclasses.replace(published.PUBLISHED["torchvision:resnet50"], file=file, path=f"/models/{file}")
    server.files[given.path] = content
    return given


def quiet(line):
    raise AssertionError(line)


# --- the table


def test_the_table_is_torchvisions():
    zoo = peers.torchvision_models()
    for name, given in published.PUBLISHED.items():
        if given.zoo != "torchvision":
            continue
        short, _, kind = given.short.partition("-")
        kinds = {"": "V1", "v2": "V2", "swag": "SWAG_E2E_V1", "swag-linear": "SWAG_LINEAR_V1"}
        theirs = zoo.get_model_weights(short)[f"IMAGENET1K_{kinds[kind]}"]
        images = theirs.transforms()
        assert given.url() == theirs.url and len(given.digits) == 8, name
        assert (given.parameters, given.image_size) == (theirs.meta["num_params"], *images.crop_size), name
        assert (given.resize, given.interpolation) == (*images.resize_size, images.interpolation.value), name
        assert (given.mean, given.std) == (tuple(images.mean), tuple(images.std)), name
        if given.top1:
            accuracies = theirs.meta["_metrics"]["ImageNet-1K"]
            assert (given.top1, given.top5) == (accuracies["acc@1"], accuracies["acc@5"]), name
    named = {name.partition("-")[0].removeprefix("torchvision:") for name in published.PUBLISHED if name[1] == "o"}
    assert set(models.MODELS) - {"vit"} <= named


def test_the_table_is_timms():
    timm = peers.timm()
    for name, given in published.PUBLISHED.items():
        if given.zoo != "timm":
            continue
        theirs = timm.get_pretrained_cfg(given.short)
        assert given.path == f"/{theirs.hf_hub_id}/resolve/main/model.safetensors", name
        assert (given.image_size, given.interpolation) == (theirs.input_size[1], theirs.interpolation), name
        assert given.resize == int(given.image_size / theirs.crop_pct), name
        assert (given.mean, given.std, theirs.num_classes) == (theirs.mean, theirs.std, 1000), name
        assert theirs.license.lower().startswith(given.licence.lower()), name


@pytest.mark.parametrize("name", ["torchvision:resnet18", "torchvision:googlenet", "timm:vit_tiny_patch16_384."])
def test_the_models_of_the_table_have_its_parameters(name):
    """Shapes alone: nothing is computed."""
    given = next(w for n, w in published.PUBLISHED.items() if n.startswith(name))
    options = {"variant": given.variant} if given.variant else {}
    options |= {"aux_heads": False} if given.model == "googlenet" else {}  # torchvision does not count them
    images = jax.ShapeDtypeStruct((1, given.image_size, given.image_size, 3), np.float32)
    shapes = jax.eval_shape(models.build(given.model, **options).init, jax.random.key(0), images)
    assert sum(x.size for x in jax.tree.leaves(shapes["params"])) == given.parameters


def test_names_files_and_mistakes(tmp_path, monkeypatch):
    assert published.find("resnet50-0676ba61.pth") is None
    assert published.find("torchvision:resnet50").digits == "0676ba61"
    assert published.find("torchvision:resnet50-v2").digits == "11ad3fa6"
    with pytest.raises(UserError, match=r"did you mean torchvision:resnet50\?"):
        published.find("torchvision:resnet5")
    monkeypatch.chdir(tmp_path)
    Path("timm:of.mine").touch()
    assert published.find("timm:of.mine") is None


@pytest.mark.parametrize(
    ("spec", "name", "words"),
    [
        ("resnet50.py", "torchvision:resnet18", "needs --config.model.name=resnet18$"),
        ("vit.py", "torchvision:vit_b_16", r"needs --config.model.options.variant=B/16$"),
        (
            "vit.py:variant=B/16",
            "timm:vit_base_patch16_224.augreg_in21k_ft_in1k",
            "needs --config.normalize.mean=0.5,0.5,0.5 --config.normalize.std=0.5,0.5,0.5$",
        ),
        ("resnet50.py", "torchvision:resnet50", None),
        ("vit.py:variant=B/16", "torchvision:vit_b_16", None),
    ],
)
def test_weights_of_another_model_or_other_colours_are_refused(spec, name, words):
    config = configs.load(f"{ROOT}/configs/{spec}", [("init_from", name)])
    if words is None:
        assert published.named(config).name == name
        assert published.advice(published.named(config), config) == ""
    else:
        with pytest.raises(UserError, match=words):
            published.named(config)


def test_images_that_weights_were_evaluated_on_are_told():
    config = configs.load(f"{ROOT}/configs/resnet50.py", [("init_from", "torchvision:resnet50-v2")])
    line = published.advice(published.named(config), config)
    assert line == "torchvision:resnet50-v2: its published accuracy is that of --config.data.resize=232"


def test_the_list_fits_a_terminal_and_says_what_is_here(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("BJAX_CACHE", str(tmp_path))
    file = cache.place(published.PUBLISHED["torchvision:vgg19"])
    file.parent.mkdir(parents=True)
    file.touch()
    assert weights_main([]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines[:-1])) <= 80  # the last names the folder
    assert sum(line.endswith("yes") for line in lines) == 1
    assert re.fullmatch(
        r"vgg19 +vgg19 +143\.7 +72\.376 +90\.876 +yes", next(x for x in lines if x.startswith("vgg19 "))
    )
    assert weights_main(["--model=googlenet"]) == 0
    assert "resnet" not in capsys.readouterr().out.partition("--config")[0]
    assert weights_main(["--model=resnet51"]) == 2


# --- the download


def test_a_file_is_downloaded_once_and_verified_before_each_use(server, capsys):
    given = numbered(server, content := b"weights" * 1000)
    if importlib.util.find_spec("torch") is None:
        pytest.skip("PyTorch is not installed")
    file = cache.get(given, quiet)
    assert file.read_bytes() == content and file == cache.folder() / "torchvision" / given.file
    assert "downloading" in capsys.readouterr().err  # no terminal: a line in the place of a bar
    assert cache.get(given, quiet) == file
    assert server.asked == [(given.path, 0)]
    assert [path.name for path in file.parent.iterdir() if not path.name.startswith(".")] == [file.name]
    file.write_bytes(content[:-1] + b"?")
    with pytest.raises(UserError, match=r"is not the published file: its SHA-256 is .*, expected .*; remove it"):
        cache.get(given, quiet)


def test_a_download_goes_on_where_it_ended(server, tiny):
    server.cut = 100_000
    with pytest.raises(UserError, match=rf"timm:tiny: {server.url}.*cannot be downloaded .*; without internet, put"):
        cache.get(tiny, quiet)
    file = cache.place(tiny)
    assert not file.exists() and file.with_name(f"{file.name}.part").stat().st_size == cache.CHUNK
    server.cut = None
    assert cache.get(tiny, quiet).read_bytes() == server.files[tiny.path]
    assert [start for _, start in server.asked] == [0, cache.CHUNK]
    assert file.with_name(f"{file.name}.sha256").read_text().strip() == hashlib.sha256(file.read_bytes()).hexdigest()
    file.write_bytes(b"other")
    with pytest.raises(UserError, match="is not the published file"):  # by the hash that was remembered
        cache.get(tiny, quiet)


def test_what_was_not_verified_is_never_used(server, tiny):
    file = cache.place(tiny)
    part = file.with_name(f"{file.name}.part")
    part.parent.mkdir(parents=True)
    part.write_bytes(b"the beginning of another file")
    with pytest.raises(UserError, match=r"has the SHA-256 .*, expected .*; it was removed; try again"):
        cache.get(tiny, quiet)
    assert not file.exists() and not part.exists()
    part.write_bytes(server.files[tiny.path])  # whole, of a process that was killed before it could rename it
    assert cache.get(tiny, quiet) == file
    file.unlink()
    server.sums = False
    with pytest.raises(UserError, match="tells no SHA-256 to verify the file by; without internet, put that file at"):
        cache.get(tiny, quiet)
    assert not file.exists() and not part.exists()
    file.write_bytes(server.files[tiny.path])
    file.with_name(f"{file.name}.sha256").unlink()
    told = []
    assert cache.get(tiny, told.append) == file and "not verified: put there by hand" in told[0]


def test_what_cannot_be_had_is_one_line(server, tiny, tmp_path, monkeypatch):
    server.files.clear()
    with pytest.raises(UserError, match=rf"{server.url}{tiny.path} answers 404 Not Found; without internet, put that"):
        cache.get(tiny, quiet)
    monkeypatch.setenv("BJAX_WEIGHTS_URL", "http://127.0.0.1:1")
    with pytest.raises(UserError, match=rf"http://127.0.0.1:1{tiny.path} cannot be downloaded \(ConnectionError\)"):
        cache.get(tiny, quiet)
    (tmp_path / "file").touch()
    monkeypatch.setenv("BJAX_CACHE", str(tmp_path / "file"))
    with pytest.raises(UserError, match=r"cannot be written \(.*\); make room, or name another folder.* BJAX_CACHE"):
        cache.get(tiny, quiet)


def test_pth_without_pytorch_is_one_line_before_the_download(server, monkeypatch):
    given = numbered(server, b"weights")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"is read by PyTorch: pip install 'bjax\[torch\]', or take a timm: name"):
        cache.get(given, quiet)
    assert not server.asked


def test_several_at_once_download_once(server, tiny):
    with ThreadPoolExecutor(4) as pool:
        files = list(pool.map(lambda _: cache.get(tiny, quiet), range(4)))
    assert len(set(files)) == 1 and len(server.asked) == 1


def test_weights_are_loaded_by_name(server, tiny, capsys):
    model = models.build("resnet50", stages=(1, 1, 1, 1), width=8)
    like = jax.eval_shape(model.init, jax.random.key(0), np.zeros((1, 32, 32, 3), np.float32))
    variables = weights.load("resnet50", "timm:tiny", like=like)
    np.testing.assert_array_equal(variables["params"]["fc"]["bias"], tiny_tensors()["fc.bias"])
    assert weights_main(["timm:tiny", "--option=stages=(1,1,1,1)", "--option=width=8"]) == 0
    assert "resnet50: every tensor has its place" in capsys.readouterr().out


# --- evaluated on folders named by wnid


def photographs(folder, classes, number=4, split="train"):
    random = np.random.RandomState(0)
    for name in classes:
        (folder / split / name).mkdir(parents=True)
        for i in range(number):
            small = random.randint(0, 256, (3, 4, 3)).astype(np.uint8)
            Image.fromarray(small).resize((60, 45), Image.BICUBIC).save(folder / split / name / f"{i}.png")


def dataset(tmp_path, name, classes):
    photographs(tmp_path / name, classes)
    prepare(Folder(name=name, source=tmp_path / name, data_dir=str(tmp_path / "data")))


def evaluate(tmp_path, workdir, data, **changed):
    values = {
        **TINY,
        "init_from": "timm:tiny",
        "data.name": data,
        "data.data_dir": tmp_path / "data",
        "data.image_size": 32,
        "data.resize": 40,
        "data.threads": 2,
        "dtype": "float32",
        "eval_only": "sharp",
        "eval.sharp.split": "train",
        "eval_batch_size": 16,
        **changed,
    }
    flags = [f"--config.{key}={value}" for key, value in values.items()]
    return main([f"--config={ROOT}/configs/resnet50.py", "--mode=eval", f"--workdir={tmp_path / workdir}", *flags])


@pytest.mark.slow
def test_published_weights_are_evaluated_on_a_folder_of_wnids(server, tiny, tmp_path, capsys):
    dataset(tmp_path, "few", WNIDS)
    assert evaluate(tmp_path, "all", "few") == 0
    out = capsys.readouterr().out
    assert (
        "few has 3 of the classes of timm:tiny: all 1,000 logits compete (config.data.only_known_classes=false)" in out
    )
    assert "evaluates timm:tiny" in out
    assert evaluate(tmp_path, "known", "few", **{"data.only_known_classes": "true"}) == 0
    assert "their logits alone compete (config.data.only_known_classes=true)" in capsys.readouterr().out
    names = json.loads((tmp_path / "all" / "classes.json").read_text())
    assert [names[i] for i in (0, 217, 491)] == list(WNIDS) and len(names) == 1000

    # What was evaluated can be asked about photographs; JSON lines are all that it says there.
    assert predict.main([str(tmp_path / "few"), f"--workdir={tmp_path / 'all'}", "--json"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(rows) == 12 and {x["class"] for row in rows for x in row["prediction"]} <= set(names)
    assert predict.read(tmp_path / "all").what == "timm:tiny"
    assert predict.main([str(tmp_path / "few"), f"--workdir={tmp_path / 'known'}"]) == 0
    assert "measured among the classes of few alone; here all 1,000 compete" in capsys.readouterr().out

    # The same images through the model alone
    source = loader.open_split("few", "train", data_dir=str(tmp_path / "data"))
    (batch,) = loader.eval_batches(source, Data(image_size=32, resize=40), batch_size=12)
    images = (batch["image"] / 255 - np.array(published.IMAGENET[0])) / np.array(published.IMAGENET[1])
    model = models.build("resnet50", stages=(1, 1, 1, 1), width=8)
    like = jax.eval_shape(model.init, jax.random.key(0), np.zeros((1, 32, 32, 3), np.float32))
    variables = weights.load("resnet50", "timm:tiny", like=like)
    logits = np.asarray(jax.jit(model.apply)(variables, images.astype(np.float32)), np.float64)
    labels = np.array([0, 217, 491])[batch["label"]]
    for workdir, seen in {"all": slice(None), "known": [0, 217, 491]}.items():
        shifted = np.full_like(logits, -np.inf)
        shifted[:, seen] = logits[:, seen]
        loss = np.log(np.exp(shifted).sum(1)) - logits[np.arange(12), labels]
        row = json.loads((tmp_path / workdir / "results.json").read_text())["sharp"]
        assert row["n"] == 12
        assert row["top1"] == (shifted.argmax(1) == labels).mean()
        assert row["top5"] == ((shifted > logits[np.arange(12), labels][:, None]).sum(1) < 5).mean()
        assert row["loss"] == pytest.approx(loss.mean(), rel=1e-4)


@pytest.mark.slow
def test_a_folder_is_evaluated_as_torchvision_does(server, tmp_path, monkeypatch):
    zoo = peers.torchvision_models()
    import torch

    peer, _ = peers.with_random_weights(lambda: zoo.ResNet(zoo.resnet.BasicBlock, [1, 1, 1, 1]))
    torch.save(peer.state_dict(), tmp_path / "weights.pth")
    given = numbered(server, (tmp_path / "weights.pth").read_bytes())
    given = dataclasses.replace(given, short="small", model="resnet18")
    monkeypatch.setitem(published.PUBLISHED, given.name, given)
    dataset(tmp_path, "few", WNIDS)
    changed = {"init_from": given.name, "model.name": "resnet18", "model.options.stages": "(1, 1, 1, 1)"}
    assert evaluate(tmp_path, "run", "few", **changed, **{"model.options.width": 64}) == 0
    row = json.loads((tmp_path / "run" / "results.json").read_text())["sharp"]

    see = zoo.ResNet18_Weights.IMAGENET1K_V1.transforms(crop_size=32, resize_size=40)
    files = [
        (label, file)
        for label, wnid in zip((0, 217, 491), WNIDS, strict=True)
        for file in sorted((tmp_path / "few" / "train" / wnid).iterdir())
    ]
    with torch.inference_mode():
        logits = peer(torch.stack([see(Image.open(file)) for _, file in files]))
    labels = torch.tensor([label for label, _ in files])
    loss = float(torch.nn.functional.cross_entropy(logits, labels))
    assert row["loss"] == pytest.approx(loss, rel=1e-4)
    assert row["top1"] == float((logits.argmax(1) == labels).float().mean())


def test_a_folder_of_other_classes_is_refused_with_the_way_out(server, tiny, tmp_path, capsys):
    dataset(tmp_path, "pets", ("cat", "dog"))
    dataset(tmp_path, "mixed", (*WNIDS, "dog"))
    for name, words in {
        "pets": "config.data.name=pets: none of its 2 classes are ImageNet's",
        "mixed": "config.data.name=mixed: not all, 1 not, of its 4 classes are ImageNet's",
    }.items():
        assert evaluate(tmp_path, name, name) == 2
        error = capsys.readouterr().err
        assert words in error and "such as n01440764" in error and "--config.init_new_head=true" in error
    assert not server.asked  # before anything was downloaded
    ways = {"init_new_head": "true", "data.only_known_classes": "true"}
    assert evaluate(tmp_path, "pets", "pets", **ways) == 2
    assert "config.data.only_known_classes=true" in capsys.readouterr().err


def test_imagenets_classes_are_its_sorted_wnids():
    classes = known.imagenet()
    assert len(set(classes)) == 1000 and list(classes) == sorted(classes)
    assert all(re.fullmatch(r"n\d{8}", name) for name in classes)
    assert [classes.index(name) for name in WNIDS] == [0, 217, 491]

"""Photographs that no split holds, against the path that evaluation takes, OpenCV, and by hand."""

import dataclasses
import doctest
import functools
import json
import os
import re
import shutil
import struct
import zlib
from pathlib import Path

import cv2
import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
import skimage
from PIL import Image

from bjax import config as configs
from bjax import experiment, predict
from bjax.blur import sample
from bjax.data import decode, loader, views
from bjax.data.photos import TRAIN, UNSEEN
from bjax.errors import UserError
from bjax.evaluate.summary import PARAMETERS
from bjax.report import overlay
from bjax.runtime import checkpoint, sharding
from bjax.runtime.workdir import write, write_text
from bjax.specs import MaskSpec
from bjax.step import optim, state
from bjax.step.eval_step import prepare
from bjax.step.inputs import apply

PHOTOS = Path(skimage.__file__).parent / "data"
OUTSIDE = ("chelsea.png", "gravel.png", "ihc.png", "motorcycle_right.png")  # no training split has them
MASKED = ("blurred_drop_below", "blurred_keep_half")


@pytest.fixture(scope="module")
def predictor(tiny_run):
    return predict.load(tiny_run)


def evaluated(workdir, condition, crops):
    """Logits of crops and patches kept, by the functions of evaluation, with the condition's blur taken out."""
    config = configs.read(workdir / "config.json")
    config.eval_only = ""
    exp = experiment.build(config, 14)
    inputs, model = exp.conditions[condition].inputs, exp.conditions[condition].model
    inputs = dataclasses.replace(inputs, blur=sample.SHARP)
    mesh = sharding.make_mesh(1, 1, jax.devices()[:1])
    number = len(crops)
    batch = {"image": crops, "label": np.zeros(number, np.int32), "id": np.arange(number, dtype=np.uint32)}
    batch = sharding.put({**batch, "mask": np.ones(number, bool)}, mesh)
    images, kept, *_ = prepare(jax.random.key(0), batch, inputs=inputs, objective=exp.objective, mesh=mesh)
    with ocp.StandardCheckpointer() as checkpointer:
        saved = checkpointer.restore((workdir / "checkpoints" / "2" / "default").absolute())
    return apply(model, jax.device_get(saved["ema"]), images, kept, train=False), kept


@pytest.mark.parametrize("condition", [None, *MASKED])
def test_a_photograph_is_seen_as_evaluation_sees_it(tiny_run, condition):
    assert not set(OUTSIDE) & set(TRAIN)
    predictor = predict.load(tiny_run, condition)
    photos = [np.asarray(Image.open(PHOTOS / file).convert("RGB")) for file in OUTSIDE]
    # One that is blurred on its left, so that a threshold finds something to leave out.
    half = photos[0].copy()
    half[:, : half.shape[1] // 2] = cv2.GaussianBlur(photos[0], (0, 0), 4)[:, : half.shape[1] // 2]
    crops = [decode.center_crop(photo, 32, resize=0) for photo in (*photos, half)]
    found = [predictor(crop) for crop in crops]
    logits, kept = evaluated(tiny_run, condition or "sharp", np.stack(crops))
    fitted = json.loads((tiny_run / "calibration.json").read_text())["temperature"]
    assert abs(fitted - 1) > 0.01
    expected = np.asarray(jax.nn.softmax(logits / fitted))
    assert expected.max() > 2 / 14  # far from uniform: the comparison can fail
    for i, (prediction, crop) in enumerate(zip(found, crops, strict=True)):
        np.testing.assert_array_equal(prediction.crops, crop[None])
        assert prediction.seen == 1
        keep = np.ones(16, bool) if kept is None else np.asarray(kept.keep[i])
        if keep.any():
            np.testing.assert_allclose(prediction.probabilities, expected[i], atol=1e-6, rtol=0)
        np.testing.assert_array_equal(prediction.keep.ravel(), keep)
        assert prediction.kept == pytest.approx(keep.mean())
        response = cv2.Laplacian(cv2.cvtColor(crop, cv2.COLOR_RGB2GRAY), cv2.CV_64F)
        assert prediction.sharpness == pytest.approx(response.var(), rel=1e-6)
        patches = response.reshape(4, 8, 4, 8).var(axis=(1, 3))
        np.testing.assert_allclose(prediction.scores[0], patches, rtol=1e-5, atol=1e-3)
    assert (found[-1].kept == 1) == (condition is None)
    assert found[-1].kept > 0


def test_a_run_with_a_scale_sees_a_photograph_as_it_evaluates(tiny_run, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(tiny_run, run)
    config = configs.read(run / "config.json")
    config.data.resize, config.data.interpolation = 40, "bicubic"
    write_text(run / "config.json", configs.to_json(config))
    predictor = predict.load(run)
    photo = np.asarray(Image.open(PHOTOS / "chelsea.png").convert("RGB"))  # 451 × 300
    for pixels in (photo, photo.transpose(1, 0, 2)):
        prediction = predictor(pixels)
        crop = decode.center_crop(pixels, 32, resize=40, interpolation="bicubic")
        np.testing.assert_array_equal(prediction.crops, crop[None])
        assert prediction.seen == pytest.approx(32 * 32 / (40 * 60))
        whole = np.asarray(Image.fromarray(pixels).resize((60, 40) if pixels is photo else (40, 60), 2))
        response = cv2.Laplacian(cv2.cvtColor(whole, cv2.COLOR_RGB2GRAY), cv2.CV_64F)
        assert prediction.sharpness == pytest.approx(response.var(), rel=1e-9)


def test_a_run_without_a_scale_is_shown_the_whole_photograph(predictor, tiny_run):
    photo = np.asarray(Image.open(PHOTOS / "motorcycle_left.png").convert("RGB"))  # 741 × 500
    large = np.asarray(Image.fromarray(photo).resize((2964, 2000)))
    for pixels in (photo, large):
        prediction = predictor(pixels)
        assert prediction.seen == 1
        assert len(prediction.crops) == 15
        each = [predictor(crop) for crop in prediction.crops]
        mean = np.mean([p.probabilities for p in each], axis=0)
        np.testing.assert_allclose(prediction.probabilities, mean, atol=1e-6)
        np.testing.assert_array_equal(prediction.scores, np.concatenate([p.scores for p in each]))
    # What lies in a corner alone has a say.
    spoilt = photo.copy()
    spoilt[-60:, -60:] = 0
    assert np.abs(predictor(spoilt).probabilities - predictor(photo).probabilities).max() > 1e-4
    small = photo[:48, :40]  # pixels as they are where tiles reach
    prediction = predictor(small)
    assert (prediction.view.height, prediction.view.width, len(prediction.crops)) == (48, 40, 4)
    np.testing.assert_array_equal(prediction.crops[0], small[:32, :32])


def test_what_keeps_nothing_gets_no_class(tiny_run, tmp_path, capsys):
    flat = np.full((32, 32, 3), 90, np.uint8)
    prediction = predict.load(tiny_run, "blurred_drop_below")(flat)
    assert (prediction.kept, prediction.probabilities, prediction.top(5)) == (0, None, [])
    assert prediction.reason == "nothing left to classify"
    Image.fromarray(flat).save(tmp_path / "flat.png")
    flags = [str(tmp_path / "flat.png"), f"--workdir={tiny_run}", "--condition=blurred_drop_below"]
    assert predict.main([*flags, "--json", f"--out={tmp_path}"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert (record["class"], record["reason"], record["prediction"]) == (None, "nothing left to classify", [])
    assert record["overlay"] == f"{tmp_path}/flat_2.png"  # not over the photograph
    np.testing.assert_array_equal(Image.open(tmp_path / "flat.png"), flat)
    assert predict.main(flags) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[2].split()[1:] == ["100.0", "0.0", "0.0", "nothing", "left", "to", "classify", "–"]
    assert lines[3] == ""
    # Tiles of which nothing is kept have no say.
    half = np.full((32, 56, 3), 90, np.uint8)
    half[:, :32] = np.random.default_rng(0).integers(0, 256, (32, 32, 3))
    both = predict.load(tiny_run, "blurred_drop_below")(np.pad(half, ((0, 0), (0, 24), (0, 0)), constant_values=90))
    assert both.keep.any(axis=(1, 2)).tolist() == [True, True, False]
    first = [predict.load(tiny_run, "blurred_drop_below")(crop).probabilities for crop in both.crops[:2]]
    np.testing.assert_allclose(both.probabilities, np.mean(first, axis=0), atol=1e-6)


def test_the_footer_says_what_the_answers_are_worth(tiny_run, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(tiny_run, run)
    photo = str(PHOTOS / "chelsea.png")

    def footer():
        assert predict.main([photo, f"--workdir={run}"]) == 0
        said = capsys.readouterr()
        return said.out.partition("\n\n")[2], said.err

    text, _ = footer()
    row = json.loads((run / "results.json").read_text())["sharp"]
    low, high = row["top1_95_photographs"]
    right = f"{100 * row['top1']:.1f} % (95 %: {100 * low:.1f}–{100 * high:.1f})"
    assert f"worth: right on {right} of 224 images of 14 photographs: " in text
    assert "photos test, condition sharp" in text
    assert "measured, as the calibration was, on single crops; an answer here is the mean of up to 16" in text
    fitted = json.loads((run / "calibration.json").read_text())
    assert "among the 14 classes it knows; anything else gets one of them too" in text
    errors = "; error {:.1%} before, {:.1%} after, held out".format(*(fitted[k]["ece"] for k in ("before", "after")))
    assert f"by temperature {fitted['temperature']:.3g}, fitted on its condition sharp{errors}" in text
    assert "shorter side at 32 px" in text
    write(run / "calibration.json", fitted | {"temperature": None, "after": None})
    assert "not calibrated: its condition sharp was all right, or its logits hardly differ yet, which" in footer()[0]
    (run / "calibration.json").unlink()
    (run / "results.json").unlink()
    text, _ = footer()
    assert "not calibrated" in text
    assert "is not known: the run was not evaluated" in text
    for name in ("calibration.json", "results.json"):
        (run / name).write_text("{")
    text, errors = footer()
    assert "not calibrated" in text
    assert errors.count("damaged, and left aside") == 2


def test_a_run_of_a_blur_that_is_refused_today_still_predicts(tiny_run, tmp_path, predictor):
    run = tmp_path / "run"
    shutil.copytree(tiny_run, run)
    config = configs.read(run / "config.json")
    config.blur.sigma = config.eval.blurred.blur.sigma = (1.0, 9.0)
    write_text(run / "config.json", configs.to_json(config))
    found = predict.load(run)(PHOTOS / "chelsea.png")
    np.testing.assert_array_equal(found.probabilities, predictor(PHOTOS / "chelsea.png").probabilities)


def test_a_folder_of_the_split_repeats_its_accuracy(tiny_run, data_dir, tmp_path, capsys):
    source = loader.open_split("photos", "test", data_dir=data_dir)
    (tmp_path / "b").mkdir()
    labels = {}
    for i, example in enumerate(source):
        path = tmp_path / ("b" if i % 2 else "") / example["file_name"]
        path = path.with_suffix(".png")
        Image.fromarray(decode.center_crop(decode.decode(example["image"]), 32)).save(path)
        labels[str(path)] = source.class_names[example["label"]]
    (tmp_path / "notes.txt").write_text("no photograph")
    assert predict.main([str(tmp_path), f"--workdir={tiny_run}", "--json"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["photo"] for row in rows] == sorted(labels, key=Path)
    hits = [row["prediction"][0]["class"] == labels[row["photo"]] for row in rows]
    results = json.loads((tiny_run / "results.json").read_text())
    assert np.mean(hits) == pytest.approx(results["sharp"]["top1"])
    in_five = [labels[row["photo"]] in [p["class"] for p in row["prediction"]] for row in rows]
    assert np.mean(in_five) == pytest.approx(results["sharp"]["top5"])


def test_all_photographs_share_one_program(tiny_run):
    predictor = predict.Predictor(predict.read(tiny_run), batch_size=4)
    looks = [predictor.look(PHOTOS / file) for file in (*OUTSIDE, *TRAIN[:3])]
    found = [*predictor.of_looks(looks), predictor(PHOTOS / OUTSIDE[0])]
    assert predictor.program._cache_size() == 1
    np.testing.assert_array_equal(found[0].probabilities, found[-1].probabilities)
    assert all(p.probabilities.sum() == pytest.approx(1, abs=1e-5) for p in found)


def test_top_lists_the_most_probable_classes(predictor):
    prediction = predictor(PHOTOS / "chelsea.png")
    names, shares = zip(*prediction.top(5), strict=True)
    assert list(shares) == sorted(prediction.probabilities, reverse=True)[:5]
    assert [prediction.probabilities[prediction.classes.index(n)] for n in names] == list(shares)
    assert prediction.classes[0] == "astronaut"


def test_every_kind_of_file_becomes_the_same_pixels(predictor, tmp_path):
    photo = np.asarray(Image.open(PHOTOS / "chelsea.png").convert("RGB"))
    image, grey = Image.fromarray(photo), Image.fromarray(photo).convert("L")
    expected = predictor(photo)

    def same(path, pixels, atol=0):
        np.testing.assert_allclose(np.int32(predictor(path).crops), predictor.look(pixels).view.crops, atol=atol)

    turned = image.transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise
    turned.save(tmp_path / "turned.png", exif=exif)
    same(tmp_path / "turned.png", photo)
    turned.save(tmp_path / "turned.jpg", exif=exif, quality=100, subsampling="4:4:4")
    same(tmp_path / "turned.jpg", photo, atol=8)
    same(Image.open(tmp_path / "turned.png"), photo)
    image.save(tmp_path / "photo.webp", lossless=True)
    same(tmp_path / "photo.webp", photo)
    transparent = image.copy()
    transparent.putalpha(100)
    transparent.save(tmp_path / "alpha.png")
    same(tmp_path / "alpha.png", photo)
    grey.save(tmp_path / "grey.png")
    same(tmp_path / "grey.png", np.repeat(np.asarray(grey)[..., None], 3, axis=2))
    Image.fromarray(np.asarray(grey).astype(np.uint16) << 8 | 255).save(tmp_path / "deep.png")
    same(tmp_path / "deep.png", np.repeat(np.asarray(grey)[..., None], 3, axis=2))
    image.convert("CMYK").save(tmp_path / "cmyk.jpg", quality=100, subsampling="4:4:4")
    same(tmp_path / "cmyk.jpg", photo, atol=12)
    np.testing.assert_array_equal(predictor(image).probabilities, expected.probabilities)
    # Upright JPEGs have the pixels that the datasets' decoder gives them.
    image.save(tmp_path / "photo.jpg", quality=90)
    same(tmp_path / "photo.jpg", decode.decode((tmp_path / "photo.jpg").read_bytes()))
    with pytest.raises(ValueError, match=r"float64\[300, 451, 3\], expected uint8"):
        predictor(photo / 255)


def test_a_broken_file_is_named_and_the_rest_goes_on(tiny_run, tmp_path, capsys):
    for file in OUTSIDE[:2]:
        shutil.copy(PHOTOS / file, tmp_path)
    Image.open(PHOTOS / "coffee.png").save(tmp_path / "cut.jpg")
    data = (tmp_path / "cut.jpg").read_bytes()
    (tmp_path / "cut.jpg").write_bytes(data[: len(data) // 2])
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.webp").write_text("no photograph")
    out = tmp_path / "out"
    assert predict.main([str(tmp_path), f"--workdir={tiny_run}", f"--out={out}"]) == 1
    said = capsys.readouterr()
    errors = said.err.splitlines()
    assert [line.split(": ")[1] for line in errors] == [
        str(tmp_path / f) for f in ("cut.jpg", "empty.png", "text.webp")
    ]
    assert errors[1] == f"bjax: {tmp_path}/empty.png: empty file"
    lines = said.out.splitlines()
    assert lines[0].split() == ["photo", "seen", "%", "sharpness", "kept", "%", "prediction", "%"]
    assert len({len(line) for line in lines[:12]}) == 1  # aligned
    assert [line.split()[0] for line in lines[2:12:5]] == [str(tmp_path / f) for f in OUTSIDE[:2]]
    assert f"by {tiny_run}, step 2" in lines
    assert sorted(p.name for p in out.iterdir()) == ["chelsea.png", "gravel.png"]


@pytest.mark.parametrize("format", ["GIF", "WEBP", "PNG"])
def test_of_an_animation_the_first_frame_is_seen(predictor, tmp_path, format):
    rng = np.random.default_rng(0)
    first, second = (rng.integers(0, 256, (40, 50), np.uint8) for _ in range(2))
    lossless = {"lossless": True} if format == "WEBP" else {}
    path = tmp_path / f"moving.{format.lower()}"
    Image.fromarray(first).save(path, save_all=True, append_images=[Image.fromarray(second)], **lossless)
    with Image.open(path) as image:
        assert image.n_frames == 2
    expected = predictor.look(np.repeat(first[..., None], 3, axis=2)).view.crops
    np.testing.assert_array_equal(predictor(path).crops, expected)


def test_of_16_bits_the_upper_8_are_seen(predictor, tmp_path):
    deep = np.random.default_rng(0).integers(0, 2**16, (40, 50, 3), np.uint16)
    cv2.imwrite(str(tmp_path / "colour.png"), deep[..., ::-1])
    expected = predictor.look((deep >> 8).astype(np.uint8)).view.crops
    np.testing.assert_array_equal(predictor(tmp_path / "colour.png").crops, expected)
    cv2.imwrite(str(tmp_path / "grey.png"), deep[..., 0])
    expected = predictor.look((deep[..., :1] >> 8).astype(np.uint8).repeat(3, axis=2)).view.crops
    np.testing.assert_array_equal(predictor(tmp_path / "grey.png").crops, expected)


def test_what_must_not_be_read_is_named_and_the_rest_goes_on(tiny_run, tmp_path, capsys):
    shutil.copy(PHOTOS / OUTSIDE[0], tmp_path)
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "link.jpg").symlink_to("nowhere")
    with (tmp_path / "large.jpg").open("wb") as file:
        file.truncate(2**40)  # on disk it takes nothing
    header = bytearray((PHOTOS / OUTSIDE[0]).read_bytes())
    header[16:24] = struct.pack(">II", 65500, 65500)
    header[29:33] = struct.pack(">I", zlib.crc32(header[12:29]))
    (tmp_path / "huge.png").write_bytes(header)
    photos = [tmp_path, tmp_path / "pipe.jpg", "/dev/zero"]
    assert predict.main([*map(str, photos), f"--workdir={tiny_run}", "--json"]) == 1
    said = capsys.readouterr()
    assert len(said.out.splitlines()) == 1
    errors = sorted(said.err.splitlines())
    assert len(errors) == 6
    assert errors[0] == "bjax: /dev/zero: not a regular file"
    assert re.search(r"huge.png: .*4290250000 pixels", errors[1])
    assert re.search(r"large.jpg: 1,099,511,627,776 bytes: image files are read up to 1,073,741,824$", errors[2])
    assert errors[3].endswith("link.jpg: no such file")
    assert errors[4] == errors[5] == f"bjax: {tmp_path}/pipe.jpg: not a regular file"


def test_a_damaged_pillow_image_is_the_documented_error(predictor, tmp_path):
    data = (PHOTOS / OUTSIDE[0]).read_bytes()
    (tmp_path / "cut.png").write_bytes(data[: len(data) // 2])
    with (
        Image.open(tmp_path / "cut.png") as image,
        pytest.raises(ValueError, match=r"^image file is truncated"),
    ):
        predictor(image)


def test_photographs_of_one_name_get_drawings_of_their_own(tiny_run, tmp_path, capsys):
    (tmp_path / "other").mkdir()
    Image.open(PHOTOS / "gravel.png").save(tmp_path / "other" / "chelsea.jpg")
    photos = [str(PHOTOS / "chelsea.png"), str(tmp_path / "other")]
    flags = [f"--workdir={tiny_run}", f"--out={tmp_path}/out", "--condition=blurred_drop_below", "--json"]
    assert predict.main([*photos, *flags]) == 0
    drawn = [json.loads(line)["overlay"] for line in capsys.readouterr().out.splitlines()]
    assert drawn == [f"{tmp_path}/out/chelsea.png", f"{tmp_path}/out/chelsea_2.png"]
    sizes = [decode.decode(Path(file).read_bytes()).shape for file in drawn]
    assert sizes[0] != sizes[1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere.jpg"], "nowhere.jpg: no such file or folder"),
        (["{empty}"], "empty: no .jpg, .jpeg, .png, .webp file in this folder"),
        (["{photo}", "--workdir=nowhere"], "--workdir=nowhere: holds no config.json"),
        (
            ["{photo}", "--condition=blured"],
            "--condition=blured: no condition of {run} (did you mean blurred?)",
        ),
        (["{photo}", "--out={photo}"], "chelsea.png: is a file"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(arguments, message, tiny_run, tmp_path, capsys):
    places = {"empty": tmp_path / "empty", "photo": PHOTOS / "chelsea.png", "run": tiny_run}
    places["empty"].mkdir()
    arguments = [f"--workdir={tiny_run}", *(a.format(**places) for a in arguments)]
    assert predict.main(arguments) == 2
    said = capsys.readouterr()
    assert message.format(**places) in said.err
    assert len(said.err.splitlines()) == 1
    assert not said.out


def test_an_unfinished_run_is_named(tiny_run, tmp_path):
    shutil.copy(tiny_run / "config.json", tmp_path)
    with pytest.raises(UserError, match="holds no checkpoint yet"):
        predict.load(tmp_path)


def test_class_names_come_from_the_run_then_from_the_dataset(tiny_run, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(tiny_run, run)
    assert predict.read(run).classes == tuple(Path(file).stem for file in TRAIN)
    write_text(run / "classes.json", json.dumps([f"class {i}" for i in range(14)]))
    assert predict.read(run).classes[13] == "class 13"
    (run / "classes.json").write_text("[")
    with pytest.raises(UserError, match=r"classes.json: damaged"):
        predict.read(run)
    (run / "classes.json").unlink()
    assert predict.read(run).classes[0] == "astronaut"
    config = configs.read(run / "config.json")
    config.data.name = "gone"
    write_text(run / "config.json", configs.to_json(config))
    with pytest.raises(UserError, match=r"classes.json: missing, and the dataset.*unknown data set 'gone'"):
        predict.read(run)


def test_a_mask_is_the_conditions_or_none(tiny_run):
    assert predict.read(tiny_run).inputs.mask.mode == "none"  # training kept a random half
    random = predict.load(tiny_run, "blurred_keep_half_random")
    found = [random(PHOTOS / file) for file in OUTSIDE[:2]]
    assert [p.kept for p in found] == [0.5, 0.5]
    for keep in (*found[0].keep, *found[1].keep):  # the same places, whatever the photograph
        np.testing.assert_array_equal(keep, found[0].keep[0])


def test_a_bucket_keeps_what_attend_keeps(tiny_run, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(tiny_run, run)
    config = configs.read(run / "config.json")
    found = {}
    for mode in ("attend", "bucket"):
        config.eval.blurred_drop_below.mask.mode = mode
        write_text(run / "config.json", configs.to_json(config))
        found[mode] = predict.load(run, "blurred_drop_below")(PHOTOS / "coffee.png")
    np.testing.assert_array_equal(found["bucket"].probabilities, found["attend"].probabilities)
    assert 0 < found["bucket"].kept < 1


def untrained(tiny_run, workdir, **changes):
    """A run like `tiny_run`, with these changes and random weights throughout."""
    config = configs.read(tiny_run / "config.json")
    for key, value in changes.items():
        configs.override(config, key, str(value))
    exp = experiment.build(config, 14)
    key = jax.random.key(0)
    init = functools.partial(
        state.init,
        model=exp.model,
        tx=optim.build(config.optim, 1),
        image_size=config.data.image_size,
        ema=True,
    )
    new = jax.jit(init)(key)
    rng = np.random.default_rng(0)
    new = new.replace(ema=jax.tree.map(lambda x: rng.normal(0, 0.2, x.shape).astype(np.float32), new.ema))
    workdir.mkdir()
    (workdir / "config.json").write_text(configs.to_json(config))
    with checkpoint.manager(workdir / "checkpoints") as manager:
        checkpoint.save(manager, 1, new)
    return workdir


def test_the_type_of_blur_is_the_mean_over_detailed_crops(tiny_run, tmp_path):
    predictor = predict.load(untrained(tiny_run, tmp_path / "run", task="blur_type"))
    photo = np.asarray(Image.open(PHOTOS / UNSEEN[0]).convert("RGB"))
    prediction = predictor(photo)
    assert prediction.classes == ("sharp", "gaussian", "motion", "defocus")
    assert prediction.crops.shape == (16, 32, 32, 3)
    np.testing.assert_array_equal(prediction.crops, views.detailed(photo, 32, 16).crops)
    each = [predictor(crop) for crop in prediction.crops]
    np.testing.assert_allclose(prediction.probabilities, np.mean([p.probabilities for p in each], axis=0), atol=1e-6)
    assert np.std([p.probabilities for p in each], axis=0).max() > 1e-3
    assert prediction.seen == pytest.approx(16 * 32 * 32 / photo.shape[0] / photo.shape[1])
    flags = [str(PHOTOS / UNSEEN[0]), f"--workdir={tmp_path}/run", f"--out={tmp_path}/seen", "--json"]
    assert predict.main(flags) == 0
    drawn = np.asarray(Image.open(tmp_path / "seen" / "chelsea.png").convert("RGB"), int)
    frames = (drawn == (214, 39, 40)).all(axis=-1).sum()
    assert frames > 16 * 4 * 2 * 20  # 16 frames of two pixels over the whole photograph
    # Nothing is rescaled: half the photograph has other pixels, a corner of it the same.
    small = predictor(photo[:20, :24])
    assert small.crops.shape == (1, 32, 32, 3)
    np.testing.assert_array_equal(small.crops[0, 6:26, 4:28], photo[:20, :24])


def test_estimates_are_those_of_the_predicted_kind(tiny_run, tmp_path):
    workdir = untrained(tiny_run, tmp_path / "run", task="blur_type", **{"loss.parameters": 1})
    predictor = predict.load(workdir)
    assert predictor.run.classes == ("sharp", "gaussian", "motion", "defocus")
    assert predictor.estimates(0, np.ones(5)) == {}
    assert predictor.estimates(1, np.ones(5)) == {"sigma": 2.0}
    # cos 2θ = 0 and sin 2θ = 1: a line at 45°
    assert predictor.estimates(2, np.array([0, 1.5, 0, 1, 0])) == pytest.approx({"length": 15, "angle": 45})
    assert predictor.estimates(3, np.ones(5)) == {"radius": 4.0}
    prediction = predictor(PHOTOS / UNSEEN[0])
    assert prediction.probabilities.shape == (4,)
    kind = prediction.top(1)[0][0]
    assert set(prediction.estimates) == {k for k, of in PARAMETERS.items() if of == kind}


def test_a_drawing_shows_what_was_left_out():
    photo = np.full((32, 64, 3), 200, np.uint8)
    boxes = np.array([[0, 0, 1, 0.5]])  # the model saw the left half
    scores = np.array([[[1.0, 10.0], [1000.0, 10000.0]]], np.float32)
    keep = np.array([[[True, False], [True, True]]])
    drawing = overlay.draw(photo, boxes, scores, keep, patch=0.5, title="title", mask=MaskSpec(threshold=100.0))
    pixels = np.asarray(drawing, int)
    side, left, top = overlay.SIDE, overlay.MARGIN, overlay.MARGIN + overlay.HEAD
    right, quarter = left + side + overlay.GAP, side // 4

    def at(x, row, column):  # those that occur most in a patch: strokes are few
        patch = pixels[top + row * quarter :, x + column * quarter :][:quarter, :quarter].reshape(-1, 3)
        colours, counts = np.unique(patch, axis=0, return_counts=True)
        return colours[counts.argmax()].tolist()

    assert at(left, 0, 0) == at(left, 1, 1) == [200] * 3
    assert at(left, 0, 1) == [50] * 3
    assert at(left, 0, 2) == at(left, 1, 3) == [241] * 3  # bleached
    assert at(right, 0, 0) == [68, 1, 84]  # both ends of viridis
    assert at(right, 1, 1) == [253, 231, 37]
    assert at(right, 0, 3) == [overlay.PALE] * 3
    light = [at(right, *place) @ np.array((0.299, 0.587, 0.114)) for place in ((0, 0), (0, 1), (1, 0), (1, 1))]
    assert light == sorted(light)  # readable in grey
    # Where crops overlap their scores are averaged, by their logarithms.
    twice = np.concatenate([scores, np.full((1, 2, 2), 100, np.float32)])
    both = overlay.draw(photo, boxes[[0, 0]], twice, np.repeat(keep, 2, 0), patch=0.5, title="")
    once = overlay.draw(photo, boxes, np.sqrt(scores * 100), keep, patch=0.5, title="")
    np.testing.assert_array_equal(np.asarray(both)[top:, right:], np.asarray(once)[top:, right:])
    crops = np.stack([np.full((8, 8, 3), 10 * i, np.uint8) for i in range(5)])
    picture, boxes = overlay.mosaic(crops)
    assert picture.shape == (16, 24, 3)
    for crop, (y, x, *_) in zip(crops, boxes * (16, 24, 16, 24), strict=True):
        np.testing.assert_array_equal(picture[round(y) :, round(x) :][:7, :7], crop[:7, :7])
    several = overlay.draw(picture, boxes, np.repeat(scores, 5, 0), np.repeat(keep, 5, 0), patch=0.5, title="中" * 500)
    assert several.width <= drawing.width
    # A CNN's images need not divide into patches: the rest is drawn, not scored.
    odd = overlay.draw(crops[0], np.array([[0, 0, 1, 1]]), scores[:, :1, :1], keep[:, :1, :1], patch=0.6, title="")
    assert np.asarray(odd)[top + side - 4, right + side - 4].tolist() == [overlay.PALE] * 3


def test_images_that_patches_do_not_fill_are_scored_where_they_do(tiny_run):
    run = predict.read(tiny_run)
    config = run.config.copy_and_resolve_references()
    config.data.image_size = 35

    class Mean(type(run.model)):
        def __call__(self, images, **_):
            return images.mean((1, 2))

    model = Mean(
        **{f: getattr(run.model, f) for f in ("num_classes", "patch_size", "width", "depth", "heads", "mlp_dim")}
    )
    odd = dataclasses.replace(run, config=config, model=model, variables={}, classes=("r", "g", "b"))
    photo = np.asarray(Image.open(PHOTOS / "chelsea.png").convert("RGB"))
    prediction = predict.Predictor(odd, 1)(photo[:35, :35])
    assert prediction.scores.shape == (1, 4, 4)
    expected = predict.Predictor(run, 1)(prediction.crops[0, :32, :32])
    np.testing.assert_array_equal(prediction.scores, expected.scores)
    assert np.isfinite(prediction.sharpness)


def test_the_example_of_load_gives_what_it_says(tiny_run, tmp_path, monkeypatch):
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs/vit_mask_demo").symlink_to(tiny_run)
    Image.open(PHOTOS / "chelsea.png").save(tmp_path / "photo.jpg")
    monkeypatch.chdir(tmp_path)
    (example,) = doctest.DocTestFinder().find(predict.load, "load", globs={"load": predict.load})
    assert doctest.DocTestRunner().run(example) == (0, 3)

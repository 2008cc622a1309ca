"""Photos of any kind are read upright and in colour, and the faces in them are found where they are."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ferlab import benchmarks, load_pretrained, photos
from ferlab.errors import FerlabError
from ferlab.recogniser import ASSETS

PLACES = np.array([(40, 60, 160), (270, 40, 180), (470, 260, 150)])


@pytest.fixture(scope="module")
def scene() -> np.ndarray:
    """Three rendered faces on a wall, uint8 [480, 640, 3]."""
    faces = benchmarks.load("rendered", size=96, train=32, valid=8, test=8, progress=False).train
    wall = np.random.default_rng(0).normal(120, 5, (480, 640, 3)).clip(0, 255).astype(np.uint8)
    for face, (x, y, side) in zip(faces.images, PLACES):
        wall[y:y + side, x:x + side] = np.asarray(Image.fromarray(face).resize((side, side), Image.Resampling.BICUBIC))
    return wall


def check(boxes: np.ndarray, places: np.ndarray) -> None:
    assert len(boxes) == len(places)
    for x, y, side in places:
        middles = boxes[:, :2] + boxes[:, 2:] / 2
        nearest = np.abs(middles - (x + side / 2, y + side / 2)).max(1).argmin()
        assert np.abs(middles[nearest] - (x + side / 2, y + side / 2)).max() < 0.2 * side
        assert 0.5 * side < boxes[nearest, 2] < 1.3 * side


def test_faces_are_found_where_they_are(scene: np.ndarray):
    boxes = photos.find_faces(scene)
    check(boxes, PLACES)
    faces = photos.crop_faces(scene, boxes, 48)
    assert faces.shape == (3, 48, 48, 3) and faces.dtype == np.uint8


def test_no_face_gives_no_box(scene: np.ndarray):
    wall = scene[:50, :250]
    assert photos.find_faces(wall).shape == (0, 3)
    assert photos.crop_faces(wall, photos.find_faces(wall)).shape == (0, 48, 48, 3)


@pytest.mark.parametrize("kind", ["png", "grey", "cmyk", "alpha", "palette", "large", "huge", "rotated"])
def test_any_kind_of_photo_is_read(scene: np.ndarray, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch):
    picture = Image.fromarray(scene)
    path = tmp_path / ("photo.png" if kind in ("png", "alpha", "palette") else "photo.jpg")
    options: dict = {}
    if kind == "rotated":  # as a camera held upright stores it: turned, and a note that tells so
        picture = picture.transpose(Image.Transpose.ROTATE_90)
        exif = Image.Exif()
        exif[0x0112] = 6
        options["exif"] = exif
    modes = {"grey": "L", "cmyk": "CMYK", "alpha": "RGBA", "palette": "P"}
    picture.convert(modes.get(kind, "RGB")).save(path, **options)
    if kind in ("large", "huge"):  # 1.2 and 4 times what is read whole
        monkeypatch.setattr(photos, "MAX_PIXELS", 580 * 440 if kind == "large" else 320 * 240)
    photo = photos.read_photo(path)
    scale = 0.5 if kind in ("large", "huge") else 1
    assert photo.shape == (480 * scale, 640 * scale, 3) and photo.dtype == np.uint8
    check(photos.find_faces(photo), PLACES * scale)
    assert photos.shrunk(path, photo) == 1 / scale  # and so are the boxes that the command tells


def test_a_photo_beyond_what_pillow_allows_is_read_and_pillow_stays_as_it_was(scene: np.ndarray, tmp_path: Path,
                                                                              monkeypatch: pytest.MonkeyPatch):
    Image.fromarray(scene).save(tmp_path / "photo.jpg")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    assert photos.read_photo(tmp_path / "photo.jpg").shape == scene.shape
    assert photos.shrunk(tmp_path / "photo.jpg", scene) == 1 and Image.MAX_IMAGE_PIXELS == 1000


def test_where_the_detector_is_unsure_another_one_has_to_agree(scene: np.ndarray, monkeypatch: pytest.MonkeyPatch):
    asked: list = []
    monkeypatch.setattr(photos, "_second_opinion", lambda *_: bool(asked.append(1)))
    monkeypatch.setattr(photos, "SURE", 1000)
    assert len(photos.find_faces(scene)) == 0 and len(asked) >= 3
    monkeypatch.undo()
    monkeypatch.setattr(photos, "SURE", 1000)
    check(photos.find_faces(scene), PLACES)  # of faces both are sure


@pytest.mark.parametrize("content", [b"", b"no photo", None])
def test_what_is_no_photo_is_told_in_one_sentence(tmp_path: Path, content: bytes | None):
    path = tmp_path / "photo.jpg"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(FerlabError, match="photo.jpg"):
        photos.read_photo(path)
    with pytest.raises(FerlabError, match="is a folder"):
        photos.read_photo(tmp_path)


def test_command_predicts_draws_and_goes_on_after_a_bad_photo(
    scene: np.ndarray, tmp_path: Path, toy_faces: Path, ferlab: Callable[..., Any],
):
    run = tmp_path / "run"
    assert ferlab("train", "--data", "folder", "--root", toy_faces, "--profile", "smoke", "--method", "plain",
                  "--run", run).code == 0
    Image.fromarray(scene).save(tmp_path / "party.png")
    (tmp_path / "broken.jpg").write_bytes(b"no photo")
    ended = ferlab("predict", tmp_path / "broken.jpg", tmp_path / "party.png", "--model", run,
                   "--out", tmp_path / "out", "--json", tmp_path / "faces.json")
    assert ended.code == 2
    assert ended.err.count("\n") == 1 and "broken.jpg" in ended.err
    assert ended.out.count("party.png: face") == 3
    assert Image.open(tmp_path / "out" / "party.png").width > 600
    found = json.loads((tmp_path / "faces.json").read_text())
    (photo,) = found["photos"]
    assert len(photo["faces"]) == 3
    for face in photo["faces"]:
        assert list(face["probability"]) == found["classes"] == ["high", "low", "middle"]
        assert sum(face["probability"].values()) == pytest.approx(1, abs=1e-5)
    folder = ferlab("predict", tmp_path, "--model", run)  # all photos that lie in it
    assert folder.code == 2 and "broken.jpg" in folder.err and folder.out == ended.out
    before = (tmp_path / "party.png").read_bytes()
    same = ferlab("predict", tmp_path, "--model", run, "--out", tmp_path)
    assert same.code == 2 and "holds the photos themselves" in same.err
    assert (tmp_path / "party.png").read_bytes() == before
    empty = ferlab("predict", run)
    assert empty.code == 2 and "no photos" in empty.err
    whole = ferlab("predict", tmp_path / "party.png", "--model", run, "--whole")
    assert whole.code == 0 and whole.out.count("face 1 at x 80, y 0, 480 pixels") == 1


@pytest.mark.filterwarnings("ignore:The .* split of")
def test_faces_are_cut_out_into_their_photos_folders(scene: np.ndarray, tmp_path: Path, ferlab: Callable[..., Any]):
    for place in ("train/happy/a.png", "train/sad/a.jpg", "valid/happy/b.png"):
        path = tmp_path / "photos" / place
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(scene).save(path)
    Image.new("L", (200, 200), 128).save(tmp_path / "photos" / "train" / "sad" / "wall.png")
    (tmp_path / "photos" / "broken.jpg").write_bytes(b"no photo")
    command = ("data", "crop", tmp_path / "photos", "--size", 64, "--out")
    cut = ferlab(*command, tmp_path / "faces")
    assert cut.code == 0 and f"3 faces are in {tmp_path / 'faces'}" in cut.out
    assert f"left out: {Path('train', 'sad', 'wall.png')}: no face" in cut.out and "left out: broken.jpg: " in cut.out
    splits = benchmarks.load("folder", tmp_path / "faces")
    assert splits.train.classes == ("happy", "sad") and len(splits.train) == 2 and len(splits.valid) == 1
    face = Image.open(tmp_path / "faces" / "valid" / "happy" / "b.png")
    assert np.array_equal(face, photos.crop_faces(scene, photos.find_faces(scene)[:1], 64)[0])
    (tmp_path / "faces" / "train" / "happy" / "a.png").write_bytes(b"as it was")
    assert ferlab(*command, tmp_path / "faces").out == cut.out  # goes on, and makes no face twice
    assert (tmp_path / "faces" / "train" / "happy" / "a.png").read_bytes() == b"as it was"
    assert "lies in" in ferlab(*command, tmp_path / "photos" / "faces").err
    other = ferlab("data", "crop", tmp_path / "photos", "--size", 48, "--out", tmp_path / "faces")
    assert other.code == 2 and "has 64 pixels a side, not 48: give --size 64, or another --out" in other.err
    assert Image.open(tmp_path / "faces" / "valid" / "happy" / "b.png").width == 64
    (tmp_path / "photos" / "train" / "sad" / "wall.jpg").write_bytes(b"")
    twins = ferlab(*command, tmp_path / "others")
    assert twins.code == 2 and "same name but for its ending" in twins.err and not (tmp_path / "others").exists()
    (tmp_path / "empty").mkdir()
    assert "no photos" in ferlab("data", "crop", tmp_path / "empty", "--out", tmp_path / "others").err
    for name in ("a.HEIC", "b.avif"):
        (tmp_path / "empty" / name).write_bytes(b"of a kind that is not read")
    told = ferlab("data", "crop", tmp_path / "empty", "--out", tmp_path / "others")
    assert told.code == 2 and "There is only a.HEIC and 1 more in" in told.err and "save as JPEG" in told.err
    Image.fromarray(scene).save(tmp_path / "empty" / "c.png")
    with pytest.warns(UserWarning, match="also holds a.HEIC and 1 more, of kinds that are not read"):
        assert ferlab("data", "crop", tmp_path / "empty", "--out", tmp_path / "others").code == 0


def test_the_packaged_recogniser_has_a_card_that_tells_its_accuracy(scene: np.ndarray):
    recogniser = load_pretrained("ferplus")
    probability = recogniser.predict(photos.crop_faces(scene, photos.find_faces(scene)))
    assert probability.shape == (3, 8) and recogniser.classes[:2] == ("neutral", "happiness")
    assert (ASSETS / "ferplus.pt").stat().st_size < 10e6
    card = (ASSETS / "ferplus.md").read_text(encoding="utf-8")
    assert f"{recogniser.config.epochs} epochs" in card and all(f"| {name} |" in card for name in recogniser.classes)
    assert re.search(r"accuracy \| \*\*\d\d\.\d %\*\*", card)


@pytest.mark.parametrize("times", [1, 2])
def test_boxes_are_what_most_detections_agree_on_the_surest_first_in_the_photos_pixels(times, monkeypatch):
    found = np.array([(35, 25, 50, 50), (37, 25, 46, 46), (115, 30, 40, 40), (107, 45, 10, 10)])
    cascade = type("Cascade", (), {"detectMultiScale2": lambda *_, **__: (found, np.array([30, 40, 21, 25]))})
    monkeypatch.setattr(photos, "_detector", lambda name: cascade())
    monkeypatch.setattr(photos, "SEARCHED", 200)
    boxes = photos.find_faces(np.zeros((100 * times, 200 * times), np.uint8))  # with a border of 15 at its smaller size
    inside = np.array([(22, 10, 46), (92, 30, 10), (100, 15, 40)])  # the surest first; of two in one place one
    framed = np.c_[inside[:, :2] - 0.035 * inside[:, 2:], 1.07 * inside[:, 2]]
    assert boxes.tolist() == np.round(framed * times).astype(int).tolist()


def test_a_face_is_cut_out_at_its_box():
    photo = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    assert np.array_equal(photos.crop_faces(photo, np.array([[30, 20, 8]]), 8)[0], photo[20:28, 30:38])
    assert (photos.crop_faces(photo, np.array([[-8, 0, 8]]), 8) == 0).all()  # beyond the edge


def test_a_long_photo_that_was_turned_is_not_taken_for_a_smaller_one(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (100, 400)).save(tmp_path / "turned.jpg", exif=exif)
    photo = photos.read_photo(tmp_path / "turned.jpg")
    assert photo.shape == (100, 400, 3) and photos.shrunk(tmp_path / "turned.jpg", photo) == 1


def test_hidden_files_are_no_photos(tmp_path):  # such as those that macOS leaves beside each file on a stick
    for name in ("a.jpg", "._a.jpg", "in/._b.jpg", "in/b.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert [path.name for path in photos.photos_in(tmp_path, within=True)] == ["a.jpg", "b.jpg"]

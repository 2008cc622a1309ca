"""Faces in photographs: read a photo, find the faces in it, and cut them out as FER2013's were.

    photo = read_photo("party.jpg")
    boxes = find_faces(photo)                                                  # [F, 3]: left, top, side
    ferlab.load_pretrained("ferplus").predict(crop_faces(photo, boxes))        # [F, C]

The detector is OpenCV's Haar cascade (Viola and Jones, CVPR 2001), which comes with its package; where it is not sure,
another of its cascades has to agree. FER2013's faces were cut out with OpenCV's face recogniser too (Goodfellow et al.,
Neural Networks 64, 2015), so its boxes fit them.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ferlab.benchmarks import IMAGE_ENDINGS, MAX_PIXELS, UNREAD_ENDINGS, first_of, plain_picture
from ferlab.errors import FerlabError

SEARCHED = 1024  # pixels of the longer side of what the detector sees
SMALLEST = 0.04  # side of the smallest face that is looked for, as a share of the photo's longer side
BORDER = 0.15  # added around the photo, for a face that fills it
SURE = 20  # detections of one face that need no second opinion
FRAME = 1.07  # side of a face's box over that of the detector's, which was 0.93 of FER+'s valid images


def photos_in(folder: str | Path, within: bool = False) -> list[Path]:
    """The photos in a folder, by name, and ``within`` also those in its folders; hidden files are not seen.

    Warns of kinds that are not read, such as HEIC. Raises FerlabError if there are no photos.
    """
    paths = [path for path in (Path(folder).rglob("*") if within else Path(folder).iterdir())
             if not path.is_dir() and not path.name.startswith(".")]
    found, unread = (sorted(path for path in paths if path.suffix.lower() in endings)
                     for endings in (IMAGE_ENDINGS, UNREAD_ENDINGS))
    if not found and not unread:
        raise FerlabError(f"There are no photos in {folder}: give a folder that holds some, or the photos themselves.")
    if unread:
        some, why = first_of([path.name for path in unread]), "of kinds that are not read: save as JPEG."
        if not found:
            raise FerlabError(f"There is only {some} in {folder}, {why}")
        warnings.warn(f"{folder} also holds {some}, {why}", stacklevel=2)
    return found


def read_photo(path: str | Path) -> np.ndarray:
    """uint8 [H, W, 3], upright (by its EXIF orientation), of a photo in any format and colours that Pillow reads.

    A JPEG of more than ``MAX_PIXELS`` is read at a half, a quarter or an eighth of its size. Raises FerlabError for
    what is no image, and for one of too many pixels all the same.
    """
    path = Path(path)
    if path.is_dir():
        raise FerlabError(f"{path} is a folder: give one of the photos in it.")
    try:
        with _opened(path) as picture:
            width, height = picture.size
            if width * height > MAX_PIXELS:
                part = next((n for n in (2, 4, 8) if (width // n) * (height // n) <= MAX_PIXELS), 8)
                picture.draft("RGB", (width // part, height // part))
            return np.asarray(plain_picture(picture, "RGB"), dtype=np.uint8)
    except FileNotFoundError as error:
        raise FerlabError(f"There is no photo at {path}: check its name.") from error
    except Exception as error:  # whatever a broken file makes Pillow raise
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise FerlabError(f"{path} cannot be read as a photo ({reason}): is it whole? Otherwise save it again as "
                          "JPEG or PNG, smaller if it is very large.") from error


def shrunk(path: str | Path, photo: np.ndarray) -> int:
    """How many times smaller than the file tells ``read_photo`` made the photo: 1, 2, 4 or 8."""
    with _opened(path) as picture:
        return round(max(picture.size) / max(photo.shape[:2]))


@contextmanager
def _opened(path: str | Path) -> Iterator[Image.Image]:
    """A photo that is not decoded yet, however large; Pillow would refuse what ``MAX_PIXELS`` is the limit of here."""
    limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
    try:
        picture = Image.open(path)
    finally:
        Image.MAX_IMAGE_PIXELS = limit
    with picture:
        yield picture


def find_faces(photo: np.ndarray) -> np.ndarray:
    """int [F, 3]: left, top and side, in pixels, of the square boxes of faces that look at the camera, the surest,
    which most detections agree on, first.

    photo: uint8 [H, W] or [H, W, 3]. A box may reach over the photo's edge. Faces turned to the side by more than about
    30 degrees or tilted by more than about 20 are not found.
    """
    import cv2

    scale = min(1.0, SEARCHED / max(photo.shape[:2]))
    size = tuple(max(1, round(n * scale)) for n in photo.shape[1::-1])
    grey = np.asarray(Image.fromarray(photo).convert("L").resize(size, Image.Resampling.BOX))
    border = round(BORDER * min(size))
    grey = cv2.copyMakeBorder(grey, border, border, border, border, cv2.BORDER_REPLICATE)
    least = max(20, round(SMALLEST * max(size)))
    found, votes = _detector("default").detectMultiScale2(grey, 1.05, minNeighbors=6, minSize=(least, least))
    found = [box for box, count in sorted(zip(found, votes, strict=True), key=lambda pair: (-pair[1], *pair[0]))
             if count >= SURE or _second_opinion(grey, box)]
    kept: list[np.ndarray] = []  # one box a place
    for x, y, side, _ in found:
        gaps = [max(abs(x - a + (side - c) / 2), abs(y - b + (side - c) / 2)) / max(side, c) for a, b, c in kept]
        if min(gaps, default=1) > 0.5:  # its middle lies outside of the others
            kept.append(np.array([x, y, side], dtype=np.float64))
    boxes = np.array(kept).reshape(-1, 3) - [border, border, 0]
    boxes[:, :2] -= (FRAME - 1) / 2 * boxes[:, 2:]
    boxes[:, 2] *= FRAME
    return np.round(boxes / scale).astype(np.int64)


def crop_faces(photo: np.ndarray, boxes: np.ndarray, size: int = 48) -> np.ndarray:
    """uint8 [F, size, size, 3]: the photo, uint8 [H, W] or [H, W, 3], within each box of ``find_faces``, int [F, 3]:
    left, top, side in pixels; black outside of the photo."""
    picture = Image.fromarray(photo).convert("RGB")
    faces = [np.asarray(picture.crop((x, y, x + side, y + side)).resize((size, size), Image.Resampling.LANCZOS))
             for x, y, side in np.asarray(boxes).tolist()]
    return np.stack(faces) if faces else np.zeros((0, size, size, 3), np.uint8)


def _second_opinion(grey: np.ndarray, box: np.ndarray) -> bool:
    """Whether another cascade, too, finds a face about as large in and around the box (left, top, side, side)."""
    x, y, side, _ = box
    rim = side // 4
    around = grey[max(0, y - rim) : y + side + rim, max(0, x - rim) : x + side + rim]
    least = round(0.6 * side)
    return len(_detector("alt2").detectMultiScale(around, 1.05, minNeighbors=2, minSize=(least, least))) > 0


@lru_cache(maxsize=2)
def _detector(name: str) -> Any:
    import cv2
    import cv2.data

    text = Path(cv2.data.haarcascades, f"haarcascade_frontalface_{name}.xml").read_text(encoding="utf-8")
    storage = cv2.FileStorage(text, cv2.FILE_STORAGE_READ | cv2.FILE_STORAGE_MEMORY)  # on Windows OpenCV itself opens
    cascade = cv2.CascadeClassifier()                                                 # no path beyond ASCII
    cascade.read(storage.getFirstTopLevelNode())
    return cascade

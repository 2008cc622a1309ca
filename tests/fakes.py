"""Small fake data sets in every official layout, made by the tests when they run."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

FER_VOTES = ("neutral", "happiness", "surprise", "sadness", "anger", "disgust", "fear", "contempt", "unknown", "NF")
FER_HEADER = "Usage,Image name," + ",".join(FER_VOTES)
FER_PARTS = {"train": ("Training", "FER2013Train"), "valid": ("PublicTest", "FER2013Valid"),
             "test": ("PrivateTest", "FER2013Test")}
FER2013_CODE = (6, 3, 5, 4, 0, 1, 2)  # FER2013's code of neutral happiness surprise sadness anger disgust fear
SFEW = ("Angry", "Disgust", "Fear", "Happy", "Neutral", "Sad", "Surprise")


def face(number: int, size: int | tuple[int, int] = 48, mode: str = "L") -> Image.Image:
    """A picture that differs from number to number."""
    width, height = (size, size) if isinstance(size, int) else size
    pixels = np.random.default_rng(number).integers(256, size=(height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


def save(path: Path, number: int, size: int | tuple[int, int] = 48, mode: str = "L") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    face(number, size, mode).save(path)
    return path


def zipped(folder: Path, inside: str = "") -> Path:
    """A zip of all files of ``folder``, below the folder ``inside`` of the zip."""
    target = folder.with_name(folder.name + ".zip")
    with zipfile.ZipFile(target, "w") as archive:
        for path in sorted(folder.rglob("*")):
            archive.write(path, Path(inside) / path.relative_to(folder))
    return target


def votes(**counts: int) -> list[int]:
    """The ten columns of fer2013new.csv: votes(happiness=7, neutral=3)."""
    return [counts.get(name, 0) for name in FER_VOTES]


def fer(root: Path, parts: Sequence[str] = ("train", "valid", "test"), per_class: int = 2, kaggle: bool = False,
        rows: Mapping[str, Sequence[Sequence[int]]] | None = None, images: Sequence[str] | None = None) -> Path:
    """FER+ (and FER2013) with ``rows`` of votes a part, or ``per_class`` clear faces of each class.

    In the original annotation the first face of each part is angry, the others are what FER+ says, contempt neutral.
    ``images``: the parts whose pictures are there; by default all. ``kaggle``: as fer2013.csv instead of folders.
    """
    root.mkdir(parents=True, exist_ok=True)
    clear = [[9 if c == label else int(c == 8) for c in range(10)] for _ in range(per_class) for label in range(8)]
    lists, emotions, pixels, number = [FER_HEADER], ["Image name,emotion"], ["emotion,pixels,Usage"], 0
    for part in parts:
        usage, folder = FER_PARTS[part]
        for first, row in enumerate((rows or {}).get(part, clear)):
            name = f"fer{number:07d}.png"
            lists.append(",".join([usage, name, *map(str, row)]))
            label = int(np.argmax(row))
            emotion = 0 if first == 0 else FER2013_CODE[label] if label < 7 else 6
            emotions.append(f"{name},{emotion}")
            if kaggle:
                pixels.append(f"{emotion},{' '.join(map(str, np.asarray(face(number)).ravel()))},{usage}")
            elif part in (parts if images is None else images):
                save(root / folder / name, number)
            number += 1
    (root / "fer2013new.csv").write_text("\n".join(lists) + "\n")
    if kaggle:
        (root / "fer2013.csv").write_text("\n".join(pixels) + "\n")
    else:
        (root / "fer2013_emotion.csv").write_text("\n".join(emotions) + "\n")
    return root


def rafdb(root: Path, train: int = 14, test: int = 7) -> Path:
    """RAF-DB's basic part; face number i (from 1) of each part has the label (i - 1) % 7 + 1."""
    lines = []
    for part, count, digits in (("train", train, 5), ("test", test, 4)):
        for number in range(1, count + 1):
            stem = f"{part}_{number:0{digits}d}"
            save(root / "Image" / "aligned" / f"{stem}_aligned.jpg", number, 100, "RGB")
            lines.append(f"{stem}.jpg {(number - 1) % 7 + 1}")
    (root / "EmoLabel").mkdir(parents=True, exist_ok=True)
    (root / "EmoLabel" / "list_patition_label.txt").write_text("\n".join(lines) + "\n")
    return root


def affectnet(root: Path, train: int = 16, valid: int = 8) -> Path:
    """The 2021 release; image number i has the label i % 8."""
    for part, count in (("train_set", train), ("val_set", valid)):
        (root / part / "annotations").mkdir(parents=True, exist_ok=True)
        for number in range(count):
            save(root / part / "images" / f"{number}.jpg", number, 224, "RGB")
            for kind in ("exp", "aro", "val"):
                np.save(root / part / "annotations" / f"{number}_{kind}.npy", np.array(str(number % 8)))
    return root


def affectnet_csv(root: Path, train: int = 22, valid: int = 8, images: str = "Manually_Annotated_Images",
                  headless: bool = True) -> Path:
    """The older release; image number i has the expression i % 11, and a white face in the left half of a photo."""
    header = "subDirectory_filePath,face_x,face_y,face_width,face_height,facial_landmarks,expression,valence,arousal"
    for part, count in (("training", train), ("validation", valid)):
        lines = [] if headless and part == "validation" else [header]
        for number in range(count):
            place = f"{number % 3}/{part}{number}.jpg"
            photo = Image.new("RGB", (200, 100))
            photo.paste((255, 255, 255), (0, 0, 100, 100))
            (root / images / place).parent.mkdir(parents=True, exist_ok=True)
            photo.save(root / images / place)
            lines.append(f"{place},10,10,80,80,1;2;3,{number % 11},0.5,-0.5")
        (root / f"{part}.csv").write_text("\n".join(lines) + "\n")
    return root


def folders(root: Path, parts: Sequence[str] = ("train", "valid", "test"), kinds: Sequence[str] = ("cross", "merry"),
            per_class: int = 2, size: int | tuple[int, int] = 64) -> Path:
    """<split>/<class>/<number>.png"""
    for i, part in enumerate(parts):
        for j, kind in enumerate(kinds):
            for number in range(per_class):
                save(root / part / kind / f"{number}.png", 100 * i + 10 * j + number, size, "RGB")
    return root


def sfew(root: Path, per_class: int = 2) -> Path:
    """SFEW 2.0: Train/<Emotion>/*.png and Val/<Emotion>/*.png, aligned faces of 143 x 181."""
    return folders(root, ("Train", "Val"), SFEW, per_class, (143, 181))

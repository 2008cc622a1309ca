import errno
import io
import itertools
import json
import os
import shutil
import struct
import warnings
import zipfile
import zlib
from multiprocessing import Process
from pathlib import Path

import fakes
import numpy as np
import pytest
from PIL import Image

from ferlab import benchmarks
from ferlab.benchmarks import COMMON_CLASSES, ferplus_labels
from ferlab.errors import FerlabError

REAL = Path(__file__).resolve().parents[2] / "shared/data/ferplus.zip"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """Every test has its own cache, and nothing but the data sets in tmp_path / 'set'."""
    monkeypatch.setenv("FERLAB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "packs"


@pytest.fixture
def root(tmp_path):
    return tmp_path / "set"


def lengths(splits):
    return [None if faces is None else len(faces) for faces in splits]


# ---------------------------------------------------------------------------------------------------------- FER+

def test_microsofts_majority_rule():
    votes = np.array([
        fakes.votes(happiness=6, neutral=4),
        fakes.votes(happiness=5, neutral=5),              # no class has more than half
        fakes.votes(happiness=4, neutral=3, fear=1, anger=1, sadness=1),  # single votes do not count: 4 of 7
        fakes.votes(happiness=3, neutral=3, fear=2, anger=2),
        fakes.votes(unknown=6, happiness=4),
        fakes.votes(NF=10),
        [1] * 10,                                         # nothing but single votes
        fakes.votes(contempt=8, unknown=2),
    ])
    assert ferplus_labels(votes, "majority").tolist() == [1, -1, 1, -1, -1, -1, -1, 7]
    assert ferplus_labels(votes, "argmax").tolist() == [1, 0, 1, 0, -1, -1, 0, 7]


@pytest.mark.parametrize("form", ["folder", "zip", "zip with a folder", "kaggle", "kaggle zip"])
def test_ferplus_in_every_form(root, form):
    fakes.fer(root, kaggle="kaggle" in form)
    place = fakes.zipped(root, "FERPlus" if form == "zip with a folder" else "") if "zip" in form else root
    splits = benchmarks.load("ferplus", place)
    assert lengths(splits) == [16, 16, 16]
    for number, (split, faces) in enumerate(zip(("train", "valid", "test"), splits)):
        assert (faces.dataset, faces.split, faces.rule, faces.classes) == ("ferplus", split, "majority", COMMON_CLASSES)
        assert faces.images.shape == (16, 48, 48) and faces.images.dtype == np.uint8
        assert faces.labels.tolist() == [*range(8), *range(8)] and faces.labels.dtype == np.int64
        assert (faces.truth == faces.labels).all() and faces.noise_rate == 0
        assert faces.votes.shape == (16, 8) and (faces.votes.argmax(1) == faces.labels).all()
        assert (faces.images[3] == np.asarray(fakes.face(16 * number + 3))).all()
        assert faces.names[3] == f"fer{16 * number + 3:07d}.png"


@pytest.mark.parametrize("kaggle", [False, True])
def test_ferplus_rules_choose_faces_and_labels(root, kaggle):
    rows = {"train": [fakes.votes(happiness=6, neutral=4), fakes.votes(happiness=5, neutral=4, fear=1),
                      fakes.votes(neutral=4, sadness=4, NF=2), fakes.votes(unknown=6, happiness=4), fakes.votes(NF=10)]}
    fakes.fer(root, ["train"], rows=rows, kaggle=kaggle)
    with pytest.warns(UserWarning, match="no face of"):
        majority, argmax, soft = (benchmarks.load("ferplus", root, rule=rule).train
                                  for rule in ("majority", "argmax", "distribution"))
    assert majority.labels.tolist() == [1, 1] and argmax.labels.tolist() == soft.labels.tolist() == [1, 1, 0]
    assert majority.label_distribution is None and argmax.label_distribution is None
    assert soft.label_distribution[2].tolist() == [0.5, 0, 0, 0.5, 0, 0, 0, 0]
    assert (argmax.images[2] == np.asarray(fakes.face(2))).all()


def test_fer2013_has_the_original_labels_and_ferplus_as_truth(root):
    fakes.fer(root)
    for splits in (benchmarks.load("fer2013", root), benchmarks.load("fer2013", fakes.zipped(root))):
        assert lengths(splits) == [14, 14, 14]  # no contempt
        for faces in splits:
            assert faces.classes == COMMON_CLASSES[:7] and faces.votes.shape == (14, 7)
            assert faces.truth.tolist() == [*range(7), *range(7)]
            assert faces.labels.tolist() == [4, 1, 2, 3, 4, 5, 6, *range(7)]
            assert faces.noise_rate == pytest.approx(1 / 14)


def test_fer2013_from_kaggle_and_with_blank_annotations(root):
    fakes.fer(root, kaggle=True)
    assert benchmarks.load("fer2013", root).train.labels.tolist() == [4, 1, 2, 3, 4, 5, 6, *range(7)]
    other = fakes.fer(root.with_name("other"))
    listing = other / "fer2013_emotion.csv"
    listing.write_text(listing.read_text().replace("fer0000001.png,3", "fer0000001.png,"))
    train = benchmarks.load("fer2013", other).train
    assert len(train) == 13 and "fer0000001.png" not in train.names


def test_removed_images_of_the_official_list(root):
    """Rows without an image name were taken out by FER+'s makers; Kaggle's pixels keep their rows."""
    for kaggle in (False, True):
        place = fakes.fer(root / str(kaggle), kaggle=kaggle)
        listing = place / "fer2013new.csv"
        listing.write_text(listing.read_text().replace("fer0000001.png", ""))
        train = benchmarks.load("ferplus", place).train
        assert len(train) == 15 and (train.images[1] == np.asarray(fakes.face(2))).all()


def test_a_name_that_stands_twice_counts_once_unless_its_votes_differ(root):
    fakes.fer(root)
    listing = root / "fer2013new.csv"
    lines = listing.read_text().splitlines()
    listing.write_text("\n".join([*lines, lines[1]]))
    assert lengths(benchmarks.load("ferplus", root)) == [16, 16, 16]
    listing.write_text("\n".join([*lines, lines[2].replace("fer0000001", "fer0000000")]))
    with pytest.raises(FerlabError, match=r"fer0000000\.png twice with different labels"):
        benchmarks.load("ferplus", root)


@pytest.mark.parametrize("parts", [["test"], ["train", "valid", "test"]])
def test_only_the_test_images_are_there(root, parts):
    fakes.fer(root, parts, images=["test"])
    for place in (root, fakes.zipped(root)):
        assert lengths(benchmarks.load("ferplus", place)) == [None, None, 16]
        assert lengths(benchmarks.load("fer2013", place)) == [None, None, 14]
        with pytest.raises(FerlabError, match="holds no train faces"):
            benchmarks.load("ferplus", place, splits=["train"])


def test_fer_faces_of_another_size_are_resized(root):
    fakes.fer(root)
    fakes.save(root / "FER2013Train/fer0000002.png", 7, 96, "RGB")
    assert benchmarks.load("ferplus", root).train.images.shape == (16, 48, 48)
    assert benchmarks.load("ferplus", root, size=64).train.images.shape == (16, 64, 64)


def edit(path, old, new, count=1):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, count))


@pytest.mark.parametrize(("spoil", "said"), [
    (lambda root: edit(root / "fer2013new.csv", "sadness", "grief"), "lacks the column sadness"),
    (lambda root: edit(root / "fer2013new.csv", "Training", "Trainer"), "'Trainer'"),
    (lambda root: edit(root / "fer2013new.csv", ".png,9,", ".png,-9,"), r"line 2: neutral is '-9'"),
    (lambda root: edit(root / "fer2013new.csv", ".png,9,", ".png,many,"), r"line 2: neutral is 'many'"),
    (lambda root: (root / "fer2013new.csv").unlink(), r"lacks fer2013new\.csv"),
    (lambda root: (root / "fer2013new.csv").write_bytes(b"\xff\xfe\x00\x01,\xff"), "cannot be read as a CSV"),
    (lambda root: (root / "fer2013new.csv").write_text(""), "cannot be read as a CSV"),
    (lambda root: (root / "fer2013new.csv").write_text(fakes.FER_HEADER + "\n"), "lists no image with Usage Training"),
    (lambda root: (root / "fer2013_emotion.csv").unlink(), "needs the original annotation"),
    (lambda root: edit(root / "fer2013_emotion.csv", ".png,0", ".png,7"), r"line 2: emotion is '7'"),
    (lambda root: edit(root / "fer2013_emotion.csv", "fer0000001.png,3", "fer0000000.png,3"), "twice with different"),
    (lambda root: (root / "FER2013Train/fer0000003.png").unlink(),
     r"1 of 14 train images in .* are missing \(first: FER2013Train/fer0000003\.png\); put them there"),
    (lambda root: [(root / "FER2013Train").rename(root / "x"), (root / "FER2013Valid").rename(root / "FER2013Train"),
                   (root / "x").rename(root / "FER2013Valid")], "folders mixed up"),
    (lambda root: (root / "FER2013Train/fer0000003.png").write_text("no image"),
     r"1 of 14 train images in .* cannot be read \(first: FER2013Train/fer0000003\.png: "
     r"cannot identify image file\); replace.*--skip-bad"),
])
def test_what_is_wrong_with_fer_is_told(root, spoil, said):
    fakes.fer(root)
    spoil(root)
    with pytest.raises(FerlabError, match=said) as error:
        benchmarks.load("fer2013", root)
    assert str(error.value).count("\n") == 0


def test_kaggle_files_that_do_not_belong_together(root):
    fakes.fer(root, kaggle=True)
    lines = (root / "fer2013.csv").read_text().splitlines()
    (root / "fer2013.csv").write_text("\n".join(lines[:-1]))
    with pytest.raises(FerlabError, match="do not belong together"):
        benchmarks.load("fer2013", root)
    (root / "fer2013.csv").write_text("\n".join([*lines[:3], "0,1 2 3,Training", *lines[4:]]))
    with pytest.raises(FerlabError, match=r"cannot be read \(first: fer0000002.png: line 4 of fer2013.csv"):
        benchmarks.load("ferplus", root)
    assert benchmarks.load("ferplus", root, skip_bad=True).train.skipped == ("fer0000002.png",)
    (root / "fer2013.csv").write_text("\n".join(["emotion,pixel,Usage", *lines[1:]]))
    with pytest.raises(FerlabError, match="lacks the column pixels"):
        benchmarks.load("ferplus", root, size=32)


# -------------------------------------------------------------------------------------------------- other layouts

def test_rafdb(root):
    fakes.rafdb(root / "basic")
    for place in (root, root / "basic", fakes.zipped(root / "basic")):
        splits = benchmarks.load("rafdb", place)
        assert lengths(splits) == [14, None, 7]
        assert splits.train.classes == ("surprise", "fear", "disgust", "happiness", "sadness", "anger", "neutral")
        assert splits.train.labels.tolist() == [*range(7)] * 2 and splits.train.truth is None
        assert splits.test.images.shape == (7, 100, 100, 3) and splits.test.names[0] == "test_0001_aligned.jpg"
    common = splits.test.reorder(COMMON_CLASSES)
    assert [common.classes[label] for label in common.labels] == list(splits.test.classes)


def test_rafdb_holds_out_faces_to_validate_on(root):
    fakes.rafdb(root, train=70)
    splits = benchmarks.load("rafdb", root, holdout=0.2, holdout_seed=1)
    assert lengths(splits) == [56, 14, 7] and splits.valid.split == "valid"
    assert splits.valid.class_counts.tolist() == [2] * 7
    assert not set(splits.valid.names) & set(splits.train.names)
    again, other = (benchmarks.load("rafdb", root, holdout=0.2, holdout_seed=seed).valid for seed in (1, 2))
    assert (again.names == splits.valid.names).all() and (other.names != splits.valid.names).any()
    assert lengths(benchmarks.load("rafdb", root, holdout=0.2, splits=["valid"])) == [None, 14, None]
    with pytest.raises(FerlabError, match="leaves a split empty"):
        benchmarks.load("rafdb", root, holdout=0.001)


def test_at_most_so_many_faces_of_a_split(tmp_path):
    root = fakes.rafdb(tmp_path)
    whole = benchmarks.load("rafdb", root)
    few = benchmarks.load("rafdb", root, train=5)
    other = benchmarks.load("rafdb", root, train=5, seed=1)
    assert lengths(few) == [5, None, 7] and lengths(benchmarks.load("rafdb", root, train=99)) == lengths(whole)
    assert list(few.train.names) == sorted(few.train.names) != list(other.train.names)
    rows = np.flatnonzero(np.isin(whole.train.names, few.train.names))
    assert (few.train.images == whole.train.images[rows]).all() and (few.train.labels == whole.train.labels[rows]).all()
    noisy = benchmarks.load("rafdb", root, train=5, noise="symmetric", noise_rate=0.4).train
    assert (noisy.truth == few.train.labels).all() and np.isclose(noisy.noise_rate, 0.4)


@pytest.mark.parametrize(("line", "said"), [
    ("train_00001.jpg 8", "line 1: 'train_00001.jpg 8'"), ("train_00001.jpg 0", "line 1"),
    ("train_00001.jpg", "line 1"), ("other_1.jpg 3", "line 1"), ("train_00002.jpg 5", "twice with different labels"),
    ("train_00099.jpg 5", "1 of 14 train images"),
])
def test_rafdb_list_with_a_wrong_line(root, line, said):
    fakes.rafdb(root)
    edit(root / "EmoLabel/list_patition_label.txt", "train_00001.jpg 1", line)
    with pytest.raises(FerlabError, match=said):
        benchmarks.load("rafdb", root)


def test_rafdb_in_part(root):
    fakes.rafdb(root)
    for path in (root / "Image/aligned").glob("train_*"):
        path.unlink()
    assert lengths(benchmarks.load("rafdb", root)) == [None, None, 7]
    for path in (root / "Image/aligned").glob("test_*"):
        path.rename(path.with_name(path.name.replace("_aligned", "")))
    with pytest.raises(FerlabError, match=r"none of the 21 images .* must be called"):
        benchmarks.load("rafdb", root)
    shutil.rmtree(root / "Image/aligned")
    (root / "Image/aligned.zip").touch()
    with pytest.raises(FerlabError, match=r"unpack Image/aligned.zip"):
        benchmarks.load("rafdb", root)


def test_affectnet_of_2021(root):
    fakes.affectnet(root)
    eight, seven = benchmarks.load("affectnet8", root), benchmarks.load("affectnet7", root)
    assert lengths(eight) == [16, 8, None] and lengths(seven) == [14, 7, None]
    assert seven.train.classes == ("neutral", "happiness", "sadness", "surprise", "fear", "disgust", "anger")
    assert eight.train.classes == (*seven.train.classes, "contempt")
    assert eight.train.labels.tolist() == [*range(8)] * 2 and seven.valid.labels.tolist() == [*range(7)]
    assert eight.train.names.tolist() == [f"train_set/images/{i}.jpg" for i in range(16)]
    assert eight.train.images.shape == (16, 112, 112, 3)
    assert (seven.train.images[7] == eight.train.images[8]).all()
    assert lengths(benchmarks.load("affectnet8", fakes.zipped(root), splits=["valid"])) == [None, 8, None]
    held = benchmarks.load("affectnet8", root, holdout=0.5)
    assert lengths(held) == [8, 8, 8] and held.test.split == "test" and (held.test.names == eight.valid.names).all()


@pytest.mark.parametrize("damage", [b"", b"noise" * 40, None])
def test_affectnet_labels_that_were_kept_and_are_damaged_are_read_anew(root, cache, damage):
    fakes.affectnet(root)
    labels = benchmarks.load("affectnet8", root).train.labels
    for kept in cache.glob("affectnet-*-labels-*.npy"):
        kept.write_bytes(kept.read_bytes()[:130] if damage is None else damage)
    assert (benchmarks.load("affectnet8", root).train.labels == labels).all()


def test_affectnet_annotations_that_are_of_no_use(root):
    fakes.affectnet(root)
    notes = root / "train_set/annotations"
    np.save(notes / "3_exp.npy", np.array({"label": 3}, dtype=object), allow_pickle=True)
    with pytest.raises(FerlabError, match=r"1 of 16 .*3_exp.npy: unreadable \(.*pickle"):
        benchmarks.load("affectnet8", root)
    np.save(notes / "4_exp.npy", np.array("8"))
    (notes / "5_exp.npy").unlink()
    (notes / "6_exp.npy").write_bytes(b"\x93NUMPY")
    (root / "train_set/images/7.jpg").unlink()
    with pytest.raises(FerlabError, match="4 of 16"):
        benchmarks.load("affectnet8", root)
    train = benchmarks.load("affectnet8", root, skip_bad=True).train
    assert len(train) == 11 and sorted(train.skipped) == [f"train_set/images/{i}.jpg" for i in range(3, 8)]
    shutil.rmtree(notes)
    with pytest.raises(FerlabError, match="one of them is empty or missing"):
        benchmarks.load("affectnet8", root)


@pytest.mark.parametrize("images", ["Manually_Annotated_Images", "Manually_Annotated/Manually_Annotated_Images", "."])
def test_affectnet_as_csv(root, images):
    fakes.affectnet_csv(root, images=images)
    splits = benchmarks.load("affectnet8", root)
    assert lengths(splits) == [16, 8, None]
    assert splits.train.labels.tolist() == [*range(8)] * 2
    assert splits.train.images.shape == (16, 112, 112, 3) and splits.train.images.min() > 200  # cut to the white face
    assert lengths(benchmarks.load("affectnet7", root)) == [14, 7, None]


def test_affectnet_csv_that_is_wrong(root):
    fakes.affectnet_csv(root)
    edit(root / "validation.csv", "1;2;3,0,", "1;2;3,11,")
    with pytest.raises(FerlabError, match=r"validation.csv, line 1: expression is '11'"):
        benchmarks.load("affectnet8", root)
    edit(root / "validation.csv", "1;2;3,11,", "1;2;3,0,")
    edit(root / "training.csv", ",10,10,80,80,", ",300,10,80,80,")
    with pytest.raises(FerlabError, match=r"face box \(300, 10, 380, 90\) does not lie in the image"):
        benchmarks.load("affectnet8", root)
    edit(root / "training.csv", "face_width", "width")
    with pytest.raises(FerlabError, match="lacks the column face_width"):
        benchmarks.load("affectnet8", root)


def test_sfew(root):
    fakes.sfew(root)
    (root / "Test/Test_Aligned_Faces").mkdir(parents=True)  # the official test faces have no labels
    splits = benchmarks.load("sfew", root)
    assert lengths(splits) == [14, 14, None]
    assert splits.train.classes == ("anger", "disgust", "fear", "happiness", "neutral", "sadness", "surprise")
    assert splits.train.labels.tolist() == np.repeat(range(7), 2).tolist()
    assert splits.valid.images.shape == (14, 112, 112, 3) and splits.valid.names[0] == "Val/Angry/0.png"
    (root / "Val/Bored").mkdir()
    with pytest.raises(FerlabError, match="has a folder Bored"):
        benchmarks.load("sfew", root)


def test_folder(root):
    fakes.folders(root, ("Train", "val", "test"))
    (root / "Train/merry/Thumbs.db").write_text("not a face")
    (root / "Train/.hidden").mkdir()
    splits = benchmarks.load("folder", root, size=32)
    assert lengths(splits) == [4, 4, 4] and splits.train.classes == ("cross", "merry")
    assert splits.valid.labels.tolist() == [0, 0, 1, 1] and splits.test.images.shape == (4, 32, 32, 3)
    assert lengths(benchmarks.load("folder", fakes.zipped(root))) == [4, 4, 4]
    (root / "valid/merry").mkdir(parents=True)
    with pytest.raises(FerlabError, match="has both val and valid"):
        benchmarks.load("folder", root)


def test_folders_below_a_class_are_told(root):
    fakes.folders(root, ["train"])
    (root / "train/merry/more").mkdir()
    with pytest.warns(UserWarning, match="train/merry/more is a folder in a class's folder, and passed over"):
        assert lengths(benchmarks.load("folder", root, size=32)) == [4, None, None]


def test_images_that_are_passed_over_and_classes_called_nearly_alike_are_told(root):
    fakes.folders(root, ["train"], kinds=["Cross", "cross", "merry"])
    (root / "train/merry/me.HEIC").write_bytes(b"of a kind that is not read")
    (root / "train/loose.png").write_bytes((root / "train/merry/0.png").read_bytes())
    with pytest.warns(UserWarning) as told:
        assert lengths(benchmarks.load("folder", root, size=32)) == [6, None, None]
    text = "\n".join(str(warning.message) for warning in told)
    assert "two classes called 'Cross' and 'cross'" in text
    assert "train/loose.png is in no class's folder" in text
    assert "train/merry/me.HEIC is of a kind that is not read" in text and len(told) == 3


def test_names_are_of_one_split(root):
    splits = benchmarks.load("folder", fakes.folders(root), size=32)
    names = [name for faces in splits for name in faces.names.tolist()]
    assert len(set(names)) == len(names) == 12 and names[0] == "train/cross/0.png"


def test_images_of_a_split_need_folders_of_classes(root):
    fakes.folders(root)
    for image in (root / "test" / "cross").iterdir():
        shutil.move(image, root / "test")
    for kind in ("cross", "merry"):
        shutil.rmtree(root / "test" / kind)
    with pytest.raises(FerlabError, match="/test has no folder for each class: put its images into test/<class>/"):
        benchmarks.load("folder", root)
    for part in ("train", "valid"):  # no part has: they are no classes themselves
        shutil.rmtree(root / part)
    with pytest.raises(FerlabError, match="no folder for each class"):
        benchmarks.load("folder", root)


def test_folders_of_classes_alone_are_training_faces(root):
    fakes.folders(root, ["train"])
    for each in (root / "train", fakes.zipped(root / "train")):
        splits = benchmarks.load("folder", each, size=32)
        assert lengths(splits) == [4, None, None] and splits.train.classes == ("cross", "merry")
    assert splits.train.names[0].startswith("cross/")
    with pytest.raises(FerlabError, match="has none of train"):
        benchmarks.load("folder", root / "train" / "merry")


def test_rendered_faces_have_no_root(root):
    with pytest.raises(FerlabError, match="rendered takes no root"):
        benchmarks.load("rendered", root)


def test_one_face_a_class_an_empty_class_and_an_empty_split(root):
    fakes.folders(root, ["train"], per_class=1)
    assert lengths(benchmarks.load("folder", root)) == [2, None, None]
    (root / "train/calm").mkdir()
    with pytest.warns(UserWarning, match="train split of folder has no face of calm"):
        assert benchmarks.load("folder", root).train.class_counts.tolist() == [0, 1, 1]
    (root / "test/merry").mkdir(parents=True)
    with pytest.raises(FerlabError, match="test split of folder .* is empty"):
        benchmarks.load("folder", root)


# ------------------------------------------------------------------------------------------------------ arguments

@pytest.mark.parametrize(("arguments", "options", "said"), [
    (["ferplu"], {}, "rendered, ferplus, fer2013, rafdb, affectnet7, affectnet8, sfew, folder"),
    (["ferplus"], {}, "needs root"),
    (["ferplus", "."], {"rule": "vote"}, "majority, argmax, distribution"),
    (["rafdb", "."], {"rule": "argmax"}, "leave it out for rafdb"),
    (["rafdb", "."], {"size": 4}, "8 to 1024"),
    (["rafdb", "."], {"size": "big"}, "8 to 1024"),
    (["rafdb", "."], {"splits": "train"}, "splits must be"),
    (["rafdb", "."], {"splits": ["dev"]}, "splits must be"),
    (["rafdb", "."], {"splits": []}, "splits must be"),
    (["rafdb", "."], {"noise": "uniform", "noise_rate": 0.2}, "symmetric, asymmetric, annotators"),
    (["rafdb", "."], {"noise": "symmetric", "noise_rate": 2}, "between 0 and 1"),
    (["rafdb", "."], {"holdout": 1}, "0 to below 1"),
    (["rafdb", "."], {"colour": True}, "takes no option colour"),
    (["rendered"], {"colour": True}, "takes no option colour"),
    (["rafdb", "."], {"workers": 2}, "takes no option workers"),
    (["rafdb", "."], {"train": 0}, "rafdb: train=0 is not a whole number from 1 up"),
    (["rafdb", "."], {"valid": 0.5}, "rafdb: valid=0.5 is not a whole number from 1 up"),
    (["rafdb", "."], {"noise_rate": 0.2}, "needs a kind of noise"),
])
def test_wrong_arguments(arguments, options, said):
    with pytest.raises(FerlabError, match=said):
        benchmarks.load(*arguments, **options)


@pytest.mark.parametrize("name", [name for name in benchmarks.NAMES if name != "rendered"])
def test_a_root_that_is_missing_empty_or_a_file_shows_the_layout(root, name):
    layout = benchmarks.layout(name)
    for said in ("There is no", "has none of"):
        with pytest.raises(FerlabError, match=said) as error:
            benchmarks.load(name, root)
        assert layout in str(error.value)
        root.mkdir(exist_ok=True)
    (root / "notes.txt").write_text("no data")
    with pytest.raises(FerlabError, match="is a file") as error:
        benchmarks.load(name, root / "notes.txt")
    assert layout in str(error.value)


def test_layout_of_every_benchmark():
    assert all(benchmarks.layout(name) for name in benchmarks.NAMES)
    with pytest.raises(FerlabError, match="choose one of"):
        benchmarks.layout("jaffe")


def test_noise_goes_to_the_training_faces_only(root):
    fakes.fer(root, per_class=10)
    splits = benchmarks.load("ferplus", root, noise="symmetric", noise_rate=0.25, noise_seed=4)
    assert splits.train.noise_rate == 0.25 and splits.train.noise == "symmetric 25 % (achieved 25.0 %, seed 4)"
    assert splits.valid.noise_rate == splits.test.noise_rate == 0


def test_rendered_is_left_to_its_module(monkeypatch):
    import sys
    import types

    import ferlab
    from ferlab.data import FaceSet, Splits

    asked = {}

    def load(**options):
        asked.update(options)
        faces = FaceSet(np.zeros((10, 8, 8, 3), np.uint8), np.arange(10) % 2, ("a", "b"), truth=np.arange(10) % 2)
        return Splits(faces, faces, faces)

    module = types.ModuleType("ferlab.rendered")
    module.load = load
    monkeypatch.setitem(sys.modules, "ferlab.rendered", module)
    monkeypatch.setattr(ferlab, "rendered", module, raising=False)
    splits = benchmarks.load("rendered", size=32, train=10, noise="symmetric", noise_rate=0.5, splits=["train", "test"])
    assert (asked["size"], asked["train"]) == (32, 10)
    assert splits.train.noise_rate == 0.5 and splits.valid is None and splits.test.noise_rate == 0
    assert benchmarks.pack("rendered", train=10) == {}


# ---------------------------------------------------------------------------------------------------------- pixels

def save_as(path, image, **how):
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **how)


def test_every_kind_of_image_is_read_as_it_looks(root):
    grey = np.tile(np.linspace(0, 255, 64).round(), (64, 1))
    plain = Image.fromarray(grey.astype(np.uint8))
    kinds = {
        "grey.png": plain, "rgb.png": plain.convert("RGB"), "rgba.png": plain.convert("RGBA"),
        "la.png": plain.convert("LA"), "palette.png": plain.convert("P"),
        "16bit.png": Image.fromarray((grey * 257).astype(np.uint16)),
        "12bit.png": Image.fromarray((grey * 4095 / 255).astype(np.uint16)),
        "integer.tif": Image.fromarray((grey * 257).astype(np.int32)),
        "float.tif": Image.fromarray((grey / 255).astype(np.float32)),
        "cmyk.tif": plain.convert("RGB").convert("CMYK"),
    }
    for name, image in kinds.items():
        save_as(root / "train/a" / name, image)
    turned = Image.Exif()
    turned[0x0112] = 3  # upside down
    save_as(root / "train/a/turned.png", plain.rotate(180), exif=turned)
    bilevel = Image.fromarray(grey > 127)
    save_as(root / "train/b/bilevel.png", bilevel)
    clear = plain.convert("RGBA")
    clear.putalpha(0)
    save_as(root / "train/b/transparent.png", clear)
    train = benchmarks.load("folder", root, size=64).train
    images = dict(zip(train.names, train.images))
    for name, image in images.items():
        if name.startswith("train/a/"):
            assert np.abs(image.astype(int) - grey[:, :, None]).max() <= 3, name
    assert (images["train/b/bilevel.png"] == 255 * (grey[:, :, None] > 127)).all()
    assert (images["train/b/transparent.png"] == 0).all()


@pytest.mark.parametrize("rule", ["ferplus", "fer2013"])
def test_a_root_that_is_laid_out_as_another_data_set_is_told(root, rule):
    fakes.fer(root)
    with pytest.raises(FerlabError, match="has fer2013new.csv, as ferplus has it: read it with --data ferplus"):
        benchmarks.load("folder", root)
    for folder in ("FER2013Train", "FER2013Valid", "FER2013Test"):
        shutil.rmtree(root / folder)
    with pytest.raises(FerlabError, match=f"neither the images nor Kaggle's fer2013.csv: {rule} expects there"):
        benchmarks.load(rule, root)


def test_a_class_may_be_called_as_a_part_of_another_data_set(root):
    for name in ("a", "test"):  # which RAF-DB has, too
        fakes.save(root / name / "1.png", 1, 64, "RGB")
    assert benchmarks.load("folder", root).train.classes == ("a", "test")


def test_an_image_that_is_not_square_is_cut_around_its_centre(root):
    wide = Image.new("RGB", (300, 100))
    wide.paste((255, 255, 255), (100, 0, 200, 100))
    save_as(root / "train/a/wide.png", wide)
    assert benchmarks.load("folder", root).train.images[0].min() > 240


def claims(width, height):
    """A PNG of a few bytes that claims to be very large."""
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    data = zlib.compress(b"\0" * 1000)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def truncated(number=0):
    data = io.BytesIO()
    fakes.face(number, 100, "RGB").save(data, "JPEG")
    return data.getvalue()[:2000]


BAD = {"empty.png": b"", "text.png": b"hello", "truncated.jpg": truncated(), "bomb.png": claims(9000, 9000),
       "larger_bomb.png": claims(60_000, 60_000)}


@pytest.mark.parametrize("name", BAD)
@pytest.mark.parametrize("zipped", [False, True])
def test_an_image_that_cannot_be_read(root, name, zipped):
    fakes.folders(root)
    (root / "train/cross" / name).write_bytes(BAD[name])
    place = fakes.zipped(root) if zipped else root
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(FerlabError, match=rf"1 of 5 train .* cannot be read \(first: train/cross/{name}: .+\)"):
            benchmarks.load("folder", place)
        splits = benchmarks.load("folder", place, skip_bad=True)
    assert lengths(splits) == [4, 4, 4] and splits.valid.skipped == ()
    assert splits.train.skipped == (f"train/cross/{name}",)
    assert (splits.train.images[0] == benchmarks.load("folder", place, skip_bad=True).train.images[0]).all()


def test_an_image_of_hardly_any_pixels_is_no_face(root):
    fakes.folders(root)
    fakes.save(root / "train/cross/tiny.png", 1, (1, 40))
    with pytest.raises(FerlabError, match="tiny.png: it has 1 x 40 pixels only"):
        benchmarks.load("folder", root)


def test_all_bad_images_are_counted_and_mended_ones_read(root):
    fakes.folders(root, ["train"])
    for name, data in BAD.items():
        (root / "train/cross" / name).write_bytes(data)
    with pytest.raises(FerlabError, match="5 of 9 train images"):
        benchmarks.load("folder", root)
    for name in BAD:
        fakes.save(root / "train/cross" / name, 1, 64, "RGB")
    assert lengths(benchmarks.load("folder", root)) == [9, None, None]
    for path in root.rglob("*.*"):
        path.write_text("bad")
    with pytest.raises(FerlabError, match="None of the 9 train images"):
        benchmarks.load("folder", root, skip_bad=True)


def test_a_face_that_was_not_readable_for_a_while_is_tried_again(root, monkeypatch):
    fakes.folders(root, ["train"])
    square = benchmarks._square

    def fails(picture, *more):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(benchmarks, "_square", fails)
    with pytest.raises(FerlabError, match="Input/output error"):
        benchmarks.load("folder", root)
    monkeypatch.setattr(benchmarks, "_square", square)
    assert benchmarks.load("folder", root).train.images[0].max() > 0


def test_zips_that_are_odd(root, tmp_path):
    fakes.folders(root, ["train"])
    good = fakes.zipped(root)
    (tmp_path / "cut.zip").write_bytes(good.read_bytes()[:-200])
    with pytest.raises(FerlabError, match="not a whole zip file"):
        benchmarks.load("folder", tmp_path / "cut.zip")
    with zipfile.ZipFile(good, "a") as archive:
        for path in ("../train/cross/out.png", "train/../../out.png", "/train/cross/abs.png", "train/merry/../x.png"):
            archive.write(root / "train/cross/0.png", path)
            archive.infolist()[-1].filename = path
    assert lengths(benchmarks.load("folder", good)) == [4, None, None]
    assert not list(tmp_path.rglob("out.png"))
    damaged = bytearray(good.read_bytes())
    damaged[200:260] = bytes(60)  # in the first image
    good.write_bytes(damaged)
    with pytest.raises(FerlabError, match="1 of 4 train images"):
        benchmarks.load("folder", good, size=32)


def test_paths_that_lead_out_of_the_data_set_are_not_followed(root):
    fakes.affectnet_csv(root / "set")
    fakes.save(root / "secret.jpg", 0, 100, "RGB")
    edit(root / "set/training.csv", "0/training0.jpg", "../../secret.jpg")
    with pytest.raises(FerlabError, match=r"1 of 16 train images in .* are missing"):
        benchmarks.load("affectnet8", root / "set")


def test_missing_images_can_be_left_out(root):
    fakes.fer(root)
    (root / "FER2013Train/fer0000003.png").unlink()
    train = benchmarks.load("ferplus", root, skip_bad=True).train
    assert len(train) == 15 and train.skipped == ("fer0000003.png",) and "fer0000003.png" not in train.names


# ------------------------------------------------------------------------------------------------------------ packs

def test_pixels_are_decoded_once(root, cache, monkeypatch):
    fakes.fer(root)
    first = benchmarks.load("ferplus", root).train
    made = {path: path.stat().st_mtime_ns for path in cache.glob("*.npy")}
    assert len(made) == 3 and isinstance(first.images, np.memmap) and not first.images.flags.writeable
    monkeypatch.setattr(benchmarks, "_square", None)  # no image may be decoded again
    assert (benchmarks.load("ferplus", root).train.images == first.images).all()
    assert len(benchmarks.load("ferplus", root, rule="argmax").train) == 16
    assert len(benchmarks.load("fer2013", root).train) == 14
    assert {path: path.stat().st_mtime_ns for path in cache.glob("*.npy")} == made


def test_a_changed_data_set_is_packed_anew(root, cache):
    fakes.fer(root, ["train"])
    before = benchmarks.load("ferplus", root).train.images[0].copy()
    fakes.save(root / "FER2013Train/fer0000000.png", 99)
    os.utime(root / "FER2013Train/fer0000000.png", (1, 1))
    assert (benchmarks.load("ferplus", root).train.images[0] != before).any()
    assert len(list(cache.glob("*.npy"))) == 1  # the old pack is gone
    benchmarks.load("ferplus", root, size=32)
    assert len(list(cache.glob("*.npy"))) == 2


def test_an_interrupted_pack_goes_on(root, cache, monkeypatch):
    fakes.fer(root, ["train"])
    monkeypatch.setattr(benchmarks, "CHUNK", 4)
    write, square, decoded = benchmarks._write, benchmarks._square, []

    def interrupt(path, data):
        write(path, data)
        if json.loads(data)["done"] == 8:
            raise KeyboardInterrupt

    monkeypatch.setattr(benchmarks, "_write", interrupt)
    with pytest.raises(KeyboardInterrupt):
        benchmarks.load("ferplus", root)
    assert not list(cache.glob("*.npy")) and len(list(cache.glob("*.part"))) == 1
    with open(next(cache.glob("*.part")), "ab") as part:
        part.write(b"a torn end")
    monkeypatch.setattr(benchmarks, "_write", write)
    monkeypatch.setattr(benchmarks, "_square", lambda *what: decoded.append(1) or square(*what))
    train = benchmarks.load("ferplus", root).train
    assert len(decoded) == 8 and not list(cache.glob("*.part"))
    assert all((train.images[i] == np.asarray(fakes.face(i))).all() for i in range(16))


def test_a_damaged_pack_is_made_again(root, cache):
    fakes.fer(root, ["train"])
    benchmarks.load("ferplus", root)
    pack = next(cache.glob("*.npy"))
    whole = pack.read_bytes()
    for damaged in (whole[:1000], b""):
        pack.write_bytes(damaged)
        assert (benchmarks.load("ferplus", root).train.images[15] == np.asarray(fakes.face(15))).all()
    pack.with_suffix(".json").write_text("[]")
    assert (benchmarks.load("ferplus", root).train.images[15] == np.asarray(fakes.face(15))).all()


def test_a_full_disk(root, cache, monkeypatch):
    fakes.fer(root, ["train"])
    usage = shutil.disk_usage
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(path)._replace(free=1000))
    with pytest.raises(FerlabError, match="has room for 0 MB"):
        benchmarks.load("ferplus", root)
    monkeypatch.setattr(shutil, "disk_usage", usage)

    def full(path, data):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(benchmarks, "_write", full)
        with pytest.raises(FerlabError, match="No space left on device"):
            benchmarks.load("ferplus", root)
    assert not [path for path in cache.iterdir() if path.suffix != ".lock"]
    assert len(benchmarks.load("ferplus", root).train) == 16


def test_a_cache_that_cannot_be_made(root, tmp_path):
    fakes.fer(root, ["train"])
    (tmp_path / "file").touch()
    with pytest.raises(FerlabError, match="give another folder as cache"):
        benchmarks.load("ferplus", root, cache=tmp_path / "file")


def test_large_packs_stay_on_disk(root, monkeypatch):
    monkeypatch.setattr("ferlab.data.IN_MEMORY", 1000)
    fakes.affectnet(root)
    seven, eight = benchmarks.load("affectnet7", root).train, benchmarks.load("affectnet8", root).train
    assert isinstance(eight.images, np.memmap) and not isinstance(seven.images, np.ndarray)
    assert seven.images.shape == (14, 112, 112, 3) and (seven.images[np.array([13, 7])] == eight.images[[14, 8]]).all()


def test_pack_returns_its_files(root, cache):
    fakes.rafdb(root)
    made = benchmarks.pack("rafdb", root, progress=False)
    assert set(made) == {"train", "test"} and all(path.parent == cache and path.exists() for path in made.values())
    assert np.load(made["train"]).shape == (14, 100, 100, 3)
    (root / "Image/aligned/test_0001_aligned.jpg").unlink()
    with pytest.raises(FerlabError, match="1 of 7 test images"):
        benchmarks.pack("rafdb", root)


def test_the_bar_shows_when_asked_for(root, capfd):
    fakes.rafdb(root)
    benchmarks.load("rafdb", root)
    assert capfd.readouterr().err == ""
    benchmarks.load("rafdb", root, size=32, progress=True)
    assert "rafdb train" in capfd.readouterr().err


def test_two_processes_at_once_make_one_pack(root, cache):
    fakes.rafdb(root, train=140)
    both = [Process(target=benchmarks.load, args=("rafdb", root)) for _ in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join(60)
    assert [process.exitcode for process in both] == [0, 0] and len(list(cache.glob("*.npy"))) == 2
    assert lengths(benchmarks.load("rafdb", root)) == [140, None, 7]


# ----------------------------------------------------------------------------------------------------- the real one

@pytest.fixture(scope="session")
def real(tmp_path_factory):
    """The real FER+ faces, packed once for all tests."""
    if not REAL.exists():
        pytest.skip("the real FER+ faces are not on this machine; the counts need them")
    return {"root": REAL, "cache": tmp_path_factory.mktemp("real")}


@pytest.mark.parametrize(("rule", "train", "valid"),
                         [("majority", 25_057, 3_199), ("argmax", 28_386, 3_553), ("distribution", 28_386, 3_553)])
def test_the_known_counts_of_ferplus(real, rule, train, valid):
    splits = benchmarks.load("ferplus", rule=rule, **real)
    assert lengths(splits)[:2] == [train, valid]
    assert splits.train.images.shape == (train, 48, 48) and len(set(splits.train.names)) == train
    if rule == "distribution":
        assert np.allclose(splits.train.label_distribution.sum(1), 1)


def test_the_known_noise_of_fer2013(real):
    splits = benchmarks.load("fer2013", **real)
    assert 1 - splits.train.noise_rate == pytest.approx(0.68, abs=0.01)  # 67.7 % with contempt counted as an error
    assert 1 - splits.valid.noise_rate == pytest.approx(0.67, abs=0.01)


def test_rafdb_by_folders_of_labels(root):
    for split, count in (("train", 2), ("test", 1)):
        for label, number in itertools.product(range(1, 8), range(count)):
            folder = root / "DATASET" / split / str(label)
            fakes.save(folder / f"{split}_{number}{label}_aligned.jpg", number, 100, "RGB")
    splits = benchmarks.load("rafdb", root)
    assert lengths(splits) == [14, None, 7]
    assert splits.train.labels.tolist() == np.repeat(range(7), 2).tolist()
    assert splits.train.classes[0] == "surprise" and splits.test.names[0] == "test/1/test_01_aligned.jpg"
    assert lengths(benchmarks.load("rafdb", root, splits=["test"])) == [None, None, 7]


@pytest.mark.parametrize("places", [("Train_Aligned_Faces", "Val_Aligned_Faces_new"),
                                    ("Train/Train_Aligned_Faces", "Val/Val_Aligned_Faces")])
def test_of_sfew_the_aligned_faces_are_taken(root, places):
    fakes.sfew(root, per_class=1)  # the film stills
    fakes.folders(root, places, fakes.SFEW, 2, (143, 181))
    splits = benchmarks.load("sfew", root)
    assert lengths(splits) == [14, 14, None]
    assert splits.train.names[0] == f"{places[0]}/Angry/0.png" and splits.valid.names[0] == f"{places[1]}/Angry/0.png"


def test_a_holdout_that_is_not_needed_is_told(root):
    fakes.folders(root, ("train", "valid"))
    with pytest.warns(UserWarning, match="nothing was held out"):
        benchmarks.load("folder", root, holdout=0.2)


def test_labels_that_are_none_of_rafdb_and_stills_beside_aligned_faces_are_not_taken(root):
    fakes.save(root / "train" / "0" / "a.jpg", 0, 100, "RGB")
    with pytest.raises(FerlabError, match="has a folder 0; RAF-DB's labels are 1 to 7"):
        benchmarks.load("rafdb", root)
    fakes.sfew(root / "sfew", per_class=1)
    fakes.folders(root / "sfew", ("Train_Aligned_Faces",), fakes.SFEW, 2, (143, 181))
    assert lengths(benchmarks.load("sfew", root / "sfew")) == [14, None, None]  # film stills do not validate

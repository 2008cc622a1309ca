"""Decisions: on disk at once, never lost, and applied to the faces they were about."""

from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from ferlab.data import FaceSet, Splits
from ferlab.decisions import (
    DecisionLog,
    corrected_labels,
    face_names,
    fingerprint,
    named,
    read_labels,
    relabelled,
    with_labels,
    write_labels,
)
from ferlab.errors import FerlabError

CLASSES = ("calm", "glad", "sad")
ODD = ('a,b "c".png', "<img src=x onerror=alert(1)>.png", "zwei\nzeilen.png", "ü €.png", "=1+1.png")


def test_a_held_out_face_and_a_training_face_of_one_name():
    train, valid = face_set(split="train"), face_set(split="valid")
    changed = relabelled(Splits(train, valid, None), {"a.png": "sad"}, "labels.csv", holdout=0.1)
    assert changed.train.labels[0] != train.labels[0] and (changed.valid.labels == valid.labels).all()


def face_set(names=("a.png", "b.png", "c.png", "d.png"), labels=(0, 1, 2, 0), **more) -> FaceSet:
    names = None if names is None else np.array(names)
    images = np.zeros((len(labels), 8, 8), np.uint8)
    return FaceSet(images, np.array(labels), CLASSES, names=names, dataset="toy", **more)


def rows_on_disk(path: Path) -> list[dict[str, str]]:
    """As another program reads it."""
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("text", ['{"truth": [0, 1]}', "name,label", "time,name\n", "\n"])
def test_a_file_of_another_kind_is_told_and_stays_as_it_is(tmp_path: Path, text: str):
    path = tmp_path / "labels.csv"
    log = DecisionLog(path)
    path.write_text(text)
    for use in (lambda: DecisionLog(path), lambda: log.append("a.png", "sad", "keep")):
        with pytest.raises(FerlabError, match="is not a log of decisions"):
            use()
        assert path.read_text() == text


@pytest.mark.parametrize("text", ["", "time,na", "time,name,given,decision,label",
                                  "time,name,given,decision,label\n2026"])
def test_a_log_whose_writer_died_in_its_first_row_goes_on(tmp_path: Path, text: str):
    path = tmp_path / "log.csv"
    path.write_text(text)
    DecisionLog(path).append("a.png", "sad", "keep")
    assert [row["name"] for row in rows_on_disk(path)] == ["a.png"]


def test_a_decision_is_on_disk_when_append_returns(tmp_path: Path):
    log = DecisionLog(tmp_path / "deeper" / "log.csv")
    for number in range(3):
        log.append(f"{number}.png", "sad", "accept", "glad")
        assert [row["name"] for row in rows_on_disk(log.path)] == [f"{i}.png" for i in range(number + 1)]
    assert list(rows_on_disk(log.path)[0]) == ["time", "name", "given", "decision", "label"]
    assert rows_on_disk(log.path)[0]["label"] == "glad"
    times = [row["time"] for row in rows_on_disk(log.path)]
    assert times == sorted(times) and times[0].endswith("+00:00")


def test_reopening_resumes_and_undo_is_a_row(tmp_path: Path):
    log = DecisionLog(tmp_path / "log.csv")
    log.append("a", "sad", "accept", "glad")
    log.append("b", "sad", "skip")
    log.append("a", "sad", "choose", "calm")
    log.append("a", "sad", "undo")
    again = DecisionLog(log.path)
    for each in (log, again):
        assert {name: made.label for name, made in each.current.items()} == {"a": "glad", "b": ""}
        assert each.get("a").decision == "accept" and each.get("c") is None
        assert each.latest.name == "b"
    again.append("a", "sad", "undo")
    assert "a" not in again.current
    again.append("a", "sad", "undo")  # nothing left to take back
    assert len(rows_on_disk(log.path)) == 6 and set(DecisionLog(log.path).current) == {"b"}


def test_two_open_logs_see_each_other(tmp_path: Path):
    one, two = DecisionLog(tmp_path / "log.csv"), DecisionLog(tmp_path / "log.csv")
    one.append("a", "sad", "keep", "sad")
    two.append("b", "sad", "keep", "sad")
    assert set(two.current) == {"a", "b"} and set(one.current) == {"a"}
    assert one.refresh() and set(one.current) == {"a", "b"}
    assert not one.refresh()


def test_writers_in_several_processes_lose_nothing(tmp_path: Path):
    script = ("import sys; from ferlab.decisions import DecisionLog; log = DecisionLog(sys.argv[1])\n"
              "for i in range(60): log.append(f'{sys.argv[2]}{i}', 'sad', 'accept', 'glad')")
    writers = [subprocess.Popen([sys.executable, "-c", script, str(tmp_path / "log.csv"), who]) for who in "xyz"]
    assert [writer.wait() for writer in writers] == [0, 0, 0]
    names = [row["name"] for row in rows_on_disk(tmp_path / "log.csv")]
    assert sorted(names) == sorted(f"{who}{i}" for who in "xyz" for i in range(60))
    for who in "xyz":
        assert [name for name in names if name[0] == who] == [f"{who}{i}" for i in range(60)]
    assert len(DecisionLog(tmp_path / "log.csv").current) == 180


@pytest.mark.parametrize("torn", [b"2026-01-01T00:00:00,b.p", b'2026,"half', b"\xff"])
def test_a_row_that_a_crash_cut_off_hides_no_other(tmp_path: Path, torn: bytes):
    log = DecisionLog(tmp_path / "log.csv")
    log.append("a", "sad", "keep", "sad")
    with open(log.path, "ab") as file:
        file.write(torn)
    again = DecisionLog(log.path)
    assert set(again.current) == {"a"}
    again.append("b", "sad", "accept", "glad")
    log.append("c", "sad", "skip")
    assert [row["name"] for row in rows_on_disk(log.path)] == ["a", "b", "c"]
    assert set(log.current) == set(DecisionLog(log.path).current) == {"a", "b", "c"}


def test_odd_names_come_back_as_they_were(tmp_path: Path):
    log = DecisionLog(tmp_path / "log.csv")
    for name in ODD:
        log.append(name, "sad", "accept", "glad")
    assert tuple(DecisionLog(log.path).current) == ODD == tuple(row["name"] for row in rows_on_disk(log.path))
    write_labels(tmp_path / "labels.csv", dict.fromkeys(ODD, "glad"))
    assert read_labels(tmp_path / "labels.csv") == dict.fromkeys(ODD, "glad")


def test_a_log_that_was_removed_is_begun_anew(tmp_path: Path):
    log = DecisionLog(tmp_path / "log.csv")
    log.append("a", "sad", "keep", "sad")
    log.path.unlink()
    log.append("b", "sad", "skip")
    assert set(log.current) == set(DecisionLog(log.path).current) == {"b"}


def test_what_is_no_log_is_told_and_kept(tmp_path: Path):
    for text in ("name,label\na,glad\n", "time,name,given,decision,label\n1,a,sad,maybe,\n",
                 "time,name,given,decision,label\n1,a\n"):
        (tmp_path / "other.csv").write_text(text)
        with pytest.raises(FerlabError, match=r"other\.csv is not a log"):
            DecisionLog(tmp_path / "other.csv")
        assert (tmp_path / "other.csv").read_text() == text
    with pytest.raises(FerlabError, match="cannot be read"):
        DecisionLog(tmp_path)
    log = DecisionLog(tmp_path / "new" / "log.csv")
    (tmp_path / "new").write_text("a file where the folder should be")
    with pytest.raises(FerlabError, match="could not be written"):
        log.append("a", "sad", "skip")
    assert not log.rows
    with pytest.raises(FerlabError, match="no decision"):
        DecisionLog(tmp_path / "third.csv").append("a", "sad", "perhaps")


# ---------------------------------------------------------------------------------------------------- corrected labels

def test_decisions_correct_the_labels_they_are_about(tmp_path: Path):
    faces, log = face_set(), DecisionLog(tmp_path / "log.csv")
    log.append("a.png", "calm", "accept", "sad")
    log.append("b.png", "glad", "keep", "glad")
    log.append("c.png", "sad", "skip")
    log.append("d.png", "calm", "choose", "glad")
    log.append("d.png", "calm", "undo")
    labels = corrected_labels(faces, log)
    assert labels.tolist() == [2, 1, 2, 0] and faces.labels.tolist() == [0, 1, 2, 0]
    write_labels(tmp_path / "labels.csv", named(faces, labels))
    assert (tmp_path / "labels.csv").read_text() == "name,label\na.png,sad\nb.png,glad\nc.png,sad\nd.png,calm\n"
    again = with_labels(faces, read_labels(tmp_path / "labels.csv"))
    assert again.labels.tolist() == labels.tolist()


def test_decisions_about_other_faces_are_told(tmp_path: Path):
    log = DecisionLog(tmp_path / "log.csv")
    log.append("a.png", "calm", "accept", "sad")
    assert corrected_labels(face_set(), log)[0] == 2
    with pytest.raises(FerlabError, match=r"a\.png.*none of the 1 faces of toy"):
        corrected_labels(face_set(("z.png",), (0,)), log)
    with pytest.raises(FerlabError, match=r"a\.png as given calm, but here it is given glad"):
        corrected_labels(face_set(labels=(1, 1, 2, 0)), log)
    log.append("b.png", "glad", "choose", "angry")
    with pytest.raises(FerlabError, match="'angry', which is no class"):
        corrected_labels(face_set(), log)


def test_faces_not_listed_keep_their_labels():
    soft = np.array([[0.6, 0.4, 0], [0, 1, 0], [0, 0.1, 0.9], [1, 0, 0]], np.float32)
    faces = face_set(label_distribution=soft, truth=np.array([0, 0, 2, 1]), noise="symmetric")
    new = with_labels(faces, {"b.png": "calm", "c.png": "sad"})
    assert new.labels.tolist() == [0, 0, 2, 0] and new.truth.tolist() == [0, 0, 2, 1]
    assert new.label_distribution.tolist() == [soft[0].tolist(), [1, 0, 0], soft[2].tolist(), soft[3].tolist()]
    assert new.noise == "symmetric; labels changed by a file: 1"
    unnamed = face_set(None)
    assert face_names(unnamed).tolist() == ["0", "1", "2", "3"]
    assert with_labels(unnamed, {"3": "glad"}).labels.tolist() == [0, 1, 2, 1]


def test_label_files_that_do_not_fit_are_told(tmp_path: Path):
    faces, path = face_set(), tmp_path / "labels.csv"
    with pytest.raises(FerlabError, match=r"z\.png, which is none of the 4"):
        with_labels(faces, {"z.png": "calm"}, path)
    with pytest.raises(FerlabError, match="'angry', which is no class: the classes are calm, glad, sad"):
        with_labels(faces, {"a.png": "angry"}, path)
    twins = face_set(("a.png", "a.png", "c.png", "d.png"))
    with pytest.raises(FerlabError, match="several faces"):
        with_labels(twins, {"a.png": "sad"}, path)
    with pytest.raises(FerlabError, match="share a name"):
        named(twins, twins.labels)
    assert with_labels(twins, {"c.png": "glad"}, path).labels.tolist() == [0, 1, 1, 0]
    for text, words in [("", "first line"), ("file,class\na,b\n", "name,label"), ("name,label\na\n", "row 2"),
                        ("name,label\na,sad\na,glad\n", "two labels")]:
        path.write_text(text)
        with pytest.raises(FerlabError, match=words):
            read_labels(path)
    with pytest.raises(FerlabError, match="cannot be read"):
        read_labels(tmp_path / "missing.csv")
    path.write_text("\ufeffname,label\na.png,glad\n", encoding="utf-8")  # as spreadsheets save it
    assert read_labels(path) == {"a.png": "glad"}


def test_fingerprints_tell_labels_apart():
    one = fingerprint({"a": "sad", "b": "glad"})
    assert one == fingerprint({"b": "glad", "a": "sad"}) != fingerprint({"a": "glad", "b": "sad"})

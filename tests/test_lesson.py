"""The notebooks' shared trainings: made once, told apart by settings and faces."""

import json
from dataclasses import replace

import numpy as np
import pytest

from ferlab.config import profile
from ferlab.drfer import split_epochs
from ferlab.lesson import FACES, Lesson


@pytest.fixture
def lesson(toy_faces, tmp_path, monkeypatch):
    monkeypatch.setenv("FERLAB_PROFILE", "smoke")
    return Lesson("folder", toy_faces, "symmetric", 0.25, runs=tmp_path)


def test_faces_at_the_profiles_scale(lesson, monkeypatch):
    assert len(lesson.splits.train) == 96
    assert lesson.splits.train.noise_rate == pytest.approx(0.25)
    assert lesson.splits.valid.noise == ""
    monkeypatch.setitem(FACES, "smoke", (20, 10, None))
    few = Lesson("folder", lesson.root, "symmetric", 0.25).splits
    assert [len(split) for split in few] == [20, 10, 30]
    assert len(np.unique(few.train.labels)) == 3  # not the first of a sorted list


def test_a_training_is_made_once(lesson):
    first = lesson.train(epochs=2)
    made = {path: path.stat().st_mtime_ns for path in first.run.directory.iterdir()}
    again = Lesson("folder", lesson.root, "symmetric", 0.25, runs=lesson.runs).train(epochs=2)
    kept = [path for path, when in made.items() if path.stat().st_mtime_ns == when]
    assert {path.name for path in kept} >= {"checkpoint.pt", *(f"state_{name}.npz" for name in lesson.splits._fields)}
    assert again.epoch == len(again.records) == 2
    assert (again.method.clean_probability == first.method.clean_probability).all()


def test_a_lost_state_is_made_anew(lesson):
    run = lesson.train(epochs=2).run
    before = run.state("test")
    (run.directory / "state_test.npz").unlink()
    after = lesson.train(epochs=2).run.state("test")
    assert before.keys() == after.keys() and all((before[name] == after[name]).all() for name in before)


def test_other_settings_or_labels_are_another_training(lesson):
    first = lesson.train(epochs=1, method="plain")
    other = lesson.train(epochs=1, method="plain", label_smoothing=0.1)
    noise = Lesson("folder", lesson.root, "symmetric", 0.5, runs=lesson.runs).train(epochs=1, method="plain")
    corrected = replace(lesson.splits.train, labels=lesson.splits.train.truth)
    clean = lesson.train(corrected, epochs=1, method="plain")
    assert (clean.train.labels == corrected.truth).all() and clean.splits.test is lesson.splits.test
    assert len({each.run.directory for each in (first, other, noise, clean)}) == 4


def test_other_methods_have_a_schedule_of_their_own(lesson, monkeypatch):
    monkeypatch.setenv("FERLAB_PROFILE", "quick")
    rounds = lesson.settings()
    assert lesson.settings(method="plain").epochs < rounds.epochs == split_epochs(rounds)[-1]
    assert lesson.settings(method="plain").epochs < profile("quick", method="plain").epochs
    assert lesson.settings().views == 1 < profile("quick").views and lesson.settings(views=2).views == 2
    assert lesson.settings(method="plain", epochs=7).epochs == 7


def test_given_labels_stay(toy_faces, monkeypatch):
    monkeypatch.setenv("FERLAB_PROFILE", "smoke")
    assert Lesson("folder", toy_faces, "given").splits.train.noise == ""


@pytest.mark.parametrize("changes", [{"contrastive": False}, {"relabelling": False}, {"split": "class", "epochs": 5}])
def test_a_shared_warm_up_changes_no_number(lesson, tmp_path, changes):
    full = lesson.train(epochs=4, warm_up=3)
    changes = {"epochs": 4, "warm_up": 3, **changes}
    shared = lesson.train(**changes)
    alone = Lesson("folder", lesson.root, "symmetric", 0.25, runs=tmp_path / "elsewhere").train(**changes)
    assert shared.records[:2] == full.records[:2]  # with the seconds that they took
    for one, other in zip(shared.records, alone.records, strict=True):
        one["loss"].pop("contrastive", None)  # 0 in the warm-up, or not told
        other["loss"].pop("contrastive", None)
        assert one | {"seconds": 0} == other | {"seconds": 0}
    assert all((a == b).all() for a, b in zip(shared.average.parameters(), alone.average.parameters(), strict=True))


@pytest.mark.parametrize("trained", [False, True])
def test_a_warm_up_is_the_training_until_its_first_split(lesson, trained):
    if trained:
        lesson.train(epochs=4, warm_up=3)
    begun = lesson.warm_up(epochs=4, warm_up=3)
    assert begun.epoch == len(begun.records) == 3 and "split" in begun.records[-1]
    assert not list(begun.run.directory.glob("state_*"))
    full = lesson.train(epochs=4, warm_up=3)
    assert full.epoch == 4
    for one, other in zip(begun.records, full.records, strict=False):
        assert json.dumps(one | {"seconds": 0}) == json.dumps(other | {"seconds": 0})  # where nan is nan
    made = (begun.run.directory / "checkpoint.pt").stat().st_mtime_ns
    assert lesson.warm_up(epochs=4, warm_up=3).epoch == 3
    assert (begun.run.directory / "checkpoint.pt").stat().st_mtime_ns == made


@pytest.mark.parametrize("changes", [{"seed": 1}, {"mask_ratio": 0.4}, {"split": "off"}, {"restarts": False},
                                     {"smooth_collections": 2}])
def test_another_warm_up_is_not_shared(lesson, changes):
    config = lesson.settings(epochs=4, warm_up=3)
    assert config.same_warm_up(config.replace(epochs=9, keep_given="none", label_smoothing=0))
    plainly = config.replace(robustness=0)
    assert not plainly.same_warm_up(plainly.replace(label_smoothing=0))
    assert not config.replace(**changes).same_warm_up(config)


def test_a_damaged_warm_up_is_made_anew(lesson):
    full = lesson.train(epochs=4, warm_up=3)
    (full.run.directory / "warm_up.pt").write_bytes(b"cut off")
    without = lesson.train(epochs=4, warm_up=3, contrastive=False)
    assert without.epoch == 4 and (without.run.directory / "warm_up.pt").is_file()  # its own: not taken over


def test_a_warm_up_with_other_labels_is_not_shared(lesson):
    full = lesson.train(epochs=4, warm_up=3)
    corrected = replace(lesson.splits.train, labels=lesson.splits.train.truth)
    other = lesson.train(corrected, epochs=4, warm_up=3)
    assert other.records[0]["loss"] != full.records[0]["loss"]


def test_a_warm_up_of_another_commit_or_machine_is_not_shared(lesson):
    full = lesson.train(epochs=4, warm_up=3)
    told = json.loads((full.run.directory / "environment.json").read_text())
    for key in ("commit", "torch", "device", "precision"):
        (full.run.directory / "environment.json").write_text(json.dumps(told | {key: "another"}))
        assert full.run.same_warm_up(full.config.replace(epochs=5), told) is None, key
    (full.run.directory / "environment.json").write_text(json.dumps(told))
    assert full.run.same_warm_up(full.config.replace(epochs=5), told) is not None

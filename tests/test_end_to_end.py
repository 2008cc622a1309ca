"""Train, evaluate and resume, as a user would."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import fakes
import numpy as np
import pytest
import torch
from conftest import write_toy_faces
from PIL import Image

import ferlab as package
from ferlab import benchmarks, training
from ferlab.config import profile
from ferlab.data import FaceSet
from ferlab.decisions import write_labels
from ferlab.errors import FerlabError
from ferlab.evaluation import evaluate, most_taken_for
from ferlab.explorer import judged_faces
from ferlab.metrics import balanced, by_agreement, jensen_shannon
from ferlab.mixture import ClassMixture
from ferlab.runs import Run


@pytest.fixture(scope="module")
def toy_run(toy_faces: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of DR-FER on the toy faces, with wrong labels."""
    directory = tmp_path_factory.mktemp("runs") / "toy"
    splits = benchmarks.load("folder", toy_faces, noise="symmetric", noise_rate=0.2)
    training.train(profile("smoke", epochs=8, warm_up=5, interval=2, batch_size=16), splits, directory)
    return directory


def test_train_evaluate_and_read_the_scores(ferlab, toy_faces: Path, tmp_path: Path):
    run, report = tmp_path / "run", tmp_path / "scores" / "test.json"
    outcome = ferlab("train", "--data", "folder", "--root", toy_faces, "--run", run, "--profile", "smoke",
                     "--noise", "symmetric", "--noise-rate", 0.2, "--set", "batch_size=16", "--set", "epochs=6",
                     "--set", "warm_up=4", "--set", "interval=1")
    assert outcome.code == 0, outcome.err
    assert sum(line.startswith("epoch ") for line in outcome.out.splitlines()) == 6
    assert "hardly learned" not in outcome.out
    assert f"ferlab evaluate --run {run} --split test" in outcome.out
    assert {path.name for path in run.iterdir()} - {".lock"} == {
        "checkpoint.pt", "config.json", "data.json", "environment.json", "metrics.jsonl",
        "state_train.npz", "state_valid.npz", "state_test.npz"}

    outcome = ferlab("evaluate", "--run", run, "--json", report)  # data set, root and rule are the run's
    assert outcome.code == 0, outcome.err
    scores = json.loads(report.read_text())
    assert (scores["data"], scores["split"], scores["faces"]) == ("folder", "test", 30)
    assert scores["classes"] == ["high", "low", "middle"] and scores["note"] == ""
    matrix = np.array(scores["confusion_matrix"])
    assert matrix.sum() == 30 and scores["accuracy"] == pytest.approx(matrix.trace() / 30)
    assert scores["mean_class_accuracy"] == pytest.approx(np.mean(list(scores["recall"].values())))
    assert scores["accuracy"] > 0.6  # chance is 0.33
    assert scores["run"]["settings"]["epochs"] == 6 and scores["run"]["data"]["noise"] == "symmetric"
    assert {"macro_f1", "counts", "environment", "rule"} <= scores.keys()
    assert f"accuracy {100 * scores['accuracy']:.1f} %" in outcome.out


def test_new_labels_by_a_network_that_has_not_learned_are_told(ferlab, toy_faces: Path, tmp_path: Path):
    outcome = ferlab("train", "--data", "folder", "--root", toy_faces, "--run", tmp_path / "run", "--profile", "smoke",
                     "--set", "epochs=2", "--set", "warm_up=1", "--set", "interval=1", "--set", "learning_rate=1e-7")
    assert outcome.code == 0 and "hardly learned, and its new labels are not to be trusted" in outcome.out


def test_that_no_label_is_suspected_is_told(ferlab, toy_faces: Path, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(ClassMixture, "_split", lambda self, losses: (None, "not separated"))
    outcome = ferlab("train", "--data", "folder", "--root", toy_faces, "--run", tmp_path / "run", "--profile", "smoke",
                     "--set", "batch_size=16", "--set", "epochs=6", "--set", "warm_up=4", "--set", "interval=2")
    assert outcome.code == 0 and re.search(r"No label is suspected.* gives \d+\.\d % of the training", outcome.out)


def test_training_again_after_the_end_changes_nothing(ferlab, toy_faces: Path, tmp_path: Path):
    command = ("train", "--data", "folder", "--root", toy_faces, "--run", tmp_path / "run", "--profile", "smoke",
               "--method", "plain", "--set", "epochs=1")
    assert ferlab(*command).code == 0
    before = (tmp_path / "run" / "checkpoint.pt").read_bytes()
    outcome = ferlab(*command)
    assert outcome.code == 0 and "epoch 1" not in outcome.out
    assert (tmp_path / "run" / "checkpoint.pt").read_bytes() == before


@pytest.mark.parametrize("method", ["plain", "drfer"])
def test_interrupted_training_ends_as_an_unbroken_one(method: str, toy_faces: Path, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)  # bit-exact on a CPU only
    splits = benchmarks.load("folder", toy_faces, noise="symmetric", noise_rate=0.2)
    config = profile("smoke", method=method, epochs=5, warm_up=2, interval=1, batch_size=32)
    training.train(config, splits, tmp_path / "unbroken")

    trainer = training.Trainer(config, splits, Run(tmp_path / "broken"))
    loss, calls = trainer.method.loss, iter(range(100))

    def interrupted(*arguments):
        if next(calls) == 10:  # three batches an epoch, so in the midst of the fourth
            raise KeyboardInterrupt
        return loss(*arguments)

    monkeypatch.setattr(trainer.method, "loss", interrupted)
    with pytest.raises(KeyboardInterrupt):
        trainer.fit()
    assert len(Run(tmp_path / "broken").metrics) == 3
    training.train(config, splits, tmp_path / "broken")

    whole, mended = Run(tmp_path / "unbroken"), Run(tmp_path / "broken")
    assert_same(whole.read_checkpoint(), mended.read_checkpoint())
    assert_same(whole.state(), mended.state())
    for one, other in zip(whole.metrics, mended.metrics, strict=True):
        one.pop("seconds"), other.pop("seconds")
        assert one == other


def assert_same(one, other, where: str = "checkpoint") -> None:
    """Every tensor, number and string at the same place is the same, to the bit."""
    assert type(one) is type(other), where
    if isinstance(one, dict):
        assert one.keys() == other.keys(), where
        for key in one:
            assert_same(one[key], other[key], f"{where}.{key}")
    elif isinstance(one, list | tuple):
        assert len(one) == len(other), where
        for i, (a, b) in enumerate(zip(one, other, strict=True)):
            assert_same(a, b, f"{where}[{i}]")
    elif isinstance(one, torch.Tensor):
        assert torch.equal(one, other), where
    elif isinstance(one, np.ndarray):
        assert np.array_equal(one, other), where
    else:
        assert one == other, where


def test_evaluation_needs_only_the_test_images_and_the_votes(ferlab, tmp_path: Path):
    whole = fakes.fer(tmp_path / "ferplus")
    only_test = fakes.fer(tmp_path / "only_test", images=("test",))
    run = tmp_path / "run"
    outcome = ferlab("train", "--data", "ferplus", "--root", whole, "--run", run, "--profile", "smoke",
                     "--method", "plain")
    assert outcome.code == 0, outcome.err
    for rule in ("majority", "argmax", "distribution"):
        report = tmp_path / f"{rule}.json"
        outcome = ferlab("evaluate", "--run", run, "--data", "ferplus", "--root", only_test, "--rule", rule,
                         "--json", report)
        assert outcome.code == 0, outcome.err
        scores = json.loads(report.read_text())
        assert scores["rule"] == rule and scores["faces"] == 16
        assert 0 < scores["divergence"] < 1
        assert sum(each["faces"] for each in scores["by_agreement"]) == 16
        right = sum(each["faces"] * each["accuracy"] for each in scores["by_agreement"])
        assert right == pytest.approx(16 * scores["accuracy"])
        assert "most votes for one class" in outcome.out
    outcome = ferlab("evaluate", "--run", run, "--root", only_test, "--split", "valid")
    assert outcome.code == 2 and "valid" in outcome.err


def test_held_out_faces_are_found_again(ferlab, tmp_path: Path):
    root, run = fakes.rafdb(tmp_path / "rafdb", train=28), tmp_path / "run"
    outcome = ferlab("train", "--data", "rafdb", "--root", root, "--run", run, "--profile", "smoke",
                     "--method", "plain", "--holdout", 0.25, "--set", "epochs=1")
    assert outcome.code == 0, outcome.err
    outcome = ferlab("evaluate", "--run", run, "--split", "valid", "--json", tmp_path / "valid.json")
    assert outcome.code == 0, outcome.err
    assert json.loads((tmp_path / "valid.json").read_text())["faces"] == 7


# ------------------------------------------------------------------------------------------------- the recogniser

def test_recogniser_predicts_grey_and_colour_of_any_size(toy_run: Path):
    recogniser = package.load_pretrained(toy_run)
    rng = np.random.default_rng(0)
    for shape in ((3, 32, 32), (3, 32, 32, 3), (3, 40, 56), (3, 100, 100, 3)):
        probabilities = recogniser.predict(rng.integers(0, 256, shape, dtype=np.uint8))
        assert probabilities.shape == (3, 3) and probabilities.dtype == np.float32
        assert np.allclose(probabilities.sum(1), 1, atol=1e-5)
    assert recogniser.predict(np.zeros((0, 32, 32), np.uint8)).shape == (0, 3)
    images = rng.integers(0, 256, (300, 32, 32), dtype=np.uint8)
    whole = recogniser.predict(torch.from_numpy(images))
    assert np.allclose(whole[:2], recogniser.predict(images[:2]), atol=1e-5)  # a face's answer is its own
    for wrong in (images.astype(np.float32), images[0], np.zeros((32, 32, 3), np.uint8),
                  np.zeros((2, 3, 32, 32), np.uint8)):
        with pytest.raises(FerlabError):
            recogniser.predict(wrong)


def test_recogniser_is_the_averaged_network_of_the_run(toy_run: Path, toy_faces: Path):
    recogniser, run = package.Recogniser.from_run(toy_run), Run(toy_run)
    average = run.read_checkpoint()["average"]
    assert all(torch.equal(value.cpu(), average[name]) for name, value in recogniser.network.state_dict().items())
    test = benchmarks.load("folder", toy_faces).test
    assert recogniser.classes == test.classes
    assert (recogniser.predict(test.images).argmax(1) == test.labels).mean() > 0.6


def test_recogniser_saved_in_one_file_answers_as_before(toy_run: Path, tmp_path: Path):
    recogniser = package.load_pretrained(toy_run)
    recogniser.save(tmp_path / "toy.pt")
    assert (tmp_path / "toy.pt").stat().st_size < (toy_run / "checkpoint.pt").stat().st_size / 4
    images = np.random.default_rng(0).integers(0, 256, (8, 32, 32), dtype=np.uint8)
    again = package.load_pretrained(tmp_path / "toy.pt")
    assert again.classes == recogniser.classes and np.array_equal(again.frequencies, recogniser.frequencies)
    assert np.allclose(again.predict(images), recogniser.predict(images), atol=0.02)


def test_a_network_that_learned_from_grey_faces_is_shown_no_colours(ferlab, toy_run: Path, tmp_path: Path):
    recogniser = package.load_pretrained(toy_run)  # its faces are grey, in three channels
    recogniser.save(tmp_path / "toy.pt")
    colour = np.random.default_rng(0).integers(0, 256, (8, 32, 32, 3), dtype=np.uint8)
    grey = np.stack([Image.fromarray(face).convert("L") for face in colour])
    for each in (recogniser, package.load_pretrained(tmp_path / "toy.pt"), package.load_pretrained("ferplus")):
        assert each.grey and np.allclose(each.predict(colour), each.predict(grey), atol=0.02)
    recogniser.grey = False
    assert not np.allclose(recogniser.predict(colour), recogniser.predict(grey), atol=0.02)
    faces = FaceSet(colour, np.zeros(8, np.int64), ("a",))
    assert not faces.grey and replace(faces, images=grey).grey
    assert replace(faces, images=np.repeat(grey[..., None], 3, axis=3)).grey


def test_classes_can_be_balanced(ferlab, toy_run: Path, toy_faces: Path, tmp_path: Path):
    recogniser, faces = package.load_pretrained(toy_run), benchmarks.load("folder", toy_faces).test
    train = benchmarks.load("folder", toy_faces).train
    assert recogniser.frequencies.sum() == pytest.approx(1) and len(recogniser.frequencies) == len(train.classes)
    recogniser.frequencies = np.array([0.9, 0.09, 0.01])
    answers = recogniser.predict(faces.images), recogniser.predict(faces.images, balance=0.5)
    assert np.allclose(answers[1], balanced(answers[0], recogniser.frequencies, 0.5)) and answers[1].dtype == np.float32
    assert answers[1][:, 2].sum() > answers[0][:, 2].sum()
    recogniser.save(tmp_path / "toy.pt")
    report = tmp_path / "scores.json"
    command = ("evaluate", "--run", tmp_path / "toy.pt", "--data", "folder", "--root", toy_faces, "--json", report)
    outcome = ferlab(*command, "--balance", "0.5")
    scores = json.loads(report.read_text())
    assert outcome.code == 0 and "classes balanced by 0.5" in outcome.out and scores["balance"] == 0.5
    assert scores["accuracy"] == pytest.approx((answers[1].argmax(1) == faces.labels).mean())
    recogniser.frequencies = None  # as of a file that predates them
    recogniser.save(tmp_path / "toy.pt")
    assert ferlab(*command).code == 0
    told = ferlab(*command, "--balance", "0.5")
    assert told.code == 2 and "how frequent its classes were" in told.err
    for balance in (float("nan"), -0.1, 1.1):
        with pytest.raises(FerlabError, match="from 0, as trained, to 1"):
            recogniser.predict(faces.images, balance=balance)


def test_a_saved_recogniser_tells_that_it_lacks_the_labels_of_its_training(ferlab, toy_faces: Path, tmp_path: Path):
    train = benchmarks.load("folder", toy_faces).train
    write_labels(tmp_path / "labels.csv", {str(train.names[0]): train.classes[1 - train.labels[0]]})
    run, file = tmp_path / "run", tmp_path / "run.pt"
    assert ferlab("train", "--data", "folder", "--root", toy_faces, "--labels", tmp_path / "labels.csv", "--run", run,
                  "--profile", "smoke", "--method", "plain", "--set", "epochs=1").code == 0
    assert "changed by a file" in ferlab("evaluate", "--run", run, "--split", "train").out
    package.load_pretrained(run).save(file)
    assert "labels that" in ferlab("evaluate", "--run", file, "--split", "train").err
    assert ferlab("evaluate", "--run", file, "--split", "test").err == ""


def test_labels_left_by_another_training_are_not_scored_against(ferlab, toy_run: Path, toy_faces: Path, tmp_path: Path):
    run = tmp_path / "run"
    shutil.copytree(toy_run, run)
    (run / "data.json").write_text(json.dumps({"data": "folder", "root": str(toy_faces), "options": {}}))
    first = benchmarks.load("folder", toy_faces).train
    write_labels(run / "labels.csv", {str(first.names[0]): first.classes[1 - first.labels[0]]})
    assert "changed by a file" not in ferlab("evaluate", "--run", run, "--split", "train").out


def test_load_pretrained_tells_what_there_is(tmp_path: Path):
    with pytest.raises(FerlabError, match="ferlab train"):
        package.load_pretrained("no such thing")
    with pytest.raises(FerlabError, match="no config.json"):
        package.load_pretrained(tmp_path)
    (tmp_path / "noise.pt").write_bytes(b"noise")
    with pytest.raises(FerlabError, match="no recogniser"):
        package.load_pretrained(tmp_path / "noise.pt")


def test_a_data_folder_does_not_hide_the_packaged_recogniser(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "ferplus").mkdir()
    monkeypatch.chdir(tmp_path)
    assert len(package.load_pretrained("ferplus").classes) == 8


# -------------------------------------------------------------------------------------------------- class matching

def perfect(classes: tuple[str, ...], order: tuple[str, ...] = ()) -> SimpleNamespace:
    """A recogniser that reads the class, its place in ``order``, from a face's first pixel."""
    order = order or classes

    def predict(images: np.ndarray, mirror: bool, balance: float) -> np.ndarray:
        probabilities = np.full((len(images), len(classes)), 0.01, np.float32)
        for row, number in zip(probabilities, images[:, 0, 0], strict=True):
            row[classes.index(order[number]) if order[number] in classes else 0] = 0.9
        return probabilities / probabilities.sum(1, keepdims=True)

    return SimpleNamespace(classes=classes, predict=predict, about={}, config=profile("smoke"))


def test_corrected_labels_reach_the_faces_held_out_and_their_scores(ferlab, tmp_path: Path):
    """A corrected folder has one list of labels; what is held out of it was judged, too."""
    root, run, file = tmp_path / "faces", tmp_path / "run", tmp_path / "corrected.csv"
    (write_toy_faces(tmp_path / "parts", {"train": 12}) / "train").rename(root)  # <class>/ alone
    faces = benchmarks.load("folder", root).train
    other = [faces.classes[(label + 1) % 3] for label in faces.labels]
    write_labels(file, dict(zip(faces.names.tolist(), other)))
    command = ("train", "--data", "folder", "--root", root, "--profile", "smoke", "--method", "plain", "--holdout",
               0.25, "--set", "epochs=1", "--set", "batch_size=16", "--labels", file, "--run", run)
    assert ferlab(*command).code == 0
    kept = benchmarks.load("folder", root, holdout=0.25)
    named = dict(zip(faces.names.tolist(), other))
    judged = judged_faces(run)
    assert [judged.classes[c] for c in judged.labels] == [named[name] for name in kept.train.names]
    for split, count in (("train", 27), ("valid", 9)):
        outcome = ferlab("evaluate", "--run", run, "--split", split, "--json", tmp_path / "scores.json")
        scores = json.loads((tmp_path / "scores.json").read_text())
        expected = [named[name] for name in getattr(kept, split).names]
        assert scores["against"] == "given" and "against the given labels" in outcome.out and scores["faces"] == count
        assert scores["counts"] == {name: expected.count(name) for name in faces.classes}
    other = next(name for name in faces.classes if name != expected[0])
    write_labels(file, {kept.valid.names[0]: other})  # corrected once more, that of a held out face
    outcome = ferlab("evaluate", "--run", run, "--split", "valid", "--labels", file, "--json", tmp_path / "scores.json")
    scores = json.loads((tmp_path / "scores.json").read_text())
    assert scores["counts"] == {name: [other, *expected[1:]].count(name) for name in faces.classes}
    assert "labels changed by a file: 1)" in outcome.out
    outcome = ferlab("evaluate", "--run", run, "--split", "train", "--labels", file)
    assert outcome.code == 2 and str(kept.valid.names[0]) in outcome.err  # no training face
    outcome = ferlab("evaluate", "--run", run, "--root", tmp_path / "parts", "--split", "train")
    assert outcome.code == 2 and "parts" in outcome.err  # now empty
    apart = write_toy_faces(tmp_path / "apart", {"train": 5})  # other faces: neither a holdout nor labels are theirs
    outcome = ferlab("evaluate", "--run", run, "--root", apart, "--split", "train")
    assert outcome.code == 0 and "15 faces" in outcome.out
    file.write_text("name,label\nnobody.png," + faces.classes[0] + "\n")
    told = ferlab(*command[:-1], tmp_path / "other")
    assert told.code == 2 and "nobody.png, which is none of" in told.err


def marked(classes: tuple[str, ...], labels: list[int], **more) -> FaceSet:
    """Faces that carry the number of their class in every pixel."""
    images = np.array(labels, np.uint8)[:, None, None].repeat(32, 1).repeat(32, 2)
    return FaceSet(images, np.array(labels), classes, dataset="marked", split="test", **more)


def test_classes_are_matched_by_name_not_by_place():
    classes = ("fear", "happy", "Sad", "neutral")
    faces = marked(classes, [0, 1, 1, 2, 3, 3, 3])
    known = ("neutral", "happiness", "sadness", "fear")
    scores = evaluate(perfect(known, ("fear", "happiness", "sadness", "neutral")), faces)
    assert scores["accuracy"] == 1 and scores["classes"] == list(known) and scores["note"] == ""
    assert scores["counts"] == {"neutral": 3, "happiness": 2, "sadness": 1, "fear": 1}


def test_faces_of_classes_that_the_recogniser_lacks_are_left_out_and_told():
    faces = marked(("neutral", "contempt", "anger"), [0, 0, 1, 2], votes=np.eye(3)[[0, 0, 1, 2]])
    scores = evaluate(perfect(("anger", "neutral"), faces.classes), faces)
    assert scores["faces"] == 3 and scores["accuracy"] == 1 and "divergence" in scores
    assert "1 faces are left out" in scores["note"] and "contempt" in scores["note"]


def test_classes_that_the_data_lack_cannot_be_chosen():
    faces = marked(("neutral", "anger"), [0, 1, 1])
    scores = evaluate(perfect(("contempt", "neutral", "anger"), ("neutral", "contempt")), faces)
    assert scores["classes"] == ["neutral", "anger"]
    assert np.sum(scores["confusion_matrix"]) == 3 and "contempt" in scores["note"]


def test_unrelated_classes_are_refused():
    with pytest.raises(FerlabError, match="no class is the same"):
        evaluate(perfect(("a", "b")), marked(("c", "d"), [0, 1]))


def test_scores_are_against_the_truth_unless_the_given_labels_are_asked_for():
    faces = marked(("anger", "fear"), [0, 1, 1, 1], truth=np.array([0, 0, 1, -1]))
    recogniser = perfect(("anger", "fear"))
    assert evaluate(recogniser, faces)["accuracy"] == pytest.approx(2 / 3)  # the unknown one does not count
    assert evaluate(recogniser, faces, against="given")["accuracy"] == 1


def test_scores_are_of_a_face_and_its_mirror_image_unless_the_face_alone_is_asked_for():
    recogniser = package.load_pretrained("ferplus")
    images = np.random.default_rng(0).integers(0, 256, (12, 48, 48), np.uint8)
    one, both = (recogniser.predict(images, mirror).argmax(1) for mirror in (False, True))
    assert (one != both).any()  # else these faces cannot tell
    faces = FaceSet(images, one, recogniser.classes, dataset="noise", split="test")
    assert evaluate(recogniser, faces, mirror=False)["accuracy"] == 1
    scores = evaluate(recogniser, faces)
    assert scores["mirror"] and scores["accuracy"] == np.mean(one == both)


def test_divergence_and_agreement_are_of_the_scored_faces():
    votes = np.float32([[9, 1, 0], [0, 2, 8], [3, 7, 0]])  # of neutral, contempt, anger
    faces = marked(("neutral", "contempt", "anger"), [0, 2, 1], votes=votes)
    recogniser = perfect(("anger", "neutral"), faces.classes)
    scores = evaluate(recogniser, faces)
    probabilities = recogniser.predict(faces.images, True, 0.0)[:2]
    assert scores["divergence"] == pytest.approx(jensen_shannon(probabilities, votes[:2, [2, 0]]).mean())
    assert scores["by_agreement"] == by_agreement(np.ones(2, bool), votes[:2, [2, 0]])
    assert sum(each["faces"] for each in scores["by_agreement"]) == scores["faces"] == 2


def test_divergence_is_from_the_soft_labels_where_there_are_any():
    soft = np.float32([[0.7, 0.3], [0.2, 0.8]])
    faces = marked(("anger", "fear"), [0, 1], votes=np.eye(2), label_distribution=soft)
    recogniser = perfect(faces.classes)
    expected = jensen_shannon(recogniser.predict(faces.images, True, 0.0), soft).mean()
    assert evaluate(recogniser, faces)["divergence"] == pytest.approx(expected)


def test_a_class_is_not_taken_for_itself():
    result = {"classes": ["a", "b", "c"], "confusion_matrix": [[9, 1, 2], [3, 5, 0], [0, 0, 4]]}
    assert most_taken_for(result) == {"a": ("c", 2), "b": ("a", 3), "c": ("a", 0)}


def test_faces_of_unknown_truth_are_not_said_to_be_left_out():
    faces = marked(("anger", "fear"), [0, 1, 1], truth=np.array([0, 1, -1]))
    assert evaluate(perfect(faces.classes), faces)["note"] == ""


def test_without_a_truth_scores_are_against_the_given_labels_and_say_so():
    faces = marked(("anger", "fear"), [0, 1])
    assert evaluate(perfect(faces.classes), faces)["against"] == "given"
    faces.truth = faces.labels
    assert evaluate(perfect(faces.classes), faces)["against"] == "reference"


def test_classes_that_would_become_one_stay_two():
    faces = marked(("happy", "happiness", "fear"), [0, 1, 2])
    scores = evaluate(perfect(("happiness", "fear"), faces.classes), faces)
    assert scores["counts"] == {"happiness": 1, "fear": 1} and "happy" in scores["note"]

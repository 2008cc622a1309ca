"""The audit: no face judged by a network that saw it, scores by hand, resuming, the list, and cleanlab's side."""

import importlib.util
import json
import os
import warnings
from dataclasses import replace

import fakes
import numpy as np
import pandas as pd
import pytest
import torch
from conftest import REPOSITORY
from PIL import Image
from sklearn.metrics import roc_auc_score
from test_training import bars, settings

from ferlab import audit as auditing
from ferlab.audit import Audit, audit, fold_of, judge, read, write
from ferlab.confusion import label_posterior
from ferlab.data import Splits
from ferlab.decisions import read_labels
from ferlab.errors import FerlabError
from ferlab.explorer import judged_faces
from ferlab.retrieval import KINDS, class_average_precision, relabel
from ferlab.training import Trainer, train

CLASSES = ("high", "middle", "low")


def found_by_hand():
    probability = np.float32([[0.7, 0.2, 0.1], [0.1, 0.8, 0.1], [0.3, 0.3, 0.4]])
    precision = np.float32([[0.6, 0.3, 0.1], [0.2, 0.9, 0.1], [0.2, 0.6, 0.2]])
    return Audit(np.array(["a", "b", "c"]), CLASSES, np.array([0, 0, 2]), probability, precision,
                 np.int64([[1, 2], [0, -1], [0, 1]]), np.array([0, 1, 0]))


def test_scores_by_hand():
    found = found_by_hand()
    opinion = found.probability * relabel(found.average_precision).numpy()
    posterior, confusion = label_posterior(torch.from_numpy(opinion), torch.from_numpy(found.given))
    assert np.allclose(found.confusion, confusion)
    assert np.allclose(found.soft_label, posterior) and np.allclose(found.soft_label.sum(1), 1)
    assert np.allclose(found.score, 1 - posterior[np.arange(3), found.given].numpy())
    assert found.suggested.tolist() == [1, 1, 1]  # never the given class
    table = found.table()
    assert list(table["name"]) == ["b", "c", "a"] and list(table["given"]) == ["high", "low", "high"]
    assert list(table["suggested"]) == ["middle"] * 3
    assert list(table.columns) == ["name", "given", "suggested", "score", "soft high", "soft middle", "soft low"]
    quality = found.quality(np.array([0, 1, -1]))  # the third is unknown
    assert quality == {"auroc": 1.0, "average_precision": 1.0, "wrong_share": 0.5, "right_if_wrong": 1.0}


def test_folds_are_balanced_and_of_the_seed():
    labels = np.random.default_rng(0).integers(0, 3, 101)
    fold = fold_of(labels, 4, 0)
    assert {int(n) for n in np.bincount(fold)} <= {25, 26}
    for c in range(3):
        share = np.bincount(fold[labels == c], minlength=4)
        assert share.max() - share.min() <= 1
    assert np.array_equal(fold, fold_of(labels, 4, 0)) and not np.array_equal(fold, fold_of(labels, 4, 1))


def test_no_face_is_judged_by_a_network_that_saw_it(tmp_path, monkeypatch):
    faces, seen = bars(60), []
    faces.names = np.arange(60).astype(str)

    def look(trainer, unseen):
        seen.append((set(trainer.train.names), set(unseen.names)))
        return judge(trainer, unseen)

    monkeypatch.setattr(auditing, "judge", look)
    audit(faces, settings(epochs=1), tmp_path, folds=3)
    assert len(seen) == 3 and set.union(*(unseen for _, unseen in seen)) == set(faces.names)
    for trained, unseen in seen:
        assert not trained & unseen and len(trained | unseen) == 60


def test_a_face_alone_in_its_class_is_not_judged(tmp_path):
    faces, told = bars(31), []
    faces.labels = np.where(np.arange(31) == 30, 2, faces.labels % 2)
    found = audit(faces, settings(epochs=1), tmp_path, folds=2, tell=told.append)
    assert found.score[30] < 1e-6 and not found.better[30] and found.order[-1] == 30
    assert sum("the only face called" in line and "counts as right" in line for line in told) == 1


def test_the_gallery_is_of_faces_whose_label_the_network_gives_them(monkeypatch):
    trainer = Trainer(settings(), Splits(bars(30, wrong=0.3), None, None))
    unseen, given = bars(9, seed=1), torch.from_numpy(trainer.train.labels)
    monkeypatch.setattr(trainer, "collect", lambda faces: collected[len(faces)])
    rng = torch.Generator().manual_seed(0)
    logits = torch.randn(30, 3, generator=rng)
    logits[given == 2, 2] = -9  # a class that the network never gives
    one, two = (torch.nn.functional.normalize(torch.randn(n, 5, generator=rng), dim=1) for n in (30, 9))
    collected = {30: type("C", (), {"logits": logits, "embedding": one}),
                 9: type("C", (), {"logits": torch.randn(9, 3, generator=rng), "embedding": two})}
    kept = (logits.argmax(1) == given) | (given == 2)
    expected = class_average_precision(two, one[kept], given[kept], 3, balanced=True)
    assert 0 < kept.sum() < 30
    judged = judge(trainer, unseen)
    assert np.allclose(judged["average_precision"], expected)
    similarity = np.where(kept, two @ one.T, -2)
    assert np.array_equal(judged["neighbours"], np.argsort(-similarity, axis=1)[:, :10])


@pytest.fixture(scope="module")
def audited(tmp_path_factory):
    """An audit of toy faces of whose labels a fifth is wrong."""
    directory = tmp_path_factory.mktemp("audits") / "toy"
    faces = bars(150, wrong=0.2)
    found = audit(faces, settings(epochs=5), directory, folds=2)
    return directory, faces, found, write(found, faces, directory, count=12)


def test_it_finds_the_wrong_labels_and_the_right_ones(audited):
    _, faces, found, _ = audited
    quality = found.quality(faces.truth)
    wrong = faces.labels != faces.truth
    assert quality["auroc"] == pytest.approx(roc_auc_score(wrong, found.score)) and quality["auroc"] > 0.95
    assert quality["right_if_wrong"] > 0.9
    assert wrong[np.argsort(-found.score)[:20]].mean() > 0.9


def test_the_list_the_picture_and_the_arrays(audited):
    directory, faces, found, paths = audited
    table = pd.read_csv(paths["csv"])
    assert len(table) == 150 and table["score"].is_monotonic_decreasing
    row = np.argsort(-found.score, kind="stable")[0]
    assert str(table["name"][0]) == found.names[row] and table["given"][0] == CLASSES[faces.labels[row]]
    assert np.allclose(table.filter(like="soft ").sum(axis=1), 1, atol=1e-3)
    with Image.open(paths["png"]) as picture:
        assert picture.width > 8 * 60 and picture.height > 2 * 60
    again, truth = read(directory)
    assert np.array_equal(again.score, found.score) and np.array_equal(truth, faces.truth)
    assert np.array_equal(again.neighbours, found.neighbours)
    assert np.array_equal(again.fold, fold_of(faces.labels, 2, 0))
    assert (found.fold[found.neighbours] != found.fold[:, None]).all()  # of those that the network was trained on
    with pytest.raises(FerlabError, match="holds no audit"):
        read(directory / "nowhere")


def test_a_face_has_the_same_place_in_the_list_and_in_the_picture(monkeypatch):
    """Also where scores differ by less than the list shows."""
    rng, count = np.random.default_rng(0), 200
    probability = np.float32(1 - rng.uniform(1e-9, 1e-6, (count, 3)))
    given = rng.integers(0, 3, count)
    probability[np.arange(count), given] = rng.uniform(1e-9, 1e-6, count)
    found = Audit(np.arange(count).astype(str), CLASSES, given, probability, probability,
                  np.zeros((count, 1), int), np.zeros(count, int))
    assert len(set(found.table()["score"])) < len(set(found.score))
    shown = {}
    monkeypatch.setattr("ferlab.plots.face_grid", lambda images, captions, **more: shown.update(images=images))
    found.contact_sheet(bars(count), 48)
    listed = found.table()["name"][:48].astype(int)
    assert np.array_equal(shown["images"], bars(count).images[listed])


def test_names_that_are_no_text_are_written_as_they_are(tmp_path):
    name = os.fsdecode(b"caf\xe9.png")
    found = replace(found_by_hand(), names=np.array([name, "b", "c"]))
    faces = bars(3)
    faces.names, faces.classes = found.names, CLASSES
    assert b"caf\xe9.png" in write(found, faces, tmp_path)["csv"].read_bytes()


def test_truth_and_votes_are_not_used(audited, tmp_path):
    _, faces, found, _ = audited
    blind = bars(150, wrong=0.2)
    blind.truth = blind.votes = None
    assert np.array_equal(audit(blind, settings(epochs=5), tmp_path, folds=2).score, found.score)
    assert "truth" not in np.load(write(found, blind, tmp_path)["npz"])


def test_it_goes_on_where_it_stopped(audited, tmp_path, monkeypatch):
    _, faces, found, _ = audited
    config, trained = settings(epochs=5), []

    def interrupted(*arguments):
        if trained:
            raise KeyboardInterrupt
        trained.append(arguments)
        return train(*arguments)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(auditing, "train", interrupted)
        audit(faces, config, tmp_path, folds=2)
    said, more = [], []
    monkeypatch.setattr(auditing, "train", lambda *arguments: (more.append(1), train(*arguments))[1])
    again = audit(faces, config, tmp_path, folds=2, tell=said.append)
    assert len(more) == 1 and len(said) == 2 and np.array_equal(again.score, found.score)

    other = bars(150, wrong=0.2)
    other.labels[0] = (other.labels[0] + 1) % 3
    with pytest.raises(FerlabError, match="another directory"):
        audit(other, config, tmp_path, folds=2)
    with pytest.raises(FerlabError, match="settings"):
        audit(faces, config.replace(epochs=6), tmp_path, folds=2)
    (tmp_path / "fold_1.npz").write_bytes(b"damaged")
    with pytest.raises(FerlabError, match="fold_1.npz cannot be read"):
        audit(faces, config, tmp_path, folds=2)


def test_folds_that_cannot_be(tmp_path):
    for folds in (1, 61):
        with pytest.raises(FerlabError, match="folds"):
            audit(bars(60), settings(), tmp_path, folds=folds)


def test_a_directory_holds_an_audit_or_a_training_not_both(ferlab, toy_faces, tmp_path):
    data = ("--data", "folder", "--root", toy_faces, "--profile", "smoke", "--set", "epochs=1", "--set", "split=off")
    assert ferlab("train", *data, "--run", tmp_path / "run").code == 0
    assert ferlab("audit", *data, "--folds", 2, "--out", tmp_path / "audit").code == 0
    files = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    told = ferlab("audit", *data, "--folds", 2, "--out", tmp_path / "run")
    assert told.code == 2 and "run holds a training: choose another directory" in told.err
    told = ferlab("train", *data, "--run", tmp_path / "audit")
    assert told.code == 2 and "audit holds an audit: choose another --run directory" in told.err
    assert files == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file() and path in files}


def test_faces_of_one_label_are_nothing_to_learn_from(ferlab, tmp_path):
    fakes.folders(tmp_path / "faces", kinds=["merry"])
    for command, out in (("train", "--run"), ("audit", "--out")):
        told = ferlab(command, "--data", "folder", "--root", tmp_path / "faces", out, tmp_path / "out")
        assert told.code == 2 and "given one label, merry: give faces of two classes at least" in told.err


def test_settings_of_retrieval_count_whatever_the_method(ferlab, toy_faces, tmp_path):
    command = ("audit", "--data", "folder", "--root", toy_faces, "--profile", "smoke", "--folds", 2, "--set",
               "epochs=1")
    asked = ferlab(*command, "--out", tmp_path / "a", "--set", "top_k=5", "--set", "tied=off")
    assert asked.code == 0 and "does not obey tied: only drfer" in asked.err
    assert ferlab(*command, "--out", tmp_path / "b").code == 0
    assert not np.allclose(*(read(tmp_path / name)[0].average_precision for name in "ab"))


def test_the_command(ferlab, toy_faces, tmp_path):
    command = ("audit", "--data", "folder", "--root", toy_faces, "--profile", "smoke", "--folds", 2, "--noise",
               "symmetric", "--noise-rate", 0.2, "--set", "epochs=4", "--set", "batch_size=8", "--out", tmp_path)
    outcome = ferlab(*command)
    assert outcome.code == 0, outcome.err
    assert "20.8 % of the labels are wrong" in outcome.out or "19.8 % of the labels are wrong" in outcome.out
    assert "fold 2/2" in outcome.out and str(tmp_path / "suspicious.csv") in outcome.out
    assert (tmp_path / "suspicious.png").is_file()
    table = pd.read_csv(tmp_path / "suspicious.csv")
    suspected = table[table.score > 0.5]
    suggested = read_labels(tmp_path / "suggested.csv")  # as ferlab train --labels does
    assert suggested == dict(zip(suspected.name, suspected.suggested, strict=True)) and suggested
    assert ferlab(*command).out == outcome.out  # nothing is trained again
    told = ferlab(*command[:-1], tmp_path, "--noise-rate", 0.3)
    assert told.code == 2 and "another directory" in told.err
    told = ferlab(*command, "--split", "valid")
    assert told.code == 2 and "--split is valid: leave one out" in told.err

    corrected = tmp_path / "corrected.csv"
    (tmp_path / "suggested.csv").rename(corrected)
    again = ferlab(*command[:-1], tmp_path / "again", "--labels", corrected)
    assert again.code == 0 and f"labels changed by a file: {len(suggested)}" in again.out
    assert "ferlab train --labels" in outcome.out and "ferlab train --labels" not in again.out  # that would undo them
    corrected.unlink()  # the audit keeps a copy
    faces = judged_faces(tmp_path / "again")
    now = dict(zip(faces.names, np.array(faces.classes)[faces.labels]))
    assert {name: now[name] for name in suggested} == suggested


# ----------------------------------------------------------------------------------------------------------- cleanlab

@pytest.fixture(scope="module")
def comparison():
    pytest.importorskip("cleanlab")
    spec = importlib.util.spec_from_file_location("benchmarks_audit", REPOSITORY / "benchmarks" / "audit.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_cleanlabs_scores_are_turned_the_same_way(comparison):
    found = found_by_hand()
    scores = comparison.suspicion(found)
    assert np.allclose(scores["cleanlab self_confidence"], -found.probability[range(3), found.given])
    given = found.probability[range(3), found.given]
    others = np.array([0.2, 0.8, 0.3])
    assert np.allclose(scores["cleanlab normalized_margin"], -(given - others + 1) / 2)
    assert {"audit score", "retrieval margin", "cleanlab normalized_margin adjusted"} <= set(scores)


def test_the_comparison_of_an_audit(comparison, audited, tmp_path):
    directory, faces, found, _ = audited
    outcome = comparison.compare(found, faces.truth)
    wrong = faces.labels != faces.truth
    for name, score in comparison.suspicion(found).items():
        assert outcome["detection"][name]["auroc"] == pytest.approx(roc_auc_score(wrong, score))
    assert outcome["wrong_share"] == pytest.approx(wrong.mean())
    guess = found.probability.argmax(1)
    assert outcome["right_if_wrong"]["network's prediction"] == pytest.approx((guess == faces.truth)[wrong].mean())
    flagged = outcome["flagged"]
    assert flagged["audit, as many"]["flagged"] == flagged["cleanlab find_label_issues"]["flagged"] > 0
    assert flagged["audit, as many"]["precision"] > 0.8

    from click.testing import CliRunner

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        told = CliRunner().invoke(comparison.main, [str(directory), "--json", str(tmp_path / "toy.json")])
    assert told.exit_code == 0 and "| audit score |" in told.output
    assert json.loads((tmp_path / "toy.json").read_text())["faces"] == 150
    assert "holds no audit" in CliRunner().invoke(comparison.main, [str(tmp_path)]).output


@pytest.mark.parametrize("kind", ["plain", "chance", "balanced"])
def test_average_precisions_are_of_the_kind_that_is_asked_for(kind):
    trainer, unseen = Trainer(settings(average_precision=kind), Splits(bars(30), None, None)), bars(9, seed=1)
    seen, given = trainer.collect(trainer.train), torch.from_numpy(trainer.train.labels)
    kept = seen.logits.argmax(1) == given
    for c in range(3):
        kept |= (given == c) & ~kept[given == c].any()
    expected = class_average_precision(trainer.collect(unseen).embedding, seen.embedding[kept], given[kept], 3,
                                       **KINDS[kind])
    assert np.allclose(judge(trainer, unseen)["average_precision"], expected, atol=1e-6)


def test_folds_are_of_the_seed_and_networks_that_have_not_learned_are_told(tmp_path, monkeypatch):
    def judged(trainer, unseen):  # at random
        probability = np.float32(np.random.default_rng(0).dirichlet([1, 1, 1], len(unseen)))
        return {"probability": probability, "average_precision": probability,
                "neighbours": np.zeros((len(unseen), 10), int)}

    monkeypatch.setattr(auditing, "train", lambda *_: None)
    monkeypatch.setattr(auditing, "judge", judged)
    faces, told = bars(60), []
    found = audit(faces, settings(seed=5), tmp_path, folds=3, tell=told.append)
    assert np.array_equal(found.fold, fold_of(faces.labels, 3, 5))
    assert not found.learned and "do not trust the list" in told[-1]


def test_a_label_that_is_doubtful_but_likelier_than_any_other_is_not_changed(tmp_path):
    found = found_by_hand()
    posterior = torch.tensor([[0.4, 0.3, 0.3], [0.2, 0.7, 0.1], [0.2, 0.6, 0.2]]).double()
    found.__dict__["_posterior"] = posterior, None
    assert found.suspected.all() and found.better.tolist() == [False, True, True]
    assert read_labels(write(found, bars(3), tmp_path)["labels"]) == {"b": "middle", "c": "middle"}


def test_quality_is_of_known_faces():
    found = found_by_hand()
    assert found.quality(np.array([-1, 1, 2])) | {"auroc": 0, "average_precision": 0} == {
        "auroc": 0, "average_precision": 0, "wrong_share": 0.5, "right_if_wrong": 1.0}


def test_an_audit_of_right_labels_has_nothing_to_compare(comparison, audited):
    _, faces, found, _ = audited
    with pytest.raises(FerlabError, match="none are wrong"):
        comparison.compare(found, found.given)

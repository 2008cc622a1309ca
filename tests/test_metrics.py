"""Scores against scikit-learn's and against counting by hand."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import jensenshannon
from scipy.stats import f_oneway
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    balanced_accuracy_score,
    confusion_matrix,
    f1_score,
    recall_score,
    roc_auc_score,
)

from ferlab.metrics import (
    balanced,
    by_agreement,
    by_class,
    classification,
    fisher_ratio,
    has_learned,
    jensen_shannon,
    noise_detection,
    relabelling_quality,
    split_quality,
)

CLASSES = ("a", "b", "c", "d")


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 4))
def test_classification_is_scikit_learns(seed, present):
    rng = np.random.default_rng(seed)
    labels, probabilities = rng.integers(-1, present, size=80), rng.random((80, 4))
    probabilities[:, present:] = 0  # a class that no face has, and no prediction names
    scores = classification(probabilities, labels, CLASSES)
    known, predicted = labels[labels >= 0], probabilities.argmax(1)[labels >= 0]
    assert scores["accuracy"] == pytest.approx(accuracy_score(known, predicted))
    assert scores["mean_class_accuracy"] == pytest.approx(balanced_accuracy_score(known, predicted))
    assert scores["macro_f1"] == pytest.approx(f1_score(known, predicted, average="macro"))
    assert scores["confusion_matrix"] == confusion_matrix(known, predicted, labels=range(4)).tolist()
    recall = recall_score(known, predicted, average=None, labels=range(present))
    assert list(scores["recall"].values()) == pytest.approx([*recall, *[None] * (4 - present)])
    assert scores["counts"] == {name: int((known == c).sum()) for c, name in enumerate(CLASSES)}
    assert scores["faces"] == len(known)


def test_predictions_of_an_absent_class_count_as_misses():
    scores = classification(np.eye(4)[[0, 1, 3, 3]], np.array([0, 1, 1, 0]), CLASSES)
    assert scores["accuracy"] == 0.5 and scores["mean_class_accuracy"] == 0.5
    assert scores["recall"] == {"a": 0.5, "b": 0.5, "c": None, "d": None}
    assert scores["macro_f1"] == pytest.approx(2 / 3)


def test_no_known_face_gives_no_score():
    scores = classification(np.zeros((3, 4)), np.full(3, -1), CLASSES)
    assert scores["accuracy"] is scores["mean_class_accuracy"] is scores["macro_f1"] is None and scores["faces"] == 0


def test_balanced_probabilities_are_those_of_equally_frequent_classes():
    seen = np.random.default_rng(0).dirichlet([1, 1, 1], 20)  # p(face | class), up to a factor for each face
    frequencies = np.array([0.7, 0.29, 0.01])
    posterior = seen * frequencies / (seen * frequencies).sum(1, keepdims=True)
    assert np.allclose(balanced(posterior, frequencies, 1), seen / seen.sum(1, keepdims=True))
    assert np.allclose(balanced(posterior, frequencies, 0), posterior)
    half = seen * frequencies**0.5
    assert np.allclose(balanced(posterior, frequencies, 0.5), half / half.sum(1, keepdims=True))
    assert balanced(np.array([[0.6, 0.3, 0.1]]), np.array([0.5, 0.5, 0.0]), 1).argmax() == 0  # the last, never learned


def test_noise_detection_is_scikit_learns_and_higher_means_more_suspect():
    rng = np.random.default_rng(0)
    wrong = rng.random(200) < 0.3
    suspicion = (rng.random(200) + wrong).round(1)  # with ties
    scores = noise_detection(suspicion, wrong)
    assert scores["auroc"] == pytest.approx(roc_auc_score(wrong, suspicion))
    assert scores["average_precision"] == pytest.approx(average_precision_score(wrong, suspicion))
    assert noise_detection(wrong.astype(float), wrong) == {"auroc": 1.0, "average_precision": 1.0}
    for nothing in (np.zeros(5, bool), np.ones(5, bool), np.zeros(0, bool)):
        assert noise_detection(np.arange(len(nothing)), nothing) == {"auroc": None, "average_precision": None}


def test_split_quality_counts_known_faces_only():
    clean_probability = np.array([0.9, 0.8, 0.5, 0.2, 0.1, 0.7, 0.9])
    given_labels, truth = np.array([0, 0, 0, 0, 1, 1, 1]), np.array([0, 0, 1, 0, 0, 1, -1])
    scores = split_quality(clean_probability, given_labels, truth, 0.5)
    # clean: faces 0, 1, 2, 5; wrong: faces 2, 4
    assert scores["clean_precision"] == 3 / 4 and scores["clean_recall"] == 3 / 4 and scores["clean_share"] == 4 / 6
    assert scores["auroc"] == pytest.approx(roc_auc_score([0, 0, 1, 0, 1, 0], -clean_probability[:6]))

    def quality(rows):
        return split_quality(clean_probability[rows], given_labels[rows], truth[rows], 0.5)

    of_classes = by_class(quality, given_labels, ("calm", "glad", "cross"))
    assert of_classes.pop("per_class") == {"calm": quality(given_labels == 0), "glad": quality(given_labels == 1)}
    assert of_classes == scores
    assert quality(given_labels == 0)["auroc"] == pytest.approx(2 / 3) and quality(given_labels == 1)["auroc"] == 1.0


def test_relabelling_quality_counts_by_hand():
    given_labels, truth = np.array([0, 0, 1, 1, 2, 0]), np.array([0, 1, 1, 2, 1, -1])
    noisy = np.array([False, True, True, True, False, True])
    soft = np.eye(3)[[2, 1, 0, 0, 1, 1]]  # of faces that are not noisy it does not count
    scores = relabelling_quality(soft, noisy, given_labels, truth, None)
    assert scores == {
        "right_if_wrong": 1 / 2,  # faces 1, 3: now 1, 0
        "right_if_clean": 0.0,  # face 2
        "recovered": 1 / 3,  # faces 1, 3, 4
        "right_after": 2 / 5,  # faces 0 and 1
    }


def test_divergence_is_over_relabelled_faces_with_votes():
    votes = np.array([[3.0, 1.0], [0.0, 5.0], [0.0, 0.0], [1.0, 1.0]])
    noisy, labels = np.array([True, True, True, False]), np.zeros(4, int)
    soft = np.array([[0.75, 0.25], [1.0, 0.0], [0.5, 0.5], [1.0, 0.0]])
    assert relabelling_quality(soft, noisy, labels, labels, votes)["divergence"] == pytest.approx(0.5)  # 0 and 1 bit
    assert relabelling_quality(soft, np.zeros(4, bool), labels, labels, votes)["divergence"] is None


def test_accuracy_by_the_raters_agreement():
    votes = np.array([[10, 0, 0], [9, 1, 0], [8, 2, 0], [7, 3, 0], [7, 2, 1], [5, 5, 0], [4, 3, 3], [0, 0, 0]], "f4")
    right = np.array([1, 1, 1, 0, 0, 1, 0, 1], bool)
    assert by_agreement(right, votes) == [
        {"from": 0.9, "to": 1.0, "faces": 2, "accuracy": 1.0},
        {"from": 0.7, "to": 0.9, "faces": 3, "accuracy": 1 / 3},
        {"from": 0.5, "to": 0.7, "faces": 1, "accuracy": 1.0},
        {"from": 0.0, "to": 0.5, "faces": 1, "accuracy": 0.0},
    ]
    assert [each["faces"] for each in by_agreement(right[2:4], votes[2:4])] == [2]  # no row without faces


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6))
def test_fisher_ratio_of_one_dimension_is_the_f_statistic(seed):
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(4), [3, 5, 8, 20])
    values = rng.normal(labels, 1 + labels)
    expected = f_oneway(*(values[labels == c] for c in range(4))).statistic * 3 / (36 - 4)
    assert fisher_ratio(values[:, None], labels) == pytest.approx(expected)
    three = values[:, None] * np.array([1.0, -2, 0]) + 7  # turned, scaled and moved as a whole: the same
    assert fisher_ratio(three, labels) == pytest.approx(expected)
    assert fisher_ratio(np.eye(4)[labels], labels) == np.inf


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10**6))
def test_jensen_shannon_is_scipys_squared_distance(seed):
    p, q = np.random.default_rng(seed).gamma(0.3, size=(2, 6, 5)) + 1e-6
    assert jensen_shannon(p, q) == pytest.approx(jensenshannon(p, q, base=2, axis=1) ** 2, abs=1e-7)
    assert jensen_shannon(np.eye(3), np.eye(3)[[0, 2, 1]]) == pytest.approx([0, 1, 1])


def test_a_network_has_learned_that_beats_the_most_frequent_class_by_a_tenth():
    labels = np.array([0, 0, 0, 1, 2])
    assert has_learned(0.71, labels) and not has_learned(0.69, labels)


def test_divergence_leaves_out_faces_without_votes():
    votes, soft = np.array([[3.0, 1.0], [0.0, 0.0]]), np.array([[0.75, 0.25], [0.5, 0.5]])
    noisy, labels = np.ones(2, bool), np.zeros(2, int)
    assert relabelling_quality(soft, noisy, labels, labels, votes)["divergence"] == pytest.approx(0)

"""The estimated confusion of labels: planted ones are found, and the posterior follows Bayes' rule."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given as drawn
from hypothesis import settings
from hypothesis import strategies as st

from ferlab.confusion import label_posterior, posterior_under
from ferlab.errors import FerlabError

RATERS = np.array([[0.9, 0.05, 0.05], [0.1, 0.8, 0.1], [0.5, 0.1, 0.4]])  # class 2 is taken for 0 half of the time


def planted(count: int = 6000, apart: float = 2.0, seed: int = 0):
    """True classes, labels given by RATERS, and well-calibrated opinions: of Gaussian features ``apart`` by class."""
    rng = np.random.default_rng(seed)
    truth = rng.choice(3, size=count, p=[0.5, 0.3, 0.2])
    given = np.array([rng.choice(3, p=RATERS[c]) for c in truth])
    features = apart * np.eye(3)[truth] + rng.normal(0, 1, (count, 3))
    return truth, torch.from_numpy(given), torch.from_numpy(apart * features + np.log([0.5, 0.3, 0.2])).softmax(1)


def test_a_planted_confusion_is_found():
    truth, given, opinion = planted()
    posterior, confusion = label_posterior(opinion, given)
    assert np.allclose(confusion, RATERS, atol=0.04)
    right = (posterior.argmax(1).numpy() == truth).mean()
    assert right > (opinion.argmax(1).numpy() == truth).mean() > (given.numpy() == truth).mean()


def test_a_label_that_raters_confuse_says_less():
    _, given, opinion = planted()
    _, confusion = label_posterior(opinion, given)
    undecided = torch.tensor([[0.5, 0.0, 0.5]])
    often, never = (posterior_under(confusion, undecided, torch.tensor([g]))[0] for g in (0, 2))
    assert never[2] > often[0] > 0.5  # "0" may well be a 2; "2" is hardly ever a 0


def test_aligned_classes_are_labelled_rightly_equally_often():
    """An opinion that leans to the frequent class finds the shares of the classes again, and more right labels."""
    rng = np.random.default_rng(0)
    prior, leaning = np.array([0.6, 0.3, 0.1]), np.array([0.85, 0.13, 0.02])
    truth = rng.choice(3, size=6000, p=prior)
    given = torch.from_numpy(np.where(rng.random(6000) < 0.7, truth, (truth + rng.integers(1, 3, 6000)) % 3))
    features = 1.5 * np.eye(3)[truth] + rng.normal(0, 1, (6000, 3))
    opinion = torch.from_numpy(1.5 * features + np.log(leaning)).softmax(1)
    biased, _ = label_posterior(opinion, given)
    aligned, confusion = label_posterior(opinion, given, aligned=True)
    assert np.allclose(aligned.mean(0), np.bincount(truth) / 6000, atol=0.02)
    assert biased.mean(0)[2] < 0.8 * prior[2]
    assert (aligned.argmax(1).numpy() == truth).mean() > (biased.argmax(1).numpy() == truth).mean() + 0.01
    rows = confusion / confusion.sum(1, keepdim=True)
    assert np.allclose(rows.diagonal(), 0.7, atol=0.02)
    assert torch.allclose(posterior_under(confusion, opinion, given), aligned)  # the weights are in it


def test_the_posterior_is_bayes_rule():
    confusion = torch.tensor([[0.8, 0.2], [0.4, 0.6]])
    posterior = posterior_under(confusion, torch.tensor([[0.3, 0.7]]), torch.tensor([0]))
    assert torch.allclose(posterior, torch.tensor([[0.24, 0.28]]).double() / 0.52)
    tempered = posterior_under(confusion, torch.tensor([[0.3, 0.7]]), torch.tensor([0]), temperature=2)
    assert torch.allclose(tempered, posterior**0.5 / (posterior**0.5).sum())


@settings(deadline=None, max_examples=60)
@drawn(st.integers(1, 40), st.integers(1, 6), st.integers(0, 10_000), st.sampled_from([0.0, 1.0, 30.0]), st.booleans())
def test_rows_are_distributions_whatever_comes(count, classes, seed, sharp, aligned):
    rng = np.random.default_rng(seed)
    given = torch.from_numpy(rng.integers(classes, size=count))
    opinion = torch.from_numpy(rng.random((count, classes)) ** sharp)
    order = torch.from_numpy(rng.permutation(count))
    posterior, confusion = label_posterior(opinion, given, aligned=aligned)
    for rows in (posterior, confusion / confusion.sum(1, keepdim=True)):
        assert (rows >= 0).all() and torch.allclose(rows.sum(1), torch.ones(len(rows), dtype=torch.double))
    again, same = label_posterior(opinion[order], given[order], aligned=aligned)
    assert torch.allclose(again, posterior[order], atol=1e-6) and torch.allclose(same, confusion, atol=1e-6)


def test_what_does_not_match_is_told():
    with pytest.raises(FerlabError, match="do not match"):
        label_posterior(torch.ones(3, 2), torch.zeros(4, dtype=torch.long))


def test_the_confusion_is_that_of_the_posterior_with_laplaces_prior_and_knows_no_temperature():
    _, given, opinion = planted(60)  # few, so that the prior counts
    posterior, confusion = label_posterior(opinion, given)
    counts = posterior.T @ F.one_hot(given, 3).double() + 1
    assert torch.allclose(confusion, counts / counts.sum(1, keepdim=True), atol=1e-5)
    tempered, same = label_posterior(opinion, given, temperature=3)
    assert torch.equal(same, confusion)
    assert torch.allclose(tempered, posterior_under(confusion, opinion, given, 3)) and (tempered != posterior).any()


def test_weights_of_aligned_classes_are_at_most_one():
    _, given, opinion = planted(600)
    _, confusion = label_posterior(opinion * torch.tensor([1.0, 0.3, 0.1]), given, aligned=True)
    assert confusion.sum(1).max().item() == pytest.approx(1) and confusion.sum(1).min() < 0.9


def test_an_opinion_of_nothing_leaves_the_confusion_to_say():
    posterior = posterior_under(torch.tensor([[0.8, 0.2], [0.4, 0.6]]), torch.zeros(1, 2), torch.tensor([0]))
    assert torch.allclose(posterior, torch.tensor([[0.8, 0.4]]).double() / 1.2)


def test_a_temperature_near_zero_decides_and_arrays_are_taken():
    opinion, given = np.array([[2e-4, 1e-4], [0.0, 1e-9]]), np.array([0, 0], np.int32)
    cold = posterior_under(torch.full((2, 2), 0.5), torch.from_numpy(opinion), torch.from_numpy(given).long(), 0.001)
    assert torch.allclose(cold, torch.eye(2).double())
    posterior, _ = label_posterior(opinion, given)
    assert torch.equal(posterior, label_posterior(torch.from_numpy(opinion), torch.from_numpy(given))[0])

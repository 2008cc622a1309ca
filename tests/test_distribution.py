"""Distribution contrastive learning against recomputed means and spreads, and against numerical gradients."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from ferlab.distribution import ClassDistributions, distribution_contrastive_loss, distribution_shift
from ferlab.errors import FerlabError


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 30).flatmap(lambda n: arrays(np.float64, (n + 1, 3), elements=st.floats(-10, 10, width=16))))
def test_shift_is_how_far_mean_and_std_move_when_the_sample_joins(samples):
    members, newcomer = samples[:-1], samples[-1]
    expected = ((samples.mean(0) - members.mean(0)) ** 2).sum() + ((samples.std(0) - members.std(0)) ** 2).sum()
    shift = distribution_shift(newcomer[None], members.mean(0)[None], members.std(0)[None], len(members))
    assert shift.item() == pytest.approx(expected, rel=1e-6, abs=1e-5)


def test_shift_of_every_sample_to_every_class():
    rng = np.random.default_rng(0)
    classes = [rng.normal(rng.normal(size=4), rng.uniform(0.1, 2), (12, 4)) for _ in range(3)]
    newcomers = rng.normal(size=(5, 4))
    mean, std = np.stack([c.mean(0) for c in classes]), np.stack([c.std(0) for c in classes])
    shift = distribution_shift(newcomers, mean, std, 12).numpy()
    for b, c in np.ndindex(5, 3):
        joined = np.vstack([classes[c], newcomers[b]])
        expected = ((joined.mean(0) - mean[c]) ** 2).sum() + ((joined.std(0) - std[c]) ** 2).sum()
        assert shift[b, c] == pytest.approx(expected, rel=1e-9)


def test_gradients_of_shift_and_loss_are_the_numerical_ones():
    generator = torch.Generator().manual_seed(0)
    embeddings, mean = (torch.randn(n, 5, generator=generator, dtype=torch.float64) for n in (4, 3))
    std = torch.rand(3, 5, generator=generator, dtype=torch.float64) + 0.2
    inputs = [t.requires_grad_() for t in (embeddings, mean, std)]
    assert torch.autograd.gradcheck(lambda e, m, s: distribution_shift(e, m, s, 7.0), inputs)


def seen_classes(num_classes=3, dimensions=4, per_class=40):
    """Distributions that have seen one batch, and the batch."""
    generator = torch.Generator().manual_seed(1)
    labels = torch.arange(num_classes).repeat_interleave(per_class)
    embeddings = torch.randn(len(labels), dimensions, generator=generator) + 3 * labels[:, None]
    classes = ClassDistributions(num_classes, dimensions)
    classes.update(embeddings, labels, torch.ones(len(labels)))
    return classes, embeddings, labels


def test_first_batch_sets_mean_and_population_std():
    classes, embeddings, labels = seen_classes()
    for c in range(3):
        assert np.allclose(classes.mean[c], embeddings[labels == c].numpy().mean(0), atol=1e-5)
        assert np.allclose(classes.std[c], embeddings[labels == c].numpy().std(0), atol=1e-3)


def test_update_is_a_moving_average_that_ignores_noisy_samples():
    classes, embeddings, labels = seen_classes()
    mean, square = classes.mean.clone(), classes.square.clone()
    clean = (torch.arange(len(labels)) % 2).float()
    batch = embeddings + 1
    batch[clean == 0] = 1e6  # must not be seen
    clean[labels == 2] = 0  # no clean sample of class 2
    classes.update(batch, labels, clean)
    for c in (0, 1):
        chosen = batch[(labels == c) & (clean == 1)]
        assert torch.allclose(classes.mean[c], 0.9 * mean[c] + 0.1 * chosen.mean(0), atol=1e-5)
        assert torch.allclose(classes.square[c], 0.9 * square[c] + 0.1 * chosen.square().mean(0), atol=1e-4)
    assert torch.equal(classes.mean[2], mean[2]) and torch.equal(classes.square[2], square[2])


def test_one_face_in_a_batch_moves_its_class_less_than_four():
    classes, embeddings, labels = seen_classes()
    mean = classes.mean.clone()
    classes.update(torch.full((1, 4), 9.0), torch.tensor([0]), torch.ones(1))
    assert torch.allclose(classes.mean[0], mean[0] + 0.025 * (9 - mean[0]), atol=1e-5)


def test_loss_is_cross_entropy_of_negative_shifts_over_clean_samples():
    classes, embeddings, labels = seen_classes()
    weight = (torch.arange(len(labels)) % 3 > 0).float()
    loss = distribution_contrastive_loss(embeddings, labels, weight, classes, 10.0, 0.5)
    shift = distribution_shift(embeddings, classes.mean, classes.std, 10.0).double().numpy() * 121 / 0.5
    log_softmax = -shift - np.log(np.exp(-shift + shift.min(1, keepdims=True)).sum(1, keepdims=True)) + shift.min(
        1, keepdims=True)
    per_sample = -log_softmax[np.arange(len(labels)), labels]
    assert loss.item() == pytest.approx(per_sample[weight.numpy() > 0].mean(), rel=1e-4)


def test_loss_falls_as_a_face_nears_its_class_and_pulls_it_there():
    classes, _, _ = seen_classes()
    start = classes.mean[[1]].clone().requires_grad_()
    target = torch.tensor([0])
    loss = distribution_contrastive_loss(start, target, torch.ones(1), classes, 10.0, 5.0)
    loss.backward()
    assert (start.grad * (classes.mean[0] - start.detach())).sum() < 0  # a step downhill leads to class 0
    nearer = start.detach() + 0.5 * (classes.mean[0] - start.detach())
    assert distribution_contrastive_loss(nearer, target, torch.ones(1), classes, 10.0, 5.0) < loss


def test_a_big_class_is_not_near_to_everybody():
    mean, std = torch.zeros(2, 3), torch.ones(2, 3)
    mean[1] = 2.0
    middle = torch.full((1, 3), 1.0)
    shift = distribution_shift(middle, mean, std, 10)
    assert shift[0, 0] == pytest.approx(shift[0, 1].item(), rel=1e-5)
    assert distribution_shift(middle, mean, std, 1000)[0, 0] < shift[0, 0]  # which its own count would make it


def test_a_class_never_seen_takes_no_part():
    classes = ClassDistributions(3, 4)
    embeddings, labels = torch.randn(6, 4, generator=torch.Generator().manual_seed(2)), torch.arange(6) % 2
    assert distribution_contrastive_loss(embeddings, labels, torch.ones(6), classes, 10.0, 0.1).item() == 0
    classes.update(embeddings, labels, torch.ones(6))
    assert classes.seen.tolist() == [True, True, False]
    two = ClassDistributions(2, 4)
    two.update(embeddings, labels, torch.ones(6))
    arguments = embeddings, labels, torch.ones(6)
    assert distribution_contrastive_loss(*arguments, classes, 10.0, 0.1).item() == pytest.approx(
        distribution_contrastive_loss(*arguments, two, 10.0, 0.1).item(), abs=1e-6)
    unseen = distribution_contrastive_loss(embeddings, torch.full((6,), 2), torch.ones(6), classes, 10.0, 0.1)
    assert unseen.item() == 0
    assert distribution_contrastive_loss(embeddings, labels, torch.zeros(6), classes, 10.0, 0.1).item() == 0


def test_a_class_that_a_batch_lacks_stays_seen():
    classes, embeddings, labels = seen_classes()
    classes.update(embeddings[:5], labels[:5], torch.ones(5))  # of class 0 alone
    assert classes.seen.all()


def test_a_face_that_counts_half_is_a_mean_all_the_same():
    classes = ClassDistributions(1, 2)
    classes.update(torch.tensor([[2.0, 4.0]]), torch.tensor([0]), torch.tensor([0.5]))
    assert classes.mean.tolist() == [[2.0, 4.0]]


def test_statistics_are_in_single_precision_whatever_the_training_multiplies_in():
    embeddings = torch.rand(64, 8, generator=torch.Generator().manual_seed(2)) / 100 + 1  # the spread is small
    labels, weight = torch.arange(64) % 2, torch.ones(64)
    exact, half = ClassDistributions(2, 8), ClassDistributions(2, 8)
    exact.update(embeddings, labels, weight)
    with torch.autocast("cpu", torch.bfloat16):
        half.update(embeddings, labels, weight)
    assert torch.equal(exact.mean, half.mean) and torch.equal(exact.square, half.square)


@pytest.mark.parametrize("count", [1.0, 10.0, 1e4, 1e6])
def test_single_precision_is_enough_for_every_count(count):
    generator = torch.Generator().manual_seed(0)
    points, mean, std = (torch.randn(size, generator=generator) for size in ((50, 64), (3, 64), (3, 64)))
    single = distribution_shift(points, mean, std.abs() + 0.5, count)
    double = distribution_shift(points.double(), mean.double(), std.abs().double() + 0.5, count)
    assert single.dtype == torch.float32 and torch.allclose(single.double(), double, rtol=2e-4, atol=0)


@pytest.mark.parametrize("bad", [{"count": 0}, {"count": -1}, {"count": float("nan")}, {"count": float("inf")},
                                 {"mean": torch.zeros(2, 4)}, {"std": torch.ones(1, 3)}])
def test_what_is_no_distribution_is_told(bad):
    with pytest.raises(FerlabError, match="above 0|do not match"):
        distribution_shift(**{"embeddings": torch.zeros(5, 3), "mean": torch.zeros(2, 3), "std": torch.ones(2, 3),
                              "count": 10, **bad})

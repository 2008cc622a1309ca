"""The class-wise loss mixture against planted mixtures, scikit-learn's, and its own promises."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm
from sklearn.mixture import GaussianMixture

from ferlab import mixture
from ferlab.errors import FerlabError
from ferlab.mixture import ClassMixture, TwoGaussians, evidence, fit_two_gaussians


def planted(rng, count=4000, low=0.3, high=2.5, low_std=0.3, high_std=0.3, low_weight=0.7):
    """Losses of count samples, and which are of the low component."""
    clean = rng.random(count) < low_weight
    return np.where(clean, rng.normal(low, low_std, count), rng.normal(high, high_std, count)), clean


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("low_weight", [0.2, 0.5, 0.9])
def test_planted_means_spreads_and_weights_are_recovered(tied, low_weight):
    high_std = 0.3 if tied else 0.8
    losses, clean = planted(np.random.default_rng(0), high_std=high_std, low_weight=low_weight)
    mixture = fit_two_gaussians(losses, tied)
    assert mixture.low == pytest.approx(losses[clean].mean(), abs=0.03)
    assert mixture.high == pytest.approx(losses[~clean].mean(), abs=0.08)
    assert mixture.low_std == pytest.approx(0.3, abs=0.03) and mixture.high_std == pytest.approx(high_std, abs=0.08)
    assert mixture.low_weight == pytest.approx(clean.mean(), abs=0.02)
    assert ((mixture.low_probability(losses) >= 0.5) == clean).mean() > 0.97


@pytest.mark.parametrize("tied, separation", [(True, 2.0), (True, 3.0), (True, 5.0), (False, 3.0), (False, 5.0)])
def test_posterior_is_scikit_learns(tied, separation):
    for seed in range(3):
        losses, _ = planted(np.random.default_rng(seed), 1000, 0, separation, 1, 1)
        theirs = GaussianMixture(2, covariance_type="tied" if tied else "full", tol=1e-10, max_iter=20_000,
                                 reg_covar=0, random_state=0).fit(losses[:, None])
        posterior = theirs.predict_proba(losses[:, None])[:, theirs.means_[:, 0].argmin()]
        mixture = fit_two_gaussians(losses, tied)
        log_densities = mixture.log_densities(losses)
        total = np.logaddexp(*log_densities)
        assert total.mean() == pytest.approx(theirs.score(losses[:, None]), abs=1e-6)
        assert np.abs(np.exp(log_densities[0] - total) - posterior).max() < 0.005
        # between the means, and with tied variances everywhere, there is nothing to repair
        middle = (losses >= mixture.low) & (losses <= mixture.high) | tied
        assert np.abs(mixture.low_probability(losses) - posterior)[middle].max() < 0.005


@pytest.mark.parametrize("tied", [True, False])
def test_sums_over_groups_of_neighbours_change_next_to_nothing(tied, monkeypatch):
    losses, _ = planted(np.random.default_rng(0), 20_000, 0, 3, 1, 1.5)
    grouped = fit_two_gaussians(losses, tied)
    monkeypatch.setattr(mixture, "GROUPS", len(losses))
    for name, value in vars(fit_two_gaussians(losses, tied)).items():
        assert getattr(grouped, name) == pytest.approx(value, abs=1e-3)


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_tensors_are_taken_as_arrays_are(kind):
    losses, _ = planted(np.random.default_rng(0), 400, 0, 5, 1, 1)
    tensor = torch.tensor(losses, dtype=kind, requires_grad=True)
    found = ClassMixture("shared").fit(tensor, torch.zeros(400, dtype=torch.long)).clean_probability
    expected = ClassMixture("shared").fit(tensor.detach().double().numpy(), np.zeros(400, int)).clean_probability
    assert (found == expected).all() and 0 < (found < 0.5).mean() < 1


@settings(max_examples=300, deadline=None)
@given(low=st.floats(-3, 3), gap=st.floats(0, 10), low_std=st.floats(1e-3, 5), high_std=st.floats(1e-3, 5),
       weight=st.floats(0.01, 0.99))
def test_clean_probability_never_rises_with_the_loss(low, gap, low_std, high_std, weight):
    mixture = TwoGaussians(low, low + gap, low_std, high_std, weight)
    values = np.linspace(low - 30, low + gap + 30, 2001)
    probability = mixture.low_probability(values)
    assert (np.diff(probability) <= 1e-12).all() and probability.min() >= 0 and probability.max() <= 1
    # where no tail is repaired it is Bayes' rule
    between = np.linspace(low, low + gap, 50)
    clean, wrong = weight * norm.pdf(between, low, low_std), (1 - weight) * norm.pdf(between, low + gap, high_std)
    told = clean + wrong > 1e-200
    assert np.allclose(mixture.low_probability(between)[told], clean[told] / (clean + wrong)[told], atol=1e-6)


@pytest.mark.parametrize("low_std, high_std", [(0.05, 1.5), (1.0, 0.05)])
def test_untied_tails_are_repaired_within_a_class(low_std, high_std):
    losses, _ = planted(np.random.default_rng(1), 3000, 0, 2.5, low_std, high_std)
    labels = np.arange(3000) % 2
    fitted = ClassMixture(tied=False).fit(losses, labels)
    for c in (0, 1):
        assert fitted.status[c] == "split"
        mixture, mine = fitted.mixtures[c], np.sort(losses[labels == c])
        bayes = np.exp(mixture.log_densities(mine)[0] - np.logaddexp(*mixture.log_densities(mine)))
        assert np.diff(bayes).max() > 1e-3  # Bayes' rule alone would have risen
        ordered = fitted.clean_probability[labels == c][losses[labels == c].argsort()]
        assert np.diff(ordered).max() <= 1e-12


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.booleans(), st.sampled_from(["class", "shared"]))
def test_result_does_not_depend_on_the_order_of_samples(seed, tied, scope):
    rng = np.random.default_rng(seed)
    losses, _ = planted(rng, 300, high=rng.uniform(0.5, 3), high_std=rng.uniform(0.1, 1))
    labels, order = rng.integers(3, size=300), rng.permutation(300)
    first = ClassMixture(scope, tied).fit(losses, labels)
    second = ClassMixture(scope, tied).fit(losses[order], labels[order])
    assert np.array_equal(first.clean_probability[order], second.clean_probability)
    assert first.status == second.status


def test_each_class_has_a_mixture_of_its_own():
    rng = np.random.default_rng(2)
    easy, easy_clean = planted(rng, 1000, low=0.1, high=1.0, low_std=0.1, high_std=0.1)
    hard, hard_clean = planted(rng, 1000, low=1.2, high=3.0, low_std=0.2, high_std=0.2)  # clean where easy is wrong
    losses, clean, labels = np.r_[easy, hard], np.r_[easy_clean, hard_clean], np.repeat([4, 7], 1000)
    own = ClassMixture().fit(losses, labels)
    assert own.status == {4: "split", 7: "split"}
    assert ((own.clean_probability >= 0.5) == clean).mean() > 0.99
    shared = ClassMixture("shared").fit(losses, labels)
    assert shared.status == {4: "shared", 7: "shared"} and shared.mixtures[4] is shared.mixtures[7]
    expected = fit_two_gaussians(losses).low_probability(losses)
    assert np.array_equal(shared.clean_probability, expected)
    assert ((shared.clean_probability >= 0.5) == clean).mean() < 0.9


def not_to_be_split():
    """Losses that must not be split by force, and the status that says so."""
    rng = np.random.default_rng(3)
    return {
        "too few": (planted(rng, 29)[0], "too small"), "one sample": (np.array([1.0]), "too small"),
        "all alike": (np.full(500, 0.7), "not separated"), "zeros": (np.zeros(500), "not separated"),
        "alike but for rounding": (0.7 + 1e-12 * rng.random(500), "not separated"),
        "not a number": (np.full(500, np.nan), "not separated"), "infinite": (np.full(500, np.inf), "not separated"),
        **{f"one Gaussian of {n}": (rng.normal(size=n), "not separated") for n in (100, 300, 3000)},
    }


@pytest.mark.parametrize("case", not_to_be_split())
@pytest.mark.parametrize("scope", ["class", "shared"])
@pytest.mark.parametrize("tied", [True, False])
def test_losses_that_do_not_separate_stay_clean(case, scope, tied):
    losses, status = not_to_be_split()[case]
    fitted = ClassMixture(scope, tied).fit(losses, np.zeros(len(losses), int))
    assert fitted.status == {0: status} and fitted.mixtures == {0: None}
    assert np.array_equal(fitted.clean_probability, np.ones(len(losses)))


def test_a_class_that_is_not_split_stays_clean_beside_classes_that_are():
    rng = np.random.default_rng(4)
    split, few, alike = planted(rng, 600)[0], np.linspace(0, 5, 20), np.full(100, 2.0)
    labels = np.repeat([0, 1, 2], [600, 20, 100])
    fitted = ClassMixture().fit(np.r_[split, few, alike], labels)
    assert fitted.status == {0: "split", 1: "too small", 2: "not separated"}
    assert (fitted.clean_probability[labels > 0] == 1).all() and fitted.clean_probability[labels == 0].min() < 0.01


def test_losses_that_are_not_finite_count_as_the_extremes():
    losses, _ = planted(np.random.default_rng(5), 400)
    losses[:4] = np.nan, np.inf, losses.max(), -np.inf
    fitted = ClassMixture().fit(losses, np.zeros(400, int))
    worst = fitted.clean_probability.min()
    assert fitted.status == {0: "split"} and np.isfinite(fitted.clean_probability).all()
    assert (fitted.clean_probability[:3] == worst).all() and fitted.clean_probability[3] > 0.99


@pytest.mark.parametrize("factor, offset", [(1e-4, 0), (1e4, 0), (1, 1e4), (1, -50)])
def test_units_of_the_losses_do_not_matter(factor, offset):
    losses, _ = planted(np.random.default_rng(6), 500)
    labels = np.zeros(500, int)
    first, second = ClassMixture().fit(losses, labels), ClassMixture().fit(losses * factor + offset, labels)
    assert np.allclose(first.clean_probability, second.clean_probability, atol=1e-5)


def test_bad_input_is_refused():
    with pytest.raises(FerlabError, match="do not match"):
        ClassMixture().fit(np.zeros(4), np.zeros(5, int))
    with pytest.raises(FerlabError, match="scope"):
        ClassMixture("all")
    assert len(ClassMixture().fit(np.zeros(0), np.zeros(0, int)).clean_probability) == 0


def test_roots_of_losses_keep_their_order():
    losses = np.array([0.0, 1e-9, 0.5, 4.0, 60.0])
    root = evidence("root", losses)
    assert root == pytest.approx([0, np.sqrt(1e-9), np.sqrt(0.5), 2, np.sqrt(60)])
    assert (evidence("loss", losses) == losses).all()


def test_roots_of_losses_are_two_heaps_where_a_sure_network_makes_losses_a_pile_and_a_tail():
    rng = np.random.default_rng(0)
    wrong = rng.random(4000) < 0.3
    odds = np.where(wrong, rng.normal(3, 1.5, 4000), rng.normal(-3, 1.5, 4000))  # against the given label
    losses, labels = np.log1p(np.exp(odds)), np.zeros(4000, int)
    right = {}
    for kind in ("loss", "root"):
        noisy = ClassMixture("shared").fit(evidence(kind, losses), labels).clean_probability < 0.5
        right[kind] = (noisy == wrong).mean()
    assert right["root"] > 0.97 and right["root"] > right["loss"] + 0.003


def test_margin_evidence_falls_with_the_margin_and_both_adds_the_standardised_root():
    losses, margin = np.array([0.0, 1.0, 4.0]), np.array([0.5, 0.1, -0.3])
    assert evidence("margin", losses, margin) == pytest.approx(-margin)
    assert evidence("both", losses, margin) == pytest.approx([-2, 0, 2])  # both standardise to -1, 0, 1
    assert evidence("both", losses[2:], margin[2:], (losses, margin)) == pytest.approx([2])
    assert evidence("both", losses[:1], margin[:1]) == 0  # a single face


def test_as_many_samples_as_the_minimum_are_split():
    losses, _ = planted(np.random.default_rng(0), 30, low_std=0.1, high_std=0.1)
    assert ClassMixture().fit(losses, np.zeros(30, int)).status == {0: "split"}


@pytest.mark.parametrize("tied", [True, False])
def test_one_skewed_heap_is_not_split(tied):
    for seed in range(5):  # free components have an Ashman's D of 1.6 to 1.8, tied ones of 3.6 and more
        losses = np.random.default_rng(seed).exponential(size=600)
        assert ClassMixture(tied=tied).fit(losses, np.zeros(600, int)).status == {0: "not separated"}


@pytest.mark.parametrize("tied", [True, False])
def test_losses_are_split_where_the_bayesian_information_criterion_asks_for_it(tied, monkeypatch):
    monkeypatch.setattr("ferlab.mixture._one_heap", lambda losses: -np.inf)  # skewed ones have a test of their own
    asked = set()
    for seed in range(40):
        losses, _ = planted(np.random.default_rng(seed), 100, 0, 2.5, 1, 1)
        found = ClassMixture(tied=tied, separation=0).fit(losses, np.zeros(100, int))
        two = np.logaddexp(*fit_two_gaussians(losses, tied).log_densities(losses)).sum()
        one = norm.logpdf(losses, losses.mean(), losses.std()).sum()
        wanted = (4 if tied else 5) * np.log(100) - 2 * two <= 2 * np.log(100) - 2 * one
        assert found.status == {0: "split" if wanted else "not separated"}
        asked.add(wanted)
    assert asked == {True, False}


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("low, high", [(np.zeros(60), np.ones(40)),
                                       (np.zeros(60), np.random.default_rng(0).normal(3, 0.5, 40))])
def test_a_heap_of_equal_losses_is_a_component(tied, low, high):
    found = ClassMixture(tied=tied).fit(np.r_[low, high], np.zeros(100, int))
    assert found.status == {0: "split"}
    assert (found.clean_probability[:60] > 0.99).all() and (found.clean_probability[60:] < 0.01).all()


@pytest.mark.parametrize("tied", [True, False])
def test_groups_of_neighbours_keep_their_variance(tied, monkeypatch):
    monkeypatch.setattr(mixture, "GROUPS", 16)
    losses, _ = planted(np.random.default_rng(0), 2000, 0, 3, 1, 1.5)
    found = fit_two_gaussians(losses, tied)
    weight, mean = (np.array(pair) for pair in ((found.low_weight, 1 - found.low_weight), (found.low, found.high)))
    square = weight @ (mean**2 + np.array([found.low_std, found.high_std]) ** 2)
    assert weight @ mean == pytest.approx(losses.mean()) and square == pytest.approx((losses**2).mean())


def test_the_low_component_is_low_where_the_two_change_places():
    losses = np.random.default_rng(69).normal(size=40)  # steps from the split at the mean lead to a narrow heap above
    found = fit_two_gaussians(losses, tied=False)
    assert found.low < found.high and found.low_std > 5 * found.high_std
    assert found.low_weight * found.low + (1 - found.low_weight) * found.high == pytest.approx(losses.mean())


def test_spreads_that_hardly_differ_are_not_taken_for_the_same():
    values = np.linspace(0, 3, 50)
    clean, wrong = 0.6 * norm.pdf(values, 0, 1), 0.4 * norm.pdf(values, 3, 1.005)
    assert np.allclose(TwoGaussians(0, 3, 1, 1.005, 0.6).low_probability(values), clean / (clean + wrong), atol=1e-6)


def test_losses_below_zero_by_rounding_have_the_root_zero():
    assert evidence("root", np.array([-1e-9]))[0] == 0


@pytest.mark.parametrize(("scope", "unseen"), [("shared", 0.0), ("class", 1.0)])
def test_a_class_that_fit_has_not_seen_is_judged_by_a_mixture_of_all(scope, unseen):
    rng = np.random.default_rng(0)
    losses = np.concatenate([rng.normal(0, 1, 300), rng.normal(8, 1, 300)])
    mixture = ClassMixture(scope).fit(losses, np.zeros(600, int))
    assert mixture.predict([8.0, 0.0], [1, 1]) == pytest.approx([unseen, 1.0], abs=1e-3)


@pytest.mark.parametrize("count", [200, 1000])
@pytest.mark.parametrize("heap", [
    np.random.Generator.exponential, np.random.Generator.standard_normal,
    lambda rng, size: np.abs(rng.normal(size=size)), lambda rng, size: rng.beta(2, 5, size),
    lambda rng, size: rng.gamma(2, size=size), lambda rng, size: rng.lognormal(0, 0.5, size),
    lambda rng, size: np.sqrt(rng.exponential(size=size))],
    ids=["exponential", "normal", "half-normal", "beta", "gamma", "lognormal", "Rayleigh"])
def test_one_heap_of_a_common_shape_is_not_split(heap, count):
    split = 0
    for seed in range(10):
        losses = heap(np.random.default_rng(seed), size=count)
        mixture = ClassMixture().fit(losses, np.zeros(count, int))
        split += mixture.status[0] != "not separated"
        assert mixture.status[0] == "split" or (mixture.clean_probability == 1).all()
    assert split <= 2


@pytest.mark.parametrize("count", [60, 200, 1000])
def test_two_heaps_that_can_be_told_apart_are_split(count):
    for seed in range(10):
        losses, _ = planted(np.random.default_rng(seed), count, 0, 5, 1, 1)
        assert ClassMixture().fit(losses, np.zeros(count, int)).status == {0: "split"}


@pytest.mark.parametrize("labels", [[0.5, 1.0], [-1, 0]])
def test_labels_that_are_no_classes_are_told(labels):
    with pytest.raises(FerlabError, match="whole numbers from 0 on"):
        ClassMixture().fit([1.0, 2.0], labels)


def test_very_long_tails_are_no_error():
    losses = np.random.default_rng(2).standard_cauchy(5000)
    assert ClassMixture("shared").fit(losses, np.zeros(5000, int)).clean_probability.shape == (5000,)

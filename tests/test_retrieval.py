"""Retrieval relabelling against scikit-learn's average precision and against what relabelling promises."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score

from ferlab import retrieval
from ferlab.compiled import compiled
from ferlab.errors import FerlabError
from ferlab.retrieval import KINDS, class_average_precision, nearest_neighbours, relabel, retrieval_margin


def sklearn_average_precision(queries, gallery, labels, num_classes, balanced=False):
    """[Q, C] by scikit-learn, one query and class at a time; 0 for a class without items."""
    similarity = queries @ gallery.T
    counts = np.bincount(labels, minlength=num_classes)
    weight = 1 / counts[labels] if balanced else None
    result = np.zeros((len(queries), num_classes))
    for q, c in np.ndindex(result.shape):
        if counts[c]:
            result[q, c] = average_precision_score(labels == c, similarity[q], sample_weight=weight)
    return result


def whole_numbers(rng, queries=6, items=120, dimensions=3, classes=4, largest=2):
    """Embeddings of small whole numbers: inner products are exact, and most of them are tied."""
    draw = rng.integers
    return (draw(-largest, largest + 1, (queries, dimensions)).astype(float),
            draw(-largest, largest + 1, (items, dimensions)).astype(float), draw(classes, size=items))


@pytest.fixture(params=["numba", "torch"])
def ranking(request, monkeypatch):
    """Both ways of ranking: the one of a CPU and the one of a GPU, here on the CPU."""
    if request.param == "torch":
        monkeypatch.setattr(retrieval, "_sum_of_precision_numba", retrieval._sum_of_precision_torch)
    return request.param


@pytest.mark.parametrize("kind", ["plain", "balanced"])
@pytest.mark.parametrize("largest", [1, 2, 1000])
def test_average_precision_is_sklearns_ties_included(ranking, kind, largest):
    for seed in range(5):
        queries, gallery, labels = whole_numbers(np.random.default_rng(seed), largest=largest)
        ours = class_average_precision(queries, gallery, labels, 4, **KINDS[kind])
        theirs = sklearn_average_precision(queries, gallery, labels, 4, kind == "balanced")
        assert np.abs(ours.numpy() - theirs).max() < 1e-9


@pytest.mark.parametrize("classes", [1, 2, 50])
def test_average_precision_for_few_and_many_classes(ranking, classes):
    rng = np.random.default_rng(classes)
    queries, gallery, labels = rng.normal(size=(5, 8)), rng.normal(size=(400, 8)), rng.integers(classes, size=400)
    ours = class_average_precision(queries, gallery, labels, classes)
    assert np.abs(ours.numpy() - sklearn_average_precision(queries, gallery, labels, classes)).max() < 1e-9


def test_average_precision_of_a_gallery_of_copies(ranking):
    rng = np.random.default_rng(0)
    queries, originals = rng.normal(size=(4, 16)).astype(np.float32), rng.normal(size=(5, 16)).astype(np.float32)
    which, labels = rng.integers(5, size=300), rng.integers(3, size=300)
    ours = class_average_precision(queries, originals[which], labels, 3)
    # sklearn is given the similarity of the originals, so that copies are tied exactly
    similarity = (queries.astype(float) @ originals.T)[:, which]
    theirs = [[average_precision_score(labels == c, row) for c in range(3)] for row in similarity]
    assert np.abs(ours.numpy() - theirs).max() < 1e-6
    everything_alike = class_average_precision(queries, np.ones((300, 16), np.float32), labels, 3)
    assert np.allclose(everything_alike, np.bincount(labels) / 300)  # one rank: the class's share


@pytest.mark.parametrize("threads", [1, 3])
def test_average_precision_takes_numpy_and_torch_in_any_chunks(ranking, threads, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    queries, gallery, labels = whole_numbers(np.random.default_rng(1), queries=20)
    ours = class_average_precision(queries, gallery, labels, 4, chunk=10**6)
    assert torch.equal(ours, class_average_precision(*map(torch.from_numpy, (queries, gallery, labels)), 4, chunk=7))
    assert torch.equal(ours, class_average_precision(queries, gallery, labels.astype(np.int32), 4, chunk=1))
    single = class_average_precision(torch.from_numpy(queries).half(), torch.from_numpy(gallery).bfloat16(), labels, 4)
    assert single.dtype == torch.float32 and torch.allclose(single.double(), ours, atol=1e-6)
    training = torch.from_numpy(queries).requires_grad_()
    assert torch.equal(class_average_precision(training, gallery, labels, 4), ours)
    assert class_average_precision(queries[:0], gallery, labels, 4).shape == (0, 4)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from(sorted(KINDS)), st.none() | st.integers(1, 150))
def test_average_precision_does_not_depend_on_the_order_of_the_gallery(seed, kind, top_k):
    rng = np.random.default_rng(seed)
    queries, gallery, labels = whole_numbers(rng)
    order = rng.permutation(len(gallery))
    first = class_average_precision(queries, gallery, labels, 5, top_k, **KINDS[kind])
    second = class_average_precision(queries, gallery[order], labels[order], 5, top_k, **KINDS[kind])
    assert torch.allclose(first, second, atol=1e-12)
    assert first.max() <= 1 and (kind == "chance" or first.min() >= 0)


@pytest.mark.parametrize("kind", ["plain", "balanced"])
@pytest.mark.parametrize("top_k", [1, 7, 40, 119, 120, 500])
def test_top_k_counts_the_first_ranks_and_the_ties_of_the_last(ranking, top_k, kind):
    queries, gallery, labels = whole_numbers(np.random.default_rng(2), largest=3)
    ours = class_average_precision(queries, gallery, labels, 4, top_k, **KINDS[kind]).numpy()
    similarity, counts = queries @ gallery.T, np.bincount(labels, minlength=4)
    for q, c in np.ndindex(ours.shape):
        lowest = np.sort(similarity[q])[::-1][min(top_k, len(gallery)) - 1]
        total = 0.0
        for item in np.flatnonzero((labels == c) & (similarity[q] >= lowest)):
            before = similarity[q] >= similarity[q, item]
            weight = (1 / counts[labels] if kind == "balanced" else np.ones(len(labels)))[before]
            total += weight[labels[before] == c].sum() / weight.sum()
        assert ours[q, c] == pytest.approx(min(1, total / min(counts[c], top_k)), abs=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_excluding_a_row_is_removing_it(ranking, kind):
    queries, gallery, labels = whole_numbers(np.random.default_rng(3))
    exclude = np.array([0, 5, -1, 119, 5, 60])
    for top_k in (None, 10, 119):
        ours = class_average_precision(queries, gallery, labels, 4, top_k, **KINDS[kind], exclude=exclude)
        for q, row in enumerate(exclude):
            keep = np.arange(120) != row
            alone = class_average_precision(queries[q : q + 1], gallery[keep], labels[keep], 4, top_k, **KINDS[kind])
            assert torch.allclose(ours[q], alone[0], atol=1e-12)


def test_excluding_the_only_item_of_a_class_leaves_none():
    queries, gallery = np.eye(3), np.eye(3)
    ours = class_average_precision(queries, gallery, [0, 1, 2], 3, chance_corrected=True, exclude=[0, 1, 2])
    assert (ours.diagonal() == 0).all()


def test_a_class_missing_from_the_gallery_has_no_precision(ranking):
    queries, gallery, labels = whole_numbers(np.random.default_rng(4), classes=3)
    for kind in KINDS:
        full = class_average_precision(queries, gallery, labels * 2, 7, **KINDS[kind])
        packed = class_average_precision(queries, gallery, labels, 3, **KINDS[kind])
        assert torch.equal(full[:, [0, 2, 4]], packed) and (full[:, [1, 3, 5, 6]] == 0).all()


def test_chance_correction_is_its_formula():
    queries, gallery, labels = whole_numbers(np.random.default_rng(5))
    chance = np.bincount(labels) / len(labels)
    plain = class_average_precision(queries, gallery, labels, 4).numpy()
    corrected = class_average_precision(queries, gallery, labels, 4, chance_corrected=True)
    assert np.allclose(corrected, (plain - chance) / (1 - chance), atol=1e-12)
    assert class_average_precision(queries, gallery, labels * 0, 1, chance_corrected=True).abs().max() == 0
    balanced = class_average_precision(queries, gallery, labels, 4, balanced=True).numpy()
    corrected = class_average_precision(queries, gallery, labels, 4, balanced=True, chance_corrected=True)
    assert np.allclose(corrected, (balanced - 1 / 4) / (1 - 1 / 4), atol=1e-12)


@pytest.mark.parametrize("top_k", [None, 5, 50, 1000])
def test_chance_correction_takes_a_random_ranking_to_zero(top_k):
    rng = np.random.default_rng(6)
    queries, gallery = rng.normal(size=(400, 64)), rng.normal(size=(2000, 64))
    labels = np.repeat([0, 1, 2], [1400, 400, 200])
    corrected = class_average_precision(queries, gallery, labels, 3, top_k, chance_corrected=True)
    assert corrected.mean(0).abs().max() < 0.03
    both = class_average_precision(queries, gallery, labels, 3, top_k, balanced=True, chance_corrected=True)
    assert both.mean(0).abs().max() < (0.03 if top_k is None or top_k >= 50 else 0.1)
    plain = class_average_precision(queries, gallery, labels, 3, top_k)
    assert plain.mean(0)[0] > plain.mean(0)[2] + 0.2  # what the correction is there for


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("dimensions", [3, 200])
def test_equal_rows_of_the_gallery_are_one_rank(dtype, dimensions):
    rng = np.random.default_rng(45)
    different = rng.normal(size=(6, dimensions))
    which, labels = rng.integers(0, 6, 37), rng.integers(0, 4, 37)
    gallery, queries = different[which].astype(dtype), rng.normal(size=(20, dimensions)).astype(dtype)
    ours = class_average_precision(queries, gallery, labels, 4)
    similarity = (queries.astype(np.float64) @ different.astype(dtype).astype(np.float64).T)[:, which]  # exact ties
    theirs = [[average_precision_score(labels == c, row) for c in range(4)] for row in similarity]
    assert np.abs(ours.numpy() - theirs).max() < 1e-6
    assert torch.equal(ours, class_average_precision(queries, gallery[::-1].copy(), labels[::-1].copy(), 4))
    assert torch.equal(ours[3:4], class_average_precision(queries[3:4], gallery, labels, 4))


def test_bad_galleries_are_refused():
    queries, gallery, labels = np.eye(3), np.eye(3), [0, 1, 2]
    for bad in [dict(gallery=gallery[:0], gallery_labels=[]), dict(gallery=gallery[:, :2]), dict(gallery_labels=[0, 1]),
                dict(gallery_labels=[0, 1, 3]), dict(gallery_labels=[0, 1, -1]), dict(queries=queries * np.nan),
                dict(top_k=0), dict(top_k=1.5), dict(top_k=True), dict(top_k="3")]:
        with pytest.raises(FerlabError):
            class_average_precision(**{"queries": queries, "gallery": gallery, "gallery_labels": labels,
                                       "num_classes": 3, **bad})


def test_relabel_gives_the_posters_example():
    assert torch.allclose(relabel(np.array([[0.3, 0.2, 0.0]])), torch.tensor([[0.6, 0.4, 0.0]]).double())
    assert torch.allclose(relabel(torch.tensor([[3, 2, 0]])), torch.tensor([[0.6, 0.4, 0.0]]))
    assert torch.allclose(relabel(torch.tensor([[3.0, 2.0, 0.0]]), sharpness=2), torch.tensor([[9 / 13, 4 / 13, 0.0]]))
    assert torch.allclose(relabel(torch.tensor([[-0.5, 0.0, -0.1], [0.5, -0.5, 0.0]])),
                          torch.tensor([[1 / 3, 1 / 3, 1 / 3], [1.0, 0.0, 0.0]]))
    assert torch.allclose(relabel(torch.tensor([[2e-11, 1e-11]]), sharpness=3), torch.tensor([[8 / 9, 1 / 9]]))


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 8).flatmap(lambda c: st.lists(
    st.lists(st.floats(-1, 1, width=32), min_size=c, max_size=c), min_size=1, max_size=5)), st.floats(0.5, 4))
def test_new_labels_are_distributions_that_keep_the_order(precision, sharpness):
    precision = torch.tensor(precision)
    soft = relabel(precision, sharpness)
    assert torch.allclose(soft.sum(1), torch.ones(len(soft)), atol=1e-5) and (soft >= 0).all()
    assert torch.equal(soft.gather(1, precision.argmax(1, keepdim=True)).squeeze(1), soft.max(1).values)


def test_margin_is_the_given_class_less_the_best_other():
    precision = torch.tensor([[0.5, 0.3, 0.2], [0.5, 0.3, 0.2]])
    assert torch.allclose(retrieval_margin(precision, torch.tensor([0, 2])), torch.tensor([0.2, -0.3]))


def test_nearest_neighbours_are_those_of_a_full_sort():
    generator = torch.Generator().manual_seed(0)
    queries, gallery = torch.randn(50, 8, generator=generator), torch.randn(90, 8, generator=generator)
    expected = (queries @ gallery.T).argsort(dim=1, descending=True)
    assert torch.equal(nearest_neighbours(queries, gallery, 7, chunk=16), expected[:, :7])
    assert torch.equal(nearest_neighbours(queries, gallery, 200), expected)
    assert nearest_neighbours(queries[:0], gallery, 3).shape == (0, 3)


def test_zeros_of_either_sign_are_one_rank():
    place = retrieval._ranking(np.float32([[0.0, -0.0, 1.0, -1.0]]), np.zeros(4, int)) >> 32
    assert len(set(place[0].tolist())) == 3


def test_a_gallery_of_nobody_but_the_face_itself_says_nothing(ranking):
    one = torch.ones(1, 4)
    assert (class_average_precision(one, one, torch.tensor([1]), 3, exclude=torch.tensor([0])) == 0).all()


def test_arrays_are_taken_as_tensors_are():
    rng = np.random.default_rng(8)
    precision, labels, points = rng.random((5, 3)), np.array([0, 1, 2, 0, 1]), rng.normal(size=(5, 4))
    assert torch.equal(retrieval_margin(precision, labels),
                       retrieval_margin(torch.from_numpy(precision), torch.from_numpy(labels)))
    assert torch.equal(nearest_neighbours(points, points, 2),
                       nearest_neighbours(torch.from_numpy(points), torch.from_numpy(points), 2))


def test_where_nothing_compiled_can_be_kept_it_is_compiled_anew(monkeypatch):
    from numba import njit

    def nowhere(cache=False, **options):
        if cache:
            raise RuntimeError("cannot cache function: no locator available")
        return njit(**options)

    monkeypatch.setattr("ferlab.compiled.njit", nowhere)

    @compiled
    def twice(x):
        return 2 * x

    assert twice(3) == 6 and twice.nopython_signatures


@pytest.mark.parametrize("bad", [[0.1, 0.9], [[np.nan, 1.0]]])
def test_what_is_no_table_of_average_precisions_is_told(bad):
    with pytest.raises(FerlabError, match="no table of numbers"):
        relabel(bad)

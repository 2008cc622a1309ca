"""Names, order and defaults of parameters that others rely on: they stay as they are."""

import inspect

import numpy as np
import pytest
import torch

import ferlab
from ferlab.benchmarks import load
from ferlab.data import FaceSet, Splits, inject_noise
from ferlab.distribution import distribution_shift
from ferlab.masking import random_patch_mask
from ferlab.mixture import ClassMixture
from ferlab.retrieval import class_average_precision, relabel

MUST = object()  # has no default
FIXED = {
    load: {"name": MUST, "root": None},
    inject_noise: {"labels": MUST, "kind": MUST, "rate": MUST, "num_classes": MUST, "seed": 0},
    ClassMixture.fit: {"self": MUST, "losses": MUST, "labels": MUST},
    distribution_shift: {"embeddings": MUST, "mean": MUST, "std": MUST, "count": MUST},
    class_average_precision: {"queries": MUST, "gallery": MUST, "gallery_labels": MUST, "num_classes": MUST,
                              "top_k": None, "balanced": False, "chance_corrected": False},
    relabel: {"average_precision": MUST},
    random_patch_mask: {"batch": MUST, "grid": MUST, "ratio": MUST, "generator": None},
    ferlab.load_pretrained: {"name": MUST},
}


@pytest.mark.parametrize("function", FIXED, ids=lambda function: function.__qualname__)
def test_parameters_stay_as_they_are(function):
    parameters = list(inspect.signature(function).parameters.values())
    wanted = FIXED[function]
    assert [p.name for p in parameters[: len(wanted)]] == list(wanted)
    for p in parameters[: len(wanted)]:
        assert p.kind in (p.POSITIONAL_OR_KEYWORD, p.POSITIONAL_ONLY)
        assert p.default == (p.empty if wanted[p.name] is MUST else wanted[p.name])
    rest = [p for p in parameters[len(wanted) :] if p.kind is not p.VAR_KEYWORD]
    assert all(p.default is not p.empty for p in rest)  # nothing more has to be given


@pytest.mark.parametrize("kind", [np.asarray, torch.as_tensor], ids=["numpy", "torch"])
def test_arrays_may_be_numpys_or_torchs(kind):
    rng = np.random.default_rng(0)
    points, labels = rng.normal(size=(40, 3)), np.arange(40) % 2
    shift = distribution_shift(kind(points), kind(points[:2]), kind(np.ones((2, 3))), 10)
    assert shift.shape == (40, 2) and shift[0, 0] < shift[0, 1]
    assert (np.asarray(inject_noise(kind(labels), "symmetric", 0.25, 2, 0)) != labels).sum() == 10
    losses = np.abs(points[:, 0]) + 9 * (np.arange(40) < 10)
    clean = ClassMixture("shared").fit(kind(losses), kind(labels)).clean_probability
    assert clean.shape == (40,) and (clean[:10] < 0.5).all() and (clean[10:] > 0.5).all()
    precision = class_average_precision(kind(points[:5]), kind(points), kind(labels), 2, None, True, True)
    assert precision.shape == (5, 2)
    assert np.allclose(np.asarray(relabel(kind(precision))).sum(1), 1)


def test_faces_and_splits_tell_what_is_fixed():
    faces = FaceSet(np.zeros((2, 8, 8), np.uint8), np.array([0, 1]), ("calm", "glad"))
    assert len(faces) == 2 and faces.truth is None and faces.votes is None and faces.images.dtype == np.uint8
    assert list(faces.labels) == [0, 1] and tuple(faces.classes) == ("calm", "glad")
    assert Splits._fields == ("train", "valid", "test")
    mask = random_patch_mask(3, 4, 0.5, torch.Generator().manual_seed(0))
    assert mask.dtype == torch.bool and mask.shape == (3, 4, 4) and (mask.sum((1, 2)) == 8).all()

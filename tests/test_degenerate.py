"""Data at the edge of sense: a training ends with defined numbers, or says in one sentence why there is none."""

import numpy as np
import pytest
import torch
from test_training import bars, settings

from ferlab.data import FaceSet, Splits
from ferlab.errors import FerlabError
from ferlab.retrieval import class_average_precision, relabel
from ferlab.training import train


def faces(labels, truth=None, classes=3, alike=False):
    """Faces of noise with a bar where ``truth`` says, or all the same one."""
    labels = np.asarray(labels)
    truth = labels if truth is None else np.asarray(truth)
    images = np.random.default_rng(0).integers(0, 120, (len(labels), 32, 32), dtype=np.uint8)
    for image, c in zip(images, truth):
        image[(4 + 9 * c) % 26 : (4 + 9 * c) % 26 + 6] += 120
    if alike:
        images[:] = images[0]
    return FaceSet(images, labels, tuple(map(str, range(classes))), truth=truth, dataset="odd", split="train")


HALF = np.arange(96) % 3
ODD = {
    "all right": faces(HALF),
    "all wrong": faces((HALF + 1) % 3, HALF),
    "labels by chance": faces(np.random.default_rng(1).integers(0, 3, 96), HALF),
    "a class is absent": faces(np.where(HALF == 2, 0, HALF)),
    "one face of a class": faces(np.r_[2, np.where(HALF == 2, 0, HALF)[1:]]),
    "one label for all": faces(np.zeros(96, int), HALF),
    "one class": faces(np.zeros(96, int), classes=1),
    "two classes": faces(HALF % 2, classes=2),
    "fifty classes": faces(np.arange(96) % 50, np.arange(96) % 50, classes=50),
    "all faces alike": faces(HALF, alike=True),
    "fewer faces than a batch": faces(HALF[:7]),
    "two faces": faces([0, 1]),
}


@pytest.mark.parametrize("split", ["class", "shared"])
@pytest.mark.parametrize("name", ODD)
def test_training(name, split):
    odd = ODD[name]
    config = settings(method="drfer", split=split, epochs=3, warm_up=1, interval=1)
    trainer = train(config, Splits(odd, odd.subset(np.arange(len(odd)) % 2 == 0), None))
    method, state = trainer.method, trainer.method.states(trainer)["train"]
    assert all(np.isfinite(list(record["loss"].values())).all() for record in trainer.records)
    w, soft = method.clean_probability, method.new_targets
    assert ((w >= 0) & (w <= 1)).all() and (soft >= 0).all() and torch.allclose(soft.sum(1), torch.ones(len(odd)))
    assert method.weight.sum() > 0  # something is left to learn from
    for array in state.values():
        assert array.dtype.kind == "U" or np.isfinite(array).all()
    if name in ("all right", "all faces alike"):
        assert torch.equal(soft.argmax(1), method.given)


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan, 1e30, 0.0])
def test_losses_that_are_no_losses(value):
    trainer = train(settings(method="drfer", epochs=1, warm_up=0, interval=1), Splits(bars(96, wrong=0.25), None, None))
    method = trainer.method
    for history in (torch.full((1, 96), value), method.history[:1].clone().index_fill(1, torch.tensor([0, 5]), value)):
        method.history = history
        method.split_and_relabel(trainer.collect(trainer.train))
        assert ((method.clean_probability >= 0) & (method.clean_probability <= 1)).all()
        assert torch.allclose(method.new_targets.sum(1), torch.ones(96)) and method.weight.sum() > 0


def test_identical_embeddings_and_a_gallery_without_a_class():
    same = torch.nn.functional.normalize(torch.ones(6, 4), dim=1)
    precision = class_average_precision(same, same, torch.tensor([0, 0, 0, 1, 1, 3]), 5, exclude=torch.arange(6))
    assert torch.isfinite(precision).all() and (precision[:, [2, 4]] == 0).all()
    assert torch.allclose(relabel(precision).sum(1), torch.ones(6))
    assert torch.allclose(precision[0], precision[1])  # ties do not depend on the order
    only_itself = class_average_precision(same[:1], same[:1], torch.tensor([1]), 3, exclude=torch.tensor([0]))
    assert torch.allclose(relabel(only_itself), torch.full((1, 3), 1 / 3))


@pytest.mark.parametrize("method", ["plain", "drfer", "dividemix"])
def test_one_face_is_too_few_for_a_batch_of_a_network_that_ends_in_one_cell(method):
    with pytest.raises(FerlabError, match="batch of one face is too small"):
        train(settings(method=method, backbone="resnet18", batch_size=1, epochs=3, warm_up=1, interval=1),
              Splits(ODD["two faces"], None, None))


def test_dividemix_and_dmue_where_there_is_nothing_to_divide():
    train(settings(method="dividemix", epochs=3, warm_up=1, interval=1), Splits(faces([0]), None, None))
    with pytest.raises(FerlabError, match="two classes or more"):
        train(settings(method="dmue", epochs=3, warm_up=1, interval=1), Splits(ODD["one class"], None, None))


def test_no_training_faces_at_all():
    with pytest.raises(FerlabError, match="no training faces"):
        train(settings(method="drfer"), Splits(bars(3).subset(np.zeros(3, bool)), None, None))

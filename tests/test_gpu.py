"""What differs on a GPU: half precision, the sorted class AP, and tensors that must not wander between devices."""

import math

import numpy as np
import pytest
import torch
from test_training import bars, settings

from ferlab import comparators, load_pretrained
from ferlab.data import Splits
from ferlab.retrieval import class_average_precision
from ferlab.runs import Run
from ferlab.training import Trainer, train

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")


@pytest.mark.parametrize("options", [{}, {"balanced": True}, {"chance_corrected": True}, {"top_k": 50},
                                     {"top_k": 50, "balanced": True}, {"top_k": 50, "chance_corrected": True}])
def test_class_average_precision_is_the_cpus(options):
    rng = np.random.default_rng(0)
    gallery = torch.from_numpy(rng.integers(-2, 3, (900, 6))).float()  # small whole numbers: many ties, no rounding
    labels = torch.from_numpy(rng.integers(0, 5, 900))
    itself = torch.arange(300).where(torch.arange(300) % 2 == 0, -1)
    on_cpu = class_average_precision(gallery[:300], gallery, labels, 6, exclude=itself, **options)
    on_gpu = class_average_precision(gallery[:300].cuda(), gallery.cuda(), labels, 6, exclude=itself, **options)
    assert on_gpu.is_cuda
    np.testing.assert_allclose(on_gpu.cpu(), on_cpu, atol=1e-6)


@pytest.mark.parametrize("method", ["plain", "drfer", *comparators.NAMES])
def test_every_method_learns_there_and_goes_on_from_a_checkpoint(method, tmp_path):
    faces, more = bars(96, 0.25), bars(48)
    config = settings(method=method, epochs=4)
    trainer = train(config, Splits(faces, more, None), tmp_path / "run", progress=False)
    assert next(trainer.network.parameters()).is_cuda
    assert all(math.isfinite(value) for record in trainer.records for value in record["loss"].values())
    for name in ("train", "valid"):
        state = Run(tmp_path / "run").state(name)
        assert all(np.isfinite(values).all() for values in state.values())
        np.testing.assert_allclose(state["probability"].sum(1), 1, atol=1e-4)
    again = Trainer(config, Splits(faces, more, None), Run(tmp_path / "run"), progress=False).fit()
    assert again.epoch == 4 and len(again.records) == 4
    np.testing.assert_allclose(again.collect(more).logits.cpu(), trainer.collect(more).logits.cpu(), atol=1e-5)


def test_a_recogniser_says_what_it_says_on_the_cpu():
    recogniser = load_pretrained("ferplus")
    faces = np.random.default_rng(0).integers(0, 256, (64, 48, 48), dtype=np.uint8)
    on_gpu = recogniser.predict(faces)
    recogniser.network.cpu()
    recogniser.device = torch.device("cpu")
    assert np.abs(on_gpu - recogniser.predict(faces)).max() < 0.01

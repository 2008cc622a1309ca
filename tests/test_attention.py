"""Maps and shares of attention against what can be worked out by hand, and the measurement over seeds."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch import nn

from ferlab import attention
from ferlab.attention import (
    attention_share,
    bootstrap_mean,
    grad_cam,
    informative_parts,
    integrated_gradients,
    local_attention,
    measure,
    pooling_weights,
    upsample,
)
from ferlab.config import Config
from ferlab.data import FaceSet, Splits
from ferlab.errors import FerlabError
from ferlab.model import DRFER, Features, standardise

RNG = np.random.default_rng(0)
FACES = RNG.integers(0, 256, (7, 32, 32, 3), dtype=np.uint8)


def network(classes=5):
    torch.manual_seed(0)
    return DRFER(Config(size=32, attention_maps=2, local_dimensions=16), classes).train()


# --------------------------------------------------------------------------------------------------------------- maps

def test_local_attention_is_the_branchs_own_in_evaluation_mode(monkeypatch):
    monkeypatch.setattr(attention, "CHUNK", 3)  # the last chunk is smaller
    net = network()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    maps = local_attention(net, FACES)
    assert net.training and all(torch.equal(before[name], value) for name, value in net.state_dict().items())
    net.eval()
    with torch.no_grad():
        expected = net.local(net.trunk(standardise(torch.from_numpy(FACES), 32)))[1]
    assert maps.shape == (7, 2, 4, 4) and np.allclose(maps, expected, atol=1e-5)


def test_pooling_weights_pool_as_the_local_branch_does():
    net = network().eval()
    x = torch.relu(torch.randn(3, 128, 4, 4))
    with torch.no_grad():
        local, maps, _ = net.local(x)
        weight = torch.from_numpy(pooling_weights(maps.numpy()))
        pooled = (weight[:, None] * x).sum((2, 3))  # the mean of the K pooled vectors, as projecting is linear
        assert torch.allclose(net.local.project(pooled), local.view(3, 2, 8).mean(1), atol=1e-5)
    assert np.allclose(weight.sum((1, 2)), 1, atol=1e-5)


def test_grad_cam_is_the_gradient_weighted_map():
    net = network().eval()
    target = np.arange(7) % 5
    found = grad_cam(net, FACES, target)
    shared = net.trunk(standardise(torch.from_numpy(FACES), 32)).detach().requires_grad_()
    local = net.local(shared)[0]
    logits = net.classifier(torch.cat([local, net.stage4(shared).mean((2, 3))], 1))
    gradient, = torch.autograd.grad(logits[np.arange(7), target].sum(), shared)
    expected = torch.relu((gradient.mean((2, 3), keepdim=True) * shared).sum(1)).detach()
    assert found.shape == (7, 4, 4) and np.allclose(found, expected, atol=1e-6)


class Linear(nn.Module):
    """A network whose integrated gradients are known: weight times pixel."""

    size = 32

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(2, 3, 32, 32))

    def forward(self, x):
        logits = torch.einsum("bchw,kchw->bk", x, self.weight)
        return Features(logits, logits, logits)


def test_integrated_gradients_of_a_linear_network_are_weight_times_pixel():
    net, target = Linear().requires_grad_(False), np.array([0, 1, 1, 0, 1, 0, 0])
    found = integrated_gradients(net, FACES, target, steps=4)
    x = standardise(torch.from_numpy(FACES), 32)
    assert np.allclose(found, (x * net.weight[target]).abs().sum(1), atol=1e-4)


def test_one_target_a_face():
    with pytest.raises(FerlabError, match="2 targets for 7 faces"):
        grad_cam(network(), FACES, [0, 1])


def test_upsampling_keeps_what_is_flat_and_the_edges_of_parts():
    assert np.allclose(upsample(np.full((2, 3, 3), 0.25), 48), 0.25)
    parts = RNG.random((2, 16, 16)) > 0.5
    assert (upsample(parts, 48) == parts.repeat(3, 1).repeat(3, 2)).all()
    corner = np.zeros((1, 4, 4))
    corner[0, 0, 3] = 1
    assert np.unravel_index(upsample(corner, 32).argmax(), (1, 32, 32)) == (0, 0, 28)


# -------------------------------------------------------------------------------------------------------------- share

def test_informative_parts_moved_a_share_of_the_most():
    parts = np.array([[[200, 50], [49, 0]], [[60, 60], [60, 60]], [[64, 15], [16, 17]]], np.uint8)
    expected = [[[True, True], [False, False]], [[False, False], [False, False]], [[True, False], [True, True]]]
    assert (informative_parts(parts) == expected).all()
    assert not informative_parts(np.zeros((1, 4, 4)), least=0).any()


def test_share_by_hand_and_faces_without_parts_left_out():
    maps = np.array([[[3, 1], [0, 0]], [[1, 1], [1, 1]], [[9, 0], [0, 0]]], float)
    parts = np.array([[[1, 0], [0, 0]], [[1, 1], [1, 0]], [[0, 0], [0, 0]]], bool)
    found = attention_share(maps, parts)
    assert found.share[:2] == pytest.approx([0.75, 0.75]) and np.isnan(found.share[2])
    assert found.uniform[:2] == pytest.approx([0.25, 0.75])
    assert (found.mean, found.uniform_mean) == pytest.approx((0.75, 0.5))
    assert found.interval == pytest.approx((0.75, 0.75))
    assert attention_share(5 * maps, parts).share[:2] == pytest.approx(found.share[:2])  # only the place counts


def test_share_of_even_and_of_perfect_attention():
    parts = RNG.random((20, 6, 6)) > 0.7
    even = attention_share(np.full((20, 6, 6), 0.1), parts)
    assert np.allclose(even.share, even.uniform) and even.mean == pytest.approx(parts.mean())
    assert np.allclose(attention_share(np.zeros((20, 6, 6)), parts).share, even.uniform)
    assert attention_share(parts.astype(float), parts).mean == pytest.approx(1)


def test_interval_is_that_of_the_mean():
    values = RNG.normal(3, 2, 400)
    mean, low, high = bootstrap_mean(np.append(values, np.nan), seed=1)
    half = 1.96 * values.std() / 20
    assert mean == pytest.approx(values.mean())
    assert (low, high) == pytest.approx((mean - half, mean + half), abs=0.05)
    assert bootstrap_mean(values, 1) == bootstrap_mean(values, 1)


@pytest.mark.parametrize("maps, parts, message", [
    (np.ones((2, 4, 4)), np.ones((2, 8, 8), bool), "upsample"),
    (np.ones((2, 4)), np.ones((2, 4), bool), "upsample"),
    (-np.ones((2, 4, 4)), np.ones((2, 4, 4), bool), "negative"),
    (np.ones((2, 4, 4)), np.zeros((2, 4, 4), bool), "informative part"),
])
def test_what_does_not_fit_is_told(maps, parts, message):
    with pytest.raises(FerlabError, match=message):
        attention_share(maps, parts)


# -------------------------------------------------------------------------------------------------------- measurement

def face_set(**extras):
    return FaceSet(FACES, np.zeros(7, int), ("a", "b", "c", "d", "e"), dataset="toy", extras=extras)


def test_measure_takes_the_faces_that_have_parts():
    parts = np.zeros((7, 16, 16), np.uint8)
    parts[:3] = 255
    found = measure(network(), face_set(parts=parts), steps=2)
    assert found["faces"] == 3 and found["uniform"] == pytest.approx(1)
    for kind in ("local", "grad_cam", "integrated_gradients"):  # everywhere is inside
        assert found[kind] == pytest.approx({"mean": 1, "low": 1, "high": 1, "elsewhere": 1})
    maps = local_attention(network(), FACES[:3]).reshape(3, 2, -1)
    assert found["flatness"] == pytest.approx((maps.std(2) / maps.mean(2)).mean(0), rel=1e-4)
    assert measure(network(), face_set(parts=parts), steps=2, most=2)["faces"] == 2
    with pytest.raises(FerlabError, match="toy has no map of informative parts"):
        measure(network(), face_set())


@pytest.fixture
def trained(monkeypatch):
    """Trainings that the command asks for, instead of them."""
    asked = []

    class Stub:
        def __init__(self, seed, runs):
            self.seed = seed

        def train(self, **changes):
            asked.append((self.seed, changes))
            faces = face_set(parts=np.full((7, 16, 16), 200, np.uint8))
            return SimpleNamespace(average=network(), train=faces, splits=Splits(faces, None, faces), records=[],
                                   config=Config(seed=self.seed, **changes),
                                   evaluate=lambda *_, **__: {"accuracy": 0.5, "mean_class_accuracy": 0.4})

    monkeypatch.setattr(attention, "Lesson", Stub)
    monkeypatch.setenv("FERLAB_PROFILE", "smoke")
    return asked


def test_command_measures_what_is_missing(trained, tmp_path):
    command = ["--seeds", "2", "--output", str(tmp_path)]
    outcome = CliRunner().invoke(attention.main, command)
    assert outcome.exit_code == 0, outcome.output
    assert trained == [(seed, changes) for seed in (0, 1) for changes in ({}, {"masked_modelling": False})]
    found = attention.read_seeds(tmp_path, "smoke")
    assert {variant: [r["seed"] for r in results] for variant, results in found.items()} == {
        "with MIM": [0, 1], "without MIM": [0, 1]}
    assert found["without MIM"][1]["settings"]["masked_modelling"] is False
    assert found["with MIM"][0]["shares"]["local"]["mean"] == pytest.approx(1)
    assert attention.read_seeds(tmp_path, "quick") == {"with MIM": [], "without MIM": []}

    (tmp_path / "smoke-with_MIM-1.json").unlink()
    assert [r["seed"] for r in attention.read_seeds(tmp_path, "smoke")["without MIM"]] == [0]  # pairs only
    trained.clear()
    assert CliRunner().invoke(attention.main, command).exit_code == 0
    assert trained == [(1, {})]
    assert json.loads((tmp_path / "smoke-with_MIM-1.json").read_text())["seed"] == 1


def test_what_cannot_be_measured_is_told_in_one_sentence(tmp_path, monkeypatch):
    with pytest.raises(FerlabError, match="No part of these faces has moved"):
        measure(network(), face_set(parts=np.zeros((7, 8, 8), np.uint8)))
    for text in ("[]", "{}", "no"):
        (tmp_path / "smoke-with_MIM-0.json").write_text(text)
        with pytest.raises(FerlabError, match="no result of ferlab.attention"):
            attention.read_seeds(tmp_path, "smoke")
    monkeypatch.setenv("FERLAB_PROFILE", "nope")
    outcome = CliRunner().invoke(attention.main, ["--output", str(tmp_path)])
    assert outcome.exit_code == 2 and 'no profile "nope"' in outcome.output

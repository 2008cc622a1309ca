"""The comparators: each one's formula by hand, and that all learn, resume and never see the truth."""

import importlib
import math
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import REPOSITORY
from test_training import bars, settings, weights

from ferlab import comparators, load_pretrained, training
from ferlab.cli import settings_of
from ferlab.comparators import dacl, dividemix, dmue, eac, manet, ran, rul, scn
from ferlab.comparators._parts import Backbone
from ferlab.config import extends_drfer, obeyed, profile
from ferlab.data import Splits
from ferlab.drfer import DRFERMethod
from ferlab.errors import FerlabError
from ferlab.model import DRFER, Features
from ferlab.runs import Run
from ferlab.training import Batch, Method, Trainer, collect, method_class, method_source, own_settings, train

EACH = pytest.mark.parametrize("method", comparators.NAMES)


@pytest.fixture(autouse=True)
def early(monkeypatch):
    """What the papers begin after some epochs begins here after the first or second."""
    monkeypatch.setattr(dmue.DMUE, "ramp", 2)


def prepared(method, count=48, wrong=0.25, **changes):
    """A trainer before its first step, and its first batch of 32 faces."""
    trainer = Trainer(settings(method=method, **changes), Splits(bars(count, wrong), None, None))
    index = torch.arange(32)
    images, _ = next(trainer.batches(trainer.train, index, 32))
    trainer.network.train()
    return trainer, Batch(images, index)


def terms(trainer, batch, seed=0):
    return trainer.method.loss(trainer.network, batch, torch.Generator().manual_seed(seed))


# ---------------------------------------------------------------------------------------------------------- all alike

def test_the_systems_are_all_there():
    for name in ("scn", "rul", "dacl", "dmue", "ran", "manet", "eac", "dividemix"):
        assert name in comparators.NAMES
        method = method_class(name)
        assert issubclass(method, Method) and method.__module__ == f"ferlab.comparators.{name}"
        story = importlib.import_module(method.__module__).__doc__
        assert " 20" in story and "Source:" in story and "Ours:" in story and "Left out:" in story
    with pytest.raises(FerlabError, match="plain, drfer, dacl, .*scn"):
        method_class("magic")
    with pytest.raises(FerlabError, match="no method"):
        method_class("_parts")


@EACH
def test_each_learns_what_anyone_can_tell(method):
    trainer = train(settings(method=method, epochs=6), Splits(bars(), bars(60, seed=1), None))
    assert trainer.records[-1]["valid"]["accuracy"] > 0.9
    assert all(math.isfinite(value) for record in trainer.records for value in record["loss"].values())


@EACH
def test_each_resumes_as_if_unbroken_and_never_sees_the_truth(tmp_path, monkeypatch, method):
    config, faces, blind = settings(method=method, epochs=4), bars(64, wrong=0.3), bars(64, wrong=0.3)
    blind.truth = blind.votes = None  # the interrupted run has none, and must end as the other does
    unbroken = train(config, Splits(faces, None, None), tmp_path / "unbroken")
    train_epoch = Trainer._train_epoch

    def stop_in_the_fourth(self):
        if self.epoch == 3:
            raise KeyboardInterrupt
        return train_epoch(self)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Trainer, "_train_epoch", stop_in_the_fourth)
        train(config, Splits(blind, None, None), tmp_path / "broken")
    resumed = train(config, Splits(blind, None, None), tmp_path / "broken")
    assert torch.equal(weights(unbroken), weights(resumed))
    assert unbroken.method.state_dict().keys() == resumed.method.state_dict().keys()
    for name, value in unbroken.method.state_dict().items():
        assert torch.equal(value, resumed.method.state_dict()[name]), name
    for first, second in zip(Run(tmp_path / "unbroken").metrics, Run(tmp_path / "broken").metrics, strict=True):
        assert first["loss"] == second["loss"]

    probability = load_pretrained(tmp_path / "broken").predict(faces.images)  # used as any other recogniser
    expected = collect(unbroken.average, faces).logits.softmax(1).numpy()
    assert np.allclose(probability, expected, atol=1e-5) and np.allclose(probability.sum(1), 1, atol=1e-5)


def test_settings_of_their_own_are_told_and_changed():
    eac = method_class("eac")
    assert own_settings(settings(method="eac")) == {
        "consistency_weight": 5.0, "erased_area": (0.02, 0.25), "erased_share": 0.5}
    assert own_settings(settings(method="plain")) == own_settings(settings(method="drfer")) == {}
    config = settings(method="eac", own={"erased_area": [0.1, 0.3], "consistency_weight": 2})
    method = eac(config, bars())
    assert (method.erased_area, method.consistency_weight, method.erased_share) == ((0.1, 0.3), 2, 0.5)
    assert eac.consistency_weight == 5.0


@pytest.mark.parametrize("name, own, told", [
    ("eac", {"sharpness": 1.0}, "consistency_weight, erased_area"), ("plain", {"weight": 1.0}, "none"),
    ("scn", {"smallest_batch": 1}, "high_share"), ("dmue", {"ramp": 1.5}, "as 2"), ("dmue", {"ramp": True}, "as 2"),
    ("dmue", {"temperature": "hot"}, "1.2"), ("dmue", {"temperature": float("nan")}, "1.2"),
    ("eac", {"erased_area": [0.1]}, "0.02, 0.25"),
])
def test_settings_of_their_own_that_do_not_fit_are_told(name: str, own: dict, told: str):
    with pytest.raises(FerlabError, match=told) as error:
        own_settings(settings(method=name, own=own))
    assert next(iter(own)) in str(error.value)


@EACH
def test_each_grows_from_the_same_backbone(method):
    plain = Trainer(settings(), Splits(bars(48), None, None)).network.state_dict()
    network = prepared(method)[0].network.eval()
    assert isinstance(network(torch.zeros(2, 3, 32, 32)), Features)
    own = {name.removeprefix("twins.0.").replace("shared.", "trunk."): w for name, w in network.state_dict().items()}
    same = [name for name, w in plain.items() if name in own and torch.equal(w, own[name])]
    assert sum(plain[name].numel() for name in same if name.startswith("trunk.2")) > 0
    if method != "manet":  # which has stages 3 and 4 of its own
        assert all(name in same for name in plain if name.startswith(("trunk.", "stage4.", "local.")))


def test_the_method_that_the_readme_adds():
    text = (REPOSITORY / "README.md").read_text()
    code = text.split("ferlab/comparators/gce.py`")[1].split("```python\n")[1].split("```")[0]
    assert all(f"`{name}`" in text for name in comparators.NAMES)
    scope = {"__name__": "gce"}
    exec(code, scope)
    trainer, batch = prepared("plain")
    loss = scope["GeneralisedCrossEntropy"](trainer.config, trainer.train).loss(trainer.network, batch, None)
    p = trainer.network(batch.images).logits.softmax(1)[torch.arange(32), trainer.method.given[batch.index]]
    assert loss["generalised_cross_entropy"].item() == pytest.approx(((1 - p**0.7) / 0.7).mean().item(), rel=1e-4)


def test_parts_are_those_of_the_network():
    torch.manual_seed(0)
    network = Backbone(settings(), 3).eval()
    plain = DRFER(settings(), 3).eval()
    plain.load_state_dict(network.state_dict())
    x = torch.randn(4, 3, 32, 32)
    for mine, theirs in zip(network(x), plain(x), strict=True):
        assert torch.allclose(mine, theirs, atol=1e-6)


@pytest.mark.parametrize("method", ["scn", "rul", "dacl", "dmue"])
def test_those_that_compare_faces_need_more_than_one(method):
    with pytest.raises(FerlabError, match="batch_size is 1.*at least 2"):
        prepared(method, batch_size=1)


@pytest.mark.parametrize("method", ["scn", "dividemix"])
def test_those_that_begin_after_the_warm_up_need_epochs_for_it(method):
    with pytest.raises(FerlabError, match=f"warm_up is 3 of 3 epochs.*{method} would never get beyond it"):
        prepared(method, epochs=3, warm_up=3)


# ---------------------------------------------------------------------------------------------------------------- SCN

def test_scn_groups_ranks_and_weighs():
    trainer, batch = prepared("scn")
    method = trainer.method
    alpha = torch.tensor([0.1, 0.9, 0.8, 0.2, 0.7, 0.6, 0.5, 0.4, 0.3, 0.65])
    high, low = method.groups(alpha)
    assert set(low.tolist()) == {0, 3, 8} and len(high) == 7  # the 30 % of least importance
    features, alpha = trainer.network.weighted(batch.images)
    parts = trainer.network.parts(batch.images)
    raw = trainer.network.classifier(parts.vector)
    assert torch.allclose(features.logits, alpha[:, None] * raw, atol=1e-5)
    found = terms(trainer, batch)
    ordered = alpha.sort(descending=True).values
    expected = max(0.0, 0.15 - (ordered[:22].mean() - ordered[22:].mean()).item())  # 70 % of 32 is 22
    assert found["rank"].item() == pytest.approx(0.5 * expected, abs=1e-6) and expected > 0
    given = trainer.method.given[batch.index]
    loss = -(alpha[:, None] * raw).log_softmax(1)[torch.arange(32), given].mean()
    assert found["cross_entropy"].item() == pytest.approx(0.5 * loss.item(), rel=1e-5)


def test_scn_relabels_where_the_margin_is_met():
    method = prepared("scn")[0].method
    method.labels[:3] = torch.tensor([0, 0, 2])
    probability = torch.tensor([[0.10, 0.70, 0.20], [0.36, 0.54, 0.10], [0.35, 0.45, 0.20]])
    before = method.labels.clone()
    method.relabel(probability, torch.tensor([0, 1, 2]))  # margins 0.60, 0.18, 0.25
    assert method.labels[:3].tolist() == [1, 0, 1] and torch.equal(method.labels[3:], before[3:])
    assert method.new_targets[0].tolist() == [0, 1, 0] and torch.equal(method.new_targets[1], method.targets[1])


def test_scn_relabels_the_low_group_only_and_not_before_its_epoch(monkeypatch):
    trainer, batch = prepared("scn", warm_up=1)
    method, asked = trainer.method, []
    monkeypatch.setattr(method, "relabel", lambda probability, index: asked.append(index))
    terms(trainer, batch)
    assert not asked
    method.after_epoch(1, trainer)
    with torch.no_grad():
        alpha = trainer.network.weighted(batch.images)[1]
    terms(trainer, batch)
    assert set(asked[0].tolist()) == set(alpha.argsort()[:10].tolist())


# ---------------------------------------------------------------------------------------------------------------- RUL

def test_rul_mixes_by_uncertainty():
    mu, s = torch.tensor([[1.0, 0.0], [0.0, 4.0]]), torch.tensor([[1.0], [3.0]])
    assert rul.mix(mu, s, torch.tensor([1, 0])).tolist() == [[0.25, 3.0], [0.25, 3.0]]
    assert torch.equal(rul.mix(mu, s, torch.tensor([0, 1])), mu)  # with itself


def test_rul_adds_up_both_labels():
    trainer, batch = prepared("rul")
    network, given = trainer.network, trainer.method.given[batch.index]
    found = terms(trainer, batch)
    partner = torch.randperm(32, generator=torch.Generator().manual_seed(0))
    vector = network.parts(batch.images).vector
    mu, s = network.mean(vector), network.log_variance(vector).exp().mean(1)
    mixed = torch.stack([(s[i] * mu[i] + s[j] * mu[j]) / (s[i] + s[j]) for i, j in enumerate(partner)])
    logits = network.classifier(mixed)
    assert found["cross_entropy"].item() == pytest.approx(F.cross_entropy(logits, given).item(), rel=1e-4)
    assert found["partner"].item() == pytest.approx(F.cross_entropy(logits, given[partner]).item(), rel=1e-4)


# --------------------------------------------------------------------------------------------------------------- DACL

def test_dacl_weighs_dimensions_and_moves_centres():
    x, c = torch.tensor([[1.0, 2.0], [3.0, 0.0]]), torch.tensor([[0.0, 0.0], [1.0, 1.0]])
    weight = torch.tensor([[0.5, 1.0], [0.25, 0.0]])
    loss = dacl.sparse_centre_loss(x, c, weight)  # (0.5 * 1 + 1 * 4) / 4 + (0.25 * 4 + 0) / 4
    assert loss.item() == pytest.approx(1.375)

    trainer, batch = prepared("dacl")
    method = trainer.method
    method.centres = torch.zeros(3, 2)
    method.move_centres(x, torch.tensor([1, 1]), weight)
    # class 1: rate 0.5 * (0.5 * 1 + 0.25 * 3, 1 * 2 + 0) / (1 + 2); the others stay
    assert torch.allclose(method.centres, torch.tensor([[0, 0], [1.25 / 6, 2 / 6], [0, 0]]))


def test_dacl_attends_to_each_dimension():
    trainer, batch = prepared("dacl")
    network = trainer.network.eval()
    parts = network.parts(batch.images)
    weight = network.weights(parts.whole_map)
    pairs = network.attend(network.encoder(parts.whole_map)).view(32, -1, 2)
    assert weight.shape == parts.vector.shape
    assert torch.allclose(weight, (pairs[..., 1] - pairs[..., 0]).sigmoid(), atol=1e-6)
    found = terms(trainer, batch)
    assert found["centre"].item() == pytest.approx(0.005 * (weight * parts.vector**2).sum(1).mean().item(), rel=1e-4)
    assert trainer.method.centres.abs().sum() > 0


# --------------------------------------------------------------------------------------------------------------- DMUE

def test_dmue_branches_do_not_see_their_class():
    rng = torch.Generator().manual_seed(0)
    branches, given = torch.randn(4, 3, 2, generator=rng), torch.tensor([0, 1, 2, 1])
    losses = []
    for i, label in enumerate(given.tolist()):
        for j in range(3):
            others = [c for c in range(3) if c != j]
            if label != j:
                losses.append(-branches[i, j].log_softmax(0)[others.index(label)])
    assert dmue.auxiliary_loss(branches, given).item() == pytest.approx(torch.stack(losses).mean().item(), rel=1e-5)


def test_dmue_latent_distribution_is_of_the_branch_blind_to_the_label():
    trainer, batch = prepared("dmue")
    trainer.method.epochs_done.fill_(9)  # past the ramp
    network, given = trainer.network, trainer.method.given[batch.index]
    vector, normalised, branches = network.branches(batch.images)
    assert torch.equal(vector, network.parts(batch.images).vector) and branches.shape == (32, 3, 2)
    assert torch.allclose(normalised, (vector - vector.mean(0)) / vector.std(0, unbiased=False), atol=0.02)
    logits = network.classifier(normalised)
    similar = dmue.class_similarity(vector, given, 3)
    w = network.confidence(torch.cat([similar, F.one_hot(given, 3)], 1)).squeeze(1)
    soft = 0.0
    for i, label in enumerate(given.tolist()):
        others = [c for c in range(3) if c != label]
        latent = (branches[i, label] / 1.2).softmax(0)
        soft += 0.5 * ((logits[i].softmax(0)[others] - latent) ** 2).sum().item() / (32 * 3)
    found = terms(trainer, batch)
    assert found["latent"].item() == pytest.approx(soft, rel=1e-4)
    assert found["cross_entropy"].item() == pytest.approx(F.cross_entropy(w[:, None] * logits, given).item(), rel=1e-4)
    alike = 1000 * dmue.similarity_loss(normalised, branches, given).item()
    assert found["similarity"].item() == pytest.approx(alike, rel=1e-3) and alike > 0
    trainer.method.epochs_done.fill_(trainer.config.warm_up - 1)  # before that, neither w nor similarity is asked for
    up, _ = dmue.ramps(trainer.config.warm_up, 2)
    found = terms(trainer, batch)
    assert found["cross_entropy"].item() == pytest.approx(up * F.cross_entropy(logits, given).item(), rel=1e-4)
    assert found["similarity"] == 0


def test_dmue_branches_have_their_own_stage_and_answer_for_their_label_alone():
    trainer, batch = prepared("dmue")
    network, given = trainer.network, trainer.method.given[batch.index]
    before, answers = network.branches(batch.images)[2], network.eval()(batch.images).logits
    with torch.no_grad():
        network.stages[1][-1].bn2.weight.mul_(3)
    assert torch.equal(network(batch.images).logits, answers)  # the target branch has a stage of its own
    changed = (network.train().branches(batch.images)[2] != before).any(2)  # [B, C]
    assert changed[:, 1].all() and not changed[:, [0, 2]].any() and (given == 1).any()


def test_dmue_similarity_and_ramps():
    half = math.sqrt(0.5)
    vector = torch.tensor([[1.0, 0.0], [2.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    similar = dmue.class_similarity(vector, torch.tensor([0, 0, 1, 2]), 4)  # mean cosines of the first: 1, 0, half
    expected = [[1, 0, half, 0], [1, 0, half, 0], [0, 1, half, 0], [0, 0, 1, 0]]
    assert torch.allclose(similar, torch.tensor(expected), atol=1e-5)
    branches = torch.tensor([[[1.0, 0.0], [0.0, 0.0]], [[3.0, 0.0], [5.0, 5.0]], [[0.0, 2.0], [0.0, 7.0]]])
    alike = dmue.similarity_loss(vector[:3], branches, torch.tensor([1, 1, 0]))
    # branch 0 sees faces 0 and 1: Gram matrices [[1, 2], [2, 4]] and [[1, 3], [3, 9]]; branch 1 face 2: twice [[1]]
    rows = [[1 / math.sqrt(5), 2 / math.sqrt(5)], [1 / math.sqrt(10), 3 / math.sqrt(10)]]
    square = sum((a - b) ** 2 for a, b in zip(*rows, strict=True)) / 2
    assert alike.item() == pytest.approx(square / 2, rel=1e-4)
    assert dmue.ramps(6, 6) == (1.0, 1.0)
    assert dmue.ramps(3, 6) == (pytest.approx(math.exp(-0.25)), 1.0)
    assert dmue.ramps(12, 6) == (1.0, pytest.approx(math.exp(-0.25)))


# ---------------------------------------------------------------------------------------------------------------- RAN

def test_ran_crops_where_it_says():
    x = torch.arange(32 * 32).float().view(1, 1, 32, 32).expand(2, 3, -1, -1)
    row, column = (ran.regions(x)[:, 0] // 32).view(6, 2, 32, 32)[:, 0], x[0, 0] % 32
    assert torch.equal(ran.regions(x)[:2], x)
    crops = [r[0, 0].item() for r in row[1:]], [r[-1, 0].item() for r in row[1:]]
    assert crops[0] == [0, 0, 8, 2, 2] and crops[1] == [23, 23, 31, 30, 28]  # first and last row of each crop
    left = ran.regions(column.expand(1, 3, -1, -1))[1:, 0]
    assert [c[0, 0].item() for c in left] == [0, 8, 4, 2, 2] and [c[0, -1].item() for c in left] == [23, 31, 27, 30, 28]


def test_ran_pools_by_both_attentions():
    trainer, batch = prepared("ran")
    network, images = trainer.network.eval(), batch.images[:2]
    features, mu = network.attended(images)
    for b in range(2):
        vectors = [network.parts(region[None]).vector[0] for region in ran.regions(images).view(6, 2, 3, 32, 32)[:, b]]
        first = [network.self_attention(f).sigmoid() for f in vectors]
        middle = sum(m * f for m, f in zip(first, vectors)) / sum(first)
        joined = [torch.cat([f, middle]) for f in vectors]
        both = [m * network.relation_attention(f).sigmoid() for m, f in zip(first, joined)]
        pooled = sum(w * f for w, f in zip(both, joined)) / sum(both)
        assert torch.allclose(mu[:, b], torch.cat(first), atol=1e-5)
        assert torch.allclose(features.logits[b], network.classifier(pooled), atol=1e-4)


def test_ran_region_loss():
    mu = torch.tensor([[0.5, 0.5], [0.52, 0.2], [0.3, 0.8]])  # of a face and two crops, of two faces
    assert ran.region_biased_loss(mu, 0.1).item() == pytest.approx((0.08 + 0) / 2)


# -------------------------------------------------------------------------------------------------------------- MA-Net

def test_manet_weighs_its_branches():
    trainer, batch = prepared("manet")
    network, given = trainer.network, trainer.method.given[batch.index]
    whole, local, features = network.branches(batch.images)
    found = terms(trainer, batch)
    assert found["global"].item() == pytest.approx(0.4 * F.cross_entropy(whole, given).item(), rel=1e-4)
    assert found["local"].item() == pytest.approx(0.6 * F.cross_entropy(local, given).item(), rel=1e-4)
    assert torch.allclose(features.logits, 0.4 * whole + 0.6 * local, atol=1e-6)


def test_manet_attends_within_quadrants():
    network = prepared("manet")[0].network.eval()
    shared = torch.randn(1, 64, 8, 8)
    changed = shared.clone()
    changed[:, :, :4, 4:] += 1  # upper right
    network.shared = torch.nn.Identity()
    maps = [network.branches(x)[2].attention for x in (shared, changed)]
    differs = (maps[0] != maps[1])[0, 0]
    assert differs[:2, 2:].any() and not differs[2:].any() and not differs[:, :2].any()
    assert maps[0].shape == (1, 1, 4, 4) and ((maps[0] > 0) & (maps[0] < 1)).all()


def test_manet_groups_see_those_before_them_in_two_chains():
    block = manet.MultiScaleBlock(8, 8, 1).eval()
    block.conv1, block.bn1 = torch.nn.Identity(), torch.nn.Identity()
    x = torch.randn(1, 8, 9, 9).relu()
    moved = x.clone()
    moved[:, 2:4, 4, 4] += 10  # in the second of four groups

    def seen(chain, groups):
        before, after = (manet.chained(chain, groups(image)) for image in (x, moved))
        return [int((one != two)[0].any(0).any(0).sum()) for one, two in zip(before, after)]

    up = seen(block.up, lambda image: image.chunk(4, dim=1))
    down = seen(block.down, lambda image: image.chunk(4, dim=1)[::-1])
    assert up[0] == 0 and 0 < up[1] <= 3 and up[1] <= up[2] <= 5 and up[2] <= up[3] <= 7
    assert down[:2] == [0, 0] and 0 < down[2] <= 3 and down[2] <= down[3] <= 5
    last = block.up[3](x[:, 6:] + F.relu(manet.chained(block.up, x.chunk(4, dim=1))[2]))  # and the first of the other
    assert torch.allclose(block(x)[:, 6:], F.relu(last + block.down[0](x[:, 6:]) + x[:, 6:]), atol=1e-6)


def test_manet_attends_before_the_shortcut():
    block, x = manet.AttentiveBlock(16, 16, 1).eval(), torch.randn(2, 16, 3, 3)
    inner = block.bn2(block.conv2(F.relu(block.bn1(block.conv1(x)))))
    channel = (block.attend.channel(inner.mean((2, 3))) + block.attend.channel(inner.amax((2, 3)))).sigmoid()
    inner = inner * channel[:, :, None, None]
    place = block.attend.spatial(torch.cat([inner.mean(1, True), inner.amax(1, True)], 1)).sigmoid()
    found, attention = block.attended(x)
    assert torch.allclose(found, F.relu(inner * place + x), atol=1e-6) and torch.allclose(attention, place)


# ---------------------------------------------------------------------------------------------------------------- EAC

def test_eac_maps_are_the_classes_evidence():
    network = prepared("eac")[0].network.eval()
    parts = network.parts(torch.randn(4, 3, 32, 32))
    maps = eac.activation_maps(parts, network.classifier.weight)
    local = parts.vector[:, :16] @ network.classifier.weight[:, :16].T  # what is not of the map
    logits = network.classifier(parts.vector)
    assert torch.allclose(maps.mean((2, 3)) + local + network.classifier.bias, logits, atol=1e-5)


def test_eac_consistency_is_of_maps_flipped_back():
    maps, mirrored = torch.tensor([[[[1.0, 2.0]]]]), torch.tensor([[[[2.0, 4.0]]]])
    assert eac.flip_consistency(maps, mirrored).item() == pytest.approx(((1 - 4) ** 2 + 0) / 2)
    assert eac.flip_consistency(maps, maps.flip(3)).item() == 0
    trainer, batch = prepared("eac")
    trainer.method.erased_share = 0.0
    network, given = trainer.network, trainer.method.given[batch.index]
    found = terms(trainer, batch)
    one, two = network.parts(batch.images), network.parts(batch.images.flip(3))
    first, second = (eac.activation_maps(p, network.classifier.weight) for p in (one, two))
    assert found["consistency"].item() == pytest.approx(5 * ((first - second.flip(3)) ** 2).mean().item(), rel=1e-3)
    found["consistency"].backward()
    assert network.classifier.weight.grad is None  # the maps' weights are given
    assert network.stage4[0].conv1.weight.grad.abs().sum() > 0
    alone = F.cross_entropy(network.classifier(one.vector), given)
    assert found["cross_entropy"].item() == pytest.approx(alone.item(), rel=1e-4)


def test_eac_erases_squares_in_a_share_of_the_faces():
    erased = eac.erase(torch.ones(4000, 3, 32, 32), (0.02, 0.25), 0.5, torch.Generator().manual_seed(0)) == 0
    area = erased[:, 0].float().mean((1, 2))
    assert torch.equal(erased[:, 0], erased[:, 2])
    assert (area > 0).float().mean().item() == pytest.approx(0.5, abs=0.03)
    assert area[area > 0].min() > 0.008 and area.max() < 0.27
    assert area[area > 0].mean().item() == pytest.approx(0.135, abs=0.01)


# ----------------------------------------------------------------------------------------------------------- DivideMix

def test_dividemix_sharpens_refines_and_balances():
    p = torch.tensor([[0.6, 0.3, 0.1]])
    assert torch.allclose(dividemix.sharpen(p, 0.5), torch.tensor([[0.36, 0.09, 0.01]]) / 0.46)
    y, own, both = torch.tensor([[0.0, 0, 1]]), torch.tensor([[0.5, 0.5, 0]]), torch.tensor([[0.2, 0.8, 0]])
    w = torch.tensor([0.8])
    refined = dividemix.refine(w, torch.ones(1), y, own, both, 1.0)  # 0.8 y + 0.2 own
    assert torch.allclose(refined, torch.tensor([[0.1, 0.1, 0.8]]))
    assert torch.allclose(dividemix.refine(w, torch.zeros(1), y, own, both, 1.0), both)
    assert dividemix.class_balance(torch.full((3,), 1 / 3)).item() == pytest.approx(0, abs=1e-6)
    skewed = dividemix.class_balance(torch.tensor([0.5, 0.25, 0.25]))
    assert skewed.item() == pytest.approx(sum(math.log((1 / 3) / p) / 3 for p in (0.5, 0.25, 0.25)), rel=1e-5)


def test_dividemix_mixes_images_and_labels_alike():
    images = torch.arange(16.0).view(16, 1, 1, 1).expand(-1, 3, 2, 2)
    mixed, labels = dividemix.mix(images, torch.eye(16), 4.0, torch.Generator().manual_seed(3))
    own = labels.diagonal()
    assert (own >= 0.5).all() and torch.allclose(labels.sum(1), torch.ones(16))
    assert torch.allclose(mixed[:, 0, 0, 0], labels @ torch.arange(16.0), atol=1e-5)


def test_dividemix_divides_by_two_gaussians():
    rng = np.random.default_rng(0)
    losses = np.concatenate([rng.normal(1, 0.3, 300), rng.normal(5, 0.6, 100)])
    clean = dividemix.divide(losses)
    assert (clean[:300] > 0.5).mean() > 0.98 and (clean[300:] < 0.5).mean() > 0.98
    assert np.allclose(dividemix.divide(10 * losses + 3), clean, atol=1e-6)  # of whatever scale
    assert np.isfinite(dividemix.divide(np.zeros(50))).all()


def test_dividemix_each_network_learns_from_the_others_division():
    trainer, batch = prepared("dividemix", warm_up=2)
    method = trainer.method
    method.epochs_done.fill_(3)
    method.clean_probability[0] = 0.0  # by the first network's losses every label is wrong ...
    method.clean_probability[1] = 1.0
    found = terms(trainer, batch)
    torch.stack([found["labelled"]]).sum().backward()
    gradients = [twin.classifier.weight.grad is not None and twin.classifier.weight.grad.abs().sum() > 0
                 for twin in trainer.network.twins]
    assert gradients == [True, False]  # ... so the second has none to learn from


def test_dividemix_settings_that_cannot_be_are_told_before_the_training():
    for wrong in ({"temperature": 0.0}, {"beta": 0.0}):
        with pytest.raises(FerlabError, match="have to be above 0"):
            prepared("dividemix", own=wrong)
    trainer, batch = prepared("dividemix", warm_up=1, own={"rise": 0, "unlabelled_weight": 2.0})
    trainer.method.epochs_done.fill_(1)
    trainer.method.clean_probability[:] = 0.0
    assert terms(trainer, batch)["unlabelled"] > 0  # at once


def test_dividemix_divides_by_the_losses_of_all_classes(monkeypatch):
    trainer, _ = prepared("dividemix", count=60, epochs=9, warm_up=2)
    faces, method = trainer.train, trainer.method
    right = torch.from_numpy(faces.labels == faces.truth)
    logits = 4.0 * F.one_hot(torch.from_numpy(faces.truth), 3) + torch.rand(60, 3, generator=torch.manual_seed(0))
    monkeypatch.setattr(dividemix, "collect", lambda *_, **__: type("Collected", (), {"logits": logits}))
    assert method.after_epoch(1, trainer) == {} and (method.clean_probability == 1).all()  # the warm-up
    quality = method.after_epoch(2, trainer)["split"]
    assert quality["auroc"] == 1.0
    assert torch.equal(method.clean_probability > 0.5, right.expand(2, -1))


def test_dmue_latent_distributions_are_given_to_the_target_branch():
    trainer, batch = prepared("dmue")
    terms(trainer, batch)["latent"].backward()
    network = trainer.network
    assert all(p.grad is None or not p.grad.any() for p in (*network.stages.parameters(), *network.heads.parameters()))
    assert network.classifier.weight.grad.abs().sum() > 0


def test_dmue_ramps_weigh_its_terms():
    trainer, batch = prepared("dmue", warm_up=1)
    trainer.method.ramp = 4
    _, _, branches = trainer.network.branches(batch.images)
    auxiliary = dmue.auxiliary_loss(branches, trainer.method.given[batch.index]).item()
    found = {}
    for epochs_done in (1, 3, 7):
        trainer.method.epochs_done.fill_(epochs_done)
        found[epochs_done] = terms(trainer, batch)
    assert found[1]["auxiliary"].item() == pytest.approx(auxiliary, rel=1e-4)
    assert found[7]["auxiliary"].item() == pytest.approx(dmue.ramps(8, 4)[1] * auxiliary, rel=1e-4)
    for name in ("cross_entropy", "latent", "similarity"):
        assert found[1][name].item() == pytest.approx(dmue.ramps(2, 4)[0] * found[3][name].item(), rel=1e-4)


def test_eac_mirrors_the_erased_face():
    trainer, batch = prepared("eac")
    network, method = trainer.network, trainer.method
    found = terms(trainer, batch, seed=2)["consistency"].item()
    images = eac.erase(batch.images, method.erased_area, 0.5, torch.Generator().manual_seed(2))
    maps = [eac.activation_maps(network.parts(each), network.classifier.weight) for each in (images, images.flip(3))]
    assert found == pytest.approx(5 * eac.flip_consistency(*maps).item(), rel=1e-3)


def test_dividemix_terms_are_their_formulas(monkeypatch):
    trainer, batch = prepared("dividemix", warm_up=1, own={"unlabelled_weight": 8.0})
    method, network = trainer.method, trainer.network
    method.epochs_done.fill_(5)  # a quarter of the rise
    method.clean_probability = torch.rand(2, 48, generator=torch.Generator().manual_seed(7))
    refined, refine = [], dividemix.refine
    monkeypatch.setattr(dividemix, "refine", lambda *given: (refined.append(given), refine(*given))[1])
    found, generator = terms(trainer, batch, seed=3), torch.Generator().manual_seed(3)
    guess = [(twin(batch.images).logits.softmax(1) + twin(batch.images.flip(3)).logits.softmax(1)).detach() / 2
             for twin in network.twins]
    expected, targets = dict.fromkeys(("labelled", "unlabelled", "balance"), 0.0), method.targets[batch.index]
    for k, twin in enumerate(network.twins):
        w = method.clean_probability[1 - k, batch.index]
        soft = refine(w, (w > 0.5).float(), targets, guess[k], (guess[0] + guess[1]) / 2, 0.5)
        images, mixed = dividemix.mix(batch.images, soft, 4.0, generator)
        p = twin(images).logits.softmax(1)
        expected["labelled"] += -(mixed * p.log()).sum(1)[w > 0.5].mean().item()
        expected["unlabelled"] += 8 / 4 * ((p - mixed) ** 2).mean(1)[w <= 0.5].mean().item()
        expected["balance"] += dividemix.class_balance(p.mean(0)).item()
    assert {name: value.item() for name, value in found.items()} == pytest.approx(expected, rel=1e-3)
    assert len(refined) == 2 and not any(each.requires_grad for given in refined for each in given[:5])


def test_dividemix_guesses_leave_batch_norm_alone():
    trainer, batch = prepared("dividemix", warm_up=1)
    trainer.method.epochs_done.fill_(1)
    terms(trainer, batch)
    counts = [value for name, value in trainer.network.state_dict().items() if "tracked" in name]
    assert counts and all(count == 1 for count in counts)


def test_dividemix_predicts_by_both_and_divides_by_each(monkeypatch):
    trainer, batch = prepared("dividemix", epochs=9, warm_up=2)
    network = trainer.network.eval()
    one, two = (twin(batch.images).logits for twin in network.twins)
    assert torch.allclose(network(batch.images).logits, (one + two) / 2, atol=1e-6)
    asked, collect = [], dividemix.collect
    monkeypatch.setattr(dividemix, "collect", lambda twin, *rest, **more: (asked.append(twin),
                                                                          collect(twin, *rest, **more))[1])
    trainer.method.after_epoch(2, trainer)
    assert asked[0] is trainer.average.twins[0] and asked[1] is trainer.average.twins[1] and len(asked) == 2


def test_scn_compares_with_the_label_as_it_is_now():
    method = prepared("scn")[0].method
    method.given[0], method.labels[0] = 0, 1  # relabelled before
    method.relabel(torch.tensor([[0.1, 0.4, 0.5]]), torch.tensor([0]))
    assert method.labels[0] == 1


def test_scn_learns_the_new_labels():
    trainer, batch = prepared("scn")
    method = trainer.method
    method.new_targets = torch.rand(48, 3, generator=torch.Generator().manual_seed(0)).softmax(1)
    features, _ = trainer.network.weighted(batch.images)
    expected = 0.5 * F.cross_entropy(features.logits, method.new_targets[batch.index]).item()
    assert terms(trainer, batch)["cross_entropy"].item() == pytest.approx(expected, rel=1e-5)
    assert torch.allclose(method.frequencies(), method.new_targets.mean(0))


def test_scn_relabels_the_faces_of_the_batch(monkeypatch):
    trainer, batch = prepared("scn", warm_up=1)
    trainer.method.epochs_done.fill_(1)
    batch.index = batch.index.flip(0) + 10
    asked = []
    monkeypatch.setattr(trainer.method, "relabel", lambda probability, index: asked.append(index))
    with torch.no_grad():
        alpha = trainer.network.weighted(batch.images)[1]
    terms(trainer, batch)
    assert set(asked[0].tolist()) == set(batch.index[alpha.argsort()[:10]].tolist())


def test_ran_shows_the_attention_of_the_whole_face():
    trainer, batch = prepared("ran")
    network = trainer.network.eval()
    assert torch.allclose(network(batch.images).attention, network.parts(batch.images).attention, atol=1e-6)


def test_dmue_tells_similar_faces_apart_in_half_precision():
    trainer, batch = prepared("dmue", warm_up=0)
    trainer.network.eval()
    with torch.no_grad():
        exact = terms(trainer, batch)
        with torch.autocast("cpu", torch.bfloat16):
            half = terms(trainer, batch)
    assert half["similarity"].item() == pytest.approx(exact["similarity"].item(), rel=0.05)


def test_sharpening_to_nothing_is_deciding():
    rows = torch.tensor([[0.125] * 8, [0.9] + [0.1 / 7] * 7])
    assert torch.allclose(dividemix.sharpen(rows, 0.002), torch.stack([rows[0], torch.eye(8)[0]]))


def test_of_the_classes_in_a_file_the_one_that_no_other_is_made_of_is_the_method(monkeypatch):
    more = type("More", (rul.RUL,), {"__module__": rul.__name__})
    monkeypatch.setattr(rul, "More", more, raising=False)
    assert method_class("rul") is more
    monkeypatch.setattr(rul, "Other", type("Other", (Method,), {"__module__": rul.__name__}), raising=False)
    with pytest.raises(FerlabError, match="has 2 methods"):
        method_class("rul")


def test_a_method_made_of_drfer_obeys_what_drfer_does(monkeypatch):
    assert not extends_drfer("rul") and not extends_drfer("plain") and not extends_drfer("unknown")
    monkeypatch.setattr(rul, "RUL", type("Plus", (DRFERMethod,), {"__module__": rul.__name__}))
    assert extends_drfer("rul") and profile("quick", method="rul") == profile("quick").replace(method="rul")
    assert obeyed({"method": "rul", "sharpness": 3.0})["sharpness"] == 3.0
    assert not settings_of(profile("quick", method="rul"), ["sharpness=1"])[1]


def test_a_run_does_not_go_on_with_another_code_or_other_constants(tmp_path, monkeypatch):
    config, splits = settings(method="scn", epochs=2), Splits(bars(48), None, None)
    train(config, splits, tmp_path, until=1)
    recorded = Run(tmp_path).environment
    assert recorded["method_settings"]["rank_margin"] == scn.SCN.rank_margin and len(recorded["method_source"]) == 16
    for change in ((scn.SCN, "rank_margin", 0.3), (training, "method_source", lambda name: "another")):
        with monkeypatch.context() as patch:
            patch.setattr(*change)
            with pytest.raises(FerlabError, match="before its code was edited"):
                train(config, splits, tmp_path)
    assert train(config, splits, tmp_path).epoch == 2
    assert method_source("plain") is None and method_source("drfer") is None


def test_the_source_of_a_method_is_its_code_without_its_story(tmp_path, monkeypatch):
    file = tmp_path / "scn.py"
    monkeypatch.setattr(scn, "__file__", str(file))
    digests = []
    for text in ('"""One."""\nx = 1  # so\n', '"""Two."""\nx = 1\n', '"""Two."""\nx = 2\n'):
        file.write_text(text)
        digests.append(method_source("scn"))
    assert digests[0] == digests[1] != digests[2]


def test_the_source_of_a_method_is_also_that_of_the_methods_it_is_made_of(tmp_path, monkeypatch):
    monkeypatch.setattr(rul, "RUL", type("Plus", (scn.SCN,), {"__module__": rul.__name__}))
    before, alone = method_source("rul"), method_source("scn")
    (tmp_path / "scn.py").write_text("x = 1")
    monkeypatch.setattr(scn, "__file__", str(tmp_path / "scn.py"))
    assert method_source("rul") != before and method_source("scn") != alone


def test_a_file_with_the_name_of_another_method_is_told(monkeypatch):
    monkeypatch.setattr(comparators, "NAMES", ("plain", *comparators.NAMES))
    with pytest.raises(FerlabError, match="has the name of a method of ferlab.s own: rename the file"):
        method_class("plain")


def test_a_method_that_needs_faces_is_told_before_it_is_trained(monkeypatch):
    def needs_faces(self, config, train):
        super(scn.SCN, self).__init__(config, train)
        self.brightest = train.images[:10].max()

    monkeypatch.setattr(scn.SCN, "__init__", needs_faces)
    with pytest.raises(FerlabError, match=r"scn cannot be made without faces \(ValueError.*let its __init__"):
        Trainer(settings(method="scn"), Splits(bars(12), None, None))


def test_a_network_that_does_not_tell_its_size_is_refused(monkeypatch):
    monkeypatch.setattr(Method, "build_network", lambda self: torch.nn.Linear(2, 2))
    with pytest.raises(FerlabError, match="attribute size"):
        Trainer(settings(), Splits(bars(12), None, None))


def test_a_method_whose_file_cannot_be_imported_is_told(monkeypatch):
    monkeypatch.setitem(sys.modules, "ferlab.comparators.rul", None)
    with pytest.raises(FerlabError, match=r"ferlab/comparators/rul.py cannot be imported \(ModuleNotFoundError"):
        method_class("rul")
    assert not extends_drfer("rul")

"""The training loop: schedule, average, repeatability, resuming, and that the truth never enters."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from ferlab import parallel
from ferlab.config import Config
from ferlab.data import FaceSet, Splits
from ferlab.errors import FerlabError
from ferlab.runs import Run
from ferlab.training import Batch, Method, Trainer, collect, make_optimizer, reference, train

CLASSES = ("high", "middle", "low")


def bars(count=180, wrong=0.0, seed=0, mix=0.0):
    """Faces whose class anyone can tell, a bright bar at one of three heights, with a share of wrong given labels."""
    rng = np.random.default_rng(seed)
    truth = np.arange(count) % 3
    images = rng.integers(0, 120, (count, 32, 32), dtype=np.uint8)
    for image, c in zip(images, truth):
        image[4 + 9 * c : 10 + 9 * c] += 120
    labels = np.where(rng.random(count) < wrong, (truth + rng.integers(1, 3, count)) % 3, truth)
    votes = rng.integers(0, 5, (count, 3)).astype(np.float32)
    return FaceSet(images, labels, CLASSES, truth=truth, votes=votes, dataset="bars", split="train")


def settings(**changes):
    return Config(**{"method": "plain", "size": 32, "epochs": 3, "batch_size": 32, "attention_maps": 2,
                     "local_dimensions": 16, "warm_up": 1, "interval": 1, "optimizer": "sgd", "learning_rate": 0.05,
                     "weight_decay": 5e-4, "anneal_from": 0.15} | changes)


def weights(trainer):
    return torch.cat([value.flatten().double() for value in trainer.average.state_dict().values()])


def test_learning_rate_rises_stays_and_falls():
    trainer = Trainer(settings(learning_rate=0.4, ramp_up=0.2, anneal_from=0.6), Splits(bars(12), None, None))
    rate = trainer.learning_rate
    assert rate(0) == 0 and rate(0.1) == pytest.approx(0.2) and rate(0.2) == pytest.approx(0.4)
    assert rate(0.4) == rate(0.6) == pytest.approx(0.4)
    assert rate(0.8) == pytest.approx(0.2) and rate(1.0) == pytest.approx(0)  # half-way down the cosine, and its end
    assert rate(0.7) == pytest.approx(0.4 * (1 + math.cos(math.pi / 4)) / 2)
    constant = Trainer(settings(learning_rate=0.4, ramp_up=0, anneal_from=1), Splits(bars(12), None, None))
    assert constant.learning_rate(0) == constant.learning_rate(0.99) == pytest.approx(0.4)


def test_every_step_has_the_rate_of_its_moment(monkeypatch):
    trainer = Trainer(settings(epochs=2), Splits(bars(96), None, None))
    rates, step = [], trainer.optimizer.step
    monkeypatch.setattr(trainer.optimizer, "step", lambda: (
        rates.append({group["lr"] for group in trainer.optimizer.param_groups}), step()))
    trainer.fit()
    assert all(len(rate) == 1 for rate in rates)
    expected = [trainer.learning_rate(k / 6) for k in range(6)]  # 3 steps in each of 2 epochs
    assert np.allclose([*map(max, rates)], expected)


def test_average_follows_the_weights_over_its_window():
    trainer = Trainer(settings(average_epochs=2.0), Splits(bars(96), None, None))
    trainer.epoch = 10**6  # long after the start, where the window is shorter
    for parameter in trainer.average.parameters():
        parameter.zero_()
    for parameter in trainer.network.parameters():
        parameter.data.fill_(1.0)
    for _ in range(5):
        trainer._update_average()
    expected = 1 - (1 - 1 / 6) ** 5  # 2 epochs of 3 steps
    assert all(torch.allclose(p, torch.full_like(p, expected), atol=1e-5) for p in trainer.average.parameters())


def test_average_takes_batch_norm_along_and_stays_in_evaluation_mode():
    trainer = train(settings(epochs=2, average_epochs=0), Splits(bars(96), None, None))
    assert not any(module.training for module in trainer.average.modules())
    before = trainer.average.state_dict()["trunk.0.1.num_batches_tracked"]
    assert before == trainer.network.state_dict()["trunk.0.1.num_batches_tracked"] == 6
    moved = trainer.average.state_dict()["trunk.0.1.running_mean"]
    assert moved.abs().sum() > 0


def test_cross_entropy_is_pytorchs():
    generator = torch.Generator().manual_seed(0)
    logits, hard = torch.randn(9, 3, generator=generator), torch.arange(9) % 3
    soft, weight = torch.rand(9, 3, generator=generator).softmax(1), torch.arange(9) / 8
    for smoothing in (0.0, 0.1):
        method = Method(settings(label_smoothing=smoothing), bars(9))
        expected = F.cross_entropy(logits, hard, label_smoothing=smoothing)
        assert method.cross_entropy(logits, method.targets).item() == pytest.approx(expected.item(), rel=1e-6)
        each = F.cross_entropy(logits, soft, label_smoothing=smoothing, reduction="none")
        assert method.cross_entropy(logits, soft).item() == pytest.approx(each.mean().item(), rel=1e-6)
        weighted = method.cross_entropy(logits, soft, weight)
        assert weighted.item() == pytest.approx((each * weight).mean().item(), rel=1e-6)


def test_given_soft_labels_are_what_is_trained_on():
    faces = bars(6)
    faces.label_distribution = np.tile(np.float32([0.5, 0.3, 0.2]), (6, 1))
    assert torch.equal(Method(settings(), faces).targets, torch.from_numpy(faces.label_distribution))
    assert torch.equal(Method(settings(), bars(6)).targets, torch.eye(3)[torch.arange(6) % 3])


def test_optimizer_decays_weights_but_no_biases_and_norms():
    network = Trainer(settings(), Splits(bars(12), None, None)).network
    for name, kind in (("sgd", torch.optim.SGD), ("adamw", torch.optim.AdamW)):
        optimizer = make_optimizer(settings(optimizer=name, weight_decay=0.01), network)
        assert isinstance(optimizer, kind)
        decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
        for key, parameter in network.named_parameters():
            assert decay[id(parameter)] == (0.01 if key.endswith("weight") and parameter.ndim > 1 else 0.0), key


@pytest.mark.parametrize("method", ["plain", "drfer"])
def test_it_learns_what_anyone_can_tell(method):
    splits = Splits(bars(), bars(60, seed=1), None)
    trainer = train(settings(method=method, epochs=6, split="off"), splits)
    assert trainer.records[-1]["valid"]["accuracy"] > 0.95
    assert trainer.records[-1]["loss"]["cross_entropy"] < trainer.records[0]["loss"]["cross_entropy"]
    assert [record["epoch"] for record in trainer.records] == [1, 2, 3, 4, 5, 6]


def test_views_of_a_face_lie_in_one_batch(monkeypatch):
    seen = []

    def loss(self, network, batch, generator):
        seen.append(batch)
        return {"cross_entropy": self.cross_entropy(network(batch.images).logits, self.targets[batch.index])}

    monkeypatch.setattr(Method, "loss", loss)
    trainer = train(settings(epochs=1, batch_size=16, views=3, augmentation=1.0), Splits(bars(32), None, None))
    assert len(seen) == trainer.steps_per_epoch == 2
    for batch in seen:
        assert batch.images.shape[0] == 48
        first, second, third = batch.index.view(3, 16)
        assert torch.equal(first, second) and torch.equal(first, third) and len(first.unique()) == 16
        views = batch.images.reshape(3, 16, -1)
        assert not any(torch.equal(a, b) for pair in (views[:2], views[1:]) for a, b in zip(*pair, strict=True))


@pytest.mark.parametrize("method", ["plain", "drfer"])
def test_one_seed_repeats_to_the_bit(method):
    config, splits = settings(method=method, split="shared", epochs=2), Splits(bars(96, wrong=0.3), None, None)
    torch.manual_seed(7)
    first = train(config, splits)
    torch.manual_seed(8)  # what was drawn before must not matter
    again, other = (train(config.replace(seed=seed), splits) for seed in (0, 1))
    assert torch.equal(weights(first), weights(again)) and not torch.equal(weights(first), weights(other))


@pytest.mark.parametrize("evidence", ["loss", "margin"])
def test_truth_and_votes_never_enter_training(evidence):
    config = settings(method="drfer", epochs=5, warm_up=4, split="shared", evidence=evidence)
    faces, other, rng = bars(120, wrong=0.25), bars(120, wrong=0.25), np.random.default_rng(9)
    if evidence == "loss":
        other.truth = other.votes = None
    else:
        other.truth, other.votes = rng.permutation(faces.truth), faces.votes[::-1].copy()
        other.extras = {"mixture": rng.random((120, 3))}
    first, second = (train(config, Splits(f, None, None)) for f in (faces, other))
    assert first.method.noisy.any()  # the split has been made, so the truth had its chance
    assert torch.equal(weights(first), weights(second))
    for name in ("clean_probability", "new_targets", "weight"):
        assert torch.equal(getattr(first.method, name), getattr(second.method, name))
    assert first.records[-2]["split"] != second.records[-2]["split"]  # only the scores tell them apart


@pytest.mark.parametrize("method", ["plain", "drfer"])
def test_a_resumed_run_goes_on_as_an_unbroken_one(tmp_path, monkeypatch, method):
    config, splits = settings(method=method, split="shared", epochs=4), Splits(bars(64, wrong=0.3), None, None)
    unbroken = train(config, splits, tmp_path / "unbroken")
    train_epoch = Trainer._train_epoch

    def stop_in_the_fourth(self):
        if self.epoch == 3:
            raise KeyboardInterrupt
        return train_epoch(self)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Trainer, "_train_epoch", stop_in_the_fourth)
        train(config, splits, tmp_path / "broken")
    assert len(Run(tmp_path / "broken").metrics) == 3
    resumed = train(config, splits, tmp_path / "broken")
    assert torch.equal(weights(unbroken), weights(resumed))
    for name, value in unbroken.method.state_dict().items():
        assert torch.equal(value, resumed.method.state_dict()[name]), name
    for first, second in zip(Run(tmp_path / "unbroken").metrics, Run(tmp_path / "broken").metrics, strict=True):
        assert first | {"seconds": 0} == second | {"seconds": 0}
    with pytest.raises(FerlabError, match="other settings.*learning_rate"):
        train(config.replace(learning_rate=0.01), splits, tmp_path / "broken")
    with pytest.raises(FerlabError, match="broken holds a run on other training faces or labels"):
        train(config, Splits(bars(64, wrong=0.4), None, None), tmp_path / "broken")


@pytest.mark.parametrize("broken", ["first", "second"])
def test_a_loss_that_is_not_a_number_is_told_with_its_name(broken):
    class Diverging(Method):
        def loss(self, network, batch, generator):
            loss = super().loss(network, batch, generator)["cross_entropy"]
            return {name: loss * (math.nan if name == broken else 1) for name in ("first", "second")}

    trainer = Trainer(settings(), Splits(bars(64), None, None))
    trainer.method = Diverging(trainer.config, trainer.splits.train)
    with pytest.raises(FerlabError, match=rf"epoch 1 \({broken}\).*learning rate"):
        trainer.fit()


def test_batches_carry_the_rows_of_their_images():
    faces = bars(40)
    seen = []

    class Looking(Method):
        def loss(self, network, batch: Batch, generator):
            seen.append(batch.index)
            for image, row in zip(batch.images, batch.index):
                bright = image[0].mean(1).unfold(0, 6, 1).mean(1).argmax()  # where the bar is; a flip leaves it
                assert round((int(bright) - 4) / 9) == faces.truth[row]
            return super().loss(network, batch, generator)

    trainer = Trainer(settings(augmentation=0.0, batch_size=10, epochs=2), Splits(faces, None, None))
    trainer.method = Looking(trainer.config, faces)
    trainer.fit()
    epochs = torch.cat(seen).view(2, 40)
    assert torch.equal(epochs.sort(dim=1).values, torch.arange(40).expand(2, -1))  # each face once an epoch
    assert not torch.equal(epochs[0], epochs[1])


def test_collecting_is_in_order_in_evaluation_mode_and_mirrored():
    faces = bars(70)
    trainer = train(settings(epochs=1), Splits(faces, None, None))
    collected = collect(trainer.average, faces)
    assert torch.allclose(collected.embedding.norm(dim=1), torch.ones(70), atol=1e-5)
    alone = collect(trainer.average, faces.subset([63, 5]))
    assert torch.allclose(collected.logits[[63, 5]], alone.logits, atol=1e-4)
    mirrored = bars(70)
    mirrored.images = faces.images[:, :, ::-1].copy()
    sides = [collect(trainer.average, f, mirror=False).logits for f in (faces, mirrored)]
    assert torch.allclose(collected.logits, (sides[0] + sides[1]) / 2, atol=1e-4)
    assert not torch.allclose(sides[0], sides[1], atol=1e-4)


def test_networks_are_trained_in_half_precision_where_the_hardware_has_it(monkeypatch, tmp_path):
    faces, trained = bars(96), {}
    for name, has_it, wish in (("amx", "amx_tile", "auto"), ("half", "avx512_bf16", "auto"), ("none", None, "auto"),
                               ("asked", "amx_tile", "float32")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        for kind in ("amx_tile", "avx512_bf16"):
            monkeypatch.setattr(torch.cpu, f"_is_{kind}_supported", lambda answer=kind == has_it: answer)
        config = settings(epochs=4, precision=wish)
        assert parallel.precision(config) == ("bfloat16" if has_it and wish == "auto" else "float32")
        trained[name] = train(config, Splits(faces, bars(60, seed=1), None), tmp_path / name)
        assert Run(tmp_path / name).environment["precision"] == parallel.precision(config)
    weights = {name: torch.cat([p.flatten() for p in each.average.parameters()]) for name, each in trained.items()}
    assert all(w.dtype == torch.float32 for w in weights.values())
    assert torch.equal(weights["none"], weights["asked"]) and torch.equal(weights["amx"], weights["half"])
    assert not torch.equal(weights["none"], weights["half"])
    assert all(each.records[-1]["valid"]["accuracy"] > 0.9 for each in trained.values())
    exactly = collect(trained["half"].average, faces).logits.softmax(1)
    assert 0 < (trained["half"].collect(faces).logits.softmax(1) - exactly).abs().max() < 0.05


def test_evaluation_is_against_the_truth_where_there_is_one():
    faces = bars(9, wrong=0.5)
    assert np.array_equal(reference(faces), faces.truth)
    faces.truth = None
    assert np.array_equal(reference(faces), faces.labels)


def test_splits_that_are_missing_or_empty():
    faces = bars(64)
    with pytest.raises(FerlabError, match="no training faces"):
        Trainer(settings(), Splits(None, faces, None))
    with pytest.raises(FerlabError, match="no training faces"):
        Trainer(settings(), Splits(faces.subset([]), faces, None))
    assert len(train(settings(epochs=1), Splits(faces, faces.subset([]), None)).records) == 1


def test_splits_of_another_class_order_are_refused():
    faces = bars(12)
    with pytest.raises(FerlabError, match="valid faces' classes are.*reorder"):
        Trainer(settings(), Splits(faces, faces.reorder(faces.classes[::-1]), None))


@pytest.mark.parametrize("count, steps", [(20, 2), (200, 2), (3, 1)])
def test_few_faces_are_learned_from_in_more_than_one_step(count, steps):
    """The first step of a round has a learning rate of 0."""
    trainer = Trainer(settings(epochs=1, batch_size=128), Splits(bars(count), None, None))
    before = [p.detach().clone() for p in trainer.network.parameters()]
    trainer.fit()
    assert trainer.steps_per_epoch == steps
    moved = any(not torch.equal(a, b) for a, b in zip(before, trainer.network.parameters(), strict=True))
    assert moved == (steps > 1)


def test_unknown_methods_are_refused():
    with pytest.raises(FerlabError, match="no method"):
        Trainer(settings(method="magic"), Splits(bars(12), None, None))


@pytest.mark.parametrize("has_it", [True, False])
def test_a_gpu_without_bfloat16_multiplies_in_single_precision(monkeypatch, has_it):
    monkeypatch.setattr(parallel, "device", lambda: torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation or has_it)
    assert parallel.precision(settings()) == ("bfloat16" if has_it else "float32")


def test_a_run_goes_on_without_the_weights_file_that_it_began_from(tmp_path):
    import torchvision

    torch.save(torchvision.models.resnet18().state_dict(), tmp_path / "face.pth")
    config = settings(epochs=2, backbone="resnet18", size=32, weights=str(tmp_path / "face.pth"))
    splits = Splits(bars(24), bars(12, seed=1), None)
    train(config, splits, tmp_path / "run", until=1)
    (tmp_path / "face.pth").unlink()
    assert train(config, splits, tmp_path / "run").epoch == 2
    with pytest.raises(FerlabError, match="no weights file"):
        train(config, splits, tmp_path / "another")

"""DR-FER in the training loop: each part off alone, the bookkeeping of the split, soft labels, neighbours."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from test_training import bars, settings, weights

from ferlab import metrics
from ferlab.confusion import label_posterior, posterior_under
from ferlab.data import Splits
from ferlab.decisions import face_names
from ferlab.distribution import distribution_contrastive_loss
from ferlab.drfer import DRFERMethod, disagreement, generalised_cross_entropy, split_epochs, with_given
from ferlab.errors import FerlabError
from ferlab.masking import random_patch_mask
from ferlab.retrieval import KINDS, class_average_precision, relabel
from ferlab.training import Batch, Collection, Trainer, train


def splits(count=240, wrong=0.25):
    return Splits(bars(count, wrong), None, None)


def prepared(count=240, wrong=0.25, **changes):
    """A trainer before its first step, losses that tell the wrong labels, and what was collected: embeddings that tell
    the true class, and logits that tell nothing."""
    trainer = Trainer(settings(**{"method": "drfer", "split": "shared", "epochs": 9} | changes), splits(count, wrong))
    faces, rng = trainer.splits.train, np.random.default_rng(1)
    wrongly = torch.from_numpy(faces.labels != faces.truth)
    losses = torch.from_numpy(rng.normal(0.3, 0.1, count)).float() + 2 * wrongly
    embedding = F.normalize(torch.from_numpy(np.eye(3)[faces.truth] + rng.normal(0, 0.1, (count, 3))).float(), dim=1)
    trainer.method.history = losses[None]
    return trainer, wrongly, Collection(torch.zeros(count, 3), embedding)


def a_batch(trainer, count=32):
    index = torch.arange(count)
    images, _ = next(trainer.batches(trainer.splits.train, index, count))
    return Batch(images, index)


def terms(trainer, seed=0):
    trainer.network.train()
    return trainer.method.loss(trainer.network, a_batch(trainer), torch.Generator().manual_seed(seed))


ALL_OFF = {"split": "off", "robustness": 0, "masked_modelling": False, "contrastive": False}


def test_with_every_part_off_it_is_plain_training():
    off, plain = (train(config, splits(96)) for config in (settings(method="drfer", **ALL_OFF), settings()))
    assert torch.equal(weights(off), weights(plain))
    assert (off.method.clean_probability == 1).all() and off.method.history.numel() == 0


@pytest.mark.parametrize("part, term", [("masked_modelling", "masked_modelling"), ("contrastive", "contrastive")])
def test_each_loss_can_be_switched_off_alone(part, term):
    on, off = terms(prepared()[0]), terms(prepared(**{part: False})[0])
    assert set(on) == {"cross_entropy", "masked_modelling", "contrastive"} and set(off) == set(on) - {term}
    for name in off:
        assert off[name].item() == on[name].item()  # the others are as they were


def test_generalised_cross_entropy_is_the_published_one():
    logits = torch.tensor([[0.8, 0.15, 0.05], [0.1, 0.6, 0.3]]).log()
    hard, soft = F.one_hot(torch.tensor([0, 2]), 3).float(), torch.tensor([[0.5, 0.5, 0.0], [0.0, 0.2, 0.8]])
    for q in (0.3, 0.7, 1.0):
        a, b = ((1 - p**q) / q for p in (0.8, 0.3))
        assert generalised_cross_entropy(logits, hard, q).item() == pytest.approx((a + b) / 2, rel=1e-6)
        c, d, e, f = ((1 - p**q) / q for p in (0.8, 0.15, 0.6, 0.3))
        mean = (0.5 * c + 0.5 * d + 0.2 * e + 0.8 * f) / 2
        assert generalised_cross_entropy(logits, soft, q).item() == pytest.approx(mean, rel=1e-6)
    limit = F.cross_entropy(logits, torch.tensor([0, 2])).item()
    assert generalised_cross_entropy(logits, hard, 1e-4).item() == pytest.approx(limit, rel=1e-3)
    certain = torch.tensor([[200.0, 0.0, 0.0]], requires_grad=True)  # p = 0 for the label, as far as floats go
    generalised_cross_entropy(certain, torch.tensor([[0.0, 1.0, 0.0]]), 0.5).backward()
    assert certain.grad.isfinite().all()


def test_disagreement_is_the_jensen_shannon_divergence_of_views():
    logits = torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(0), dtype=torch.double)
    p = logits.softmax(2).numpy()
    two = metrics.jensen_shannon(p[0], p[1]).mean() * math.log(2)  # from bits
    assert disagreement(logits[:2].flatten(0, 1), 2).item() == pytest.approx(two, rel=1e-5)
    mean = p.mean(0)
    three = (p * np.log(p / mean)).sum(2).mean()
    assert disagreement(logits.flatten(0, 1), 3).item() == pytest.approx(three, rel=1e-5)
    assert disagreement(logits[0].repeat(3, 1), 3).item() == pytest.approx(0, abs=1e-6)
    certain = torch.tensor([[200.0, 0.0], [0.0, 200.0]], requires_grad=True)
    assert disagreement(certain, 2).item() == pytest.approx(math.log(2))
    disagreement(certain, 2).backward()
    assert certain.grad.isfinite().all()


def test_views_of_a_face_are_told_to_agree():
    alone, asked = prepared()[0], prepared(views=2, consistency_weight=5)[0]
    assert "consistency" not in terms(alone)
    two = terms(asked)["consistency"]
    asked.config = asked.method.config = asked.config.replace(consistency_weight=10)
    assert terms(asked)["consistency"].item() == pytest.approx(2 * two.item(), rel=1e-5) and two > 0
    with pytest.raises(FerlabError, match="nothing to compare: give views=2"):
        settings(consistency_weight=5)


def test_robust_loss_until_the_first_split_then_cross_entropy():
    trainer = prepared()[0]
    batch = a_batch(trainer)
    trainer.network.train()
    features = trainer.network(batch.images)
    targets = trainer.method.targets[batch.index]
    before = generalised_cross_entropy(features.logits, targets, trainer.config.robustness)
    assert terms(trainer)["cross_entropy"].item() == pytest.approx(before.item(), rel=1e-5)
    trainer.method.split_made.fill_(True)
    after = F.cross_entropy(features.logits, targets)
    assert terms(trainer)["cross_entropy"].item() == pytest.approx(after.item(), rel=1e-5)


def test_terms_are_weighted_by_their_settings():
    first = prepared(mask_weight=0.1, contrastive_weight=0.1)[0]
    second = prepared(mask_weight=0.3, contrastive_weight=0.2)[0]
    terms(first), terms(second)  # the contrastive term needs classes that have been seen, and a split
    assert terms(first)["contrastive"] == 0
    for trainer in (first, second):
        trainer.method.split_made.fill_(True)
    before, after = terms(first), terms(second)
    assert after["masked_modelling"].item() == pytest.approx(3 * before["masked_modelling"].item(), rel=1e-4)
    assert after["contrastive"].item() == pytest.approx(2 * before["contrastive"].item(), rel=1e-4)
    assert after["contrastive"] > 0


@pytest.mark.parametrize("keep_given", ["all", "posterior"])
@pytest.mark.parametrize("split", ["class", "shared"])
def test_split_finds_the_wrong_labels_and_keeps_the_books(split, keep_given):
    trainer, wrongly, collected = prepared(split=split, keep_given=keep_given, relabel_weight=0.5)
    method = trainer.method
    record = method.split_and_relabel(collected)["split"]
    given, truth = method.given, torch.from_numpy(trainer.splits.train.truth)
    assert torch.equal(method.noisy, wrongly) and torch.equal(method.noisy, method.clean_probability < 0.5)
    assert torch.allclose(method.new_targets.sum(1), torch.ones(240), atol=1e-5) and (method.new_targets >= 0).all()
    if keep_given == "all":
        assert torch.allclose(method.new_targets[~wrongly], F.one_hot(given, 3)[~wrongly].float(), atol=1e-3)
    assert torch.equal(method.new_targets.argmax(1)[~wrongly], given[~wrongly])
    assert torch.equal(method.new_targets.argmax(1), truth)  # embeddings tell the true class, so retrieval does
    assert torch.equal(method.weight, torch.where(wrongly, 0.5, 1.0))
    weighed = (method.weight[:, None] * method.new_targets).sum(0)  # suspects count half
    assert torch.allclose(method.frequencies(), method.smoothed(weighed / weighed.sum()))
    assert record["clean_precision"] == record["recovered"] == record["right_after"] == record["auroc"] == 1.0
    assert set(record["status"].values()) == {"split" if split == "class" else "shared"}


@pytest.mark.parametrize("kind", ["plain", "chance", "balanced"])
@pytest.mark.parametrize("keep_given", ["none", "noisy", "all"])
def test_soft_labels_are_the_retrieval_from_the_clean_mixed_with_the_given(kind, keep_given):
    trainer, wrongly, collected = prepared(
        average_precision=kind, keep_given=keep_given, sharpness=1.5, top_k=60, clean_threshold=0.9)
    method = trainer.method
    method.history[0, :40] = torch.linspace(0.6, 2.0, 40)  # some in doubt
    method.split_and_relabel(collected)
    noisy, w = method.noisy, method.clean_probability[method.noisy][:, None].float()
    embedding = collected.embedding
    precision = class_average_precision(embedding[noisy], embedding[~noisy], method.given[~noisy], 3, 60,
                                        **KINDS[kind])
    expected = relabel(precision, 1.5)
    if keep_given != "none":
        assert (w > 0.1).any()
        expected = w * F.one_hot(method.given[noisy], 3) + (1 - w) * expected
    assert torch.allclose(method.new_targets[noisy], expected, atol=1e-6)
    mixed = (method.new_targets[~noisy] != method.targets[~noisy]).any()
    assert mixed == (keep_given == "all")  # clean faces keep their label, or are as soft as they are doubtful


def test_the_posterior_weighs_network_retrieval_and_given_label():
    trainer, wrongly, collected = prepared(keep_given="posterior", sharpness=1.5, temperature=1.3)
    method, given = trainer.method, trainer.method.given
    logits = torch.randn(240, 3, generator=torch.Generator().manual_seed(5)) / 4
    method.split_and_relabel(Collection(logits, collected.embedding))
    own = torch.full((240,), -1)
    own[~wrongly] = torch.arange(int((~wrongly).sum()))  # by the losses; they are the gallery
    precision = class_average_precision(collected.embedding, collected.embedding[~wrongly], given[~wrongly], 3,
                                        balanced=True, exclude=own)
    posterior, confusion = label_posterior(logits.softmax(1) * relabel(precision, 1.5), given, temperature=1.3)
    assert torch.allclose(method.confusion, confusion)
    assert torch.allclose(method.new_targets, posterior.float(), atol=1e-6)
    assert torch.allclose(method.clean_probability, posterior[torch.arange(240), given])


def test_without_relabelling_noisy_faces_are_left_out():
    trainer, wrongly, collected = prepared(relabelling=False)
    trainer.method.split_and_relabel(collected)
    assert torch.equal(trainer.method.weight, (~wrongly).float())
    assert torch.equal(trainer.method.new_targets, trainer.method.targets)
    before = terms(trainer)["cross_entropy"].item()
    trainer.method.new_targets[wrongly] = torch.tensor([0.0, 0.0, 1.0])
    assert wrongly[:32].any() and terms(trainer)["cross_entropy"].item() == before


def test_split_averages_the_last_collections():
    trainer, wrongly, collected = prepared(smooth_collections=3)
    losses, swing = trainer.method.history[0], 5 * torch.randn(240, generator=torch.Generator().manual_seed(2))
    trainer.method.history = torch.stack([100 * torch.rand(240), losses + swing, losses - swing, losses])
    trainer.method.split_and_relabel(collected)
    assert torch.equal(trainer.method.noisy, wrongly)


@pytest.mark.parametrize("evidence", ["margin", "both"])
def test_retrieval_margin_as_evidence_finds_wrong_labels_that_the_loss_does_not(evidence):
    trainer, wrongly, collected = prepared(evidence=evidence)
    told = 0.5 * wrongly if evidence == "both" else 0  # little, or nothing
    trainer.method.history = torch.rand(1, 240, generator=torch.Generator().manual_seed(3)) + told
    trainer.method.split_and_relabel(collected)
    assert (trainer.method.noisy == wrongly).float().mean() > (0.95 if evidence == "margin" else 0.9)


def test_losses_that_do_not_separate_leave_everything_clean():
    trainer, _, collected = prepared()
    trainer.method.history = torch.ones(1, 240)
    trainer.method.split_and_relabel(collected)
    assert not trainer.method.noisy.any() and (trainer.method.weight == 1).all()
    assert torch.equal(trainer.method.new_targets, trainer.method.targets)


@pytest.mark.parametrize("split", ["shared", "class"])
def test_losses_that_no_longer_separate_leave_the_former_split(split):
    trainer, wrongly, collected = prepared(split=split)
    trainer.method.split_and_relabel(collected)
    trainer.method.history = torch.ones(1, 240)
    trainer.method.split_and_relabel(collected)
    assert torch.equal(trainer.method.noisy, wrongly)


def test_a_tenth_of_a_class_is_kept_where_the_network_hardly_ever_says_its_name():
    trainer, wrongly, collected = prepared(keep_given="all")
    method = trainer.method
    method.history[0, method.given == 1] += 5
    method.split_and_relabel(collected)
    mine = method.given == 1
    kept = mine & ~method.noisy
    assert kept.sum() == math.ceil(mine.sum() / 10)
    assert method.history[0, kept].max() < method.history[0, mine & method.noisy].min()
    assert torch.equal(method.noisy[~mine], wrongly[~mine])


def test_a_split_without_a_clean_face_leaves_something_to_train_on():
    trainer, _, collected = prepared(clean_threshold=1.0)
    trainer.method.history = torch.linspace(0, 1, 240)[None] ** 3
    trainer.method.split_and_relabel(collected)
    assert trainer.method.weight.sum() > 0
    state = trainer.method.states(trainer)["train"]
    assert len(state["neighbours"]) == 240


def test_a_schedule_that_never_splits_is_told():
    with pytest.raises(FerlabError, match="warm_up is 5 of 5 epochs.*split=off"):
        prepared(epochs=5, warm_up=5)
    prepared(epochs=5, warm_up=5, split="off")
    with pytest.raises(FerlabError, match="interval is 6 of 5 epochs.*split=off"):
        prepared(epochs=5, warm_up=0, interval=6)


def test_faces_that_nothing_sets_apart_from_the_least_sure_are_not_called_clean():
    trainer = prepared(count=100)[0]
    method = trainer.method
    method.given = torch.zeros(100, dtype=torch.long)
    everybody = torch.ones(100, dtype=torch.bool)
    method.judge(everybody, torch.tensor([0.4] * 5 + [1e-6] * 95, dtype=torch.double))
    assert (~method.noisy).nonzero().squeeze(1).tolist() == [0, 1, 2, 3, 4]
    method.judge(everybody, torch.full((100,), 0.2, dtype=torch.double))  # a class is not left without a clean face
    assert not method.noisy.any()


def test_splits_follow_the_schedule():
    trainer, _, faces_as_seen = prepared(epochs=12, warm_up=4, interval=3, smooth_collections=2)
    method, collected = trainer.method, []

    def collect(faces):
        collected.append(epoch)
        logits = torch.randn(240, 3, generator=torch.Generator().manual_seed(epoch))
        return Collection(logits, faces_as_seen.embedding)

    trainer.collect = collect
    split = []
    for epoch in range(1, 13):
        if "split" in method.after_epoch(epoch, trainer):
            split.append(epoch)
    assert split == [4, 7, 12]  # not at 10, in the middle of the last round
    assert collected == [3, 4, 6, 7, 11, 12]  # what a split averages: its epoch and the one before


@pytest.mark.parametrize("changes, rounds", [
    ({"epochs": 12, "warm_up": 4, "interval": 4}, [(0, 4), (4, 8), (8, 12)]),
    ({"epochs": 12, "warm_up": 4, "interval": 3}, [(0, 4), (4, 7), (7, 12)]),  # the rest belongs to the last round
    ({"epochs": 12, "warm_up": 8, "interval": 9}, [(0, 8), (8, 12)]),
    ({"epochs": 12, "warm_up": 0, "interval": 6}, [(0, 6), (6, 12)]),
    ({"epochs": 12, "warm_up": 4, "restarts": False}, [(0, 12)]),
    ({"epochs": 12, "warm_up": 4, "split": "off"}, [(0, 12)]),
])
def test_rounds_lie_between_the_splits(changes, rounds):
    method = prepared(**changes)[0].method
    assert list(dict.fromkeys(method.round_of(epoch) for epoch in range(12))) == rounds
    assert all(start <= epoch < end for epoch in range(12) for start, end in [method.round_of(epoch)])
    if len(rounds) > 1:
        assert split_epochs(method.config) == [end for _, end in rounds]


def test_without_restarts_there_is_a_split_every_interval():
    assert split_epochs(prepared(epochs=12, warm_up=4, interval=3, restarts=False)[0].config) == [4, 7, 10]


def test_the_learning_rate_rises_and_falls_in_every_round(monkeypatch):
    trainer = prepared(epochs=4, warm_up=2, interval=2)[0]
    rates, rate = [], trainer.learning_rate
    monkeypatch.setattr(trainer, "learning_rate", lambda progress: rates.append(rate(progress)) or rates[-1])
    trainer.fit()
    assert np.allclose(rates[: len(rates) // 2], rates[len(rates) // 2 :]) and len(set(rates)) > 2
    assert [("split" in record) for record in trainer.records] == [False, True, False, True]


def test_masked_copies_leave_batch_norm_to_the_faces():
    with_copies, without = prepared()[0], prepared(masked_modelling=False)[0]
    terms(with_copies), terms(without)
    first, second = with_copies.network.state_dict(), without.network.state_dict()
    running = [name for name in first if "running" in name or "tracked" in name]
    assert len(running) > 20 and all(torch.equal(first[name], second[name]) for name in running)


def test_masked_modelling_reconstructs_hidden_patches_of_a_share_of_the_batch():
    trainer = prepared(mask_share=0.25, mask_ratio=0.5)[0]
    batch, network = a_batch(trainer), trainer.network.train()
    loss = trainer.method.masked_modelling(network, batch.images, torch.Generator().manual_seed(4))
    mask = random_patch_mask(8, 4, 0.5, torch.Generator().manual_seed(4))
    pixels = mask.repeat_interleave(8, 1).repeat_interleave(8, 2)[:, None].expand(-1, 3, -1, -1)
    faces = batch.images[:8]
    predicted = network.reconstruct(torch.where(pixels, 0.0, faces))
    assert loss.item() == pytest.approx(((predicted - faces)[pixels] ** 2).mean().item(), rel=1e-4)


def test_class_distributions_are_of_clean_faces_only():
    trainer, wrongly, _ = prepared()
    trainer.method.clean_probability = (~wrongly).float()
    terms(trainer)
    network = trainer.network
    with torch.no_grad():
        embedding = prepared()[0].network.train()(a_batch(trainer).images).embedding
    given = trainer.method.given[:32]
    for c in range(3):
        chosen = embedding[(given == c) & ~wrongly[:32]]
        assert torch.allclose(trainer.method.distributions.mean[c], chosen.mean(0), atol=1e-5)
    assert network.training and wrongly[:32].any()


@pytest.fixture(scope="module")
def trained():
    return train(settings(method="drfer", epochs=7, warm_up=5, split="shared"), splits())


def test_training_finds_and_mends_wrong_labels(trained):
    record = trained.records[-2]["split"]
    assert record["auroc"] > 0.95 and record["clean_precision"] > 0.95 and record["right_after"] > 0.9
    faces = trained.splits.train
    assert list(record["per_class"]) == list(faces.classes)
    count = np.bincount(faces.labels)
    for score in ("right_after", "clean_share"):
        shares = [of[score] for of in record["per_class"].values()]
        assert np.average(shares, weights=count) == pytest.approx(record[score])


def test_state_is_in_the_order_of_the_faces(trained):
    state, faces = trained.method.states(trained)["train"], trained.splits.train
    rows = np.array([200, 3, 77])
    collected = trained.collect(faces.subset(rows))
    assert np.allclose(state["probability"][rows], collected.logits.softmax(1), atol=1e-4)
    assert np.allclose(state["embedding"][rows], collected.embedding, atol=2e-3)
    loss = F.cross_entropy(collected.logits, torch.from_numpy(faces.labels[rows]), reduction="none")
    assert np.allclose(state["loss"][rows], loss, atol=1e-4)
    assert state["name"].tolist() == face_names(faces).tolist() and state["classes"].tolist() == list(faces.classes)
    assert (state["given"] == faces.labels).all()
    assert np.allclose(state["soft_label"].sum(1), 1, atol=1e-5)
    assert state["loss_history"].shape[1] == 240 and len(state["loss_history"]) >= 3


def test_neighbours_are_the_nearest_clean_faces_never_the_face_itself(trained):
    state, noisy = trained.method.states(trained)["train"], trained.method.noisy.numpy()
    assert noisy.any()
    similarity = trained.collect(trained.splits.train).embedding.numpy()
    similarity = similarity @ similarity.T
    for row, neighbours in enumerate(state["neighbours"]):
        assert row not in neighbours and not noisy[neighbours].any() and len(set(neighbours)) == 10
        others = np.flatnonzero(~noisy & (np.arange(240) != row))
        best = np.sort(similarity[row, others])[::-1][:10]
        assert np.allclose(similarity[row, neighbours], best, atol=1e-5)


def test_average_precision_of_a_clean_face_is_without_itself(trained):
    state, noisy = trained.method.states(trained)["train"], trained.method.noisy.numpy()
    labels = trained.splits.train.labels
    embedding = trained.collect(trained.splits.train).embedding.numpy()
    kind = trained.config.average_precision
    for row in [*np.flatnonzero(~noisy)[:3], *np.flatnonzero(noisy)[:3]]:
        gallery = ~noisy & (np.arange(240) != row)
        expected = class_average_precision(embedding[[row]], embedding[gallery], labels[gallery], 3,
                                           **KINDS[kind])
        assert np.allclose(state["average_precision"][row], expected[0], atol=1e-4)


@pytest.mark.parametrize("changes", [{"keep_given": "none"}, {"keep_given": "noisy"}, {"relabelling": False},
                                     {"split": "off"}], ids=str)
def test_unseen_faces_are_labelled_as_if_they_had_been_trained_on(changes):
    faces = bars(240, wrong=0.25)
    trained = train(settings(**{"method": "drfer", "split": "shared", "epochs": 6, "warm_up": 4, "interval": 2}
                             | changes), Splits(faces, bars(90, wrong=0.25), None))
    for name, state in trained.method.states(trained).items():
        given = np.eye(3)[getattr(trained.splits, name).labels]
        noisy = state["clean_probability"] < trained.config.clean_threshold
        assert np.array_equal(state["soft_label"][~noisy], given[~noisy]) and (~noisy).any()
        assert noisy.any() == (trained.config.split != "off")
        kept = np.array_equal(state["soft_label"][noisy], given[noisy])
        assert kept == (trained.config.split == "off" or not trained.config.relabelling)


def test_unseen_faces_of_a_class_that_was_not_split_keep_their_labels():
    faces = bars(240, wrong=0.25)
    faces = faces.subset(np.sort(np.r_[np.flatnonzero(faces.labels < 2), np.flatnonzero(faces.labels == 2)[:12]]))
    trained = train(settings(method="drfer", split="class", epochs=6, warm_up=4, interval=2),
                    Splits(faces, bars(90, wrong=0.25), None))
    assert trained.records[-1]["split"]["status"][2] == "too small"
    for name, state in trained.method.states(trained).items():
        last = getattr(trained.splits, name).labels == 2
        assert (state["clean_probability"][last] == 1).all() and (state["clean_probability"][~last] < 1).any()


def test_unseen_faces_are_judged_on_the_scale_of_the_training_faces():
    trainer = prepared(evidence="both")[0]
    method = trainer.method
    seen = torch.rand(240) * 3, method.given, torch.rand(240, 3)
    few = tuple(each[:5] for each in seen)
    assert torch.allclose(method.evidence(*few, among=seen), method.evidence(*seen)[:5], atol=1e-6)


def test_frequencies_are_of_labels_as_they_are_learned_from():
    trainer, _, collected = prepared(label_smoothing=0.3)
    given = torch.bincount(trainer.method.given) / 240
    assert torch.allclose(trainer.method.frequencies(), given)  # the robust loss smooths nothing
    assert torch.allclose(prepared(label_smoothing=0.3, robustness=0)[0].method.frequencies(), given * 0.7 + 0.1)
    trainer.method.split_and_relabel(collected)
    learned = trainer.method.new_targets.mean(0)
    assert torch.allclose(trainer.method.frequencies(), learned * 0.7 + 0.1, atol=1e-6)


@pytest.mark.parametrize("clean", [1, 4, 10])
def test_a_small_clean_gallery_still_gives_no_face_itself_as_neighbour(clean):
    trainer, _, _ = prepared()
    trainer.method.clean_probability = (torch.arange(240) < clean).float()
    for row, neighbours in enumerate(trainer.method.states(trainer)["train"]["neighbours"]):
        assert row not in neighbours and all(n < clean for n in neighbours)


def test_method_is_one_that_the_loop_can_save():
    trainer, _, collected = prepared()
    trainer.method.split_and_relabel(collected)
    fresh = DRFERMethod(trainer.config, trainer.splits.train)
    fresh.build_network()
    fresh.load_state_dict(trainer.method.state_dict())
    for name, value in trainer.method.state_dict().items():
        assert torch.equal(value, fresh.state_dict()[name])


def test_after_the_split_it_learns_from_the_new_labels():
    trainer = prepared()[0]
    method, batch = trainer.method, a_batch(trainer)
    method.split_made.fill_(True)
    method.new_targets = torch.rand(240, 3, generator=torch.Generator().manual_seed(0)).softmax(1)
    method.weight = torch.rand(240, generator=torch.Generator().manual_seed(1))
    loss = F.cross_entropy(trainer.network.train()(batch.images).logits, method.new_targets[batch.index],
                           reduction="none")
    expected = (loss * method.weight[batch.index]).mean().item()
    assert terms(trainer)["cross_entropy"].item() == pytest.approx(expected, rel=1e-5)


def test_the_contrastive_term_is_its_formula():
    trainer = prepared(contrastive_weight=0.3, contrastive_count=7.0, contrastive_temperature=0.4)[0]
    method, batch = trainer.method, a_batch(trainer)
    method.split_made.fill_(True)
    terms(trainer)  # classes are seen
    with torch.no_grad():
        embedding = trainer.network.train()(batch.images).embedding
    expected = 0.3 * distribution_contrastive_loss(embedding, method.given[:32], torch.ones(32), method.distributions,
                                                   7.0, 0.4)
    assert terms(trainer)["contrastive"].item() == pytest.approx(expected.item(), rel=1e-4)


def test_without_a_split_every_label_is_contrasted_from_the_start():
    trainer = prepared(split="off")[0]
    terms(trainer)  # classes are seen
    assert terms(trainer)["contrastive"] > 0


def test_no_face_finds_itself_in_the_evidence(monkeypatch):
    trainer, _, collected = prepared(evidence="margin", top_k=5)
    method, seen = trainer.method, []
    evidence = method.evidence
    monkeypatch.setattr(method, "evidence", lambda loss, given, precision: (seen.append(precision),
                                                                          evidence(loss, given, precision))[1])
    method.split_and_relabel(collected)
    embedding = collected.embedding
    expected = class_average_precision(embedding, embedding, method.given, 3, 5, balanced=True,
                                       exclude=torch.arange(240))
    assert torch.equal(seen[0], expected)


def test_variances_are_tied_only_if_asked_for():
    for tied in (True, False):
        method = prepared(tied=tied)[0].method
        mixture = method.fit_mixture(method.history[0]).mixtures[0]
        assert (mixture.low_std == mixture.high_std) == tied


def test_the_quality_of_the_split_is_at_its_threshold():
    trainer, _, collected = prepared(clean_threshold=0.9, keep_given="noisy")
    trainer.method.history[0, :40] = torch.linspace(0.6, 2.0, 40)  # some in doubt
    found = trainer.method.split_and_relabel(collected)["split"]
    w = trainer.method.clean_probability
    assert ((w > 0.5) & (w < 0.9)).any() and found["clean_share"] == pytest.approx((w >= 0.9).double().mean().item())


def test_unseen_faces_get_the_posterior_of_the_training_faces_confusion():
    trainer, _, collected = prepared(split="class", sharpness=1.5, temperature=1.3)
    method, rng = trainer.method, torch.Generator().manual_seed(5)
    method.history[0, method.given == 2] = 1.0  # a class that is not split
    method.split_and_relabel(collected)
    mixture = method.fit_mixture(method.evidence(method.history[0], method.given, None))
    method.confusion = torch.tensor([[0.7, 0.2, 0.1], [0.3, 0.6, 0.1], [0.1, 0.4, 0.5]]).double()
    method.clean_probability[method.given == 2] = 1.0
    precision, probability = torch.rand(60, 3, generator=rng), torch.rand(60, 3, generator=rng).softmax(1)
    given, scores = torch.arange(60) % 3, torch.rand(60, generator=rng)
    w, soft = method.labels_unseen(scores, precision, probability, given, mixture)
    expected = posterior_under(method.confusion, probability * relabel(precision, 1.5), given, 1.3)
    own = expected.gather(1, given[:, None])[:, 0]
    assert torch.allclose(w[given < 2].double(), own[given < 2], atol=1e-6) and (w[given == 2] == 1).all()
    assert torch.allclose(soft[given < 2].double(), expected[given < 2], atol=1e-6)
    assert torch.equal(soft[given == 2].argmax(1), given[given == 2])


def test_states_judge_unseen_faces_on_the_scale_of_the_training_faces(monkeypatch):
    trainer = prepared(evidence="both")[0]
    trainer.splits = trainer.splits._replace(valid=bars(30, wrong=0.2, seed=3))
    method, seen = trainer.method, []
    evidence = method.evidence
    monkeypatch.setattr(method, "evidence", lambda *judged, among=None: (seen.append((judged, among)),
                                                                       evidence(*judged, among=among))[1])
    method.states(trainer)
    assert len(seen) == 2 and seen[0][1] is None and seen[1][1] == seen[0][0]


def test_where_nothing_but_the_given_label_is_left_it_is_kept():
    one = torch.tensor([[0.0, 1.0]])
    assert torch.equal(with_given(one, torch.ones(1), torch.tensor([1]), one, torch.tensor([False]), "posterior"), one)


def test_unseen_faces_are_noisy_below_the_threshold():
    trainer, _, collected = prepared(clean_threshold=0.9, keep_given="noisy")
    method = trainer.method
    method.split_and_relabel(collected)
    doubt = type("Mixture", (), {"predict": lambda self, scores, given: scores})()
    w, precision = torch.tensor([0.95, 0.7]), torch.tensor([[0.1, 0.2, 0.9]] * 2)
    _, soft = method.labels_unseen(w, precision, precision, torch.tensor([0, 0]), doubt)
    assert soft[0].tolist() == [1, 0, 0] and 0.7 < soft[1, 0] < 1


def test_classes_are_aligned_where_asked_for():
    confusion = {}
    for aligned in (True, False):
        trainer, _, collected = prepared(keep_given="posterior", aligned=aligned)
        logits = collected.logits + torch.tensor([1.0, 0.0, -1.0])  # it leans to the first class
        trainer.method.split_and_relabel(collected._replace(logits=logits))
        confusion[aligned] = trainer.method.confusion
    assert torch.allclose(confusion[False].sum(1), torch.ones(3).double()) and confusion[True].sum(1).min() < 0.99


def test_suspects_of_a_former_split_weigh_as_little():
    trainer, wrongly, collected = prepared(relabel_weight=0.5)
    trainer.method.split_and_relabel(collected)
    trainer.method.history = torch.ones(1, 240)
    trainer.method.split_and_relabel(collected)
    assert torch.equal(trainer.method.weight, torch.where(wrongly, 0.5, 1.0))


def test_a_face_that_resembles_its_given_class_alone_keeps_all_of_its_label():
    targets, given = torch.eye(3)[[1, 1]], torch.tensor([1, 1])
    soft = torch.tensor([[0.0, 1.0, 0.0], [0.3, 0.4, 0.3]])
    new = with_given(soft, torch.tensor([0.3, 0.4]), given, targets, torch.tensor([True, True]), "posterior")
    assert torch.allclose(new, torch.tensor([[0.0, 1.0, 0.0], [0.3, 0.4, 0.3]]))

"""DR-FER as a method of the training loop: its four parts and their schedule (Algorithm 1)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ferlab import metrics, parallel
from ferlab.config import Config
from ferlab.confusion import label_posterior, posterior_under
from ferlab.data import FaceSet
from ferlab.distribution import ClassDistributions, distribution_contrastive_loss
from ferlab.errors import FerlabError
from ferlab.masking import batch_statistics_untouched, hide, masked_reconstruction_loss, random_patch_mask
from ferlab.mixture import ClassMixture, evidence
from ferlab.model import DRFER
from ferlab.retrieval import KINDS, class_average_precision, nearest_neighbours, relabel, retrieval_margin
from ferlab.training import Batch, Collection, Method, Trainer

LEAST_CLEAN = 0.1  # share of each given class that counts as clean at least (ours)
ONLY_NOISY = ("none", "noisy")  # keep_given under which clean faces keep their labels


def split_epochs(config: Config) -> list[int]:
    """After which epochs, from 1, a split is made: the warm-up, and every ``interval`` from there on.

    With ``restarts`` rounds of training lie between them, and the last round lasts, with its split, to the end.
    """
    if config.split == "off":
        return []
    epochs = list(range(config.warm_up or config.interval, config.epochs + 1, config.interval))
    if config.restarts and epochs and epochs[-1] < config.epochs:
        epochs[max(1, len(epochs) - 1):] = [config.epochs]  # too short a rest belongs to the round before
    return epochs


def epochs_to_split(config: Config, epoch: int) -> int | None:
    """How many epochs after ``epoch`` (from 1) the next split is made, 0 = right after it; None = after this epoch no
    losses are collected, as none is made, or not soon enough to count for it."""
    ahead = next((split - epoch for split in split_epochs(config) if split >= epoch), None)
    return None if ahead is None or ahead >= config.smooth_collections else ahead


def generalised_cross_entropy(logits: Tensor, targets: Tensor, q: float) -> Tensor:
    """Mean over the batch of sum_c t_c (1 - p_c^q) / q: cross-entropy as q -> 0, absolute error at q = 1.

    logits, targets: [B, C]; q in (0, 1]. A label that the network doubts pulls less, by p^q, so that fewer wrong ones
    are learned by heart (Zhang and Sabuncu, NeurIPS 2018).
    """
    log_p = F.log_softmax(logits.float(), dim=1)
    return -(targets * torch.expm1(q * log_p) / q).sum(1).mean()


def disagreement(logits: Tensor, views: int) -> Tensor:
    """Mean over the faces of the Jensen-Shannon divergence of the answers to their views, in nats, 0 = all alike.

    logits: [views * B, C], of the first view of every face, then of the second, and so on. A wrong label is learned by
    heart from what is special in one image, which the next view of it lacks (ours; as a loss, Hendrycks et al., AugMix,
    ICLR 2020; with wrong labels, Englesson and Azizpour, NeurIPS 2021).
    """
    log_p = F.log_softmax(logits.float(), dim=1).unflatten(0, (views, -1))
    log_mean = log_p.logsumexp(0) - math.log(views)
    return (log_p.exp() * (log_p - log_mean)).sum(2).mean()


def soft_labels(config: Config, precision: Tensor, probability: Tensor, given: Tensor, confusion: Tensor) -> Tensor:
    """What faces look like by their average precisions [B, C], rows [B, C] that sum to 1; and, by Bayes' rule, to the
    network, ``probability`` [B, C], and to those who gave the labels, int [B], with a known confusion [C, C]."""
    soft = relabel(precision, config.sharpness)
    if config.keep_given == "posterior":
        soft = posterior_under(confusion, probability * soft, given, config.temperature)
    return soft


def with_given(
    soft: Tensor, w: Tensor, given: Tensor, targets: Tensor, noisy: Tensor, keep_given: str
) -> Tensor:
    """New labels [B, C], rows sum to 1, of soft ones [B, C] and what is kept of the given ones (ours).

    w: [B], clean probability; given: int [B]; targets: [B, C], the given labels as rows; noisy: bool [B]. keep_given:
    "none", nothing; "posterior", a share w (all, where no other class has any), and the other classes have the rest;
    else the mean of both, weighed by w. Under "none" and "noisy" clean faces keep their targets.
    """
    share = w[:, None]
    if keep_given == "posterior":
        soft = soft.scatter(1, given[:, None], 0)
        rest = soft.sum(1, keepdim=True)
        soft, share = soft / rest.clamp(min=1e-12), torch.where(rest > 0, share, 1)
    if keep_given != "none":
        soft = share * targets + (1 - share) * soft
    if keep_given in ONLY_NOISY:
        soft = torch.where(noisy[:, None], soft, targets)
    return soft.float()


class DRFERMethod(Method):
    """CE(clean) + relabel_weight * softCE(noisy) + mask_weight * MIM + contrastive_weight * DCL(clean), and, if asked
    for, consistency_weight * ``disagreement`` (ours). MIM sees a share of each batch (``mask_share``; ours), and clean
    faces have soft labels, too, unless ``keep_given`` leaves them theirs (ours).

    With robustness above 0 the generalised cross-entropy of all given labels stands in the place of both CE until the
    first split (ours); to the end, and label_smoothing is not obeyed, where split is "off".

    clean_probability: [N], 1 before the first split; noisy: bool [N]; history: [E, N], the losses collected so far;
    confusion: [C, C], P(given | true), where ``keep_given`` is "posterior" (rows weighed if ``aligned``).
    """

    clean_probability: Tensor
    weight: Tensor
    history: Tensor
    split_made: Tensor
    new_targets: Tensor
    confusion: Tensor
    distributions: ClassDistributions

    def __init__(self, config: Config, train: FaceSet):
        super().__init__(config, train)
        first = "warm_up" if config.warm_up else "interval"  # what the first split waits for
        late = config.warm_up >= config.epochs or (config.warm_up == 0 and config.interval > config.epochs)
        if config.split != "off" and late:
            raise FerlabError(f"{first} is {getattr(config, first)} of {config.epochs} epochs, so that no split would "
                              f"ever come: lower {first}, or set split=off.")
        count = len(train)
        self.register_buffer("clean_probability", torch.ones(count, dtype=torch.double))  # in single, many tie at 1
        self.register_buffer("weight", torch.ones(count))
        self.register_buffer("new_targets", self.targets.clone())
        self.register_buffer("confusion", torch.eye(self.num_classes, dtype=torch.double))
        self.register_buffer("history", torch.zeros(0, count))
        self.register_buffer("split_made", torch.zeros((), dtype=torch.bool))

    def build_network(self) -> DRFER:
        network = super().build_network()
        distributions = ClassDistributions(self.num_classes, network.embedding_dimensions)
        self.distributions = distributions.to(self.given.device)
        return network

    def load_state_dict(self, state: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        self.history = torch.empty_like(state["history"], device=self.given.device)  # it grows with every collection
        return super().load_state_dict(state, strict, assign)

    def round_of(self, epoch: int) -> tuple[int, int]:
        if self.config.split == "off" or not self.config.restarts:
            return 0, self.config.epochs
        bounds = [0, *split_epochs(self.config)]
        return next((start, end) for start, end in pairwise(bounds) if epoch < end)

    @property
    def noisy(self) -> Tensor:
        """bool [N], True = split off as noisy."""
        return self.clean_probability < self.config.clean_threshold

    def frequencies(self) -> Tensor:
        learned = (self.weight[:, None] * self.new_targets).sum(0)
        learned = learned / learned.sum()
        return self.smoothed(learned) if self.split_made or not self.config.robustness else learned

    def loss(self, network: DRFER, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        config = self.config
        features = network(batch.images)
        targets = self.new_targets[batch.index]
        cross_entropy = self.cross_entropy(features.logits, targets, self.weight[batch.index])
        if config.robustness:
            robust = generalised_cross_entropy(features.logits, targets, config.robustness)
            cross_entropy = torch.where(self.split_made, cross_entropy, robust)
        terms = {"cross_entropy": cross_entropy}
        if config.consistency_weight:
            terms["consistency"] = config.consistency_weight * disagreement(features.logits, config.views)
        if config.masked_modelling:
            terms["masked_modelling"] = config.mask_weight * self.masked_modelling(network, batch.images, generator)
        given, clean = self.given[batch.index], (~self.noisy[batch.index]).float()
        if config.contrastive:
            begun = self.split_made | (config.split == "off")  # before the first split nobody is known to be clean
            terms["contrastive"] = begun * config.contrastive_weight * distribution_contrastive_loss(
                features.embedding, given, clean, self.distributions,
                config.contrastive_count, config.contrastive_temperature)
        self.distributions.update(features.embedding.detach(), given, clean)
        return terms

    def masked_modelling(self, network: DRFER, images: Tensor, generator: torch.Generator) -> Tensor:
        """Reconstruct hidden patches of a share of the batch."""
        images = images[: max(1, round(self.config.mask_share * len(images)))]
        grid = self.config.size // network.cell
        mask = random_patch_mask(len(images), grid, self.config.mask_ratio, generator).to(images.device)
        with batch_statistics_untouched(network):
            predicted = network.reconstruct(hide(images, mask))
        return masked_reconstruction_loss(predicted, images, mask)

    def after_epoch(self, epoch: int, trainer: Trainer) -> dict:
        ahead = epochs_to_split(self.config, epoch)
        if ahead is None:
            return {}
        collected = trainer.collect(self.faces)
        losses = F.cross_entropy(collected.logits, self.given, reduction="none")
        self.history = torch.cat([self.history, losses[None]])
        return self.split_and_relabel(collected) if ahead == 0 else {}

    def split_and_relabel(self, collected: Collection) -> dict:
        """Split by the evidence, relabel by retrieval from the clean set, and set targets and weights."""
        config, embedding = self.config, collected.embedding
        loss = self.history[-config.smooth_collections :].mean(0)
        precision = None
        if config.evidence in ("margin", "both"):
            everybody = torch.arange(len(embedding), device=embedding.device)
            precision = self.average_precision(embedding, embedding, self.given, everybody)
        mixture = self.fit_mixture(self.evidence(loss, self.given, precision))
        separates = torch.tensor([mixture.mixtures.get(c) is not None for c in range(self.num_classes)])
        judged = separates.to(loss.device)[self.given]
        # a class that does not separate now keeps what is known of it: once learned, clean losses are one heap
        self.judge(judged, torch.from_numpy(mixture.clean_probability).to(loss.device))
        self.split_made.fill_(True)
        self.new_targets = self.targets.clone()
        if self.noisy.any() and config.relabelling:
            self.relabel(collected, judged)
        self.weight = torch.where(self.noisy, config.relabel_weight if config.relabelling else 0.0, 1.0)
        agreement = (collected.logits.argmax(1) == self.given).double().mean().item()
        return {"split": self.quality() | {"agreement": agreement, "status": mixture.status}}

    def judge(self, judged: Tensor, clean_probability: Tensor) -> None:
        """Set the clean probability [N] of the ``judged`` faces, bool [N].

        The surest tenth of every given class counts as clean at least (fewer where the rest are equally unsure, more
        where several are equally sure; ours):
        of a rare class most labels may be wrong, and a network that hardly ever says its name can tell which of its
        faces come first, but not how many are right.
        """
        self.clean_probability = torch.where(judged, clean_probability, self.clean_probability)
        for c in self.given.unique():
            mine = self.given == c
            worth = self.clean_probability[mine]
            least = worth.quantile(1 - LEAST_CLEAN)
            if len(above := worth[worth > worth.min()]):
                least = torch.maximum(least, above.min())
            surest = mine & (self.clean_probability >= least)
            self.clean_probability[surest] = self.clean_probability[surest].clamp(min=self.config.clean_threshold)

    def relabel(self, collected: Collection, judged: Tensor) -> None:
        """Set the new targets, and by Bayes' rule the clean probability of the ``judged`` faces, bool [N]."""
        config, embedding = self.config, collected.embedding
        rows = self.noisy if config.keep_given in ONLY_NOISY else torch.ones_like(self.noisy)
        clean, own = self.gallery_rows()
        soft = relabel(self.average_precision(embedding[rows], embedding[clean], self.given[clean], own[rows]),
                       config.sharpness)
        if config.keep_given == "posterior":
            soft, self.confusion = label_posterior(
                collected.logits.softmax(1) * soft, self.given, config.temperature, config.aligned)
            self.judge(judged, soft.gather(1, self.given[:, None])[:, 0])
        self.new_targets[rows] = with_given(soft, self.clean_probability[rows], self.given[rows], self.targets[rows],
                                            self.noisy[rows], config.keep_given)

    def gallery_rows(self) -> tuple[Tensor, Tensor]:
        """Rows of the clean training faces, int [M], and every training face's place there, int [N], -1 = none."""
        clean = torch.nonzero(~self.noisy).squeeze(1)
        own = torch.full_like(self.given, -1)
        own[clean] = torch.arange(len(clean), device=clean.device)
        return clean, own

    def evidence(self, loss: Tensor, given: Tensor, precision: Tensor | None,
                 among: tuple[Tensor, Tensor, Tensor | None] | None = None) -> Tensor:
        """The configured score to split by, [N] (``mixture.evidence``); precision: [N, C], where retrieval counts.

        among: the same three of the training faces, where these are others.
        """
        def parts(loss: Tensor, given: Tensor, precision: Tensor | None) -> tuple[np.ndarray, np.ndarray | None]:
            margin = None if precision is None else retrieval_margin(precision, given).cpu().numpy()
            return loss.cpu().numpy(), margin

        score = evidence(self.config.evidence, *parts(loss, given, precision), parts(*among) if among else None)
        return torch.from_numpy(score).to(loss)

    def fit_mixture(self, scores: Tensor) -> ClassMixture:
        """The mixture of the training faces' scores [N]; one for all classes unless ``split`` is "class"."""
        scope: Literal["class", "shared"] = "class" if self.config.split == "class" else "shared"
        return ClassMixture(scope, self.config.tied).fit(scores.cpu().numpy(), self.given.cpu().numpy())

    def average_precision(
        self, queries: Tensor, gallery: Tensor, labels: Tensor, exclude: Tensor | None = None
    ) -> Tensor:
        """Class AP of the configured kind, [Q, C]."""
        return parallel.by_rows(lambda queries, exclude: class_average_precision(
            queries, gallery, labels, self.num_classes, self.config.top_k, exclude=exclude,
            **KINDS[self.config.average_precision]),
            queries, exclude)

    def quality(self) -> dict:
        """How right the split and the new labels are, by the truth that training does not see, of all faces and, under
        "per_class", of each given label; without a truth, only the share of faces that count as clean."""
        truth, votes = self.faces.truth, self.faces.votes
        if truth is None:
            return {"clean_share": (~self.noisy).double().mean().item()}
        w, soft = self.clean_probability.cpu().numpy(), self.new_targets.cpu().numpy()
        given = self.given.cpu().numpy()
        relabelled = self.noisy.cpu().numpy() | (soft.argmax(1) != given)  # the latter below a threshold of a half

        def quality(rows: Any) -> dict:
            return metrics.split_quality(w[rows], given[rows], truth[rows], self.config.clean_threshold) | (
                metrics.relabelling_quality(soft[rows], relabelled[rows], given[rows], truth[rows],
                                            None if votes is None else votes[rows]))

        return metrics.by_class(quality, given, self.faces.classes)

    def labels_unseen(
        self, scores: Tensor, precision: Tensor, probability: Tensor, given: Tensor, mixture: ClassMixture
    ) -> tuple[Tensor, Tensor]:
        """Clean probabilities [N] and soft labels [N, C] of faces that were not trained on, as if they had been."""
        config, targets = self.config, F.one_hot(given, self.num_classes).float()
        if config.split == "off":
            return torch.ones_like(scores), targets
        w = torch.from_numpy(mixture.predict(scores.cpu().numpy(), given.cpu().numpy())).to(scores)
        if not config.relabelling:
            return w, targets
        soft = soft_labels(config, precision, probability, given, self.confusion)
        if config.keep_given == "posterior":
            doubted = [(self.clean_probability[self.given == c] < 1).any() for c in range(self.num_classes)]
            w = torch.where(torch.stack(doubted)[given], soft.gather(1, given[:, None])[:, 0], w)
        return w, with_given(soft, w, given, targets, w < config.clean_threshold, config.keep_given)

    def states(self, trainer: Trainer) -> dict[str, dict[str, np.ndarray]]:
        """Beside what every method tells, of each face of each split:

        average_precision: [N, C], class AP in the gallery of clean training faces, without the face itself;
        neighbours: int [N, 10], rows of its nearest clean training faces (fewer columns where there are hardly any);
        clean_probability: [N]; soft_label: [N, C], for training faces as they were trained on, for others as they would
        be, by the training faces' gallery and confusion, and a mixture of their losses as they are now (the splits'
        losses are averaged over collections); loss_history: [E, N], training faces only.
        """
        states = super().states(trainer)
        clean, own = self.gallery_rows()
        gallery = torch.from_numpy(states["train"]["embedding"]).to(clean.device)[clean]
        mixture = ClassMixture()
        for name, state in states.items():
            embedding = torch.from_numpy(state["embedding"]).to(clean.device)
            given = torch.as_tensor(getattr(trainer.splits, name).labels, device=clean.device)
            itself = own if name == "train" else torch.full_like(given, -1)
            precision = self.average_precision(embedding, gallery, self.given[clean], itself)
            judged = torch.from_numpy(state["loss"]).to(clean.device), given, precision
            if name == "train":  # the first of the splits
                among = judged
                mixture = self.fit_mixture(self.evidence(*judged))
                w, soft = self.clean_probability, self.new_targets
                state["loss_history"] = self.history.cpu().numpy()
            else:
                w, soft = self.labels_unseen(
                    self.evidence(*judged, among=among), precision,
                    torch.from_numpy(state["probability"]).to(embedding), given, mixture)
            # one more than 10, as a face may find itself
            nearest = parallel.by_rows(lambda queries: nearest_neighbours(queries, gallery, 11), embedding)
            others = (nearest == itself[:, None]).long().argsort(dim=1, stable=True)[:, : min(10, len(clean) - 1)]
            state |= {
                "average_precision": precision.cpu().numpy(), "clean_probability": w.cpu().numpy(),
                "soft_label": soft.cpu().numpy(), "neighbours": clean[nearest.gather(1, others)].cpu().numpy(),
            }
        return states

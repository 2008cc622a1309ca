"""What several comparators share: the backbone with its inner parts at hand, and a count of the epochs."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ferlab.config import Config
from ferlab.data import FaceSet
from ferlab.errors import FerlabError
from ferlab.model import DRFER, Features
from ferlab.training import Method, Trainer


class Parts(NamedTuple):
    """The backbone of a batch: vector = [L; G] before normalisation, [B, D]; attention [B, K, h, w];
    whole_map (stage 4, whose mean is G) [B, width, h', w']."""

    vector: Tensor
    attention: Tensor
    whole_map: Tensor


class Backbone(DRFER):
    """The network that plain trains, weight for weight; a comparator adds its heads to it."""

    by_face: tuple[str, ...] = ("parts", "reconstruct")

    def parts(self, x: Tensor) -> Parts:
        """x: float [B, 3, size, size], standardised."""
        shared = self.trunk(x)
        local, attention, _ = self.local(shared)
        whole_map = self.stage4(shared)
        return Parts(torch.cat([local, whole_map.mean((2, 3))], dim=1), attention, whole_map)

    def features(self, parts: Parts, logits: Tensor, vector: Tensor | None = None) -> Features:
        """``Features`` with these logits [B, C]; the embedding is the vector [B, D], or another one, normalised."""
        vector = parts.vector if vector is None else vector
        return Features(logits, F.normalize(vector.float(), dim=1), parts.attention)

    def forward(self, x: Tensor) -> Features:
        parts = self.parts(x)
        return self.features(parts, self.classifier(parts.vector))


class Comparator(Method):
    """A method with a network of its own kind, which knows how many epochs are done."""

    network_class: type[Any] = Backbone
    smallest_batch = 1
    needs_warm_up = False  # whether what it is comes after the warm-up
    epochs_done: Tensor

    def __init__(self, config: Config, train: FaceSet):
        super().__init__(config, train)
        batch = min(config.batch_size, len(train) or config.batch_size)
        if batch < self.smallest_batch:
            raise FerlabError(
                f"batch_size is {config.batch_size} and there are {len(train)} faces, but {config.method} compares the "
                f"faces of a batch with each other: give at least {self.smallest_batch}."
            )
        if self.needs_warm_up and config.warm_up >= config.epochs:
            raise FerlabError(f"warm_up is {config.warm_up} of {config.epochs} epochs, so that {config.method} would "
                              "never get beyond it: lower warm_up or raise epochs.")
        self.register_buffer("epochs_done", torch.zeros((), dtype=torch.long))

    def build_network(self) -> Any:
        return self.network_class(self.config, self.num_classes)

    def after_epoch(self, epoch: int, trainer: Trainer) -> dict:
        self.epochs_done.fill_(epoch)
        return {}

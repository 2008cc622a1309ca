"""What the notebooks share: faces with wrong labels at the scale of the profile, and trainings that are made once."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ferlab import benchmarks
from ferlab.config import ONE_VIEW, Config, extends_drfer, profile, profile_name
from ferlab.data import FaceSet, Splits
from ferlab.errors import FerlabError
from ferlab.training import Trainer, train

FACES = {"smoke": (320, 80, 80), "quick": (2400, 1000, 1500), "full": (None, None, None)}  # at most, by split

# What differs from the profile: DR-FER of one view needs more epochs and the robust loss; methods without rounds need
# fewer, as there are fewer faces.
ROUNDS: dict[str, dict[str, Any]] = {"quick": {
    "epochs": 44, "warm_up": 24, "interval": 10, "batch_size": 32, "learning_rate": 1.5e-3, "robustness": 0.5}}
WITHOUT_ROUNDS: dict[str, dict[str, Any]] = {"quick": {"epochs": 24}}


@dataclass(frozen=True)
class Lesson:
    """One data set with label noise, the same in every notebook, and the trainings on it.

    noise: a kind of ``inject_noise``, or "given" to leave the labels as they are (FER2013's are wrong by themselves).
    runs: folder of the trainings' run directories.
    """

    data: str = "rendered"
    root: str | Path | None = None
    noise: str = "annotators"
    rate: float = 0.3
    seed: int = 0
    runs: str | Path = "../runs/lessons"

    @cached_property
    def splits(self) -> Splits:
        """The faces, at most ``FACES`` of them, with noise among the given labels of the training split."""
        smoke = profile_name() == "smoke"
        options: dict[str, Any] = {"size": 32 if smoke else 48} if self.data == "rendered" else {}
        if smoke and self.data == "rendered":
            options |= dict(zip(("train", "valid", "test"), FACES["smoke"], strict=True))
        loaded = benchmarks.load(self.data, self.root, progress=True, **options)
        train, valid, test = (
            faces if faces is None or most is None else faces.draw(most, self.seed)
            for faces, most in zip(loaded, FACES[profile_name()], strict=True)
        )
        if self.noise != "given" and train is not None:
            train = train.with_noise(self.noise, self.rate, self.seed)
        return Splits(train, valid, test)

    def settings(self, **changes) -> Config:
        """The profile's settings with one view of each face and the lesson's epochs, some of them changed."""
        usual = ROUNDS if extends_drfer(changes.get("method", "drfer")) else WITHOUT_ROUNDS
        return profile(**{"seed": self.seed} | ONE_VIEW | usual.get(profile_name(), {}) | changes)

    def train(self, faces: FaceSet | None = None, **changes) -> Trainer:
        """Train with the lesson's settings, some changed; a training with the same settings and faces is only loaded.

        faces: the training faces, if not the lesson's own, such as the same with corrected labels.
        Its run directory is ``trainer.run.directory``; an interrupted one goes on where it stopped.
        """
        return self._train(changes, faces)

    def warm_up(self, **changes) -> Trainer:
        """DR-FER as ``train`` would train it, but only until the first split: its network has seen no new label."""
        return self._train(changes, warm_up_only=True)

    def _train(self, changes: dict, faces: FaceSet | None = None, warm_up_only: bool = False) -> Trainer:
        config = self.settings(**changes)
        faces = self.splits.train if faces is None else faces
        if faces is None:
            raise FerlabError(f"{self.data} has no training faces here: check ROOT.")
        key = hashlib.sha256((config.to_json() + faces.fingerprint).encode()).hexdigest()[:8]
        name = "-".join([faces.dataset, config.method, *(f"{k}={v}" for k, v in changes.items() if k != "method")])
        run = Path(self.runs) / f"{name}-{'warm_up-' * warm_up_only}{key}"
        until = config.warm_up if warm_up_only else None
        return train(config, self.splits._replace(train=faces), run, share_warm_up=True, until=until)

"""All settings of a run in one frozen dataclass, and the profiles that scale them to the machine."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from math import inf
from numbers import Integral, Real
from typing import Any, Literal, get_args, get_origin, get_type_hints

from ferlab.errors import FerlabError

SPLITS = ("train", "valid", "test")
NOISE_KINDS = ("symmetric", "asymmetric", "annotators")  # see data.inject_noise
LABEL_RULES = ("majority", "argmax", "distribution")  # of FER+, see benchmarks.load
KindOfAP = Literal["plain", "chance", "balanced"]  # see retrieval.class_average_precision


@dataclass(frozen=True)
class Config:
    """The settings of one training. DR-FER's numbers were never published: every value here is ours.

    The parts of the method, each of which can be switched off alone:
    masked_modelling, split ("class", "shared" or "off"), contrastive, relabelling.
    """

    method: str = "drfer"
    seed: int = 0

    # network
    backbone: Literal["small", "small18", "resnet18", "resnet34", "resnet50"] = "small"
    weights: str | None = None  # None, "torchvision", or the path of a checkpoint
    size: int = 48  # pixels a side that the network sees, a multiple of 16
    attention_maps: int = 4
    local_dimensions: int = 128

    # schedule
    epochs: int = 44
    batch_size: int = 32
    optimizer: Literal["sgd", "adamw"] = "adamw"
    learning_rate: float = 1.5e-3  # at the peak
    weight_decay: float = 0.05
    ramp_up: float = 0.08  # share of a round's steps in which the learning rate rises to its peak
    anneal_from: float = 0.6  # share of a round's steps after which it falls to zero along a cosine
    average_epochs: float = 1.0  # window of the moving average of the weights that evaluates and splits
    label_smoothing: float = 0.0  # of cross-entropy, so not before DR-FER's first split if robustness > 0
    precision: Literal["auto", "float32"] = "auto"  # auto: bfloat16 where the hardware has it (GPUs, some CPUs)
    augmentation: float = 0.6  # 0 = flips only, 1 = crop, rotation, light and erasing at their usual strength
    views: int = 1  # of each face in a batch, each augmented by a draw of its own

    # masked image modelling
    masked_modelling: bool = True
    mask_weight: float = 0.1
    mask_ratio: float = 0.5
    mask_share: float = 0.25  # share of the batch that a masked copy is made of

    # consistency of a face's views (ours)
    consistency_weight: float = 0.0

    # split into clean and noisy
    split: Literal["class", "shared", "off"] = "shared"
    warm_up: int = 24  # epochs before the first split
    interval: int = 10  # epochs between splits
    restarts: bool = True  # after each split but the last the learning rate rises and falls once more
    robustness: float = 0.5  # q of the generalised cross-entropy until the first split; 0 = cross-entropy
    evidence: Literal["loss", "root", "margin", "both"] = "root"
    smooth_collections: int = 3  # losses are averaged over this many collections
    tied: bool = True
    clean_threshold: float = 0.5  # a sample below this clean probability is noisy

    # distribution contrastive learning
    contrastive: bool = True
    contrastive_weight: float = 0.1
    contrastive_count: float = 10.0
    contrastive_temperature: float = 0.1

    # retrieval relabelling
    relabelling: bool = True
    relabel_weight: float = 1.0
    average_precision: KindOfAP = "balanced"
    top_k: int | None = None
    sharpness: float = 2.0
    # how the given label enters the new one: not at all, mixed in by w (of noisy faces, or of all), or by Bayes' rule
    keep_given: Literal["none", "noisy", "all", "posterior"] = "posterior"
    temperature: float = 2.0  # of the posterior: network and retrieval are one witness, and sure of itself
    aligned: bool = False  # weigh the classes in the posterior so that all are labelled rightly equally often

    # a comparator's own settings that differ from its class's, by name (training.own_settings)
    own: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self):
        for name, (fits, words) in KINDS.items():
            if not fits(value := getattr(self, name)):
                raise FerlabError(f"{name} is {value!r}: give {words}.")
        for name, choices in CHOICES.items():
            if getattr(self, name) not in choices:
                raise FerlabError(f'{name} is "{getattr(self, name)}": choose one of {", ".join(map(str, choices))}.')
        for names, allowed, words in RANGES:
            for name in names:
                value = getattr(self, name)
                if not allowed(value):
                    raise FerlabError(f"{name} is {value!r}: give {words}.")
        if self.size % 16 or self.size < 32:
            raise FerlabError(f"size is {self.size} pixels: give a multiple of 16, at least 32.")
        if self.consistency_weight and self.views < 2:
            raise FerlabError(f"consistency_weight is {self.consistency_weight}, but there is nothing to compare: give "
                              "views=2, or more, or consistency_weight=0.")
        if self.local_dimensions % self.attention_maps:
            raise FerlabError(
                f"local_dimensions is {self.local_dimensions}: give a multiple of {self.attention_maps} attention_maps."
            )

    def replace(self, **changes) -> Config:
        """A copy with some settings changed. Raises FerlabError for a setting that does not exist."""
        known = {f.name for f in dataclasses.fields(self)}
        unknown = sorted(set(changes) - known)
        if unknown:
            raise FerlabError(f"There is no setting {unknown[0]}: the settings are {', '.join(sorted(known))}.")
        return dataclasses.replace(self, **changes)

    @property
    def shared_epochs(self) -> int:
        """How many epochs no setting of AFTER_WARM_UP touches: those before the one that ends with the first split."""
        splits = self.method == "drfer" and self.restarts and self.split != "off"
        return max(0, self.warm_up - 1) if splits else 0

    def same_warm_up(self, other: Config) -> bool:
        """Whether a training with these settings and one with ``other``'s have ``shared_epochs`` in common."""
        after = (*AFTER_WARM_UP, "label_smoothing") if self.robustness else AFTER_WARM_UP
        return 0 < self.shared_epochs == other.shared_epochs and all(
            getattr(self, name) == getattr(other, name) for name in vars(self) if name not in after)

    def to_json(self) -> str:
        """The settings as JSON, one a line."""
        return json.dumps(dataclasses.asdict(self), indent=2)

    @classmethod
    def from_json(cls, text: str, lenient: bool = False) -> Config:
        """The settings that ``to_json`` wrote.

        lenient: leave out those that this version does not know any more, as is right for a trained network, whose
        settings of training are history. Else they raise FerlabError.
        """
        settings = json.loads(text)
        if lenient:
            known = {f.name for f in dataclasses.fields(cls)}
            settings = {name: value for name, value in settings.items()
                        if name in known and value in CHOICES.get(name, (value,))}
        return cls().replace(**settings)


def _number(kind: type) -> Callable[[object], bool]:
    return lambda value: isinstance(value, kind) and not isinstance(value, bool)


_KINDS: dict[str, tuple[Callable[[object], bool], str]] = {
    "bool": (lambda value: isinstance(value, bool), "true or false"),
    "int": (_number(Integral), "a whole number"), "float": (_number(Real), "a number"),
    "int | None": (lambda value: value is None or _number(Integral)(value), "a whole number, or None"),
    "str": (lambda value: isinstance(value, str), "a text"),
    "str | None": (lambda value: value is None or isinstance(value, str), "a text, or None"),
    "dict[str, Any]": (lambda value: isinstance(value, dict), 'settings by name, such as {"rank_weight": 0.3}'),
}
KINDS = {each.name: _KINDS[each.type] for each in dataclasses.fields(Config) if each.type in _KINDS}

CHOICES = {name: get_args(kind) for name, kind in get_type_hints(Config).items() if get_origin(kind) is Literal}

# what nothing depends on until the first split
AFTER_WARM_UP = (
    "epochs", "split", "interval", "evidence", "tied", "clean_threshold", "contrastive", "contrastive_weight",
    "contrastive_count", "contrastive_temperature", "relabelling", "relabel_weight", "average_precision", "top_k",
    "sharpness", "keep_given", "temperature", "aligned",
)

# what no other method obeys
DRFER_ONLY = {*AFTER_WARM_UP, "masked_modelling", "mask_weight", "mask_ratio", "mask_share", "consistency_weight",
              "restarts", "robustness", "smooth_collections"} - {"epochs"}

RANGES = [
    (("epochs", "batch_size", "views", "interval", "attention_maps", "local_dimensions", "smooth_collections"),
     lambda v: v >= 1, "at least 1"),
    (("seed",), lambda v: 0 <= v < 2**32, "a whole number from 0 to 2^32 - 1"),
    (("top_k",), lambda v: v is None or v >= 1, "at least 1, or None for the whole gallery"),
    (("warm_up",), lambda v: v >= 0, "at least 0"),
    (("mask_ratio", "clean_threshold", "ramp_up", "anneal_from", "label_smoothing", "robustness"),
     lambda v: 0 <= v <= 1, "a number between 0 and 1"),
    (("mask_share",), lambda v: 0 < v <= 1, "a number above 0, and at most 1; masked_modelling=false leaves it out"),
    (("learning_rate", "contrastive_count", "contrastive_temperature", "temperature"),
     lambda v: 0 < v < inf, "a positive number"),
    (("weight_decay", "augmentation", "average_epochs", "sharpness", "mask_weight", "contrastive_weight",
      "consistency_weight", "relabel_weight"), lambda v: 0 <= v < inf, "a number that is not negative"),
]

_drfer = Config(label_smoothing=0.1, views=2, consistency_weight=5)
PROFILES = {
    "smoke": _drfer.replace(epochs=3, warm_up=1, interval=1, batch_size=64, size=32),
    "quick": _drfer.replace(epochs=36, warm_up=26, interval=10, batch_size=64, learning_rate=2e-3, robustness=0),
    "full": _drfer.replace(backbone="resnet18", size=96, batch_size=128, epochs=90, warm_up=40, interval=25),
}

ONE_VIEW = {"views": 1, "consistency_weight": 0.0}  # each face once a batch, as the source and other methods have it

# what differs for methods that have no rounds
BASELINES: dict[str, dict[str, Any]] = {
    "smoke": {"epochs": 3}, "quick": {"epochs": 30, "batch_size": 32, "learning_rate": 1.5e-3}, "full": {"epochs": 60},
}


def profile_name(name: str | None = None) -> str:
    """The profile to use: ``name``, else FERLAB_PROFILE, else "full" with a GPU and "quick" without.

    Raises FerlabError for a name that is not a profile.
    """
    name = name or os.environ.get("FERLAB_PROFILE")
    if not name:
        import torch

        name = "full" if torch.cuda.is_available() else "quick"
    if name not in PROFILES:
        raise FerlabError(f'There is no profile "{name}": set FERLAB_PROFILE to one of {", ".join(PROFILES)}.')
    return name


def profile(name: str | None = None, **changes) -> Config:
    """The settings of a profile (see ``profile_name``), with some changed.

    Where these do not say otherwise, methods that are not made of DR-FER train with one view of a face, without label
    smoothing, and with the profile's ``BASELINES``: more epochs only teach them the wrong labels by heart.
    """
    name = profile_name(name)
    if not extends_drfer(changes.get("method", "drfer")):
        changes = ONE_VIEW | {"label_smoothing": 0.0} | BASELINES[name] | changes
    return PROFILES[name].replace(**changes)


def extends_drfer(method: str) -> bool:
    """Whether the method is DR-FER, or made of its class; not one that is not known."""
    if method in ("plain", "drfer"):
        return method == "drfer"
    from ferlab.drfer import DRFERMethod
    from ferlab.training import method_class

    try:
        return issubclass(method_class(method), DRFERMethod)
    except FerlabError:
        return False


def obeyed(settings: dict[str, Any]) -> dict[str, Any]:
    """Recorded settings but the seed, one that is older than the record at its default; of a method other than DR-FER,
    without those that only DR-FER obeys."""
    settings = vars(Config()) | settings
    if extends_drfer(settings["method"]):
        return {key: value for key, value in settings.items() if key != "seed"}
    known = vars(Config()).keys() - {"seed", *DRFER_ONLY}
    return {key: value for key, value in settings.items() if key in known}

"""The training loop, which knows no method by name: a ``Method`` says what a batch loses and what follows an epoch."""

from __future__ import annotations

import ast
import copy
import hashlib
import importlib
import json
import math
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from ferlab import metrics, parallel
from ferlab.augment import augment
from ferlab.config import Config
from ferlab.data import FaceSet, Splits
from ferlab.decisions import face_names
from ferlab.errors import FerlabError, OtherRunError
from ferlab.model import DRFER, Features, folded, in_grey, standardise
from ferlab.runs import Run, environment, write_json


@dataclass
class Batch:
    """images: float [B, 3, size, size], augmented and standardised; index: int [B], rows of the training set.

    With several ``views`` of each face B counts them all: the first view of every face, then the second, and so on.
    """

    images: Tensor
    index: Tensor


class Collection(NamedTuple):
    """What the averaged network says in evaluation mode of N faces, in their order.

    logits: [N, C]; embedding: V, [N, D], l2-normalised; both averaged over the face and its mirror image.
    """

    logits: Tensor
    embedding: Tensor


class Method(nn.Module):
    """Plain cross-entropy with the given labels; the base of every other method.

    A method overrides ``loss``, and ``after_epoch`` if it looks at the whole training set. Tensors that it registers as
    buffers are kept in the checkpoint.
    """

    given: Tensor
    targets: Tensor

    def __init__(self, config: Config, train: FaceSet):
        super().__init__()
        self.config = config
        for name, value in own_settings(config).items():
            setattr(self, name, value)
        self.faces = train
        self.num_classes = len(train.classes)
        given = torch.as_tensor(train.labels)
        soft = F.one_hot(given, self.num_classes).float()
        if train.label_distribution is not None:
            soft = torch.as_tensor(train.label_distribution).float()
        self.register_buffer("given", given)
        self.register_buffer("targets", soft)

    def build_network(self) -> DRFER:
        """The network to train. Of standardised images, float [B, 3, size, size], it makes ``Features``; its attribute
        ``size`` tells how large they are to be, such as ``config.size``."""
        return DRFER(self.config, self.num_classes)

    def loss(self, network: DRFER, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        """The terms of the loss on a batch, weighted; their sum is minimised."""
        features: Features = network(batch.images)
        return {"cross_entropy": self.cross_entropy(features.logits, self.targets[batch.index])}

    def cross_entropy(self, logits: Tensor, targets: Tensor, weight: Tensor | None = None) -> Tensor:
        """Soft cross-entropy, averaged over the batch: logits, targets [B, C]; weight [B]."""
        loss = -(self.smoothed(targets) * F.log_softmax(logits.float(), dim=1)).sum(1)
        return loss.mean() if weight is None else (loss * weight).mean()

    def smoothed(self, targets: Tensor) -> Tensor:
        """Soft labels [..., C] with ``label_smoothing`` of each spread over all classes."""
        smoothing = self.config.label_smoothing
        return targets * (1 - smoothing) + smoothing / self.num_classes

    def round_of(self, epoch: int) -> tuple[int, int]:
        """First epoch, from 0, of the round that ``epoch`` belongs to, and the first after it.

        In every round the learning rate rises and falls once.
        """
        return 0, self.config.epochs

    def after_epoch(self, epoch: int, trainer: Trainer) -> dict:
        """Called after epoch 1, 2, ... with the trainer, which can ``collect`` the training set; returns metrics."""
        return {}

    def frequencies(self) -> Tensor:
        """[C], the share of each class among the labels as they are learned from now, smoothed; sum 1."""
        return self.smoothed(self.targets.mean(0))

    def states(self, trainer: Trainer) -> dict[str, dict[str, np.ndarray]]:
        """What is known of each face at the end, by split, for the explorer and the notebooks.

        name: str [N]; given: int [N], the label; classes: str [C]; loss: [N], of the given label; probability: [N, C];
        embedding: [N, D], V (in half precision on disk).
        """
        states = {}
        for name, faces in trainer.splits.with_faces().items():
            collected = trainer.collect(faces)
            given = torch.as_tensor(faces.labels, device=collected.logits.device)
            states[name] = {
                "name": face_names(faces), "given": faces.labels, "classes": np.array(faces.classes),
                "loss": F.cross_entropy(collected.logits, given, reduction="none").cpu().numpy(),
                "probability": collected.logits.softmax(1).cpu().numpy(),
                "embedding": collected.embedding.cpu().numpy(),
            }
        return states


class Trainer:
    """Trains a method on the training split; ``run`` receives settings, metrics, checkpoint and state.

    share_warm_up: set out from a warm-up that this run would only repeat, if a run beside it holds one.
    Every random number of an epoch comes from (seed, epoch), so that a resumed run goes on as an unbroken one would.
    Raises FerlabError without training faces, or where splits differ in their classes.
    """

    def __init__(self, config: Config, splits: Splits, run: Run | None = None, progress: bool | None = None,
                 share_warm_up: bool = False):
        if splits.train is None or not len(splits.train):
            raise FerlabError("There are no training faces: give a data set with a train split.")
        for name, faces in splits._asdict().items():
            if faces is not None and faces.classes != splits.train.classes:
                raise FerlabError(f"The {name} faces' classes are {', '.join(faces.classes)}, the training faces' "
                                  f"{', '.join(splits.train.classes)}: bring them into one order with reorder.")
        self.config, self.splits, self.train, self.run = config, splits, splits.train, run
        self.share_warm_up = share_warm_up
        self.device = parallel.device()
        self.precision = parallel.precision(config)
        self.leads = parallel.leads()
        progress = progress if self.leads else False
        self.bar_off = None if progress is None else not progress  # None: a bar on a terminal only
        without_faces(config, self.train.classes)  # as it is made again to judge others: told before hours of training
        torch.manual_seed(config.seed)
        goes_on = run is not None and run.has_checkpoint  # which holds all weights: their first file may be gone
        self.method = method_class(config.method)(config.replace(weights=None) if goes_on else config, self.train)
        self.method.to(self.device)
        network = self.method.build_network()
        if not hasattr(network, "size"):
            raise FerlabError(f"The network of {config.method} does not tell how large its images are to be: give it "
                              "an attribute size, such as config.size.")
        self.network = network.to(self.device).to(memory_format=torch.channels_last)
        self.average = copy.deepcopy(self.network).requires_grad_(False).eval()
        both = list(zip(self.average.state_dict().values(), self.network.state_dict().values(), strict=True))
        self.averaged = tuple(zip(*(pair for pair in both if pair[0].is_floating_point()), strict=True))
        self.copied = [pair for pair in both if not pair[0].is_floating_point()]  # BatchNorm's counts
        parallel.share(self.network, config.batch_size)
        self.optimizer = make_optimizer(config, self.network)
        # two batches an epoch at least: the learning rate, which rises from 0, is 0 in a round's first step
        self.batch_size = min(config.batch_size, max(2, len(self.train) // 2))
        self.steps_per_epoch = max(1, len(self.train) // self.batch_size)
        self.grey = self.train.grey
        self.epoch = 0
        self.records: list[dict] = []

    def fit(self, until: int | None = None) -> Trainer:
        """Train to the last epoch, or only so many, from the run's checkpoint if it has one.

        Raises BusyError if another process is training there, OtherRunError if the run is of other settings or faces,
        and FerlabError where the loss is not a number.
        """
        with self.run.alone() if self.run is not None and self.leads else nullcontext():
            return self._fit(self.config.epochs if until is None else until)

    def _fit(self, until: int) -> Trainer:
        if self.run is not None:
            self._begin_run(self.run)
        begun = self.epoch
        while self.epoch < until:
            started = time.perf_counter()
            record = self._train_epoch()
            self.epoch += 1
            record |= self.method.after_epoch(self.epoch, self)
            if self.splits.valid is not None and len(self.splits.valid):
                record["valid"] = self.evaluate(self.splits.valid)
            self.records.append({"epoch": self.epoch, "seconds": round(time.perf_counter() - started, 2)} | record)
            if self.run is not None and self.leads:
                self._save(self.run)
        if self.run is not None and self.epoch == self.config.epochs and (
                self.epoch > begun or not all(map(self.run.has_state, self.splits.with_faces()))):
            for name, state in self.method.states(self).items():
                if self.leads:
                    self.run.write_state(name, state | {"embedding": state["embedding"].astype(np.float16)})
        return self

    def _train_epoch(self) -> dict:
        config = self.config
        start, end = self.method.round_of(self.epoch)
        generator = torch.Generator().manual_seed(config.seed * 1_000_003 + self.epoch)
        torch.manual_seed(config.seed * 1_000_003 + self.epoch)
        self.network.train()
        seen = []
        order = torch.randperm(len(self.train), generator=generator)
        batches = self.batches(self.train, order, self.batch_size)
        title = f"epoch {self.epoch + 1}/{config.epochs}"
        bar = tqdm(batches, title, self.steps_per_epoch, leave=False, disable=self.bar_off)
        for step, (images, index) in enumerate(bar):
            if step == self.steps_per_epoch:
                break  # a last, smaller batch would have statistics of its own
            rate = self.learning_rate((self.epoch + step / self.steps_per_epoch - start) / (end - start))
            for group in self.optimizer.param_groups:
                group["lr"] = rate
            views = [augment(images, config.augmentation, generator) for _ in range(config.views)]
            images = torch.cat(views).contiguous(memory_format=torch.channels_last)
            try:
                terms = self.loss(Batch(images, index.to(self.device).repeat(config.views)), generator)
            except ValueError as error:  # batch normalisation has no spread of a single value
                if len(images) > 1:
                    raise
                raise FerlabError("A batch of one face is too small for this network: raise batch_size or size, and "
                                  "give more than one training face.") from error
            if step == 0 and not (isinstance(terms, dict) and all(term.ndim == 0 for term in terms.values())):
                raise FerlabError(f"The loss of {config.method} must be a dict of means over the batch, such as "
                                  '{"cross_entropy": losses.mean()}.')
            seen.append(torch.stack([term.detach().float() for term in terms.values()]))
            self.optimizer.zero_grad(set_to_none=True)
            torch.stack(list(terms.values())).sum().backward()
            parallel.mean_gradients(self.network)
            nn.utils.clip_grad_norm_(self.network.parameters(), 5.0)
            self.optimizer.step()
            self._update_average(step)
        losses = torch.stack(seen)  # [steps, terms]
        if len(broken := (~losses.isfinite()).nonzero()):  # told after the epoch, of the first step
            kept = "; the last epoch's checkpoint is kept" if self.epoch else ""
            raise FerlabError(
                f"The loss is not a number in epoch {self.epoch + 1} ({list(terms)[broken[0, 1]]}), from step "
                f"{int(broken[0, 0]) + 1} on: lower the learning rate (now {config.learning_rate}) or its weight; "
                f"where it is so in the first step, mend the method or the weights it begins with{kept}."
            )
        return {"loss": dict(zip(terms, losses.mean(0).tolist(), strict=True))}

    def loss(self, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        """The method's terms of the loss on a batch, computed in the run's precision."""
        with in_precision(self.precision, self.device):
            return self.method.loss(self.network, batch, generator)

    def batches(self, faces: FaceSet, order: Tensor, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Standardised images float [B, 3, size, size] on the device, and their rows int [B]."""
        for index in order.split(size):
            images = torch.from_numpy(np.ascontiguousarray(faces.images[index.numpy()]))
            yield standardise(images.to(self.device, non_blocking=True), self.config.size), index

    def learning_rate(self, progress: float) -> float:
        """Linear rise to the peak, plateau, cosine to zero; progress in its round, in [0, 1]."""
        config = self.config
        rise = min(1.0, progress / config.ramp_up) if config.ramp_up else 1.0
        fall = max(0.0, progress - config.anneal_from) / max(1e-9, 1 - config.anneal_from)
        return config.learning_rate * rise * 0.5 * (1 + math.cos(math.pi * min(1.0, fall)))

    @torch.no_grad()
    def _update_average(self, step: int = 0) -> None:
        window = max(1.0, self.config.average_epochs * self.steps_per_epoch)
        done = self.epoch * self.steps_per_epoch + step
        decay = min(1 - 1 / window, (1 + done) / (10 + done))
        means, values = self.averaged
        torch._foreach_lerp_(means, values, 1 - decay)  # at once: a GPU takes longer to be called than to compute
        for mean, value in self.copied:
            mean.copy_(value)

    @torch.no_grad()
    def collect(self, faces: FaceSet, mirror: bool = True) -> Collection:
        """The averaged network in evaluation mode on every face, in order."""
        return collect(folded(self.average), faces, mirror, self.device, self.precision, self.bar_off is not True)

    def evaluate(self, faces: FaceSet, mirror: bool = False, balances: Sequence[float] = ()) -> dict:
        """Accuracy, mean-class accuracy, macro-F1, recall ... of the averaged network on a split's reference labels.

        balances: the first two of these under each such balance of the classes, too (``metrics.balanced``): "balanced".
        """
        probabilities = self.collect(faces, mirror).logits.softmax(1).cpu().numpy()
        scores = metrics.classification(probabilities, reference(faces), faces.classes)
        if balances:
            frequencies, scores["balanced"] = self.method.frequencies().cpu().numpy(), {}
            for balance in balances:
                weighed = metrics.classification(metrics.balanced(probabilities, frequencies, balance),
                                                 reference(faces), faces.classes)
                scores["balanced"][str(balance)] = {k: weighed[k] for k in ("accuracy", "mean_class_accuracy")}
        return scores

    def _begin_run(self, run: Run) -> None:
        train, fingerprint, method = self.train, self.train.fingerprint, method_record(self.config)
        if (run.directory / "audit.json").is_file():
            raise OtherRunError(f"{run.directory} holds an audit: choose another --run directory.")
        if run.has_checkpoint:
            if run.config != self.config:
                changed = [k for k, v in vars(self.config).items() if getattr(run.config, k) != v]
                raise OtherRunError(
                    f"{run.directory} holds a run with other settings ({', '.join(changed)}): choose another --run "
                    "directory or delete it."
                )
            was = run.environment
            if any(was.get(key, value) != value for key, value in method.items()):
                raise OtherRunError(f"{run.directory} holds a run of {self.config.method} from before its code was "
                                    "edited: choose another --run directory or delete it.")
            if was.get("fingerprint", fingerprint) != fingerprint:
                raise OtherRunError(f"{run.directory} holds a run on other training faces or labels than these: choose "
                                    "another --run directory or delete it.")
            self._resume(run.directory / "checkpoint.pt", run.read_checkpoint(), run.metrics)
            return
        here = environment(self.config) | {"fingerprint": fingerprint}
        if self.share_warm_up and (warm_up := run.same_warm_up(self.config, here)):
            self._resume(*warm_up)
        if not self.leads:
            return
        write_json(run.directory / "environment.json", here | {
            "dataset": train.dataset, "rule": train.rule, "noise": train.noise, "classes": list(train.classes),
            "faces": {name: len(faces) for name, faces in self.splits._asdict().items() if faces is not None},
            **method,
            "skipped": {name: list(faces.skipped) for name, faces in self.splits.with_faces().items() if faces.skipped},
        })
        write_json(run.directory / "config.json", vars(self.config))

    def _resume(self, path: Path, state: dict, records: list[dict]) -> None:
        try:
            for name in ("network", "average", "method", "optimizer"):
                getattr(self, name).load_state_dict(state[name])
        except (KeyError, RuntimeError, ValueError) as error:
            raise FerlabError(
                f"{path} is of another network or of other faces than this run's: choose another --run directory or "
                "delete it."
            ) from error
        self.epoch, self.records = state["epoch"], records[: state["epoch"]]

    def _save(self, run: Run) -> None:
        state = {
            "epoch": self.epoch, "classes": list(self.train.classes), "frequencies": self.method.frequencies(),
            "grey": self.grey,
            "network": self.network.state_dict(), "average": self.average.state_dict(),
            "method": self.method.state_dict(), "optimizer": self.optimizer.state_dict(),
        }
        run.write_metrics(self.records)
        if self.share_warm_up and self.epoch == self.config.shared_epochs:
            run.write_checkpoint(state, "warm_up.pt")
        run.write_checkpoint(state)


def reference(faces: FaceSet) -> np.ndarray:
    """The labels to evaluate against: the truth where there is one, else the given labels."""
    return faces.labels if faces.truth is None else faces.truth


def in_precision(precision: str, device: torch.device) -> torch.autocast:
    """A block in which networks multiply in that precision; their weights stay in single precision."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16")


@torch.no_grad()
def collect(network: DRFER, faces: FaceSet, mirror: bool = True, device: torch.device | str = "cpu",
            precision: str = "float32", bar: bool = False, grey: bool = False) -> Collection:
    """Logits and embeddings of every face, in order; averaged with the mirror image's if ``mirror``.

    precision: what to multiply in, "float32" or "bfloat16"; what is returned is float32. bar: show one where it takes
    more than two seconds, on a terminal. grey: show it colour images without their colours.
    """
    device = torch.device(device)
    chunk = 64 if device.type == "cpu" else 512  # as much as fits a CPU's cache

    def of_rows(rows: Tensor) -> Collection:
        logits, embeddings = [], []
        for index in tqdm(rows.split(chunk), "looking at faces", leave=False, delay=2, disable=None if bar else True):
            raw = torch.from_numpy(np.ascontiguousarray(faces.images[index.numpy()])).to(device)
            raw = in_grey(raw) if grey else raw
            images = standardise(raw, network.size).contiguous(memory_format=torch.channels_last)
            views = (images, images.flip(3)) if mirror else (images,)
            with in_precision(precision, device):
                features = [network(view) for view in views]
            logits.append(torch.stack([f.logits.float() for f in features]).mean(0))
            embeddings.append(F.normalize(torch.stack([f.embedding for f in features]).mean(0), dim=1))
        return Collection(torch.cat(logits), torch.cat(embeddings))

    was_training = network.training
    network.eval()
    collected = parallel.by_rows(of_rows, torch.arange(len(faces)))
    network.train(was_training)
    return collected


def make_optimizer(config: Config, network: nn.Module) -> torch.optim.Optimizer:
    """SGD with Nesterov momentum or AdamW; biases and normalisation are not decayed."""
    decayed = [p for p in network.parameters() if p.ndim > 1]
    free = [p for p in network.parameters() if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": free, "weight_decay": 0.0}]
    if config.optimizer == "adamw":
        return torch.optim.AdamW(groups, config.learning_rate, fused=True)
    return torch.optim.SGD(groups, config.learning_rate, momentum=0.9, nesterov=True)


def without_faces(config: Config, classes: tuple[str, ...]) -> Method:
    """The method of these settings, as a trained network needs it, without the weights that training began with.

    Raises FerlabError where its ``__init__`` cannot do without faces."""
    nobody = FaceSet(np.zeros((0, config.size, config.size), np.uint8), np.zeros(0, np.int64), classes)
    try:
        return method_class(config.method)(config.replace(weights=None), nobody)
    except FerlabError:
        raise
    except Exception as error:  # whatever is wrong in a file of the user's
        raise FerlabError(f"The method {config.method} cannot be made without faces ({type(error).__name__}: {error}), "
                          "as is done to judge others by what it learned: let its __init__ do with none.") from error


def method_class(name: str) -> type[Method]:
    """The method of that name: "plain", "drfer", or a file of ferlab/comparators."""
    from ferlab import comparators

    if name in ("plain", "drfer") and name in comparators.NAMES:
        raise FerlabError(f"ferlab/comparators/{name}.py has the name of a method of ferlab's own: rename the file.")
    if name == "plain":
        return Method
    if name == "drfer":
        from ferlab.drfer import DRFERMethod

        return DRFERMethod
    if name not in comparators.NAMES:
        raise FerlabError(f'There is no method "{name}": choose one of {", ".join(comparators.METHODS)}.')
    try:
        module = importlib.import_module(f"ferlab.comparators.{name}")
    except Exception as error:  # whatever is wrong in a file of the user's
        why = f"{type(error).__name__}: {error}"
        raise FerlabError(f"ferlab/comparators/{name}.py cannot be imported ({why}).") from error
    found = [value for value in vars(module).values()
             if isinstance(value, type) and issubclass(value, Method) and value.__module__ == module.__name__]
    last = [value for value in found if not any(value in other.__mro__[1:] for other in found)]
    if len(last) != 1:
        raise FerlabError(f"{module.__file__} has {len(last) or 'no'} methods: leave one subclass of training.Method "
                          "there that no other is made of.")
    return last[0]


def _comparators_of(name: str) -> list[type]:
    """The classes of ferlab/comparators that a method is made of, itself first."""
    return [owner for owner in method_class(name).__mro__ if owner.__module__.startswith("ferlab.comparators.")]


def method_source(name: str) -> str | None:
    """A digest of the code, without its docstrings and comments, of a method in ferlab/comparators, with the methods
    there that it is made of; None for others."""
    modules = [module for module in dict.fromkeys(owner.__module__ for owner in _comparators_of(name))
               if not module.endswith("._parts")]
    if not modules:
        return None
    code = []
    for module in modules:
        tree = ast.parse(Path(str(sys.modules[module].__file__)).read_bytes())
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
                node.body = node.body[1:]
        # alike in all versions of Python, as ast.unparse is not
        code += [(type(node).__name__, [each for _, each in ast.iter_fields(node)
                                        if not isinstance(each, ast.AST | list)]) for node in ast.walk(tree)]
    return hashlib.sha256(repr(code).encode()).hexdigest()[:16]


def own_settings(config: Config) -> dict[str, Any]:
    """What the method has beside the settings of all methods, such as lambda: numbers, and tuples of them.

    They are the constants of a comparator's class, some of them changed by ``config.own``. Raises FerlabError for a
    method that does not exist, for a change of what it does not have, and for a value of another kind.
    """
    owners = _comparators_of(config.method)[::-1]
    fixed = {key for owner in owners if owner.__module__.endswith("._parts") for key in vars(owner)}
    found = {key: value for owner in owners for key, value in vars(owner).items()
             if not key.startswith("_") and key not in fixed and isinstance(value, int | float | tuple)}
    for key, value in config.own.items():
        if key not in found:
            known = f"its own are {', '.join(found)}" if found else "it has none of its own"
            raise FerlabError(f"The method has no setting own.{key}: {known}.")
        if not _like(value, found[key]):
            kind = "a whole number" if type(found[key]) is int else "a value"
            raise FerlabError(f"own.{key} is {value!r}: give {kind} such as {json.dumps(found[key])}.")
        found[key] = tuple(value) if isinstance(value, list) else value
    return found


def method_record(config: Config) -> dict[str, Any]:
    """What a record keeps of the method, as JSON has it: its own settings, and a digest of its code."""
    return {"method_settings": json.loads(json.dumps(own_settings(config))),
            "method_source": method_source(config.method)}


def _like(value: Any, model: Any) -> bool:
    """Whether a value, as JSON has it, is of the model's kind: a number, a switch, or so many numbers."""
    if isinstance(model, tuple):
        return isinstance(value, list | tuple) and len(value) == len(model) and all(map(_like, value, model))
    if isinstance(model, bool) or isinstance(value, bool):
        return isinstance(model, bool) and isinstance(value, bool)
    return isinstance(value, int | float if isinstance(model, float) else int) and math.isfinite(value)


def train(config: Config, splits: Splits, run: str | Path | None = None, progress: bool | None = None,
          share_warm_up: bool = False, until: int | None = None) -> Trainer:
    """Train to the end, resuming from ``run`` where it has a checkpoint; returns the trainer with all it knows.

    share_warm_up: set out from a warm-up that this run would only repeat, if a run beside it holds one.
    until: stop after this epoch, from 1; the run's states are written after the last one only. Raises FerlabError as
    ``Trainer`` and its ``fit`` do.
    """
    return Trainer(config, splits, None if run is None else Run(run), progress, share_warm_up).fit(until)

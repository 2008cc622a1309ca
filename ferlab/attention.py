"""Where a network looks: the Local Branch's own attention, captum's attributions, and how much falls on what moved.

    maps = upsample(pooling_weights(local_attention(network, faces.images)), 48)
    attention_share(maps, upsample(informative_parts(faces.extras["parts"]), 48)).mean

``python -m ferlab.attention`` trains with and without masked image modelling for several seeds, at the scale of the
notebooks, and writes one JSON a training; trainings that were interrupted go on, results that exist stay.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import click
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ferlab.config import PROFILES, profile_name
from ferlab.data import FaceSet
from ferlab.errors import FerlabError
from ferlab.lesson import Lesson
from ferlab.model import DRFER, standardise
from ferlab.runs import environment, json_object, write_json

VARIANTS: dict[str, dict[str, Any]] = {"with MIM": {}, "without MIM": {"masked_modelling": False}}
STEPS = 32  # of the path that integrated gradients follow
CHUNK = 128  # faces at once


# --------------------------------------------------------------------------------------------------------------- maps

def local_attention(network: DRFER, images: Any) -> np.ndarray:
    """The Local Branch's own K attention maps, [N, K, h, w] in [0, 1], higher = attended more, in evaluation mode.

    images: uint8 [N, H, W] or [N, H, W, 3].
    """
    with _evaluating(network), torch.no_grad():
        return _stack([network(x).attention for x in _batches(network, images)])


def pooling_weights(attention: np.ndarray) -> np.ndarray:
    """[N, h, w]: how much each cell counts in the local vector L; every map sums to 1.

    attention: [N, K, h, w]. L pools with each map divided by its sum (``model.LocalBranch``); this is their mean.
    """
    attention = np.asarray(attention)
    return (attention / attention.sum((2, 3), keepdims=True).clip(1e-6)).mean(1)


def grad_cam(network: DRFER, images: Any, target: Any) -> np.ndarray:
    """Grad-CAM of the stage-3 map that both branches read, [N, h, w], not negative (Selvaraju et al., ICCV 2017).

    Higher = speaks more for the class ``target`` int [N].
    """
    from captum.attr import LayerGradCam

    explain = LayerGradCam(_Logits(network), network.trunk)
    return _attribute(network, images, target, lambda x, c: explain.attribute(x, c, relu_attributions=True)[:, 0])


def integrated_gradients(network: DRFER, images: Any, target: Any, steps: int = STEPS) -> np.ndarray:
    """|Integrated gradients| of the pixels, summed over colours, [N, size, size] (Sundararajan et al., ICML 2017).

    Higher = matters more for the class ``target`` int [N], for or against it. The path leads in ``steps`` from the
    mean colour, which is also what masked image modelling hides patches with.
    """
    from captum.attr import IntegratedGradients

    explain = IntegratedGradients(_Logits(network))
    return _attribute(network, images, target, lambda x, c: explain.attribute(
        x, target=c, n_steps=steps, internal_batch_size=4 * CHUNK).abs().sum(1))


class _Logits(nn.Module):
    """The network as captum wants it: images in, logits out."""

    def __init__(self, network: DRFER):
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x).logits


def _attribute(network: DRFER, images: Any, target: Any, explain: Any) -> np.ndarray:
    target = torch.as_tensor(np.asarray(target))
    if len(target) != len(images):
        raise FerlabError(f"There are {len(target)} targets for {len(images)} faces: give one class a face.")
    maps = []
    with _evaluating(network):
        for x, c in zip(_batches(network, images), target.split(CHUNK), strict=True):
            maps.append(explain(x.requires_grad_(), c.to(x.device)).detach())
    return _stack(maps)


def _batches(network: DRFER, images: Any) -> Iterator[Tensor]:
    device = next(network.parameters()).device
    for start in range(0, len(images), CHUNK):
        raw = torch.from_numpy(np.array(images[start : start + CHUNK])).to(device)
        yield standardise(raw, network.size)


def _stack(maps: list[Tensor]) -> np.ndarray:
    return torch.cat(maps).float().cpu().numpy()


@contextmanager
def _evaluating(network: nn.Module) -> Iterator[None]:
    was_training = network.training
    network.eval()
    try:
        yield
    finally:
        network.train(was_training)


def upsample(maps: np.ndarray, size: int) -> np.ndarray:
    """Maps [N, h, w] drawn over the image, [N, size, size]: bilinearly, and bool ones with their edges kept."""
    maps = np.asarray(maps)
    x = torch.as_tensor(maps, dtype=torch.float32)[:, None]
    if maps.dtype == bool:
        return F.interpolate(x, (size, size), mode="nearest")[:, 0].numpy() > 0
    return F.interpolate(x, (size, size), mode="bilinear", align_corners=False)[:, 0].numpy()


# -------------------------------------------------------------------------------------------------------------- share

def informative_parts(parts: np.ndarray, share: float = 0.25, least: float = 64) -> np.ndarray:
    """Where the expression moved the skin: bool [N, h, w], True = informative (ours).

    parts: [N, h, w] how far the skin moved (rendered faces: ``extras["parts"]``, 255 = 2 cm). A cell is informative
    where it moved at least ``share`` as far as the face's most moved cell. Faces whose most moved cell stays below
    ``least`` (64 = 5 mm), such as neutral ones, show no expression to speak of and have no informative part.
    """
    parts = np.asarray(parts, float)
    peak = parts.max((1, 2), keepdims=True, initial=0)
    return (parts >= share * peak) & (peak >= least) & (parts > 0)


class AttentionShare(NamedTuple):
    """How much of the attention is where it should be, by face and on average.

    share: [N] in [0, 1], of each face's attention the share inside its parts; nan for a face without parts.
    uniform: [N], what attention spread evenly over the image would have, that is the parts' share of the image.
    mean, uniform_mean: of the faces that have parts. interval: of ``mean``, 95 %, from a bootstrap over faces.
    """

    share: np.ndarray
    uniform: np.ndarray
    mean: float
    uniform_mean: float
    interval: tuple[float, float]


def attention_share(maps: np.ndarray, parts: np.ndarray, seed: int = 0) -> AttentionShare:
    """The share of attention inside the parts, against what evenly spread attention would have (ours).

    maps: [N, h, w], not negative, of any sum; a map that is zero everywhere counts as evenly spread.
    parts: bool [N, h, w], True = inside. seed: of the bootstrap.

    Raises FerlabError for shapes that differ, negative attention, or parts that are all empty.
    """
    maps, parts = np.asarray(maps, float), np.asarray(parts, bool)
    if maps.ndim != 3 or maps.shape != parts.shape:
        raise FerlabError(f"Maps {maps.shape} and parts {parts.shape} do not fit: bring both to [N, h, w] by upsample.")
    if not (maps >= 0).all():
        raise FerlabError("The attention is negative somewhere: take its size (abs) or cut it off at 0 (clip).")
    if not parts.any():
        raise FerlabError("No face has an informative part: give faces with an expression, or lower the threshold.")
    uniform = np.where(parts.any((1, 2)), parts.mean((1, 2)), np.nan)
    total, inside = maps.sum((1, 2)), (maps * parts).sum((1, 2))
    share = np.where(total > 0, inside / np.where(total > 0, total, 1), uniform)
    share[np.isnan(uniform)] = np.nan
    mean, low, high = bootstrap_mean(share, seed)
    return AttentionShare(share, uniform, mean, float(np.nanmean(uniform)), (low, high))


def bootstrap_mean(values: np.ndarray, seed: int = 0, rounds: int = 2000) -> tuple[float, float, float]:
    """Mean of ``values`` [N], nan left out, and its 95 % interval (low, high) by drawing faces with replacement."""
    values = np.asarray(values, float)
    values = values[~np.isnan(values)]
    counts = np.random.default_rng(seed).multinomial(len(values), np.full(len(values), 1 / len(values)), rounds)
    low, high = np.quantile(counts @ values / len(values), [0.025, 0.975])
    return float(values.mean()), float(low), float(high)


# ------------------------------------------------------------------------------------------------- with and without MIM

def measure(network: DRFER, faces: FaceSet, steps: int = STEPS, most: int = 500) -> dict[str, Any]:
    """Attention shares of a network on (at most ``most`` of) the faces that have informative parts.

    For each kind of map, "local", "grad_cam" and "integrated_gradients" (the latter two for the class that the network
    answers): mean, low, high; and "elsewhere", the mean with every map laid on another of these faces: what a
    network gets that always looks at the same places. Beside them uniform, faces, and flatness: of each of the K
    maps the standard deviation over the mean, within a face, [K], 0 = flat.

    Raises FerlabError for faces without a map of parts, or whose maps are all empty.
    """
    if "parts" not in faces.extras:
        raise FerlabError(f"{faces.dataset or 'This set'} has no map of informative parts: take the rendered faces.")
    parts = informative_parts(faces.extras["parts"])
    rows = np.flatnonzero(parts.any((1, 2)))[:most]
    if not len(rows):
        raise FerlabError("No part of these faces has moved: take some with an expression.")
    images, parts = faces.images[rows], upsample(parts[rows], network.size)
    attention = local_attention(network, images)
    answer = answers(network, images)
    maps = {
        "local": pooling_weights(attention),
        "grad_cam": grad_cam(network, images, answer),
        "integrated_gradients": integrated_gradients(network, images, answer, steps),
    }
    result: dict[str, Any] = {}
    for kind, small in maps.items():
        large = upsample(small, network.size)
        found = attention_share(large, parts)
        elsewhere = attention_share(np.roll(large, len(large) // 2, axis=0), parts)
        result[kind] = dict(zip(("mean", "low", "high"), (found.mean, *found.interval))) | {"elsewhere": elsewhere.mean}
    flatness = attention.std((2, 3)) / attention.mean((2, 3)).clip(1e-6)
    return result | {"uniform": found.uniform_mean, "faces": len(rows), "flatness": flatness.mean(0).tolist()}


def answers(network: DRFER, images: Any) -> np.ndarray:
    """The class that the network answers, int [N]."""
    with _evaluating(network), torch.no_grad():
        return torch.cat([network(x).logits.argmax(1) for x in _batches(network, images)]).cpu().numpy()


def run_seeds(seeds: Sequence[int], runs: Path, output: Path, say: Any = print) -> None:
    """Train every variant for every seed on the lesson's faces and write OUTPUT/PROFILE-VARIANT-SEED.json each."""
    name = profile_name()
    steps, most = (4, 32) if name == "smoke" else (STEPS, 500)
    for seed in seeds:
        lesson = Lesson(seed=seed, runs=runs)
        for variant, changes in VARIANTS.items():
            path = output / f"{name}-{variant.replace(' ', '_')}-{seed}.json"
            if path.exists():
                continue
            trainer = lesson.train(**changes)
            assert trainer.splits.test is not None
            scores = trainer.evaluate(trainer.splits.test, mirror=True)
            result = measure(trainer.average, trainer.splits.test, steps, most)
            write_json(path, {
                "variant": variant, "seed": seed, "profile": name, "noise": trainer.train.noise,
                "accuracy": scores["accuracy"], "mean_class_accuracy": scores["mean_class_accuracy"],
                "shares": result, "seconds": round(sum(record["seconds"] for record in trainer.records), 1),
                "settings": vars(trainer.config), "environment": environment(trainer.config),
            })
            say(f"{path.name}: accuracy {100 * scores['accuracy']:.1f} %, "
                f"local {100 * result['local']['mean']:.1f} %, uniform {100 * result['uniform']:.1f} %")


def read_seeds(folder: str | Path, profile: str) -> dict[str, list[dict]]:
    """{variant: its results, one a seed, in the order of the seeds} of a profile; only seeds that all variants have.

    Raises FerlabError for a file that holds no such result.
    """
    found: dict[str, dict[int, dict]] = {variant: {} for variant in VARIANTS}
    for path in sorted(Path(folder).glob(f"{profile}-*.json")):
        try:
            result = json_object(path.read_text(encoding="utf-8"))
            found[result["variant"]][result["seed"]] = result
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise FerlabError(f"{path} is no result of ferlab.attention: delete it and measure again.") from error
    seeds = sorted(set.intersection(*(set(results) for results in found.values())))
    return {variant: [results[seed] for seed in seeds] for variant, results in found.items()}


@click.command()
@click.option("--seeds", default=3, show_default=True, type=click.IntRange(1), help="Train for seeds 0 to this - 1.")
@click.option("--profile", type=click.Choice(list(PROFILES)), help="Scale; by default FERLAB_PROFILE's.")
@click.option("--runs", default="runs/lessons", show_default=True, type=click.Path(path_type=Path),
              help="Folder of the trainings, which the notebooks share.")
@click.option("--output", default="benchmarks/results-attention", show_default=True, type=click.Path(path_type=Path))
def main(seeds: int, profile: str | None, runs: Path, output: Path) -> None:
    """Train with and without masked image modelling and measure where the networks look, one JSON a training."""
    if profile:
        os.environ["FERLAB_PROFILE"] = profile
    run_seeds(range(seeds), runs, output, click.echo)


if __name__ == "__main__":
    main()

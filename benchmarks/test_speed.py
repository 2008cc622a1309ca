"""How long users wait, each rival beside ferlab in one run: ``make bench``.

pytest-benchmark prints a table a group; in brackets stands how many times the fastest of its group each takes. Results
of a group are checked to agree before they are timed. README's table is made by ``ferlab report`` from speed.json,
which ``python -m pytest benchmarks/test_speed.py --benchmark-json benchmarks/speed.json`` writes.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader
from torchvision import datasets, transforms

from ferlab import benchmarks
from ferlab.augment import augment
from ferlab.config import ONE_VIEW, profile
from ferlab.data import FaceSet, Splits
from ferlab.mixture import ClassMixture
from ferlab.retrieval import class_average_precision
from ferlab.training import Batch, Trainer

CLASSES = 7


def embeddings(count: int, dimensions: int = 512, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Unit vectors around seven means of very different sizes, as faces are; and their classes."""
    rng = np.random.default_rng(seed)
    labels = rng.choice(CLASSES, count, p=[0.4, 0.25, 0.12, 0.1, 0.07, 0.04, 0.02])
    means = np.random.default_rng(99).normal(size=(CLASSES, dimensions))
    vectors = torch.from_numpy(means[labels] + 3 * rng.normal(size=(count, dimensions))).float()
    return torch.nn.functional.normalize(vectors, dim=1), torch.from_numpy(labels)


# --------------------------------------------------------------------------------------------------------- retrieval

QUERIES, GALLERY = 1000, 8000


@pytest.mark.benchmark(group=f"class AP, {QUERIES:,} queries, gallery of {GALLERY:,}, {CLASSES} classes")
@pytest.mark.parametrize("system", ["floor: product and sort", "ferlab", "scikit-learn", "torchmetrics"])
def test_retrieval(benchmark, system):
    from sklearn.metrics import average_precision_score
    from torchmetrics.functional.retrieval import retrieval_average_precision

    queries, (gallery, labels) = embeddings(QUERIES, seed=1)[0], embeddings(GALLERY)

    def floor():
        return (queries @ gallery.T).sort(dim=1, descending=True)

    def ours():
        return class_average_precision(queries, gallery, labels, CLASSES)

    def scikit_learn(count=QUERIES):
        similarity = (queries[:count] @ gallery.T).numpy()
        members = [(labels == c).numpy() for c in range(CLASSES)]
        return np.array([[average_precision_score(each, row) for each in members] for row in similarity])

    def torchmetrics(count=QUERIES):
        similarity = 1 + (queries[:count] @ gallery.T).double()  # it ignores what is not positive
        members = [labels == c for c in range(CLASSES)]
        return np.array([[retrieval_average_precision(row, each) for each in members] for row in similarity])

    assert np.abs(ours()[:5].numpy() - scikit_learn(5)).max() < 1e-6
    assert np.abs(ours()[:5].numpy() - torchmetrics(5)).max() < 1e-5  # it sums in single precision
    slow = {"scikit-learn": scikit_learn, "torchmetrics": torchmetrics}
    times = {"rounds": 1} if system in slow else {"rounds": 5, "warmup_rounds": 1}
    benchmark.pedantic((slow | {"ferlab": ours}).get(system, floor), **times)


@pytest.mark.benchmark(group="class AP, 256 queries, growing gallery")
@pytest.mark.parametrize("gallery", [25_000, 50_000, 100_000, 200_000], ids="{:,} faces".format)
def test_retrieval_memory(benchmark, gallery):
    """AffectNet's scale: what a chunk of queries takes beyond the embeddings; more queries only take longer."""
    code = ("import resource, sys, torch; from ferlab.retrieval import class_average_precision as ap\n"
            "g = torch.nn.functional.normalize(torch.randn(int(sys.argv[1]), 512), dim=1)\n"
            "y = torch.arange(len(g)) % 7; ap(g[:256], g[:1000], y[:1000], 7)\n"
            "used = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6\n"
            "before = used(); ap(g[:256], g, y, 7); print(used() - before)")

    def run():
        return float(subprocess.run([sys.executable, "-c", code, str(gallery)], check=True, capture_output=True,
                                    text=True).stdout)

    gigabytes = benchmark.pedantic(run, rounds=1)
    benchmark.extra_info["GB beyond the embeddings"] = round(gigabytes, 2)
    print(f"\n{gallery:,} in the gallery: {gigabytes:.2f} GB beyond the embeddings")
    assert gigabytes < 2


# --------------------------------------------------------------------------------------------------------- the mixture

@pytest.mark.benchmark(group="mixtures of 290,000 losses, one a class")
@pytest.mark.parametrize("system", ["ferlab", "ferlab, one for all", "scikit-learn"])
def test_split(benchmark, system):
    from sklearn.mixture import GaussianMixture

    rng = np.random.default_rng(0)
    labels = embeddings(290_000, 1)[1].numpy()
    wrong = rng.random(len(labels)) < 0.3
    roots = np.sqrt(np.log1p(np.exp(np.where(wrong, rng.normal(3, 2, len(wrong)), rng.normal(-3, 2, len(wrong))))))

    def scikit_learn():
        of = [roots[labels == c][:, None] for c in range(CLASSES)]
        return [GaussianMixture(2, covariance_type="tied").fit(each).predict_proba(each) for each in of]

    scope = "shared" if "all" in system else "class"
    run = scikit_learn if system == "scikit-learn" else lambda: ClassMixture(scope).fit(roots, labels)
    benchmark.pedantic(run, rounds=3, warmup_rounds=1)


# ------------------------------------------------------------------------------------------------------------ training

def some_faces(count: int) -> FaceSet:
    rng = np.random.default_rng(0)
    return FaceSet(rng.integers(256, size=(count, 48, 48, 3), dtype=np.uint8), np.arange(count) % CLASSES,
                   tuple("abcdefg"))


@pytest.mark.benchmark(group="a training step of 32 faces, profile quick")
@pytest.mark.parametrize("method", ["plain", "drfer", "drfer, one view", "drfer, no MIM", "drfer, no DCL"])
def test_training_step(benchmark, method):
    settings = profile("quick", method=method.split(",")[0], masked_modelling="no MIM" not in method,
                       contrastive="no DCL" not in method)
    if "one view" in method:
        settings = settings.replace(**ONE_VIEW)
    trainer = Trainer(settings, Splits(some_faces(64), None, None))
    images, index = next(trainer.batches(trainer.train, torch.arange(32), 32))
    images = images.repeat(settings.views, 1, 1, 1).contiguous(memory_format=torch.channels_last)
    batch, generator = Batch(images, index.repeat(settings.views)), torch.Generator()
    trainer.network.train()

    def step():
        trainer.optimizer.zero_grad(set_to_none=True)
        sum(trainer.loss(batch, generator).values()).backward()
        trainer.optimizer.step()

    benchmark.pedantic(step, rounds=20, warmup_rounds=2)


@pytest.mark.benchmark(group="DR-FER, profile quick, 1,024 faces: an epoch, and what a split costs")
@pytest.mark.parametrize("part", ["epoch", "collect, split, relabel"])
def test_split_in_training(benchmark, part):
    trainer = Trainer(profile("quick"), Splits(some_faces(1024), None, None), progress=False)
    rng = torch.Generator().manual_seed(0)
    odds = torch.where(torch.rand(1024, generator=rng) < 0.3, 3.0, -3.0) + torch.randn(1024, generator=rng)
    trainer.method.history = torch.log1p(odds.exp())[None].repeat(2, 1)  # so that there is something to split

    def split():
        trainer.method.split_and_relabel(trainer.collect(trainer.train))

    benchmark.pedantic(trainer._train_epoch if part == "epoch" else split, rounds=3, warmup_rounds=1)


# ------------------------------------------------------------------------------------------------------- the data path

@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """2,048 images on disk, 48 pixels a side, as the folder data set expects them."""
    root = tmp_path_factory.mktemp("faces")
    for i, pixels in enumerate(np.asarray(some_faces(2048).images)):
        path = root / "train" / "abcdefg"[i % CLASSES]
        path.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path / f"{i}.png")
    return root


@pytest.mark.benchmark(group="2,048 images from disk to augmented batches of 64")
@pytest.mark.parametrize("system", ["ferlab, packing too", "ferlab, packed, first epoch", "ferlab, packed, later ones",
                                    "ImageFolder + PIL + DataLoader"])
def test_data_path(benchmark, folder, tmp_path, system):
    usual = transforms.Compose([
        transforms.RandomHorizontalFlip(), transforms.RandomRotation(12), transforms.RandomResizedCrop(48, (0.75, 1.0)),
        transforms.ColorJitter(0.25, 0.25), transforms.ToTensor(), transforms.Normalize([0.5] * 3, [0.25] * 3),
        transforms.RandomErasing()])
    generator = torch.Generator().manual_seed(0)

    trainer = Trainer(profile("quick", method="plain"), Splits(some_faces(64), None, None))

    def load(cache):
        return benchmarks.load("folder", folder, size=48, cache=cache, progress=False).train

    def epoch(faces):
        order = torch.randperm(2048, generator=generator)
        return sum(len(augment(images, 0.6, generator)) for images, _ in trainer.batches(faces, order, 64))

    def theirs():
        loader = DataLoader(datasets.ImageFolder(str(folder / "train"), usual), 64, shuffle=True, num_workers=2)
        return sum(len(images) for images, _ in loader)

    def forget():
        for path in filter(Path.is_file, (tmp_path / "cache").rglob("*")):
            with path.open("rb") as file:
                os.fsync(file.fileno())
                if hasattr(os, "posix_fadvise"):  # so that it is read from the disk
                    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)

    if "packed" in system:
        faces = load(tmp_path / "cache")
        assert epoch(faces) == 2048
        if "later" in system:
            benchmark.pedantic(epoch, (faces,), rounds=5, warmup_rounds=1)
        else:
            del faces
            benchmark.pedantic(lambda: epoch(load(tmp_path / "cache")), setup=forget, rounds=5)
    elif "packing" in system:
        caches = iter(range(9))
        benchmark.pedantic(lambda: epoch(load(tmp_path / str(next(caches)))), rounds=2)
    else:
        assert theirs() == 2048
        benchmark.pedantic(theirs, rounds=2)


# ------------------------------------------------------------------------------------------------------------ start-up

@pytest.mark.benchmark(group="start-up")
@pytest.mark.parametrize("command", [["-c", "pass"], ["-c", "import ferlab"], ["-m", "ferlab.cli", "--help"]],
                         ids=["python alone", "import ferlab", "ferlab --help"])
def test_start(benchmark, command):
    benchmark.pedantic(lambda: subprocess.run([sys.executable, *command], check=True, capture_output=True), rounds=5,
                       warmup_rounds=1)


@pytest.mark.benchmark(group="opening the rendered faces, once made")
def test_open_rendered(benchmark):
    benchmarks.load("rendered", size=48)
    splits = benchmark.pedantic(lambda: benchmarks.load("rendered", size=48), rounds=5)
    assert len(splits.train) == 6000

"""Runs a grid of trainings, one JSON a run, so that what is claimed can be measured again.

A grid file names data, methods and seeds:

    {"name": "rendered", "data": "rendered", "options": {"size": 48}, "profile": "quick", "seeds": [0, 1, 2],
     "noise": [["symmetric", 0.3], ["none", 0.0]],
     "methods": {"plain": {"method": "plain"}, "full": {"method": "drfer"}}}

Every cell (method, noise, seed) becomes results/NAME-METHOD-NOISE-SEED.json; cells whose file exists are skipped, and
an interrupted one goes on from the checkpoint of its run directory.
"""

from __future__ import annotations

import json
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np

from ferlab.errors import FerlabError
from ferlab.runs import write_json


@dataclass(frozen=True)
class Cell:
    """One training of a grid; ``method`` is the name that the grid gives to ``settings``."""

    grid: str
    data: str
    root: str | None
    options: dict
    profile: str
    noise: str
    rate: float
    method: str
    settings: dict
    seed: int

    @property
    def name(self) -> str:
        noise = self.noise if self.noise in ("none", "given") else f"{self.noise}{round(100 * self.rate)}"
        return f"{self.grid}-{self.method}-{noise}-{self.seed}"


def read_grid(path: Path, root: str | None = None) -> list[Cell]:
    """The cells of a grid file, all methods and noises of a seed before the next seed."""
    try:
        grid = json.loads(path.read_text())
        return [
            Cell(grid["name"], grid["data"], root, grid.get("options", {}), grid["profile"], noise, rate, method,
                 settings, seed)
            for seed in grid["seeds"] for noise, rate in grid["noise"] for method, settings in grid["methods"].items()
        ]
    except (OSError, KeyError, ValueError) as error:
        raise FerlabError(f"{path} is no grid file ({type(error).__name__}: {error}): see benchmarks/.") from error


def run_cell(cell: Cell, runs_folder: Path) -> dict:
    """Load, add noise to the training labels only, train in a run directory, score the last epoch on valid and test."""
    import torch

    from ferlab import benchmarks, config, runs, training

    if not torch.cuda.is_available():
        torch.set_num_threads(1)  # cells run side by side
    splits = benchmarks.load(cell.data, cell.root, **cell.options)
    if splits.train is None:
        raise FerlabError(f"{cell.data} has no training faces here: check the grid's root.")
    train = splits.train
    if cell.noise not in ("none", "given"):
        train = train.with_noise(cell.noise, cell.rate, cell.seed)
    settings = config.profile(cell.profile, **cell.settings, seed=cell.seed)
    trainer = training.train(settings, splits._replace(train=train), runs_folder / cell.name, progress=False)
    scores = {
        name: trainer.evaluate(faces, mirror=True)
        for name, faces in zip(("valid", "test"), splits[1:], strict=True) if faces is not None and len(faces)
    }
    return {
        "name": cell.name, "data": cell.data, "options": cell.options, "rule": train.rule,
        "noise": train.noise or cell.noise, "method": cell.method, "seed": cell.seed,
        "faces": {name: len(faces) for name, faces in splits._asdict().items() if faces is not None},
        "seconds": round(sum(record["seconds"] for record in trainer.records), 1),
        "scores": scores, "epochs": trainer.records,
        "settings": vars(settings), "environment": runs.environment(),
    }


def run_grid(
    path: str | Path, results: str | Path, root: str | None = None, runs_folder: str | Path = "runs", jobs: int = 1,
    only: str = "",
) -> list[str]:
    """Run the cells of a grid file that have no result yet, ``jobs`` at a time; returns the names of those run.

    only: cells whose name contains it. Raises FerlabError for a file that is no grid.
    """
    results = Path(results)
    cells = [c for c in read_grid(Path(path), root) if only in c.name and not (results / f"{c.name}.json").exists()]
    done: list[str] = []
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        waiting = {pool.submit(run_cell, cell, Path(runs_folder)): cell for cell in cells}
        for finished in as_completed(waiting):
            result = finished.result()
            write_json(results / f"{result['name']}.json", result)
            done.append(result["name"])
            scores = ", ".join(f"{k} {v['accuracy']:.3f}" for k, v in result["scores"].items())
            print(f"{len(done)}/{len(cells)} {result['name']}: {scores}, {result['seconds']:.0f} s", flush=True)
    return done


def read_results(results: str | Path):
    """All results of a folder as a DataFrame, one run a row."""
    import pandas as pd

    rows = []
    for path in sorted(Path(results).glob("*.json")):
        result = json.loads(path.read_text())
        splits = [r["split"] for r in result["epochs"] if "split" in r]
        row = {k: result[k] for k in ("name", "data", "rule", "noise", "method", "seed", "seconds")}
        row |= {f"{split}_{key}": score[key] for split, score in result["scores"].items()
                for key in ("accuracy", "mean_class_accuracy", "macro_f1")}
        row |= {key: splits[-1].get(key) for key in ("auroc", "clean_precision", "clean_share", "right_if_wrong",
                                                     "right_if_clean", "right_after")} if splits else {}
        rows.append(row)
    return pd.DataFrame(rows)


def interval(values) -> tuple[float, float]:
    """Mean and half-width of the 95 % interval (Student's t); the half-width is nan for a single value."""
    from scipy.stats import t

    values = np.asarray(values, float)
    n = len(values)
    half = t.ppf(0.975, n - 1) * values.std(ddof=1) / np.sqrt(n) if n > 1 else float("nan")
    return float(values.mean()), float(half)

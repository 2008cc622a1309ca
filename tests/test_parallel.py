"""Two processes train as one does."""

from __future__ import annotations

import functools
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]

# In single precision the order of a sum already decides on which side of 0 a ReLU falls; in double it hardly ever does.
COMMAND = """
import torch
from ferlab import cli, training

torch.set_default_dtype(torch.double)
single = training.standardise
training.standardise = lambda images, size: single(images, size).double()
cli.main()
"""


@pytest.fixture(scope="module")
def runs(toy_faces: Path, tmp_path_factory: pytest.TempPathFactory):
    """Of a method: what the command printed, and its run directory, by one process and by two."""
    folder = tmp_path_factory.mktemp("parallel")
    script = folder / "command.py"
    script.write_text(COMMAND)

    def train(method: str, name: str, *settings: str) -> tuple[subprocess.CompletedProcess, Path]:
        launcher = [*TORCHRUN, "--"] if name.startswith("two") else []
        options = [part for setting in settings for part in ("--set", setting)]
        run = folder / method / name
        command = [sys.executable, *launcher, str(script), "train", "--data", "folder", "--root", str(toy_faces),
                   "--noise", "symmetric", "--profile", "smoke", "--method", method, "--run", str(run), *options]
        return subprocess.run(command, capture_output=True, text=True, timeout=300), run

    train.once = functools.cache(train)
    return train


SETTINGS = {"drfer": ("epochs=3", "warm_up=1"), "scn": ("epochs=2", "views=2"),
            "rul": ("epochs=2",)}  # which has batch statistics of embeddings, too
SETTINGS = {method: (*own, "batch_size=16", "precision=float32") for method, own in SETTINGS.items()}


@pytest.mark.parametrize("method", SETTINGS)
def test_two_processes_give_the_numbers_of_one(runs, method: str):
    finished, directories = zip(*(runs.once(method, name, *SETTINGS[method]) for name in ("one", "two")))
    for done in finished:
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("epoch ") >= 2 and done.stdout.count("Done: ") == 1  # one process speaks
    one, two = ([json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
                for directory in directories)
    assert flat(one) == pytest.approx(flat(two), abs=1e-6)
    for split in ("train", "valid", "test"):
        states = [np.load(directory / f"state_{split}.npz") for directory in directories]
        assert set(states[0]) == set(states[1])
        assert all((states[0][name] == states[1][name]).all() for name in ("name", "given", "classes"))
        for name in set(states[0]) - {"name", "classes"}:
            np.testing.assert_allclose(states[0][name], states[1][name], atol=1e-3 if name == "embedding" else 1e-6,
                                       err_msg=f"{split} {name}")  # embeddings are kept in half precision


def test_two_processes_go_on_from_a_checkpoint(runs):
    first, run = runs.once("drfer", "two", *SETTINGS["drfer"])
    before = (run / "metrics.jsonl").read_text()
    (run / "state_train.npz").unlink()
    again, _ = runs("drfer", "two", *SETTINGS["drfer"])
    assert (first.returncode, again.returncode) == (0, 0), first.stderr + again.stderr
    assert (run / "state_train.npz").is_file() and (run / "metrics.jsonl").read_text() == before
    assert "epoch 1/3" not in again.stdout


@pytest.mark.parametrize("method, size, told", [
    ("plain", 15, "batch_size is 15: give a multiple of the 2 processes."),
    ("drfer", 10, "5 faces of a batch (or of the share of it that is masked) cannot be parted equally"),
])
def test_a_batch_that_the_processes_cannot_share_is_refused(runs, method, size, told):
    done, run = runs(method, "two, unequal", f"batch_size={size}", "epochs=2", "warm_up=1")
    assert done.returncode != 0
    assert told in done.stderr
    assert not (run / "checkpoint.pt").exists()


def flat(value, path: str = "") -> dict[str, float]:
    """The numbers of nested records by their path, without the seconds they took."""
    if isinstance(value, dict | list):
        pairs = value.items() if isinstance(value, dict) else enumerate(value)
        return {k: v for name, inner in pairs if name != "seconds" for k, v in flat(inner, f"{path}.{name}").items()}
    return {path: value} if isinstance(value, int | float) else {}

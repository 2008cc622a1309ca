"""What all tests share: one thread each, a cache of their own, toy faces, and the command line called in process."""

from __future__ import annotations

import atexit
import os
import shutil
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

# Before NumPy and PyTorch are imported. Many threads on a busy machine are ten times slower than one.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["MPLBACKEND"] = "Agg"
os.environ["FERLAB_CACHE"] = tempfile.mkdtemp(prefix="ferlab-tests-")
os.environ.pop("FERLAB_PROFILE", None)
atexit.register(shutil.rmtree, os.environ["FERLAB_CACHE"], ignore_errors=True)

import numpy as np  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402
from PIL import Image  # noqa: E402

torch.set_num_threads(1)

REPOSITORY = Path(__file__).parent.parent
# so that processes which tests start find the package, installed or not, and these modules
paths = [str(REPOSITORY), str(REPOSITORY / "tests"), os.environ.get("PYTHONPATH")]
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, paths))


class Outcome(NamedTuple):
    """How a command ended."""

    code: int
    out: str
    err: str


@pytest.fixture
def ferlab(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    """``ferlab("train", "--data", ...)`` runs the command line in this process."""
    from ferlab import cli

    def call(*arguments: object) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["ferlab", *map(str, arguments)])
        monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)  # main replaces it
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return Outcome(int(ended.value.code or 0), *capsys.readouterr())

    return call


def write_toy_faces(root: Path, counts: dict[str, int], kinds: tuple[str, ...] = ("high", "middle", "low")) -> Path:
    """A ``folder`` data set whose classes anyone can tell: a bright bar at one height in noise, 32 x 32 pixels."""
    rng = np.random.default_rng(0)
    for split, count in counts.items():
        for kind in kinds:
            (root / split / kind).mkdir(parents=True)
            for number in range(count):
                pixels = rng.integers(0, 120, (32, 32), dtype=np.uint8)
                pixels[{"high": slice(4, 10), "middle": slice(13, 19), "low": slice(22, 28)}[kind]] += 120
                Image.fromarray(pixels).save(root / split / kind / f"{number:03d}.png")
    return root


@pytest.fixture(scope="session")
def toy_faces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Root of a ``folder`` data set of three classes, 96 + 30 + 30 faces."""
    return write_toy_faces(tmp_path_factory.mktemp("toy") / "faces", {"train": 32, "valid": 10, "test": 10})

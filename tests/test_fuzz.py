"""Thousands of damaged files: every reader either reads them or says in one sentence what is wrong, and soon."""

import os
import random
import shutil
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import fakes
import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from test_training import bars, settings

from ferlab import audit, benchmarks
from ferlab.bench import balance_table, frame, quoted, read_grid, read_results, summary, tables
from ferlab.data import Splits
from ferlab.decisions import DecisionLog
from ferlab.errors import FerlabError
from ferlab.model import load_backbone_weights, small_resnet
from ferlab.runs import Run
from ferlab.training import train

TRIES = int(os.environ.get("FERLAB_DAMAGED_FILES", 300))  # of each format
SECONDS = 5  # that one may take


def damaged(data: bytes, draw: random.Random) -> bytes:
    """``data`` with one to four accidents: bits flipped, a part lost, doubled, blanked or put in, numbers changed."""
    data = bytearray(data)
    for _ in range(draw.randint(1, 4)):
        start = draw.randrange(len(data) + 1)
        end = min(len(data), start + draw.choice((1, 2, 8, 64, 4096)))
        match draw.randrange(8):
            case 0:
                data[start:end] = bytes(b ^ (1 << draw.randrange(8)) for b in data[start:end])
            case 1:
                del data[start:end]
            case 2:
                del data[start:]
            case 3:
                data[start:start] = data[start:end]
            case 4:
                data[start:end] = bytes(end - start)
            case 5:
                data[start:start] = draw.randbytes(draw.choice((1, 3, 50)))
            case 6:
                data[start:start] = draw.choice(
                    (b"\n", b"\0", b",", b'"', b"\xff\xfe", b"../", b"-1", b"1e999", b"nan", b"{"))
            case 7:
                digits = [i for i, b in enumerate(data) if 48 <= b <= 57]
                for i in draw.sample(digits, min(len(digits), 3)):
                    data[i] = draw.choice(b"0123456789-.x")
    return bytes(data)


def withstand(files: list[Path], read: Callable[[], object], tries: int = TRIES, spares: bool = False) -> None:
    """Damage one of the files at a time, and read; ``spares``: most damage may be passed over."""
    files = sorted(files)  # the same accidents on every machine
    draw, originals = random.Random(0), {path: path.read_bytes() for path in files}
    read()
    told = 0
    for number in range(tries):
        path = draw.choice(files)
        path.write_bytes(damaged(originals[path], draw))
        began = time.perf_counter()
        try:
            read()
        except FerlabError as error:
            told += 1
            sentence, *layout = str(error).split("\n")  # the files that a data set consists of may follow it
            assert len(sentence) < 800 and all(line.startswith("  ") for line in layout), f"try {number}: {error}"
        except Exception as error:
            raise AssertionError(f"try {number}, {path.name}") from error
        assert time.perf_counter() - began < SECONDS, f"try {number}, {path.name}"
        path.write_bytes(originals[path])
    assert told > tries / 20 or spares  # the damage was felt


def every_split(name: str, root: Path, **options) -> None:
    for faces in benchmarks.load(name, root, cache=root.parent / "cache", **options):
        if faces is not None:
            np.asarray(faces.images[:])


LAYOUTS = {
    "ferplus": fakes.fer, "fer2013": fakes.fer, "rafdb": fakes.rafdb, "affectnet7": fakes.affectnet,
    "affectnet8": fakes.affectnet_csv, "sfew": fakes.sfew, "folder": fakes.folders,
}


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("skip_bad", [False, True])
def test_data_sets(name, skip_bad, tmp_path):
    root = LAYOUTS[name](tmp_path / "set")
    withstand([path for path in root.rglob("*") if path.is_file()],
              lambda: every_split(name, root, skip_bad=skip_bad), TRIES // 2, spares=skip_bad)


@pytest.mark.filterwarnings("ignore:The .* split of")
@pytest.mark.parametrize("name", ["ferplus", "fer2013"])
def test_lists(name, tmp_path):
    """The lists among hundreds of images would seldom be drawn."""
    root = fakes.fer(tmp_path / "set")
    withstand(list(root.glob("*.csv")), lambda: every_split(name, root))


@pytest.mark.filterwarnings("ignore:The .* split of")
def test_kaggles_table(tmp_path):
    root = fakes.fer(tmp_path / "set", kaggle=True)
    withstand(list(root.glob("*.csv")), lambda: every_split("ferplus", root))


def test_zips(tmp_path):
    archive = fakes.zipped(fakes.folders(tmp_path / "set"))
    withstand([archive], lambda: every_split("folder", archive))
    with zipfile.ZipFile(archive) as whole:
        assert whole.testzip() is None


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Run:
    directory = tmp_path_factory.mktemp("run")
    train(settings(method="drfer", epochs=2), Splits(bars(48, wrong=0.2), bars(24, seed=1), None), directory)
    return Run.open(directory)


def test_runs(run, tmp_path):
    def read():
        copy = Run.open(tmp_path)
        assert copy.config and copy.environment and isinstance(copy.metrics, list)
        copy.state("train")
        copy.read_checkpoint()

    shutil.copytree(run.directory, tmp_path, dirs_exist_ok=True)
    withstand([path for path in tmp_path.iterdir() if path.suffix], read)


def test_resuming(run, tmp_path):
    def read():
        train(settings(method="drfer", epochs=2), Splits(bars(48, wrong=0.2), bars(24, seed=1), None), tmp_path)

    shutil.copytree(run.directory, tmp_path, dirs_exist_ok=True)
    withstand([tmp_path / "checkpoint.pt", tmp_path / "metrics.jsonl"], read, min(TRIES, 300) // 3)


@pytest.mark.parametrize("name", ["weights.pt", "weights.safetensors"])
def test_weights(name, tmp_path):
    backbone, file = small_resnet((1, 1, 1, 1), (4, 4, 4, 4))[0], tmp_path / name
    (save_file if "safetensors" in name else torch.save)(backbone.state_dict(), file)
    withstand([file], lambda: load_backbone_weights(backbone, file))


def test_decisions(tmp_path):
    log = DecisionLog(tmp_path / "decisions.csv")
    for name in ("a.png", "bé.png", 'c "d".png'):
        log.append(name, "calm", "choose", "glad")
    withstand([log.path], lambda: DecisionLog(log.path).current)


def test_audits(tmp_path):
    faces = bars(48)
    audit.write(audit.audit(faces, settings(epochs=1), tmp_path, folds=2), faces, tmp_path, count=4)
    withstand([tmp_path / "audit.npz"], lambda: audit.read(tmp_path))


def test_grids_and_results(tmp_path):
    here = Path(__file__).parent.parent / "benchmarks"
    shutil.copy(here / "rendered.json", tmp_path / "grid.json")
    withstand([tmp_path / "grid.json"], lambda: read_grid(tmp_path / "grid.json"))
    shutil.copy(here / "quoted.json", tmp_path / "quoted.json")
    withstand([tmp_path / "quoted.json"], lambda: quoted(tmp_path / "quoted.json"))
    results = tmp_path / "results"
    results.mkdir()
    for path in sorted((here / "results").glob("*.json"))[:3]:
        shutil.copy(path, results)

    def read_report():
        measured = read_results(results)
        return summary(measured), tables(measured), balance_table(measured), frame(measured)

    withstand(list(results.iterdir()), read_report)

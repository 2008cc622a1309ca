"""A training killed without warning and taken up again ends with the numbers of an unbroken one."""

import json
import multiprocessing
import os
import random
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from test_training import bars, settings

from ferlab.data import Splits
from ferlab.drfer import DRFERMethod
from ferlab.runs import Run
from ferlab.training import Trainer, train

# One server imports PyTorch (and what the first optimizer would, for seconds), and every process is a copy of it.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["test_kill", "torch._dynamo"])


def die(*arguments, **options):
    os.kill(os.getpid(), signal.SIGKILL)


def dies_at(count, function, early=True):
    """``function``, but the process dies at call number ``count`` of it: instead of it, or right after."""
    calls = iter(range(1, 10**9))

    def call(*arguments, **options):
        last = next(calls) == count
        if last and early:
            die()
        value = function(*arguments, **options)
        if last:
            die()
        return value

    return call


def die_half_way(path):
    """Leave the first half of a file that has just been written, and die."""
    os.truncate(path, os.path.getsize(path) // 2)
    die()


def training(directory: Path, moment: tuple = ()):
    """Two rounds of the whole method; ``moment`` says where the process dies, if not killed from outside."""
    torch.set_num_threads(1)
    match moment:
        case ("epoch", number):
            Trainer._train_epoch = dies_at(number, Trainer._train_epoch)
        case ("step", number):
            torch.optim.SGD.step = dies_at(number, torch.optim.SGD.step, early=False)
        case ("split", early):
            DRFERMethod.split_and_relabel = dies_at(1, DRFERMethod.split_and_relabel, early)
        case ("replace", number, early):
            os.replace = dies_at(number, os.replace, early)
        case ("half a checkpoint",):
            save = torch.save
            torch.save = lambda value, path: (save(value, path), die_half_way(path))
        case ("half a state",):
            savez = np.savez
            np.savez = lambda path, **arrays: (savez(path, **arrays), die_half_way(path))
    faces = bars(48, wrong=0.25)
    config = settings(method="drfer", epochs=4, warm_up=2, interval=1, smooth_collections=2, batch_size=16)
    train(config, Splits(faces, bars(12, seed=1), None), directory)


def outcome(directory: Path) -> tuple:
    """Metrics without times, weights, buffers of the method, and states of the splits."""
    run = Run.open(directory)
    metrics = [{k: v for k, v in record.items() if k != "seconds"} for record in run.metrics]
    checkpoint = run.read_checkpoint()
    tensors = {f"{part} {name}": value for part in ("network", "average", "method")
               for name, value in checkpoint[part].items()}
    states = {f"{split} {name}": value for split in ("train", "valid") for name, value in run.state(split).items()}
    return json.dumps(metrics), tensors, states


def assert_same(directory: Path, unbroken: tuple):
    metrics, tensors, states = outcome(directory)
    assert metrics == unbroken[0]
    assert tensors.keys() == unbroken[1].keys() and states.keys() == unbroken[2].keys()
    for name, value in tensors.items():
        assert torch.equal(value, unbroken[1][name]), name
    for name, value in states.items():
        assert np.array_equal(value, unbroken[2][name]), name
    assert [path.name for path in directory.glob(".*")] == [".lock"]  # nothing half-written stays


def start(directory: Path, moment: tuple = ()):
    process = PROCESSES.Process(target=training, args=(directory, moment))
    process.start()
    return process


def finish(directory: Path):
    process = start(directory)
    process.join()
    assert process.exitcode == 0


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """The outcome of a training that nobody disturbed, and the seconds it took."""
    directory = tmp_path_factory.mktemp("unbroken")
    idle = PROCESSES.Process(target=int)
    idle.start()  # and with it the server
    idle.join()
    started = time.perf_counter()
    finish(directory)
    return outcome(directory), time.perf_counter() - started


# every file that is put in place: settings, then metrics and checkpoint of each of 4 epochs, then two states
MOMENTS = [("epoch", 1), ("epoch", 3), ("step", 1), ("step", 5), ("step", 9), ("split", True), ("split", False),
           ("half a checkpoint",), ("half a state",)] + [
           ("replace", number, early) for number in range(1, 13) for early in (True, False)]


@pytest.mark.parametrize("moment", MOMENTS, ids=lambda moment: "-".join(map(str, moment)))
def test_killed_at(moment, unbroken, tmp_path):
    process = start(tmp_path, moment)
    process.join()
    assert process.exitcode == -signal.SIGKILL
    finish(tmp_path)
    assert_same(tmp_path, unbroken[0])


@pytest.mark.parametrize("seed", range(4))
def test_killed_again_and_again_at_random(seed, unbroken, tmp_path):
    draw, (expected, seconds) = random.Random(seed), unbroken
    killed = 0
    for _ in range(5):
        process = start(tmp_path)
        process.join(draw.uniform(0, 0.6 * seconds))  # a busy machine may have held up the unbroken one
        killed += process.is_alive()
        process.kill()
        process.join()
    assert killed
    finish(tmp_path)
    assert_same(tmp_path, expected)

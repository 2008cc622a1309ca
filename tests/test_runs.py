"""Run directories: whole files or none, states that come back as they were, and no code from checkpoints."""

import errno
import json
import os
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from ferlab import runs
from ferlab.config import Config
from ferlab.errors import BusyError, FerlabError
from ferlab.runs import Run, environment, write_json, write_whole


def disk_full(path):
    path.write_text("half of")
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_failed_write_keeps_the_former_file_and_leaves_nothing_else(tmp_path):
    write_json(tmp_path / "a.json", {"epoch": 1})
    for failure in (disk_full, lambda path: (_ for _ in ()).throw(RuntimeError("PytorchStreamWriter failed"))):
        with pytest.raises(FerlabError, match="could not be written") as told:
            write_whole(tmp_path / "a.json", failure)
        assert "what was there before is kept" in str(told.value)
    assert json.loads((tmp_path / "a.json").read_text()) == {"epoch": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_a_full_disk_while_saving_keeps_the_former_checkpoint(tmp_path, monkeypatch):
    run = Run(tmp_path)
    run.write_checkpoint({"epoch": 1})
    run.write_state("train", {"loss": np.arange(3.0)})

    def half_saved(value, path, **rest):
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(torch, "save", half_saved)
    monkeypatch.setattr(np, "savez", lambda path, **arrays: half_saved(arrays, path))
    for write in (lambda: run.write_checkpoint({"epoch": 2}), lambda: run.write_state("train", {"loss": np.zeros(3)})):
        with pytest.raises(FerlabError, match="No space left"):
            write()
    assert run.read_checkpoint() == {"epoch": 1} and run.state()["loss"].tolist() == [0, 1, 2]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint.pt", "state_train.npz"]


def test_what_is_no_file_is_written_into(tmp_path):
    os.mkfifo(pipe := tmp_path / "pipe")
    with ThreadPoolExecutor(1) as pool:
        read = pool.submit(pipe.read_text)
        write_json(pipe, {"a": 1})
        assert json.loads(read.result()) == {"a": 1}
    assert pipe.is_fifo() and list(tmp_path.iterdir()) == [pipe]


def test_the_file_is_never_seen_half_written(tmp_path):
    target = tmp_path / "a.txt"
    target.write_text("old")

    def write(path):
        path.write_text("new")
        assert path.parent == tmp_path and path != target and target.read_text() == "old"

    write_whole(target, write)
    assert target.read_text() == "new"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission_is_told(tmp_path):
    folder = tmp_path / "locked"
    folder.mkdir()
    folder.chmod(0o500)
    try:
        with pytest.raises(FerlabError, match="Permission denied"):
            write_json(folder / "a.json", 1)
    finally:
        folder.chmod(0o700)


def test_a_read_only_file_system_is_told(tmp_path, monkeypatch):
    def refuse(*arguments, **options):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr("pathlib.Path.mkdir", refuse)
    with pytest.raises(FerlabError, match="Read-only file system"):
        write_json(tmp_path / "new" / "a.json", 1)


def test_a_file_in_the_place_of_a_folder_is_told(tmp_path):
    (tmp_path / "file").write_text("here")
    with pytest.raises(FerlabError, match="run directory"):
        Run(tmp_path / "file")
    with pytest.raises(FerlabError, match="could not be written"):
        write_json(tmp_path / "file" / "a.json", 1)
    assert (tmp_path / "file").read_text() == "here"


def test_states_come_back_as_they_were(tmp_path):
    run = Run(tmp_path / "deep" / "run")
    state = {"loss": np.float32([0.1, np.inf]), "neighbours": np.arange(6).reshape(2, 3),
             "embedding": np.ones((2, 4), np.float16), "names": np.array(["a.png", "ü.png"]), "none": np.zeros((0, 2))}
    run.write_state("train", state)
    back = run.state("train")
    assert back.keys() == state.keys()
    for name, array in state.items():
        assert back[name].dtype == array.dtype and np.array_equal(back[name], array)
    with pytest.raises(FerlabError, match="no state of the split 'valid'"):
        run.state("valid")


def test_metrics_and_settings_come_back_as_they_were(tmp_path):
    run, config = Run(tmp_path), Config(epochs=7, top_k=30, split="shared")
    assert run.metrics == [] and not run.has_checkpoint
    with pytest.raises(FerlabError, match="holds no run"):
        Run.open(tmp_path)
    write_json(tmp_path / "config.json", vars(config))
    write_json(tmp_path / "environment.json", environment() | {"dataset": "rendered"})
    records = [{"epoch": 1, "loss": {"cross_entropy": 0.5}}, {"epoch": 2, "valid": {"accuracy": None}}]
    run.write_metrics(records[:1])
    run.write_metrics(records)
    opened = Run.open(tmp_path)
    assert opened.config == config and opened.metrics == records
    assert opened.environment["torch"] == torch.__version__ and opened.environment["dataset"] == "rendered"


@pytest.mark.skipif(not shutil.which("git"), reason="needs git")
def test_environment_tells_the_commit(tmp_path, monkeypatch):
    def git(*command: str) -> str:
        return subprocess.run(["git", "-c", "user.name=A", "-c", "user.email=a@b", *command], cwd=tmp_path, check=True,
                              capture_output=True, text=True).stdout.strip()

    module = tmp_path / "package" / "runs.py"
    module.parent.mkdir()
    module.write_text("a = 1\n")
    monkeypatch.setattr(runs, "__file__", str(module))
    git("init")
    assert runs.commit() is None  # not part of the checkout that it lies in
    git("add", ".")
    git("commit", "-m", "first")
    assert environment()["commit"] == git("rev-parse", "HEAD")
    (tmp_path / "notes").write_text("beside the package")
    assert runs.commit() == git("rev-parse", "HEAD")
    module.write_text("a = 2\n")
    assert runs.commit() == git("rev-parse", "HEAD") + " (changed)"
    monkeypatch.setenv("PATH", "")
    assert runs.commit() is None


def test_checkpoints_come_back_as_they_were(tmp_path):
    run = Run(tmp_path)
    with pytest.raises(FerlabError, match="no checkpoint"):
        run.read_checkpoint()
    network = torch.nn.Linear(2, 3)
    optimizer = torch.optim.SGD(network.parameters(), 0.1, momentum=0.9)
    network(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    run.write_checkpoint({"epoch": 3, "network": network.state_dict(), "optimizer": optimizer.state_dict()})
    back = run.read_checkpoint()
    assert back["epoch"] == 3 and torch.equal(back["network"]["weight"], network.weight)
    momentum = optimizer.state_dict()["state"][0]["momentum_buffer"]
    assert torch.equal(back["optimizer"]["state"][0]["momentum_buffer"], momentum)


class RunsCode:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (self.marker,)


def test_damaged_or_dangerous_checkpoints_are_refused(tmp_path):
    run, path, marker = Run(tmp_path), tmp_path / "checkpoint.pt", tmp_path / "code_has_run"
    run.write_checkpoint({"network": torch.ones(1000)})
    whole = path.read_bytes()
    for damaged in (whole[: len(whole) // 2], b"", b"no checkpoint"):
        path.write_bytes(damaged)
        with pytest.raises(FerlabError, match="cannot be read as a checkpoint"):
            run.read_checkpoint()
    torch.save({"network": RunsCode(str(marker))}, path)
    with pytest.raises(FerlabError, match="cannot be read as a checkpoint"):
        run.read_checkpoint()
    assert not marker.exists()


@pytest.mark.parametrize("name, content, read", [
    ("config.json", b"{", lambda run: run.config), ("config.json", b"[1]", lambda run: run.config),
    ("config.json", b'{"epochz": 3}', lambda run: run.config),
    ("environment.json", b"", lambda run: run.environment), ("environment.json", b"[]", lambda run: run.environment),
    ("environment.json", None, lambda run: run.environment),
    ("metrics.jsonl", b'{"epoch": 1}\n{"epo', lambda run: run.metrics),
    ("state_train.npz", b"PK half", lambda run: run.state()), ("state_train.npz", b"", lambda run: run.state()),
])
def test_damaged_files_of_a_run_are_told(tmp_path, name, content, read):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(FerlabError):
        read(Run(tmp_path))


def test_states_with_code_are_refused(tmp_path):
    np.savez(tmp_path / "state_train.npz", loss=np.array([RunsCode(str(tmp_path / "code_has_run"))], dtype=object))
    with pytest.raises(FerlabError):
        Run(tmp_path).state()
    assert not (tmp_path / "code_has_run").exists()


def test_only_what_ferlab_left_unfinished_is_removed(tmp_path):
    left = tmp_path / ".checkpoint.123.unfinished.pt"
    for path in (left, tmp_path / ".notes.2024.txt"):
        path.write_text("kept")
    (tmp_path / ".venv.3.10").mkdir()
    with Run(tmp_path).alone():
        assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", ".notes.2024.txt", ".venv.3.10"]


def test_a_run_directory_is_for_one_process_at_a_time(tmp_path):
    run, code = Run(tmp_path / "run"), "import sys; from ferlab.runs import Run\nwith Run(sys.argv[1]).alone(): input()"
    other = subprocess.Popen([sys.executable, "-c", code, str(run.directory)], stdin=subprocess.PIPE)
    deadline = time.monotonic() + 60
    while not (run.directory / ".lock").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.2)
    with pytest.raises(BusyError, match="run is in use by another training: wait"), run.alone():
        pass
    other.kill()
    other.wait()
    with run.alone(), Run(run.directory).alone():  # what a dead process held is free, and one process may hold it twice
        pass

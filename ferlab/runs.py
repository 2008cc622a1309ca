"""One directory a run: settings, environment, metrics of every epoch, checkpoint, and the state of every split.

    config.json         the settings (``Config``)
    environment.json    versions, commit, device, data set, label rule, noise
    data.json           of ferlab train: data set, root, options, noise; explore and evaluate load the same faces by it
    labels.csv          the labels that ferlab train --labels was given
    metrics.jsonl       one line an epoch
    checkpoint.pt       everything that resuming needs; plain tensors, loaded without running code
    warm_up.pt          the checkpoint shortly before the first split, where others set out (lessons and bench, DR-FER)
    state_train.npz ... what the explorer and the notebooks read, for each split
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import filelock
import numpy as np
import torch

from ferlab import parallel
from ferlab.config import Config
from ferlab.errors import BusyError, FerlabError, WriteError

TEMPORARY = ".*.[0-9]*.unfinished*"  # names that write_whole gives to files that are not yet whole


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Let ``write`` fill a temporary file beside ``path``, then put it in place, so that it is whole or not there.

    Raises WriteError if the disk is full or the folder is not writable; the former file then stays as it was.
    """
    if not path.name:
        raise FerlabError("A file to write has no name: give the path of a file.")
    # np.savez appends its suffix to other names, so the suffix stays last
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.unfinished{path.suffix}")
    device = path.exists() and not (path.is_file() or path.is_dir())  # such as /dev/stdout, to be written into
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(path if device else temporary)
        if not device:
            os.replace(temporary, path)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        if not isinstance(error, OSError | RuntimeError):
            raise
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error).splitlines()[0]
        raise WriteError(
            f"{path} could not be written ({reason}): free some space or choose a folder that you may write to; "
            "what was there before is kept."
        ) from error


def write_text(path: Path, text: str) -> None:
    """``text`` in ``path``, whole or not at all; in UTF-8 with the line ends of Unix everywhere."""
    write_whole(path, lambda temporary: temporary.write_text(text, encoding="utf-8", newline="\n"))


def json_object(text: str) -> dict[str, Any]:
    """The object that a JSON text holds. Raises ValueError for any other value, and for what is no JSON."""
    value = json.loads(text)
    if not isinstance(value, dict):
        raise ValueError(f"a {type(value).__name__}, not an object")
    return value


def tells_data(record: dict[str, Any]) -> bool:
    """Whether what a run's data.json holds can be of ferlab: its root, its options and its holdout, where they are."""
    return (isinstance(record.get("root"), str | None) and isinstance(record.get("options", {}), dict)
            and isinstance(record.get("holdout", 0.0), int | float))


def write_json(path: Path, value) -> None:
    """``value`` as JSON in ``path``, whole or not at all."""
    write_text(path, json.dumps(value, indent=2) + "\n")


class Run:
    """A run directory, being written or read.

    Raises FerlabError on reading a directory that is no run.
    """

    def __init__(self, directory: str | Path):
        self.directory = Path(directory)
        if self.directory.exists() and not self.directory.is_dir():
            raise FerlabError(f"{self.directory} is a file: give a run directory, such as runs/my_first.")

    @classmethod
    def open(cls, directory: str | Path) -> Run:
        """An existing run."""
        run = cls(directory)
        if not (run.directory / "config.json").is_file():
            raise FerlabError(f"{run.directory} holds no run (no config.json): make one with ferlab train --run DIR.")
        return run

    @contextmanager
    def alone(self, wait: bool = False) -> Iterator[None]:
        """Hold the directory for one process, until the block or the process ends; a thread may hold it twice.

        Removes what a killed process left half-written. Raises BusyError if another process holds it, unless it may
        ``wait``.
        """
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            lock = filelock.FileLock(self.directory / ".lock", is_singleton=True)
            lock.acquire(timeout=-1 if wait else 0)
        except filelock.Timeout as error:
            raise BusyError(f"{self.directory} is in use by another training: wait for it, or choose another --run "
                            "directory.") from error
        except OSError as error:
            raise FerlabError(f"{self.directory} cannot be written ({error.strerror}): choose a folder that you may "
                              "write to.") from error
        try:
            for unfinished in self.directory.glob(TEMPORARY):
                if unfinished.is_file():
                    unfinished.unlink(missing_ok=True)
            yield
        finally:
            lock.release()

    @property
    def config(self) -> Config:
        """The settings it was made with."""
        return self._read("config.json", lambda path: Config.from_json(path.read_text(encoding="utf-8")))

    @property
    def environment(self) -> dict:
        """Versions, commit, device, data set, label rule, noise and classes."""
        return self._read("environment.json", lambda path: json_object(path.read_text(encoding="utf-8")))

    @property
    def metrics(self) -> list[dict]:
        """One record an epoch."""
        if not (self.directory / "metrics.jsonl").exists():
            return []
        return self._read("metrics.jsonl", lambda path: [
            json_object(line) for line in path.read_text(encoding="utf-8").splitlines()])

    def write_metrics(self, records: list[dict]) -> None:
        """All records so far, whole."""
        text = "".join(json.dumps(record) + "\n" for record in records)
        write_text(self.directory / "metrics.jsonl", text)

    def state(self, split: str = "train") -> dict[str, np.ndarray]:
        """What is known of every face of a split; see ``training.Method.states``."""
        def read(path: Path) -> dict[str, np.ndarray]:
            with np.load(path, allow_pickle=False) as archive:
                return dict(archive)

        return self._read(f"state_{split}.npz", read)

    def has_state(self, split: str) -> bool:
        """Whether ``state`` has something to read of that split."""
        return (self.directory / f"state_{split}.npz").is_file()

    def write_state(self, split: str, state: dict[str, np.ndarray]) -> None:
        """Arrays by name, readable without pickle."""
        path = self.directory / f"state_{split}.npz"
        write_whole(path, lambda temporary: np.savez(temporary, **state))  # type: ignore[arg-type]

    @property
    def has_checkpoint(self) -> bool:
        return (self.directory / "checkpoint.pt").is_file()

    def same_warm_up(self, config: Config, here: dict) -> tuple[Path, dict, list[dict]] | None:
        """File, checkpoint and records of a finished warm-up that a run with these settings would only repeat, from
        among the runs beside this one; None if there is none.

        here: what its record has to tell, too: the ``environment`` and the training faces' fingerprint."""
        for kept in sorted(self.directory.parent.glob("*/warm_up.pt")):
            run = Run(kept.parent)
            with suppress(FerlabError):  # a run of another version, or a damaged one
                if here.items() <= run.environment.items() and config.same_warm_up(run.config):
                    return kept, run.read_checkpoint(kept.name), run.metrics
        return None

    def write_checkpoint(self, state: dict, name: str = "checkpoint.pt") -> None:
        """Tensors, numbers and strings in nested dicts and lists."""
        write_whole(self.directory / name, lambda temporary: torch.save(state, temporary))

    def read_checkpoint(self, name: str = "checkpoint.pt") -> dict:
        """What ``write_checkpoint`` wrote. Raises FerlabError if it is absent or cannot be read as plain tensors."""
        return self._read(name, lambda path: torch.load(path, map_location="cpu", weights_only=True))

    def _read(self, name: str, read: Callable[[Path], Any]) -> Any:
        path = self.directory / name
        if not path.is_file():
            what = f"no state of the split {name[6:-4]!r}" if name.startswith("state_") else f"no {name}"
            mend = "train it again in another directory" if self.has_checkpoint and name.endswith(".json") else (
                "train it to the end with ferlab train --run DIR")
            raise FerlabError(f"{self.directory} has {what}: {mend}.")
        try:
            return read(path)
        except Exception as error:  # whatever a damaged file makes of its reader
            kind = "a checkpoint" if name.endswith(".pt") else "part of a run"
            raise FerlabError(
                f"{path} cannot be read as {kind} ({type(error).__name__}): it is damaged or of another program; "
                "delete the run directory and train again."
            ) from error


def absolute(path: str | Path | None) -> str | None:
    """A path as a record keeps it, right from any folder; None stays None."""
    return None if path is None else str(Path(path).expanduser().resolve())


def commit() -> str | None:
    """The commit of the checkout that this code runs from, "... (changed)" if the package was edited since.

    None where the package is not part of a checkout, or without git.
    """
    def git(*command: str) -> subprocess.CompletedProcess:
        return subprocess.run(["git", "-C", str(Path(__file__).parent), *command], capture_output=True, text=True)

    try:
        if git("ls-files", "--error-unmatch", Path(__file__).name).returncode:  # in another project's checkout
            return None
        changed = git("status", "--porcelain", "--", ".").stdout
        return git("rev-parse", "HEAD").stdout.strip() + (" (changed)" if changed else "")
    except OSError:
        return None


def environment(config: Config | None = None) -> dict:
    """Versions, commit and device, for a record; also, of a training with these settings, the precision."""
    import torchvision

    import ferlab

    cuda = torch.cuda.is_available()
    return {
        "ferlab": ferlab.__version__, "commit": commit(), "python": platform.python_version(),
        "torch": torch.__version__, "torchvision": torchvision.__version__, "numpy": np.__version__,
        "platform": platform.system() + " " + platform.machine(),
        "device": torch.cuda.get_device_name() if cuda else f"CPU, {torch.get_num_threads()} threads",
    } | ({} if config is None else {"precision": parallel.precision(config)})

"""Runs a grid of trainings, one JSON a run, so that what is claimed can be measured again.

`ferlab bench --help` shows a grid file. The first seed tries every schedule; the others run each method and noise with
the schedule that was best on valid then. Every cell (method, schedule, noise, seed) becomes
results/NAME-METHOD-SCHEDULE-NOISE-SEED.json; cells whose file exists are skipped, and an interrupted one goes on from
the checkpoint of its run directory. A training that fails is recorded with its reason and settings (``failed``);
delete its file to try it again. Several processes with the same folders share the cells of a grid. Cells that differ
only after DR-FER's warm-up share it, too (``Config.same_warm_up``).
"""

from __future__ import annotations

import json
import os
import signal
import threading
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import active_children, get_context, parent_process
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from tqdm import tqdm

from ferlab.config import NOISE_KINDS, PROFILES, Config, obeyed, profile
from ferlab.errors import BusyError, FerlabError, OtherRunError, WriteError, in_one_line
from ferlab.runs import Run, json_object, write_json, write_text

if TYPE_CHECKING:
    import pandas

    from ferlab.data import FaceSet, Splits

BALANCES = 0.25, 0.5, 0.75, 1.0  # of the classes, that results are also scored with (``metrics.balanced``)

# What a row of measured numbers says of how they were measured.
SETTING = ["data", "rule", "split", "training_faces", "pixels", "noise", "rate", "method", "schedule", "profile",
           "backbone", "hardware"]
SAME_FACES = ("options", "noise", "rate", "seed")  # results alike in these, and where measured, share training faces
HOW_READ = ("rule", "skip_bad", "holdout")  # options of a grid that are no numbers of faces
QUOTED = {"system": str, "data": str, "accuracy": float, "noise": str, "rate": float, "start": str, "source": str}


def _named_settings(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(each, dict) for each in value.values())


def _pairs(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(each, list) and len(each) == 2 for each in value)


PARTS: dict[str, tuple[Callable[[Any], bool], str]] = {  # of a grid file: whether a value is of its kind, in words
    "name": (lambda value: isinstance(value, str), "a text"),
    "data": (lambda value: isinstance(value, str), 'a data set, such as "rendered"'),
    "options": (lambda value: isinstance(value, dict), 'options by name, such as {"size": 48}'),
    "profile": (lambda value: isinstance(value, str), 'a profile, such as "quick"'),
    "settings": (lambda value: isinstance(value, dict), 'settings of every training, such as {"batch_size": 64}'),
    "seeds": (lambda value: isinstance(value, list), "a list of whole numbers, such as [0, 1, 2]"),
    "noise": (_pairs, 'a list of kinds and rates, such as [["none", 0.0], ["symmetric", 0.3]]'),
    "methods": (_named_settings, 'settings by name, such as {"full": {"method": "drfer"}}'),
    "schedules": (_named_settings, 'settings by name, such as {"long": {"epochs": 74}}'),
}


@dataclass(frozen=True)
class Cell:
    """One training of a grid; ``method`` and ``schedule`` are the names that the grid gives to ``settings``."""

    grid: str
    data: str
    root: str | Path | None
    options: dict
    profile: str
    noise: str
    rate: float
    method: str
    schedule: str
    settings: dict
    seed: int

    @property
    def name(self) -> str:
        noise = self.noise if self.noise in ("none", "given") else f"{self.noise}{100 * self.rate:g}"
        return f"{self.grid}-{self.method}-{self.schedule}-{noise}-{self.seed}"

    @property
    def group(self) -> tuple[str, str, float]:
        """Cells alike in it, of the first seed, choose the schedule of those of the others."""
        return self.method, self.noise, self.rate

    def config(self) -> Config:
        """All settings of the training. Raises FerlabError or TypeError for one that does not fit."""
        return profile(self.profile, **self.settings, seed=self.seed)


def read_grid(path: Path, root: str | Path | None = None) -> list[Cell]:
    """The cells of a grid file.

    Raises FerlabError for a file that is no grid, for an unknown key, option, data set, profile, noise, method or
    setting, with its line and the known ones, and for a value that does not fit, with its line.
    """
    from ferlab import benchmarks, comparators
    from ferlab.training import own_settings

    try:
        text = path.read_text(encoding="utf-8")
        grid = json.loads(text)
    except (OSError, ValueError) as error:
        raise FerlabError(f"{path} is no grid file ({type(error).__name__}: {error}); see those in benchmarks/."
                          ) from error
    lacking = PARTS.keys() - {"options", "settings"} - grid.keys() if isinstance(grid, dict) else PARTS
    if lacking:
        raise FerlabError(f"{path} is no grid file: it lacks {', '.join(sorted(lacking))}; see those in benchmarks/.")

    def line(name: object, part: str = "") -> str:
        """Where it stands, in or after a part of the file."""
        rows = text.splitlines()
        first = next((i for i, row in enumerate(rows) if f'"{part}"' in row), 0)
        found = (i for i, row in enumerate(rows) if i >= first and json.dumps(name) in row)
        return f"{path}, line {next(found, first) + 1}"

    for part, (fits, words) in PARTS.items():
        if part in grid and not fits(grid[part]):
            raise FerlabError(f"{line(part)}: {part} is {repr(grid[part])[:60]}: give {words}.")
    cells = [
        Cell(grid["name"], grid["data"], root, grid.get("options", {}), grid["profile"], noise, rate, method,
             schedule, grid.get("settings", {}) | settings | times, seed)
        for seed in grid["seeds"] for noise, rate in grid["noise"] for method, settings in grid["methods"].items()
        for schedule, times in grid["schedules"].items()
    ]
    if not cells:
        raise FerlabError(f"{path} asks for no training: give it seeds, noise, methods and schedules.")

    for name in (grid["name"], *grid["methods"], *grid["schedules"]):
        if not name or set(name) & set("/\\") or name.startswith("."):
            raise FerlabError(f"{line(name)}: {name!r} becomes a part of file names: give a text without / and \\.")
    settings = sorted(vars(Config()).keys() - {"seed"})
    for what, part, found, known in (
        ("key", "", grid, PARTS), ("data set", "data", [grid["data"]], benchmarks.NAMES),
        ("profile", "profile", [grid["profile"]], PROFILES),
        ("option", "options", grid.get("options", {}), (*HOW_READ, "size", *benchmarks.OPTIONS)),
        ("noise", "noise", [kind for kind, _ in grid["noise"]], ("none", "given", *NOISE_KINDS)),
        ("setting", "settings", grid.get("settings", {}), settings),
        *(("setting", section, each, settings) for section in ("methods", "schedules")
          for each in grid[section].values()),
        ("method", "methods", [cell.settings.get("method", "drfer") for cell in cells], comparators.METHODS),
    ):
        for name in found:
            if name not in known:
                own = '; what a method has of its own goes into "own": {...}' if what == "setting" else ""
                raise FerlabError(f'{line(name, part)}: there is no {what} "{name}"; the known ones are '
                                  f"{', '.join(known)}{own}.")
    try:
        benchmarks.check(grid["data"], **{k: v for k, v in grid.get("options", {}).items() if k != "skip_bad"})
    except (FerlabError, TypeError) as error:
        raise FerlabError(f"{line('options')}: an option has a value that does not fit: {error}") from error
    for cell in cells:
        if type(cell.rate) not in (int, float) or not 0 <= cell.rate <= 1:
            raise FerlabError(f'{line(cell.noise, "noise")}: the rate of {cell.noise} is {cell.rate!r}: give a number '
                              "between 0 and 1.")
        if cell.rate and cell.noise in ("none", "given"):
            raise FerlabError(f'{line(cell.noise, "noise")}: {cell.noise} adds no wrong labels, but its rate is '
                              f"{cell.rate}: give 0.0.")
        if type(cell.seed) is not int or cell.seed < 0:
            raise FerlabError(f'{line("seeds")}: the seed {cell.seed!r} is no whole number from 0 on.')
        try:
            own_settings(cell.config())
        except (FerlabError, TypeError) as error:
            raise FerlabError(f'{line(cell.method, "methods")}: the method "{cell.method}" with the schedule '
                              f'"{cell.schedule}" has a value that does not fit: {error}') from error
    called = [cell.name for cell in cells]
    if twice := [cell for cell in cells if called.count(cell.name) > 1]:
        raise FerlabError(f'{line(twice[0].method, "methods")}: two trainings would be called {twice[0].name}: give '
                          "methods or schedules other names, or take out what is there twice.")
    return cells


def run_cell(cell: Cell, runs_folder: Path) -> dict:
    """Load, add noise to the training labels only, train in a run directory, score the last epoch on valid and test.

    Scores are of logits averaged over a face and its mirror image; the epochs' own, of the face alone.
    A training that fails makes a result with ``failed``, its reason, in place of scores.
    """
    import torch

    from ferlab import runs, training

    if not torch.cuda.is_available():
        torch.set_num_threads(1)  # cells run side by side
    train, splits = _faces(cell)
    settings = cell.config()
    result = {
        "name": cell.name, "data": cell.data, "options": cell.options, "rule": train.rule,
        "noise": cell.noise, "rate": cell.rate, "achieved": train.noise, "method": cell.method,
        "schedule": cell.schedule, "seed": cell.seed,
        "faces": {name: len(faces) for name, faces in splits._asdict().items() if faces is not None},
        "fingerprint": train.fingerprint, "profile": cell.profile, "settings": vars(settings),
        **training.method_record(settings),
        "environment": runs.environment(settings),
    }
    how_read = {key: cell.options[key] for key in HOW_READ if key in cell.options}
    if not Run(runs_folder / cell.name).has_checkpoint:
        write_json(runs_folder / cell.name / "data.json", {  # as ferlab train does, so that the run can be explored
            "data": cell.data, **how_read, "root": runs.absolute(cell.root),
            "noise": None if cell.noise in ("none", "given") else cell.noise, "noise_rate": cell.rate,
            "options": {key: value for key, value in cell.options.items() if key not in how_read},
        })
    try:
        trainer = training.train(settings, splits, runs_folder / cell.name, progress=False, share_warm_up=True)
    except (OtherRunError, WriteError, OSError, MemoryError, torch.OutOfMemoryError):
        raise  # of no method's making, and to be mended, such as a full disk
    except FerlabError as error:
        return result | {"failed": str(error)}
    except Exception as error:
        return result | {"failed": f"{type(error).__name__}: {error}"}
    scores = {
        name: trainer.evaluate(faces, mirror=True, balances=BALANCES)
        for name, faces in splits.with_faces().items() if name != "train"
    }
    return result | {
        "seconds": round(sum(record["seconds"] for record in trainer.records), 1),
        "scores": scores, "epochs": [_brief(record) for record in trainer.records],
    }


def _faces(cell: Cell) -> tuple[FaceSet, Splits]:
    """The faces that a cell is trained on, with its noise among their labels, and the splits with them."""
    from ferlab import benchmarks

    splits = benchmarks.load(cell.data, cell.root, **cell.options)
    if splits.train is None:
        raise FerlabError(f"{cell.data} has no training faces here: check the grid's root.")
    if splits.valid is None:
        raise FerlabError(f'{cell.data} has no validation faces, which choose the schedule: give the grid "options": '
                          '{"holdout": 0.1}.')
    train = splits.train
    if cell.noise not in ("none", "given"):
        train = train.with_noise(cell.noise, cell.rate, cell.seed)
    return train, splits._replace(train=train)


def run_cell_once(cell: Cell, results: Path, runs_folder: Path, wait: bool = False) -> dict | None:
    """Run a cell and write its result, unless that exists; None if another process did so, or is at it.

    wait: wait for a process that is at it, and take over if it ends without a result.
    """
    path = results / f"{cell.name}.json"
    try:
        with Run(runs_folder / cell.name).alone(wait):
            if path.exists():
                return None
            result = run_cell(cell, runs_folder)
            write_json(path, result)
    except BusyError:
        return None
    return result


def _brief(record: dict) -> dict:
    """An epoch's record with the numbers of valid alone, without its tables by class."""
    valid = record.get("valid", {})
    return record | {"valid": {key: valid.get(key) for key in ("accuracy", "mean_class_accuracy", "macro_f1")}}


def run_grid(
    path: str | Path, results: str | Path, root: str | Path | None = None, runs_folder: str | Path = "runs",
    jobs: int = 1, only: str = "",
) -> list[str]:
    """Run the cells of a grid file that have no result yet, ``jobs`` at a time; returns the names of those run here.

    only: cells whose name contains it; of other seeds than the first those with the schedule that did best with it, or,
    where the first has no results, all of them. Raises FerlabError for a file that is no grid, where no name contains
    ``only``, and for results that were made when the grid had other settings, or of other faces than those here.
    """
    results = Path(results)
    results.mkdir(parents=True, exist_ok=True)  # before hours of work: a place that cannot be written to
    every = read_grid(Path(path), root)
    cells = [cell for cell in every if only in cell.name]
    if not cells:
        raise FerlabError(f"No training of {path} has {only!r} in its name: give --only a part of one, such as "
                          f"{every[0].name!r}.")
    if made := _made_before(cells, results):
        _check_faces(made, cells, results)
        print(f"{len(made)} results are in {results} already", flush=True)
        for name in (result["name"] for result in made if "failed" in result):
            print(f"  {name} failed: delete {results / name}.json to try it again", flush=True)
        for name in _of_former_code(made):
            print(f"  {name} is of its method before its code was changed: delete {results / name}.json and its run to "
                  "measure again", flush=True)
    first_seed = every[0].seed
    first, rest = [c for c in cells if c.seed == first_seed], [c for c in cells if c.seed != first_seed]
    done = _run(first, results, Path(runs_folder), jobs)
    tried, waiting = {c.group for c in first}, {c.group for c in rest}
    choosing = [c for c in every if c.seed == first_seed and c.group in waiting]
    known = [result for result in _made_before(choosing, results) if "failed" not in result]
    chosen = {(r["method"], r["noise"], r["rate"]): r["schedule"] for r in best_schedules(known)}
    later = [c for c in rest if c.schedule == chosen.get(c.group, None if c.group in tried else c.schedule)]
    return done + _run(later, results, Path(runs_folder), jobs)


def _made_before(cells: list[Cell], results: Path) -> list[dict]:
    """The results that the cells have; FerlabError for one that was made with other settings than theirs."""
    from ferlab.training import method_record

    made = {result["name"]: result for result in _read_all(results)}
    for cell in (cells := [cell for cell in cells if cell.name in made]):
        result, config = made[cell.name], cell.config()
        was = [f"{key} {result[key]}" for key in ("data", "options", "profile", "rate")
               if result[key] != getattr(cell, key)]
        own = method_record(config)["method_settings"]
        for then, now in ((result["settings"], obeyed(vars(config))), (result.get("method_settings", {}), own)):
            was += [f"{key} {then[key]}" for key in now if key in then and then[key] != now[key]]
        if was:
            raise FerlabError(f"{results / cell.name}.json was made with other settings ({', '.join(was)}): delete it "
                              "and its run, or give the cell another name.")
    return [made[cell.name] for cell in cells]


def _check_faces(made: list[dict], cells: list[Cell], results: Path) -> None:
    """FerlabError if a result, the first that tells, is of other training faces or labels than the cell's are here."""
    told = next((result for result in made if "fingerprint" in result), None)
    if told is None or len(made) == len(cells):
        return  # nothing is to be added to them
    train, _ = _faces(next(cell for cell in cells if cell.name == told["name"]))
    if train.fingerprint != told["fingerprint"]:
        raise FerlabError(f"{results / told['name']}.json was measured on other training faces or labels than are "
                          "here: check --root, or give other --results and --runs.")


def _of_former_code(made: list[dict]) -> list[str]:
    """The names of the results whose method had another code then."""
    from ferlab.training import method_source

    return [result["name"] for result in made
            if "method_source" in result and result["method_source"] != method_source(result["settings"]["method"])]


def _run(cells: list[Cell], results: Path, runs_folder: Path, jobs: int) -> list[str]:
    done: list[str] = []
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn"), initializer=_end_with_parent) as pool, (
            _ended_by_interruption(pool)):
        for patient in (False, True):  # first what nobody is at
            left = [cell for cell in cells if not (results / f"{cell.name}.json").exists()]
            futures = [pool.submit(run_cell_once, cell, results, runs_folder, patient) for cell in left]
            for future in _as_completed(futures, left, runs_folder):
                try:
                    result = future.result()
                except BrokenProcessPool as error:
                    raise FerlabError("A training was killed, by hand or for want of memory: the same command goes on "
                                      "from its last epoch; fewer --jobs need less memory.") from error
                except Exception:
                    pool.shutdown(wait=False, cancel_futures=True)  # those that run end, those that wait do not begin
                    raise
                if result is None:
                    continue
                done.append(result["name"])
                said = f"failed: {result['failed']}" if "failed" in result else ", ".join(
                    [f"{k} {v['accuracy']:.3f}" for k, v in result["scores"].items()] + [f"{result['seconds']:.0f} s"])
                tqdm.write(f"{len(done)}/{len(cells)} {result['name']}: {said}")
    return done


def _as_completed(futures: list[Future], cells: list[Cell], runs_folder: Path) -> Iterator[Future]:
    """The futures of the cells as they end, under a bar (on a terminal) of all their epochs."""
    epochs = [cell.config().epochs for cell in cells]
    pending = set(futures)
    with tqdm(total=sum(epochs), desc=f"{len(cells)} trainings", unit="epoch", disable=None if cells else True) as bar:
        while pending:
            ended, pending = wait(pending, timeout=2, return_when=FIRST_COMPLETED)
            yield from ended
            bar.n = sum(whole if future.done() else _epochs_done(runs_folder / cell.name)
                        for future, cell, whole in zip(futures, cells, epochs, strict=True))
            bar.refresh()


def _epochs_done(directory: Path) -> int:
    """Epochs of a run so far."""
    try:
        return (directory / "metrics.jsonl").read_text(encoding="utf-8").count("\n")
    except OSError:
        return 0


@contextmanager
def _ended_by_interruption(pool: ProcessPoolExecutor) -> Iterator[None]:
    """End the pool's workers at Ctrl+C, also where that reached this process alone: else they train to the end."""
    try:
        yield
    except KeyboardInterrupt:
        pool.shutdown(wait=False, cancel_futures=True)
        for worker in active_children():
            worker.terminate()
        raise


def _end_with_parent() -> None:
    """Let a worker end when the process that started it does, however that ended, and at Ctrl+C as by a kill."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    parent = parent_process()
    assert parent is not None

    def wait() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()
    warnings.formatwarning = in_one_line


def best_schedules(results: list[dict]) -> list[dict]:
    """The results of each method and noise with the schedule that had the best valid accuracy on the first seed.

    Every ``Place`` chooses for itself.
    """
    alike: dict[tuple, list[dict]] = {}
    for r in results:
        alike.setdefault((*where(r), r["method"], r["noise"], r["rate"]), []).append(r)
    chosen = []
    for mine in alike.values():
        first = min(r["seed"] for r in mine)
        seeds = {r["schedule"]: sum(each["schedule"] == r["schedule"] for each in mine) for r in mine}
        best = max((r for r in mine if r["seed"] == first),  # of equally good ones that which went on with other seeds
                   key=lambda r: (r["scores"]["valid"]["accuracy"], seeds[r["schedule"]]))
        chosen += [r for r in mine if r["schedule"] == best["schedule"]]
    return chosen


class Place(NamedTuple):
    """Where a method was measured: results of different places have tables of their own."""

    data: str  # of "folder" the grid's name, as such data has none
    rule: str
    faces: int  # to train on
    profile: str
    backbone: str
    size: int  # pixels a side
    device: str


def where(result: dict) -> Place:
    """The place of a result; settings that are younger than it had their defaults."""
    settings = vars(Config()) | result["settings"]
    data = _grid(result) if result["data"] == "folder" else result["data"]
    return Place(data, result["rule"], result["faces"]["train"], result["profile"], settings["backbone"],
                 settings["size"], result["environment"]["device"].split(",")[0])


def _grid(result: dict) -> str:
    """The name of the grid that a result is of."""
    return result["name"].split(f"-{result['method']}-")[0]


def machine(device: str) -> str:
    """A device in a word: "CPU", or a GPU's model, such as "H100"."""
    return next(iter(device.removeprefix("NVIDIA ").split()), device)


def trained_on(result: dict) -> str:
    """How many faces of how many pixels, which network, on which machine, as in "8,000 (48 px), small, CPU"."""
    place = where(result)
    return f"{place.faces:,} ({place.size} px), {place.backbone}, {machine(place.device)}"


def named(data: str, rule: str) -> str:
    """A data set with its label rule, where it has one."""
    return f"{data} ({rule})" if rule else data


def noise_name(noise: str, rate: float) -> str:
    """A kind of noise with its rate, where it has one."""
    return f"{noise} {100 * rate:g}%" if rate else noise


def shown_split(results: list[dict]) -> str:
    """The split whose scores are shown: test, or valid where that is held back."""
    return "test" if all("test" in r["scores"] for r in results) else "valid"


def read_results(folder: str | Path) -> list[dict]:
    """All results of a folder and of those in it, one for each kind of machine, without those that failed.

    Sorted by their paths. ``read_failures`` tells the others. Raises FerlabError for a file that is no result, for two
    results on the same data, noise, seed and machine whose training faces or labels differ, and for two that would be
    seeds of one row though they differ in more, or in nothing.
    """
    results = [result for result in _read_all(folder, pattern="**/*.json") if "failed" not in result]
    taught: dict[tuple, dict] = {}
    rows: dict[tuple, list[dict]] = {}
    for result in results:
        row = rows.setdefault((*where(result), *(result[key] for key in ("method", "schedule", "noise", "rate"))), [])
        for other in row:
            then, now = _as_measured(other), _as_measured(result)
            if differ := sorted(key for key in then.keys() & now.keys() if then[key] != now[key]):
                raise FerlabError(f"{other['name']} and {result['name']} would be seeds of one row, but differ in "
                                  f"{', '.join(differ)}: measure one again, or give its method another name.")
            if other["seed"] == result["seed"]:
                raise FerlabError(f"{other['name']} and {result['name']} are the same training: delete one of them.")
        row.append(result)
        if "fingerprint" in result:  # older ones do not tell
            other = taught.setdefault((*where(result), *(json.dumps(result[key]) for key in SAME_FACES)), result)
            if other["fingerprint"] != result["fingerprint"]:
                raise FerlabError(f"{other['name']} and {result['name']} were trained on different faces or labels and "
                                  "cannot be compared: delete one of them and measure it again.")
    return results


def _as_measured(result: dict) -> dict:
    """What the seeds of one row have in common: options, precision, the settings that their method obeys or has, and
    its code."""
    precision = {key: value for key, value in result["environment"].items() if key == "precision"}
    code = {"the method's code": result["method_source"]} if "method_source" in result else {}
    return (obeyed(result["settings"]) | result.get("method_settings", {}) | precision | code
            | {"options": result["options"]})


def read_failures(folder: str | Path) -> dict[str, str]:
    """{name of a cell whose training failed: why}."""
    return {result["name"]: result["failed"] for result in _read_all(folder, pattern="**/*.json") if "failed" in result}


def read_audits(folder: str | Path) -> list[dict]:
    """What ``benchmarks/audit.py`` wrote to a folder, in the order of the names; [] where there is none."""
    return _read_all(folder, AUDIT)


def _table(*numbers: str, may: dict | None = None, **holds: dict) -> dict:
    """The JSON schema of an object that holds these numbers and values, and may hold others."""
    needed = dict.fromkeys(numbers, {"type": "number"}) | holds
    return {"type": "object", "required": list(needed), "properties": needed | (may or {})}


TEXT, TRUTH = {"type": "string"}, {"type": "boolean"}
SCORE = _table("accuracy", "mean_class_accuracy")
SCORES = _table("accuracy", "mean_class_accuracy",
                may={"balanced": _table(**{str(balance): SCORE for balance in BALANCES})})
LAST_SPLIT = dict.fromkeys(("auroc", "right_if_wrong", "recovered", "right_after"), {"type": ["number", "null"]})
TRAINED: dict[str, Any] = {
    **dict.fromkeys(("name", "data", "rule", "noise", "method", "schedule", "profile"), TEXT),
    "rate": {"type": "number"}, "seed": {"type": "integer"}, "options": {"type": "object"},
    "faces": _table(train={"type": "integer"}), "environment": _table(device=TEXT),
    "settings": _table(method=TEXT, backbone=TEXT, split=TEXT, masked_modelling=TRUTH, contrastive=TRUTH,
                       relabelling=TRUTH),
}
RESULT = {"anyOf": [
    _table(**TRAINED, failed=TEXT),
    _table("seconds", **TRAINED, scores=_table(valid=SCORES) | {"additionalProperties": SCORES},
           epochs={"type": "array", "items": _table(may={"split": _table(may=LAST_SPLIT)})}),
]}
FOUND = _table("auroc", "average_precision")
AUDIT = _table(
    "faces", "wrong_share", gain_over_cleanlabs_best=FOUND, detection=_table(**{"audit score": FOUND}),
    right_if_wrong=_table("network's best but the given", "audit's suggestion"),
    environment=_table(dataset=TEXT, rule=TEXT, noise={"type": ["string", "null"]}))


def _read_all(folder: str | Path, schema: dict = RESULT, pattern: str = "*.json") -> list[dict]:
    """The records of a folder. Raises FerlabError for one that lacks what tables are made of."""
    from jsonschema import Draft202012Validator, ValidationError

    check = Draft202012Validator(schema).validate
    records = []
    for path in sorted(Path(folder).glob(pattern)):
        if (path.parent / "config.json").exists() or path.name.startswith("."):  # a run directory; not whole yet
            continue
        try:
            record = json_object(path.read_text(encoding="utf-8"))
            check(record)
            records.append(record)
        except (OSError, ValueError, ValidationError) as error:
            raise FerlabError(f"{path} is no result of ferlab: move it elsewhere; if it was one, measure it "
                              "again.") from error
    return records


def interval(values) -> tuple[float, float]:
    """Mean and half-width of the 95 % interval (Student's t); the half-width is nan for a single value."""
    from scipy.stats import t

    values = np.asarray(values, float)
    n = len(values)
    half = t.ppf(0.975, n - 1) * values.std(ddof=1) / np.sqrt(n) if n > 1 else float("nan")
    return float(values.mean()), float(half)


def frame(results: list[dict]) -> pandas.DataFrame:
    """What was measured, a row for each setting (``SETTING``) and split; only results of ``run_cell``, nothing quoted.

    Columns beside those of SETTING: seeds, how many; accuracy, mean_class_accuracy, auroc (of finding wrong labels at
    the last split), right_if_wrong, right_after, in [0, 1], and seconds: the mean over the seeds; each of them with
    ``_half``, the half-width of its 95 % interval, nan for one seed. Results with other settings that their method
    obeys, or other numbers of faces, never share a row. Raises FerlabError for a result that does not say how it was
    measured.
    """
    import pandas

    measured = []
    for result in results:
        if missing := sorted({"scores", "settings", "environment", "seed", "faces"} - set(result)):
            raise FerlabError(f"{result.get('name', 'A row')} was not measured by ferlab bench: it lacks "
                              f"{', '.join(missing)}; quoted numbers have a table of their own (bench.quoted).")
        last: dict = next((e["split"] for e in reversed(result["epochs"]) if "split" in e), {})
        settings = obeyed(result["settings"])
        for split, score in result["scores"].items():
            about = {key: result[key] for key in SETTING if key in result}
            place = where(result)
            about |= {"split": split, "training_faces": place.faces, "pixels": place.size,
                      "backbone": place.backbone, "hardware": place.device,
                      "same": json.dumps([settings, result["faces"]], sort_keys=True)}
            values = {key: score[key] for key in ("accuracy", "mean_class_accuracy")}
            values |= {key: last.get(key) for key in ("auroc", "right_if_wrong", "right_after")}
            measured.append(about | values | {"seconds": result["seconds"]})
    columns = ["accuracy", "mean_class_accuracy", "auroc", "right_if_wrong", "right_after", "seconds"]
    rows = []
    for key, mine in pandas.DataFrame(measured, columns=[*SETTING, "same", *columns]).groupby(
            [*SETTING, "same"], sort=False):
        row = dict(zip(SETTING, key)) | {"seeds": len(mine)}
        for name in columns:
            row[name], row[f"{name}_half"] = interval(mine[name])
        rows.append(row)
    halves = [column for name in columns for column in (name, f"{name}_half")]
    return pandas.DataFrame(rows, columns=[*SETTING, "seeds", *halves])


def quoted(path: str | Path) -> pandas.DataFrame:
    """What papers report, a row a number: columns as in ``QUOTED``; nothing of it was measured here.

    accuracy: in per cent; noise, rate: put into the training labels; start: "pretrained" or "scratch".
    Raises FerlabError for a file that is no such list.
    """
    import pandas

    try:
        rows = json.loads(Path(path).read_text(encoding="utf-8"))
        for row in rows:
            if {key: type(value) for key, value in row.items()} != QUOTED or not 0 < row["accuracy"] < 100:
                raise ValueError(f"row {row}")
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise FerlabError(f"{path} is no list of quoted numbers ({error}): see benchmarks/quoted.json.") from error
    return pandas.DataFrame(rows, columns=list(QUOTED))


def quoted_table(rows: pandas.DataFrame) -> str:
    """What papers report as Markdown, a row a system: on labels as they are, and with symmetric noise among them."""
    rows = rows[rows.start == "pretrained"]
    columns = rows[["data", "noise", "rate"]].drop_duplicates().sort_values(["rate", "data"]).values.tolist()
    lines = ["| quoted, not measured here | " + " | ".join(
        data if noise == "none" else f"{data}, {rate:.0%} wrong" for data, noise, rate in columns) + " |",
        "|---" * (1 + len(columns)) + "|"]
    for system, mine in rows.groupby("system", sort=False):
        found = {(r.data, r.noise, r.rate): f"{r.accuracy:.2f}" for r in mine.itertuples()}
        lines.append(f"| {system} | " + " | ".join(found.get(tuple(column), "-") for column in columns) + " |")
    return "\n".join(lines)


def table(results: list[dict], split: str) -> str:
    """A Markdown table of one place's scores on a split: a row for each noise and method, the most accurate first.

    Numbers are percentages: mean over the seeds and half-width of the 95 % interval where there are several. Behind the
    accuracies what of the gap to true labels is closed (``gap_closed``; in brackets the least and the most of several
    seeds), then of the last split into clean and noisy: AUROC of finding the wrong labels; share of the relabelled
    wrong labels that are right now, and of all wrong labels; share of all training labels that are right now.
    """
    lines = [
        "| label noise | method | schedule | seeds | accuracy | mean-class | gap closed | noise AUROC "
        "| relabelled right | wrong ones mended | labels right after | minutes |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    closed = gap_closed(results, split)
    for (_, noise, rate), methods in _by_labels(best_schedules(results)).items():
        for method, mine in sorted(methods.items(), key=lambda each: -_mean_accuracy(each[1], split)):
            scores = [r["scores"][split] for r in mine]
            splits = [[e["split"] for e in r["epochs"] if "split" in e][-1:] for r in mine]
            found = [s for last in splits for s in last]
            share = closed.get((method, noise, rate))
            cells = [
                noise_name(noise, rate), method, mine[0]["schedule"], str(len(mine)),
                _percent([s["accuracy"] for s in scores]), _percent([s["mean_class_accuracy"] for s in scores]),
                "-" if share is None else str(share),
                *(_percent([s.get(k) for s in found]) for k in ("auroc", "right_if_wrong", "recovered", "right_after")),
                f"{np.mean([r['seconds'] for r in mine]) / 60:.1f}" + " b" * any(map(_half_on_cpu, mine)),
            ]
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def tables(results: list[dict]) -> str:
    """A table for each ``Place``, of the test split, or of valid where that is held back; and the command that makes
    its first number again."""
    parts = []
    for place in sorted(set(map(where, results))):
        mine = [r for r in results if where(r) == place]
        split = shown_split(mine)
        half = " (b: in bfloat16)" if any(map(_half_on_cpu, mine)) else ""
        parts.append(f"`{named(place.data, place.rule)}`, {place.faces:,} training faces of {place.size} pixels, "
                     f"{split} split, profile `{place.profile}`, network `{place.backbone}`, {place.device}; "
                     f"last epoch; of several schedules the one that was best on valid; minutes as trained{half}:\n\n"
                     f"{table(mine, split)}\n\n{_again(best_schedules(mine)[0])}")
    return "\n\n".join(parts)


def _again(result: dict) -> str:
    """The command that makes such a result again."""
    grid = _grid(result)
    path = f"benchmarks/{grid}.json" if Path(f"benchmarks/{grid}.json").is_file() else "GRID.json"
    roots = {"rendered": "", "fer2013": " --root ferplus.zip", "folder": " --root FOLDER"}
    root = roots.get(result["data"], f" --root {result['data']}.zip")
    return (f"A number again: `ferlab bench {path}{root} --results again --runs again --only "
            f'"{grid}-{result["method"]}-{result["schedule"]}-"`, and so with the others\' grid, method and schedule.')


def _half_on_cpu(result: dict) -> bool:
    """Whether a CPU trained it in half precision, as not every CPU does."""
    return where(result).device == "CPU" and result["environment"].get("precision") == "bfloat16"


class Gap(NamedTuple):
    """What was closed of a gap: 1 = as good as plain training on true labels, 0 = no better than plain training on the
    noisy ones, negative = worse."""

    share: float  # of the mean accuracies
    least: float  # of the seeds, each by itself
    most: float
    seeds: int

    def __str__(self) -> str:
        """In per cent, with the seeds' range where there are several, as in "85 (84 to 87)"."""
        several = f" ({100 * self.least:.0f} to {100 * self.most:.0f})" if self.seeds > 1 else ""
        return f"{100 * self.share:.0f}{several}"


def gap_closed(results: list[dict], split: str) -> dict[tuple[str, str, float], Gap]:
    """{(method, noise, rate): (method - plain) / (plain on noise "none" - plain)} of one place's accuracies.

    Over the seeds that all three have in common; nothing where true labels are no better with one of them.
    """
    found: dict[tuple[str, str, float], dict[int, float]] = {}
    for r in best_schedules(results):
        found.setdefault((r["method"], r["noise"], r["rate"]), {})[r["seed"]] = r["scores"][split]["accuracy"]
    closed = {}
    for (method, noise, rate), mine in sorted(found.items()):
        three = mine, found.get(("plain", noise, rate), {}), found.get(("plain", "none", 0.0), {})
        seeds = set.intersection(*map(set, three))
        if rate and method != "plain" and seeds:
            accuracy, plain, ceiling = (np.array([each[seed] for seed in seeds]) for each in three)
            if (ceiling > plain).all():
                shares = (accuracy - plain) / (ceiling - plain)
                closed[method, noise, rate] = Gap((accuracy - plain).mean() / (ceiling - plain).mean(), shares.min(),
                                                  shares.max(), len(seeds))
    return closed


def summary(results: list[dict]) -> str:
    """A Markdown table with a row for each kind of labels that both DR-FER and plain training met in one place.

    Of several places that with most of their seeds, or else with most methods, is in the table; the others are in one
    to be opened. Accuracies in per cent on the test split, or on valid where that is held back; in brackets the mean
    over classes; of the other methods and of DR-FER's variants with all parts, each that with most seeds that was best
    on valid (of how many, and its schedule). Bold: the highest accuracy. The gain over plain training is of pairs of
    seeds, with its 95 % interval where there are several; true labels are plain training on them. Below, the command
    that makes DR-FER's first number again.
    """
    head = ("| data (rule), split | training faces, network, machine | label noise | plain | best other | DR-FER "
            "| DR-FER above plain | true labels |\n" + "|---" * 8 + "|")
    rows: dict[tuple, list[tuple[tuple, str, str]]] = {}
    chosen = best_schedules(results)
    for (place, noise, rate), methods in _by_labels(chosen).items():
        here = [r for r in chosen if where(r) == place]
        split = shown_split(here)
        three = plain, other, whole = _plain_other_whole(methods)
        if not whole or not plain:
            continue
        best = max((mine for mine in three if mine), key=lambda mine: _mean_accuracy(mine, split))
        at = {r["seed"]: r["scores"][split]["accuracy"] for r in plain}
        gains = [r["scores"][split]["accuracy"] - at[r["seed"]] for r in whole if r["seed"] in at]
        ceiling = [r for r in here if (r["method"], r["noise"]) == ("plain", "none") and noise != "none"]
        cells = [
            f"{named(place.data, place.rule)}, {split}",
            trained_on(plain[0]),
            noise_name(noise, rate),
            f"{_score(plain, split, plain is best)}, {plain[0]['schedule']}",
            *(f"{_score(mine, split, mine is best)} {mine[0]['method']} (of {count}), {mine[0]['schedule']}"
              if mine else "-" for mine, count in ((other, len(_others(methods))), (whole, len(_wholes(methods))))),
            _percent(gains), _score(ceiling, split) if ceiling else "-",
        ]
        evidence = len(plain) + len(whole), len(methods)
        rows.setdefault((place.data, place.rule, noise, rate), []).append(
            (evidence, "| " + " | ".join(cells) + " |", _again(whole[0])))
    if not rows:
        return '(To compare with, there must be a method called "plain" and DR-FER with all its parts.)'
    alike = [rows[key] for key in sorted(rows)]
    first = [max(each, key=lambda row: row[0]) for each in alike]
    others = [row for each, shown in zip(alike, first) for _, row, _ in each if row != shown[1]]
    text = "\n".join([head, *(row for _, row, _ in first)]) + f"\n\n{first[0][2]}"
    if others:
        text += ("\n\n<details>\n<summary>The same with other networks, numbers of faces and machines</summary>\n\n"
                 + "\n".join([head, *others]) + "\n\n</details>")
    return text


def _by_labels(results: list[dict]) -> dict[tuple, dict[str, list[dict]]]:
    """{(``where``, noise, rate): {method: its results}}, sorted."""
    found: dict[tuple, dict[str, list[dict]]] = {}
    for r in sorted(results, key=lambda r: (where(r), r["noise"], r["rate"])):
        found.setdefault((where(r), r["noise"], r["rate"]), {}).setdefault(r["method"], []).append(r)
    return found


def _plain_other_whole(methods: dict[str, list[dict]]) -> tuple[list[dict], list[dict], list[dict]]:
    """The results of plain training, of the best other method, and of the best variant of DR-FER with all its parts.

    [] where there is none; best: of those with most seeds that with the highest accuracy on valid.
    """
    return (methods.get("plain", []), max(_others(methods), key=_standing, default=[]),
            max(_wholes(methods), key=_standing, default=[]))


def _others(methods: dict[str, list[dict]]) -> list[list[dict]]:
    """The results of each method that is neither plain training nor DR-FER."""
    return [mine for name, mine in methods.items() if name != "plain" and mine[0]["settings"]["method"] != "drfer"]


def _wholes(methods: dict[str, list[dict]]) -> list[list[dict]]:
    """The results of each variant of DR-FER that has all of its parts."""
    return [mine for mine in methods.values() if _is_whole(mine[0]["settings"])]


def _is_whole(settings: dict) -> bool:
    """Whether these are settings of DR-FER with all of its parts."""
    return (settings["method"] == "drfer" and settings["split"] != "off"
            and all(settings[part] for part in ("masked_modelling", "contrastive", "relabelling")))


def _standing(results: list[dict]) -> tuple[int, float]:
    """How many seeds a method was trained with, and its accuracy on valid."""
    return len(results), _mean_accuracy(results, "valid")


def _mean_accuracy(results: list[dict], split: str) -> float:
    return float(np.mean([r["scores"][split]["accuracy"] for r in results]))


def _score(results: list[dict], split: str, bold: bool = False) -> str:
    """Mean accuracy of a method's seeds, with its interval, and in brackets that over classes."""
    accuracy, mean_class = (_percent([r["scores"][split][key] for r in results])
                            for key in ("accuracy", "mean_class_accuracy"))
    mark = "**" if bold else ""
    return f"{mark}{accuracy}{mark} ({mean_class.split(' ')[0]})"


def balance_table(results: list[dict]) -> str:
    """A Markdown table of accuracies in per cent, in brackets means over classes, under each balance of the classes.

    Of plain training, the best other method and the best DR-FER (as in ``summary``) among the results that tell them;
    on the test split, or on valid where that is held back.
    """
    balances = ["0", *map(str, BALANCES)]
    lines = ["| data (rule), training faces, network, machine | label noise | method | balance "
             + " | ".join(balances) + " |", "|---" * (3 + len(balances)) + "|"]
    told = [r for r in best_schedules(results) if "balanced" in r["scores"][shown_split([r])]]
    for (place, noise, rate), methods in _by_labels(told).items():
        for mine in filter(None, _plain_other_whole(methods)):
            split = shown_split(mine)
            scores = [{"0": r["scores"][split]} | r["scores"][split]["balanced"] for r in mine]
            cells = [_score([{"scores": each} for each in scores], balance) for balance in balances]
            about = f"{named(place.data, place.rule)}, {split}, {trained_on(mine[0])}"
            lines.append("| " + " | ".join([about, noise_name(noise, rate), mine[0]["method"], *cells]) + " |")
    return "\n".join(lines)


def audit_table(audits: list[dict]) -> str:
    """A Markdown table of what ``benchmarks/audit.py`` compared, in per cent.

    AUROC and average precision of finding the wrong labels, by cleanlab's best score for each and by the audit's; and
    the share of the wrong labels set right by the network's likeliest other class, and by the audit's suggestion.
    """
    lines = ["| data (rule) | label noise | faces | wrong | AUROC: cleanlab, audit "
             "| average precision: cleanlab, audit | set right: network, audit |", "|---|---|---|---|---|---|---|"]
    for audit in audits:
        about, ours, right = audit["environment"], audit["detection"]["audit score"], audit["right_if_wrong"]
        gain = audit["gain_over_cleanlabs_best"]
        pairs = [(ours[kind] - gain[kind], ours[kind]) for kind in ("auroc", "average_precision")]
        pairs.append((right["network's best but the given"], right["audit's suggestion"]))
        both = [[f"{100 * each:.1f}" for each in pair] for pair in pairs]
        both = [[f"**{each}**" if each == max(pair, key=float) and len({*pair}) > 1 else each for each in pair]
                for pair in both]
        cells = [named(about["dataset"], about["rule"]), about["noise"] or "as given", f"{audit['faces']:,}",
                 _percent([audit["wrong_share"]]), *map(", ".join, both)]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def speed_table(path: str | Path) -> str:
    """A Markdown table of what ``make bench`` measured, a row a group, from the JSON file written by
    benchmarks/conftest.py: each system's median time, in brackets how many times the fastest's of its group.

    Raises FerlabError for another file.
    """
    try:
        record = json_object(Path(path).read_text(encoding="utf-8"))
        on = record["environment"]
        threads = on["device"].removeprefix("CPU, ")
        lines = [f"| median times on a CPU ({on['processor']}, {threads}, {on['precision']}, torch {on['torch']}) "
                 "| in brackets: times the fastest |", "|---|---|"]
        for group, systems in record["groups"].items():
            fastest = min(measured["seconds"] for measured in systems.values())
            cells = []
            for system, measured in systems.items():
                seconds = measured["seconds"]
                times = f" ({_digits(seconds / fastest)})" if seconds > fastest else ""
                also = "".join(f", {value} {what}" for what, value in measured.items() if what != "seconds")
                cells.append(f"{system} {_duration(seconds)}{times}{also}")
            lines.append(f"| {group} | " + "; ".join(cells) + " |")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise FerlabError(f"{path} is no record of speeds: make it again with python -m pytest "
                          f"benchmarks/test_speed.py --benchmark-json {path}.") from error
    return "\n".join(lines)


def _duration(seconds: float) -> str:
    return f"{_digits(seconds)} s" if seconds >= 1 else f"{_digits(1000 * seconds)} ms"


def _digits(value: float) -> str:
    """Two digits or more: 1.4, 14, 140."""
    return f"{value:.{0 if value >= 10 else 1}f}"


def update_readme(readme: str | Path, parts: dict[str, str]) -> None:
    """Put each text between its markers <!-- NAME --> and <!-- /NAME -->. Raises FerlabError without the markers."""
    path = Path(readme)
    text = path.read_text(encoding="utf-8")
    for name, part in parts.items():
        before, opening, rest = text.partition(f"<!-- {name} -->\n")
        _, closing, after = rest.partition(f"<!-- /{name} -->")
        if not (opening and closing):
            raise FerlabError(f"{path} lacks the lines <!-- {name} --> and <!-- /{name} -->: add them.")
        text = before + opening + part + "\n" + closing + after
    write_text(path, text)


def _percent(values: list[float | None]) -> str:
    known = [v for v in values if v is not None]
    if not known:
        return "-"
    mean, half = interval(known)
    return f"{100 * mean:.1f}" + (f" ± {100 * half:.1f}" if len(known) > 1 else "")

"""Grids of trainings: their cells, resuming, the choice of schedules, and the tables."""

import json
import re
import subprocess
import sys
import time
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import write_toy_faces

from ferlab import benchmarks, training
from ferlab.bench import (
    SETTING,
    _made_before,
    audit_table,
    balance_table,
    best_schedules,
    frame,
    gap_closed,
    interval,
    noise_name,
    quoted,
    quoted_table,
    read_audits,
    read_failures,
    read_grid,
    read_results,
    run_cell,
    run_grid,
    shown_split,
    speed_table,
    summary,
    table,
    tables,
    update_readme,
    where,
)
from ferlab.config import obeyed, profile
from ferlab.errors import BusyError, FerlabError, WriteError
from ferlab.explorer import judged_faces
from ferlab.runs import Run
from ferlab.training import method_source

ROOT = Path(__file__).parents[1]
QUOTED = ROOT / "benchmarks" / "quoted.json"
SPEED = ROOT / "benchmarks" / "speed.json"
GRIDS = sorted(set((ROOT / "benchmarks").glob("*.json")) - {QUOTED, SPEED})


def grid_file(folder, **changes):
    grid = {
        "name": "tiny", "data": "rendered", "options": {"size": 32, "train": 48, "valid": 16, "test": 16},
        "profile": "smoke", "seeds": [0, 1], "noise": [["symmetric", 0.3]], "methods": {"plain": {"method": "plain"}},
        "schedules": {"one": {"epochs": 1}, "two": {"epochs": 2}},
    } | changes
    path = folder / "tiny.json"
    path.write_text(json.dumps(grid))
    return path


def result(method="plain", schedule="one", seed=0, valid=0.5, test=0.5, noise="symmetric", split=None):
    scores = {name: {"accuracy": a, "mean_class_accuracy": a / 2} for name, a in (("valid", valid), ("test", test))}
    return {"name": f"tiny-{method}-{schedule}-{noise}30-{seed}", "data": "rendered", "rule": "truth", "noise": noise,
            "rate": 0.3, "method": method, "schedule": schedule, "options": {}, "seed": seed,
            "scores": scores, "seconds": 60, "epochs": [{"split": split}] if split else [{}], "profile": "quick",
            "environment": {"device": "CPU, 1 threads"}, "faces": {"train": 6, "test": 2}, "settings": {}}


def measured(**changes):
    """A result with the settings that it was measured with."""
    made = result(**changes)
    return made | {"settings": vars(profile("quick", epochs=1, seed=made["seed"]))}


def cells(table):
    """Of each row below the table's head."""
    lines = [line for line in table.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines[2:]]


@pytest.fixture
def ran(monkeypatch):
    """(schedule, seed) of the cells that a grid runs, which are not trained; "two" does better than "one" on valid."""
    cells = []
    monkeypatch.setattr("ferlab.bench.ProcessPoolExecutor", Inline)
    monkeypatch.setattr("ferlab.bench._as_completed", lambda futures, *_: futures)

    def run(cell, results, runs_folder, wait):
        cells.append((cell.schedule, cell.seed))
        made = result(schedule=cell.schedule, seed=cell.seed, valid={"one": 0.4, "two": 0.6}[cell.schedule]) | {
            "name": cell.name, "settings": vars(cell.config()), "options": cell.options, "profile": cell.profile}
        if cell.settings.get("learning_rate") == 1e30:
            made["failed"] = "no number"
        (results / f"{cell.name}.json").write_text(json.dumps(made))
        return made

    monkeypatch.setattr("ferlab.bench.run_cell_once", run)
    return cells


def test_a_grid_tries_schedules_on_the_first_seed_and_is_not_run_twice(tmp_path, ran):
    path = grid_file(tmp_path)
    assert len(run_grid(path, tmp_path / "results")) == 3
    assert ran == [("one", 0), ("two", 0), ("two", 1)]
    assert run_grid(path, tmp_path / "results") == []
    assert len(read_results(tmp_path / "results")) == 3
    (tmp_path / "results" / "tiny-plain-two-symmetric30-1.json").unlink()  # asked for alone, it is as chosen before
    assert run_grid(path, tmp_path / "results", only="symmetric30-1") == ["tiny-plain-two-symmetric30-1"]
    assert len(run_grid(path, tmp_path / "elsewhere", only="symmetric30-1")) == 2  # nothing there has chosen


class Inline:
    """A pool that runs what it is given at once."""

    def __init__(self, *_, **__):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def submit(self, function, *arguments):
        value = function(*arguments)
        return type("Done", (), {"result": lambda self: value})()


def test_one_real_cell_records_data_noise_settings_and_machine(tmp_path):
    path = grid_file(tmp_path, seeds=[3], schedules={"one": {"epochs": 1}})
    assert run_grid(path, tmp_path / "results", runs_folder=tmp_path / "runs") == ["tiny-plain-one-symmetric30-3"]
    (made,) = read_results(tmp_path / "results")
    assert made["faces"] == {"train": 48, "valid": 16, "test": 16} and "achieved 29" in made["achieved"]
    balances = made["scores"]["test"]["balanced"]
    assert list(balances) == ["0.25", "0.5", "0.75", "1.0"] and all(0 <= s["accuracy"] <= 1 for s in balances.values())
    environment = Run(tmp_path / "runs" / made["name"]).environment
    assert made["method_settings"] == {} and made["fingerprint"] == environment["fingerprint"]
    assert made["settings"]["seed"] == 3 and made["settings"]["epochs"] == 1 and made["environment"]["torch"]
    assert made["scores"]["test"]["faces"] == 16 and len(made["epochs"]) == 1


def test_the_run_of_a_cell_can_be_explored(tmp_path):
    path = grid_file(tmp_path, seeds=[0], schedules={"one": {"epochs": 1}}, noise=[["annotators", 0.3]])
    (name,) = run_grid(path, tmp_path / "results", runs_folder=tmp_path / "runs")
    (made,) = read_results(tmp_path / "results")
    faces = judged_faces(tmp_path / "runs" / name)
    assert len(faces) == 48 and faces.noise == made["achieved"]


def test_a_training_that_fails_is_recorded_and_does_not_stop_the_grid(tmp_path, ferlab, monkeypatch):
    schedules = {"wild": {"epochs": 3, "learning_rate": 1e30}, "one": {"epochs": 1},
                 "deep": {"epochs": 1, "backbone": "resnet18", "batch_size": 1}}
    path = grid_file(tmp_path, seeds=[3], schedules=schedules)
    monkeypatch.chdir(tmp_path)
    outcome = ferlab("bench", path, "--results", tmp_path / "results")
    assert outcome.code == 2 and "2 of 3 trainings failed" in outcome.err and "wild" in outcome.err
    (made,) = read_results(tmp_path / "results")
    failed = read_failures(tmp_path / "results")
    assert made["schedule"] == "one" and len(failed) == 2
    assert "not a number" in failed["tiny-plain-wild-symmetric30-3"]
    assert "batch of one face" in failed["tiny-plain-deep-symmetric30-3"]
    written = json.loads((tmp_path / "results" / "tiny-plain-wild-symmetric30-3.json").read_text())
    assert written["settings"]["learning_rate"] == 1e30 and "scores" not in written
    outcome = ferlab("bench", path, "--results", tmp_path / "results")
    assert outcome.code == 2 and "tiny-plain-wild-symmetric30-3 failed: delete" in outcome.out


def test_results_of_other_faces_are_not_added_to(tmp_path, toy_faces):
    path = grid_file(tmp_path, data="folder", options={"size": 32}, seeds=[0], noise=[["given", 0.0]],
                     schedules={"one": {"epochs": 1}, "two": {"epochs": 2}})
    run_grid(path, tmp_path / "results", toy_faces, tmp_path / "runs", only="plain-one")
    elsewhere = write_toy_faces(tmp_path / "elsewhere", {"train": 8, "valid": 4, "test": 4})
    with pytest.raises(FerlabError, match=r"was measured on other training faces.*: check --root"):
        run_grid(path, tmp_path / "results", elsewhere, tmp_path / "runs")
    assert len(run_grid(path, tmp_path / "results", toy_faces, tmp_path / "runs")) == 1
    assert {where(each).data for each in read_results(tmp_path / "results")} == {"tiny"}  # "folder" is no name


def test_seeds_of_a_method_that_was_edited_meanwhile_are_not_averaged(tmp_path):
    made = [measured(seed=seed) | {"method_settings": {}, "method_source": code} for seed, code in enumerate("ab")]
    for each in made:
        (tmp_path / f"{each['name']}.json").write_text(json.dumps(each))
    with pytest.raises(FerlabError, match="differ in the method's code: measure one again"):
        read_results(tmp_path)


def test_rates_are_not_rounded_and_no_results_are_told(tmp_path, ferlab):
    assert noise_name("symmetric", 0.125) == "symmetric 12.5%" and noise_name("symmetric", 0.3) == "symmetric 30%"
    told = ferlab("report", "--results", tmp_path)
    assert told.code == 2 and "There are no results in" in told.err


def test_any_failure_is_recorded_with_its_kind(tmp_path, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("no memory")

    monkeypatch.setattr("ferlab.training.train", fail)
    failed = run_cell(read_grid(grid_file(tmp_path))[0], tmp_path / "runs")
    assert failed["failed"] == "RuntimeError: no memory" and failed["settings"]["epochs"] == 1


def test_results_of_a_method_whose_own_settings_were_others_are_not_taken(tmp_path):
    grid = {"seeds": [0], "schedules": {"one": {"epochs": 2, "warm_up": 1}}, "methods": {"scn": {"method": "scn"}}}
    (cell,) = read_grid(grid_file(tmp_path, **grid))
    made = result() | {"name": cell.name, "options": cell.options, "profile": cell.profile, "rate": cell.rate,
                       "settings": vars(cell.config()), "method_settings": {"rank_margin": 0.3, "former": 1}}
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / f"{cell.name}.json").write_text(json.dumps(made))
    with pytest.raises(FerlabError, match=re.escape("other settings (rank_margin 0.3)")):
        run_grid(grid_file(tmp_path, **grid), tmp_path / "results", runs_folder=tmp_path / "runs")


def test_a_killed_training_is_told_in_one_sentence(tmp_path, monkeypatch):
    def killed(*_):
        raise BrokenProcessPool

    monkeypatch.setattr("ferlab.bench.ProcessPoolExecutor", Inline)
    monkeypatch.setattr("ferlab.bench._as_completed", lambda futures, *_: futures)
    monkeypatch.setattr(Inline, "submit", lambda self, *_: type("Killed", (), {"result": killed})())
    with pytest.raises(FerlabError, match="was killed.*the same command goes on"):
        run_grid(grid_file(tmp_path), tmp_path / "results", runs_folder=tmp_path / "runs")


def test_a_part_of_a_name_that_no_training_has_is_told(ferlab, tmp_path):
    outcome = ferlab("bench", grid_file(tmp_path), "--results", tmp_path / "results", "--only", "nothing")
    assert outcome.code == 2 and "'nothing'" in outcome.err and "tiny-plain" in outcome.err


def test_of_equally_good_schedules_the_one_with_more_seeds_is_shown():
    results = [result(schedule="long"), result(schedule="short"), result(schedule="short", seed=1)]
    assert [(r["schedule"], r["seed"]) for r in best_schedules(results)] == [("short", 0), ("short", 1)]


def test_the_run_of_other_settings_is_no_failure_of_the_method(tmp_path):
    path = grid_file(tmp_path, seeds=[3], schedules={"one": {"epochs": 1}})
    (name,) = run_grid(path, tmp_path / "results", runs_folder=tmp_path / "runs")
    (tmp_path / "results" / f"{name}.json").unlink()
    grid_file(tmp_path, seeds=[3], schedules={"one": {"epochs": 2}})
    with pytest.raises(FerlabError, match=f"{name} holds a run with other settings .epochs.*delete it"):
        run_grid(path, tmp_path / "results", runs_folder=tmp_path / "runs")
    assert not list((tmp_path / "results").glob("*.json"))


def test_the_workers_of_a_killed_grid_end(tmp_path):
    path = grid_file(tmp_path, seeds=[0], schedules={"long": {"epochs": 500}})
    grid = grid_process(path)
    run = Run(tmp_path / "runs" / "tiny-plain-long-symmetric30-0")
    wait_until(lambda: (run.directory / "metrics.jsonl").is_file(), 120)
    grid.kill()
    grid.wait()

    def free():
        try:
            with run.alone():
                return True
        except BusyError:
            return False

    wait_until(free, 20)  # the training, which has minutes to go, is over
    assert 1 <= len(run.metrics) < 500 and not list((tmp_path / "results").iterdir())


def grid_process(path):
    """The grid run by a process of its own, with results and runs beside its file."""
    script = path.parent / "run_grid.py"
    script.write_text("import sys; from ferlab.bench import run_grid\n"
                      "if __name__ == '__main__': run_grid(*sys.argv[1:3], runs_folder=sys.argv[3])")
    command = [sys.executable, str(script), str(path), str(path.parent / "results"), str(path.parent / "runs")]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def wait_until(done, seconds):
    end = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < end, f"not within {seconds} s"
        time.sleep(0.2)


def test_two_processes_share_a_grid(tmp_path):
    path = grid_file(tmp_path, seeds=[0], schedules={f"{k}": {"epochs": k} for k in (1, 2, 3, 4)})
    both = [grid_process(path) for _ in range(2)]
    said = "".join(process.communicate(timeout=300)[0] for process in both)
    assert all(process.returncode == 0 for process in both)
    assert len(read_results(tmp_path / "results")) == 4
    assert sorted(line.split()[1] for line in said.splitlines()) == [
        f"tiny-plain-{k}-symmetric30-0:" for k in (1, 2, 3, 4)]


@pytest.mark.parametrize("changes, told", [
    ({"sead": [0]}, 'line 1: there is no key "sead".*seeds'), ({"data": "renderd"}, 'no data set "renderd".*rendered'),
    ({"noise": [["loud", 0.1]]}, 'no noise "loud".*symmetric'), ({"profile": "slow"}, 'no profile "slow".*quick'),
    ({"methods": {"x": {"method": "scm"}}}, 'no method "scm".*scn'),
    ({"schedules": {"x": {"epoch": 3}}}, 'no setting "epoch".*epochs'),
    ({"schedules": {"x": {"seed": 3}}}, 'no setting "seed"'), ({"settings": {"epoch": 3}}, 'no setting "epoch"'),
    ({"settings": ["views"]}, "settings is .'views'.: give settings of every training, such as"),
    ({"options": {"trian": 48}}, 'no option "trian".*train'),
    ({"methods": {"x": {"method": "scn", "own": {"margin": 1}}}}, 'line 1: .*no setting own.margin: .*rank_margin'),
    ({"methods": {"x": {"method": "scn", "own": 1}}}, 'line 1: .*own is 1'),
    ({"methods": {"x": {"method": "drfer", "contrastive": "off"}}}, "line 1: .*contrastive is 'off': give true or"),
    ({"methods": {"w/o": {"method": "plain"}}}, "line 1: 'w/o' becomes a part of file names"),
    ({"name": "../x"}, "line 1: '../x' becomes"), ({"schedules": {"": {"epochs": 1}}}, "'' becomes"),
    ({"methods": {"x": {"method": "drfer", "split": "clas"}}}, 'line 1: the method "x" .*split is "clas"'),
    ({"schedules": {"x": {"epochs": "3"}}}, "schedule \"x\" has .*epochs is '3': give a whole number"),
    ({"noise": [["symmetric", "0.3"]]}, "line 1: the rate of symmetric is '0.3'"), ({"seeds": ["a"]}, "seed 'a' is no"),
    ({"seeds": 0}, r"line 1: seeds is 0: give a list of whole numbers, such as \[0"), ({"noise": ["none"]}, "noise is"),
    ({"methods": ["plain"]}, "methods is .'plain'.: give settings by name"), ({"name": 3}, "name is 3: give a text"),
    ({"noise": [["none", 0.3]]}, "line 1: none adds no wrong labels, but its rate is 0.3: give 0.0"),
    ({"data": "ferplus", "options": {"rule": "most"}}, "line 1: an option has .* no label rule 'most'"),
    ({"data": "folder", "options": {"holdout": "a"}}, "an option has a value that"),
    ({"seeds": []}, "asks for no training"), ({"seeds": [1, 1]}, "two trainings would be called tiny-plain-one-"),
    ({"methods": {"a": {"method": "plain"}, "a-b": {"method": "plain"}},
      "schedules": {"b-c": {"epochs": 1}, "c": {"epochs": 2}}}, 'line 1: two trainings .* tiny-a-b-c-symmetric30-0:'),
])
def test_what_is_wrong_in_a_grid_file_is_told_with_its_line(tmp_path, changes, told):
    with pytest.raises(FerlabError, match=told):
        read_grid(grid_file(tmp_path, **changes))


def test_what_committed_grids_call_quick_is_the_profile():
    cells = [cell for path in GRIDS for cell in read_grid(path, "root")
             if cell.schedule == "as the profile" and cell.method in ("quick", "plain")]
    assert {cell.data for cell in cells} == {"rendered", "ferplus", "fer2013"}
    for config in (cell.config() for cell in cells):
        assert obeyed(vars(config)) == obeyed(vars(profile("quick", method=config.method)))


def test_settings_of_a_grid_are_every_trainings_unless_its_own_differ(tmp_path):
    grid = {"settings": {"epochs": 7, "views": 1, "consistency_weight": 0}, "schedules": {"one": {"warm_up": 2}},
            "methods": {"one": {"method": "drfer"}, "two": {"method": "drfer", "views": 2}, "scn": {"method": "scn"}}}
    found = {cell.method: cell.config() for cell in read_grid(grid_file(tmp_path, **grid))}
    assert {(c.epochs, c.warm_up) for c in found.values()} == {(7, 2)}
    assert [found[name].views for name in grid["methods"]] == [1, 2, 1]


@pytest.mark.parametrize("change, told", [
    ({"schedules": {"one": {"epochs": 2}}}, "epochs 1"), ({"options": {"train": 20}}, "options {'size': 32"),
    ({"schedules": {"one": {"epochs": 1, "batch_size": 16}}}, "batch_size "),
])
def test_results_of_a_grid_with_other_settings_are_not_taken_for_its_own(tmp_path, capsys, change, told):
    name = "tiny-plain-one-symmetric30-0"
    grid = {"seeds": [0], "schedules": {"one": {"epochs": 1}},
            "methods": {"plain": {"method": "plain", "robustness": 0}}}
    (cell,) = read_grid(grid_file(tmp_path, **grid))
    made = result() | {"name": name, "options": cell.options, "profile": "smoke", "rate": 0.3,
                       "settings": vars(cell.config()) | {"robustness": 1}}  # which plain does not obey
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / f"{name}.json").write_text(json.dumps(made))
    assert run_grid(grid_file(tmp_path, **grid), tmp_path / "results", runs_folder=tmp_path / "runs") == []
    assert "1 results are in" in capsys.readouterr().out
    with pytest.raises(FerlabError, match=re.escape(f"{name}.json was made with other settings ({told}")):
        run_grid(grid_file(tmp_path, **grid | change), tmp_path / "results", runs_folder=tmp_path / "runs")


def test_committed_results_are_of_the_committed_grids():
    cells = [cell for path in GRIDS for cell in read_grid(path)]
    for results in (ROOT / "benchmarks" / "results", ROOT / "benchmarks" / "results" / "gpu"):
        assert len(_made_before(cells, results)) == len(list(results.glob("*.json"))) > 0


def test_every_cell_has_a_name_of_its_own(tmp_path):
    cells = read_grid(grid_file(tmp_path, noise=[["symmetric", 0.12], ["symmetric", 0.125], ["symmetric", 0.3]]))
    assert len({cell.name for cell in cells}) == len(cells)
    assert any("symmetric30-" in cell.name for cell in cells)


def test_schedules_are_chosen_by_valid_on_the_first_seed():
    results = [result(schedule="one", valid=0.6, test=0.1), result(schedule="two", valid=0.5, test=0.9),
               result(schedule="one", seed=1, valid=0.1, test=0.2)]
    assert [(r["schedule"], r["seed"]) for r in best_schedules(results)] == [("one", 0), ("one", 1)]


def test_other_numbers_of_training_faces_choose_for_themselves_and_have_tables_of_their_own():
    few = {"faces": {"train": 4, "test": 2}}
    results = [result(valid=0.8), result(schedule="two", valid=0.7), result(schedule="two", valid=0.6) | few]
    assert [r["schedule"] for r in best_schedules(results)] == ["one", "two"]
    text = tables(results)
    assert "6 training faces" in text and "4 training faces" in text


def test_interval_is_students():
    mean, half = interval([1.0, 2.0, 3.0])
    assert mean == 2 and np.isclose(half, 4.302653 / np.sqrt(3))  # t(0.975, 2) = 4.3027, standard deviation 1
    assert np.isnan(interval([1.0])[1])


def test_the_gap_closed_is_the_share_of_the_way_to_true_labels():
    noisy = [result(test=0.80), result(method="full", test=0.85), result(method="scn", test=0.78)]
    ceiling = result(noise="none", test=0.90) | {"rate": 0.0}
    closed = gap_closed([*noisy, ceiling], "test")
    assert closed == {("full", "symmetric", 0.3): pytest.approx((0.5, 0.5, 0.5, 1)),
                      ("scn", "symmetric", 0.3): pytest.approx((-0.2, -0.2, -0.2, 1))}
    told = {row[1]: row[6] for row in cells(table([*noisy, ceiling], "test")) if row[0] != "none"}
    assert told == {"full": "50", "scn": "-20", "plain": "-"}
    lucky = result(seed=1, test=0.86)  # of a seed that the others do not have
    assert gap_closed([*noisy, ceiling, lucky], "test") == closed
    assert gap_closed(noisy, "test") == {} and all(row[6] == "-" for row in cells(table(noisy, "test")))
    second = [lucky, result(method="full", seed=1, test=0.93), result(noise="none", seed=1, test=0.96) | {"rate": 0.0}]
    both = gap_closed([*noisy, ceiling, *second], "test")["full", "symmetric", 0.3]
    assert both == pytest.approx((0.12 / 0.20, 0.5, 0.7, 2)) and str(both) == "60 (50 to 70)"


def test_a_data_set_without_label_rules(tmp_path):
    (tmp_path / "one.json").write_text(json.dumps(measured() | {"data": "folder", "rule": ""}))
    made = read_results(tmp_path)
    assert tables(made).startswith("`tiny`, 6 training faces") and len(frame(made)) == 2


@pytest.mark.parametrize("text", ["{}", "[]", "{", '{"name": "a grid"}', json.dumps(result()), json.dumps(
    measured() | {"scores": {}})])
def test_what_is_no_result_is_told_with_its_file(tmp_path, text):
    (tmp_path / "strange.json").write_text(text)
    for reader in (read_results, read_failures, read_audits):
        with pytest.raises(FerlabError, match="strange.json is no result of ferlab"):
            reader(tmp_path)


def test_a_result_that_is_being_written_is_passed_over(tmp_path):
    (tmp_path / "one.json").write_text(json.dumps(measured()))
    (tmp_path / ".two.4711.unfinished.json").write_text("{")
    assert len(read_results(tmp_path)) == 1


@pytest.mark.parametrize("error", [WriteError("x could not be written"), MemoryError(), torch.OutOfMemoryError()])
def test_what_is_not_the_methods_fault_is_not_recorded_as_its_failure(tmp_path, monkeypatch, error):
    def train(*_, **__):
        raise error

    monkeypatch.setattr("ferlab.training.train", train)
    (cell,) = read_grid(grid_file(tmp_path, seeds=[0], schedules={"one": {"epochs": 1}}))
    with pytest.raises(type(error)):
        run_cell(cell, tmp_path / "runs")


def test_run_directories_among_results_are_passed_over(tmp_path):
    (tmp_path / "runs" / "a").mkdir(parents=True)
    for name in ("config.json", "data.json"):
        (tmp_path / "runs" / "a" / name).write_text("{}")
    (tmp_path / "one.json").write_text(json.dumps(measured()))
    assert len(read_results(tmp_path)) == 1


def test_settings_that_a_method_does_not_obey_do_not_set_its_results_apart():
    plain = [result(seed=seed) | {"settings": {"method": "plain", "epochs": 1, "seed": seed} | more}
             for seed, more in ((0, {"keep_given": "all"}), (1, {"keep_given": "posterior"}))]
    assert set(frame(plain).seeds) == {2}
    for each in plain:
        each["settings"]["method"] = "drfer"
    assert set(frame(plain).seeds) == {1}


def test_a_result_that_predates_a_setting_had_its_default():
    older, newer = (result(seed=seed) | {"settings": {"epochs": 1, "seed": seed}} for seed in (0, 1))
    newer["settings"]["aligned"] = False
    assert set(frame([older, newer]).seeds) == {2}
    newer["settings"]["aligned"] = True
    assert set(frame([older, newer]).seeds) == {1}


def test_frame_has_a_row_for_each_setting_and_split():
    split = {"auroc": 0.98, "right_if_wrong": 0.85, "right_after": 0.9}
    rows = frame([measured(test=0.8, split=split), measured(test=0.9, seed=1, split=split),
                  measured(method="full", test=0.7)])
    assert list(rows.columns[: len(SETTING)]) == SETTING and rows[SETTING].notna().all(axis=None)
    assert sorted(zip(rows.method, rows.split, rows.seeds)) == [
        ("full", "test", 1), ("full", "valid", 1), ("plain", "test", 2), ("plain", "valid", 2)]
    plain, full = (rows[(rows.method == name) & (rows.split == "test")].iloc[0] for name in ("plain", "full"))
    assert np.isclose(plain.accuracy, 0.85) and np.isclose(plain.accuracy_half, interval([0.8, 0.9])[1])
    assert np.isclose(plain.mean_class_accuracy, 0.425) and plain.auroc == 0.98 and plain.hardware == "CPU"
    assert np.isnan(full.accuracy_half) and np.isnan(full.auroc)
    assert list(frame([]).columns) == list(rows.columns)


@pytest.mark.parametrize("change", [{"settings": {"epochs": 2, "seed": 1}}, {"faces": {"train": 5, "test": 2}},
                                    {"environment": {"device": "NVIDIA H100"}}, {"rule": "argmax"}])
def test_frame_does_not_average_what_differs(change):
    rows = frame([measured(), measured(seed=1) | change])
    assert len(rows) == 4 and (rows.seeds == 1).all()


def test_frame_refuses_what_was_not_measured():
    with pytest.raises(FerlabError, match="not measured"):
        frame([quoted(QUOTED).iloc[0].to_dict()])


def test_frame_of_the_committed_results_agrees_with_them():
    results = read_results(ROOT / "benchmarks" / "results")
    rows = frame(results)
    assert rows.seeds.sum() == sum(len(r["scores"]) for r in results)
    first = results[0]
    mine = rows[(rows[[k for k in SETTING if k in first]] == [first[k] for k in SETTING if k in first]).all(axis=1)]
    assert set(mine.split) == set(first["scores"])


def test_results_are_compared_only_if_they_were_trained_on_the_same_faces(tmp_path):
    def read(**changes):
        records = [measured(), measured(method="scn"), measured(method="full") | changes]  # the second does not tell
        for record, fingerprint in zip(records, ("ab", None, changes.get("fingerprint", "cd")), strict=True):
            told = record | ({"fingerprint": fingerprint} if fingerprint else {})
            (tmp_path / f"{record['method']}.json").write_text(json.dumps(told))
        return read_results(tmp_path)

    with pytest.raises(FerlabError, match="tiny-full-one-.* and tiny-plain-one-.* different faces or labels"):
        read()
    for apart in ({"seed": 1}, {"options": {"size": 64}}, {"rate": 0.2}, {"fingerprint": "ab"},
                  {"environment": {"device": "NVIDIA H100"}}):
        assert len(read(**apart)) == 3


@pytest.mark.parametrize("change, said", [
    ({"settings": measured()["settings"] | {"epochs": 2}}, "differ in epochs"), ({"seed": 0}, "the same training"),
    ({"options": {"holdout": 0.2}}, "differ in options"), ({"method_settings": {"ramp": 3}}, "differ in ramp"),
    ({}, None)])
def test_seeds_of_one_row_differ_in_nothing_else(tmp_path, change, said):
    for record in (measured() | {"method_settings": {"ramp": 2}}, measured(seed=1) | {"name": "other"} | change):
        (tmp_path / f"{record['name']}.json").write_text(json.dumps(record))
    if said is None:
        assert len(read_results(tmp_path)) == 2
        return
    with pytest.raises(FerlabError, match=f"other and tiny-plain-one-.*{said}"):
        read_results(tmp_path)


def test_quoted_numbers_name_their_source_once():
    rows = quoted(QUOTED)
    assert len(rows) > 70 and not rows.duplicated(["system", "data", "noise", "rate"]).any()
    assert rows.source.str.contains(r"\d{4}|quote").all() and set(rows.start) == {"pretrained", "scratch"}
    assert ((rows.noise == "none") == (rows.rate == 0)).all() and rows.rate.isin([0, 0.1, 0.2, 0.3]).all()
    ours = rows[(rows.system == "DR-FER") & (rows.data == "rafdb")]
    assert ours.accuracy.tolist() == [90.24]
    falling = rows[rows.noise == "symmetric"].pivot(index=["system", "data"], columns="rate", values="accuracy")
    assert (falling.diff(axis=1).iloc[:, 1:] < 0).all(axis=None)  # more noise never helps


@pytest.mark.parametrize("text", ["{", "{}x", "[1]", '[{"system": "x"}]'])
def test_what_is_no_list_of_quoted_numbers_is_told(tmp_path, text):
    (tmp_path / "quoted.json").write_text(text)
    with pytest.raises(FerlabError, match="quoted numbers"):
        quoted(tmp_path / "quoted.json")


def test_table_holds_mean_and_interval_of_the_chosen_schedule():
    split = {"auroc": 0.9812, "right_if_wrong": 0.85, "recovered": 0.7, "right_after": 0.9}
    results = [result(test=0.8, split=split), result(test=0.9, seed=1, split=split), result("true", test=0.95)]
    better, plain = cells(table(results, "test"))
    assert plain[:6] == ["symmetric 30%", "plain", "one", "2", "85.0 ± 63.5", "42.5 ± 31.8"]
    assert plain[7].startswith("98.1") and better[4] == "95.0" and better[7] == "-"
    assert [cell.split(" ")[0] for cell in plain[8:11]] == ["85.0", "70.0", "90.0"]


def test_the_summary_sets_dr_fer_beside_plain_training_and_the_best_other():
    parts = {"masked_modelling": True, "contrastive": True, "relabelling": True, "split": "shared"}

    def made(name, settings, **more):
        return result(name, **more) | {"settings": {"backbone": "small"} | settings}

    plain, scn, rul = {"method": "plain"}, {"method": "scn"}, {"method": "rul"}
    whole, halved = {"method": "drfer"} | parts, {"method": "drfer"} | parts | {"contrastive": False}
    results = [
        made("plain", plain, test=0.80), made("plain", plain, test=0.82, seed=1),
        made("scn", scn, valid=0.6, test=0.81), made("rul", rul, valid=0.7, test=0.79),  # chosen on valid
        made("full", whole, test=0.84), made("full", whole, test=0.88, seed=1),
        made("once", whole, valid=0.9, test=0.99),
        made("no DCL", halved, valid=0.9, test=0.95), made("plain", plain, test=0.9, noise="none") | {"rate": 0.0},
        made("plain", plain, test=0.8, noise="asymmetric"),  # nothing of DR-FER
    ]
    (row,) = cells(summary(results))
    assert summary(results).endswith('--only "tiny-full-one-"`, and so with the others\' grid, method and schedule.')
    assert row == ["rendered (truth), test", "6 (48 px), small, CPU", "symmetric 30%", "81.0 ± 12.7 (40.5), one",
                   "79.0 (39.5) rul (of 2), one", "**86.0 ± 25.4** (43.0) full (of 2), one", "5.0 ± 12.7",
                   "90.0 (45.0)"]
    elsewhere = [each | {"faces": {"train": 9, "test": 2}} for each in results if each["seed"] == 0]
    before, _, after = summary(elsewhere + results).partition("<details>")
    assert cells(before) == [row] and [other[1] for other in cells(after)] == ["9 (48 px), small, CPU"]


def test_quoted_numbers_have_a_table_of_their_own():
    rows = {line.split("|")[1].strip(): line for line in quoted_table(quoted(QUOTED)).splitlines()}
    titles = [cell.strip() for cell in rows["quoted, not measured here"].split("|")[1:-1]]
    assert len(set(titles)) == len(titles)
    found = dict(zip(titles, [cell.strip() for cell in rows["EAC"].split("|")[1:-1]], strict=True))
    assert found["rafdb"] == "89.99" and found["rafdb, 30% wrong"] == "84.42" and found["sfew"] == "-"


def test_label_rules_are_not_mixed():
    rules = [measured(valid=a, test=a) | {"rule": rule} for rule, a in (("majority", 0.8), ("argmax", 0.7))]
    whole = [each | {"settings": vars(profile("quick", method="drfer")), "method": "full"} for each in rules]
    plain = [each | {"settings": vars(profile("quick", method="plain"))} for each in rules]
    rows = summary(plain + whole).splitlines()[2:4]
    assert [row.split("|")[1].strip() for row in rows] == ["rendered (argmax), test", "rendered (majority), test"]
    assert "70.0 (35.0)" in rows[0] and "80.0 (40.0)" in rows[1] and "±" not in rows[0] + rows[1]
    assert len(best_schedules(plain)) == 2 and tables(plain).count("48 pixels, test split") == 2


def test_tables_mark_what_a_cpu_trained_in_half_precision():
    half = result(method="scn") | {"environment": {"device": "CPU, 1 threads", "precision": "bfloat16"}}
    text = tables([result(), half])
    assert "minutes as trained (b: in bfloat16):" in text
    assert '`ferlab bench GRID.json --results again --runs again --only "tiny-plain-one-"`' in text
    assert [row.split("|")[-2].strip() for row in text.splitlines() if "symmetric" in row] == ["1.0", "1.0 b"]
    on_gpu = half | {"environment": {"device": "A GPU", "precision": "bfloat16"}}
    assert "bfloat16" not in tables([result(), on_gpu])


def test_balances_have_a_table_of_plain_training_the_best_other_and_drfer():
    def told(**changes):
        made = result(**changes)
        for score in made["scores"].values():
            score["balanced"] = {key: {"accuracy": 0.4, "mean_class_accuracy": 0.6} for key in ("0.25", "0.5", "0.75")}
            score["balanced"]["1.0"] = {"accuracy": 0.3, "mean_class_accuracy": 0.7}
        whole = profile("quick", method="drfer" if changes["method"] == "full" else changes["method"])
        return made | {"settings": vars(whole)}

    full = told(method="full"), told(method="full", seed=1, test=0.52)
    lines = balance_table([result(), told(method="scn"), told(method="eac", valid=0.6), *full]).splitlines()
    assert lines[0].endswith("| method | balance 0 | 0.25 | 0.5 | 0.75 | 1.0 |") and len(lines) == 4
    about = "| rendered (truth), test, 6 (48 px), small, CPU | symmetric 30% |"
    assert lines[2].startswith(f"{about} eac | 50.0 (25.0) | 40.0 (60.0) |")
    assert lines[3].startswith(f"{about} full | 51.0 ± 12.7 (25.5) | 40.0")
    assert lines[3].endswith("| 30.0 ± 0.0 (70.0) |")


def test_readme_quotes_the_recorded_results_and_nothing_else():
    text = (ROOT / "README.md").read_text()
    measured = read_results(ROOT / "benchmarks" / "results")
    for name, made in (("summary", summary(measured)), ("results", tables(measured)),
                       ("balanced", balance_table(measured)),
                       ("audits", audit_table(read_audits(ROOT / "benchmarks" / "audit"))),
                       ("quoted", quoted_table(quoted(QUOTED))),
                       ("speed", speed_table(SPEED))):
        assert text.partition(f"<!-- {name} -->\n")[2].partition(f"<!-- /{name} -->")[0].strip() == made.strip()


def test_speeds_are_told_with_what_they_were_measured_on_and_how_many_times_the_fastest_they_are(tmp_path):
    path = tmp_path / "speed.json"
    on = {"processor": "A chip", "device": "CPU, 2 threads", "precision": "float32", "torch": "2.9.1"}
    systems = {"slow": {"seconds": 12.0}, "ours": {"seconds": 0.0075, "GB": 0.5}, "theirs": {"seconds": 0.0111}}
    path.write_text(json.dumps({"environment": on, "groups": {"sorting": systems}}))
    head, _, row = speed_table(path).splitlines()
    assert "(A chip, 2 threads, float32, torch 2.9.1)" in head
    assert row == "| sorting | slow 12 s (1600); ours 7.5 ms, 0.5 GB; theirs 11 ms (1.5) |"
    path.write_text("{}")
    with pytest.raises(FerlabError, match="is no record of speeds: make it again with python -m pytest"):
        speed_table(path)


def test_readme_is_updated_between_its_markers_only(tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text("before\n<!-- results -->\nold\n<!-- /results -->\nafter\n")
    update_readme(readme, {"results": "new"})
    assert readme.read_text() == "before\n<!-- results -->\nnew\n<!-- /results -->\nafter\n"
    with pytest.raises(FerlabError, match="lacks the lines <!-- audits -->"):
        update_readme(readme, {"results": "newer", "audits": "more"})
    assert "newer" not in readme.read_text()
    readme.write_text("nothing")
    with pytest.raises(FerlabError, match="lacks the lines <!-- results -->"):
        update_readme(readme, {"results": "new"})
    assert readme.read_text() == "nothing"


@pytest.mark.parametrize("text", ["{", "[]", '{"name": "x"}'])
def test_what_is_no_grid_is_told(tmp_path, text):
    (tmp_path / "grid.json").write_text(text)
    with pytest.raises(FerlabError, match="no grid file"):
        read_grid(tmp_path / "grid.json")


@pytest.mark.parametrize("path", GRIDS, ids=lambda path: path.name)
def test_committed_grids_can_be_read(path):
    cells = read_grid(path)
    assert cells and len({cell.name for cell in cells}) == len(cells)


def test_other_seeds_than_the_first_do_not_choose_the_schedule():
    results = [result(schedule=schedule, seed=seed, valid=valid) for schedule, seed, valid in
               (("one", 0, 0.6), ("two", 0, 0.5), ("one", 1, 0.1), ("two", 1, 0.9))]
    assert {r["schedule"] for r in best_schedules(results)} == {"one"}


def test_there_is_no_gap_where_true_labels_are_no_better():
    ceiling = result(noise="none", test=0.8) | {"rate": 0.0}
    assert gap_closed([result(test=0.8), result(method="full", test=0.9), ceiling], "test") == {}


def test_dr_fer_without_a_split_is_not_shown_as_dr_fer():
    made = [result(name, **more) | {"settings": vars(profile("quick", **settings))} for name, settings, more in (
        ("plain", {"method": "plain"}, {}), ("full", {"method": "drfer"}, {"valid": 0.6}),
        ("no split", {"method": "drfer", "split": "off"}, {"valid": 0.9}))]
    assert "full" in summary(made) and "no split" not in summary(made)


def test_frame_tells_of_the_last_split():
    made = measured() | {"epochs": [{"split": {"auroc": 0.6}}, {"split": {"auroc": 0.9}}, {}]}
    assert set(frame([made]).auroc) == {0.9}


def test_valid_is_shown_where_any_result_holds_test_back():
    held_back = result()
    del held_back["scores"]["test"]
    assert shown_split([result(), held_back]) == "valid" and shown_split([result()]) == "test"


def test_a_cell_learns_from_noise_of_its_seed_and_is_scored_on_right_labels_and_mirror_images(tmp_path, monkeypatch):
    (cell,) = read_grid(grid_file(tmp_path, seeds=[3], schedules={"one": {"epochs": 1}}))
    seen = {}

    def train(config, splits, *_, **__):
        seen["splits"] = splits
        return SimpleNamespace(records=[{"seconds": 1.0}, {"seconds": 2.5}], evaluate=lambda faces, **how: how)

    monkeypatch.setattr("ferlab.training.train", train)
    made, clean = run_cell(cell, tmp_path / "runs"), benchmarks.load("rendered", **cell.options)
    assert np.array_equal(seen["splits"].train.labels, clean.train.with_noise("symmetric", 0.3, 3).labels)
    assert np.array_equal(seen["splits"].valid.labels, clean.valid.labels)
    assert made["scores"] == dict.fromkeys(("valid", "test"), {"mirror": True, "balances": (0.25, 0.5, 0.75, 1.0)})
    assert made["seconds"] == 3.5


def test_what_failed_with_every_schedule_is_not_tried_with_other_seeds(tmp_path, ran):
    wild = {"plain": {"method": "plain", "learning_rate": 1e30}}
    run_grid(grid_file(tmp_path, methods=wild), tmp_path / "results")
    assert ran == [("one", 0), ("two", 0)]


def test_what_an_edited_method_had_measured_is_told_and_its_run_does_not_serve_again(tmp_path, monkeypatch, capsys):
    grid = {"seeds": [0], "schedules": {"one": {"epochs": 2, "warm_up": 1}}, "methods": {"scn": {"method": "scn"}}}
    path, results = grid_file(tmp_path, **grid), tmp_path / "results"
    (name,) = run_grid(path, results, runs_folder=tmp_path / "runs")
    made = json.loads((results / f"{name}.json").read_text())
    assert made["method_source"] == method_source("scn")
    (results / f"{name}.json").write_text(json.dumps(made | {"method_source": "former"}))
    assert run_grid(path, results, runs_folder=tmp_path / "runs") == []
    assert capsys.readouterr().out.count(f"{name} is of its method before its code was changed") == 1
    monkeypatch.setattr(training, "method_source", lambda name: "later")
    with pytest.raises(FerlabError, match="before its code was edited"):
        run_cell(read_grid(path)[0], tmp_path / "runs")


def test_without_plain_training_the_summary_says_what_it_lacks():
    assert 'a method called "plain"' in summary([measured(method="baseline")])


def test_the_command_for_a_row_of_a_grid_of_ones_own_guesses_no_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "ferlab bench GRID.json --results again --runs again" in tables([measured()])
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / "benchmarks" / "tiny.json").write_text("{}")
    assert "ferlab bench benchmarks/tiny.json --results again --runs again" in tables([measured()])

"""Grids of trainings: their cells, resuming, the choice of schedules, and the tables."""

import json
from pathlib import Path

import numpy as np
import pytest

from ferlab.bench import best_schedules, interval, read_grid, read_results, run_grid, table, tables, update_readme
from ferlab.errors import FerlabError

ROOT = Path(__file__).parents[1]


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
    return {"data": "rendered", "rule": "truth", "noise": noise, "rate": 0.3, "method": method, "schedule": schedule,
            "seed": seed, "scores": scores, "seconds": 60, "epochs": [{"split": split}] if split else [{}],
            "profile": "quick", "environment": {"device": "CPU, 1 threads"}}


def test_a_grid_tries_schedules_on_the_first_seed_and_is_not_run_twice(tmp_path, monkeypatch):
    ran = []
    monkeypatch.setattr("ferlab.bench.ProcessPoolExecutor", Inline)
    monkeypatch.setattr("ferlab.bench.as_completed", lambda futures: futures)

    def cell_result(cell, runs_folder):
        ran.append((cell.schedule, cell.seed))
        return result(schedule=cell.schedule, seed=cell.seed, valid={"one": 0.4, "two": 0.6}[cell.schedule]) | {
            "name": cell.name}

    monkeypatch.setattr("ferlab.bench.run_cell", cell_result)
    path = grid_file(tmp_path)
    assert len(run_grid(path, tmp_path / "results")) == 3
    assert ran == [("one", 0), ("two", 0), ("two", 1)]
    assert run_grid(path, tmp_path / "results") == []
    assert len(read_results(tmp_path / "results")) == 3


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
    assert made["settings"]["seed"] == 3 and made["settings"]["epochs"] == 1 and made["environment"]["torch"]
    assert made["scores"]["test"]["faces"] == 16 and len(made["epochs"]) == 1


def test_schedules_are_chosen_by_valid_on_the_first_seed():
    results = [result(schedule="one", valid=0.6, test=0.1), result(schedule="two", valid=0.5, test=0.9),
               result(schedule="one", seed=1, valid=0.1, test=0.2)]
    assert [(r["schedule"], r["seed"]) for r in best_schedules(results)] == [("one", 0), ("one", 1)]


def test_interval_is_students():
    mean, half = interval([1.0, 2.0, 3.0])
    assert mean == 2 and np.isclose(half, 4.302653 / np.sqrt(3))  # t(0.975, 2) = 4.3027, standard deviation 1
    assert np.isnan(interval([1.0])[1])


def test_table_holds_mean_and_interval_of_the_chosen_schedule():
    split = {"auroc": 0.9812, "right_if_wrong": 0.85, "right_after": 0.9}
    results = [result(test=0.8, split=split), result(test=0.9, seed=1, split=split), result("true", test=0.95)]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table(results, "test").splitlines()]
    assert rows[2][:5] == ["rendered (truth)", "symmetric 30%", "plain", "one", "2"]
    assert rows[2][5] == "85.0 ± 63.5" and rows[2][7].startswith("98.1") and rows[3][5] == "95.0" and rows[3][7] == "-"


def test_readme_quotes_the_recorded_results_and_nothing_else():
    text = (ROOT / "README.md").read_text()
    quoted = text.partition("<!-- results -->\n")[2].partition("<!-- /results -->")[0]
    assert quoted.strip() == tables(read_results(ROOT / "benchmarks" / "results")).strip()


def test_readme_is_updated_between_its_markers_only(tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text("before\n<!-- results -->\nold\n<!-- /results -->\nafter\n")
    update_readme(readme, [result()])
    text = readme.read_text()
    assert text.startswith("before\n") and text.endswith("\nafter\n") and "old" not in text and "50.0" in text
    readme.write_text("nothing")
    with pytest.raises(FerlabError, match="markers|results"):
        update_readme(readme, [result()])
    assert readme.read_text() == "nothing"


@pytest.mark.parametrize("text", ["{", "[]", '{"name": "x"}'])
def test_what_is_no_grid_is_told(tmp_path, text):
    (tmp_path / "grid.json").write_text(text)
    with pytest.raises(FerlabError, match="no grid file"):
        read_grid(tmp_path / "grid.json")


@pytest.mark.parametrize("path", sorted((ROOT / "benchmarks").glob("*.json")), ids=lambda path: path.name)
def test_committed_grids_can_be_read(path):
    cells = read_grid(path)
    assert cells and len({cell.name for cell in cells}) == len(cells)

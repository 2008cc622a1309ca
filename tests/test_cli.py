"""The command line: what it says, how it ends, and that nothing is left half-written."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import fakes
import numpy as np
import pytest
import torch
from conftest import REPOSITORY

from ferlab.cli import parse_options, parse_setting
from ferlab.config import obeyed
from ferlab.errors import FerlabError
from ferlab.runs import Run

FERLAB = [sys.executable, "-m", "ferlab.cli"]


def told(outcome, *words: str) -> None:
    """The command ended with code 2 and one sentence with ``words`` on stderr."""
    assert outcome.code == 2, outcome
    assert "Traceback" not in outcome.out + outcome.err
    assert outcome.err.startswith("ferlab: ")
    for word in words:
        assert word in outcome.err, outcome.err


def toy(toy_faces: Path, run: Path, *more: object) -> tuple[object, ...]:
    """A command that trains in a second."""
    return ("train", "--data", "folder", "--root", toy_faces, "--run", run, "--profile", "smoke", "--method", "plain",
            "--set", "epochs=1", *more)


# ------------------------------------------------------------------------------------------------------------- help

def test_help_is_quick():
    started = time.perf_counter()
    outcome = subprocess.run([*FERLAB, "--help"], capture_output=True, text=True)
    assert outcome.returncode == 0 and time.perf_counter() - started < 1
    for command in ("train", "evaluate", "walkthrough", "data"):
        assert command in outcome.stdout


@pytest.mark.parametrize(
    "command", ["train", "evaluate", "audit", "walkthrough", "data", "data info", "data pack", "data layout"])
def test_every_command_explains_itself(ferlab, command: str):
    outcome = ferlab(*command.split(), "--help")
    assert outcome.code == 0 and "Usage: ferlab " + command in outcome.out


def test_version(ferlab):
    import ferlab as package

    assert package.__version__ in ferlab("--version").out


# --------------------------------------------------------------------------------------------------------- settings

@pytest.mark.parametrize("text, value", [
    ("epochs=40", 40), ("learning_rate=1e-3", 1e-3), ("contrastive=off", False), ("contrastive = true", True),
    ("top_k=none", None), ("top_k=50", 50), ("weights=none", None), ("weights=face.pth", "face.pth"),
    ("split=shared", "shared"), ("backbone=resnet18", "resnet18"),
])
def test_settings_are_read_by_their_type(text: str, value: object):
    name, parsed = parse_setting(text)
    assert name == text.split("=")[0].strip() and parsed == value and type(parsed) is type(value)


def test_a_methods_own_settings_are_read():
    assert parse_setting("own.rank_weight=0.3") == ("own", {"rank_weight": 0.3})
    assert parse_setting("own.erased_area = [0.1, 0.3]") == ("own", {"erased_area": [0.1, 0.3]})


@pytest.mark.parametrize("text", ["epochs", "epochs=many", "epochs=1.5", "contrastive=maybe", "no_such_setting=1",
                                  "own=1", "own.weight=heavy", "own.weight=1"])
def test_bad_settings_are_told(ferlab, tmp_path: Path, text: str):
    told(ferlab("train", "--run", tmp_path / "run", "--set", text), text.split("=")[0])
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("text", ["split=never", "epochs=0", "size=50", "mask_ratio=2"])
def test_settings_out_of_range_are_told(ferlab, tmp_path: Path, text: str):
    told(ferlab("train", "--run", tmp_path / "run", "--set", text), text.split("=")[0])
    assert not (tmp_path / "run").exists()


def test_options_of_the_data_are_whole_numbers():
    assert parse_options(("train=5", "size = 48")) == {"train": 5, "size": 48}
    for text in ("train", "train=x", "train=-1", "cache=1"):
        with pytest.raises(FerlabError, match="NAME=NUMBER"):
            parse_options((text,))


# -------------------------------------------------------------------------------------------------------- bad input

def test_unknown_names_are_told_with_what_there_is(ferlab, tmp_path: Path):
    told(ferlab("train", "--data", "nonsense", "--run", tmp_path / "run"), "nonsense", "ferplus")
    told(ferlab("train", "--method", "nonsense", "--run", tmp_path / "run"), "nonsense", "plain")
    told(ferlab("data", "layout", "nonsense"), "nonsense", "ferplus")
    told(ferlab("train", "--noise-rate", 0.3), "--noise")
    for arguments in (("train", "--profile", "huge"), ("nonsense",), ("evaluate",)):
        outcome = ferlab(*arguments)
        assert outcome.code == 2 and "Traceback" not in outcome.err
    assert not (tmp_path / "run").exists()


def test_a_profile_from_the_environment_is_checked(ferlab, monkeypatch, tmp_path: Path):
    monkeypatch.setenv("FERLAB_PROFILE", "huge")
    told(ferlab("train", "--run", tmp_path / "run"), "huge", "smoke")


@pytest.mark.parametrize("name", ["ferplus", "rafdb", "affectnet7", "sfew", "folder"])
def test_wrong_roots_are_told(ferlab, tmp_path: Path, name: str):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("no data set")
    for root in ("missing", "empty", "file"):
        told(ferlab("train", "--data", name, "--root", tmp_path / root, "--run", tmp_path / "run"), root)
    told(ferlab("train", "--data", name, "--run", tmp_path / "run"), "root")
    assert not (tmp_path / "run").exists()


def test_a_run_that_is_a_file_is_told(ferlab, toy_faces: Path, tmp_path: Path):
    (tmp_path / "run").write_text("mine")
    told(ferlab(*toy(toy_faces, tmp_path / "run")), "is a file")
    assert (tmp_path / "run").read_text() == "mine"


def test_a_damaged_image_is_told_or_left_out(ferlab, tmp_path: Path):
    root = fakes.folders(tmp_path / "faces", per_class=4)
    (root / "train" / "cross" / "0.png").write_bytes(b"not an image")
    told(ferlab(*toy(root, tmp_path / "run")), "0.png")
    assert not (tmp_path / "run").exists()
    outcome = ferlab(*toy(root, tmp_path / "run", "--skip-bad"))
    assert outcome.code == 0 and "1 images left out\n  left out: train/cross/0.png\n" in outcome.out
    assert json.loads((tmp_path / "run/environment.json").read_text())["skipped"] == {"train": ["train/cross/0.png"]}
    outcome = ferlab("data", "pack", "--data", "folder", "--root", root, "--skip-bad")
    assert outcome.code == 0 and "left out: train/cross/0.png" in outcome.out


def test_a_loss_that_is_not_a_number_is_told_and_leaves_no_checkpoint(ferlab, toy_faces: Path, tmp_path: Path):
    command = toy(toy_faces, tmp_path / "run", "--set", "batch_size=8")
    told(ferlab(*command, "--set", "learning_rate=1e30"), "learning rate")
    assert not list((tmp_path / "run").glob("*checkpoint*"))
    assert ferlab(*command).code == 0  # the same directory serves with a better one


def test_settings_are_shown(ferlab, tmp_path: Path):
    outcome = ferlab("train", "--run", tmp_path / "run", "--method", "scn", "--set", "epochs=7", "--show-settings")
    assert outcome.code == 0 and {"method=scn", "epochs=7", "weights=None"} <= set(outcome.out.splitlines())
    outcome = ferlab("train", "--method", "scn", "--set", "own.rank_weight=0.3", "--set", "own.rank_margin=0",
                     "--show-settings")
    shown = {"own.rank_weight=0.3", "own.rank_margin=0", "own.high_share=0.7"}
    assert outcome.code == 0 and shown <= set(outcome.out.splitlines())
    assert not (tmp_path / "run").exists()


def test_a_training_takes_the_settings_of_another(ferlab, toy_faces: Path, tmp_path: Path):
    assert ferlab(*toy(toy_faces, tmp_path / "run", "--method", "scn", "--set", "own.rank_weight=0.3", "--set",
                       "epochs=3")).code == 0
    record = tmp_path / "result.json"
    record.write_text(json.dumps({"name": "a", "settings": json.loads((tmp_path / "run" / "config.json").read_text())}))
    for like in (tmp_path / "run", record):
        shown = ferlab("train", "--like", like, "--seed", 5, "--set", "epochs=7", "--set", "own.rank_margin=0.2",
                       "--show-settings").out.splitlines()
        own = {"own.rank_weight=0.3", "own.rank_margin=0.2"}
        assert {"method=scn", "size=32", "seed=5", "epochs=7"} | own <= set(shown)
    outcome = ferlab("train", "--data", "folder", "--root", toy_faces, "--like", record, "--run", tmp_path / "again")
    assert outcome.code == 0 and f"Training scn (like {record}," in outcome.out
    assert obeyed(vars(Run(tmp_path / "again").config)) == obeyed(vars(Run(tmp_path / "run").config))
    told(ferlab("train", "--like", record, "--method", "plain"), "leave --profile and --method out")
    told(ferlab("train", "--like", tmp_path / "nowhere"), "give a run directory")
    told(ferlab("train", "--like", tmp_path / "run" / "data.json"), "holds no settings")
    record.write_text(json.dumps({"settings": {"method": "plain", "epochs": "many"}}))
    told(ferlab("train", "--like", record), "epochs")
    told(ferlab("train", "--set", "method=plain"), "give --method plain, not --set")


def test_settings_that_a_method_does_not_obey_are_told(ferlab, toy_faces: Path, tmp_path: Path):
    outcome = ferlab(*toy(toy_faces, tmp_path / "run", "--set", "sharpness=1", "--method", "plain"))
    assert outcome.code == 0 and "plain does not obey sharpness" in outcome.err


# ------------------------------------------------------------------------------------------- runs that do not fit

@pytest.fixture
def run(ferlab, toy_faces: Path, tmp_path: Path) -> Path:
    assert ferlab(*toy(toy_faces, tmp_path / "run")).code == 0
    return tmp_path / "run"


def test_a_run_with_other_settings_or_data_is_kept(ferlab, run: Path, toy_faces: Path):
    before = {path.name: path.read_bytes() for path in run.iterdir()}
    told(ferlab(*toy(toy_faces, run, "--set", "batch_size=7")), "batch_size")
    told(ferlab(*toy(toy_faces, run, "--noise", "symmetric")), "noise")
    assert {path.name: path.read_bytes() for path in run.iterdir()} == before


def test_damaged_checkpoints_are_told(ferlab, run: Path, toy_faces: Path):
    checkpoint = run / "checkpoint.pt"
    whole = checkpoint.read_bytes()
    for damaged in (b"", b"nonsense", whole[: len(whole) // 2]):
        checkpoint.write_bytes(damaged)
        told(ferlab("evaluate", "--run", run), "checkpoint.pt")
        told(ferlab(*toy(toy_faces, run)), "checkpoint.pt")


def test_a_checkpoint_of_another_network_is_told(ferlab, run: Path, toy_faces: Path, tmp_path: Path):
    other = tmp_path / "other"
    assert ferlab(*toy(toy_faces, other, "--set", "attention_maps=2", "--set", "backbone=small18")).code == 0
    (run / "checkpoint.pt").write_bytes((other / "checkpoint.pt").read_bytes())
    told(ferlab("evaluate", "--run", run), "checkpoint.pt")
    told(ferlab(*toy(toy_faces, run)), "checkpoint")


def test_a_checkpoint_that_holds_something_else_is_told(ferlab, run: Path):
    for other in ([1, 2], {"weights": torch.zeros(2)}, torch.zeros(3)):
        torch.save(other, run / "checkpoint.pt")
        told(ferlab("evaluate", "--run", run), "checkpoint.pt")


def test_a_checkpoint_that_would_run_code_is_refused(ferlab, run: Path, tmp_path: Path):
    class Trap:
        def __reduce__(self):
            return Path.touch, (tmp_path / "trapped",)

    torch.save({"average": Trap()}, run / "checkpoint.pt")
    told(ferlab("evaluate", "--run", run), "checkpoint.pt")
    assert not (tmp_path / "trapped").exists()


def test_damaged_settings_are_told(ferlab, run: Path):
    (run / "config.json").write_text("{")
    told(ferlab("evaluate", "--run", run), "config.json")


def test_evaluating_what_is_no_run_is_told(ferlab, tmp_path: Path, toy_faces: Path):
    told(ferlab("evaluate", "--run", tmp_path / "missing"), "ferlab train")
    told(ferlab("evaluate", "--run", tmp_path), "ferlab train")


def test_evaluating_on_other_classes_is_told_and_writes_nothing(ferlab, run: Path, tmp_path: Path):
    other = fakes.folders(tmp_path / "other")
    report = tmp_path / "scores.json"
    told(ferlab("evaluate", "--run", run, "--root", other, "--json", report), "cross, merry")
    assert not report.exists()


def test_scores_that_cannot_be_written_are_told(ferlab, run: Path, tmp_path: Path):
    (tmp_path / "file").write_text("mine")
    told(ferlab("evaluate", "--run", run, "--json", tmp_path / "file" / "scores.json"), "scores.json")


# ------------------------------------------------------------------------------------------------------------- data

def test_info_counts_what_is_there(ferlab, tmp_path: Path):
    root = fakes.fer(tmp_path / "ferplus", per_class=3)
    outcome = ferlab("data", "info", "--data", "ferplus", "--root", root, "--noise", "symmetric", "--noise-rate", 0.25)
    assert outcome.code == 0, outcome.err
    assert "ferplus train: 24 faces of 48 x 48 pixels, rule majority, symmetric 25 % (achieved 25.0 %" in outcome.out
    assert len([line for line in outcome.out.splitlines() if line.startswith("contempt")]) == 1


def test_pack_fills_the_cache(ferlab, tmp_path: Path, monkeypatch):
    monkeypatch.setenv("FERLAB_CACHE", str(tmp_path / "cache"))
    outcome = ferlab("data", "pack", "--data", "sfew", "--root", fakes.sfew(tmp_path / "sfew"))
    assert outcome.code == 0, outcome.err
    assert all(Path(line.split(": ")[1].split(" (")[0]).is_file() for line in outcome.out.splitlines())
    assert len(outcome.out.splitlines()) == 2
    outcome = ferlab("data", "pack", "--data", "sfew", "--root", tmp_path / "sfew", "--option", "size=32")
    assert outcome.code == 0 and np.load(outcome.out.split(": ")[1].split(" (")[0]).shape[1:3] == (32, 32)


def test_pack_takes_one_of_two_sizes(ferlab, tmp_path: Path, monkeypatch):
    monkeypatch.setenv("FERLAB_CACHE", str(tmp_path / "cache"))
    outcome = ferlab("data", "pack", "--data", "sfew", "--root", fakes.sfew(tmp_path / "sfew"), "--size", "32",
                     "--option", "size=48")
    assert outcome.code == 0 and "train:" in outcome.out


def test_layout_shows_every_data_set(ferlab):
    out = ferlab("data", "layout").out
    for word in ("fer2013new.csv", "list_patition_label.txt", "train_set/images"):
        assert word in out


# ----------------------------------------------------------------------------------------------------- interruption

def test_an_interrupted_training_says_that_it_goes_on(toy_faces: Path, tmp_path: Path):
    run = tmp_path / "run"
    command = [*FERLAB, *map(str, toy(toy_faces, run, "--set", "epochs=1000", "--set", "batch_size=16"))]
    process = subprocess.Popen(  # background jobs of a shell ignore SIGINT, and hand that down
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("epoch "):
            break
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert err.strip().startswith("ferlab: stopped") and len(err.strip().splitlines()) == 1
    assert Run(run).read_checkpoint()["epoch"] >= 1
    assert not [path for path in run.iterdir() if path.name.startswith(".") and path.name != ".lock"]


def test_an_interrupted_grid_ends_all_its_trainings(tmp_path: Path):
    grid = {"name": "long", "data": "rendered", "options": {"size": 32, "train": 64, "valid": 16, "test": 16},
            "profile": "smoke", "seeds": [0, 1, 2], "noise": [["symmetric", 0.3]],
            "methods": {"plain": {"method": "plain"}}, "schedules": {"long": {"epochs": 5000, "warm_up": 1}}}
    (tmp_path / "grid.json").write_text(json.dumps(grid))
    for alone in (False, True):  # as Ctrl+C does, and to the first process alone
        runs = tmp_path / f"runs{alone}"
        options = "--results", tmp_path / "results", "--runs", runs
        command = [*FERLAB, "bench", *map(str, (tmp_path / "grid.json", *options))]
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))
        ended = time.monotonic() + 240
        while not list(runs.glob("*/metrics.jsonl")):
            assert time.monotonic() < ended and process.poll() is None
            time.sleep(0.1)
        (os.kill if alone else os.killpg)(process.pid, signal.SIGINT)
        _, err = process.communicate(timeout=60)  # a worker that went on would hold the pipes
        assert process.returncode == 130 and "ferlab: stopped" in err and "Traceback" not in err, err
        assert [run.name for run in runs.iterdir()] == ["long-plain-long-symmetric30-0"]
        assert not list(tmp_path.glob("results/*.json"))


def test_a_command_as_a_user_types_it(toy_faces: Path, tmp_path: Path):
    environment = os.environ | {"FERLAB_PROFILE": "smoke"}
    arguments = ["train", "--data", "folder", "--root", str(toy_faces), "--method", "plain", "--set", "epochs=1"]
    outcome = subprocess.run([*FERLAB, *arguments], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert outcome.returncode == 0, outcome.stderr
    assert outcome.stderr == ""  # no bars where there is no terminal
    environment = json.loads((tmp_path / "runs" / "folder-plain-seed0" / "environment.json").read_text())
    assert environment["dataset"] == "folder"


def test_records_of_older_versions_are_taken_as_far_as_their_method_obeys(ferlab, tmp_path: Path):
    record = tmp_path / "old.json"
    record.write_text(json.dumps({"settings": {"method": "plain", "epochs": 7, "restart": True, "keep_given": "True"}}))
    assert "epochs=7" in ferlab("train", "--like", record, "--show-settings").out.splitlines()
    record.write_text(json.dumps({"settings": {"method": "drfer", "restart": True}}))
    told(ferlab("train", "--like", record), "old.json do not fit this version", "no setting restart")


def test_recorded_results_tell_their_settings(ferlab):
    for path in sorted((REPOSITORY / "benchmarks" / "results").rglob("*.json")):
        assert f"method={json.loads(path.read_text())['settings']['method']}\n" in ferlab(
            "train", "--like", path, "--show-settings").out


def test_weights_are_found_from_any_folder(ferlab, tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shown = ferlab("train", "--set", "backbone=resnet18", "--set", "weights=face.pth", "--show-settings").out
    assert f"weights={tmp_path / 'face.pth'}" in shown.splitlines()
    assert "weights=torchvision" in ferlab("train", "--set", "backbone=resnet18", "--set", "weights=torchvision",
                                           "--show-settings").out.splitlines()


@pytest.mark.parametrize("command", [("train",), ("audit", "--out", "x"), ("data", "info")])
def test_a_share_of_noise_needs_its_kind(ferlab, command):
    told(ferlab(*command, "--data", "rendered", "--noise-rate", 0.3), "--noise-rate needs --noise")


def test_an_audit_takes_the_settings_of_a_training(ferlab, run: Path, toy_faces: Path, tmp_path: Path):
    out = tmp_path / "audit"
    audit = "audit", "--data", "folder", "--root", toy_faces, "--folds", 2
    assert ferlab(*audit, "--out", out, "--like", run, "--set", "top_k=5").code == 0
    assert obeyed(vars(Run(out / "fold_0").config)) == obeyed(vars(Run(run).config))
    assert ferlab(*audit, "--out", tmp_path / "again", "--like", out / "fold_0").code == 0
    assert Run(tmp_path / "again" / "fold_0").config == Run(out / "fold_0").config

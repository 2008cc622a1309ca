"""pyproject.toml is the one list of what is needed, and a fresh clone makes its environment from it."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from conftest import REPOSITORY

if sys.version_info >= (3, 11):
    import tomllib
else:
    tomllib = pytest.importorskip("tomli")

PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
# where a package's import name is another than the one it is installed by
INSTALLED_AS = {"cv2": "opencv-python-headless", "PIL": "pillow", "sklearn": "scikit-learn", "umap": "umap-learn",
                "yaml": "pyyaml", "IPython": "ipywidgets", "lightning_fabric": "lightning-fabric"}


def names(requirements: list[str]) -> set[str]:
    return {re.split(r"[<>=!~\[; ]", text)[0].lower() for text in requirements}


def imported(folder: Path) -> dict[str, str]:
    """Top-level packages that the code of ``folder`` imports, each with a file that does; our own are left out."""
    found = {}
    for path in sorted(folder.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            else:
                modules = [node.module] if isinstance(node, ast.ImportFrom) and node.module and not node.level else []
            found |= {module.split(".")[0]: str(path) for module in modules}
    known = {"ferlab", *(path.stem for path in folder.glob("*.py")), *sys.stdlib_module_names, "tomllib"}  # since 3.11
    return {name: path for name, path in found.items() if name not in known}


def test_every_import_of_the_package_is_a_dependency():
    needed = names(PROJECT["dependencies"] + PROJECT["optional-dependencies"]["parallel"])
    missing = {name: path for name, path in imported(REPOSITORY / "ferlab").items()
               if INSTALLED_AS.get(name, name).lower() not in needed}
    assert not missing


def test_every_import_of_the_tests_is_a_dependency_or_an_extra():
    needed = names(PROJECT["dependencies"] + PROJECT["optional-dependencies"]["dev"]) | {"tomli"}
    missing = {name: path for name, path in imported(REPOSITORY / "tests").items()
               if INSTALLED_AS.get(name, name).lower() not in needed}
    assert not missing


def test_every_dependency_has_a_lower_bound_and_no_upper_one():
    extras = PROJECT["optional-dependencies"]
    listed = {*PROJECT["dependencies"], *extras["dev"], *extras["parallel"]} - {"ferlab[parallel]"}
    for requirement in listed - {"opencv-python-headless>=4.9,<5"}:  # OpenCV 5 has no Haar cascades
        assert re.fullmatch(r"[A-Za-z0-9_.-]+(\[[a-z,]+\])?>=[0-9.]+", requirement), requirement


def test_conda_installs_what_pyproject_lists():
    environment = yaml.safe_load((REPOSITORY / "environment.yml").read_text())
    assert environment["name"] == PROJECT["name"]
    *plain, pip = environment["dependencies"]
    assert pip == {"pip": ["-e .[dev]"]} and "pip" in plain
    python = next(line for line in plain if line.startswith("python"))
    version = tuple(map(int, re.fullmatch(r"python=(3\.\d+)", python).group(1).split(".")))
    lowest = tuple(map(int, PROJECT["requires-python"].removeprefix(">=").split(".")))
    assert version >= lowest and len(plain) == 2  # nothing listed twice


def test_the_code_is_valid_for_the_oldest_python_admitted():
    oldest = tuple(map(int, PROJECT["requires-python"].removeprefix(">=").split(".")))
    for folder in ("ferlab", "tests", "benchmarks"):
        for path in (REPOSITORY / folder).rglob("*.py"):
            ast.parse(path.read_text(), feature_version=oldest)


def test_importing_ferlab_is_quick_and_lazy():
    script = ("import sys, time; start = time.perf_counter(); import ferlab; took = time.perf_counter() - start; "
              "assert 'torch' not in sys.modules and 'numpy' not in sys.modules; ferlab.Config(); print(took)")
    took = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert float(took) < 0.5


def test_the_package_offers_its_names_and_no_others():
    import ferlab

    for name in ferlab.__all__:
        assert getattr(ferlab, name) is not None and name in dir(ferlab)
    assert ferlab.load_pretrained.__module__ == "ferlab.recogniser"
    with pytest.raises(AttributeError, match="nonsense"):
        ferlab.nonsense  # noqa: B018


# ------------------------------------------------------------------------------------------------------------- make

@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A folder with the Makefile and a python3 that only pretends, so that nothing is installed."""
    for name in ("Makefile", "pyproject.toml"):
        shutil.copy(REPOSITORY / name, tmp_path)
    pretend = tmp_path / "python3"
    pretend.write_text('''#!/bin/sh
echo "$@" >> calls
case "$1 $2" in
    "-m venv") mkdir -p "$3/bin" && cp "$0" "$3/bin/python" ;;
    "-m pip") [ ! -e no_network ] ;;
    "--version ") echo "Python 3.99.0" ;;
esac
''')
    pretend.chmod(0o755)
    return tmp_path


def make(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["make", *arguments], cwd=folder, capture_output=True, text=True)


def test_make_sets_up_once_and_again_when_the_dependencies_change(clone: Path):
    setup = ("setup", f"PYTHON={clone / 'python3'}")
    first = make(clone, *setup)
    assert first.returncode == 0 and (clone / ".venv" / ".ready").exists(), first.stderr
    assert "Installing" in first.stdout
    assert "Installing" not in make(clone, *setup).stdout
    stamp = (clone / ".venv" / ".ready").stat().st_mtime
    os.utime(clone / "pyproject.toml", (stamp + 10, stamp + 10))
    assert "Installing" in make(clone, *setup).stdout


def test_make_mends_an_unfinished_environment(clone: Path):
    setup = ("setup", f"PYTHON={clone / 'python3'}")
    (clone / "no_network").touch()
    assert make(clone, *setup).returncode != 0
    assert (clone / ".venv").is_dir() and not (clone / ".venv" / ".ready").exists()
    (clone / ".venv" / "left_behind").touch()
    (clone / "no_network").unlink()
    assert make(clone, *setup).returncode == 0
    assert (clone / ".venv" / ".ready").exists() and not (clone / ".venv" / "left_behind").exists()


def test_make_tells_of_a_python_that_is_too_old(clone: Path):
    old = clone / "python3"
    old.write_text('#!/bin/sh\n[ "$1" = --version ] && echo "Python 3.8.20" && exit 0\nexit 1\n')
    outcome = make(clone, "setup", f"PYTHON={old}")
    assert outcome.returncode != 0 and not (clone / ".venv").exists()
    assert "needs Python 3.10 or newer" in outcome.stderr and "Python 3.8.20" in outcome.stderr


@pytest.mark.parametrize("target", ["walkthrough", "lab", "test", "bench", "figures"])
def test_each_make_target_sets_up_first(clone: Path, target: str):
    plan = make(clone, "--dry-run", target).stdout
    assert "-m venv .venv" in plan
    assert target in make(clone, "help").stdout

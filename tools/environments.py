"""Runs the tests with the oldest versions that pyproject.toml admits, or with the newest there are.

    python tools/environments.py oldest                      # in this Python
    python tools/environments.py newest --python python3.13 -- -k retrieval

Each makes an environment of its own under .environments/, kept for the next time.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import click

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]


def lowest(project: dict) -> list[str]:
    """Constraints that pin every dependency, of the extras too, to the lowest release that ``project`` admits."""
    listed = sum(project["optional-dependencies"].values(), project["dependencies"])
    found = (re.match(r"([A-Za-z0-9_.-]+)>=([0-9.]+)", line) for line in listed)
    return sorted(f"{match[1]}=={match[2]}.*" for match in found if match)


@click.command(context_settings={"ignore_unknown_options": True})
@click.argument("which", type=click.Choice(["oldest", "newest"]))
@click.argument("pytest_options", nargs=-1)
@click.option("--python", default=sys.executable, help="The interpreter. [default: the one that runs this]")
def main(which: str, pytest_options: tuple[str, ...], python: str) -> None:
    """Install ferlab in an environment of its own with the WHICH versions, and run its tests there."""
    version = subprocess.run([python, "-c", "import platform; print(platform.python_version())"], check=True,
                             capture_output=True, text=True).stdout.strip()
    folder = ROOT / ".environments" / f"{which}-{version}"
    folder.parent.mkdir(exist_ok=True)
    constraints = folder.with_suffix(".txt")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    constraints.write_text("\n".join(lowest(project) if which == "oldest" else []) + "\n")
    subprocess.run([python, "-m", "venv", folder], check=True)
    inside = str(folder / "bin" / "python")
    subprocess.run([inside, "-m", "pip", "install", "--quiet", "--upgrade", "--constraint", constraints,
                    "--editable", ".[dev]"], check=True, cwd=ROOT)
    told = "import sys, torch, numpy; print(f'Python {sys.version.split()[0]}, torch {torch.__version__}, " \
           "numpy {numpy.__version__}')"
    subprocess.run([inside, "-c", told], check=True)
    sys.exit(subprocess.run([inside, "-m", "pytest", *pytest_options], cwd=ROOT).returncode)


if __name__ == "__main__":
    main()

"""What a speed was measured on, above the tables of ``make bench``."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path

from ferlab.config import Config
from ferlab.runs import environment


def pytest_terminal_summary(terminalreporter) -> None:
    """The environment, as in a run's record, with the processor and the rivals' versions."""
    told = Path("/proc/cpuinfo")
    lines = told.read_text().splitlines() if told.is_file() else []
    processor = next((line.partition(": ")[2] for line in lines if line.startswith("model name")), "unknown")
    where = environment(Config()) | {"processor": processor}
    where |= {name: version(name) for name in ("scikit-learn", "torchmetrics", "pillow")}
    terminalreporter.write_line("measured on " + ", ".join(f"{name} {value}" for name, value in where.items()))

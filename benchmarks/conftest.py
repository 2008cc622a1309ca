"""What a speed was measured on, above the tables of ``make bench``."""

from __future__ import annotations

import platform
from importlib.metadata import version
from pathlib import Path

import torch

from ferlab.config import Config
from ferlab.parallel import precision

RIVALS = ("torch", "torchvision", "numpy", "scikit-learn", "torchmetrics", "pillow")


def pytest_terminal_summary(terminalreporter) -> None:
    """Processor, threads and versions."""
    told = Path("/proc/cpuinfo")
    lines = told.read_text().splitlines() if told.is_file() else []
    machine = next((line.split(": ")[1] for line in lines if line.startswith("model name")), platform.machine())
    terminalreporter.write_line(
        f"measured on {machine}, {torch.get_num_threads()} threads, trained in {precision(Config())}; Python "
        f"{platform.python_version()}, " + ", ".join(f"{name} {version(name)}" for name in RIVALS))

"""What ``make bench`` measured, and on what: told above its tables, and written to ``--benchmark-json FILE``."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path

from ferlab.config import Config
from ferlab.runs import environment


def measured_on() -> dict[str, str]:
    """The environment, as in a run's record, with the processor and the rivals' versions."""
    told = Path("/proc/cpuinfo")
    lines = told.read_text().splitlines() if told.is_file() else []
    processor = next((line.partition(": ")[2] for line in lines if line.startswith("model name")), "unknown")
    rivals = {name: version(name) for name in ("scikit-learn", "torchmetrics", "pillow")}
    return environment(Config()) | {"processor": processor} | rivals


def pytest_terminal_summary(terminalreporter) -> None:
    """The line above the tables."""
    told = ", ".join(f"{name} {value}" for name, value in measured_on().items())
    terminalreporter.write_line(f"measured on {told}")


def pytest_benchmark_update_json(config, benchmarks, output_json) -> None:
    """What ``bench.speed_table`` reads: {group: {system: median seconds, and what else was measured}}."""
    groups: dict[str, dict] = {}
    for each in output_json["benchmarks"]:
        system = each["param"] or "ferlab"
        groups.setdefault(each["group"], {})[system] = {"seconds": each["stats"]["median"]} | each["extra_info"]
    output_json.clear()
    output_json.update(environment=measured_on(), groups=groups)

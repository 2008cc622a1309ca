"""The exceptions that ferlab raises for what its user can mend."""

from typing import Any

import click


class FerlabError(click.ClickException, ValueError):
    """Bad input, told in one sentence: what is wrong, where, and how to mend it.

    Every command prints the sentence and exits with code 2; nothing is left half-written.
    """

    exit_code = 2

    def show(self, file: Any = None) -> None:
        click.echo(f"ferlab: {self.message}", file, err=True)


class BusyError(FerlabError):
    """Another process is at work there."""


class OtherRunError(FerlabError):
    """The run directory holds a run with other settings or on other faces."""


class WriteError(FerlabError):
    """A file could not be written: a full disk, or a folder that is closed to the user."""


def in_one_line(message: Warning | str, *_: Any, **__: Any) -> str:
    """A warning as a command tells it, for ``warnings.formatwarning``."""
    return f"ferlab: {message}\n"

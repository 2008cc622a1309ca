"""The exceptions that ferlab raises for what its user can mend."""


class FerlabError(ValueError):
    """Bad input, told in one sentence: what is wrong, where, and how to mend it.

    The command line prints the sentence and exits with code 2; nothing is left half-written.
    """


class BusyError(FerlabError):
    """Another process is at work there."""


class OtherRunError(FerlabError):
    """The run directory holds a run with other settings or on other faces."""

"""The methods that DR-FER is compared with, one file each, in the same training loop: ``ferlab train --method NAME``.

All see the same faces and augmentation, train for the same number of epochs where none is asked for
(``config.BASELINES``), and grow from the same backbone; each file says what is the paper's ("source"), what is
ours, and what was left out. A method's own settings are attributes of its class. A file NAME.py with a subclass of
``training.Method`` adds a method (of several the one that no other there is made of); files that begin with _ are
shared parts.

Plain cross-entropy is the method "plain"; label smoothing (Szegedy et al., Rethinking the Inception Architecture for
Computer Vision, CVPR 2016, with 0.1) is its setting ``label_smoothing``, which the cross-entropy of every method here
obeys (DivideMix's only in its warm-up).
"""

from __future__ import annotations

from pathlib import Path

NAMES = tuple(sorted(file.stem for file in Path(__file__).parent.glob("[!_]*.py")))
METHODS = ("plain", "drfer", *NAMES)  # all that ``training.method_class`` knows

"""A trained network as a user meets it: faces in, probabilities out.

    recogniser = ferlab.load_pretrained("runs/my_first")
    recogniser.predict(images)          # uint8 [N, H, W] or [N, H, W, 3] -> float32 [N, C]
    recogniser.save("my_first.pt")      # one file, a quarter of the run's checkpoint
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from ferlab import metrics
from ferlab.config import Config
from ferlab.data import FaceSet
from ferlab.errors import FerlabError
from ferlab.model import DRFER
from ferlab.runs import Run, json_object, write_whole
from ferlab.training import collect, without_faces

ASSETS = Path(__file__).parent / "assets"


class Recogniser:
    """A network in evaluation mode and the names of its classes, in the order of its outputs.

    It answers in single precision, whatever it was trained in, so that it says the same on any hardware.
    about: where it comes from: the run's directory, epoch, settings, data and environment, as far as they are known.
    frequencies: [C], of the classes among the labels that it learned from; None where an older file does not tell.
    grey: it learned from grey faces alone, so that colours would mislead it: it is shown faces without them.
    """

    def __init__(self, network: DRFER, classes: tuple[str, ...], config: Config, about: dict[str, Any],
                 frequencies: np.ndarray | None = None, grey: bool = False):
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.network = network.to(self.device).eval().requires_grad_(False)
        self.classes, self.config, self.about = tuple(classes), config, about
        self.frequencies, self.grey = frequencies, grey

    @classmethod
    def from_run(cls, directory: str | Path) -> Recogniser:
        """The averaged network of a run, as of its last whole epoch.

        Raises FerlabError if the directory holds no run, no checkpoint, or one that does not fit the run's settings.
        """
        run = Run.open(directory)
        state = run.read_checkpoint()
        about = {"run": str(directory), "environment": _json(run.directory / "environment.json"),
                 "data": _json(run.directory / "data.json")}
        return cls._build(run.config, state, "average", about, run.directory / "checkpoint.pt")

    @classmethod
    def from_file(cls, path: str | Path) -> Recogniser:
        """What ``save`` wrote. Raises FerlabError if the file is absent, damaged or something else."""
        path = Path(path)
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
            config = Config.from_json(state["config"], lenient=True)
        except OSError as error:
            raise FerlabError(f"{path} cannot be opened ({error.strerror}).") from error
        except Exception as error:
            raise FerlabError(f"{path} is no recogniser; give a run directory or a file of Recogniser.save.") from error
        return cls._build(config, state, "network", state.get("about", {}) | {"file": str(path)}, path)

    @classmethod
    def _build(cls, config: Config, state: Any, part: str, about: dict[str, Any], path: Path) -> Recogniser:
        try:
            if not isinstance(state, dict):
                raise TypeError(f"a {type(state).__name__}, not a dict")
            classes = tuple(state["classes"])
            network = without_faces(config, classes).build_network()
            network.load_state_dict(state[part])
            frequencies = state["frequencies"].cpu().double().numpy() if "frequencies" in state else None
            if frequencies is not None and frequencies.shape != (len(classes),):
                raise ValueError(f"{frequencies.shape} frequencies of {len(classes)} classes")
        except FerlabError:
            raise
        except Exception as error:  # whatever torch raises for what is no such checkpoint
            raise FerlabError(f"{path} does not fit the settings beside it (method {config.method}, backbone "
                              f"{config.backbone}): it belongs to another run; train again.") from error
        return cls(network, classes, config, about | {"epoch": state.get("epoch")}, frequencies,
                   bool(state.get("grey", False)))

    def predict(self, images: Any, mirror: bool = True, balance: float = 0.0) -> np.ndarray:
        """Probabilities float32 [N, C] of faces uint8 [N, H, W] or [N, H, W, 3], NumPy or torch, of any size.

        mirror: average over each face and its mirror image. balance: from 0, as trained, to 1, as if all classes were
        equally frequent (``metrics.balanced``). Raises FerlabError for images of another shape or type, for a balance
        that is not from 0 to 1, and for one where ``frequencies`` are not known.
        """
        if not 0 <= balance <= 1:
            raise FerlabError(f"The balance is {balance}: give a number from 0, as trained, to 1.")
        frequencies = self.frequencies if balance else None
        if balance and frequencies is None:
            raise FerlabError("This recogniser does not tell how frequent its classes were, which a balance needs: "
                              "train it again.")
        if isinstance(images, torch.Tensor):
            images = images.detach().cpu().numpy()
        if not hasattr(images, "shape"):
            try:
                images = np.asarray(images)
            except ValueError as error:
                raise FerlabError("The faces differ in size: bring them to one, or give them one by one.") from error
        if len(images.shape) == 2 or (len(images.shape) == 3 and images.shape[2] == 3):
            raise FerlabError(f"predict takes a batch of faces, not one of shape {tuple(images.shape)}; give "
                              "face[None].")
        faces = FaceSet(images, np.zeros(len(images), np.int64), self.classes)
        if not len(faces):
            return np.zeros((0, len(self.classes)), np.float32)
        logits = collect(self.network, faces, mirror, self.device, bar=True, grey=self.grey).logits
        if not torch.isfinite(logits).all():
            raise FerlabError("The network's output is not a number: its training went astray; train it again.")
        probabilities = logits.softmax(1).cpu().numpy()
        if frequencies is None:
            return probabilities
        return metrics.balanced(probabilities, frequencies, balance).astype(np.float32)

    def save(self, path: str | Path) -> None:
        """Write network (in half precision), classes and settings into one file; ``load_pretrained`` reads it."""
        weights = {name: w.half().cpu() if w.is_floating_point() else w.cpu()
                   for name, w in self.network.state_dict().items()}
        state = {"network": weights, "classes": list(self.classes), "config": self.config.to_json(),
                 "epoch": self.about.get("epoch"), "about": {"data": self.about.get("data", {})}, "grey": self.grey}
        if self.frequencies is not None:
            state["frequencies"] = torch.as_tensor(self.frequencies)
        write_whole(Path(path), lambda temporary: torch.save(state, temporary))


def load_pretrained(name: str | Path) -> Recogniser:
    """A trained recogniser: a run directory, a file of ``Recogniser.save``, or the name of one in ferlab/assets.

    Raises FerlabError, listing what there is, if it is none of them.
    """
    path = Path(name)
    packaged = ASSETS / f"{name}.pt"
    if (path / "config.json").is_file() or (path.is_dir() and not packaged.is_file()):
        return Recogniser.from_run(path)
    if path.is_file():
        return Recogniser.from_file(path)
    if packaged.is_file() and packaged.parent == ASSETS:
        return Recogniser.from_file(packaged)
    names = sorted(file.stem for file in ASSETS.glob("*.pt"))
    packaged_ones = f" or one of {', '.join(names)}." if names else "; none comes with this version."
    raise FerlabError(f"There is no recogniser {str(name)!r}: give the directory of a run (ferlab train makes one)"
                      f"{packaged_ones}")


def _json(path: Path) -> dict[str, Any]:
    """A small record beside a run; {} where it is missing or damaged, for nothing depends on it."""
    try:
        return json_object(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}

"""The command line. Each command is a thin shell over a function of the package."""

from __future__ import annotations

import functools
import io
import json
import os
import sys
import typing
import warnings
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ferlab import __version__
from ferlab.comparators import METHODS
from ferlab.config import (
    DRFER_ONLY,
    LABEL_RULES,
    NOISE_KINDS,
    PROFILES,
    SPLITS,
    Config,
    extends_drfer,
    obeyed,
    profile,
    profile_name,
)
from ferlab.errors import FerlabError, in_one_line

# What takes long to import (PyTorch, pandas) is imported by the commands that need it, so that --help is instant.
if TYPE_CHECKING:
    from ferlab.data import FaceSet, Splits

DATA_OPTIONS = ("size", "seed", "train", "valid", "test")
SMOKE_FACES = {"train": 320, "valid": 80, "test": 80}  # what the smoke profile has rendered, in seconds


def main() -> None:
    """Run the command line; a FerlabError is one sentence on stderr and exit code 2, an interruption exit code 130."""
    for stream in (sys.stdout, sys.stderr):  # a terminal that lacks a letter shows another in its place
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    warnings.formatwarning = in_one_line
    try:
        sys.exit(cli.main(prog_name="ferlab", standalone_mode=False) or 0)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        _leave("stopped; the same command goes on from what is finished (a training: from its last whole epoch).", 130)
    except OSError as error:
        _leave(f"{error.filename}: {error.strerror}." if error.filename else f"{error}.", 2)
    except Exception as error:
        if type(error).__name__ == "OutOfMemoryError":  # PyTorch's, which is not imported here
            _leave("the memory of the GPU is full: make the batches smaller, as in --set batch_size=32.", 2)
        if isinstance(error, MemoryError) or "can't allocate memory" in str(error):
            _leave("there is not enough memory for that: ask for fewer or smaller faces, or smaller batches.", 2)
        raise


def _leave(sentence: str, code: int) -> None:
    click.echo(f"ferlab: {sentence}", err=True)
    sys.exit(code)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="ferlab")
def cli() -> None:
    """Facial expression recognition from noisy labels.

    The first steps: ferlab walkthrough runs the notebooks; ferlab train trains on rendered faces, which need no data.
    """


def _data_options(default: str | None) -> typing.Callable:
    """The options that say which faces to read."""
    options = [
        click.option("--data", "name", metavar="NAME", default=default, show_default=bool(default),
                     help="Data set; ferlab data layout lists them."),
        click.option("--root", type=click.Path(path_type=Path), help="Its folder or .zip; rendered needs none."),
        click.option("--rule", type=click.Choice(LABEL_RULES), help="FER+: which label the raters' votes make."),
        click.option("--skip-bad", is_flag=True, help="Leave out images that cannot be read, and list them."),
        click.option("--option", "options", metavar="NAME=NUMBER", multiple=True,
                     help="size (pixels); train, valid, test (at most so many faces); seed (which of them). "
                          "May be repeated."),
        click.option("--progress/--no-progress", default=None, help="Show bars. [default: on a terminal only]"),
    ]

    def decorate(command: typing.Callable) -> typing.Callable:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


_like_option = click.option(
    "--like", type=click.Path(path_type=Path),
    help="In place of profile and method: train with the settings, but for the seed, of this run directory or this "
         "result of ferlab bench.")
_labels_option = click.option(
    "--labels", type=click.Path(path_type=Path, dir_okay=False),
    help="CSV of name,label: other labels for some of the faces, as ferlab data apply-decisions writes.")


# ------------------------------------------------------------------------------------------------------------- train

@cli.command()
@_data_options("rendered")
@click.option("--run", "directory", type=click.Path(path_type=Path),
              help="Run directory. [default: runs/<data>-<method>-seed<seed>]")
@click.option("--profile", "profile_", type=click.Choice(list(PROFILES)),
              help="Size of the training. [default: $FERLAB_PROFILE, else full with a GPU and quick without]")
@click.option("--method", help=f"One of {', '.join(METHODS)}. [default: drfer]")
@_like_option
@click.option("--noise", type=click.Choice(NOISE_KINDS), help="Put wrong labels among the training faces'.")
@click.option("--noise-rate", type=click.FloatRange(0, 1), help="Share of labels to make wrong. [default: 0.3]")
@click.option("--holdout", type=click.FloatRange(0, 1, max_open=True), default=0.0,
              help="Validate on this share of the training faces, where the data set comes in two parts.")
@_labels_option
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of the training and the noise.")
@click.option("--set", "settings", metavar="NAME=VALUE", multiple=True,
              help="Change a setting, such as epochs=40; may be given several times.")
@click.option("--show-settings", is_flag=True, help="Only print all settings, as these options make them.")
def train(name: str, root: Path | None, rule: str | None, skip_bad: bool, options: tuple[str, ...],
          progress: bool | None, directory: Path | None, profile_: str | None, method: str | None, like: Path | None,
          noise: str | None, noise_rate: float | None, holdout: float, labels: Path | None, seed: int,
          settings: tuple[str, ...], show_settings: bool) -> None:
    """Train a recogniser, or go on with a training.

    The same command goes on where an interrupted training stopped.
    """
    base = base_settings(profile_, method, like, seed, "drfer")
    config, ignored = settings_of(base, settings)
    if show_settings:
        from ferlab.training import own_settings

        shown = {key: value for key, value in vars(config).items() if key != "own"}
        shown |= {f"own.{key}": json.dumps(value) for key, value in own_settings(config).items()}
        click.echo("\n".join(f"{key}={value}" for key, value in shown.items()))
        return
    noise_rate = share_of_noise(noise, noise_rate)

    from ferlab import benchmarks, decisions, metrics, parallel, runs, training

    if not parallel.leads():  # of several processes one speaks
        progress, sys.stdout = False, open(os.devnull, "w")  # noqa: SIM115
    if ignored:
        click.echo(ignored, err=True)
    run = runs.Run(directory or Path("runs") / f"{name}-{config.method}-seed{config.seed}")
    numbers = parse_options(options)
    if name == "rendered":
        numbers = rendered_as_seen(config, profile_) | numbers
    rule = rule or "majority"
    data = {"data": name, "root": runs.absolute(root), "rule": rule, "skip_bad": skip_bad, "holdout": holdout,
            "noise": noise, "noise_rate": noise_rate if noise else None, "options": numbers}
    new_labels = None if labels is None else decisions.read_labels(labels)
    if new_labels is not None:
        data["labels"] = decisions.fingerprint(new_labels)
    _check_same(run, data)
    splits = benchmarks.load(name, root, rule=rule, skip_bad=skip_bad, holdout=holdout, noise=noise,
                             noise_rate=noise_rate, noise_seed=config.seed, progress=progress, **numbers)
    if new_labels is not None:
        splits = decisions.relabelled(splits, new_labels, str(labels), holdout=holdout)
    _tell_splits(splits)
    _need_two_classes(splits.train)

    class Trainer(training.Trainer):
        def _begin_run(self, run: runs.Run) -> None:
            super()._begin_run(run)
            if self.leads and not run.has_checkpoint:
                runs.write_json(run.directory / "data.json", data)
                if new_labels is not None:  # a copy, so that the run can be explored without the file
                    decisions.write_labels(run.directory / "labels.csv", new_labels)

        def _save(self, run: runs.Run) -> None:
            super()._save(run)
            click.echo(epoch_line(self.records[-1], self.config.epochs))

    trainer = Trainer(config, splits, run, progress)
    click.echo(f"Training {config.method} ({f'like {like}' if like else f'profile {profile_name(profile_)}'}, "
               f"{config.epochs} epochs) on {trainer.device} in {trainer.precision} into {run.directory}")
    trainer.fit()

    click.echo(f"\nDone: settings, metrics of every epoch and the checkpoint are in {run.directory}")
    splits_made = [record["split"] for record in trainer.records if "split" in record]
    agreement = splits_made[-1].get("agreement", 1) if splits_made else 1
    if splits_made and not metrics.has_learned(agreement, trainer.train.labels):
        click.echo(f"At its last split the network gave {percent(agreement)} of the training faces their label. Unless "
                   "most labels are wrong, it has hardly learned, and its new labels are not to be trusted: it needs "
                   "more epochs (--set epochs=...) or more faces.")
    elif splits_made and set(splits_made[-1]["status"].values()) == {"not separated"}:
        click.echo("No label is suspected, as the losses make one heap. Either the labels are right, or wrong ones "
                   f"were learned with the others (the network gives {percent(agreement)} of the training faces their "
                   "label): then split sooner, and vary the faces more (--set warm_up=... --set augmentation=1).")
    split = "test" if splits.test is not None else "valid" if splits.valid is not None else "train"
    click.echo(f"Next: ferlab evaluate --run {run.directory} --split {split}")


def rendered_as_seen(config: Config, profile_: str | None) -> dict[str, int]:
    """Rendered faces as large as the network sees them; of the smoke profile fewer, made in seconds."""
    return {**(SMOKE_FACES if profile_name(profile_) == "smoke" else {}), "size": min(512, config.size)}


def _check_same(run: Any, data: dict[str, Any]) -> None:
    """FerlabError if the run has a checkpoint from other data; its root may have moved."""
    record = run.directory / "data.json"
    if not (run.has_checkpoint and record.is_file()):
        return
    former = _read_json(record)
    changed = [key for key in {**data, **former} if key != "root" and former.get(key) != data.get(key)]
    if changed:
        was = ", ".join(f"{key} {former.get(key)}" for key in changed)
        raise FerlabError(f"{run.directory} holds a run on other data ({was}): choose another --run or delete it.")


def settings_like(path: Path, seed: int, kept: Sequence[str] = ()) -> Config:
    """The settings of a run directory or of a result of ``ferlab bench``, with this seed: those that its method obeys,
    and those that are ``kept`` all the same. Raises FerlabError."""
    path = path / "config.json" if path.is_dir() else path
    mend = "give a run directory, or a file of benchmarks/results"
    found = _read_json(path, mend)
    settings = found.get("settings", found)
    if not isinstance(settings, dict) or "method" not in settings:
        raise FerlabError(f"{path} holds no settings: {mend}.")
    try:
        kept_all_the_same = {name: settings[name] for name in kept if name in settings}
        return Config().replace(**obeyed(settings) | kept_all_the_same, seed=seed)
    except FerlabError as error:
        raise FerlabError(f"The settings of {path} do not fit this version of ferlab: {error}") from error


def base_settings(profile_: str | None, method: str | None, like: Path | None, seed: int, usual: str,
                  kept: Sequence[str] = ()) -> Config:
    """The settings before ``--set``: of a profile and a method (the ``usual``, if none is given), or a training's."""
    if not like:
        return profile(profile_, method=method or usual, seed=seed)
    if profile_ or method:
        raise FerlabError("--like takes all settings from a training: leave --profile and --method out.")
    return settings_like(like, seed, kept)


def settings_of(base: Config, texts: Sequence[str], heeded: Sequence[str] = ()) -> tuple[Config, str]:
    """Settings changed by the texts of ``--set``, and a sentence on those changed in vain, or "".

    heeded: settings of DR-FER that count here whatever the method. Raises FerlabError for what does not fit, a method
    that does not exist among it.
    """
    from ferlab.training import own_settings

    chosen: dict[str, Any] = {}
    for name, value in map(parse_setting, texts):
        chosen[name] = chosen.get(name, base.own) | value if name == "own" else value
    if chosen.get("weights") not in (None, "torchvision"):
        chosen["weights"] = str(Path(chosen["weights"]).expanduser().resolve())
    if "method" in chosen:
        raise FerlabError(f"Settings depend on the method: give --method {chosen['method']}, not --set.")
    config = base.replace(**chosen)
    own_settings(config)
    vain = [] if extends_drfer(config.method) else [name for name in chosen if name in DRFER_ONLY.difference(heeded)]
    return config, f"{config.method} does not obey {' and '.join(vain)}: only drfer does." if vain else ""


def parse_setting(text: str) -> tuple[str, Any]:
    """("epochs", 40) from "epochs=40", by the type of the setting in ``Config``; FerlabError if it does not fit.

    Of a method's own setting ("own", {"rank_weight": 0.3}) from "own.rank_weight=0.3".
    """
    name, _, value = (part.strip() for part in text.partition("="))
    hints = typing.get_type_hints(Config)
    if not value:
        raise FerlabError(f"--set {text} lacks a value: write it as NAME=VALUE, such as --set epochs=40.")
    if name.startswith("own."):
        try:
            return "own", {name.removeprefix("own."): json.loads(value)}
        except ValueError:
            raise FerlabError(f"--set {text}: {name} must be a number, true, false or [numbers].") from None
    if name not in hints or name == "own":
        known = ", ".join(sorted(hints.keys() - {"own"}))
        raise FerlabError(f"There is no setting {name}: the settings are {known}, and a method's own as own.NAME.")
    kinds = typing.get_args(hints[name]) or (hints[name],)
    if type(None) in kinds and value.lower() == "none":
        return name, None
    kind = next(kind for kind in kinds if kind is not type(None))
    words = {bool: "on or off", int: "a whole number", float: "a number"}
    if kind not in words:
        return name, value
    try:
        return name, click.types.convert_type(kind)(value)
    except click.BadParameter:
        raise FerlabError(f"--set {text}: {name} must be {words[kind]}.") from None


def share_of_noise(noise: str | None, rate: float | None) -> float:
    """The share of labels to make wrong, 0 without noise; FerlabError for a share without a kind of noise."""
    if noise is None and rate is not None:
        raise FerlabError("--noise-rate needs --noise: say which kind of noise.")
    return 0.0 if noise is None else 0.3 if rate is None else rate


def parse_options(texts: tuple[str, ...]) -> dict[str, Any]:
    """{"train": 500} from ("train=500",); FerlabError for other names and for anything but whole numbers."""
    options = {}
    for text in texts:
        name, _, value = (part.strip() for part in text.partition("="))
        if name not in DATA_OPTIONS or not value.isdecimal():
            raise FerlabError(f"--option {text}: write NAME=NUMBER, where NAME is one of {', '.join(DATA_OPTIONS)}.")
        options[name] = int(value)
    return options


def epoch_line(record: dict[str, Any], epochs: int) -> str:
    """An epoch's metrics on one line."""
    parts = [f"epoch {record['epoch']:>{len(str(epochs))}}/{epochs}"]
    parts += [f"{name.replace('_', ' ')} {value:.3f}" for name, value in record["loss"].items()]
    if "valid" in record:
        parts.append(f"valid accuracy {percent(record['valid']['accuracy'])}")
        parts.append(f"mean-class {percent(record['valid']['mean_class_accuracy'])}")
    share = record.get("split", {}).get("clean_share")
    if share is not None:
        parts.append(f"split: {percent(1 - share)} noisy")
    return "  ".join([*parts, f"{record['seconds']:.0f} s"])


def percent(share: float | None) -> str:
    """0.876 -> 87.6 %; nothing -> a dash."""
    return "-" if share is None else f"{100 * share:.1f} %"


# ---------------------------------------------------------------------------------------------------------- evaluate

@cli.command()
@_data_options(None)
@click.option("--run", "directory", metavar="DIR", required=True,
              help="Run directory, or a file that Recogniser.save wrote.")
@click.option("--split", type=click.Choice(SPLITS), default="test", show_default=True)
@click.option("--holdout", type=click.FloatRange(0, 1, max_open=True), help="As in the training. [default: the run's]")
@click.option("--against", type=click.Choice(["reference", "given"]), default="reference", show_default=True,
              help="Labels to score against: the reference where there is one, or those that the data set gives "
                   "(without the noise of a training, but with its --labels).")
@click.option("--labels", metavar="FILE", type=click.Path(path_type=Path, dir_okay=False),
              help="CSV of name,label: score against these labels of the split's faces, as ferlab data "
                   "apply-decisions writes them after an audit of the split.")
@click.option("--mirror/--no-mirror", default=True, show_default=True,
              help="Average over each face and its mirror image; papers mostly do not.")
@click.option("--balance", type=click.FloatRange(0, 1), default=0.0, show_default=True,
              help="Of the classes: 1 judges as if all were equally frequent, which finds more faces of rare ones, and "
                   "fewer in all.")
@click.option("--json", "report", metavar="FILE", type=click.Path(path_type=Path, dir_okay=False),
              help="Write all scores there.")
def evaluate(name: str | None, root: Path | None, rule: str | None, skip_bad: bool, options: tuple[str, ...],
             progress: bool | None, directory: str, split: str, holdout: float | None, against: str,
             labels: Path | None, mirror: bool, balance: float, report: Path | None) -> None:
    """Score a run on a split of a data set.

    Data set, root, rule and options are the run's unless told otherwise. Only the split's own files need to be on
    disk.
    """
    from ferlab import benchmarks, decisions, recogniser, runs
    from ferlab.evaluation import evaluate as score

    trained = recogniser.load_pretrained(directory)
    former = trained.about.get("data", {})
    given = parse_options(options)
    name = name or former.get("data")
    if name is None:
        raise FerlabError(f"{directory} does not tell its data set: give --data NAME.")
    if not runs.tells_data(former):
        raise FerlabError(f"{directory}/data.json is damaged: delete it, and give --data and --root.")
    # another folder of one's own images is another data set, whatever the name
    moved = root is not None and runs.absolute(root) != former.get("root")
    same = former.get("data") == name and not (name == "folder" and moved)
    if same:
        root = root or former.get("root")
        rule = rule or former.get("rule")
        holdout = former.get("holdout", 0.0) if holdout is None else holdout
        skip_bad = skip_bad or former.get("skip_bad", False)
        given = former.get("options", {}) | given
    holdout = holdout or 0.0
    splits = benchmarks.load(name, root, rule=rule or "majority", skip_bad=skip_bad, holdout=holdout,
                             progress=progress, splits=SPLITS if holdout else (split,), **given)
    corrected = Path(directory) / "labels.csv"
    if same and former.get("labels"):
        if corrected.is_file():
            splits = decisions.relabelled(splits, decisions.read_labels(corrected), corrected, holdout=holdout)
        elif split == "train" or holdout:
            click.echo(f"It was trained with a file of labels that {directory} does not hold: these are the labels "
                       "without it.", err=True)
    faces = splits._asdict()[split]
    if faces is None or not len(faces):
        there = [name for name, faces in splits._asdict().items() if faces is not None]
        has = f": it has {' and '.join(there)}" if there else ""
        raise FerlabError(f"{root or name} has no {split} faces{has}.")
    if labels is not None:
        faces, against = decisions.with_labels(faces, decisions.read_labels(labels), labels), "given"
    result = score(trained, faces, against=against, mirror=mirror, balance=balance)
    if report is not None:
        runs.write_json(report, result)
    click.echo(scores_table(result))
    if report is not None:
        click.echo(f"\nAll scores are in {report}")


def scores_table(result: dict[str, Any]) -> str:
    """The scores of ``evaluation.evaluate`` as a small table: recall and most frequent mistake of each class."""
    from ferlab.evaluation import most_taken_for

    rule = f" (rule: {result['rule']})" if result["rule"] else ""
    views = "each with its mirror image" if result["mirror"] else "as they are"
    views += f", classes balanced by {result['balance']:g}" * bool(result["balance"])
    lines = [
        f"{result['data']} {result['split']}{rule}, {result['faces']:,} faces, {views}, "
        f"against the {result['against']} labels" + f" ({result['noise']})" * bool(result["noise"]),
        f"accuracy {percent(result['accuracy'])}   mean-class accuracy {percent(result['mean_class_accuracy'])}   "
        f"macro-F1 {percent(result['macro_f1'])}",
    ]
    if "divergence" in result:
        lines.append(f"mean Jensen-Shannon divergence from the raters' votes {result['divergence']:.3f} bits")
    if result["note"]:
        lines.append(result["note"])
    if result["skipped"]:
        lines += [f"{len(result['skipped']):,} images were missing or could not be read:",
                  *_skipped_lines(result["skipped"])]
    width = max(len("class"), *map(len, result["classes"]))
    lines += ["", f"{'class':<{width}}  {'faces':>7}  {'recall':>8}  most often taken for"]
    for name, (other, most) in most_taken_for(result).items():
        taken = f"{other} ({most:,})" if most else "-"
        lines.append(f"{name:<{width}}  {result['counts'][name]:>7,}  {percent(result['recall'][name]):>8}  {taken}")
    if "by_agreement" in result:
        lines += ["", "most votes for one class    faces  accuracy"]
        lines += [f"{100 * each['from']:>3.0f} to {100 * each['to']:>3.0f} %             {each['faces']:>7,}  "
                  f"{percent(each['accuracy']):>8}" for each in result["by_agreement"]]
    return "\n".join(lines)


# ----------------------------------------------------------------------------------------------------------- predict

@cli.command(short_help="Find the faces in photos, and tell their expressions.")
@click.argument("paths", metavar="PHOTOS...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--model", default="ferplus", show_default=True,
              help="A recogniser that comes with ferlab, a run directory, or a file of Recogniser.save.")
@click.option("--out", "directory", type=click.Path(path_type=Path, file_okay=False),
              help="Draw each photo with its faces into this folder.")
@click.option("--json", "report", metavar="FILE", type=click.Path(path_type=Path, dir_okay=False),
              help="Write boxes and probabilities there.")
@click.option("--whole", is_flag=True, help="Each photo is one face already: do not look for faces.")
@click.option("--balance", type=click.FloatRange(0, 1), default=0.0, show_default=True,
              help="Of the classes, as in ferlab evaluate: more than 0 names rare ones more often.")
def predict(paths: tuple[Path, ...], model: str, directory: Path | None, report: Path | None, whole: bool,
            balance: float) -> None:
    """Find the faces in photos, or in all photos of a folder, and tell each one's expression.

    Faces are found where they look towards the camera. The classes are those that raters choose from; what a person
    feels is another matter.
    """
    import numpy as np

    from ferlab import load_pretrained, photos, runs

    recogniser = load_pretrained(model)
    paths = tuple(dict.fromkeys(  # each once
        photo for path in paths for photo in (photos.photos_in(path) if path.is_dir() else [path])))
    if directory is not None and len({path.stem for path in paths}) < len(paths):
        raise FerlabError("Two photos are of one name, apart from its ending, so that their pictures would overwrite "
                          "each other: rename one, or give them one folder at a time.")
    if directory is not None and directory.resolve() in {path.resolve().parent for path in paths}:
        raise FerlabError(f"{directory} holds the photos themselves, which pictures of the same name would replace: "
                          "give --out another folder.")
    results = []
    for path in paths:
        try:
            photo = photos.read_photo(path)
        except FerlabError as error:  # the others are still of use
            click.echo(f"ferlab: {error}", err=True)
            continue
        side = min(photo.shape[:2])
        middle = [[(photo.shape[1] - side) // 2, (photo.shape[0] - side) // 2, side]]
        boxes = np.array(middle) if whole else photos.find_faces(photo)
        faces = photos.crop_faces(photo, boxes, max(48, recogniser.config.size))
        probability = recogniser.predict(faces, balance=balance)
        places = (boxes * photos.shrunk(path, photo)).tolist()  # in the pixels of the file
        if not len(boxes):
            click.echo(f"{path}: no face that looks at the camera; --whole takes the photo as one face")
        for i, (box, row) in enumerate(zip(places, probability, strict=True)):
            ranked = [f"{recogniser.classes[c]} {percent(row[c])}" for c in np.argsort(-row)[:3]]
            click.echo(f"{path}: face {i + 1} at x {box[0]}, y {box[1]}, {box[2]} pixels wide: {', '.join(ranked)}")
        results.append({"photo": str(path), "faces": [
            {"left": x, "top": y, "side": side, "probability": dict(zip(recogniser.classes, map(float, row)))}
            for (x, y, side), row in zip(places, probability, strict=True)]})
        if directory is not None:
            from ferlab import plots

            picture = plots.photo_faces(photo, boxes, faces, probability, recogniser.classes, path.name).png()
            runs.write_whole(directory / f"{path.stem}.png", functools.partial(Path.write_bytes, data=picture))
    if report is not None:
        runs.write_json(report, {"model": model, "balance": balance, "classes": list(recogniser.classes),
                                 "photos": results})
    if len(results) < len(paths):
        sys.exit(2)


# ------------------------------------------------------------------------------------------------------------- audit

@cli.command(short_help="List the faces whose labels are likely wrong.")
@_data_options("rendered")
@click.option("--out", "directory", type=click.Path(path_type=Path, file_okay=False), required=True,
              help="Folder for the list, the picture and each fold's training.")
@click.option("--split", type=click.Choice(SPLITS), default="train", show_default=True, help="Whose labels to judge.")
@click.option("--folds", type=click.IntRange(2), default=4, show_default=True,
              help="Trainings; each judges the faces that it left out.")
@click.option("--profile", "profile_", type=click.Choice(list(PROFILES)),
              help="Size of the trainings. [default: $FERLAB_PROFILE, else full with a GPU and quick without]")
@click.option("--method", help="How to train, as in ferlab train. [default: plain]")
@_like_option
@click.option("--noise", type=click.Choice(NOISE_KINDS), help="Put wrong labels among the training faces'.")
@click.option("--noise-rate", type=click.FloatRange(0, 1), help="Share of labels to make wrong. [default: 0.3]")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of folds, trainings and noise.")
@_labels_option
@click.option("--count", type=click.IntRange(1), default=48, show_default=True, help="Faces in the picture.")
@click.option("--set", "settings", metavar="NAME=VALUE", multiple=True, help="As in ferlab train.")
def audit(name: str, root: Path | None, rule: str | None, skip_bad: bool, options: tuple[str, ...],
          progress: bool | None, directory: Path, split: str, folds: int, profile_: str | None, method: str | None,
          like: Path | None, noise: str | None, noise_rate: float | None, seed: int, labels: Path | None, count: int,
          settings: tuple[str, ...]) -> None:
    """List the faces whose labels are likely wrong, with a better label for each.

    Every face is judged by a network that was not trained on it. An interrupted audit goes on where it stopped.
    """
    heeded = "top_k", "average_precision"  # by an audit, whatever the method
    base = base_settings(profile_, method, like, seed, "plain", heeded)
    config, ignored = settings_of(base, settings, heeded)
    if ignored:
        click.echo(ignored, err=True)

    from ferlab import audit as auditing
    from ferlab import benchmarks, decisions, runs

    noise_rate = share_of_noise(noise, noise_rate)
    if noise and split != "train":
        raise FerlabError(f"--noise puts wrong labels among the training faces, and --split is {split}: leave one out.")
    numbers = parse_options(options)
    if name == "rendered":
        numbers = rendered_as_seen(config, profile_) | numbers
    data = {"data": name, "root": runs.absolute(root), "rule": rule or "majority", "skip_bad": skip_bad, "noise": noise,
            "noise_rate": noise_rate, "noise_seed": seed, "options": numbers, "split": split}
    new_labels = None if labels is None else decisions.read_labels(labels)
    if new_labels is not None:
        data["labels"] = decisions.fingerprint(new_labels)
    splits = benchmarks.load(name, root, rule=rule or "majority", skip_bad=skip_bad, splits=(split,), noise=noise,
                             noise_rate=noise_rate, noise_seed=seed, progress=progress, **numbers)
    faces = splits._asdict()[split]
    if faces is None or not len(faces):
        raise FerlabError(f"{root or name} has no {split} faces to judge.")
    if new_labels is not None:
        faces = decisions.with_labels(faces, new_labels, str(labels))
    _tell_split(split, faces)
    _need_two_classes(faces)
    found = auditing.audit(faces, config, directory, folds, progress, click.echo)
    runs.write_json(directory / "data.json", data)  # this and a copy of the labels, so that it can be explored
    if new_labels is not None:
        decisions.write_labels(directory / "labels.csv", new_labels)
    paths = auditing.write(found, faces, directory, count)
    click.echo(f"\n{int(found.suspected.sum()):,} of {len(faces):,} labels are more likely wrong than right, as far as "
               f"the networks can tell: they give {percent(found.agreement)} of the faces their label, and their own "
               "errors count as the labels'")
    quality = {} if faces.truth is None else found.quality(faces.truth)
    if quality.get("auroc") is not None:
        click.echo(f"against the reference: {percent(quality['wrong_share'])} of the labels are wrong; found with "
                   f"AUROC {quality['auroc']:.3f}, average precision {quality['average_precision']:.3f}; "
                   f"{percent(quality['right_if_wrong'])} of the wrong ones are suggested right")
    click.echo(f"The list is in {paths['csv']}, the most suspicious faces in {paths['png']}")
    then = ""
    if split == "train" and labels is not None:
        then = f" (it starts from the labels of {labels})"
    elif split == "train" and found.learned:  # train --labels takes labels of training faces only
        then = (f"; or take wrong rows out of {paths['labels']}, and train on the rest with ferlab train --labels "
                f"{paths['labels']}")
    click.echo(f"Next: decide one by one with ferlab explore --run {directory}{then}")


# -------------------------------------------------------------------------------------------------------------- data

@cli.group()
def data() -> None:
    """Look at data sets, and prepare them."""


@data.command()
@click.argument("name", required=False)
def layout(name: str | None) -> None:
    """Show the files that a data set, or each, consists of."""
    from ferlab import benchmarks

    for each in [name] if name else benchmarks.NAMES:
        click.echo(f"{each}\n{_indented(benchmarks.layout(each))}\n")


@data.command()
@_data_options("rendered")
@click.option("--noise", type=click.Choice(NOISE_KINDS), help="Put wrong labels among the training faces'.")
@click.option("--noise-rate", type=click.FloatRange(0, 1), help="Share of labels to make wrong. [default: 0.3]")
@click.option("--holdout", type=click.FloatRange(0, 1, max_open=True), default=0.0, help="As in ferlab train.")
@click.option("--seed", type=click.IntRange(0), default=0, help="Of the noise.")
def info(name: str, root: Path | None, rule: str | None, skip_bad: bool, options: tuple[str, ...],
         progress: bool | None, noise: str | None, noise_rate: float | None, holdout: float, seed: int) -> None:
    """Count the faces of each split and class.

    Tells also how many labels differ from the reference, where there is one.
    """
    from ferlab import benchmarks

    splits = benchmarks.load(name, root, rule=rule or "majority", skip_bad=skip_bad, holdout=holdout, noise=noise,
                             noise_rate=share_of_noise(noise, noise_rate), noise_seed=seed, progress=progress,
                             **parse_options(options))
    _tell_splits(splits)
    click.echo("\n" + counts_table(splits))


@data.command()
@_data_options("rendered")
@click.option("--size", type=click.IntRange(8, 1024), help="Side of the faces in pixels. [default: the data set's own]")
def pack(name: str, root: Path | None, rule: str | None, skip_bad: bool, options: tuple[str, ...],
         progress: bool | None, size: int | None) -> None:
    """Decode a data set's images once, into the cache.

    Every later start is then instant. One pack serves all label rules.
    """
    from ferlab import benchmarks
    from ferlab.data import cache_directory

    numbers = parse_options(options)
    packed = numbers.pop("size", None)
    size = size or packed
    made = benchmarks.pack(name, root, size=size, skip_bad=skip_bad, progress=progress, **numbers)
    for split, path in made.items():
        click.echo(f"{split}: {path} ({path.stat().st_size / 1e6:,.0f} MB)")
    if skip_bad and made:
        for faces in benchmarks.load(name, root, size=size, skip_bad=True).with_faces().values():
            for line in _skipped_lines(faces.skipped):
                click.echo(line)
    if not made:
        click.echo(f"The faces of {name} are in {cache_directory()}")


@data.command()
@click.argument("folder", metavar="PHOTOS", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), required=True, help="Folder of the faces.")
@click.option("--size", type=click.IntRange(32, 1024), default=96, show_default=True, help="Side of the faces, pixels.")
@click.option("--progress/--no-progress", default=None, help="Show a bar. [default: on a terminal only]")
def crop(folder: Path, out: Path, size: int, progress: bool | None) -> None:
    """Cut the face that the detector is surest of out of each photo in a folder and in those within it.

    The folders, such as <split>/<class>, stay as they are, so that --data folder --root OUT reads the faces. Photos
    without a face that looks at the camera are left out and listed. The same command goes on where it stopped.
    """
    from PIL import Image
    from tqdm import tqdm

    from ferlab import photos
    from ferlab.runs import write_whole

    if folder.resolve() in (out.resolve(), *out.resolve().parents):
        raise FerlabError(f"{out} lies in {folder}, so that faces would be taken for photos: give another --out.")
    found = photos.photos_in(folder, within=True)
    places = {path: out / path.relative_to(folder).with_suffix(".png") for path in found}
    often = Counter(places.values())
    if len(often) < len(places):
        twice = next(path for path in found if often[places[path]] > 1)
        raise FerlabError(f"{twice} and another photo there have the same name but for its ending, so that one face "
                          "would overwrite the other: rename one.")
    left_out = []
    for path, place in tqdm(places.items(), unit="photo", disable=None if progress is None else not progress):
        if place.exists():
            side = size
            with suppress(OSError), Image.open(place) as made:
                side = made.width
            if side != size:
                raise FerlabError(f"{place} has {side} pixels a side, not {size}: give --size {side}, or another "
                                  "--out.")
            continue
        try:
            photo = photos.read_photo(path)
        except FerlabError as error:
            left_out.append(f"{path.relative_to(folder)}: {error}")
            continue
        boxes = photos.find_faces(photo)
        if not len(boxes):
            left_out.append(f"{path.relative_to(folder)}: no face that looks at the camera")
            continue
        face = Image.fromarray(photos.crop_faces(photo, boxes[:1], size)[0])
        write_whole(place, functools.partial(face.save, format="PNG"))
    click.echo("\n".join([f"{len(places) - len(left_out):,} faces are in {out}", *_skipped_lines(left_out)]))


def _need_two_classes(faces: FaceSet | None) -> None:
    """FerlabError where all faces are given one label, so that there is nothing to learn."""
    if faces is not None and len(given := set(faces.labels.tolist())) == 1:
        raise FerlabError(f"All {len(faces):,} {faces.split} faces are given one label, {faces.classes[given.pop()]}: "
                          "give faces of two classes at least.")


def _tell_splits(splits: Splits) -> None:
    for split, faces in splits._asdict().items():
        if faces is not None:
            _tell_split(split, faces)


def _tell_split(split: str, faces: FaceSet) -> None:
    click.echo("\n".join([_split_line(split, faces), *_skipped_lines(faces.skipped)]))


def _skipped_lines(names: Sequence[str], most: int = 50) -> list[str]:
    """Images that were left out, each on a line."""
    more = [f"  and {len(names) - most:,} more"] if len(names) > most else []
    return [f"  left out: {name}" for name in names[:most]] + more


def _split_line(split: str, faces: FaceSet) -> str:
    height, width = faces.images.shape[1:3]
    parts = [f"{faces.dataset} {split}: {len(faces):,} faces of {width} x {height} pixels"]
    parts += [f"rule {faces.rule}"] if faces.rule else []
    parts += [faces.noise] if faces.noise else []
    if not faces.noise and faces.noise_rate > 0:  # nan where nothing is known
        parts.append(f"{percent(faces.noise_rate)} of the labels differ from the reference")
    parts += [f"{len(faces.skipped):,} images left out"] if faces.skipped else []
    return ", ".join(parts)


def counts_table(splits: Splits) -> str:
    """Faces of each class, by their given label, in each split."""
    there = {split: faces for split, faces in splits._asdict().items() if faces is not None}
    classes = next(iter(there.values())).classes
    width = max(len("class"), *map(len, classes))
    lines = [f"{'class':<{width}}" + "".join(f"  {split:>8}" for split in there)]
    for i, name in enumerate(classes):
        lines.append(f"{name:<{width}}" + "".join(f"  {faces.class_counts[i]:>8,}" for faces in there.values()))
    return "\n".join(lines)


@data.command("apply-decisions")
@click.option("--run", "directory", metavar="DIR", required=True, help="The run or audit that was explored.")
@click.option("--decisions", "log", type=click.Path(path_type=Path, dir_okay=False, exists=True),
              help="What ferlab explore wrote. [default: decisions.csv of the run]")
@click.option("--data", "name", metavar="NAME", help="Data set. [default: the run's]")
@click.option("--root", type=click.Path(path_type=Path), help="Its folder or .zip. [default: the run's]")
@click.option("--output", type=click.Path(path_type=Path, dir_okay=False),
              help="[default: corrected.csv beside the decisions]")
def apply_decisions(directory: str, log: Path | None, name: str | None, root: Path | None,
                    output: Path | None) -> None:
    """Write the labels of the faces of a run or an audit, corrected by the decisions about them.

    A CSV with one row a face: name,label. Train on it with ferlab train --labels FILE.
    """
    from ferlab import decisions, explorer

    path = log or Path(directory) / "decisions.csv"
    if not path.is_file():
        raise FerlabError(f"There is no {path}: decide about some faces with ferlab explore --run {directory}.")
    faces = explorer.judged_faces(directory, name, root)
    made = decisions.DecisionLog(path)
    labels = decisions.corrected_labels(faces, made)
    output = output or path.with_name("corrected.csv")
    decisions.write_labels(output, decisions.named(faces, labels))
    click.echo(f"{len(made.current):,} of {len(faces):,} faces are decided, {int((labels != faces.labels).sum()):,} "
               "get another label.")
    if faces.noise and faces.truth is not None and (known := faces.truth >= 0).any():
        before, after = ((each == faces.truth)[known].mean() for each in (faces.labels, labels))
        click.echo(f"Labels that agree with the reference: {percent(before)} before, {percent(after)} now.")
    then = f"train --labels {output} with the data options of {directory}, into another --run"
    if faces.split != "train":
        then = f"evaluate --labels {output} --split {faces.split}, and a --run to score"
    click.echo(f"Next: ferlab {then}.")


# ----------------------------------------------------------------------------------------------------------- explore

@cli.command(short_help="Look at suspected faces and decide about their labels.")
@click.option("--run", "directory", metavar="DIR", required=True, help="A finished run of drfer, or an audit.")
@click.option("--data", "name", metavar="NAME", help="Data set. [default: the run's]")
@click.option("--root", type=click.Path(path_type=Path), help="Its folder or .zip. [default: the run's]")
@click.option("--decisions", "log", type=click.Path(path_type=Path, dir_okay=False),
              help="Where decisions are kept. [default: decisions.csv of the run]")
@click.option("--port", type=click.IntRange(1, 65535), default=8866, show_default=True, help="The next free one.")
@click.option("--browser/--no-browser", default=True, help="Open it in a browser.")
def explore(directory: str, name: str | None, root: Path | None, log: Path | None, port: int, browser: bool) -> None:
    """Look at the faces that a run split off as noisy or an audit suspects, and decide about their labels.

    Serves a page on this machine alone, until Ctrl+C. Every decision is on disk at once.
    """
    click.echo(f"Opening {directory} ...")  # PyTorch takes seconds to import
    from ferlab import explorer

    def ready(url: str) -> None:
        import webbrowser

        click.echo(f"The explorer is at {url}\nStop it with Ctrl+C; decisions are kept in "
                   f"{log or Path(directory) / 'decisions.csv'}")
        if browser:
            webbrowser.open(url)

    explorer.serve(directory, name, root, log, port, ready)
    told = {"--run": directory, "--decisions": log, "--data": name, "--root": root}
    options = " ".join(f"{option} {value}" for option, value in told.items() if value is not None)
    click.echo(f"\nNext: ferlab data apply-decisions {options}")


# ------------------------------------------------------------------------------------------------------- walkthrough

@cli.command(short_help="Run the notebooks, and write them as pages to read.")
@click.option("--profile", "profile_", type=click.Choice(list(PROFILES)),
              help="Size of the trainings. [default: $FERLAB_PROFILE, else full with a GPU and quick without]")
@click.option("--only", metavar="NUMBER", multiple=True, help="Run only this notebook, such as 01; may be repeated.")
@click.option("--output", type=click.Path(path_type=Path, file_okay=False), help="[default: walkthrough/]")
@click.option("--in-place", is_flag=True, help="Also update the notebooks themselves.")
def walkthrough(profile_: str | None, only: tuple[str, ...], output: Path | None, in_place: bool) -> None:
    """Run the notebooks in order, and write them as pages to read.

    Each starts from a fresh kernel; the first cell that fails ends the walk.
    """
    from ferlab import walkthrough as notebooks

    if not notebooks.execute_all(profile_name(profile_), only, output, in_place, click.echo):
        sys.exit(1)



# ------------------------------------------------------------------------------------------------------------- bench

@cli.command(short_help="Run the trainings of a grid file.")
@click.argument("grid", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option("--root", type=click.Path(path_type=Path), help="Where the grid's data set lies; rendered needs none.")
@click.option("--results", type=click.Path(path_type=Path, file_okay=False), default="benchmarks/results",
              show_default=True, help="One JSON a run goes there; those that exist are not run again.")
@click.option("--runs", type=click.Path(path_type=Path, file_okay=False), default="runs", show_default=True,
              help="Run directories go there. A grid that was interrupted goes on with them, and other --results take "
                   "what they hold.")
@click.option("--jobs", type=click.IntRange(1), default=1, show_default=True, help="Trainings at a time, a core each.")
@click.option("--only", default="", metavar="TEXT", help="Only the cells whose name contains it.")
def bench(grid: Path, root: Path | None, results: Path, runs: Path, jobs: int, only: str) -> None:
    """Run the trainings of a grid file, such as benchmarks/rendered.json.

    A grid names its data set and options (as --option; "holdout" of a set in two parts), profile, seeds, kinds and
    rates of noise, methods with their settings, and schedules, settings of which every method tries each with the first
    seed; the others take the one that did best on the validation split. "settings" may hold what they all share. The
    tables of ferlab report compare with the method that the grid calls "plain":

    \b
    {"name": "rafdb", "data": "rafdb", "options": {"holdout": 0.1},
     "profile": "quick", "seeds": [0, 1, 2],
     "noise": [["none", 0.0], ["symmetric", 0.3]],
     "methods": {"plain": {"method": "plain"}, "full": {"method": "drfer"}},
     "schedules": {"short": {"epochs": 36}, "long": {"epochs": 66}}}
    """
    from ferlab.bench import read_failures, read_grid, run_grid

    run_grid(grid, results, root, runs, jobs, only)
    cells = {cell.name for cell in read_grid(grid, root) if only in cell.name}
    if failed := sorted(read_failures(results).keys() & cells):
        run = sum((results / f"{name}.json").is_file() for name in cells)
        raise FerlabError(f"{len(failed)} of {run} trainings failed, {results} tells why: {', '.join(failed)}.")


@cli.command(short_help="Print what ferlab bench measured, as tables.")
@click.option("--results", type=click.Path(path_type=Path, file_okay=False, exists=True), default="benchmarks/results",
              show_default=True)
@click.option("--audits", type=click.Path(path_type=Path, file_okay=False), default="benchmarks/audit",
              show_default=True, help="What benchmarks/audit.py compared.")
@click.option("--readme", type=click.Path(path_type=Path, dir_okay=False, exists=True),
              help="Put the tables between the markers of this file.")
def report(results: Path, audits: Path, readme: Path | None) -> None:
    """Print what ferlab bench and the comparison of audits measured as Markdown tables.

    With --readme they also take the place of what stands in that file between <!-- NAME --> and <!-- /NAME -->, NAME
    being summary, balanced and results, and audits, quoted and speed where there are such.

    And, apart from them, what papers report, from the file quoted.json beside the results, and what make bench
    measured, from speed.json.
    """
    from ferlab import bench

    measured = bench.read_results(results)
    failures = bench.read_failures(results)
    if not measured and not failures:
        raise FerlabError(f"There are no results in {results}: give the folder that ferlab bench --results wrote to.")
    parts = {"summary": bench.summary(measured), "balanced": bench.balance_table(measured),
             "results": bench.tables(measured)}
    if compared := bench.read_audits(audits):
        parts["audits"] = bench.audit_table(compared)
    if (papers := results.parent / "quoted.json").is_file():
        parts["quoted"] = bench.quoted_table(bench.quoted(papers))
    if (speeds := results.parent / "speed.json").is_file():
        parts["speed"] = bench.speed_table(speeds)
    if readme is not None:
        bench.update_readme(readme, parts)
    click.echo("\n\n".join(parts.values()))
    for name, reason in failures.items():
        click.echo(f"{name} failed: {reason}", err=True)


def _read_json(path: Path, then: str = "delete the run and train again") -> dict[str, Any]:
    from ferlab.runs import json_object

    try:
        return json_object(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise FerlabError(f"{path} cannot be read ({type(error).__name__}): {then}.") from error


def _indented(text: str) -> str:
    return "\n".join("    " + line for line in text.splitlines())


if __name__ == "__main__":
    main()

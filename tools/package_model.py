r"""Put a trained run into the package, as ``ferlab/assets/NAME.pt`` with a model card ``NAME.md`` of measured numbers.

    ferlab train --data ferplus --root ferplus.zip --rule distribution --method plain --profile full \
        --run runs/ferplus --set backbone=small18 --set size=48 --set epochs=50 --set learning_rate=0.002 \
        --set ramp_up=0.15 --set anneal_from=0.5 --set augmentation=1.0
    python tools/package_model.py runs/ferplus ferplus --root ferplus.zip
"""

from __future__ import annotations

import time
from pathlib import Path

import click
import numpy as np

from ferlab import benchmarks, load_pretrained
from ferlab.cli import percent
from ferlab.errors import FerlabError
from ferlab.evaluation import evaluate, most_taken_for
from ferlab.recogniser import ASSETS
from ferlab.runs import write_text

CARD = """# {name}: a recogniser of facial expressions

`ferlab.load_pretrained("{name}")` and `ferlab predict photo.jpg`. Made by `tools/package_model.py` from one training;
the numbers below are measured by it.

| | |
|---|---|
| network | the two branches of DR-FER, backbone `{backbone}`, {parameters} parameters, {size} x {size} pixels, \
{megabytes:.1f} MB |
| training | method `{method}`{labels_kept}, {epochs} epochs, seed {seed}, from scratch; the file holds all settings |
| data | {train:,} training faces of FER2013 with the labels of FER+ (Barsoum et al., ICMI 2016), rule `{rule}`: \
{labels} |
| measured on | the {faces:,} faces of FER+'s validation split by the rule `majority`: {majority}; the settings were \
chosen there |
| accuracy | **{accuracy}**, mean over classes {mean_class}, macro-F1 {macro_f1} |
| with classes balanced (`--balance`) | {balanced} |
| again | `ferlab evaluate --run {name} --data ferplus --root ferplus.zip --rule majority --split valid`, which \
averages over each face and its mirror image; the command of the training stands in `tools/package_model.py` |
| speed | {speed:.0f} faces a second on one core of {device} |

| class | faces | recall | most often taken for |
|---|---|---|---|
{classes}

**What it tells.** How ten hired raters would have named the expression in a small, frontal, tightly cropped face. Not
what the person feels: a smile is no proof of joy, and raters disagree about a good part of these very faces.

**Meant for** teaching, research on label noise, and looking through one's own photos. **Not meant for** decisions
about people - hiring, schooling, policing, insurance, medicine, attention at work - nor for watching people who have
not agreed; the European Union's AI Act forbids inferring emotions at work and at school (Article 5(1)(f)).

**Known failures.** Found less than half of the time: {worst}; there are few such
faces in the data, and raters agree least on them.
Faces from the side, tilted, partly hidden or lit from one side; drawings and statues. It always answers with one of
its classes, also for what is no face: look at the probability. Of the {faces:,} faces above it gives the class that it
names {sure} on the average, and the raters {agreed} of their votes.

**Bias.** FER2013 was gathered by an image search of 184 words for emotions (Goodfellow et al., 2013). Whom a search
engine shows is not a sample of people, and posed stock photos are many; the pictures are grey and of 48 pixels; the
raters were crowd workers. Neither age, sex nor skin colour is annotated, so how accuracy differs between groups of
people was not measured: expect that it does.
"""


RULES = {
    "majority": "single votes dropped, kept where one class has more than half of the rest",
    "argmax": "the class with most votes",
    "distribution": "every class has the share of the votes that it got",
}


@click.command()
@click.argument("run", type=click.Path(path_type=Path, exists=True))
@click.argument("name")
@click.option("--root", type=click.Path(path_type=Path, exists=True), required=True, help="FER+'s folder or .zip.")
@click.option("--output", type=click.Path(path_type=Path, file_okay=False), default=ASSETS)
def main(run: Path, name: str, root: Path, output: Path) -> None:
    """Package RUN, a run directory or a file of Recogniser.save, under NAME and write its card."""
    import torch

    recogniser = load_pretrained(run)
    rule = recogniser.about["data"].get("rule")
    if rule not in RULES:
        raise FerlabError(f"{run} does not say by which of FER+'s label rules it was trained.")
    recogniser.about["data"] = {"data": "ferplus", "rule": rule}
    path = output / f"{name}.pt"
    recogniser.save(path)
    packaged = load_pretrained(path)
    train = benchmarks.load("ferplus", root, rule=rule, splits=("train",)).train
    valid = benchmarks.load("ferplus", root, splits=("valid",)).valid
    scores = evaluate(packaged, valid)
    weighed = {balance: evaluate(packaged, valid, balance=balance) for balance in (0.25, 0.5)}
    torch.set_num_threads(1)
    started = time.perf_counter()
    packaged.predict(valid.images[:1024])
    speed = 1024 / (time.perf_counter() - started)
    probabilities = packaged.predict(valid.images)
    named = np.arange(len(valid)), probabilities.argmax(1)
    votes = valid.votes / valid.votes.sum(1, keepdims=True)
    recalls = scores["recall"]
    lines = [f"| {kind} | {scores['counts'][kind]:,} | {percent(recalls[kind])} | {other} ({most}) |"
             for kind, (other, most) in most_taken_for(scores).items()]
    rare = [kind for kind in recalls if recalls[kind] < 0.5]
    config = recogniser.config
    card = CARD.format(
        name=name, backbone=config.backbone, parameters=f"{sum(p.numel() for p in recogniser.network.parameters()):,}",
        size=config.size, megabytes=path.stat().st_size / 1e6, method=config.method,
        labels_kept="" if config.method == "drfer" else " (nothing was split off or relabelled)", epochs=config.epochs,
        seed=config.seed, train=len(train), rule=rule, labels=RULES[rule], majority=RULES["majority"],
        faces=scores["faces"], sure=percent(probabilities[named].mean()), agreed=percent(votes[named].mean()),
        accuracy=percent(scores["accuracy"]), mean_class=percent(scores["mean_class_accuracy"]),
        balanced="; ".join(f"by {balance}: {percent(each['accuracy'])}, mean over classes "
                           f"{percent(each['mean_class_accuracy'])}" for balance, each in weighed.items()),
        macro_f1=percent(scores["macro_f1"]), speed=speed, device=scores["environment"]["device"].split(",")[0],
        classes="\n".join(lines), worst=", ".join(rare) or "no class")
    write_text(output / f"{name}.md", card)
    click.echo(card)


if __name__ == "__main__":
    main()

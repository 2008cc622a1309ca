"""Compares an audit with cleanlab's scores on the same out-of-sample probabilities.

    ferlab audit --data fer2013 --root ferplus.zip --out audits/fer2013
    python benchmarks/audit.py audits/fer2013 --json benchmarks/audit/fer2013.json

Needs cleanlab (pip install 'ferlab[dev]'), and reference labels, which neither side has seen.
"""

from __future__ import annotations

from pathlib import Path

import click
import numpy as np
import torch

from ferlab import metrics
from ferlab.audit import Audit, read
from ferlab.errors import FerlabError
from ferlab.retrieval import retrieval_margin
from ferlab.runs import Run, write_json


def suspicion(found: Audit) -> dict[str, np.ndarray]:
    """Scores by name, [N] each, higher = more likely wrong: cleanlab's and ours."""
    from cleanlab.rank import get_label_quality_scores

    scores = {}
    for method in ("self_confidence", "normalized_margin", "confidence_weighted_entropy"):
        for adjusted in (False, True):  # by each class's mean confidence, as cleanlab offers
            if adjusted and method == "confidence_weighted_entropy":
                continue  # cleanlab does not adjust it
            name = f"cleanlab {method}" + (" adjusted" if adjusted else "")
            scores[name] = -get_label_quality_scores(
                found.given, found.probability.astype(float), method=method, adjust_pred_probs=adjusted)
    margin = retrieval_margin(torch.from_numpy(found.average_precision), torch.from_numpy(found.given)).numpy()
    return scores | {"retrieval margin": -margin, "audit score": found.score}


def compare(found: Audit, truth: np.ndarray) -> dict:
    """AUROC and average precision of every score; precision and recall of cleanlab's find_label_issues and of as many
    of the audit's most suspicious; share of the wrong labels that each way of relabelling sets right."""
    from cleanlab.filter import find_label_issues

    known = truth >= 0
    wrong = (found.given != truth)[known]
    if wrong.all() or not wrong.any():
        raise FerlabError(f"Of {len(wrong):,} labels with a reference {'all' if wrong.any() else 'none'} are wrong: "
                          "there is nothing to tell apart.")
    detection = {name: metrics.noise_detection(score[known], wrong) for name, score in suspicion(found).items()}
    issues = np.asarray(find_label_issues(found.given, found.probability.astype(float)))
    ours = np.zeros(len(issues), bool)
    ours[np.argsort(-found.score, kind="stable")[: issues.sum()]] = True
    chosen = {
        name: {"precision": float(wrong[flags[known]].mean()) if flags[known].any() else 0.0,
               "recall": float(flags[known][wrong].mean()), "flagged": int(flags.sum())}
        for name, flags in (("cleanlab find_label_issues", issues), ("audit, as many", ours))
    }
    is_given = np.arange(len(found.classes)) == found.given[:, None]
    labels = {"network's prediction": found.probability.argmax(1), "retrieval": found.average_precision.argmax(1),
              "network's best but the given": np.where(is_given, -1, found.probability).argmax(1),
              "audit's suggestion": found.suggested}
    right = {name: float((label == truth)[known][wrong].mean()) for name, label in labels.items()}
    best = {kind: max(value[kind] for name, value in detection.items() if name.startswith("cleanlab"))
            for kind in ("auroc", "average_precision")}
    return {
        "faces": int(known.sum()), "wrong_share": float(wrong.mean()), "detection": detection, "flagged": chosen,
        "right_if_wrong": right,
        "gain_over_cleanlabs_best": {kind: detection["audit score"][kind] - best[kind] for kind in best},
    }


@click.command()
@click.argument("directory", type=click.Path(path_type=Path, file_okay=False))
@click.option("--json", "report", type=click.Path(path_type=Path, dir_okay=False), help="Write the comparison there.")
def main(directory: Path, report: Path | None) -> None:
    """Print how the audit in DIRECTORY and cleanlab find its wrong labels."""
    found, truth = read(directory)
    if truth is None:
        raise FerlabError(f"The faces of {directory} have no reference labels to compare with.")
    first = Run.open(directory / "fold_0")
    result = compare(found, truth) | {
        "folds": len(list(directory.glob("fold_*.npz"))), "settings": vars(first.config),
        "environment": first.environment}
    if report is not None:
        write_json(report, result)
    click.echo(f"{result['faces']:,} faces, {result['wrong_share']:.1%} wrong\n\n| score | AUROC | average precision |")
    click.echo("|---|---|---|")
    for name, value in result["detection"].items():
        click.echo(f"| {name} | {value['auroc']:.3f} | {value['average_precision']:.3f} |")
    click.echo("\n| flagged by | faces | precision | recall |\n|---|---|---|---|")
    for name, value in result["flagged"].items():
        click.echo(f"| {name} | {value['flagged']:,} | {value['precision']:.3f} | {value['recall']:.3f} |")
    click.echo("\n| wrong labels set right by | share |\n|---|---|")
    for name, share in result["right_if_wrong"].items():
        click.echo(f"| {name} | {share:.3f} |")


if __name__ == "__main__":
    main()

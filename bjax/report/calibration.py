"""What the temperature that `bjax.predict` applies does to the honesty of a run's probabilities."""

from bjax.report.render import Table, condensed
from bjax.report.runs import Run, in_order, number_text


def table(runs: list[Run]) -> list:
    """ECE and NLL of the condition `sharp`, before and, cross-validated by photograph, after."""
    body, few = [], False
    for run in in_order([run for run in runs if run.calibration]):
        fitted = run.calibration
        before, after = fitted["before"], fitted["after"] or {}
        few |= "n_photographs" in fitted
        images = f"{fitted['n']:,}" + (f" of {fitted['n_photographs']:,}" if "n_photographs" in fitted else "")
        errors = [f"{100 * part['ece']:.1f}" if "ece" in part else "" for part in (before, after)]
        likelihoods = [f"{part['nll']:.3f}" if "nll" in part else "" for part in (before, after)]
        who = [run.model, run.trained_on]
        temperature = "" if fitted["temperature"] is None else f"{fitted['temperature']:.3g}"
        body.append([*who, *errors, *likelihoods, temperature, str(fitted["folds"]), images, number_text(run)])
    if not body:
        return []
    header = ["model", "trained on", "before", "after", "before", "after", "temperature", "folds", "images", "run"]
    groups = (("", 2), ("calibration error, %", 2), ("negative log-likelihood", 2), ("", 4))
    caption = (
        "On the condition sharp. Logits divided by one temperature, fitted by the likelihood of all these images, "
        "which bjax.predict and bjax.export apply. After: each fold by the temperature that the other folds chose, all "
        "crops of a photograph in one fold; where it is no better than before, a temperature does not carry over to "
        "other photographs. Calibration error: 15 bins of equal width, of the largest probability. Of several seeds "
        "the first."
    )
    caption += " Images: crops of so many photographs." if few else ""
    return [condensed(Table(header, body, caption, left=2, groups=groups))]

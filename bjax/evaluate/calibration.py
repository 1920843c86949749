"""The temperature that makes a run's probabilities honest, and what it does to images that did not choose it.

A model that was trained long is surer than it is right. Its logits divided by one number, the temperature, fitted to
images that it was not trained on, keep every order and mend most of that (Guo et al. 2017).
"""

import numpy as np

from bjax.evaluate.summary import calibration_error

FILE = "calibration.json"
CONDITION = "sharp"  # of the run's conditions, the one that it is fitted on
FOLDS = 5
# Temperatures: below, images are all right, or logits many times too small; above, images are all wrong.
LOWEST, HIGHEST = 0.05, 20.0


def of_answers(logits: np.ndarray, answers: dict[str, np.ndarray]) -> dict[str, object]:
    """The content of calibration.json. logits: float32[n, classes]; answers: label, int32[n], id and, where several
    images are of one photograph, photograph, as `summarise` has them.

    temperature: fitted to all images; None where it ends at `LOWEST`: of images that are all right the likelihood asks
    for certainty, which a few of them cannot give. before, after: their nll and ece, after by the temperatures that the
    images of the other folds chose; None where all are of one photograph, or there is no temperature. Crops of one
    photograph are in one fold: what they have in common would be known already.
    """
    labels, n = answers["label"], len(logits)
    groups = answers.get("photograph", answers["id"])
    names, group = np.unique(groups, return_inverse=True)
    folds = min(FOLDS, len(names))
    fitted, after = temperature(logits, labels), None
    if fitted == LOWEST:
        fitted = None
    elif folds > 1:
        scaled, fold = np.empty_like(logits), group % folds
        for k in range(folds):
            scaled[fold == k] = logits[fold == k] / temperature(logits[fold != k], labels[fold != k])
        after = _measured(scaled, labels)
    return {
        "temperature": fitted,
        "n": n,
        **({"n_photographs": len(names)} if "photograph" in answers else {}),
        "folds": folds,
        "before": _measured(logits, labels),
        "after": after,
    }


def temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """The T in [`LOWEST`, `HIGHEST`] at which softmax(logits / T) has the smallest mean negative log-likelihood.

    logits: float32[n, classes]; labels: int[n].
    """
    truth = logits[np.arange(len(labels)), labels].mean(dtype=np.float64)

    def slope(inverse):  # of the mean nll, which is convex in 1 / T
        shares = _softmax(logits * np.float32(inverse))
        return np.einsum("nc,nc->n", shares, logits).mean(dtype=np.float64) - truth

    if slope(1 / HIGHEST) >= 0:
        return HIGHEST
    if slope(1 / LOWEST) <= 0:
        return LOWEST
    from scipy import optimize  # here: a third of a second of every start, which most of training does without

    return 1 / optimize.brentq(slope, 1 / HIGHEST, 1 / LOWEST, xtol=1e-5)


def _measured(logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    shares = _softmax(logits)
    of_truth = np.maximum(shares[np.arange(len(labels)), labels], np.finfo(np.float32).tiny)
    correct = (logits.argmax(axis=1) == labels).astype(float)
    ece = calibration_error(shares.max(axis=1).astype(float), correct)
    return {"nll": float(-np.log(of_truth).mean(dtype=np.float64)), "ece": ece}


def _softmax(logits: np.ndarray) -> np.ndarray:
    shares = np.exp(logits - logits.max(axis=1, keepdims=True))
    return shares / shares.sum(axis=1, keepdims=True)

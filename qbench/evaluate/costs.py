"""What a changed model costs, from what became of each prediction: means, tails and their standard errors."""

from collections.abc import Mapping
from math import exp

import numpy as np
from numpy.typing import NDArray

from qbench.evaluate.likelihood import bits_per_byte

Floats = NDArray[np.float64]
Columns = Mapping[str, Floats]  # name -> one number per prediction
COLUMNS = ("loss", "reference_loss", "kld", "kld/reverse", "delta_p", "wrong", "reference_wrong", "top1_changed")
TAILS = {"max": 100, "p99.9": 99.9, "p99": 99, "p95": 95, "median": 50, "p10": 10, "p5": 5, "p1": 1}
LARGEST = 700.0  # nats: e to more than this is no float64


def costs(each: Columns, bytes_per_token: float | None = None) -> dict[str, float]:
    """The costs of predictions [n], in the order of llama.cpp's report. Percentiles interpolate linearly, as there.

    `loss_correlation` is absent where a model's loss is the same everywhere, `bits_per_byte` without bytes.
    """
    loss, base = each["loss"].mean(), each["reference_loss"].mean()
    found = {"loss": loss, "loss_increase": loss - base}
    if bytes_per_token is not None:
        found["bits_per_byte"] = bits_per_byte(loss, bytes_per_token)
    found |= {"error_rate": each["wrong"].mean(), "perplexity": exp(min(loss, LARGEST))}
    spreads = [each[name] - each[name].mean() for name in ("loss", "reference_loss")]
    if (scale := np.sqrt(np.square(spreads[0]).mean() * np.square(spreads[1]).mean())) > 0:
        found["loss_correlation"] = (spreads[0] * spreads[1]).mean() / scale
    found |= {"perplexity_ratio": exp(min(loss - base, LARGEST)), "kld": each["kld"].mean()}
    tails = np.percentile(each["kld"], list(TAILS.values()))
    found |= {f"kld/{name}": value for name, value in zip(TAILS, tails, strict=True)}
    found["kld/reverse"] = each["kld/reverse"].mean()
    found |= {"delta_p": each["delta_p"].mean(), "delta_p/rms": np.sqrt(np.square(each["delta_p"]).mean())}
    found |= {name: change.mean() for name, change in _changes(each).items()}
    return {name: float(value) for name, value in found.items()}


def standard_errors(each_NT: Columns, scored_NT: NDArray[np.bool_]) -> dict[str, float]:
    """Of the means in `costs`, over windows: tokens of one text are no independent samples. Empty for one window.

    Windows weigh as much as they have predictions; functions of a mean by the delta method.
    """
    counts = scored_NT.sum(1)
    if len(counts) < 2:
        return {}

    def of(values_NT: Floats) -> float:
        sums = (values_NT * scored_NT).sum(1)
        apart = sums - counts * (sums.sum() / counts.sum())
        return float(np.sqrt(np.square(apart).sum() * len(counts) / (len(counts) - 1)) / counts.sum())

    loss, base, delta = (each_NT[name] for name in ("loss", "reference_loss", "delta_p"))
    whole = costs({name: values[scored_NT] for name, values in each_NT.items()})
    found = {"loss": of(loss), "loss_increase": of(loss - base), "error_rate": of(each_NT["wrong"])}
    found["perplexity"] = whole["perplexity"] * found["loss"]
    found["perplexity/unquantized"] = whole["perplexity"] / whole["perplexity_ratio"] * of(base)
    found["perplexity_ratio"] = whole["perplexity_ratio"] * found["loss_increase"]
    found |= {name: of(each_NT[name]) for name in ("kld", "kld/reverse", "delta_p")}
    rms = whole["delta_p/rms"]
    found["delta_p/rms"] = of(np.square(delta)) / (2 * rms) if rms else 0.0
    return found | {name: of(change) for name, change in _changes(each_NT).items()}


def per_window(each_NT: Columns, scored_NT: NDArray[np.bool_]) -> dict[str, Floats]:
    """The mean of each column and each kind of change over the scored predictions of a window, [N]."""
    counts = scored_NT.sum(1)
    return {name: (v * scored_NT).sum(1) / counts for name, v in {**each_NT, **_changes(each_NT)}.items()}


def _changes(each: Columns) -> dict[str, Floats]:
    """Another first token; another verdict, by direction (A. Dutta et al., arXiv 2407.09141)."""
    worse = np.maximum(each["wrong"] - each["reference_wrong"], 0)
    better = np.maximum(each["reference_wrong"] - each["wrong"], 0)
    return {
        "top1_changed": each["top1_changed"],
        "flips": worse + better,
        "flips/to_wrong": worse,
        "flips/to_right": better,
    }

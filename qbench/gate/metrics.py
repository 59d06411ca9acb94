"""What a policy may gate: which metrics have one number per window, and which are counted exactly."""

from qbench.metrics.catalog import METRICS
from qbench.names import suggestion

# Costs of a model, one number for each window or item: a candidate's are compared with those of its reference.
LEVELS = ("loss", "error_rate")
# Costs that stand beside the unquantized model already: without a reference they are compared with nothing changed.
DIVERGENCES = ("loss_increase", "kld", "kld/reverse", "top1_changed", "flips", "flips/to_wrong")
# Counted from what is stored: no sampling, so no interval and no test.
EXACT = ("bits_per_value", "bits_per_value/model", "bits_per_value/quantized", "bytes/model", "bytes/disk")
# What the unquantized model's numbers are called in the evidence of a quantized one.
REFERENCES = {"loss": "reference_loss", "error_rate": "reference_wrong"}
_INSTEAD = {"perplexity": "loss", "perplexity_ratio": "loss_increase", "delta_p/rms": "kld", "bits_per_byte": "loss"}


def objection(metric: str) -> str:
    """Why a policy cannot gate `metric`, and what to gate instead; nothing where it can.

    >>> objection("perplexity")
    "'perplexity' has no number for each window, and so no test; gate loss"
    """
    if metric in (*LEVELS, *DIVERGENCES, *EXACT):
        return ""
    if metric not in METRICS:
        return f"no metric {metric!r}{suggestion(metric, METRICS)} qbench ls metrics lists them"
    if METRICS[metric].role != "cost":
        return f"{metric!r} is no cost: more of it is neither better nor worse; gate {', '.join(DIVERGENCES[:2])}"
    if metric.endswith("/worst_slice"):
        return f"write metric: {metric.removesuffix('/worst_slice')} and worst_slice: true"
    instead = _INSTEAD.get(metric) or ("kld" if metric.startswith("kld/") else ", ".join((*LEVELS, *DIVERGENCES)))
    return f"{metric!r} has no number for each window, and so no test; gate {instead}"


def unit(metric: str) -> str:
    """
    >>> unit("kld"), unit("bits_per_value")
    ('nats/token', 'bits')
    """
    found = "bits" if metric == "bits_per_value" else METRICS[metric].unit
    return "" if found == "1" else found

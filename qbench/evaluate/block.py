"""The text block about a changed model's predictions, in the order that users of llama.cpp know."""

from collections.abc import Mapping
from math import log

_QUANTILES = (
    ("Maximum KLD", "kld/max"),
    ("99.9%   KLD", "kld/p99.9"),
    ("99.0%   KLD", "kld/p99"),
    ("95.0%   KLD", "kld/p95"),
    ("Median  KLD", "kld/median"),
    ("10.0%   KLD", "kld/p10"),
    (" 5.0%   KLD", "kld/p5"),
    (" 1.0%   KLD", "kld/p1"),
)


def block(values: Mapping[str, float], errors: Mapping[str, float], setting: str) -> str:
    """`values` and standard `errors` by metric, as `Divergence` gives them, under a line that says what they are of.

    >>> print(block({"perplexity": 8.0, "perplexity_ratio": 1.0, "kld": 0.5}, {"kld": 0.25}, "a test").split("===")[-1])
    <BLANKLINE>
    Mean    KLD                    :   0.500000 ±   0.250000
    """
    ratio = values["perplexity_ratio"]
    base = {**values, "perplexity/unquantized": values["perplexity"] / ratio, "ln": log(ratio)}
    known = {**errors, **({"ln": errors["loss_increase"]} if "loss_increase" in errors else {})}
    perplexity = (
        _line("Mean PPL(Q)", "perplexity", base, known),
        _line("Mean PPL(base)", "perplexity/unquantized", base, known),
        _percent("Cor(ln(PPL(Q)), ln(PPL(base)))", "loss_correlation", base, known),
        _line("Mean ln(PPL(Q)/PPL(base))", "ln", base, known),
        _line("Mean PPL(Q)/PPL(base)", "perplexity_ratio", base, known),
    )
    divergence = (
        _line("Mean    KLD", "kld", values, errors),
        *(_line(label, name, values, errors) for label, name in _QUANTILES),
        _line("Mean    KLD, reverse", "kld/reverse", values, errors),
    )
    same = {**values, **({"same": 1 - values["top1_changed"]} if "top1_changed" in values else {})}
    kept = {**errors, **({"same": errors["top1_changed"]} if "top1_changed" in errors else {})}
    probability = (
        _percent("Mean    Δp", "delta_p", values, errors),
        _percent("RMS     Δp", "delta_p/rms", values, errors),
        _percent("Same top p", "same", same, kept),
        _percent("Flips", "flips", values, errors),
    )
    titles = ("Perplexity statistics", "KL divergence statistics", "Token probability statistics")
    parts = zip(titles, (perplexity, divergence, probability), strict=True)
    shown = ["\n".join([f"====== {title} ======", *filter(None, lines)]) for title, lines in parts if any(lines)]
    return "\n\n".join([setting, *shown])


def _line(label: str, name: str, values: Mapping[str, float], errors: Mapping[str, float]) -> str:
    if name not in values:
        return ""
    spread = f" ± {errors[name]:10.6f}" if name in errors else ""
    return f"{label:<31}: {values[name]:10.6f}{spread}"


def _percent(label: str, name: str, values: Mapping[str, float], errors: Mapping[str, float]) -> str:
    if name not in values:
        return ""
    spread = f" ± {100 * errors[name]:6.3f}" if name in errors else ""
    return f"{label:<31}: {100 * values[name]:6.3f}{spread} %"

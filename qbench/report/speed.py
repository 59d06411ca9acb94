"""How fast models were trained: tokens a second, and how much of the device's arithmetic that was."""

from collections.abc import Mapping, Sequence
from statistics import median

from qbench.report.words import THIN, number

STEPS = ((1e12, "TFLOP/s"), (1e9, "GFLOP/s"), (1e6, "MFLOP/s"))
NO_PEAK = "no peak is stated for this device, so no model FLOPs utilization"


def told(trainings: Sequence[Mapping[str, float]]) -> str:
    """The values of some trainings in one line: medians, with the range of what differs; "" where nothing was timed.

    >>> told([{"tokens_per_second": 16000, "model_flops": 4.8e10}]).replace(THIN, " ")
    '16 000 tokens/s, 48 GFLOP/s; no peak is stated for this device, so no model FLOPs utilization'
    >>> told([{"tokens_per_second": t, "model_flops": 4e14, "mfu": 0.4} for t in (1e5, 3e5)]).replace(THIN, " ")
    '200 000 tokens/s (100 000 to 300 000), 400 TFLOP/s, 40 % model FLOPs utilization'
    """
    rates = [values["tokens_per_second"] for values in trainings if "tokens_per_second" in values]
    if not rates:
        return ""
    spread = f" ({number(min(rates))} to {number(max(rates))})" if max(rates) > 1.01 * min(rates) else ""
    operations = [values["model_flops"] for values in trainings if "model_flops" in values]
    parts = [f"{number(median(rates))} tokens/s{spread}", *([_operations(median(operations))] if operations else [])]
    shares = [values["mfu"] for values in trainings if "mfu" in values]
    if not shares:
        return f"{', '.join(parts)}; {NO_PEAK}"
    return f"{', '.join(parts)}, {number(100 * median(shares), 2)}{THIN}% model FLOPs utilization"


def _operations(rate: float) -> str:
    size, unit = next((step for step in STEPS if rate >= step[0]), STEPS[-1])
    return f"{rate / size:.3g}{THIN}{unit}"

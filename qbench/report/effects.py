"""What the suite set out to test, what was measured, and whether the seeds decide it.

An effect pairs two arms by seed: sites are averaged within a seed, then the two arms are compared, then the seeds are.
Each seed is one sample; the interval is Student's t over seeds, of differences, or of logarithms of ratios.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any, Literal

from qbench.capture import sites
from qbench.report.view import Arm, Row, View, by_seed
from qbench.report.words import THIN, counted, decimals_of, fixed, listed, number, with_unit
from qbench.stats.interval import Interval, difference_interval, ratio_interval

Verdict = Literal["supported", "contradicted", "undecided"]
INTERVALS: Mapping[str, Callable[[Sequence[float], Sequence[float]], Interval | None]] = {
    "difference": difference_interval,
    "ratio": ratio_interval,
}
FOLLOWED: Mapping[str, str] = {"noise/": "noise", "add/": "adds"}  # what metrics that begin so are measured as
ONE_SEED = "one seed, no interval"


@dataclass(frozen=True, slots=True, kw_only=True)
class Effect:
    """One claim answered. `levels` are the two arms' means; `value`, `low`, `high` are None where undefined."""

    claim: str
    arms: tuple[str, str]
    compare: str
    metric: str
    null: float
    levels: tuple[float, float] | None = None
    value: float | None = None
    low: float | None = None
    high: float | None = None
    n: int = 0
    verdict: Verdict = "undecided"
    unit: str = ""
    of_levels: str = ""  # the unit of `levels`, also where the effect is a ratio
    reason: str = ""  # why it is undecided, or what to keep in mind
    text: str = ""
    treatments: tuple[str, str] = ("", "")  # whose losses it is about, "" for tensors

    @property
    def treatment(self) -> str:
        return self.treatments[0]

    @property
    def sides(self) -> tuple[str, str]:
        """What is compared with what: the arms, with their treatments where these differ."""
        if self.treatments[0] == self.treatments[1]:
            return self.arms
        one, two = (f"{arm}, {treatment}" for arm, treatment in zip(self.arms, self.treatments, strict=True))
        return one, two


def answer(run: View, effects: Sequence[Mapping[str, Any]]) -> list[Effect]:
    """Every effect of the suite, in its order; what could not be measured is undecided and says why."""
    return [_effect(run, effect) for effect in effects]


def _effect(run: View, asked: Mapping[str, Any]) -> Effect:
    first, second = (str(name) for name in asked["between"])
    metric, compare = str(asked["measure"]["metric"]), str(asked["compare"])
    side, null = str(asked["thesis"]).split()
    about: dict[str, Any] = {
        "claim": str(asked["claim"]),
        "arms": (first, second),
        "compare": compare,
        "metric": metric,
        "null": float(null),
        "unit": "×" if compare == "ratio" else run.unit(metric),
        "of_levels": run.unit(metric),
        "treatments": tuple(str(measure.get("treatment", "")) for _, measure in pairs(asked)),
    }
    found = [per_seed(run, *pair) for pair in pairs(asked)]
    paired = sorted(found[0].keys() & found[1].keys())
    if not paired:
        missing = listed([name for name, values in zip((first, second), found, strict=True) if not values])
        reason = f"not measured for {missing}" if missing else "not measured: the arms have no seed in common"
        return _worded(Effect(**about, reason=reason))
    about |= {"levels": (fmean(found[0][s] for s in paired), fmean(found[1][s] for s in paired)), "n": len(paired)}
    interval = INTERVALS[compare]([found[0][seed] for seed in paired], [found[1][seed] for seed in paired])
    if interval is None:
        return _worded(Effect(**about, reason="a value is zero or negative, so a ratio is undefined"))
    value, low, high = interval
    if len(paired) == 1:
        return _worded(Effect(**about, value=value, reason=ONE_SEED))
    verdict, reason = _decided(low, high, side, float(null))
    return _worded(Effect(**about, value=value, low=low, high=high, verdict=verdict, reason=reason))


def pairs(asked: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    """Each arm of a claim with what is measured of it."""
    first, second = (str(name) for name in asked["between"])
    return [(first, asked["measure"]), (second, asked.get("against") or asked["measure"])]


def per_seed(run: View, arm_name: str, measure: Mapping[str, Any]) -> dict[int, float]:
    """What `measure` asks for, one number for each seed of the arm, its sites averaged; empty where there is none."""
    arm = run.arm(arm_name)
    return by_seed(_rows(run, arm, measure), str(measure["metric"])) if arm else {}


def _rows(run: View, arm: Arm, measure: Mapping[str, Any]) -> list[Row]:
    metric = str(measure["metric"])
    if "treatment" in measure:
        of_treatment = {"arm": arm.name, "treatment": measure["treatment"]}
        if metric.startswith("flow/"):
            return run.select("flow", site=f"blocks.{arm.layers - 1}", **of_treatment)
        return run.select("loss", **of_treatment)
    wanted = {"kind": measure["kind"], "quantizer": measure.get("quantizer") or ""}
    rows = run.select(_what(arm, metric, wanted["quantizer"]), arm=arm.name, **wanted)
    patterns = [str(pattern) for pattern in measure["sites"]]
    if at_once := [row for row in rows if row.scope in patterns]:  # noise at all places of a scope
        return at_once
    chosen = {s for pattern in patterns for s in sites.resolve(pattern, measure["kind"], sites.recorded(arm.model))}
    return [row for row in rows if row.site in chosen]


def _what(arm: Arm, metric: str, quantizer: str) -> str:
    """What a number of tensors was measured as."""
    if "depth" in arm.model:
        return "theory"
    return next(
        (what for start, what in FOLLOWED.items() if metric.startswith(start)), "error" if quantizer else "shape"
    )


def _decided(low: float, high: float, side: str, null: float) -> tuple[Verdict, str]:
    if low > null or high < null:
        return ("supported" if (low > null) == (side == "above") else "contradicted"), ""
    return "undecided", f"no evidence either way: the interval includes {null:g}"


def _worded(effect: Effect) -> Effect:
    parts = [effect.claim.rstrip(".") + ":"]
    if effect.levels:
        levels = (f"{name} {number(level)}" for name, level in zip(effect.sides, effect.levels, strict=True))
        parts.append(with_unit(" against ".join(levels), effect.of_levels) + ";")
    if effect.value is not None:
        parts.append(f"{effect.compare} {magnitude(effect)} ({certainty(effect)}).")
    else:
        parts.append(f"{effect.reason}.")
    return replace(effect, text=" ".join(parts))


def magnitude(effect: Effect) -> str:
    """The effect alone: `3.3×`, `+2.95 dB`."""
    if effect.value is None:
        return "no value"
    text, *_ = _numbers(effect)
    if effect.compare == "ratio":
        return f"{text}×"
    return with_unit(f"+{text}" if effect.value > 0 else text, effect.unit)


def certainty(effect: Effect) -> str:
    """`95 % interval 2.4 to 4.6, 3 seeds`, or that there is none."""
    if effect.n == 0:
        return "not measured"
    if effect.low is None or effect.high is None:
        return ONE_SEED if effect.n == 1 else counted(effect.n, "seed")
    return f"95{THIN}% interval {interval(effect)}, {counted(effect.n, 'seed')}"


def interval(effect: Effect) -> str:
    """Its ends alone: `2.4 to 4.6`."""
    _, low, high = _numbers(effect)
    return f"{low} to {high}"


def _numbers(effect: Effect) -> tuple[str, str, str]:
    """Value, low and high with the decimals that the interval is worth."""
    value = effect.value or 0.0
    if effect.low is None or effect.high is None:
        return number(value), "", ""
    if effect.compare == "ratio":
        return number(value, 2), number(effect.low, 2), number(effect.high, 2)
    decimals = min(decimals_of((effect.high - effect.low) / 2), 6)
    low, high = fixed(effect.low, decimals), fixed(effect.high, decimals)
    return fixed(value, decimals), low, high

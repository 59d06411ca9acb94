"""Numbers as a reader wants them: sensible digits, real minus signs, units."""

import re
from collections.abc import Iterable, Mapping, Sequence
from math import floor, isfinite, log10
from typing import Any

from qbench.results.run import part

UNQUANTIZED = "unquantized"
HUB = re.compile(r"[\w.-]+/[\w.-]+")  # the id of a dataset on the Hugging Face hub
THIN = "\u202f"  # narrow no-break space
SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
UNITS: Mapping[str, str] = {"1": "", "count": ""}
PER_TOKEN, PER_IMAGE = "nats/token", "nats/image"
IMAGES = ("vision", "image-classification")  # tasks of models that have one loss for an image


def number(value: float, digits: int = 3) -> str:
    """`value` at `digits` significant digits; powers of ten only where zeros would hide the number.

    >>> number(-0.12345), number(1234567), number(0.00000412), number(0)
    ('−0.123', '1\u202f234\u202f567', '4.12×10⁻⁶', '0')
    """
    if not isfinite(value):
        return "not finite"
    if value == 0:
        return "0"
    exponent = floor(log10(abs(value)))
    if -4 < exponent < 15:
        return fixed(value, max(0, digits - 1 - exponent))
    mantissa, power = f"{value:.{digits - 1}e}".split("e")
    return f"{mantissa}×10{str(int(power)).translate(SUPERSCRIPT)}".replace("-", "−")


def fixed(value: float, decimals: int) -> str:
    """`value` with so many decimals, thousands apart.

    >>> fixed(-0.0004, 2), fixed(12345.678, 1)
    ('0.00', '12\u202f345.7')
    """
    text = f"{value:,.{decimals}f}"
    if not text.strip("-0.,"):
        text = text.lstrip("-")  # no minus zero
    return text.replace(",", THIN).replace("-", "−")


def decimals_of(spread: float) -> int:
    """Decimals worth printing beside an uncertainty: one digit of it, two where it starts with 1, 2 or 3.

    >>> decimals_of(0.026), decimals_of(0.009), decimals_of(14)
    (3, 3, 0)
    """
    if not isfinite(spread) or spread <= 0:
        return 3
    exponent = floor(log10(spread))
    return max(0, -exponent + (spread / 10**exponent < 3.55))


def spread(mean: float, deviation: float | None) -> str:
    """A mean and its standard deviation, both cut where the deviation stops carrying digits.

    >>> spread(1.65123, 0.0092), spread(0.5, None), spread(2.0, 0.0)
    ('1.651 ± 0.009', '0.500', '2.00 ± 0')
    """
    if deviation is None:
        return number(mean)
    if deviation == 0:
        return f"{number(mean)} ± 0"
    decimals = min(decimals_of(deviation), 6)
    return f"{fixed(mean, decimals)} ± {fixed(deviation, decimals)}"


def with_unit(text: str, unit: str) -> str:
    """
    >>> with_unit("3", "dB"), with_unit("3", "1")
    ('3\u202fdB', '3')
    """
    unit = UNITS.get(unit, unit)
    return f"{text}{THIN}{unit}" if unit else text


def nats(models: Iterable[Mapping[str, Any]]) -> str:
    """What the losses of a run's models are counted in.

    >>> nats([{"arch": "residual"}]), nats([{"arch": "residual", "task": "vision"}])
    ('nats/token', 'nats/image')
    """
    return PER_IMAGE if any(model.get("task") in IMAGES for model in models) else PER_TOKEN


def listed(items: Sequence[str], last: str = "and") -> str:
    """
    >>> listed(["a", "b", "c"]), listed(["a"])
    ('a, b and c', 'a')
    """
    return f"{', '.join(items[:-1])} {last} {items[-1]}" if len(items) > 1 else "".join(items)


def counted(n: int, noun: str) -> str:
    """
    >>> counted(1, "seed"), counted(3, "seed")
    ('1 seed', '3 seeds')
    """
    return f"{fixed(n, 0)} {noun}{'' if n == 1 else 's'}"


def duration(seconds: float) -> str:
    """
    >>> duration(0.42), duration(75), duration(7300)
    ('0.42 s', '1 min 15 s', '2 h 1 min')
    """
    if seconds < 60:
        return f"{number(seconds, 2)} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def treatment(spec: Mapping[str, Any]) -> str:
    """What was done to a model in a cell, or what it was asked; an imported cell's model is as its file says.

    >>> treatment({"measurement": {"treatment": {"name": "W4"}}}), treatment({})
    ('W4', 'unquantized')
    """
    measurement = part(spec, "measurement")
    asked = part(measurement, "options").get("name")
    if spec.get("runtime"):
        return str(asked or part(spec, "model").get("quantization") or "as it is")
    return str(part(measurement, "treatment").get("name") or asked or UNQUANTIZED)

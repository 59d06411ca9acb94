"""The form of a policy file: which keys it may have, and what may stand under them."""

from datetime import date
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from qbench.suite.form import Count, Form, Looks, Name, Text, Word, Words

MOST_RULES = 200
REQUIRED = ("policy", "version", "suite", "windows", "rules")

Against = Literal["unquantized", "previous", "anchor"]
Tier = Literal["block", "warn"]


def _as_margin(value: Any) -> Any:
    return {"absolute": value} if isinstance(value, int | float) and not isinstance(value, bool) else value


def _as_many(value: Any) -> Any:
    return value if isinstance(value, tuple) else (value,)


def _day(text: str) -> str:
    try:
        date.fromisoformat(text)
    except ValueError:
        raise ValueError("wanted: a day like 2027-01-31") from None
    return text


def _digest(text: str) -> str:
    if len(text) != 64 or set(text) - set("0123456789abcdef"):
        raise ValueError("wanted: the 64 hex digits that `qbench baseline accept` prints")
    return text


Digest = Annotated[str, AfterValidator(_digest)]
Day = Annotated[str, AfterValidator(_day)]
Alpha = Annotated[float, Field(ge=1e-4, le=0.2)]
References = Annotated[tuple[Against, ...], Field(min_length=1, max_length=3), BeforeValidator(_as_many)]


class MarginForm(Form):
    """By how much a cost may grow: in its own unit, or as a share of the reference's."""

    absolute: Annotated[float, Field(ge=0, le=1e15)] | None = None
    relative: Annotated[float, Field(ge=0, le=10)] | None = None


class RuleForm(Form):
    name: Name | None = None
    metric: Word
    arm: Word | None = None
    scope: Word | None = None
    quantizer: Word | None = None
    format: Word | None = None
    margin: Annotated[MarginForm, BeforeValidator(_as_margin)] | None = None
    at_most: Annotated[float, Field(ge=0, le=1e15)] | None = None
    against: References | None = None
    alpha: Alpha | None = None
    minimum_n: Count | None = None
    seeds: Count | None = None
    worst_slice: bool = False
    tier: Tier = "block"
    on_missing: Literal["fail", "error"] = "error"
    on_inconclusive: Literal["fail", "warn"] = "fail"


class SuiteNeed(Form):
    name: Word
    version: Count


class BaselineForm(Form):
    lock: Word | None = None
    digest: Digest | None = None


class BaselinesForm(Form):
    previous: BaselineForm | None = None
    anchor: BaselineForm | None = None


class WaiverForm(Form):
    rule: Name
    owner: Name
    reason: Text
    expires: Day


class PolicyForm(Form):
    policy: Name = ""
    version: Count = 1
    note: Text = ""
    provisional: bool = False
    suite: SuiteNeed = SuiteNeed(name="?", version=1)  # never: the key is required
    device: Words = ("*",)
    data: Digest | None = None
    max_age_days: Count | None = None
    alpha: Alpha = 0.05
    windows: Looks = (1,)
    against: References = ("unquantized",)
    baselines: BaselinesForm = BaselinesForm()
    rules: Annotated[tuple[RuleForm, ...], Field(min_length=1, max_length=MOST_RULES)] = ()
    waivers: Annotated[tuple[WaiverForm, ...], Field(max_length=MOST_RULES)] = ()

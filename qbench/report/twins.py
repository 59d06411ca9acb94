"""What training with quantizers inside costs: the loss of such an arm beside its twin's, trained without."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from qbench.report.words import UNQUANTIZED

if TYPE_CHECKING:
    from qbench.report.view import Arm, Row

INCREASE = "loss_increase/inside"
# Settings of a training that are watched or chosen, and so do not make two arms different in what they are.
FREE = ("shape_steps", "checkpoints", "lr", "quantized")


def twin(arm: "Arm", plain: Iterable["Arm"]) -> "Arm | None":
    """The arm that is the same but for the quantizers inside, with the same learning rate where there is one."""
    same = [one for one in plain if one.model == arm.model and without(one) == without(arm)]
    rates = [one for one in same if (one.training or {}).get("lr") == (arm.training or {}).get("lr")]
    return next(iter([*rates, *same]), None)


def without(arm: "Arm", *names: str) -> dict[str, Any]:
    """How an arm was trained, but for FREE and `names`."""
    return {name: value for name, value in (arm.training or {}).items() if name not in (*FREE, *names)}


def with_increase(rows: Iterable["Row"], arms: Sequence["Arm"]) -> Iterator["Row"]:
    """The rows, those of losses with INCREASE: minus the loss of the twin of the same seed, with nothing quantized."""
    found = tuple(rows)
    base = {(row.arm, row.seed): row.values["loss"] for row in found if _whole(row) and row.treatment == UNQUANTIZED}
    plain = [arm for arm in arms if arm.training is not None and not _inside(arm)]
    twins = {arm.name: other.name for arm in arms if _inside(arm) and (other := twin(arm, plain)) is not None}
    for row in found:
        known = base.get((twins.get(row.arm, ""), row.seed)) if _whole(row) else None
        yield row if known is None else replace(row, values={**row.values, INCREASE: row.values["loss"] - known})


def _whole(row: "Row") -> bool:
    return row.what == "loss" and not row.slice and "loss" in row.values


def _inside(arm: "Arm") -> Mapping[str, str]:
    return (arm.training or {}).get("quantized") or {}

"""Runs and policies for the gate's tests: made of known differences, stored as a real run is."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from datetime import date
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from qbench.gate.baseline import against
from qbench.gate.draft import Cell, Draft
from qbench.gate.finding import Verdict
from qbench.gate.policy import Policy, load
from qbench.gate.source import opened
from qbench.gate.verdict import judge
from qbench.results.record import Closing, Record
from qbench.stats.looks import added

TODAY = date(2026, 11, 21)
HEAD = "policy: test\nversion: 1\nsuite: {name: s, version: 1}\nwindows: [512, 2048]\n"


def policy(folder: Path, rules: str, head: str = HEAD) -> Policy:
    path = folder / "policy.yaml"
    path.write_text(f"{head}rules:\n{rules}")
    return load(path)


def loss_of(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).lognormal(1, 0.2, n)


def cell(name: str, spec: dict[str, Any], loss: np.ndarray, plain: np.ndarray | None = None, **more: Any) -> Cell:
    """A loss cell as a suite stores it."""
    values = {"loss": float(loss.mean()), **more}
    if plain is not None:
        values |= {
            "loss_increase": float((loss - plain).mean()),
            "floor/window": float((loss - plain).std(ddof=1) / len(loss) ** 0.5),
        }
    record = Record(cell=name, values=values, n=len(loss), samples="0" * 16, bits_per_value=more.get("bits"))
    asked = spec["measurement"]
    question = sha256(repr((spec["data"], asked)).encode()).hexdigest()[:16]
    closing = Closing(cell=name, question=question, status="measured", spec=spec)
    return Cell(closing, [record], {"0" * 16: {"loss": loss}})


def spec(treatment: str = "", *, n: int = 512, seed: int = 0, arm: str = "model", **more: Any) -> dict[str, Any]:
    named = {"name": treatment or "unquantized", "scope": "weights" if treatment else ""}
    assign = {"weight:weights": treatment} if treatment else {}
    return {
        "suite": "s",
        "version": 1,
        "arm": arm,
        "model": {"arch": "residual", "layers": 2},
        "training": None,
        "seed": seed,
        "data": {"name": "d", "digest": "d" * 64},
        "torch": "2",
        "device": "cpu",
        "measurement": {"what": "loss", "windows": n, "split": "test", "treatment": {**named, "assign": assign}},
        **more,
    }


def run(
    differences: np.ndarray | Sequence[np.ndarray], treatment: str = "int8/token", shift: float = 0.0, **more: Any
) -> Draft:
    """A model whose quantized loss is its own plus `differences`, for each seed; `shift` moves both."""
    rows = [differences] if isinstance(differences, np.ndarray) else list(differences)
    cells: list[Cell] = []
    for seed, row in enumerate(rows):
        plain = loss_of(len(row), seed) + shift
        cells.append(cell(f"a{seed}", spec(n=len(row), seed=seed, **more), plain))
        cells.append(cell(f"b{seed}", spec(treatment, n=len(row), seed=seed, **more), plain + row, plain))
    return Draft(cells, {"asked": [one.closing.cell for one in cells], "finished": "2026-11-20T00:00:00+00:00"})


def looked(
    looks: tuple[int, ...], differences: np.ndarray, until: int = 2, plain: np.ndarray | None = None, **more: Any
) -> Draft:
    """A run that measured as far as one of the planned looks; `differences` and `plain` are those of all windows."""
    plain = loss_of(looks[-1]) if plain is None else plain
    cells: list[Cell] = []
    for look in range(1, until + 1):
        places = added(looks, look)
        for name, shift in (("", 0), ("int8/token", differences)):
            asked = spec(name, n=len(places), **more)
            asked["measurement"]["passage"] = {"context": 64, "looks": list(looks), "look": look}
            loss, its = (plain + shift)[places], plain[places]
            cells.append(cell(f"{'ab'[bool(name)]}{look}", asked, loss, its if name else None))
    return Draft(cells, {"asked": [one.closing.cell for one in cells], "finished": "2026-11-20T00:00:00+00:00"})


def verdict(
    policy: Policy, draft: Draft | Path, folder: Path, today: date = TODAY, **baselines: Draft | Path
) -> Verdict:
    """The verdict on a run, which is written first."""
    written = {name: one if isinstance(one, Path) else one.write(folder / name) for name, one in baselines.items()}
    place = draft if isinstance(draft, Path) else draft.write(folder / "candidate")
    with ExitStack() as stack:
        source = stack.enter_context(opened(place))
        return judge(policy, source, against(policy, written, stack, source), today)


def changed(draft: Draft, change: Callable[[Cell], None], only: str = "b") -> Draft:
    for one in draft.cells:
        if one.closing.cell.startswith(only):
            change(one)
    return draft

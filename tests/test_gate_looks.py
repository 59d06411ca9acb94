"""A further look adds windows to those that were measured, and is judged as if all had been measured at once."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from gates import HEAD, cell, changed, policy, run, verdict
from gates import looked as looked_at

from qbench.gate.draft import Cell, Draft
from qbench.stats.looks import added

LOOKS = (128, 512)
LOSS = "  - {metric: loss, margin: 0.05}\n"
PLAN = HEAD.replace("[512, 2048]", "[128, 512]")
RNG = np.random.default_rng(3)
PLAIN = RNG.lognormal(1, 0.2, 512)
# Slowly rising and falling along the text, so that bounds depend on the order of the windows.
DIFFERENCES = np.convolve(RNG.normal(0, 0.4, 519), np.ones(8) / 8, "valid") + 0.01


def looked(until: int = 2, **more: object) -> Draft:
    return looked_at(LOOKS, DIFFERENCES, until, PLAIN, **more)


def whole(folder: Path) -> Draft:
    """The same windows, measured at once."""
    draft = run(DIFFERENCES)
    plain = {"a0": PLAIN, "b0": PLAIN + DIFFERENCES}
    draft.cells = [
        cell(name, one.closing.spec, plain[name], PLAIN if name == "b0" else None)
        for one in draft.cells
        for name in [one.closing.cell]
    ]
    return draft


def test_looks_lie_evenly_and_never_measure_a_window_twice() -> None:
    for looks in ((64, 160), (10, 11, 97), (1, 2, 3, 4, 5), (512, 2048)):
        parts = [added(looks, look + 1) for look in range(len(looks))]
        together = np.concatenate(parts)
        assert sorted(together) == list(range(looks[-1]))
        seen = np.zeros(0, dtype=int)
        for n, part in zip(looks, parts, strict=True):
            seen = np.sort(np.concatenate([seen, part]))
            assert len(seen) == n
            if n > 1:
                assert (seen[0], seen[-1]) == (0, looks[-1] - 1)
                assert np.diff(seen).max() <= 2 * looks[-1] / n + 2
    for looks, look in (((2, 2), 1), ((3, 2), 1), ((2, 3), 3), ((2, 3), 0), ((0, 3), 1)):
        with pytest.raises(ValueError, match="none of the planned"):
            added(looks, look)


def test_two_looks_are_judged_as_one_measurement_in_the_order_of_the_text(tmp_path: Path) -> None:
    one = policy(tmp_path, LOSS, PLAN)
    ours = verdict(one, looked(), tmp_path / "a").results[0].findings
    theirs = verdict(one, whole(tmp_path), tmp_path / "b").results[0].findings
    assert ours == theirs
    assert (ours[0].n, ours[0].level) == (512, 0.025)


def test_the_first_look_alone_is_the_first_look(tmp_path: Path) -> None:
    found = verdict(policy(tmp_path, LOSS, PLAN), looked(1), tmp_path).results[0].findings[0]
    assert (found.n, found.level) == (128, 0.025)
    assert found.effect == pytest.approx(DIFFERENCES[added(LOOKS, 1)].mean(), abs=1e-8)


def without(name: str) -> Callable[[Draft], None]:
    def drop(draft: Draft) -> None:
        draft.cells = [one for one in draft.cells if one.closing.cell != name]
        draft.session["asked"] = [one.closing.cell for one in draft.cells]

    return drop


def plan(looks: object) -> Callable[[Draft], None]:
    def respec(one: Cell) -> None:
        asked = one.closing.spec["measurement"]
        one.respec(measurement={**asked, "passage": {**asked["passage"], "looks": looks}})

    return lambda draft: [respec(one) for one in draft.cells] and None


def shuffled(draft: Draft) -> None:
    changed(draft, lambda c: c.reseal(lambda v: {"loss": np.roll(v["loss"], 1)}), "b2")


SPOILED: dict[str, tuple[Callable[[Draft], None], str]] = {
    "the first look dropped": (without("b1"), "look 1 is missing"),
    "its unquantized cell dropped": (without("a2"), "unquantized"),
    "another plan": (plan([128, 513]), "where its looks add"),
    "no plan": (plan("x"), "its plan of looks is none"),
    "a plan that shrinks": (plan([512, 128]), "its plan of looks is none"),
    "pairs of the second look shuffled": (shuffled, "not paired"),
}


@pytest.mark.parametrize("what", SPOILED)
def test_looks_that_do_not_fit_together_are_an_error(tmp_path: Path, what: str) -> None:
    spoil, reason = SPOILED[what]
    one = policy(tmp_path, LOSS, PLAN)
    draft = looked()
    spoil(draft)
    found = verdict(one, draft, tmp_path)
    assert found.status == "ERROR"
    assert reason in found.results[0].findings[0].reason


def test_a_look_that_is_there_twice_is_an_error(tmp_path: Path) -> None:
    draft = looked()
    for one in draft.cells:
        if one.closing.cell.endswith("2"):
            asked = one.closing.spec["measurement"]
            one.respec(measurement={**asked, "passage": {**asked["passage"], "look": 1}})
    found = verdict(policy(tmp_path, LOSS, PLAN), draft, tmp_path)
    assert found.status == "ERROR"
    assert "two cells" in found.results[0].findings[0].reason


def test_baselines_are_compared_look_by_look(tmp_path: Path) -> None:
    rules = "  - {metric: loss, margin: 0.05, quantizer: int8/token, against: previous}\n"
    one = policy(tmp_path, rules, PLAN)
    found = verdict(one, looked(), tmp_path, previous=looked())
    assert (found.status, found.results[0].shown.n) == ("PASS", 512)
    # A baseline that went on to its second look has an answer for a candidate at its first.
    assert verdict(one, looked(1), tmp_path / "first", previous=looked()).results[0].shown.n == 128
    assert verdict(one, looked(), tmp_path / "short", previous=looked(1)).status == "ERROR"


def test_slices_keep_their_names_whatever_their_numbers(tmp_path: Path) -> None:
    """Evidence numbers the slices as its own windows have them: the first of one look may be the second of another."""
    labels = np.array(["code" if 0 < i < 250 or i % 4 == 1 else "prose" for i in range(512)])
    draft = looked()
    for one in draft.cells:
        places = added(LOOKS, int(one.closing.cell[1]))
        names = list(dict.fromkeys(labels[places]))
        vectors = one.vectors["0" * 16]
        vectors["slice"] = np.array([names.index(name) for name in labels[places]])
        one.records += [replace(one.records[0], slice=name, samples="") for name in names]
    rules = "  - {metric: loss, margin: 0.5, worst_slice: true}\n"
    found = verdict(policy(tmp_path, rules, PLAN), draft, tmp_path).results[0].findings
    assert {one.label.partition(", slice ")[2]: one.n for one in found} == {
        name: int((labels == name).sum()) for name in ("code", "prose")
    }
    for one in found:
        mine = labels == one.label.partition(", slice ")[2]
        assert one.effect == pytest.approx(DIFFERENCES[mine].mean(), abs=1e-8)


def test_a_model_that_the_baseline_has_cannot_be_left_out(tmp_path: Path) -> None:
    """Two models, asked the same: the cell of one does not stand for the cell of the other."""
    one = policy(tmp_path, "  - {metric: loss, margin: 0.05, against: previous}\n", PLAN)
    both = [looked(1), looked(1, arm="other")]
    for draft, letter in zip(both, "xy", strict=True):
        for found in draft.cells:
            name = letter + found.closing.cell
            found.closing = replace(found.closing, cell=name)
            found.records = [replace(record, cell=name) for record in found.records]
    two = Draft([*both[0].cells, *both[1].cells], dict(both[0].session))
    two.session["asked"] = [found.closing.cell for found in two.cells]
    assert verdict(one, two, tmp_path / "both", previous=two).status == "PASS"
    assert verdict(one, looked(1), tmp_path, previous=two).status == "ERROR"
    assert verdict(one, looked(1, arm="new"), tmp_path / "renamed", previous=looked(1)).status == "PASS"

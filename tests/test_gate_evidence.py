"""Evidence that contradicts its record, its manifest or the other side proves nothing, and so passes nothing."""

import json
import zipfile
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gates import HEAD, TODAY, cell, changed, looked, loss_of, policy, run, spec, verdict

from qbench.evaluate import samples
from qbench.evaluate.imported import store
from qbench.gate import source as source_module
from qbench.gate.baseline import UNREADABLE, Acceptance, NotAccepted, accept, against
from qbench.gate.draft import Cell, Draft
from qbench.gate.finding import Verdict
from qbench.gate.known_good import known_good
from qbench.gate.replay import replay
from qbench.gate.selftest import selftest
from qbench.gate.source import BadPack, opened, pack
from qbench.gate.tested import Case
from qbench.gate.tested import tested as held
from qbench.gate.vectors import Pairs
from qbench.gate.verdict import judge

LOSS = "  - {metric: loss, margin: 0.05}\n"
LAST = "  - {metric: loss, margin: 0.05, against: previous}\n"
NOISE = np.random.default_rng(5).normal(0, 0.1, 512)
NOISE -= NOISE.mean()
IMPORTED = HEAD.replace("{name: s,", "{name: imported,").replace("[512, 2048]", "[512]")


def why(found: Verdict) -> str:
    assert (found.status, found.exit_code) == ("ERROR", 4)
    return next(one.shown.reason for one in found.results if one.status == "ERROR")


def imported(folder: Path, values: np.ndarray, metric: str = "loss", **items: Any) -> Path:
    """A run of another runtime, whose items have `ids` and `weights`; `drop` takes a vector out of its evidence."""
    task = {"task": "t"} if metric.startswith("task") else {}
    header = {"line": "run", "schema": 1, "model": {"name": "m"}, "data": {"name": "d", "digest": "d" * 64}, **task}
    ids = items.get("ids") or [f"w{i:03}" for i in range(len(values))]
    weights = items.get("weights") or [1] * len(values)
    lines = [
        {"line": "item", "id": one, "values": {metric: float(value)}, "weight": weight}
        for one, value, weight in zip(ids, values, weights, strict=True)
    ]
    file = folder.with_suffix(".jsonl")
    file.write_text("".join(json.dumps(one) + "\n" for one in [{**header, "runtime": "x"}, *lines]))
    found = samples.read(file)
    drop = items.get("drop", "none")
    store([replace(found, vectors={k: v for k, v in found.vectors.items() if drop not in k})], folder)
    return folder


@pytest.mark.parametrize(("metric", "level"), [("loss", "loss"), ("task_error/acc", "error_rate")])
def test_other_items_are_no_pairs_also_where_one_side_only_names_them(tmp_path: Path, metric: str, level: str) -> None:
    values = np.random.default_rng(0).integers(0, 2, 512).astype(float)
    base = imported(tmp_path / "a", values, metric)
    moved = values.copy()
    moved[7] = 1 - moved[7]
    good = imported(tmp_path / "good", moved, metric)
    one = policy(tmp_path, f"  - {{metric: {level}, against: previous, margin: 0.2}}\n", IMPORTED)
    assert verdict(one, good, tmp_path, previous=base).status == "PASS"
    other = imported(tmp_path / "other", moved, metric, ids=[f"z{i:03}" for i in range(512)])
    assert "the items differ" in why(verdict(one, other, tmp_path, previous=base))
    unnamed = imported(tmp_path / "unnamed", moved, metric, drop="doc_hash")
    for candidate, previous in ((unnamed, base), (good, unnamed)):
        assert "only one side says what its items are" in why(verdict(one, candidate, tmp_path, previous=previous))


def test_a_candidate_does_not_weigh_its_own_windows(tmp_path: Path) -> None:
    base = loss_of(512)
    bad = np.arange(512) < 10
    one = policy(tmp_path, LAST, IMPORTED)
    given: dict[str, Any] = {"previous": imported(tmp_path / "a", base)}
    dear = np.where(bad, base + 10, base + NOISE / 100)
    assert verdict(one, imported(tmp_path / "b", dear), tmp_path, **given).status != "PASS"
    light = imported(tmp_path / "light", dear, weights=np.where(bad, 1e-6, 1.0).tolist())
    assert "do not count as those" in why(verdict(one, light, tmp_path, **given))
    assert "do not count as those" in why(verdict(one, given["previous"], tmp_path, previous=light))

    def weigh(c: Cell) -> None:
        c.reseal(lambda v: {**v, "loss/weight": np.where(bad, 1e-6, 1.0)})

    assert "do not count as those" in why(verdict(policy(tmp_path, LOSS), changed(run(NOISE), weigh), tmp_path))


TRAINED: dict[str, Any] = {"training": {"lr": 0.1}}


@pytest.mark.parametrize(
    ("rule", "seeds", "trained", "said"),
    [
        ("", 1, True, "1 seeds, a model that the suite trained takes 3"),
        (", seeds: 1", 1, True, "1 seeds, a model that the suite trained takes 3"),
        (", seeds: 2", 2, True, "2 seeds, a model that the suite trained takes 3"),
        ("", 3, True, ""),
        (", seeds: 4", 3, True, "3 seeds, the rule asks for 4"),
        ("", 1, False, ""),
        (", seeds: 2", 1, False, "1 seeds, the rule asks for 2"),
        ("", 4, False, "4 seeds, the rule fixes 3"),
    ],
)
def test_trained_models_are_judged_from_three_seeds(
    tmp_path: Path, rule: str, seeds: int, trained: bool, said: str
) -> None:
    one = policy(tmp_path, f"  - {{metric: loss, margin: 0.5{rule}}}\n")
    draft = run([np.roll(NOISE, i) for i in range(seeds)], **(TRAINED if trained else {}))
    found = verdict(one, draft, tmp_path)
    assert (said in why(found)) if said else found.status == "PASS"


def test_what_is_counted_needs_no_second_seed(tmp_path: Path) -> None:
    one = policy(tmp_path, "  - {metric: bits_per_value, at_most: 9}\n")
    draft = changed(
        run(NOISE, **TRAINED), lambda c: setattr(c, "records", [replace(r, bits_per_value=8.0) for r in c.records])
    )
    assert verdict(one, draft, tmp_path).status == "PASS"


def rewritten(folder: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    change(manifest["sessions"][-1])
    path.write_text(json.dumps(manifest))
    return folder


def test_a_run_that_does_not_say_what_was_asked_for_is_unfinished(tmp_path: Path) -> None:
    one = policy(tmp_path, LOSS)
    place = run(NOISE).write(tmp_path / "run")
    assert verdict(one, place, tmp_path).status == "PASS"
    for change in (lambda s: s.pop("asked"), lambda s: s.update(asked=[])):
        assert "which cells were asked for" in why(verdict(one, rewritten(place, change), tmp_path))
    (place / "manifest.json").unlink()
    assert "which cells were asked for" in why(verdict(one, place, tmp_path))
    with opened(place) as source, pytest.raises(NotAccepted, match="which cells were asked for"):
        accept(source, tmp_path / "lock.json", Acceptance("ann", "why"))


def two_formats() -> Draft:
    """A run whose second format failed."""
    good, bad = run(NOISE), run(NOISE + 0.2, treatment="int2/token")
    third = bad.cells[1]
    third.closing = replace(third.closing, cell="c0", status="failed", error="boom")
    third.records = [replace(one, cell="c0") for one in third.records]
    return Draft([*good.cells, third], {**good.session, "asked": ["a0", "b0", "c0"]})


def test_a_failure_is_not_undone_by_asking_no_more(tmp_path: Path) -> None:
    draft = two_formats()
    one = policy(tmp_path, LOSS)
    place = draft.write(tmp_path / "run")
    assert "boom" in why(verdict(one, place, tmp_path))
    with opened(place) as source:
        digest = source.digest
    rewritten(place, lambda s: s.update(asked=["a0", "b0"]))
    assert "boom" in why(verdict(one, place, tmp_path))
    with opened(place) as source:
        assert source.digest != digest  # a lock does not hold a baseline that leaves out a cell
    # Another attempt under the same name, in another version of the suite, takes its place.
    again = cell("d0", spec("int2/token", n=512), loss_of(512) + NOISE, loss_of(512))
    more = Draft([*draft.cells, again], {**draft.session, "asked": ["a0", "b0", "d0"]})
    assert verdict(one, more, tmp_path / "again").status == "PASS"


def kernel(change: np.ndarray, **more: Any) -> Draft:
    """An unquantized model, and the same behind a kernel."""
    plain = loss_of(512)
    asked = spec(**more)
    asked["measurement"] |= {"what": "kernel", "treatment": None, "options": {"name": "torchao/int8-dynamic"}}
    cells = [cell("a0", spec(**more), plain), cell("k0", asked, plain + change, plain)]
    return Draft(cells, {"asked": ["a0", "k0"], "finished": "2026-11-20T00:00:00+00:00"})


@pytest.mark.parametrize("reference", ["unquantized", "previous"])
def test_a_kernel_that_never_ran_is_no_kernel(tmp_path: Path, reference: str) -> None:
    rules = f"  - {{metric: loss, margin: 0.05, format: torchao/int8-dynamic, against: {reference}}}\n"
    one = policy(tmp_path, rules)
    base = {"previous": kernel(NOISE / 2, torch="1")}
    assert verdict(one, kernel(NOISE), tmp_path, **base).status == "PASS"
    assert "the quantizer did not run" in why(verdict(one, kernel(0 * NOISE), tmp_path, **base))


def test_a_run_is_no_baseline_of_itself_unless_it_is_the_accepted_one(tmp_path: Path) -> None:
    def timed(c: Cell) -> None:
        c.closing = replace(c.closing, seconds=1.234)

    folder = changed(run(NOISE), timed).write(tmp_path / "run")
    one = policy(tmp_path, LAST)
    assert "is the candidate itself" in why(verdict(one, folder, tmp_path, previous=folder))
    rewritten(folder, lambda s: s["asked"].reverse())
    packed = pack(folder, tmp_path / "run.zip")
    assert "is the candidate itself" in why(verdict(one, folder, tmp_path, previous=packed))
    with opened(folder) as source:
        accept(source, tmp_path / "b.json", Acceptance("ann", "why"))
        records = source.records
    locked = policy(tmp_path, LAST + "baselines: {previous: {lock: b.json}}\n")
    assert verdict(locked, folder, tmp_path, previous=folder).status == "PASS"
    older = policy(tmp_path, LAST + f"baselines: {{previous: {{digest: {records}}}}}\n")
    assert verdict(older, folder, tmp_path, previous=folder).status == "PASS"


def test_the_same_answers_imported_twice_are_two_runs(tmp_path: Path) -> None:
    first, second = (imported(tmp_path / name, loss_of(512)) for name in "ab")
    one = policy(tmp_path, LAST, IMPORTED)
    assert verdict(one, first, tmp_path, previous=second).status == "PASS"
    assert "is the candidate itself" in why(verdict(one, first, tmp_path, previous=first))


def test_a_record_is_what_it_says_and_not_the_middle_of_its_interval(tmp_path: Path) -> None:
    one = policy(tmp_path, LOSS)

    def contradict(c: Cell) -> None:
        loss = c.records[0].values["loss"]
        middle = {"loss": (loss - 0.1, loss + 0.1)}
        c.records = [replace(r, values={**r.values, "loss": 99.0}, intervals=middle) for r in c.records]

    def unsaid(c: Cell) -> None:
        contradict(c)
        c.records = [replace(r, values={k: v for k, v in r.values.items() if k != "loss"}) for r in c.records]

    assert "its record says 99" in why(verdict(one, changed(run(NOISE), contradict), tmp_path))
    assert verdict(one, changed(run(NOISE), unsaid), tmp_path / "unsaid").status == "PASS"


def test_a_seed_that_is_no_number_is_an_error(tmp_path: Path) -> None:
    one = policy(tmp_path, LOSS)
    with opened(run(NOISE).write(tmp_path / "run")) as source:
        for name in ("a0", "b0"):
            odd = source.run.cells[name].closing
            cells = {
                **source.run.cells,
                name: replace(source.run.cells[name], closing=replace(odd, spec={**odd.spec, "seed": []})),
            }
            assert "seed" in why(judge(one, replace(source, run=replace(source.run, cells=cells)), today=TODAY))


def test_zeros_of_windows_are_not_items_that_are_right(tmp_path: Path) -> None:
    one = policy(tmp_path, "  - {metric: kld, margin: 0.005}\n")
    nothing, wrong = np.zeros(512), (np.arange(512) == 3).astype(float)

    def method(candidate: np.ndarray, item: bool) -> str:
        pairs = Pairs(candidate, nothing, np.zeros(512, dtype=np.str_), item)
        return held(one.rules[0], one, Case("x", (pairs,), 1)).method

    assert method(nothing, False) != method(nothing, True)
    assert method(wrong, False) == method(wrong, True) == method(nothing, True)


def spoilt(place: Path, compression: int) -> Path:
    """A pack whose compressed bytes were damaged on the way, its directory not."""
    with zipfile.ZipFile(place, "w", compression) as file:
        file.writestr("records.jsonl", "".join(f"{i * i}\n" for i in range(2000)))
        start = file.infolist()[0].header_offset + 30 + len("records.jsonl")
    data = bytearray(place.read_bytes())
    data[start + 8 : start + 60] = bytes(255 - byte for byte in data[start + 8 : start + 60])
    place.write_bytes(data)
    return place


@pytest.mark.parametrize("compression", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA, zipfile.ZIP_STORED])
def test_a_damaged_pack_is_no_run(tmp_path: Path, compression: int) -> None:
    with pytest.raises(BadPack, match="is no packed run"), opened(spoilt(tmp_path / "x.zip", compression)):
        pass


def test_a_pack_has_a_size_that_it_may_unpack_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packed = pack(run(NOISE).write(tmp_path / "run"), tmp_path / "run.zip")
    monkeypatch.setattr(source_module, "LARGEST_PACK", 5000)
    with pytest.raises(BadPack, match="larger than 5000 bytes together"), opened(packed):
        pass


def test_a_pack_holds_nothing_but_its_run(tmp_path: Path) -> None:
    (tmp_path / "secret.safetensors").write_text("key")
    place = changed(run(NOISE), lambda c: c.vectors.clear()).write(tmp_path / "run")
    records = (place / "records.jsonl").read_text().replace("0" * 16, "../../secret")
    (place / "records.jsonl").write_text(records)
    with zipfile.ZipFile(pack(place, tmp_path / "run.zip")) as file:
        assert not [name for name in file.namelist() if "secret" in name]


def test_a_plan_of_looks_larger_than_memory_is_no_plan(tmp_path: Path) -> None:
    draft = looked((128, 512), NOISE)
    for one in draft.cells:
        asked = one.closing.spec["measurement"]
        one.respec(measurement={**asked, "passage": {**asked["passage"], "looks": [128, 10**12]}})
    one = policy(tmp_path, LOSS, HEAD.replace("[512, 2048]", "[128, 512]"))
    assert "1000000000000 windows are more than" in why(verdict(one, draft, tmp_path))


def test_a_run_without_its_evidence_is_not_accepted(tmp_path: Path) -> None:
    place = run(NOISE).write(tmp_path / "run")
    for file in (place / "evidence").iterdir():
        file.unlink()
    with opened(place) as source, pytest.raises(NotAccepted, match="cannot be read"):
        accept(source, tmp_path / "lock.json", Acceptance("ann", "why"))
    assert not (tmp_path / "lock.json").exists()


def test_past_runs_are_judged_on_their_own_day(tmp_path: Path) -> None:
    one = policy(tmp_path, LOSS, HEAD + "max_age_days: 3\n")
    draft = run(NOISE)
    places = [draft.write(tmp_path / "said")]
    draft.session["finished"] = None
    places.append(draft.write(tmp_path / "unsaid"))
    found = replay(one, [*places, tmp_path / "nowhere"], date(2027, 11, 21))
    assert [one.status for one in found.verdicts] == ["PASS", "ERROR", "ERROR"]
    assert [one.judged for one in found.verdicts[:2]] == ["2026-11-20", "2027-11-21"]
    assert found.unread == 1


@pytest.mark.parametrize("device", ["cuda:NVIDIA [AH]?00*", "[!a-z]x[", "xpu*", "c?u"])
def test_the_self_test_has_a_device_for_every_pattern(tmp_path: Path, device: str) -> None:
    one = policy(tmp_path, LOSS, HEAD.replace("[512, 2048]", "[64]") + f"device: ['{device}']\n")
    assert verdict(one, known_good(one), tmp_path, today=date.today()).status == "PASS"


def test_a_self_test_forges_what_items_weights_seeds_and_manifests_say(tmp_path: Path) -> None:
    trials = {trial.name: trial for trial in selftest(policy(tmp_path, LOSS, HEAD.replace("[512, 2048]", "[64]")))}
    reasons = {
        "a record that contradicts its evidence": "its record says",
        "windows with weights of their own": "do not count as those",
        "items that the unquantized model did not see": "only one side",
        "one seed of a trained model": "takes 3",
        "failed cells left out of what was asked for": "forged",
        "a manifest that is gone": "which cells were asked for",
    }
    assert {name: reason in why(trials[name].verdict) for name, reason in reasons.items()} == dict.fromkeys(
        reasons, True
    )


ODD: list[Any] = [
    {"sessions": ["x"]},
    {"sessions": [{"asked": 5}]},
    {"sessions": [{"asked": [[1]]}]},
    None,
    {"sessions": 3},
]


@pytest.mark.parametrize("odd", [*ODD, {"sessions": [None]}, {"sessions": []}, {"sessions": [{"asked": None}]}])
def test_an_odd_manifest_is_unreadable_or_an_error(tmp_path: Path, odd: Any) -> None:
    one = policy(tmp_path, LOSS)
    place = run(NOISE).write(tmp_path / "run")
    (place / "manifest.json").write_text(json.dumps({"schema": 1, **odd} if odd else odd))
    with ExitStack() as stack:
        try:
            source = stack.enter_context(opened(place))
        except UNREADABLE:
            return
        assert source.asked is None
        assert not against(one, {}, stack, source).problems
    why(verdict(one, place, tmp_path, today=TODAY))

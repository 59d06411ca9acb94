"""A verdict is what a statistician would say of the same vectors, and nothing passes without evidence."""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from datetime import date
from pathlib import Path
from resource import RUSAGE_CHILDREN, getrusage

import numpy as np
import pytest
from gates import HEAD, TODAY, cell, changed, policy, run, spec, verdict
from scipy import stats

from qbench.evaluate import samples
from qbench.evaluate.imported import store
from qbench.gate.baseline import Acceptance, NotAccepted, accept
from qbench.gate.draft import Cell, Draft
from qbench.gate.finding import together
from qbench.gate.replay import replay, table
from qbench.gate.source import opened, pack
from qbench.results.lines import encode
from qbench.results.record import Closing, Record

LOSS = "  - {metric: loss, margin: 0.05}\n"
RNG = np.random.default_rng(1)
NOISE = RNG.normal(0, 0.1, 512)
NOISE -= NOISE.mean()
BOUND = stats.t.ppf(0.975, 511) * NOISE.std(ddof=1) / 512**0.5  # alpha 0.05 over two planned looks


def test_the_bounds_are_students_or_wider_and_decide(tmp_path: Path) -> None:
    found = verdict(policy(tmp_path, LOSS), run(NOISE + 0.02), tmp_path)
    finding = found.results[0].findings[0]
    assert found.status == "PASS"
    assert (found.exit_code, found.job) == (0, "green")
    assert finding.effect == pytest.approx(0.02, abs=1e-8)
    assert finding.high is not None
    assert finding.high == pytest.approx(0.02 + BOUND, rel=0.02)
    assert finding.level == 0.025
    assert (finding.n, finding.seeds, finding.margin) == (512, 1, 0.05)


@pytest.mark.parametrize(
    ("effect", "status", "code"),
    [
        (0.05 - 1.2 * BOUND, "PASS", 0),
        (0.05 - 0.8 * BOUND, "INCONCLUSIVE", 3),
        (0.05 + 0.8 * BOUND, "INCONCLUSIVE", 3),
        (0.05 + 1.2 * BOUND, "FAIL", 1),
        (-0.5, "PASS", 0),
    ],
)
def test_the_verdict_turns_where_the_bound_meets_the_margin(
    tmp_path: Path, effect: float, status: str, code: int
) -> None:
    found = verdict(policy(tmp_path, LOSS), run(NOISE + effect), tmp_path)
    assert (found.status, found.exit_code) == (status, code)


def test_tolerance_never_comes_from_the_candidates_own_spread(tmp_path: Path) -> None:
    broken = run(RNG.normal(0.0, 30.0, 512))
    assert verdict(policy(tmp_path, LOSS), broken, tmp_path).status == "INCONCLUSIVE"


def test_a_relative_margin_is_a_share_of_the_reference_and_counts_its_noise(tmp_path: Path) -> None:
    rules = "  - {metric: loss, margin: {relative: 0.01}}\n"
    draft = run(NOISE)
    plain, quantized = (draft.cells[i].vectors["0" * 16]["loss"] for i in (0, 1))
    finding = verdict(policy(tmp_path, rules), draft, tmp_path).results[0].findings[0]
    assert finding.margin == pytest.approx(0.01 * plain.mean())
    moved = quantized - 1.01 * plain
    upper = moved.mean() + stats.t.ppf(0.975, 511) * moved.std(ddof=1) / 512**0.5
    assert finding.high is not None
    assert finding.margin is not None
    assert finding.high - finding.margin == pytest.approx(upper, rel=0.02)


def test_the_second_look_is_taken_at_its_own_number_of_windows_only(tmp_path: Path) -> None:
    one = policy(tmp_path, LOSS)
    assert verdict(one, run(np.tile(NOISE, 4)), tmp_path).results[0].findings[0].level == 0.025
    for n in (511, 513, 2047, 4096):
        found = verdict(one, run(np.resize(NOISE, n)), tmp_path / str(n))
        assert found.status == "INCONCLUSIVE"
        assert "no planned look" in found.results[0].findings[0].reason


def test_what_to_do_next_says_how_much_more(tmp_path: Path) -> None:
    finding = verdict(policy(tmp_path, LOSS), run(NOISE + 0.05 - 0.5 * BOUND), tmp_path).results[0].findings[0]
    assert finding.needed_n is not None
    ratio = finding.needed_n / 512
    z = stats.norm.ppf(0.975) + stats.norm.ppf(0.8)
    assert ratio == pytest.approx((z * NOISE.std() / 512**0.5 / (0.5 * BOUND)) ** 2, rel=0.05)
    assert f"needs {ratio:.1f}x more windows" in finding.todo
    assert "2048" in finding.todo


def test_below_the_minimum_nothing_is_concluded(tmp_path: Path) -> None:
    head = HEAD.replace("[512, 2048]", "[48]")
    assert verdict(policy(tmp_path, LOSS, head), run(NOISE[:48]), tmp_path).status == "INCONCLUSIVE"
    rules = "  - {metric: loss, margin: 0.05, minimum_n: 600}\n"
    assert verdict(policy(tmp_path, rules), run(NOISE), tmp_path).status == "INCONCLUSIVE"


def test_seeds_are_the_sample_where_models_were_trained(tmp_path: Path) -> None:
    head = HEAD.replace("[512, 2048]", "[128]")
    rules = "  - {metric: loss, margin: 0.5, seeds: 3}\n"
    rows = [NOISE[128:256] * 0.1 + effect for effect in (0.0, 0.1, 0.2)]
    trained = {"training": {"lr": 0.1}}
    finding = verdict(policy(tmp_path, rules, head), run(rows, **trained), tmp_path).results[0].findings[0]
    # Windows alike for every seed: the spread of the seeds' means is all there is, with two degrees of freedom.
    assert finding.high == pytest.approx(0.1 + stats.t.ppf(0.95, 2) * 0.1 / 3**0.5, rel=0.05)
    assert (finding.status, finding.seeds) == ("PASS", 3)
    few = verdict(policy(tmp_path, rules, head), run(rows[:2]), tmp_path / "few")
    assert few.status == "ERROR"
    short = [row[:48] for row in rows]
    head = HEAD.replace("[512, 2048]", "[48]")
    assert verdict(policy(tmp_path, rules, head), run(short), tmp_path / "short").status == "INCONCLUSIVE"


def test_holm_makes_many_rules_harder_to_pass(tmp_path: Path) -> None:
    effect = 0.05 - 1.1 * BOUND  # passes alone, p is about 0.016
    alone = verdict(policy(tmp_path, LOSS), run(NOISE + effect), tmp_path)
    rules = "".join(f"  - {{name: r{i}, metric: loss, margin: 0.05}}\n" for i in range(4))
    many = verdict(policy(tmp_path, rules), run(NOISE + effect), tmp_path / "many")
    assert (alone.status, many.status) == ("PASS", "INCONCLUSIVE")
    assert "Holm" in many.results[0].reason
    p = alone.results[0].p_pass
    assert p is not None
    assert many.results[0].p_pass == pytest.approx(4 * p)


def test_all_cases_of_a_rule_have_to_pass(tmp_path: Path) -> None:
    good, bad = run(NOISE), run(NOISE + 0.2, treatment="int2/token")
    both = Draft([*good.cells, bad.cells[1]], good.session)
    both.cells[2].closing = replace(both.cells[2].closing, cell="c0")
    both.cells[2].records = [replace(one, cell="c0") for one in both.cells[2].records]
    both.session = {"asked": ["a0", "b0", "c0"]}
    found = verdict(policy(tmp_path, LOSS), both, tmp_path)
    assert [one.status for one in found.results[0].findings] == ["PASS", "FAIL"]
    assert found.status == "FAIL"
    chosen = policy(tmp_path, "  - {metric: loss, margin: 0.05, quantizer: int8/token}\n")
    assert verdict(chosen, both, tmp_path / "one").status == "PASS"


SPOILED: dict[str, tuple[Callable[[Cell], None], str]] = {
    "failed": (lambda c: setattr(c, "closing", replace(c.closing, status="failed", error="out of memory")), "failed"),
    "suite": (lambda c: c.respec(version=2), "version 2"),
    "device": (lambda c: c.respec(device="cuda:X"), "cuda:X"),
    "data": (lambda c: c.respec(data={"digest": ""}), "data"),
    "model": (lambda c: c.respec(model={"arch": "residual", "layers": 3}), "another model"),
    "no vectors": (
        lambda c: setattr(c, "records", [replace(r, samples="") for r in c.records]),
        "no numbers by window",
    ),
    "nan": (lambda c: c.vectors["0" * 16]["loss"].__setitem__(3, np.nan), "not finite"),
    "shuffled": (lambda c: c.reseal(lambda v: {"loss": np.roll(v["loss"], 1)}), "not paired"),
    "edited": (lambda c: c.reseal(lambda v: {"loss": v["loss"] - 0.1}), "loss_increase"),
}


@pytest.mark.parametrize("what", SPOILED)
def test_spoiled_evidence_is_an_error_with_its_reason(tmp_path: Path, what: str) -> None:
    spoil, reason = SPOILED[what]
    one = policy(tmp_path, LOSS, HEAD + "device: cpu\n")
    assert verdict(one, run(NOISE), tmp_path / "good").status == "PASS"
    found = verdict(one, changed(run(NOISE), spoil), tmp_path)
    assert (found.status, found.exit_code, found.job) == ("ERROR", 4, "red")
    assert reason in found.results[0].findings[0].reason


def test_on_missing_fail_turns_missing_evidence_into_a_failure(tmp_path: Path) -> None:
    one = policy(tmp_path, "  - {metric: loss, margin: 0.05, format: W4, on_missing: fail}\n")
    assert verdict(one, run(NOISE), tmp_path).status == "FAIL"


def test_an_inconclusive_rule_that_warns_colours_the_job_and_not_the_verdict(tmp_path: Path) -> None:
    one = policy(tmp_path, "  - {metric: loss, margin: 0.05, on_inconclusive: warn}\n")
    found = verdict(one, run(NOISE + 0.05), tmp_path)
    assert (found.status, found.job, found.exit_code) == ("INCONCLUSIVE", "yellow", 0)
    assert verdict(one, run(NOISE + 0.2), tmp_path / "fail").exit_code == 1


def test_a_rule_that_only_warns_does_not_block(tmp_path: Path) -> None:
    rules = LOSS + "  - {name: w, metric: loss, margin: 0.001, tier: warn}\n"
    found = verdict(policy(tmp_path, rules), run(NOISE + 0.02), tmp_path)
    assert (found.status, found.job) == ("PASS", "yellow")
    assert [one.status for one in found.results] == ["PASS", "FAIL"]


WAIVER = "waivers: [{{rule: w, owner: ann, reason: known, expires: {}}}]\n"


@pytest.mark.parametrize(
    ("expires", "status"), [("2026-11-21", "PASS"), ("2026-11-22", "PASS"), ("2026-11-20", "FAIL")]
)
def test_a_waiver_holds_until_its_day_and_fails_after(tmp_path: Path, expires: str, status: str) -> None:
    rules = LOSS + "  - {name: w, metric: loss, margin: 0.001}\n" + WAIVER.format(expires)
    found = verdict(policy(tmp_path, rules), run(NOISE + 0.02), tmp_path)
    assert found.status == status
    assert found.results[1].status == "FAIL"
    good = LOSS + "  - {name: w, metric: loss, margin: 0.06}\n" + WAIVER.format(expires)
    assert verdict(policy(tmp_path, good), run(NOISE + 0.02), tmp_path / "good").status == status


def test_waivers_alone_are_no_pass_and_missing_evidence_cannot_be_waived(tmp_path: Path) -> None:
    rules = "  - {name: w, metric: loss, margin: 0.001}\n" + WAIVER.format("2027-01-01")
    found = verdict(policy(tmp_path, rules), run(NOISE + 0.02), tmp_path)
    assert (found.status, found.job) == ("INCONCLUSIVE", "red")
    gone = verdict(policy(tmp_path, rules), changed(run(NOISE), SPOILED["failed"][0]), tmp_path / "gone")
    assert gone.status == "ERROR"
    assert together([]) == "ERROR"


def test_stale_and_unfinished_runs_are_errors(tmp_path: Path) -> None:
    one = policy(tmp_path, LOSS, HEAD + "max_age_days: 3\n")
    assert verdict(one, run(NOISE), tmp_path).status == "PASS"
    assert verdict(one, run(NOISE), tmp_path / "late", today=date(2026, 11, 24)).status == "ERROR"
    assert verdict(one, run(NOISE), tmp_path / "early", today=date(2026, 11, 1)).status == "ERROR"
    killed = run(NOISE)
    killed.session["finished"] = None
    assert verdict(one, killed, tmp_path / "killed").status == "ERROR"
    open_cells = run(NOISE)
    open_cells.session["asked"] += ["f" * 16]
    assert verdict(one, open_cells, tmp_path / "open").status == "ERROR"


def test_against_the_last_and_the_first_run_slow_drift_shows(tmp_path: Path) -> None:
    rules = "  - {metric: loss, margin: 0.05, against: [previous, anchor]}\n"
    runs = [run(NOISE, shift=0.03 * i) for i in range(4)]
    one = policy(tmp_path, rules)
    found = verdict(one, runs[3], tmp_path, previous=runs[2], anchor=runs[0])
    assert [result.status for result in found.results] == ["PASS", "FAIL"]
    assert found.status == "FAIL"
    assert found.results[1].shown.effect == pytest.approx(0.09, abs=1e-8)
    assert verdict(one, runs[3], tmp_path / "none").status == "ERROR"


@pytest.mark.parametrize(
    "spoil",
    [
        lambda c: c.respec(data={"digest": "e" * 64}),
        lambda c: c.respec(device="cuda:X"),
        lambda c: c.respec(model={"arch": "residual", "layers": 2, "tokenizer": "t"}),
        lambda c: setattr(c, "closing", replace(c.closing, status="failed")),
        lambda c: c.reseal(lambda v: {"loss": v["loss"][:-1]}),
    ],
    ids=["data", "device", "tokenizer", "failed", "windows"],
)
def test_a_baseline_that_cannot_be_compared_is_an_error(tmp_path: Path, spoil: Callable[[Cell], None]) -> None:
    one = policy(tmp_path, "  - {metric: loss, margin: 0.05, against: previous}\n")
    assert verdict(one, run(NOISE), tmp_path / "good", previous=run(NOISE)).status == "PASS"
    spoiled = changed(changed(run(NOISE), spoil, "a"), spoil, "b")
    assert verdict(one, run(NOISE), tmp_path, previous=spoiled).status == "ERROR"


def test_what_the_baseline_has_cannot_be_left_out(tmp_path: Path) -> None:
    one = policy(tmp_path, "  - {metric: loss, margin: 0.05, against: previous}\n")
    less = run(NOISE)
    less.cells = less.cells[:1]
    less.session["asked"] = ["a0"]
    found = verdict(one, less, tmp_path, previous=run(NOISE))
    assert found.status == "ERROR"
    assert "this run does not" in found.results[0].findings[0].reason


def test_bits_are_counted_and_held_against_a_ceiling(tmp_path: Path) -> None:
    rules = "  - {{metric: bits_per_value/model, at_most: {}}}\n"
    draft = changed(
        run(NOISE),
        lambda c: setattr(
            c, "records", [replace(r, values={**r.values, "bits_per_value/model": 8.25}) for r in c.records]
        ),
    )
    assert verdict(policy(tmp_path, rules.format(8.25)), draft, tmp_path).status == "PASS"
    assert verdict(policy(tmp_path, rules.format(8.2)), draft, tmp_path).status == "FAIL"
    assert verdict(policy(tmp_path, rules.format(8.2)), run(NOISE), tmp_path / "x").status == "ERROR"


def test_a_lock_holds_the_baseline_and_refuses_failing_runs(tmp_path: Path) -> None:
    by = Acceptance("ann", "release 1")
    folder = run(NOISE).write(tmp_path / "good")
    with opened(folder) as source:
        lock = accept(source, tmp_path / "b.json", by)
    assert json.loads((tmp_path / "b.json").read_text())["digest"] == lock["digest"]
    rules = "  - {metric: loss, margin: 0.05, against: previous}\nbaselines: {previous: {lock: b.json}}\n"
    one = policy(tmp_path, rules)
    assert verdict(one, run(NOISE), tmp_path, previous=folder).status == "PASS"
    other = run(NOISE, shift=0.5)
    found = verdict(one, run(NOISE), tmp_path / "swap", previous=other)
    assert found.status == "ERROR"
    assert "not the accepted one" in found.results[0].findings[0].reason
    (tmp_path / "b.json").write_text("{}")
    assert verdict(one, run(NOISE), tmp_path / "torn", previous=folder).status == "ERROR"
    failing = changed(run(NOISE), SPOILED["failed"][0]).write(tmp_path / "failing")
    with opened(failing) as source, pytest.raises(NotAccepted, match="1 cells of failing failed"):
        accept(source, tmp_path / "c.json", by)
    with opened(folder) as source, pytest.raises(NotAccepted, match="owner"):
        accept(source, tmp_path / "c.json", Acceptance(" ", "why"))
    strict = policy(tmp_path, "  - {metric: loss, margin: 0.00001}\n")
    bad = verdict(strict, run(NOISE + 0.02), tmp_path / "bad")
    with opened(folder) as source, pytest.raises(NotAccepted, match="FAIL"):
        accept(source, tmp_path / "c.json", by, bad)
    assert not (tmp_path / "c.json").exists()


def test_replay_says_how_often_each_rule_would_have_failed(tmp_path: Path) -> None:
    one = policy(tmp_path, LOSS + "  - {name: drift, metric: loss, margin: 0.05, against: previous}\n")
    runs = [run(NOISE + effect).write(tmp_path / f"run{i}") for i, effect in enumerate((0.0, 0.01, 0.2))]
    found = replay(one, [*runs, tmp_path / "nowhere"], TODAY)
    assert found.counts() == {
        "loss": {"PASS": 2, "FAIL": 1, "ERROR": 1},
        "drift": {"PASS": 1, "FAIL": 1, "ERROR": 1},  # the first run has none before it
    }
    assert [one.status for one in found.verdicts] == ["PASS", "PASS", "FAIL", "ERROR"]
    assert "run2" in table(found)


def test_a_pack_is_judged_like_its_folder_and_is_the_same_bytes_twice(tmp_path: Path) -> None:
    folder = run(NOISE).write(tmp_path / "run")
    packed = pack(folder, tmp_path / "run.zip")
    assert packed.read_bytes() == pack(folder, tmp_path / "again.zip").read_bytes()
    one = policy(tmp_path, LOSS)
    ours, theirs = (verdict(one, place, tmp_path) for place in (folder, packed))
    assert theirs.results == ours.results
    assert theirs.candidate["digest"] == ours.candidate["digest"]


def test_an_unquantized_model_of_another_seed_is_no_reference(tmp_path: Path) -> None:
    draft = run(NOISE)
    draft.cells[0] = cell("a0", spec(seed=1), draft.cells[0].vectors["0" * 16]["loss"])
    assert verdict(policy(tmp_path, LOSS), draft, tmp_path).status == "ERROR"


@pytest.mark.parametrize(("shift", "status"), [(0.01, "PASS"), (0.5, "FAIL")])
@pytest.mark.parametrize("weight", [1, 3])
def test_what_another_runtime_measured_is_gated_too(tmp_path: Path, shift: float, status: str, weight: int) -> None:
    """Items may count unequally: then a cost is their weighted mean."""
    base = RNG.lognormal(0, 0.3, 512)
    more = shift * RNG.uniform(0.5, 1.5, 512)
    weights = RNG.integers(1, weight, 512, endpoint=True)
    header = {"line": "run", "schema": 1, "model": {"name": "m"}, "data": {"name": "wiki"}, "runtime": "llama.cpp"}
    for name, loss in (("a", base), ("b", base + more)):
        items = [
            {"line": "item", "id": f"w{i:03}", "values": {"loss": float(loss[i])}, "weight": int(weights[i])}
            for i in range(512)
        ]
        (tmp_path / name).write_text("".join(json.dumps(one) + "\n" for one in [header, *items]))
        store([samples.read(tmp_path / name)], tmp_path / f"run-{name}")
    head = HEAD.replace("{name: s,", "{name: imported,").replace("[512, 2048]", "[512]")
    one = policy(tmp_path, "  - {metric: loss, margin: 0.05, against: previous}\n", head)
    found = verdict(one, tmp_path / "run-b", tmp_path, previous=tmp_path / "run-a")
    assert found.status == status
    assert found.results[0].shown.effect == pytest.approx(np.average(more, weights=weights), rel=1e-6)


def test_windows_that_overlap_are_not_gated(tmp_path: Path) -> None:
    def overlap(c: Cell) -> None:
        c.respec(measurement={**c.closing.spec["measurement"], "passage": {"context": 64, "stride": 32}})

    draft = changed(changed(run(NOISE), overlap, "a"), overlap, "b")
    found = verdict(policy(tmp_path, LOSS), draft, tmp_path)
    assert found.status == "ERROR"
    assert "without evaluate.stride" in found.results[0].findings[0].reason


def test_a_hundred_thousand_records_are_judged_within_a_second(tmp_path: Path) -> None:
    """Of processor time, the start of the command included: other work on the machine does not count."""
    folder = run(NOISE).write(tmp_path / "run")
    more = Closing(
        cell="c" * 16, question="q", status="measured", records=50, spec=spec() | {"measurement": {"what": "error"}}
    )
    values = {f"metric {i}": 1.5 for i in range(8)}
    with (folder / "records.jsonl").open("ab") as file:
        for i in range(2000):
            name = f"{i:016x}"
            records = [Record(cell=name, site=f"blocks.{j}.out", values=values) for j in range(50)]
            file.write(encode(replace(more, cell=name), records))
    policy(tmp_path, LOSS)
    command = [sys.executable, "-m", "qbench.cli.main", "gate", "policy.yaml", "--candidate", "run"]
    spent: list[float] = []
    for _ in range(3):  # a busy machine makes every step slower, so the fastest counts
        before = getrusage(RUSAGE_CHILDREN)
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=60)
        after = getrusage(RUSAGE_CHILDREN)
        assert (done.returncode, done.stdout.split()[0]) == (0, "PASS")
        spent.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert min(spent) < 1.0, spent
    program = """
from qbench.cli.main import main
from qbench.results.origin import peak_rss
code = main()
print(peak_rss())
raise SystemExit(code)
"""
    done = subprocess.run(
        [sys.executable, "-c", program, *command[3:]], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert int(done.stdout.splitlines()[-1]) < 2**30

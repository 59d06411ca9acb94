"""Learning rates that a suite chooses: by the tuning split, with the first seed, before all else is known."""

from collections.abc import Callable
from dataclasses import replace
from math import inf
from pathlib import Path

import pytest
import torch
from tiny import Bench
from torch.nn.functional import cross_entropy

from qbench.models.transformer import Transformer
from qbench.results.record import Attempt, Closing, Record
from qbench.results.run import read
from qbench.suite import material
from qbench.suite.answer import trial_answer
from qbench.suite.cells import Cell, Environment
from qbench.suite.device import find
from qbench.suite.expand import expand, groups
from qbench.suite.prepare import prepare
from qbench.suite.rates import chosen, undecided
from qbench.suite.run import plan
from qbench.suite.schema import BadSuite, Suite, load

HERE = Environment(data_digest="abc", torch_version="2.13.0", device="cpu")
TEXT = """\
suite: rated
version: 1
question: q
seeds: [3, 4]
data: text:words.txt
spec: {layers: 2, width: 16, heads: 2, context: 16}
training: {steps: 6, batch: 2, shape_steps: [0, 3]}
models:
  - name: "{arch} + {optimizer}"
    product: {arch: [residual, residual-free], training.optimizer: [adamw]}
    rates: [0.001, 0.01, 0.1]
  - name: "{arch} + {optimizer}, shorter"
    product: {arch: [residual], training.optimizer: [adamw]}
    rate_of: "{arch} + {optimizer}"
    training: {steps: 4, shape_steps: []}
tensors:
  - {kind: weight, quantizers: [int4/channel]}
evaluate: {windows: 4}
treatments:
  - {scope: boundaries, quantizers: int4/token}
"""
ARMS = ("residual + adamw", "residual-free + adamw", "residual + adamw, shorter")
Write = Callable[..., Suite]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write(*changes: tuple[str, str]) -> Suite:
        text = TEXT
        for before, after in changes:
            assert before in text
            text = text.replace(before, after)
        (tmp_path / "rated.yaml").write_text(text)
        (tmp_path / "words.txt").write_text("words")
        return load(tmp_path / "rated.yaml")

    return write


def trials(cells: list[Cell]) -> list[Cell]:
    return [cell for cell in cells if cell.measurement.what == "trial"]


def answered(cells: list[Cell], losses: list[float | None]) -> dict[str, Attempt]:
    """Each trial with its loss on the tuning split, in the order of the suite; None for one that diverged."""
    return {
        cell.id: Attempt(
            Closing(cell=cell.id, question="", status="measured", spec=cell.spec()),
            (Record(cell=cell.id, values={"lr": 0.0} if loss is None else {"lr": 0.0, "loss": loss}),),
        )
        for cell, loss in zip(trials(cells), losses, strict=True)
    }


def test_each_rate_is_tried_with_the_first_seed_and_before_all_else(write: Write) -> None:
    cells = expand(write(), HERE)
    tried = [(cell.arm, cell.seed, (cell.training or {})["lr"]) for cell in trials(cells)]
    assert tried == [(arm, 3, rate) for arm in ARMS[:2] for rate in (0.001, 0.01, 0.1)]
    whats = [cell.measurement.what for cell in cells if cell.arm in ARMS]
    assert whats[:6] == ["trial"] * 6
    assert "trial" not in whats[6:]
    assert [len(group) for group in groups(cells) if group[0].measurement.what == "trial"] == [1] * 6


@pytest.mark.parametrize(
    ("losses", "expected"),
    [
        ([3.0, 2.0, 2.5], 0.01),
        ([2.0, 2.0, 2.0], 0.001),  # the lower of equals
        ([3.0, 2.5, None], 0.01),  # one diverged
        ([None, None, None], 0.001),  # all did
    ],
)
def test_the_rate_with_the_lowest_loss_on_the_tuning_split_is_taken(
    write: Write, losses: list[float | None], expected: float
) -> None:
    suite = write()
    cells = expand(suite, HERE)
    found = chosen(suite.arms, cells, answered(cells, [*losses, 1.0, 2.0, 3.0]))
    assert found == {ARMS[0]: expected, ARMS[1]: 0.001, ARMS[2]: expected}
    assert undecided(suite.arms, found) == ()
    again = expand(suite, replace(HERE, rates=found))
    assert {(cell.training or {})["lr"] for cell in again if cell.arm == ARMS[2]} == {expected}
    assert trials(again) == trials(cells)
    rest = [cell for cell in again if cell.arm == ARMS[0] and cell.measurement.what != "trial"]
    assert {(cell.training or {})["lr"] for cell in rest} == {expected}
    # The models of the first seed are those of the trial: nothing is trained twice.
    first = next(cell for cell in rest if cell.measurement.what == "training" and cell.seed == 3)
    same = next(cell for cell in trials(cells) if (cell.training or {})["lr"] == expected)
    assert (first.training_key, first.log_key) == (same.training_key, same.log_key)


def test_nothing_is_chosen_before_all_rates_are_tried(write: Write) -> None:
    suite = write()
    cells = expand(suite, HERE)
    known = answered(cells, [3.0, 2.0, 2.5, 1.0, 2.0, 3.0])
    last = trials(cells)[2].id
    missing = {cell: attempt for cell, attempt in known.items() if cell != last}
    failed = known | {last: replace(known[last], closing=replace(known[last].closing, status="failed"))}
    for some in (missing, failed):
        found = chosen(suite.arms, cells, some)
        assert found == {ARMS[1]: 0.001}
        assert undecided(suite.arms, found) == (ARMS[0], ARMS[2])


@pytest.mark.parametrize(
    ("before", "after", "told"),
    [
        (
            "training.optimizer: [adamw]}\n    rates",
            "training.lr: [0.1]}\n    rates",
            "training.lr chooses the learning",
        ),
        ("[0.001, 0.01, 0.1]", "[0.001, 0.001]", "0.001 is given twice"),
        ("[0.001, 0.01, 0.1]", "[0.001, 0]", "greater than 0"),
        ('rate_of: "{arch} + {optimizer}"', "rate_of: residual + adamv", "did you mean 'residual + adamw'?"),
        ('rate_of: "{arch} + {optimizer}"', 'rate_of: "{arhc}"', "did you mean 'arch'?"),
        ("rate_of:", "rates: [0.1]\n    rate_of:", "rate_of chooses the learning rate of this entry too"),
    ],
)
def test_mistakes_are_told(write: Write, before: str, after: str, told: str) -> None:
    with pytest.raises(BadSuite, match=r"rated\.yaml:[0-9]+:[0-9]+") as error:
        write((before, after))
    assert told in str(error.value)


def loss_on(model: Transformer, text: bytes) -> float:
    """The mean loss of 32 windows of 16 bytes, evenly spaced over the text."""
    last = len(text) - 17
    windows = torch.tensor([list(text[i * last // 31 :][:17]) for i in range(32)])
    with torch.no_grad():
        logits = model(windows[:, :-1]).double()
    return cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten()).item()


def test_rates_are_judged_on_the_tuning_split_where_the_test_split_would_choose_another(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last 5 % of the text, its test split, are the lines backwards: who learned the order least is best there."""
    monkeypatch.setenv("QBENCH_CACHE", str(tmp_path / "cache"))
    torch.set_num_threads(1)
    suite = write(("steps: 6, batch: 2", "steps: 40, batch: 2, aux_lr: 0.01"))
    train, tune, test = b"abcdefghijklmnopqrs\n" * 900, b"abcdefghijklmnopqrs\n" * 50, b"srqponmlkjihgfedcba\n" * 50
    (tmp_path / "words.txt").write_bytes(train + tune + test)
    cells = expand(suite, replace(HERE, data_digest=material.digest(suite)))
    known: dict[str, Attempt] = {}
    best = {tune: (inf, 0.0), test: (inf, 0.0)}  # the lowest loss on a text, and its rate
    for cell in trials(cells)[:3]:
        prepared = prepare(cell, "cpu", lambda *_: None)
        (record,) = trial_answer(cell, prepared.log, 0.0).records
        assert record.values["loss"] == pytest.approx(loss_on(prepared.model, tune), rel=1e-5)
        followed = [row["values"] for row in prepared.log if row.get("step") == 40 and "site" not in row]
        assert followed[-1]["validation_loss"] == record.values["loss"]
        known[cell.id] = Attempt(Closing(cell=cell.id, question="", status="measured", spec=cell.spec()), (record,))
        best = {text: min(best[text], (loss_on(prepared.model, text), record.values["lr"])) for text in best}
    assert {text: rate for text, (_, rate) in best.items()} == {tune: 0.001, test: 0.1}
    assert chosen(suite.arms, cells, known)[ARMS[0]] == 0.001


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    bench = Bench.new(tmp_path_factory.mktemp("rated"), TEXT)
    done = bench.run()
    assert done.returncode == 0, done.stderr
    return bench


def test_a_run_tries_chooses_and_goes_on(bench: Bench) -> None:
    run = read(bench.out).current
    loss = {(row["arm"], row["cell"]): row["value"] for row in run.records(what="trial", metric="loss")}
    rate = {(row["arm"], row["cell"]): row["value"] for row in run.records(what="trial", metric="lr")}
    assert len(loss) == 6
    taken = {}
    for arm in ARMS:
        specs = [a.closing.spec for a in run.cells.values() if a.closing.spec["arm"] == arm]
        rates = {spec["training"]["lr"] for spec in specs if spec["measurement"]["what"] != "trial"}
        assert len(rates) == 1, arm
        taken[arm] = rates.pop()
    for arm in ARMS[:2]:
        best = min((value, key) for key, value in loss.items() if key[0] == arm)[1]
        assert taken[arm] == rate[best]
    assert taken[ARMS[2]] == taken[ARMS[0]]
    # 3 arms x 2 seeds, of which the first seed of two arms was a trial: 6 trials, 2 second seeds, 2 shorter ones
    first, second = (session["cost"] for session in run.manifest["sessions"])
    assert (first["models_trained"], second["models_trained"]) == (6, 4)
    assert second["training_cpu_seconds"] < second["cpu_seconds"]  # each session has its own
    assert {attempt.closing.status for attempt in run.cells.values()} == {"measured"}


def test_the_same_command_again_has_nothing_to_do(bench: Bench) -> None:
    again = bench.run()
    assert again.returncode == 0
    assert "nothing to run" in again.stdout


def test_a_run_cut_off_after_the_trials_goes_on_with_their_rates(bench: Bench, tmp_path: Path) -> None:
    other = Bench.new(tmp_path, TEXT)
    other.cache.symlink_to(bench.cache)
    kept = [cell for cell, a in read(bench.out).cells.items() if a.closing.spec["measurement"]["what"] == "trial"]
    for cell in kept:
        assert other.run("--only", cell).returncode == 0
    assert set(read(other.out).cells) == set(kept)
    assert other.run().returncode == 0
    assert set(read(other.out).current.cells) == set(read(bench.out).current.cells)


def test_a_dry_run_says_which_cells_wait_for_a_rate(bench: Bench, tmp_path: Path) -> None:
    """Ids are those of the run; and the model of the first seed is that of a trial, so it is not counted again."""
    fresh = Bench.new(tmp_path, TEXT)
    *cells, summary = fresh.run("--dry-run", "--workers", "1").stdout.splitlines()
    waiting = [line for line in cells if line.startswith("(after its trials)  ")]
    known = {line.split("  ")[0] for line in cells if line not in waiting}
    assert known < set(read(bench.out).cells)
    assert len(cells) == len(read(bench.out).current.cells)
    assert {line.split("  ")[1] for line in waiting} == {f"{arm}/{seed}" for arm in ARMS for seed in (3, 4)}
    assert not any("  trial" in line for line in waiting)
    # 6 trials, 2 second seeds, 2 shorter ones
    assert "; 10 models; about " in summary


def test_only_the_trials_of_a_folder_are_read(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """A study has a hundred thousand records, and its rates stand in a few of them."""

    def whole(_: Path) -> None:
        pytest.fail("every record was read")

    monkeypatch.setattr("qbench.results.run.scan", whole)
    planned = plan(load(bench.suite), bench.out, find("cpu"), 1)
    assert (planned.undecided, planned.todo) == ((), 0)

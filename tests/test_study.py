"""What the quickstart must show, on ten freshly trained models: effects with half of their measured size as the bar.

Equal-loss ratios, boundary kurtosis, gradients and linear inputs are printed and not asserted: there the evidence is
weak, or goes against the thesis. `QBENCH_STUDY=FOLDER` keeps the run, and looks at it again without training.
The last test needs no run: twelve layers, with the recipe that the suite `recipe` has for that depth.
"""

import os
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from math import isfinite, log, log10
from pathlib import Path
from statistics import fmean

import numpy as np
import pytest
import torch

from qbench.data.text import stdlib, unigram_entropy
from qbench.data.windows import training_batches
from qbench.models.spec import ModelSpec
from qbench.models.transformer import build
from qbench.results.run import Row, Run, read
from qbench.stats.interval import Interval, difference_interval, ratio_interval
from qbench.suite.schema import load
from qbench.train.fit import final_loss, fit

pytestmark = pytest.mark.slow

RESIDUAL, FREE, EQUAL, PLAIN = "residual", "residual-free", "residual (equal loss)", "residual-free (no recipe)"
INTERIOR = [f"blocks.{block}.out" for block in range(5)]
Keep = Callable[[Row], bool]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    fresh = tmp_path_factory.mktemp("study")
    folder = Path(os.environ.get("QBENCH_STUDY") or fresh / "quickstart")
    done = subprocess.run(
        [sys.executable, "-m", "qbench.cli.main", "run", "quickstart", "--out", str(folder)],
        env={**os.environ, "QBENCH_CACHE": str(fresh / "cache")},
        capture_output=True,
        text=True,
        check=False,
    )
    print(done.stdout)
    assert done.returncode == 0, done.stderr
    return read(folder).current


def by_seed(run: Run, arm: str, keep: Keep = lambda row: True, **where: str) -> list[float]:
    """One number a seed, in the order of seeds: the mean over what is left after training."""
    seeds: dict[int | None, list[float]] = defaultdict(list)
    for row in run.records(arm=arm, **where):
        if row["step"] is None and keep(row):
            seeds[row["seed"]].append(row["value"])
    return [fmean(seeds[seed]) for seed in sorted(seeds, key=str)]


def interior(row: Row) -> bool:
    return row["site"] in INTERIOR


def show(what: str, interval: Interval | None) -> None:
    text = "undefined" if interval is None else f"{interval.estimate:.3g} ({interval.low:.3g} to {interval.high:.3g})"
    print(f"{what}: {text}")


def test_the_run_is_complete_and_within_its_budget(run: Run) -> None:
    session = run.manifest["sessions"][-1]
    assert session["cells"] == {"measured": len(run.cells)}
    assert len({row["treatment"] for row in run.records(what="loss", metric="loss_increase")}) == 30
    cost = session["cost"]
    print(cost)
    assert cost["peak_rss_bytes"] < 1.5e9
    if cost["models_trained"] == 10:  # measured anew, not looked at again
        assert cost["measuring_cpu_seconds"] <= cost["training_cpu_seconds"]


def test_residual_free_trains_with_its_recipe_and_not_without(run: Run) -> None:
    (entropy,) = set(by_seed(run, FREE, metric="unigram_entropy"))
    free, plain = (by_seed(run, arm, what="training", metric="loss") for arm in (FREE, PLAIN))
    print(f"validation loss: residual-free {free}, without the recipe {plain}, unigram entropy {entropy:.3f}")
    assert fmean(free) < entropy - 1
    assert abs(fmean(plain) - entropy) < 0.3
    warned = {c.closing.spec["arm"] for c in run.cells.values() if any("stuck" in w for w in c.closing.warnings)}
    assert warned == {PLAIN}


def test_activations_inside_the_blocks_are_heavier_tailed_with_residual_connections(run: Run) -> None:
    where = {"what": "shape", "kind": "activation", "metric": "excess_kurtosis/tensor"}
    hidden = [by_seed(run, arm, site="blocks.*.mlp.hidden", **where) for arm in (RESIDUAL, FREE)]
    context = [by_seed(run, arm, site="blocks.*.attn.context", **where) for arm in (RESIDUAL, FREE)]
    show("post-GELU kurtosis ratio", ratio_interval(*hidden))
    show("attention-context kurtosis difference", difference_interval(*context))
    show(
        "interior-boundary kurtosis difference",
        difference_interval(*(by_seed(run, a, interior, **where) for a in (RESIDUAL, FREE))),
    )
    assert fmean(hidden[0]) / fmean(hidden[1]) > 2
    assert fmean(context[0]) - fmean(context[1]) > 1


def test_interior_boundaries_quantize_better_per_tensor(run: Run) -> None:
    where = {"what": "error", "metric": "error_db"}
    for kind, name in (("activation", "int4/tensor"), ("activation", "int4/block:32"), ("gradient", "int4/tensor")):
        arms = [by_seed(run, arm, interior, kind=kind, quantizer=name, **where) for arm in (RESIDUAL, FREE)]
        show(f"{kind} {name}: SQNR gain, dB", difference_interval(*arms))
        if (kind, name) == ("activation", "int4/tensor"):
            assert fmean(arms[0]) - fmean(arms[1]) > 1


def test_quantized_boundaries_cost_less_loss(run: Run) -> None:
    bars = {"int4/tensor @ boundaries": 1.5, "int3/tensor @ middle": 2.0}
    for treatment in (*bars, "int3/tensor @ linear"):
        cost = {arm: by_seed(run, arm, treatment=treatment, metric="loss_increase") for arm in (RESIDUAL, FREE, EQUAL)}
        show(f"{treatment}: loss-increase ratio at equal steps", ratio_interval(cost[RESIDUAL], cost[FREE]))
        show(f"{treatment}: loss-increase ratio at equal loss", ratio_interval(cost[EQUAL], cost[FREE]))
        if treatment in bars:
            assert fmean(cost[RESIDUAL]) / fmean(cost[FREE]) > bars[treatment]


def test_eight_bits_cost_nothing(run: Run) -> None:
    rows = list(run.records(what="loss", metric="loss_increase"))
    eight = [row for row in rows if row["quantizer"].startswith("int8")]
    assert {row["arm"] for row in eight} == {RESIDUAL, FREE, EQUAL, PLAIN}
    assert max(row["value"] for row in eight) < 0.02


def test_kurtosis_predicts_the_error_and_crest_gives_it(run: Run) -> None:
    where = {"kind": "activation", "seed": None}
    shapes = {
        metric: {
            (r["arm"], r["seed"], r["site"]): r["value"] for r in run.records(what="shape", metric=metric, **where)
        }
        for metric in ("excess_kurtosis/tensor", "crest_db")
    }
    error = {
        (r["arm"], r["seed"], r["site"]): r["value"]
        for r in run.records(what="error", quantizer="int8/tensor", metric="error_db", **where)
        if r["arm"] != "calibration"
    }
    sites = list(error)
    logs = [log(shapes["excess_kurtosis/tensor"][site] + 3) for site in sites]
    correlation = np.corrcoef(logs, [-error[site] for site in sites])[0, 1]
    crest = [20 * log10(127) + 10 * log10(12) - shapes["crest_db"][site] for site in sites]
    off = np.abs(np.array(crest) - [-error[site] for site in sites])
    print(f"corr(log(k + 3), int8/tensor SQNR) = {correlation:.3f} over {len(sites)} sites")
    print(f"crest formula: {np.mean(off < 1):.1%} within 1 dB, largest error {off.max():.2f} dB")
    assert correlation < -0.7
    assert np.mean(off < 1) >= 0.95
    assert off.max() < 2


def test_twelve_residual_free_layers_train_without_collapse() -> None:
    """Its recipe with a constant temperature, on real text, to 0.3 nats below what frequencies alone would reach.

    150 steps of the 500 that the suite asks for, at the best of its rates, end at 2.53; unigrams cost 3.12.
    """
    torch.set_num_threads(1)
    arm = load("recipe").arm("residual-free, 12 layers, const")
    assert isinstance(arm.model, ModelSpec)
    assert arm.training is not None
    assert arm.model.layers == 12
    training = replace(arm.training, lr=0.0025, steps=150, shape_steps=())
    assert training.lr in arm.rates
    text = stdlib().train
    batches = training_batches(text, arm.model.context, training.batch, training.steps, seed=0)
    unigrams = unigram_entropy(text)
    fitted = fit(build(arm.model, seed=0), training, batches, unigram_entropy=unigrams)
    print(f"12 layers: {fitted.curve[0]:.2f} to {final_loss(fitted.curve):.2f} nats, unigram entropy {unigrams:.2f}")
    assert (fitted.status, len(fitted.curve)) == ("trained", training.steps)
    assert all(map(isfinite, fitted.curve))
    assert max(fitted.curve) < log(256) + 0.1
    assert final_loss(fitted.curve) < unigrams - 0.3

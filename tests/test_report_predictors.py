"""Which statistic predicts the loss increase, asked of made-up runs where the answer is known."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from fake_run import Builder, keep, model, quickstart
from scipy.stats import spearmanr

from qbench.capture.sites import own
from qbench.report.predictors import PREDICTORS, incomplete, observations, predictors
from qbench.report.view import Arm, View, view
from qbench.results.run import Run

LAYERS = 6
SITES = [f"blocks.{i}.out" for i in range(LAYERS)]
QUANTIZERS = {"int4/tensor": 0.1, "int8/tensor": 0.006}


def run(seeds: int = 4, noise: str = "site", **changed: Any) -> Run:
    """One site is quantized at a time: it costs its sensitivity times its error, and a little luck."""
    builder = Builder()
    random = np.random.default_rng(0)
    for seed in range(seeds):
        about = {"arm": "residual", "model": model("residual"), "training": {}, "seed": seed, **changed}

        def add(what: str, records: list[dict[str, Any]], about: Any = about, **measurement: Any) -> None:
            builder.add(about | {"measurement": {"what": what, **measurement}}, records)

        sensitivity, size = np.exp(random.normal(size=LAYERS)), np.exp(0.3 * random.normal(size=LAYERS))
        kurtosis = random.normal(size=LAYERS)
        add("shape", [
            {"kind": "activation", "site": site, "values": {
                "excess_kurtosis/token": float(k), "excess_kurtosis/channel": float(s),
                "excess_kurtosis/tensor": float(-k), "crest_db": float(e)}}
            for site, k, s, e in zip(SITES, kurtosis, sensitivity, size, strict=True)
        ])  # fmt: skip
        add("noise", [
            {"kind": "activation", "values": {"noise/sensitivity": float(s) * factor}, "slice": "",
             **({"site": site} if noise == "site" else {"scope": site})}
            for site, s in zip(SITES, sensitivity, strict=True) for factor in (0.9, 1.1)
        ])  # fmt: skip
        for quantizer, error in QUANTIZERS.items():
            errors = error * size
            add("error", [
                {"kind": "activation", "site": site, "quantizer": quantizer, "values": {"relative_error": float(e)}}
                for site, e in zip(SITES, errors, strict=True)
            ], quantizer=quantizer)  # fmt: skip
            for i, site in enumerate(SITES):
                cost = sensitivity[i] * errors[i] ** 2
                treatment = {"name": f"{quantizer} @ {site}", "scope": site}
                add("loss", [{"kind": "activation", "scope": site, "quantizer": quantizer,
                              "values": {"loss_increase": float(cost * np.exp(0.05 * random.normal()))}}],
                    treatment=treatment)  # fmt: skip
                add("flow", [
                    {"kind": "activation", "scope": site, "quantizer": quantizer, "site": f"blocks.{block}{inside}",
                     "values": {"flow/error": float(cost if (block, inside) == (5, "") else random.normal())}}
                    for block in (4, 5, 3) for inside in ("", ".attn.q")
                ], treatment=treatment)  # fmt: skip
    return builder.run()


def names(arm: Arm) -> Any:
    return own(arm.wiring, arm.layers)


@pytest.mark.parametrize("noise", ["site", "scope"])
def test_the_statistic_that_made_the_costs_wins(noise: str) -> None:
    found = predictors(observations(view(run(noise=noise))))
    assert found is not None
    assert set(list(found.correlations)[:2]) == {"R behind the last block", "noise sensitivity × error"}
    assert found.correlations["noise sensitivity × error"].rho.estimate > 0.95
    assert found.correlations["noise sensitivity × error"].rho.low > 0.9
    assert abs(found.correlations["excess kurtosis per token"].rho.estimate) < 0.5
    assert (found.n, found.groups) == (4 * LAYERS * len(QUANTIZERS), 4)
    assert set(found.correlations) == set(PREDICTORS)


def test_every_number_is_the_one_of_its_own_site_and_quantizer() -> None:
    seen = observations(view(run()), names)
    assert len(seen) == 4 * LAYERS * len(QUANTIZERS)
    for one in seen:
        assert one.sites == (one.scope,)
        assert one.error == pytest.approx(one.errors[one.scope]["relative_error"] ** 2)
        assert one.predicted_cost == pytest.approx(one.cost, rel=0.25)
        assert one.flow == pytest.approx(one.cost, rel=0.25)  # of block 5, not of one of its matrices
        assert one.mean("crest_db") == one.shapes[one.scope]["crest_db"]


def test_ranks_are_within_a_quantizer() -> None:
    """Over both quantizers any statistic that knows the bits would win; within one, error has to order the sites."""
    found = predictors(observations(view(run())))
    assert found is not None
    seen = observations(view(run()), names)
    each = [
        spearmanr([one.error for one in seen if one.quantizer == q], [one.cost for one in seen if one.quantizer == q])
        for q in QUANTIZERS
    ]
    assert found.correlations["error"].rho.estimate == pytest.approx(np.mean([one.statistic for one in each]))


def test_by_scope_only_models_differ() -> None:
    found = predictors(observations(view(run(seeds=12))), by_scope=True)
    assert found is not None
    seen = observations(view(run(seeds=12)), names)
    rhos: list[float] = []
    for q in QUANTIZERS:
        for site in SITES:
            here = [one for one in seen if (one.quantizer, one.scope) == (q, site)]
            rhos.append(spearmanr([one.error for one in here], [one.cost for one in here]).statistic)
    assert found.correlations["error"].rho.estimate == pytest.approx(np.mean(rhos))


def test_a_scope_is_the_mean_over_its_sites_and_the_sum_of_what_each_costs() -> None:
    whole = view(run())
    rows = [row for row in whole.rows if row.what != "loss"]
    first = next(row for row in whole.rows if row.what == "loss")
    changed = {name: getattr(first, name) for name in type(first).__dataclass_fields__}
    rows.append(type(first)(**changed | {"scope": "interior", "values": {"loss_increase": 0.5}}))
    (one,) = observations(View(arms=whole.arms, rows=tuple(rows), cells=whole.cells, manifest={}), names)
    assert one.sites == tuple(SITES[:-1])
    errors = [one.errors[site]["relative_error"] ** 2 for site in one.sites]
    assert one.error == pytest.approx(np.mean(errors))
    assert one.predicted_cost == pytest.approx(
        sum(e * one.noise[site] for e, site in zip(errors, one.sites, strict=True))
    )
    assert one.mean("crest_db") == pytest.approx(np.mean([one.shapes[site]["crest_db"] for site in one.sites]))


def test_what_a_run_did_not_measure_is_left_out() -> None:
    found = predictors(observations(view(quickstart())))
    assert found is not None
    assert "R behind the last block" not in found.correlations
    assert "noise sensitivity × error" not in found.correlations
    assert {"crest", "error", "excess kurtosis per token"} <= found.correlations.keys()
    assert found.groups == 3  # arms; the fourth learned nothing
    assert predictors(observations(View(arms=(), rows=(), cells=(), manifest={}))) is None


def test_weights_and_other_models_are_not_mixed_in() -> None:
    built = view(quickstart())
    seen = observations(built, names)
    assert {one.scope for one in seen} <= {"boundaries", "interior", "middle", "linear"}
    arms = {arm.name: arm for arm in built.arms}
    for one in seen:
        free = arms[one.run[0]].wiring == "residual-free"
        assert all(site in one.shapes for site in one.sites), free


def arms(count: int, seeds: int) -> Run:
    """Made-up runs of several arms: each is another draw of `run`."""
    cells: dict[str, Any] = {}
    for arm in range(count):
        for name, one in run(seeds).cells.items():
            values = np.random.default_rng([arm, int(name, 16) % 2**32])
            closing = replace(one.closing, spec={**one.closing.spec, "arm": f"arm {arm}"})
            what = one.closing.spec["measurement"]["what"]
            records = tuple(
                replace(
                    r, values={k: v * float(values.lognormal(0, 0.5 * (what == "loss"))) for k, v in r.values.items()}
                )
                for r in one.records
            )
            cells[f"{name}{arm}"] = replace(one, closing=closing, records=records)
    return replace(run(), cells=cells)


def test_an_arm_is_resampled_with_all_its_seeds() -> None:
    """Every seed twice is no more arms: the interval is that of the arms."""
    once = predictors(observations(view(arms(6, seeds=1))))
    assert once is not None
    whole = arms(6, seeds=1)
    again = {
        f"{name}again": replace(one, closing=replace(one.closing, spec={**one.closing.spec, "seed": 7}))
        for name, one in whole.cells.items()
    }
    twice = predictors(observations(view(replace(whole, cells={**whole.cells, **again}))))
    assert twice is not None
    assert (once.groups, twice.groups, twice.n) == (6, 6, 2 * once.n)
    for name, one in once.correlations.items():
        assert twice.correlations[name].rho == pytest.approx(one.rho, abs=1e-9), name


def test_only_the_seeds_that_learned_nothing_are_left_out() -> None:
    made = run()
    about = {"arm": "residual", "model": model("residual"), "training": {}}
    builder = Builder()
    builder.cells.update(made.cells)
    for seed in range(4):
        warnings = ("stuck at unigram",) if seed in (1, 2) else ()
        builder.add({**about, "seed": seed, "measurement": {"what": "training"}}, [], warnings=warnings)
    seen = observations(view(builder.run()), names)
    assert {one.run for one in seen} == {("residual", 0), ("residual", 3)}


def test_what_was_not_asked_for_is_told_apart() -> None:
    """Without the error of one quantizer, its treatments are in no rank."""
    made = keep(run(), lambda cell: cell.spec["measurement"].get("quantizer") != "int8/tensor")
    lacking = incomplete(observations(view(made), names))
    assert list(lacking) == ["error"]
    assert {one.quantizer for one in lacking["error"]} == {"int8/tensor"}
    assert len(lacking["error"]) == 4 * LAYERS

"""A study's page: every section where its records are, numbers against hand-worked ones, small enough, inert."""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import cache
from html import unescape
from html.parser import HTMLParser
from math import exp, log, nan
from typing import Any

import numpy as np
import pytest
from fake_run import Builder, failing, keep, quickstart
from fake_study import ARCHITECTURES, STEPS, SUITE, TAKEN, study

from qbench.report import budget, effects, page, payload, provenance, svg, troubles
from qbench.report.factors import COLOURS, MANY, MARKS, Factors, crossed, factors, style, styles
from qbench.report.predictors import Observation
from qbench.report.study import (
    adds,
    claims,
    courses,
    equal,
    flow,
    grids,
    inside,
    lines,
    noise,
    predict,
    rates,
    sections,
    seeds,
    stacks,
    stopped,
)
from qbench.report.study.crossing import Crossing, crossing
from qbench.report.study.depth import passed
from qbench.report.study.levels import level
from qbench.report.view import View, view
from qbench.results.record import Closing
from qbench.results.run import Run
from qbench.stats.interval import student_t_quantile

SECTIONS = ("arms", "equal", "inside", "course", "predictors", "noise", "adds", "flow", "theory", "rates", "seeds")
EVIL = "<script>alert(1)</script>"


@cache
def seen() -> View:
    return view(study(), first=provenance.compared(provenance.suite(study())))


@cache
def where() -> Crossing:
    return crossing(seen())


@cache
def html() -> str:
    return page.render(study())


@cache
def asked() -> list[dict[str, Any]]:
    return provenance.claims(SUITE)


def text(source: str) -> str:
    source = re.sub(r"<(script|style).*?</\1>", " ", source, flags=re.S)
    return unescape(re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", source)))


def part(name: str) -> str:
    """One section of the page, as a reader has it."""
    found = re.search(rf'<section id="{name}">(.*?)</section>', html(), flags=re.S)
    assert found, name
    return text(found[1])


def what(cell: Closing) -> str:
    return cell.spec["measurement"]["what"]


# The page as a whole


def test_every_section_is_there_and_linked() -> None:
    for name in SECTIONS:
        assert f'<section id="{name}">' in html()
        assert f'href="#{name}"' in html()


def test_a_study_of_thirty_arms_fits_in_one_and_a_half_megabytes() -> None:
    assert len(seen().arms) > 30
    assert len(html().encode()) < 1_500_000


def test_the_same_study_gives_the_same_bytes() -> None:
    small = keep(
        study(),
        lambda cell: cell.spec["arm"].startswith(("residual + adamw", "residual-free + muon", "residual + muon")),
    )
    assert page.render(small) == page.render(small)


def test_nothing_is_loaded_and_identifiers_are_unique() -> None:
    class Loads(HTMLParser):
        found: list[str]

        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            names = {name: value or "" for name, value in attrs}
            self.found += [v for k, v in names.items() if k in ("src", "srcset", "action", "style")]
            self.found += [v for k, v in names.items() if k.endswith("href") and not v.startswith("#")]
            self.found += [k for k in names if k.startswith("on")]

    loads = Loads()
    loads.found = []
    loads.feed(html())
    assert loads.found == []
    assert not re.search(r"url\((?!#)", html())
    identifiers = re.findall(r'\bid="([^"]+)"', html())
    assert len(identifiers) == len(set(identifiers))


def test_every_chart_is_told_in_words_and_has_its_axes_named() -> None:
    charts = re.findall(r'<svg class="chart".*?</svg>', html(), flags=re.S)
    assert len(charts) > 100
    for chart in charts:
        assert re.search(r"<title[^>]*>\S.*?</title><desc[^>]*>\S.*?</desc>", chart, flags=re.S)
        again = re.search(r'<use href="#([\w.-]+-g)"/>', chart)  # axes that an earlier drawing has too
        axes = html()[html().index(f'id="{again[1]}"') :].partition("</svg>")[0] if again else chart
        assert len(re.findall(r'<text class="label"[^>]*>\S', axes)) == 2


def test_every_figure_has_its_numbers_or_a_file_of_them() -> None:
    figures = re.findall(r"<figure data-figure.*?</figure>", html(), flags=re.S)
    assert all("data-csv=" in figure for figure in figures)
    for name in re.findall(r'data-csv="([^"]+)"', html()):
        assert f'"{name}":' in html() or name in ("cloud", "depth")


@pytest.mark.parametrize(
    ("left_out", "section"),
    [
        ("trial", "rates"),
        ("noise", "noise"),
        ("adds", "adds"),
        ("flow", "flow"),
        ("theory", "theory"),
        ("loss", "predictors"),
    ],
)
def test_a_section_without_records_is_not_there(left_out: str, section: str) -> None:
    source = page.render(keep(small(), lambda cell: what(cell) != left_out))
    assert f'id="{section}"' not in source
    assert f'href="#{section}"' not in source


def small() -> Run:
    """Two architectures by two optimizers, and the stacks."""
    kept = ("residual + adamw", "residual-free + adamw", "residual + muon", "residual-free + muon", "dense, rotation")
    return keep(study(), lambda cell: cell.spec["arm"] in kept)


def test_names_from_records_are_inert() -> None:
    def renamed(cell: Closing) -> Closing:
        spec = {**cell.spec, "arm": f"{EVIL}{cell.spec['arm']}"}
        if "arch" in spec["model"]:
            spec["model"] = {**spec["model"], "arch": f"{EVIL}{spec['model']['arch']}"}
        return replace(cell, spec=spec)

    run = small()
    cells = {name: replace(one, closing=renamed(one.closing)) for name, one in run.cells.items()}
    source = page.render(replace(run, cells=cells))
    assert EVIL not in source
    assert source.count("<script") == source.count("</script>") == 2


def test_a_small_suite_keeps_its_page() -> None:
    source = page.render(quickstart())
    assert "Kurtosis by depth and during training" in source
    assert "How training went" in source
    assert 'id="seeds"' not in source
    assert "At equal loss" in source  # it has one arm with two schedules


def test_losses_of_what_is_not_crossed_are_drawn_by_depth() -> None:
    def deeper(cell: Closing) -> Closing:
        free = cell.spec["model"].get("arch") == "residual-free"
        return replace(cell, spec={**cell.spec, "model": {**cell.spec["model"], "layers": 12}}) if free else cell

    run = quickstart()
    cells = {name: replace(one, closing=deeper(one.closing)) for name, one in run.cells.items()}
    for found, depths in ((run, [""]), (replace(run, cells=cells), ["6 layers", "12 layers"])):
        drawn = view(found)
        section = courses.losses(drawn, crossing(drawn))
        assert section is not None
        [variant] = section.figures[0].variants
        assert [panel.name for panel in variant.panels] == [f"learning {depth}".strip() for depth in depths]
        names = {series.name for panel in variant.panels for series in panel.series}
        assert len(names) == sum(len(panel.series) for panel in variant.panels) > 1
    untold = keep(run, lambda cell: what(cell) != "training")
    assert courses.losses(view(untold), crossing(view(untold))) is None


def test_a_comparison_of_its_own_stands_alone() -> None:
    claim = {**asked()[0], "claim": "Both at once", "between": ["residual + adamw", "residual-free + soap"]}
    [effect] = effects.answer(seen(), [claim])
    found = claims.claims(where(), [effect], [claim])
    assert (found.every, found.alone) == ((), (effect,))
    [(tone, _, _, [(words, chips)])] = claims.answers(found)
    assert tone == effect.verdict
    assert words == "Both at once (residual + adamw against residual-free + soap)"
    assert "<small>" in chips


def test_one_seed_has_no_intervals_anywhere() -> None:
    run = keep(small(), lambda cell: cell.spec["seed"] == 0)
    source = text(page.render(run))
    assert "one seed, no interval" in source
    assert "≈" not in re.sub(r"≈: not told", "", source)
    assert "Supported wherever it was asked" not in source


# Factors, colours, marks


def test_colours_and_marks_have_no_common_divisor() -> None:
    assert len(svg.SHAPES) == MARKS
    assert len({style(c, m) for c in range(COLOURS) for m in range(MARKS)}) == COLOURS * MARKS


def test_colour_is_architecture_and_mark_is_optimizer() -> None:
    for arm in where().main.values():
        architecture, optimizer = where().pair(arm)
        assert arm.style % COLOURS == where().architectures.index(architecture)
        assert arm.style % MARKS == where().optimizers.index(optimizer)


def test_arms_that_are_not_crossed_each_have_a_style_of_their_own() -> None:
    one = [Factors(str(i), "AdamW", 10, "") for i in range(5)]
    assert not crossed(one)
    assert styles(one) == [0, 1, 2, 3, 4]


def test_many_arms_that_change_one_piece_are_drawn_by_their_models() -> None:
    free = [Factors(f"residual-free, layers {i}", "Muon", 10, "") for i in range(MANY - 2)]
    plain = [Factors("residual", "Muon", 10, ""), Factors("residual, layers 12", "Muon", 10, "")]
    assert styles([*free, *plain]) == [0] * len(free) + [1, 1]
    assert styles([*free, plain[0]]) == [*range(MANY - 1)]  # so many can still be told apart
    assert styles([*free, *free]) == [*range(2 * len(free))]  # one model: nothing to tell them by


def test_other_settings_make_another_architecture() -> None:
    base, deep = {"arch": "residual", "layers": 6}, {"arch": "residual", "layers": 12}
    found = factors({"a": (base, {"optimizer": "adamw"}), "b": (deep, {"optimizer": "adamw"})})
    assert [one.architecture for one in found.values()] == ["residual", "residual, layers 12"]


def test_schedules_are_those_that_differ_in_steps_alone() -> None:
    assert [arm.name for arm in where().schedules["residual", "Muon"]] == [
        "residual + muon",
        "residual + muon, shorter",
        "residual + muon, shortest",
    ]
    assert where().main["residual", "Muon"].name == "residual + muon"
    pairs = {arm.name: twin.name for arm, twin in where().inside if twin}
    assert pairs["residual-free + muon, int4 gradients"] == "residual-free + muon"


def test_the_rate_of_a_trial_is_not_the_arms() -> None:
    assert {arm.name: rates.taken(arm) for arm in where().main.values()} == {
        f"{arch} + {name}": TAKEN[name]
        for name in TAKEN
        for arch in (ARCHITECTURES if name != "shampoo" else ARCHITECTURES[:2])
    }


# Claims


def test_claims_become_one_row_with_a_column_for_each_optimizer() -> None:
    found = claims.claims(where(), effects.answer(seen(), asked()), asked())
    assert [len(claim.by) for claim in found.of_architectures] == [4, 3, 3, 3]
    assert [claim.label for claim in found.of_architectures][
        2
    ] == "Boundaries are heavier-tailed with residual connections"
    assert [list(claim.by) for claim in found.of_optimizers] == [["residual", "residual-free"]]
    assert found.alone == ()
    table = claims.table(seen(), where(), found)
    assert table is not None
    assert table.columns == ("claim", "AdamW", "Muon", "SOAP", "Shampoo", "floors")
    assert table.rows[1][4] == "–"


def test_a_claim_about_two_treatments_of_one_arm_names_them() -> None:
    claim = {
        "claim": "soap: int3 costs more than int4",
        "between": ["residual + soap", "residual + soap"],
        "measure": {"treatment": "int3/tensor @ boundaries", "metric": "loss_increase"},
        "against": {"treatment": "int4/tensor @ boundaries", "metric": "loss_increase"},
        "compare": "ratio",
        "thesis": "above 1",
    }
    found = claims.claims(where(), effects.answer(seen(), [claim]), [claim])
    [row] = found.of_architectures
    assert row.between == ("residual, int3/tensor @ boundaries", "residual, int4/tensor @ boundaries")


@pytest.mark.parametrize(
    ("verdicts", "pattern"),
    [
        ("ss", "all"),
        ("su", "some"),
        ("sc", "mixed"),
        ("scu", "mixed"),
        ("cu", "against"),
        ("cc", "none"),
        ("uu", "open"),
    ],
)
def test_how_a_claim_holds(verdicts: str, pattern: str) -> None:
    named: dict[str, Any] = {"s": "supported", "c": "contradicted", "u": "undecided"}
    by = {
        str(i): effects.Effect(
            claim="c", arms=("a", "b"), compare="ratio", metric="loss", null=1, verdict=named[letter]
        )
        for i, letter in enumerate(verdicts)
    }
    assert claims.pattern(claims.Claim(label="c", between=("a", "b"), by=by)) == pattern


def test_the_front_says_where_each_claim_holds() -> None:
    front = text(html()[: html().index("<main>")])
    assert "Of 5 claims (4 asked optimizer by optimizer, 1 asked architecture by architecture)," in front
    assert re.search(r"Supported wherever it was asked \d+ Int4 per-tensor boundaries cost more.*?AdamW \d\.\d×", front)
    assert "supported Shampoo" in front.replace("✓ ", "").replace("  ", " ")


# Maps


def test_a_map_holds_the_mean_and_the_interval_of_each_pair() -> None:
    one = grids.Quantity(title="x", measure={"treatment": "unquantized", "metric": "loss"}, ranked=True)
    found = grids.levels_of(seen(), where(), one)["osp", "SOAP"]
    values = [
        attempt.records[0].values["loss"]
        for attempt in study().cells.values()
        if attempt.closing.spec["arm"] == "osp + soap"
        and attempt.closing.spec["measurement"].get("treatment", {}).get("name") == "unquantized"
    ]
    assert found.mean == pytest.approx(np.mean(values))
    assert found.reach == pytest.approx(student_t_quantile(0.975, 2) * np.std(values, ddof=1) / 3**0.5)


def test_the_best_is_the_lowest_mean_and_pairs_without_an_arm_stay_empty() -> None:
    levels = {
        ("a", "AdamW"): level({0: 1.0, 1: 1.1}),
        ("b", "AdamW"): level({0: 1.01, 1: 1.09}),
        ("a", "Muon"): level({0: 3.0, 1: 3.1}),
    }
    two = replace(where(), architectures=("a", "b"), optimizers=("AdamW", "Muon"), main={})
    table = grids.crossed_map(two, levels, grids.Look(title="x", ranked=True))  # type: ignore[arg-type]
    assert table is not None
    assert 'class="best"' in table.rows[0][1] or 'class="best"' in table.rows[1][1]
    assert sum('class="near"' in cell for row in table.rows for cell in row) == 1
    assert table.rows[1][2] == "–"
    assert table.shades == ((0, 7), (0, None))


def test_what_learned_nothing_is_never_the_best() -> None:
    levels = {("a", "AdamW"): level({0: 0.1}), ("b", "AdamW"): level({0: 0.2})}
    two = replace(where(), architectures=("a", "b"), optimizers=("AdamW",), main={})
    look = grids.Look(title="x", ranked=True, apart=(("a", "AdamW"),))
    table = grids.crossed_map(two, levels, look)  # type: ignore[arg-type]
    assert table is not None
    assert 'class="best"' in table.rows[1][1]
    assert table.shades[0] == (None,)


# Equal loss


def test_between_two_schedules_the_logarithm_is_linear() -> None:
    assert stopped.between([(1.0, 0.1), (2.0, 0.4), (3.0, 0.4)], 1.25) == pytest.approx(exp(log(0.1) + 0.25 * log(4)))
    assert stopped.between([(2.0, 0.4), (1.0, 0.1)], 2.0) == pytest.approx(0.4)


def test_nothing_is_guessed_beyond_the_schedules() -> None:
    assert stopped.between([(1.0, 0.1), (2.0, 0.4)], 0.99) is None
    assert stopped.between([(1.0, 0.1), (2.0, -0.4)], 1.5) is None
    found = stopped.comparisons(seen(), where(), "int4/tensor @ boundaries")
    reasons = {one.other: one.reason for one in found if one.ratio is None}
    assert "its shortest ends at" in reasons["residual-free-gpt2", "Muon"]


def test_at_equal_loss_the_seeds_are_paired() -> None:
    name = "int4/tensor @ boundaries"
    [one] = [
        one
        for one in stopped.comparisons(seen(), where(), name)
        if one.other == ("residual-free", "SOAP") and one.ratio
    ]
    arms = [stopped.points(seen(), arm, name) for arm in where().schedules["residual", "SOAP"]]
    ends = stopped.points(seen(), where().main["residual-free", "SOAP"], name)
    ratios = []
    for seed, (loss, cost) in ends.items():
        (low, a), (high, b) = (arms[0][seed], arms[1][seed])
        assert low < loss < high
        ratios.append(exp(np.interp(loss, [low, high], [log(a), log(b)])) / cost)
    assert one.ratio is not None
    assert one.ratio.estimate == pytest.approx(np.exp(np.mean(np.log(ratios))))
    assert one.n == 3
    assert "stopped at the loss of residual-free" in part("equal")


def test_who_was_stopped_is_named_and_rows_without_a_number_are_left_to_the_table() -> None:
    one = next(one for one in stopped.comparisons(seen(), where(), "int4/tensor @ boundaries") if one.ratio)
    every = equal.table([one, replace(one, stopped=("osp", one.stopped[1]))])
    assert [row[every.columns.index("stopped")] for row in every.rows] == [one.stopped[0], "osp"]
    section = equal.section(seen(), where(), asked())
    assert section is not None
    [(_, maps)] = section.maps
    assert maps
    assert all(any("×" in cell for cell in row[1:]) for drawn in maps for row in drawn.rows)
    assert "its shortest ends at" in part("equal")
    assert len({said.split("residual-free")[0] for said in section.said}) == len(section.said)  # one an optimizer


# Rates


def test_a_best_rate_at_the_end_of_its_grid_is_a_caution() -> None:
    assert rates.at_edge({0.1: 2.0, 0.2: 1.0, 0.3: 1.5}) == ""
    assert rates.at_edge({0.1: 2.0, 0.2: 1.0}) == "highest"
    assert rates.at_edge({0.1: 1.0, 0.2: 1.0}) == "lowest"
    assert rates.at_edge({0.1: 2.0, 0.2: 1.0, 0.3: None}) == ""
    assert "residual-free-gpt2 + adamw: the best rate is the highest of its grid (0.006)" in part("rates")
    assert "Of 21 arms, 20 have their best rate inside the grid" in part("rates")
    assert "residual-free + muon at 0.04" in part("rates")


def test_a_rate_is_read_by_either_name() -> None:
    run = Builder()
    about = {"arm": "a", "seed": 0, "model": {"arch": "residual"}, "training": {"lr": 0.1}}
    run.add({**about, "measurement": {"what": "trial"}}, [{"values": {"learning_rate": 0.1, "loss": 2.0}}])
    run.add({**about, "measurement": {"what": "trial", "n": 2}}, [{"values": {"lr": 0.2}}])
    made = view(run.run())
    assert rates.trials(made, made.arms[0]) == {0.1: 2.0, 0.2: None}


# Additions, flow, noise, theory, predictors, quantizers inside


def test_places_lie_in_the_order_of_the_forward_pass() -> None:
    names = ["blocks.0.mid", "blocks.0.out", "blocks.1.attn.sum", "blocks.1.mlp.sum", "blocks.2"]
    assert [passed(name) for name in names] == [0.5, 1.0, 1.5, 2.0, 3.0]


def test_additions_say_how_often_dependence_adds_tails() -> None:
    found = adds.section(seen(), where())
    assert found is not None
    rows = seen().select("adds")
    assert f"Of {len(rows) // 3} places" in found.said[0]  # three seeds each
    assert f"in every seed at {len(rows) // 3}, lighter in every seed at 0, and neither at 0" in found.said[0]
    assert "residual-free" not in {
        series.name for f in found.figures for v in f.variants for p in v.panels for series in p.series
    }


def test_dashed_lines_are_what_is_expected() -> None:
    found = adds.section(seen(), where())
    assert found is not None
    panel = found.figures[0].variants[0].panels[0]
    dashed = [series for series in panel.series if series.dashed]
    solid = [series for series in panel.series if not series.dashed]
    assert [series.name for series in dashed] == [series.name for series in solid]
    gaps = [
        m.y - d.y for one, other in zip(solid, dashed, strict=True) for m, d in zip(one.marks, other.marks, strict=True)
    ]
    assert gaps == pytest.approx([0.7] * len(gaps))
    drawn = svg.draw(panel, "x")
    assert drawn.count('class="line expected"') == len(dashed)


def test_flow_and_noise_are_told() -> None:
    assert "With int4/tensor @ linear" in part("flow")
    assert "G1, spectral" in part("flow")
    told = re.search(
        r"residual block passes on 0\.(\d\d) to 0\.(\d\d) of .* adds 0\.020; a residual-free .* 1\.", part("flow")
    )
    assert told
    assert 80 <= int(told[1]) <= int(told[2]) <= 99
    assert "grows as the noise's power to the 1.0" in part("noise")


def test_stacks_stand_beside_their_closed_forms() -> None:
    found = stacks.section(seen())
    assert found is not None
    assert "2 of 3 stacks have a closed form" in found.said[0]
    panel = found.figures[0].variants[0].panels[0]
    assert [series.dashed for series in panel.series] == [True, False, True, False, False]
    assert all(arm.training is not None for arm in where().main.values())


def test_predictors_are_ranked_with_their_intervals() -> None:
    found = predict.section(seen(), where())
    assert found is not None
    assert len(found.tables) == 3 + predict.MOST
    assert "R behind the last block" in {row[0] for row in found.tables[2].rows}
    assert "R behind the last block" not in {row[0] for row in found.tables[0].rows}
    assert all(variant.panels for variant in found.figures[0].variants)


@pytest.mark.parametrize(
    ("key", "said"),
    [
        ("weight:weights", "weights: mxfp4"),
        ("weight:blocks.0.**", "weights of blocks.0.**: mxfp4"),
        ("activation:interior", "forward, activations of interior: mxfp4"),
        ("state:momentum", "optimizer's state, momentum: mxfp4"),
    ],
)
def test_what_was_quantized_inside_is_said_in_words(key: str, said: str) -> None:
    arm = replace(where().inside[0][0], training={"quantized": {key: "mxfp4"}})
    assert inside.spelled(arm) == said


def test_quantizers_inside_are_compared_with_the_same_arm_without() -> None:
    arm, twin = next(pair for pair in where().inside if pair[0].name.startswith("residual-free"))
    one = inside.trained(seen(), arm, twin)
    assert one is not None
    assert one.increase is not None
    assert twin is not None
    differences = [inside.losses(seen(), arm)[seed] - inside.losses(seen(), twin)[seed] for seed in (0, 1, 2)]
    assert one.increase.estimate == pytest.approx(np.mean(differences))
    assert "backward, gradients at boundaries: int4/tensor" in part("inside")
    assert "residual-free + Muon loses least" in part("inside")


def test_an_evaluation_with_the_same_quantizers_has_a_row_of_its_own() -> None:
    run = Builder()
    training = {"optimizer": "muon", "steps": 10, "lr": 0.1}
    quantized = {**training, "quantized": {"activation:boundaries": "int4/tensor"}}
    for name, spec, loss in (("plain", training, 1.0), ("inside", quantized, 1.5)):
        for seed in (0, 1):
            about = {"arm": name, "seed": seed, "model": {"arch": "residual", "layers": 2}, "training": spec}
            for treatment, more in (("unquantized", 0.0), ("int4/tensor @ boundaries", 0.25)):
                assign = {"activation:boundaries": "int4/tensor"} if more else {}
                measured = {"what": "loss", "treatment": {"name": treatment, "assign": assign}}
                run.add({**about, "measurement": measured}, [{"values": {"loss": loss + more}}])
    made = view(run.run())
    found = inside.section(made, crossing(made))
    assert found is not None
    first, second = found.tables[0].rows
    assert first[2:4] == ("1.00 ± 0", "1.50 ± 0")
    assert "evaluated with int4/tensor @ boundaries" in second[1]
    assert "+0.75" in second[4]


# Seeds, and what was not run


def test_what_the_suite_leaves_out_and_what_is_still_missing_is_said() -> None:
    said = seeds.not_run(study(), seen(), where())
    assert "osp with Shampoo" in said[0]
    assert f"1 cell of {len(study().cells) + 1} were asked for" in said[1]


def test_factors_come_with_those_of_each_seed() -> None:
    assert re.search(
        r"With muon, int4 per-tensor boundaries.*?\d\.\d× \d\.\d to \d\.\d .*?\d\.\d, \d\.\d and \d\.\d", part("seeds")
    )


def test_coverage_counts_cells() -> None:
    table = seeds.coverage(seen())
    assert table is not None
    rows = {row[0]: dict(zip(table.columns, row, strict=True)) for row in table.rows}
    assert (rows["residual + muon"]["trial"], rows["residual + muon"]["steps"]) == ("4", str(STEPS))
    assert rows["residual + muon, shorter"]["adds"] == "–"


# Lines


def test_a_title_names_extremes_only_where_their_intervals_do_not_overlap() -> None:
    from qbench.report.panels import Mark, Series

    def one(name: str, y: float, reach: float) -> Series:
        return Series(name=name, style=0, marks=(Mark(x=0, y=y, low=y - reach, high=y + reach),))

    assert lines.seen_in([one("a + AdamW", 1, 0.1), one("b + AdamW", 2, 0.1)]) == ": b highest (2.0), a lowest (1.0)"
    assert lines.seen_in([one("a", 1, 0.6), one("b", 2, 0.6)]) == ": ends at 1.0 to 2.0, intervals overlap"


def test_marks_without_words_are_the_corners_of_one_path() -> None:
    from qbench.report.panels import Mark

    main = where().main["residual", "AdamW"]
    chart = lines.Chart(name="x", title="x", x="x", y="y", marks={main.name: [Mark(x=i, y=i) for i in range(9)]})
    [panel] = lines.panels(chart, where())
    drawn = svg.draw(sections.silent(panel), "x")
    [path] = re.findall(r'<path class="line dots" d="M([^"]+)"', drawn)
    told = re.findall(r'<use href="#m\d" x="([^"]+)" y="([^"]+)"', svg.draw(panel, "x"))
    assert path.split("L") == [" ".join(at) for at in told]
    assert "<use" not in drawn


def test_columns_of_a_file_take_the_shortest_form() -> None:
    rows = [["a", "b", 1.5, i, None] for i in range(40)]
    folded = payload.folded(payload.packed(["p", "q", "x", "i", "n"], rows))
    assert [next(iter(one)) for one in folded["folded"]] == ["runs", "runs", "runs", "values", "runs"]
    assert folded["folded"][2] == {"runs": [1.5, 40]}
    known = payload.folded(payload.packed(["w"], [["first"], ["second"]] * 30))["folded"][0]
    assert (known["known"], known["at"]) == (["first", "second"], "01" * 30)


def test_an_interval_below_zero_is_drawn_at_the_edge_of_a_logarithm() -> None:
    from qbench.report.panels import Mark

    main = where().main["residual", "AdamW"]
    marks = {main.name: [Mark(x=0, y=0.1, low=-0.5, high=0.7), Mark(x=1, y=0.2, low=0.1, high=0.3)]}
    chart = lines.Chart(name="x", title="x", x="x", y="y", marks=marks, up="logarithmic")
    [panel] = lines.panels(chart, where())
    heights = [float(y) for y in re.findall(r"V(-?\d+)", svg.draw(panel, "x"))]
    assert all(0 <= height <= 300 for height in heights)


def test_static_figures_are_the_panels_of_the_sections() -> None:
    from qbench.report import figures

    drawn = dict(figures.figures(seen(), asked()))
    assert {
        "rates",
        "adds-kurtosis-excess-kurtosis-of-the-sum",
        "loss-increase-Muon",
        "theory-all-values-pooled",
    } <= set(drawn)
    assert all("/" not in name and " " not in name for name in drawn)


def every_mark() -> Iterator[tuple[float, float]]:
    for section in sections.first(seen(), where(), asked()):
        for figure in section.figures:
            for variant in figure.variants:
                for panel in variant.panels:
                    for series in panel.series:
                        yield from (
                            ((panel.x.scale(m.x) - panel.x.low) / (panel.x.high - panel.x.low),
                             (panel.y.scale(m.y) - panel.y.low) / (panel.y.high - panel.y.low))
                            for m in series.marks
                        )  # fmt: skip


def test_every_mark_lies_inside_its_axes() -> None:
    places = np.array(list(every_mark()))
    assert len(places) > 1000
    assert ((places >= 0) & (places <= 1)).all()


# What learned nothing


def stuck(run: Run, arm: str, *which: int) -> Run:
    """The same run where these seeds of an arm are stuck."""

    def told(cell: Closing) -> Closing:
        hit = what(cell) == "training" and cell.spec["arm"] == arm and cell.spec["seed"] in which
        return replace(cell, warnings=("stuck at unigram",)) if hit else cell

    return replace(run, cells={name: replace(one, closing=told(one.closing)) for name, one in run.cells.items()})


def test_one_seed_that_learned_nothing_is_enough_to_be_no_best() -> None:
    made = view(stuck(study(), "residual-free + muon", 1, 2))
    at = crossing(made)
    assert troubles.stuck(made) == {("residual-free + muon", 1), ("residual-free + muon", 2)}
    assert grids.apart(made, at) == (("residual-free", "Muon"),)
    said = "residual-free + muon (in 2 of 3 seeds)"
    for found in (grids.section(made, at, asked()), noise.section(made, at)):
        assert found is not None
        assert said in " ".join(found.said)
        tables = [table for _, tables in found.maps for table in tables if "Muon" in table.columns]
        for table in tables:
            row = [row[0] for row in table.rows].index("residual-free")
            assert table.shades[row][table.columns.index("Muon") - 1] is None
            assert 'class="best"' not in table.rows[row][table.columns.index("Muon")]
    drawn = [series.name for panel in budget.budgets(made, "loss") for series in panel.series]
    assert "residual-free + muon" not in drawn
    summaries = [p.summary for p in page.crossed.budgets(made, at, "loss_increase")["Muon"]]
    assert all("residual-free + muon, " not in summary for summary in summaries)
    assert said in page.render(stuck(small(), "residual-free + muon", 1, 2))


def test_an_arm_that_learned_nothing_is_neither_stopped_nor_compared() -> None:
    name = "int4/tensor @ boundaries"
    made = view(stuck(study(), "residual + soap, shorter", 0))
    found = [one for one in stopped.comparisons(made, crossing(made), name) if one.stopped == ("residual", "SOAP")]
    assert found
    assert {one.ratio for one in found} == {None}
    assert {one.reason for one in found} == {"learned nothing: residual + soap, shorter (in 1 of 3 seeds)"}


def test_of_trained_inside_none_is_best_that_learned_nothing() -> None:
    made = view(stuck(study(), "residual-free + muon, int4 gradients", 0))
    found = inside.section(made, crossing(made))
    assert found is not None
    assert found.said == ()  # one arm is left, and nothing to be better than
    assert "residual-free + muon, int4 gradients (in 1 of 3 seeds)" in found.cautions[0]


# Images


def test_losses_of_models_that_read_images_are_per_image() -> None:
    run = small()
    cells = {
        name: replace(
            one,
            closing=replace(
                one.closing, spec={**one.closing.spec, "model": {**one.closing.spec["model"], "task": "vision"}}
            ),
        )
        for name, one in run.cells.items()
    }
    source = page.render(replace(run, cells=cells))
    assert "nats/token" not in source
    assert source.count("nats/image") == page.render(run).count("nats/token") > 20
    assert "nats/image" not in html()


# Claims: floors, schedules, headline


def test_floors_are_those_of_losses_that_are_paired_by_window() -> None:
    table = claims.table(seen(), where(), claims.claims(where(), effects.answer(seen(), asked()), asked()))
    assert table is not None
    floors = [text(row[-1]) for row in table.rows]
    assert re.fullmatch(r"window 0\.002\d*, seed \S+ nats/token", floors[0].strip())
    assert "nats/token" in floors[1]
    assert floors[2:] == ["–", "–"]  # of tensors, and of an absolute loss
    assert "paired by window" in part("claims")


def test_a_shorter_schedule_is_called_by_its_steps() -> None:
    shorter = [
        {**asked()[0], "between": [f"residual + {name}, shortest", f"residual-free + {name}"]}
        for name in ("adamw", "muon")
    ]
    [one] = claims.claims(where(), effects.answer(seen(), shorter), shorter).of_architectures
    assert one.between == ("residual, 500 steps", "residual-free")


def test_the_headline_counts_every_claim_and_says_how_it_was_asked() -> None:
    several = [*asked()[:4], {**asked()[0], "between": ["residual + adamw", "residual-free + soap"]}]
    found = claims.claims(where(), effects.answer(seen(), several), several)
    line = claims.headline(found, [])
    assert line.startswith("Of 2 claims (1 asked optimizer by optimizer, 1 asked of one pair of arms), ")
    counts = [int(n) for n in re.findall(r"(\d+) (?:is|are) ", line)]
    assert sum(counts) == 2
    alone = claims.claims(where(), effects.answer(seen(), several[:4]), several[:4])
    assert claims.headline(alone, []).startswith("Of 1 claim, asked optimizer by optimizer, 1 is ")


# Predictors, additions, flow, equal loss: what is said of what is left out


def test_treatments_without_a_statistic_are_counted() -> None:
    made = view(
        keep(
            study(),
            lambda cell: what(cell) != "error" or cell.spec["measurement"]["quantizer"] != "int3/tensor",
        )
    )
    found = predict.section(made, crossing(made))
    assert found is not None
    [left] = [line for line in found.said if "Not ranked" in line]
    runs = sum(len(arm.seeds) for arm in crossing(made).main.values())
    assert f"4 treatments ({4 * runs} observations) without the tensors' error" in left
    assert "int3/tensor at boundaries, interior, linear and middle" in left
    assert "Intervals resample arms with their seeds" in found.about
    assert "Noise sensitivity is itself a loss increase" in found.about
    assert found.tables[0].caption.endswith(f"of {len(crossing(made).main)} arms")


def test_where_kurtosis_points_the_other_way_is_said() -> None:
    """Planted: heavier tails cost more at the boundaries and less at linear inputs; pooled, they say nothing."""
    random = np.random.default_rng(0)
    every: list[Observation] = []
    for arm in range(20):
        kurtosis = float(arm)
        for scope, sign in (("boundaries", 1.0), ("linear", -1.0), ("weird", 1.0)):
            every.append(
                Observation(
                    run=(f"arm {arm}", 0),
                    scope=scope,
                    quantizer="int4/tensor",
                    cost=float(np.exp(sign * kurtosis / 5 + 0.1 * random.normal())),
                    sites=("blocks.0.out",),
                    shapes={"blocks.0.out": {"excess_kurtosis/tensor": kurtosis}},
                    errors={},
                    noise={},
                    flow=nan,
                )
            )
    places = {"int4/tensor": predict._by_place(every)}  # pyright: ignore[reportPrivateUsage]
    found = places["int4/tensor"]
    assert list(found) == ["boundaries", "linear"]  # in the order of the scopes; a site alone is none
    assert found["boundaries"].correlations[predict.SHAPE].rho.low > 0.9
    assert found["linear"].correlations[predict.SHAPE].rho.high < -0.9
    [said] = predict._turns(places)  # pyright: ignore[reportPrivateUsage]
    assert said.startswith("Under int4/tensor, arms with heavier tails lose more at boundaries (ρ = ")
    assert " and less at linear (ρ = −" in said
    assert predict._turns({"int4/tensor": {"boundaries": found["boundaries"]}}) == []  # pyright: ignore[reportPrivateUsage]


def test_shaped_blocks_have_no_stream_to_add_to() -> None:
    run = Builder()
    for arch, wiring, gaps in (("residual", "residual", (0.5, -0.5)), ("sas-p", "parallel", (1.0, 1.0))):
        for seed in (0, 1, 2):
            about = {
                "arm": arch,
                "seed": seed,
                "model": {"arch": arch, "wiring": wiring, "layers": 2},
                "training": {"optimizer": "muon", "steps": 10},
            }
            values = [
                {"add/kurtosis/sum/tensor": 1.0 + gap, "add/kurtosis/independent/tensor": 1.0}
                for gap in (*gaps, 0.1 * (seed - 1))
            ]
            run.add(
                {**about, "measurement": {"what": "adds"}},
                [{"site": f"blocks.{i}.out", "values": of} for i, of in enumerate(values)],
            )
    made = view(run.run())
    found = adds.section(made, crossing(made))
    assert found is not None
    assert "Of 3 places" in found.said[0]
    assert "in every seed at 1, lighter in every seed at 1, and neither at 1" in found.said[0]
    assert found.cautions[0].endswith("sas-p.")


def test_treatments_that_have_no_chart_are_named() -> None:
    rows = tuple(
        row
        for name in ("a", "b", "c", "d", "e")
        for row in (replace(row, treatment=name) for row in seen().rows if row.what == "flow")
    )
    many = replace(seen(), rows=rows)
    found = flow.section(many, where())
    assert found is not None
    assert [figure.title for figure in found.figures] == ["With a", "With b", "With c"]
    assert found.cautions == ("Followed too, and not drawn: d and e.",)


CURVES = ({0: (1.0, 0.1), 1: (1.0, 0.1)}, {0: (2.0, 0.4), 1: (2.0, 0.4)}, {0: (3.0, 0.8), 1: (3.0, 0.8)})


@pytest.mark.parametrize(
    ("changed", "end", "reason"),
    [
        ({}, 1.5, ""),
        ({}, 3.5, "its shortest ends at 3.00"),
        ({}, 0.5, "it ends at 1.00 at best"),
        ({1: {0: (2.0, -0.4)}}, 1.5, "an increase is zero or negative in seed 0"),
        ({1: {1: None}}, 1.5, "no loss of every schedule in seed 1"),
        ({0: {1: None}, 2: {0: None}}, 1.5, "no loss of every schedule in seeds 0 and 1"),
        ({0: {1: (1.6, 0.1)}}, 1.5, "it ends at 1.60 at best in seed 1"),
    ],
)
def test_the_reason_is_the_one_that_holds(changed: Mapping[int, Any], end: float, reason: str) -> None:
    """A seed without its middle schedule is not read off the line between the others."""
    curves = [
        {seed: point for seed, point in {**curve, **changed.get(i, {})}.items() if point is not None}
        for i, curve in enumerate(CURVES)
    ]
    ends = {0: (end, 0.2), 1: (end, 0.2)}
    found = stopped._equal("t", (("a", "o"), curves), (("b", "o"), ends), [])  # pyright: ignore[reportPrivateUsage]
    assert found.reason == reason
    assert (found.ratio is None) == bool(reason)


# Rates


def test_shorter_schedules_keep_the_rate_of_the_longest_and_say_so() -> None:
    assert "6 shorter schedules kept the rate that the longest of the same arm had chosen" in part("rates")
    assert "6 shorter schedules kept the rate" in part("equal")
    assert "No rate was tried for these, which have the one that the suite states: residual + shampoo" in part("rates")


def test_a_grid_of_one_rate_has_no_inside() -> None:
    assert rates.at_edge({0.1: 2.0}) == "only one"
    made = view(keep(study(), lambda cell: what(cell) != "trial" or cell.spec["training"]["lr"] == 0.003))
    found = rates.section(made, crossing(made))
    assert found is not None
    assert "0 have their best rate inside the grid" in found.said[0]


# Every section of a run that is not whole


def without_losses(run: Run) -> Run:
    """As a training leaves it whose loss is no number, with one seed of one arm: what is not finite is not stored."""
    cells = {
        name: replace(one, records=tuple(replace(r, values={"floor/window": 0.1}) for r in one.records))
        if one.closing.spec["arm"] == "residual + muon"
        and one.closing.spec["seed"] == 1
        and what(one.closing) in ("loss", "noise", "adds", "flow", "trial")
        else one
        for name, one in run.cells.items()
    }
    return replace(run, cells=cells)


MADE: dict[str, Callable[[Run], Run]] = {
    "one seed": lambda run: keep(run, lambda cell: cell.spec["seed"] == 0),
    "one optimizer": lambda run: keep(run, lambda cell: (cell.spec["training"] or {}).get("optimizer") != "adamw"),
    "one arm": lambda run: keep(run, lambda cell: cell.spec["arm"] == "residual + muon"),
    "failed cells": lambda run: failing(
        run,
        lambda cell: cell.spec["arm"] == "residual + muon" and cell.spec["seed"] == 1 and what(cell) != "training",
        "RuntimeError: out of memory",
    ),
    "a failed arm": lambda run: failing(run, lambda cell: cell.spec["arm"] == "residual + muon", "RuntimeError: no"),
    "losses that are no numbers": without_losses,
}
DRAWN: dict[str, tuple[str, Callable[[View, Crossing], Any]]] = {
    "course": ("training", courses.section),
    "predictors": ("loss", predict.section),
    "noise": ("noise", noise.section),
    "adds": ("adds", adds.section),
    "flow": ("flow", flow.section),
    "rates": ("trial", rates.section),
}


def schedules() -> Run:
    """Two architectures by two optimizers with shorter schedules and quantizers inside."""
    kept = ("adamw", "muon", "shorter", "shortest", "int4 gradients")
    archs = ("residual + ", "residual-free + ")
    return keep(study(), lambda cell: cell.spec["arm"].startswith(archs) and cell.spec["arm"].endswith(kept))


@cache
def partial(name: str) -> View:
    return view(MADE[name](schedules()))


@pytest.mark.parametrize("name", MADE)
def test_every_arm_with_records_is_drawn_where_a_run_is_not_whole(name: str) -> None:
    made = partial(name)
    at = crossing(made)
    for section, (records, of) in DRAWN.items():
        found = of(made, at)
        panels = [panel for figure in found.figures for variant in figure.variants for panel in variant.panels]
        there = {arm.style for arm in at.main.values() if made.select(records, arm=arm.name)}
        assert {series.style for panel in panels for series in panel.series} == there, section
        sections.drawn(found)


@pytest.mark.parametrize("name", MADE)
def test_every_arm_has_its_row_or_is_named_where_a_run_is_not_whole(name: str) -> None:
    made = partial(name)
    at = crossing(made)
    table = seeds.coverage(made)
    assert table is not None
    assert [row[0] for row in table.rows] == [arm.name for arm in made.arms]
    if at.inside:
        found = inside.section(made, at)
        assert found is not None
        assert len(found.tables[0].rows) == len(at.inside)
    if at.crossed:
        maps = grids.section(made, at, asked())
        assert maps is not None
        assert [row[0] for row in maps.maps[0][1][0].rows] == [*at.architectures]
        assert equal.section(made, at, asked()) is not None


def test_an_arm_without_a_loss_is_named_beside_those_trained_inside() -> None:
    lost = failing(study(), lambda cell: cell.spec["arm"] == "residual + muon, int4 gradients", "RuntimeError: no")
    made = view(lost)
    found = inside.section(made, crossing(made))
    assert found is not None
    assert found.cautions == ("Without a loss, and so not in the table: residual + muon, int4 gradients.",)


def test_one_arm_with_noise_is_said_where_it_makes_no_map() -> None:
    made = partial("one arm")
    found = noise.section(made, crossing(made))
    assert found is not None
    assert found.maps == ()
    assert found.said[1].startswith("boundaries, residual alone: ")

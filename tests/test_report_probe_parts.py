"""What a probe's page is made of: verdicts by their rules, sums that must add up, lists that tools can read."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
from fake_probe import compared, probe, values

from qbench.metrics.catalog import METRICS
from qbench.report import answer, front, layers, shrink, verdict
from qbench.report import formats as kept
from qbench.report.formats import Format, arms, formats, recommended, smallest, tier
from qbench.report.hard import hard
from qbench.report.sheets import sheets
from qbench.report.shrink import bytes_after
from qbench.report.view import Arm, Row, View, view
from qbench.results.run import Run


@cache
def seen() -> View:
    return view(probe())


def one(name: str) -> Format:
    return next(found for found in formats(seen()) if found.name == name)


def costing(kld: float, increase: float = 0.0, reach: float = 0.0, **more: float) -> Format:
    found = {**values(kld, increase, 0.0), "kld/worst_slice": 0.0, **more}
    ends = {"loss_increase": (increase - reach, increase + reach)}
    row = Row(arm="model", seed=0, what="loss", values=found, intervals=ends)
    return Format(arm="model", name="x", assign={"weight:weights": "int8/channel"}, row=row)


def test_made_up_numbers_have_names_that_records_may_have() -> None:
    used = {name for row in seen().rows for name in row.values}
    ours = {name for name in used if not name.startswith("outliers/channel") and name not in METRICS}
    assert ours <= {"bytes/stored", "bytes/model", "bits_per_parameter", "tied", "loss/unquantized"}


@pytest.mark.parametrize(
    ("nats", "word"), [(0.0, "safe"), (0.01, "safe"), (0.0101, "marginal"), (0.3, "costly"), (0.31, "broken")]
)
def test_a_bound_belongs_to_the_better_word(nats: float, word: str) -> None:
    assert tier(nats) == word


def test_the_worst_of_three_decides() -> None:
    assert costing(0.001).tier == "safe"
    assert (costing(0.02).tier, costing(0.02).because) == ("marginal", "kld")
    assert (costing(0.001, 0.2).tier, costing(0.001, 0.2).because) == ("costly", "loss_increase")
    sliced = costing(0.001, **{"kld/worst_slice": 0.5})
    assert (sliced.tier, sliced.because) == ("broken", "kld/worst_slice")


def test_few_windows_make_no_format_look_safer() -> None:
    assert costing(0.001, 0.0, reach=0.009).tier == "safe"
    assert costing(0.001, 0.0, reach=0.02).tier == "marginal"
    assert costing(0.001, -0.05, reach=0.01).tier == "safe"  # a loss that falls is no cost


def test_a_cost_within_its_noise_says_so() -> None:
    assert costing(0.001, 0.001, reach=0.002).in_noise
    assert not costing(0.001, 0.003, reach=0.002).in_noise
    assert not costing(0.001, -0.003, reach=0.002).in_noise
    bare = costing(0.001, 0.003)
    assert replace(bare, row=replace(bare.row, values={**bare.values, "floor/window": 0.002}, intervals={})).in_noise
    assert not replace(
        bare, row=replace(bare.row, values={**bare.values, "floor/window": 0.001}, intervals={})
    ).in_noise


def test_low_bit_arithmetic_and_the_cache_do_not_count_as_smaller_weights() -> None:
    plain = replace(costing(0.001), bytes=2e6)
    computed = replace(plain, assign={"weight:weights": "int8/channel", "activation:linear": "int8/token"}, bytes=1e6)
    cache_only = replace(plain, assign={"activation:kv": "int8/token"}, bytes=0.0)
    assert recommended([computed, cache_only, plain]) is plain
    assert recommended([computed, cache_only]) is computed
    assert recommended([cache_only]) is None
    assert smallest([cache_only, plain], "safe") is plain


def test_what_else_a_reader_decides_stands_below_the_answer() -> None:
    found = dict(verdict.points(formats(seen())))
    assert found == {
        "Smaller, costly": "int4/block:32 weights, 0.640\u202fMB, KLD 0.040 and loss +0.020",
        "Low-bit arithmetic": "W8A8, 1.01\u202fMB, is safe, KLD 0.0020 and loss +0.0004",
        "Keys and values": "KV8 is safe (KLD 0.0004) and K8V4 is marginal (KLD 0.030)",
        "Block boundaries": "int4/token is costly (KLD 0.20)",
        "Broken": "int2/block:32",
    }


def test_bytes_that_stay_add_up_to_the_files() -> None:
    best = one("int6/block:32")
    found = bytes_after(seen(), best)
    assert found is not None
    weights, rest = 7 * 138_918, 4 * (26_573 + 1_000)
    assert found.before == 4 * weights + rest
    assert found.after == pytest.approx(weights * 6.25 / 8 + rest)
    assert found.after == pytest.approx(best.bytes, rel=1e-3)
    assert [row.what for row in found.unshrunk] == ["embed", "scales and zero points", "model.norm"]
    assert bytes_after(seen(), replace(best, bytes=0.9e6)) is None  # records that do not add up make no table


def test_a_map_has_the_worst_of_several_experts_and_its_shade_is_half_bits() -> None:
    rows = [
        Row(
            arm="model",
            seed=0,
            what="error",
            kind="weight",
            site=f"blocks.0.mlp.experts.{i}.up",
            quantizer="int4/channel",
            values={"error_db": -30.0 + 5 * (i == 1), "shape_loss_db": 6.0 * (i == 1)},
        )
        for i in range(3)
    ]
    arm = Arm(name="model", style=0, drawn_as="model", model={}, training=None, seeds=(0,))
    found = hard(View(arms=(arm,), rows=tuple(rows), cells=(), manifest={}), "weight")[0]
    assert found.map.columns == ("layer", "mlp.experts.*.up")
    assert found.map.rows == (("0", "25.0"),)
    assert found.map.shades == ((2,),)
    assert found.worst.rows[0][0] == "blocks.0.mlp.experts.1.up"


def test_formats_of_the_cache_stand_beside_those_of_files() -> None:
    panel = front.panels(formats(seen()))["KLD"]
    at = {mark.label: mark.x for series in panel.series for mark in series.marks}
    assert at["int8/channel"] == 1.01
    assert at["KV8"] == at["int4/token @ boundaries"] > max(at["int8/channel"], at["W8A8"])
    assert panel.x.low < at["KV8"] < panel.x.high
    assert [mark.label for mark in panel.ringed] == ["int2/block:32", "int4/block:32", "int6/block:32", "int8/channel"]


def test_csv_has_no_size_where_the_files_stay() -> None:
    sheet = sheets(seen(), formats(seen()))["formats"]
    rows = [dict(zip(sheet["columns"], row, strict=True)) for row in sheet["rows"]]
    assert [row["bytes"] for row in rows if row["bits_per_value"] is not None][-3:] == [None, None, None]
    assert rows[0]["bytes"] == 1_010_000


def test_a_format_that_another_beats_in_size_and_kld_is_left_to_the_page() -> None:
    run = probe()
    worse = next(found for found in formats(view(run)) if found.name == "int6/block:32")
    assert worse in answer.worth([worse, one("int8/channel")])
    beaten = replace(worse, bytes=2e6)
    assert beaten not in answer.worth([beaten, one("int8/channel")])


def test_what_a_checkpoint_was_quantized_to_is_a_table_of_its_own() -> None:
    """And no row of it is taken for the whole model."""
    seen = view(compared())
    packed, stored = shrink.stored_tables(seen)
    assert packed.caption == "What tiny-w4 was quantized to, by gptq"
    assert packed.rows == (("int4/block:32", "28", "972\u202f426", "0.547", "4.50"),)
    assert "tiny-w4" in stored.caption
    candidate = next(arm for arm in arms(seen) if arm.name == "candidate")
    assert kept.stored(seen, candidate).n == 30  # type: ignore[union-attr]


def only(what: str, scopes: str = "") -> Run:
    """A probe's cells that measured `what`; with `scopes` those whose treatment is of one of these and nothing else."""
    run = probe()
    specs = {name: attempt.closing.spec["measurement"] for name, attempt in run.cells.items()}  # type: ignore[index]
    chosen = {name for name, asked in specs.items() if asked["what"] == what and _within(asked, scopes.split())}
    return replace(run, cells={name: attempt for name, attempt in run.cells.items() if name in chosen})


def _within(asked: Mapping[str, Any], scopes: Sequence[str]) -> bool:
    assign = asked["treatment"]["assign"] if scopes else {}
    return not scopes or (bool(assign) and {key.partition(":")[2] for key in assign} <= set(scopes))


def test_where_no_file_gets_smaller_the_cache_is_the_answer() -> None:
    """K8V4 has fewer bits, and is only marginal; what quantizes one half alone is no answer."""
    said = answer.lines(only("loss", "kv keys values boundaries"))[0]
    assert said.startswith(
        "Keys and values: the fewest bits that are safe are those of KV8, 8.25 bits a value. It costs: KLD"
    )
    harmed = [one for one in formats(view(only("loss", "kv keys values boundaries"))) if one.name != "KV8"]
    assert "nothing measured is safe. The fewest bits that are marginal: K8V4" in verdict.headline(harmed)


def test_where_only_layers_were_looked_at_they_are_the_answer() -> None:
    first, conditions, head, *rows, _ = answer.lines(only("sensitivity"))
    assert first.startswith("Alone, ")
    assert "costs most: +" in first
    assert conditions.startswith("Measured on ")
    assert head.split()[:3] == ["format", "costs", "most"]
    assert len(rows) == len(layers.sweeps(view(only("sensitivity"))))


def test_all_groups_that_stand_out_are_counted_and_the_first_eight_listed() -> None:
    rows = [
        Row(arm="model", seed=0, what="sensitivity", site=f"blocks.{i}.mlp.in", scope=f"layers.{i}", quantizer="int4",
            values={"loss_increase": 1.0 - i / 100, "floor/window": 0.01})
        for i in range(12)
    ]  # fmt: skip
    arm = Arm(name="model", style=0, drawn_as="model", model={"arch": "pretrained"}, training=None, seeds=(0,))
    (sweep,) = layers.sweeps(View(arms=(arm,), rows=tuple(rows), cells=(), manifest={}))
    assert sweep.first == ("blocks.0.mlp.in", "+1.0 ± 0.020", "12 of 12")
    assert sweep.most_kept == 8
    assert all("layers.7" in text and "layers.8" not in text for _, text in sweep.excluded)

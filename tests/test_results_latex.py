"""Tables for a paper: structure, rounding, and no bold without evidence."""

from collections.abc import Sequence

import pytest

from qbench.results.export import COLUMNS, Line
from qbench.results.latex import BadTable, Layout, escape, table


def line(model: str, quantizer: str, seed: int, value: float | None, **fields: object) -> Line:
    own = {"model": model, "quantizer": quantizer, "seed": seed, "value": value, "metric": "loss_increase", "site": ""}
    status = {"status": "measured", "kind": "activation", "scope": "boundaries"}
    return dict.fromkeys(COLUMNS) | own | status | fields


def spread(values: Sequence[float]) -> tuple[float, float]:
    """A stand-in for an interval that tests can compute in the head: the range."""
    return min(values), max(values)


def seeds(model: str, quantizer: str, values: Sequence[float], **fields: object) -> list[Line]:
    return [line(model, quantizer, seed, value, **fields) for seed, value in enumerate(values)]


def rows(text: str) -> list[list[str]]:
    body = text.partition("\\midrule\n")[2].partition("\n\\bottomrule")[0]
    return [[cell.strip() for cell in row.removesuffix("\\\\").split("&")] for row in body.split("\n")]


def test_the_whole_table_as_it_is_printed() -> None:
    lines = [
        *seeds("residual", "int4/token", [0.30, 0.34]),
        *seeds("free", "int4/token", [0.10, 0.14]),
        *seeds("free", "mxfp4", [2, 2.2]),
    ]
    assert table(lines, Layout(where={"scope": "boundaries"}), spread) == (
        "\\begin{tabular}{lrr}\n"
        "\\toprule\n"
        "model & int4/token & mxfp4 \\\\\n"
        "\\midrule\n"
        "free & $\\mathbf{0.120} \\pm 0.020$ & $2.10 \\pm 0.10$ \\\\\n"
        "residual & $0.320 \\pm 0.020$ & -- \\\\\n"
        "\\bottomrule\n"
        "\\multicolumn{3}{l}{\\footnotesize loss\\_increase; scope boundaries; "
        "mean $\\pm$ 95\\,\\% interval over 2 seeds; bold: lowest, its interval below all others} \\\\\n"
        "\\end{tabular}\n"
    )


@pytest.mark.parametrize(
    ("best", "next_best", "bold"),
    [
        ([1.0, 1.2], [1.3, 1.5], True),
        ([1.0, 1.2], [1.2, 1.5], False),  # they touch
        ([1.0, 1.4], [1.3, 1.5], False),
        ([1.0], [9.0, 9.1], False),  # one seed has no interval
        ([1.0, 1.2], [9.0], False),
    ],
)
def test_bold_needs_separated_intervals(best: list[float], next_best: list[float], bold: bool) -> None:
    text = table([*seeds("a", "q", best), *seeds("b", "q", next_best)], Layout(), spread)
    assert ("mathbf" in rows(text)[0][1]) is bold
    assert "mathbf" not in rows(text)[1][1]


def test_bold_is_below_all_others_not_only_the_next() -> None:
    lines = [*seeds("a", "q", [1.0, 1.2]), *seeds("b", "q", [1.3, 1.5]), *seeds("c", "q", [0.9, 9.0])]
    assert "mathbf" not in table(lines, Layout(), spread)


def test_a_description_is_never_ranked() -> None:
    text = table([*seeds("a", "q", [1.0, 1.1]), *seeds("b", "q", [2.0, 2.1])], Layout(ranked=False), spread)
    assert "mathbf" not in text
    assert "bold" not in text


@pytest.mark.parametrize(
    ("values", "shown"),
    [
        ([1e-6, 3e-6], r"$(2.0 \pm 1.0) \times 10^{-6}$"),
        ([123456, 123460], r"$(1.234580 \pm 0.000020) \times 10^{5}$"),
        ([0.0, 0.0], r"$0.00 \pm 0.00$"),
        ([-0.5, -0.3], r"$-0.40 \pm 0.10$"),
        ([99.5, 100.5], r"$100.00 \pm 0.50$"),
        ([1.23456], "$1.23$"),
        ([0.00123456], "$0.00123$"),
        ([1.5e-9], r"$(1.50) \times 10^{-9}$"),
    ],
)
def test_numbers_are_rounded_to_their_uncertainty(values: list[float], shown: str) -> None:
    assert rows(table(seeds("a", "q", values), Layout(), spread))[0][1] == shown


def test_sites_are_averaged_within_a_seed_before_the_interval() -> None:
    sites = [
        line("a", "q", seed, value, site=site) for seed in (0, 1) for site, value in (("x", 0.0), ("y", 2.0 + seed))
    ]
    seen: list[list[float]] = []
    table(sites, Layout(), lambda values: seen.append(list(values)) or (0.0, 1.0))
    assert seen == [[1.0, 1.5]]
    assert "each seed the mean of its sites, up to 2;" in table(sites, Layout(), spread)


@pytest.mark.parametrize("column", ["scope", "kind", "step", "suite", "optimizer", "wiring"])
def test_unlike_things_are_not_averaged(column: str) -> None:
    lines = [line("a", "q", 0, 1.0, **{column: "x"}), line("a", "q", 1, 2.0, **{column: "y"})]
    with pytest.raises(BadTable, match=f"mixes {column} 'x' and 'y'; choose one: --where {column}=x"):
        table(lines, Layout(), spread)
    assert "$1.00$" in table(lines, Layout(where={column: "x"}), spread)


def test_two_answers_for_one_seed_are_not_averaged() -> None:
    with pytest.raises(BadTable, match="two versions"):
        table([line("a", "q", 0, 1.0), line("a", "q", 0, 2.0)], Layout(), spread)


def test_failed_seeds_are_marked_and_failed_entries_said() -> None:
    gone = {"value": None, "metric": "", "status": "failed"}
    lines = [
        *seeds("a", "q", [1.0, 2.0]), line("a", "q", 2, **gone), line("b", "q", 0, **gone),
        line("b", "other", 0, **gone | {"scope": "weights"}),
    ]  # fmt: skip
    text = table(lines, Layout(), spread)
    assert rows(text) == [["a", r"$1.50 \pm 0.50^{\dagger}$"], ["b", "failed"]]
    assert r"$\dagger$ other seeds failed" in text


def test_uneven_seeds_are_counted_in_each_entry() -> None:
    text = table([*seeds("a", "q", [1.0, 2.0]), *seeds("b", "q", [1.0, 2.0, 3.0])], Layout(), spread)
    assert [row[1].partition("_")[2] for row in rows(text)] == ["{n=2}$", "{n=3}$"]
    assert "over n seeds" in text


def test_names_cannot_break_the_table() -> None:
    name = r"50% & \input{x} #1 $y$ a_b ~^ <|>" + "\n%"
    text = table(seeds(name, "q_1", [1.0, 2.0]), Layout(), spread)
    assert len(text.splitlines()) == 8
    row = text.splitlines()[4]
    assert row.startswith(r"50\% \& \textbackslash{}input\{x\} \#1 \$y\$ a\_b \textasciitilde{}\textasciicircum{} ")
    assert text.splitlines()[2] == r"model & q\_1 \\"
    assert escape("plain 1.5") == "plain 1.5"


def test_an_empty_table_teaches() -> None:
    with pytest.raises(BadTable, match="no loss_increase was measured with scope=weights"):
        table(seeds("a", "q", [1.0]), Layout(where={"scope": "weights"}), spread)
    with pytest.raises(BadTable, match="no column 'arm'; known: suite, model"):
        Layout(rows="arm")


def test_rows_and_columns_are_free() -> None:
    lines = [*seeds("m", "q", [1.0, 2.0], scope="x"), *seeds("m", "q", [3.0, 4.0], scope="y")]
    assert [row[0] for row in rows(table(lines, Layout(rows="scope", cols="model"), spread))] == ["x", "y"]


def test_a_slice_is_no_second_answer() -> None:
    whole = seeds("a", "q", [1.0, 2.0])
    parts = [line("a", "q", seed, 9.0, slice=name) for seed in (0, 1) for name in ("early", "late")]
    assert table([*whole, *parts], Layout(), spread) == table(whole, Layout(), spread)
    early = rows(table([*whole, *parts], Layout(where={"slice": "early"}), spread))
    assert early == [["a", "$9.00 \\pm 0.00$"]]
    by_slice = rows(table([*whole, *parts], Layout(rows="slice"), spread))
    assert [row[0] for row in by_slice] == ["", "early", "late"]

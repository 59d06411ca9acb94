"""Quantizer names: what can be spelled, what is refused, and what it costs in bits."""

import subprocess
import sys
from typing import Any

import pytest
from hypothesis import HealthCheck, given, reject, settings
from hypothesis import strategies as st

from qbench.quant.catalog import QUANTIZERS, quantizer_spec
from qbench.quant.family import EXPONENT_RULES, STORAGES
from qbench.quant.spec import FAMILIES, QuantizerName, QuantizerSpec, bits_per_value
from qbench.quant.spelling import parse


@st.composite
def specs(draw: st.DrawFn) -> QuantizerSpec:
    """Any spec at all, drawn from the tables; combinations that do not fit are thrown away."""
    grid = draw(st.sampled_from(sorted(FAMILIES)))
    family = FAMILIES[grid]
    rule = draw(st.sampled_from(family.rules))
    numbers = {"percentile": st.floats(0.5, 100), "clip": st.floats(0.1, 50)}
    size = st.integers(1, 10**6)
    wrapper = draw(st.sampled_from(["", "hadamard", "rht"]))
    return _fitting(
        grid=grid,
        bits=draw(st.sampled_from(family.bits)),
        variant=draw(st.sampled_from(family.variants)),
        granularity=draw(
            st.sampled_from(["tensor", "token", "channel"])
            | size.map(lambda n: f"block:{n}")
            | st.tuples(size, st.integers(-9, 9)).map(lambda n: f"block:{n[0]}@{n[1]}")
            | st.tuples(size, size).map(lambda n: f"tile:{n[0]}x{n[1]}")
        ),
        rule=f"{rule}:{draw(numbers[rule])}" if rule in numbers else rule,
        scale="e8m0" if rule in EXPONENT_RULES else draw(st.sampled_from([s for s in STORAGES if s != "e8m0"])),
        rounding=draw(st.sampled_from(["nearest", "rtz"]) | st.integers(0, 10**9 - 1).map(lambda n: f"sr:{n}")),
        smooth=draw(st.none() | st.integers(1, 1000).map(lambda n: n / 1000)),
        hadamard=draw(st.just(0) | st.integers(1, 15).map(lambda n: 2**n)) if wrapper == "hadamard" else None,
        rht=draw(st.integers(0, 10**9 - 1)) if wrapper == "rht" else None,
    )


def _fitting(**parts: Any) -> QuantizerSpec:
    try:
        return QuantizerSpec(**parts)
    except QuantizerName:
        reject()


@settings(suppress_health_check=[HealthCheck.filter_too_much, HealthCheck.too_slow])
@given(specs())
def test_parsing_undoes_printing(spec: QuantizerSpec) -> None:
    assert parse(str(spec)) == spec
    assert str(parse(str(spec))) == str(spec)


WORDS = [
    "int",
    "lloyd",
    "e2m1",
    "token",
    "block:",
    "scale:",
    "mxfp4",
    "asym",
    "pow2",
    "e8m0",
    "hadamard",
    "tile:",
    "sr:",
    "rtz",
    "kmeans",
    "rht:",
    "nvfp4",
    "percentile:",
    "smooth:",
    "double",
    "nf4",
]


@given(st.text() | st.lists(st.sampled_from([*"/.:+@x0348", *WORDS])).map("".join))
def test_no_string_does_worse_than_a_bad_name(text: str) -> None:
    try:
        spec = parse(text)
    except QuantizerName:
        return
    assert parse(str(spec)) == spec


@pytest.mark.parametrize(
    ("name", "canonical"),
    [
        ("e2m1/block:32/pow2/scale:e8m0", "mxfp4"),
        ("e2m1/block:32/pow2/scale:e8m0+hadamard", "mxfp4+hadamard"),
        ("int4.narrow/token/absmax/scale:fp32", "int4/token"),
        ("lloyd4/block:128/rms", "lloyd4/block:128"),
        ("lloyd4.gauss/token", "lloyd4/token"),
        ("e2m1/block:16/absmax/scale:e4m3.fp32/nearest", "nvfp4"),
        ("e4m3/block:32/rceil/scale:e8m0/sr:7", "mxfp8e4m3.rceil/sr:7"),
        ("int8/token/percentile:99.90", "int8/token/percentile:99.9"),
        ("int4/block:16@-1", "int4/block:16"),
        ("int8/token+smooth:.50+hadamard", "int8/token+smooth:0.5+hadamard"),
        ("kmeans4/tensor/none", "kmeans4/tensor"),
    ],
)
def test_defaults_are_not_spelled(name: str, canonical: str) -> None:
    assert str(parse(name)) == canonical


@pytest.mark.parametrize(
    ("name", "lesson"),
    [
        ("int4", "no granularity"),
        ("int9/token", "allowed: 2, 3, 4, 5, 6, 7, 8"),
        ("nit4/token", "did you mean 'int4'?"),
        ("fp4/token", "write e2m1 (OCP, NVIDIA) or bnbfp4 (bitsandbytes)"),
        ("fp8/token", "write e4m3 or e5m2"),
        ("mxfp8", "mxfp8e4m3 or mxfp8e5m2"),
        ("int4.asm/token", "did you mean 'asym'?"),
        ("int4/tokens", "did you mean 'token'?"),
        ("int4/block:0", "block:N"),
        ("int4/tile:16", "tile:RxC"),
        ("int4/block:32@1x", "block:N@AXIS"),
        ("int4/token/absmx", "did you mean 'absmax'?"),
        ("lloyd4/token/pow2/scale:e8m0", "allowed: rms, absmax"),
        ("int4/token/scale:fp8", "allowed: fp32, bf16, fp16, e8m0, e4m3, e4m3.fp32, double"),
        ("int4/token/scale:e8m0", "go together"),
        ("int4/token/pow2", "go together"),
        ("int4.asym/token/rms", "asym spans"),
        ("int4/token/rms/scale:double", "symmetric absmax only"),
        ("int4/scale:fp16", "granularity 'scale:fp16'"),
        ("int4/token/scale:fp16/rms", "'rms' is out of place"),
        ("int4/token/sr:0/scale:fp16", "'scale:fp16' is out of place"),
        ("int4/token/percentile", "percentile needs a number above 0 and at most 100"),
        ("int4/token/percentile:101", "percentile needs a number above 0 and at most 100"),
        ("int4/token/clip:x", "clip needs a number"),
        ("int4/token/sr:x", "allowed: nearest, rtz, sr:SEED"),
        ("lloyd4/token/rtz", "no level 0"),
        ("kmeans4/token", "need no scale: write kmeans4/tensor"),
        ("mxfp4/token", "mxfp4 is complete"),
        ("mxpf4", "did you mean 'mxfp4'?"),
        ("int4/tensor+hadamrd", "did you mean 'hadamard'?"),
        ("int4/tensor+hadamard:12", "power of two"),
        ("int4/tensor+hadamard+rht:1", "one rotation is enough"),
        ("int4/tensor+hadamard+hadamard", "given twice"),
        ("int4/tensor+smooth:2", "above 0 and at most 1, found 2.0"),
        ("int4/tensor+smooth", "allowed: smooth:POWER"),
        ("int4/tensor+hadamard+smooth:0.5", "smoothing comes before"),
    ],
)
def test_errors_teach(name: str, lesson: str) -> None:
    with pytest.raises(QuantizerName) as error:
        parse(name)
    assert lesson in str(error.value)
    assert repr(name) in str(error.value)


def test_rows_of_the_catalog_carry_their_canonical_name() -> None:
    assert {name: str(row.spec) for name, row in QUANTIZERS.items()} == {name: name for name in QUANTIZERS}
    assert all(row.meaning for row in QUANTIZERS.values())
    assert quantizer_spec("int5/token") == parse("int5/token")


def test_the_revision_names_the_family() -> None:
    revisions = {row.spec.revision for row in QUANTIZERS.values()}
    assert {"int@1", "e2m1@1", "lloyd@1"} < revisions
    assert {revision.partition("@")[0] for revision in revisions} == set(FAMILIES)  # each family has a row


def test_every_rule_storage_and_rounding_has_a_row() -> None:
    specs = [row.spec for row in QUANTIZERS.values()]
    assert {spec.scale for spec in specs} == set(STORAGES)
    assert {spec.rule_word for spec in specs} == {rule for family in FAMILIES.values() for rule in family.rules}
    assert {spec.rounding.partition(":")[0] for spec in specs} == {"nearest", "rtz", "sr"}
    assert {spec.group.kind for spec in specs} == {"tensor", "token", "channel", "block", "tile"}


@pytest.mark.parametrize(
    ("name", "shape", "channel_axis", "bits"),
    [
        ("mxfp4", (8, 64), -1, 4 + 8 / 32),  # OCP Microscaling Formats v1.0
        ("int4/token", (8, 64), -1, 4 + 32 / 64),
        ("int4/token/scale:bf16", (2, 4, 64), -1, 4 + 16 / 64),
        ("int8/tensor", (8, 64), -1, 8 + 32 / 512),
        ("int8/tensor", (), -1, 40),
        ("int4/channel", (8, 64), -1, 4 + 64 * 32 / 512),
        ("int4/channel", (8, 64), 0, 4 + 8 * 32 / 512),
        ("int4.asym/block:32", (8, 64), -1, 4 + (32 + 4) / 32),
        ("int4/block:32", (8, 33), -1, (64 * 4 + 2 * 32) / 33),  # 31 padding codes and a scale for one value
        ("int4/tensor+hadamard", (8, 64), -1, 4 + 32 / 512),
        ("int4/block:32", (0, 64), -1, 0),
        ("nvfp4", (8, 64), -1, 4 + 8 / 16 + 32 / 512),
        ("nf4/block:64/scale:double", (64, 512), -1, 4 + 8 / 64 + (2 * 32 + 32) / 2**15),  # 512 scales, their mean
        ("int3/token", (8, 64), -1, 3 + 32 / 64),  # eight codes in three bytes
        ("int3/tensor", (3, 3), -1, (8 * 4 + 32) / 9),  # 27 bits in four bytes
        ("ternary/tensor", (8, 64), -1, (8 * 103 + 32) / 512),  # five digits to a byte
        ("binary/tensor", (8, 64), -1, 1 + 32 / 512),
        ("kmeans4/tensor", (8, 64), -1, 4 + 16 * 32 / 512),
        ("int4/block:4@0", (6, 64), -1, 64 * 2 * (4 * 4 + 32) / 384),
        ("int4/tile:16x16", (20, 16), -1, 2 * (256 * 4 + 32) / 320),
        ("int8/token+smooth:0.5", (8, 64), -1, 8 + 32 / 64 + 64 * 32 / 512),
    ],
)
def test_bits_are_counted_from_what_is_stored(
    name: str, shape: tuple[int, ...], channel_axis: int, bits: float
) -> None:
    assert bits_per_value(parse(name), shape, channel_axis) == pytest.approx(bits, abs=1e-12)


def test_names_and_expectations_need_no_torch() -> None:
    code = (
        "import qbench.quant.catalog, qbench.quant.expect, qbench.stats.interval, sys; sys.exit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)

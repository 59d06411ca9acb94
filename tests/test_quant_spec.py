"""Quantizer names: what can be spelled, what is refused, and what it costs in bits."""

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qbench.quant.catalog import QUANTIZERS, quantizer_spec
from qbench.quant.spec import FAMILIES, QuantizerName, QuantizerSpec, bits_per_value, parse


@st.composite
def specs(draw: st.DrawFn) -> QuantizerSpec:
    grid = draw(st.sampled_from(sorted(FAMILIES)))
    family = FAMILIES[grid]
    variant = draw(st.sampled_from(family.variants))
    rule = "absmax" if variant == "asym" else draw(st.sampled_from(family.rules))
    return QuantizerSpec(
        grid=grid,
        bits=draw(st.sampled_from(family.bits)),
        variant=variant,
        granularity=draw(
            st.sampled_from(["tensor", "token", "channel"]) | st.integers(1, 10**6).map(lambda n: f"block:{n}")
        ),
        rule=rule,
        scale="e8m0" if rule == "pow2" else draw(st.sampled_from(["fp32", "bf16", "fp16"])),
        hadamard=draw(st.none() | st.just(0) | st.integers(1, 15).map(lambda n: 2**n)),
    )


@given(specs())
def test_parsing_undoes_printing(spec: QuantizerSpec) -> None:
    assert parse(str(spec)) == spec
    assert str(parse(str(spec))) == str(spec)


@given(st.text() | st.lists(st.sampled_from([*"/.:+348", "int", "lloyd", "e2m1", "token", "block:", "scale:", "mxfp4",
                                             "asym", "pow2", "e8m0", "hadamard"])).map("".join))  # fmt: skip
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
        ("int4.asm/token", "did you mean 'asym'?"),
        ("int4/tokens", "did you mean 'token'?"),
        ("int4/block:0", "block:N"),
        ("int4/token/mse", "allowed: absmax, rms, pow2"),
        ("lloyd4/token/pow2/scale:e8m0", "allowed: rms, absmax"),
        ("int4/token/scale:fp8", "allowed: fp32, bf16, fp16, e8m0"),
        ("int4/token/scale:e8m0", "go together"),
        ("int4/token/pow2", "go together"),
        ("int4.asym/token/rms", "asym spans"),
        ("int4/scale:fp16", "granularity 'scale:fp16'"),
        ("int4/token/scale:fp16/rms", "'rms' is out of place"),
        ("mxfp4/token", "mxfp4 is complete"),
        ("mxpf4", "did you mean 'mxfp4'?"),
        ("int4/tensor+hadamrd", "did you mean 'hadamard'?"),
        ("int4/tensor+hadamard:12", "power of two"),
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
    assert {row.spec.revision for row in QUANTIZERS.values()} == {"int@1", "e2m1@1", "lloyd@1"}


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

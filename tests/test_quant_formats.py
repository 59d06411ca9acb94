"""The table of formats is current, and what it says is so. `python tests/test_quant_formats.py` redraws it."""

import subprocess
import sys
from math import log10
from pathlib import Path

import numpy as np
import pytest
import torch

from qbench.quant.catalog import QUANTIZERS
from qbench.quant.expect import expected_loss
from qbench.quant.quantizer import build
from qbench.quant.simulate import draw, roundtrip, simulated_error_db
from qbench.quant.spelling import parse
from qbench.quant.table import facts, markdown
from qbench.stats.density import DENSITIES, LAPLACE, NORMAL
from qbench.stats.gaussian import entropy

PAGE = Path(__file__).parents[1] / "docs/formats.md"
START, END = "<!-- table -->\n", "<!-- end of table -->"


def test_the_table_is_current() -> None:
    page = PAGE.read_text()
    drawn = page[page.index(START) + len(START) : page.index(END)]
    assert drawn == markdown(), "run python tests/test_quant_formats.py"


def test_every_part_of_the_language_is_explained() -> None:
    from qbench.quant.family import ALIASES, FAMILIES, STORAGES

    page = PAGE.read_text()
    words = {*FAMILIES, *STORAGES, *(rule for family in FAMILIES.values() for rule in family.rules)} - {
        "none",
        "ocpint8",
    }
    words |= {alias for alias in ALIASES if "." not in alias}
    assert {word for word in words if f"`{word}" not in page} == set()


def test_listing_needs_no_torch_and_prints_every_row() -> None:
    code = "import sys; sys.modules['torch'] = None; from qbench.cli.main import main; main(['ls', 'quantizers'])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert [line.split()[0] for line in lines[1:-1]] == list(QUANTIZERS)
    assert "18.8" in next(line for line in lines if line.startswith("mxfp4 "))


SIMULATED = ["int4/token", "int8/channel", "int4/block:32", "int4/token/rms", "int4/channel/mse", "mxfp4", "mxfp6e3m2",
             "nvfp4", "int4/block:16/scale:e4m3", "nf4/block:64", "lloyd4/block:64", "lloyd2/block:128", "e2m1/token",
             "mxfp4+hadamard:32", "int4/block:32+hadamard:32", "int4/tensor+hadamard", "int8/token+smooth:0.5",
             "dynamic/block:256", "e4m3/tensor"]  # fmt: skip


@pytest.mark.parametrize("name", SIMULATED)
def test_numpy_and_torch_agree_value_by_value(name: str) -> None:
    x = draw(LAPLACE, (32, 256), seed=1)
    ours = build(name).roundtrip(torch.from_numpy(x)).numpy()
    theirs = roundtrip(parse(name), x)
    # Scales are stored in fewer bits than numpy's, which moves a few values across a boundary.
    assert np.isclose(ours, theirs, rtol=1e-6, atol=1e-9).mean() > 0.999
    assert ((ours - x) ** 2).sum() == pytest.approx(((theirs - x) ** 2).sum(), rel=1e-3)


@pytest.mark.parametrize("name", [n for n, r in QUANTIZERS.items() if expected_loss(r.spec, (1024, 1024)) is None])
def test_what_is_simulated_is_what_a_matrix_shows(name: str) -> None:
    x = torch.from_numpy(draw(NORMAL, (1024, 1024), seed=2)).float()
    error = 10 * log10(float((build(name).roundtrip(x) - x).square().sum() / x.square().sum()))
    assert simulated_error_db(parse(name)) == pytest.approx(error, abs=0.1)


@pytest.mark.parametrize("density", DENSITIES)
@pytest.mark.parametrize(
    "name",
    ["int4/token", "int3/block:32", "int4.asym/token", "int4/token/sr:0", "int4/token/rtz", "mxfp4", "mxfp4.rceil",
     "nvfp4", "nf4/block:64", "e4m3/token", "lloyd4/tensor", "uniform4/tensor", "ternary/tensor", "binary/tensor",
     "int8/tensor/percentile:99.9", "kmeans4/tensor", "quantile4/tensor", "ternary/tensor/clip:2.5/sr:0"],
)  # fmt: skip
def test_expectations_hold_for_other_densities_too(name: str, density: str) -> None:
    p = DENSITIES[density]
    x = draw(p, (4096, 128), seed=3)
    x /= np.sqrt((x**2).mean())
    q = build(name)
    loss = expected_loss(q.spec, x.shape, p=p)
    assert loss is not None
    y = torch.from_numpy(x)
    error = 10 * log10(float((q.roundtrip(y) - y).square().sum() / y.square().sum()))
    # Of heavy tails a few clipped values make up most of the error.
    clipped = q.spec.rule_word not in ("absmax", "pow2", "rceil") and density != "gauss"
    heavy = density.startswith("student")
    assert error == pytest.approx(10 * log10(loss.error), abs=0.4 if clipped else 0.15 if heavy else 0.06)
    codes = torch.bincount(q.codes(y).flatten().int()).double().numpy()
    assert entropy(codes / codes.sum()) == pytest.approx(loss.entropy, abs=0.03)


def test_facts_are_the_published_ones() -> None:
    """Distances of Lloyd-Max to rate-distortion at 4 bits: 3.86 dB; entropy of its codes: 3.77 bits (Max 1960)."""
    found = facts(QUANTIZERS["kmeans4/tensor"])
    assert found.to_rate_distortion_db == pytest.approx(3.86, abs=0.01)
    assert found.entropy == pytest.approx(3.77, abs=0.01)
    assert found.to_lloyd_max_db == pytest.approx(0, abs=0.01)


if __name__ == "__main__":
    text = PAGE.read_text()
    PAGE.write_text(text[: text.index(START) + len(START)] + markdown() + text[text.index(END) :])

"""A handful of end-to-end numbers that may only change when somebody means it, together with a revision.

`pytest tests/test_golden.py --update-golden` rewrites them; the commit says why they moved.
"""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from qbench.data.windows import evaluation_windows, training_batches
from qbench.evaluate.likelihood import likelihood
from qbench.metrics.error import relative_error
from qbench.metrics.shape import shape
from qbench.models.catalog import MODELS, model_spec
from qbench.models.transformer import build
from qbench.quant.catalog import QUANTIZERS
from qbench.quant.quantizer import build as quantizer
from qbench.suite import revisions
from qbench.train.fit import fit
from qbench.train.spec import TrainingSpec

GOLDEN = Path(__file__).parent / "golden"
TOKENS = (np.arange(4000) ** 2 % 251 % 17 + 97).astype(np.uint8)  # patterned, the same on every machine


def student_t() -> torch.Tensor:
    """[64, 128] values with heavy tails, from a generator whose stream NumPy promises to keep."""
    return torch.from_numpy(np.random.Generator(np.random.PCG64(0)).standard_t(3, (64, 128)).astype(np.float32))


def errors() -> dict[str, float]:
    x = student_t()
    return {name: relative_error(x, quantizer(row.spec).roundtrip(x)) for name, row in QUANTIZERS.items()}


def shapes() -> dict[str, float]:
    return shape(student_t())


def losses() -> dict[str, float]:
    """Held-out loss after a dozen steps of each architecture."""
    torch.set_num_threads(1)
    training = TrainingSpec(optimizer="muon", lr=0.02, steps=12, batch=4)
    windows = evaluation_windows(TOKENS, 16, 8)
    found: dict[str, float] = {}
    for arch in MODELS:
        model = build(model_spec(arch, layers=2, width=16, heads=2, context=16), seed=0)
        fit(model, training, training_batches(TOKENS, 16, 4, 12, seed=0))
        found[arch] = likelihood(model, windows).loss
    return found


@pytest.mark.parametrize(
    ("name", "measure", "revision", "tolerance"),
    [
        # Other processors sum in another order; training amplifies that.
        ("error", errors, {row.spec.revision for row in QUANTIZERS.values()}, 1e-5),
        ("shape", shapes, {revisions.MEASURE}, 1e-6),
        ("loss", losses, {revisions.TRAIN}, 1e-3),
    ],
)
def test_numbers_move_only_with_a_revision(
    request: pytest.FixtureRequest, name: str, measure: object, revision: set[object], tolerance: float
) -> None:
    assert callable(measure)
    path = GOLDEN / f"{name}.cpu.json"
    now = {"revision": sorted(map(str, revision)), "values": {k: float(f"{v:.7g}") for k, v in measure().items()}}
    if request.config.getoption("--update-golden"):
        path.write_text(json.dumps(now, indent=1, sort_keys=True) + "\n")
    kept = json.loads(path.read_text())
    moved = {
        key: (kept["values"].get(key), value)
        for key, value in now["values"].items()
        if kept["values"].get(key) != pytest.approx(value, rel=tolerance, abs=1e-9)
    }
    assert not moved or kept["revision"] != now["revision"], "numbers moved without a revision"
    assert not moved, "a new revision: run with --update-golden and say in the commit why the numbers moved"
    assert kept["revision"] == now["revision"]

"""Flow through every model in the catalog: additions are what the wiring says, errors are those of whole passes."""

from typing import Any

import pytest
import torch
from torch import Tensor

from qbench.capture.joints import adds, watching_adds
from qbench.capture.places import matrices, places
from qbench.capture.read import watching
from qbench.capture.sites import of, resolve
from qbench.capture.write import quantized
from qbench.evaluate.noise import Noise, responses
from qbench.evaluate.propagation import propagation
from qbench.evaluate.sensitivity import CLASSES, NEXT_TOKEN
from qbench.evaluate.units import units
from qbench.metrics.flow import Crossed, flow
from qbench.metrics.joint import measure_add
from qbench.models.catalog import MODELS, model_spec
from qbench.models.spec import ModelSpec, Wiring
from qbench.models.transformer import Transformer, build
from qbench.quant.quantizer import build as build_quantizer

SMALL: dict[str, Any] = {"layers": 2, "width": 16, "heads": 4, "context": 12, "vocabulary": 32}
SPECS = {arch: model_spec(arch, **SMALL) for arch in MODELS}
SPECS |= {
    f"vision/{arch}": model_spec(arch, **SMALL, task="vision", positions="learned", pooling=pooling)
    for arch, pooling in (("residual", "mean"), ("residual-free", "class"))
}
every_model = pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS.keys())
SUMS: dict[Wiring, tuple[str, ...]] = {
    "residual": ("mid", "out"),
    "residual-free": (),
    "post-norm": ("attn.sum", "mlp.sum"),
    "attention-residual": ("mid",),
    "mlp-residual": ("out",),
    "parallel": ("out",),
}


def shaken(spec: ModelSpec) -> Transformer:
    """No gain, bias or matrix of it is 0 or 1, as after training."""
    model = build(spec, seed=0).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model


def inputs(spec: ModelSpec) -> Tensor:
    generator = torch.Generator().manual_seed(2)
    if spec.task == "vision":
        return torch.randn(3, spec.channels, spec.image, spec.image, generator=generator)
    return torch.randint(32, (3, 12), generator=generator)


@every_model
def test_additions(spec: ModelSpec) -> None:
    model, seen = shaken(spec), list[str]()

    def visit(total: str, stream: Tensor, y: Tensor, branch: Tensor | None) -> None:
        sums = measure_add(stream, y, branch)
        assert sums.alignment == pytest.approx(1, abs=1e-5), total  # with any gain
        values = sums.values()
        for axis in ("tensor", "token", "channel"):
            predicted, measured = (values[f"add/kurtosis/{name}/{axis}"] for name in ("predicted", "sum"))
            assert predicted == pytest.approx(measured, abs=1e-8), (total, axis)
        seen.append(total)

    with torch.no_grad(), watching_adds(places(model), adds(of(spec)), visit):
        model(inputs(spec))
    assert seen == [f"blocks.{block}.{end}" for block in range(2) for end in SUMS[spec.wiring]]


@every_model
def test_errors(spec: ModelSpec) -> None:
    model, x = shaken(spec), inputs(spec)
    there, held, names = places(model), matrices(model), of(spec)
    at = {name: (there[name], build_quantizer("int4/token")) for name in resolve("linear", "activation", names)}
    weights = resolve("weights", "weight", names)
    treated = {name: (held[name], build_quantizer("int4/channel", channel_axis=0)) for name in weights}
    found = propagation(model, [x], units(model, x), at, treated)
    ends = {name: there[name] for name in ("blocks.0.out", "blocks.1.out")}
    passes: list[dict[str, Tensor]] = []
    with torch.no_grad():
        for of_places, of_matrices in (({}, {}), (at, treated)):
            kept: dict[str, Tensor] = {}
            with quantized(of_places, of_matrices), watching(ends, kept.__setitem__):
                model(x)
            passes.append(kept)
    for name in ends:
        clean, moved = (one[name] for one in passes)
        expected = flow(clean, moved, Crossed(clean, clean, moved, moved)).before.value
        assert found.blocks[name.removesuffix(".out")].error == pytest.approx(expected, rel=1e-4)
    assert not found.left_out


@every_model
def test_noise(spec: ModelSpec) -> None:
    model, x = shaken(spec), inputs(spec)
    batch, judge = ((x, torch.arange(3)), CLASSES) if spec.task == "vision" else (x, NEXT_TOKEN)
    there = places(model)
    groups = {name: {name: there[name]} for name in ("embed", "blocks.1.mlp.hidden", "final")}
    found = responses(model, groups, [batch], [Noise(10)], judge)
    assert all(len(one.increases) == 3 and abs(one.increases).max() > 0 for (one,) in found.values())

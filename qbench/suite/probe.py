"""One look at live tensors and modules, for notebooks: how hard are they to quantize?"""

from collections import Counter
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from html import escape

from torch import Tensor, nn

from qbench.capture import read
from qbench.capture.place import Matrix, Place
from qbench.capture.places import matrices, places, select
from qbench.capture.write import Engagement
from qbench.capture.write import quantized as quantized_places
from qbench.metrics.error import error_values
from qbench.quant.catalog import quantizer_spec
from qbench.quant.expect import expected_error_db
from qbench.quant.quantizer import Quantizer, build
from qbench.quant.spec import bits_per_value
from qbench.quant.sweep import ErrorSums
from qbench.quant.sweep import sweep as sweep_sums
from qbench.suite.tally import Tally

USUAL = ("int8/token", "int4/token", "int4/block:32", "mxfp4")
Values = dict[str, float]


def sweep(x: Tensor, quantizers: Iterable[str], channel_axis: int = -1) -> dict[str, Values]:
    """The error metrics of every quantizer over one tensor, of any shape, with `bits_per_value` beside them.

    By canonical name: `int4.narrow/token` is `int4/token`. Raises what `quant.sweep` raises.
    """
    if not isinstance(x, Tensor):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(f"a torch tensor is wanted, found {type(x).__name__}")
    sums = sweep_sums(x, _several(quantizers), channel_axis)
    return {name: _error_values(name, one, tuple(x.shape), channel_axis) for name, one in sums.items()}


def _several(quantizers: Iterable[str]) -> list[str]:
    """The letters of one name are no quantizers."""
    return [quantizers] if isinstance(quantizers, str) else list(quantizers)


@dataclass(frozen=True, slots=True, repr=False)
class Probe:
    """What was found at each place: `shape` of its tensor, `error` of each quantizer there."""

    shape: Mapping[str, Values]
    error: Mapping[str, Mapping[str, Values]]

    def worst(self, quantizer: str) -> str:
        """The place where `quantizer` loses most, by any of its names; KeyError where it was not measured."""
        name = str(quantizer_spec(quantizer))
        return max(self.error, key=lambda site: self.error[site][name].get("error_db", float("-inf")))

    def _table(self) -> tuple[list[str], list[list[str]]]:
        quantizers = list(next(iter(self.error.values()), {}))
        head = ["place", "excess kurtosis/token", "crest dB", *(f"SQNR dB {name}" for name in quantizers)]
        body = [
            [
                site,
                _number(values.get("excess_kurtosis/token")),
                _number(values.get("crest_db")),
                *(_number(self.error[site][name].get("error_db"), -1) for name in quantizers),
            ]
            for site, values in self.shape.items()
        ]
        return head, body

    def __repr__(self) -> str:
        head, body = self._table()
        widths = [max(len(row[i]) for row in [head, *body]) for i in range(len(head))]
        return "\n".join(
            "  ".join(t.ljust(w) for t, w in zip(row, widths, strict=True)).rstrip() for row in [head, *body]
        )

    def _repr_html_(self) -> str:
        head, body = self._table()
        rows = ["".join(f"<td>{escape(text)}</td>" for text in row) for row in body]
        top = "".join(f"<th>{escape(text)}</th>" for text in head)
        return (
            f"<table><thead><tr>{top}</tr></thead><tbody>{''.join(f'<tr>{row}</tr>' for row in rows)}</tbody></table>"
        )


def probe(
    model: nn.Module, windows: Tensor, quantizers: Sequence[str] = USUAL, sites: str = "**", batch: int = 16
) -> Probe:
    """Run `model` on `windows` (inputs [N, ...]) and say what flows through its places, one tensor at a time.

    Places are the model's own sites where it has them, else its leaf modules by name; a module's second call in one
    pass is the place `name#2`. Outputs that are not one floating-point tensor are passed over. The model is probed in
    evaluation mode and given back in its own. Quantizers go by their canonical names. Raises UnknownName where `sites`
    matches nothing, ValueError where there are no windows.
    """
    if not len(windows):
        raise ValueError(f"a probe needs windows, found none in a tensor of shape {tuple(windows.shape)}")
    found = places(model)
    chosen = {name: found[name] for name in select(model, "activation", sites)}
    tally = Tally("activation", _several(quantizers), shape=True)
    calls: Counter[str] = Counter()

    def visit(site: str, x: Tensor) -> None:
        if isinstance(x, Tensor) and x.is_floating_point():  # pyright: ignore[reportUnnecessaryIsInstance]
            calls[site] += 1
            tally.visit(site if calls[site] == 1 else f"{site}#{calls[site]}", x)

    with _evaluating(model):
        for part in windows.split(batch):
            calls.clear()
            read.activations(model, chosen, [part], visit)
    return Probe(
        {site: sums.values() for site, sums in tally.shapes.items()},
        {
            site: {q: _error_values(q, sums, tally.tensor_shape[site], -1) for q, sums in table.items()}
            for site, table in tally.errors.items()
        },
    )


@contextmanager
def _evaluating(model: nn.Module) -> Generator[None, None, None]:
    """Evaluation mode, and then each module's own again: parts of a model may have been frozen."""
    before = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in before.items():
            module.training = training


@contextmanager
def quantized(model: nn.Module, assign: Mapping[str, str]) -> Generator[Engagement, None, None]:
    """While open, `model` runs with the named tensors quantized: `{"activation:blocks.*.mlp.in": "int8/token"}`.

    Keys are `kind:pattern` with kind activation, gradient or weight, and patterns as in a suite: `*` stands for
    anything within one part of a name, `**` for any number of parts; a later key wins over an earlier one. Weights
    are put back to the bit afterwards. Raises UnknownName where a key matches nothing.
    """
    activation: dict[str, tuple[Place, Quantizer]] = {}
    gradient: dict[str, tuple[Place, Quantizer]] = {}
    weight: dict[str, tuple[Matrix, Quantizer]] = {}
    for key, name in assign.items():
        kind, _, pattern = key.partition(":")
        if kind == "weight":
            found = matrices(model)
            weight |= {site: (found[site], build(name, channel_axis=0)) for site in select(model, "weight", pattern)}
        elif kind in ("activation", "gradient"):
            modules = places(model)
            table = activation if kind == "activation" else gradient
            table |= {site: (modules[site], build(name)) for site in select(model, kind, pattern)}
        else:
            raise ValueError(f"{key!r}: expected activation:PATTERN, gradient:PATTERN or weight:PATTERN")
    with quantized_places(activation, weight, gradient) as engagement:
        yield engagement


def _error_values(name: str, sums: ErrorSums, size: tuple[int, ...], axis: int) -> Values:
    spec = quantizer_spec(name)
    bits = bits_per_value(spec, size, axis)
    return {"bits_per_value": bits, **error_values(sums, bits, spec.bits, expected_error_db(spec, size, axis))}


def _number(value: float | None, sign: int = 1) -> str:
    return "" if value is None else f"{sign * value:.2f}"

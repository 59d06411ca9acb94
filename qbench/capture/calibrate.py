"""Calibration: what flows through places of a model on data set aside for it, as fixed scales and smoothing factors."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from qbench.capture.place import Matrix, Place
from qbench.capture.read import Visit, watching
from qbench.names import pick
from qbench.quant.blocks import at, working
from qbench.quant.observe import Observer
from qbench.quant.smooth import Calibration, observed
from qbench.quant.spec import QuantizerSpec

_NONE: Mapping[str, Sequence[Matrix]] = MappingProxyType({})


def calibrate(
    model: nn.Module,
    places: Mapping[str, Place],
    batches: Iterable[Any],
    quantizers: Mapping[str, QuantizerSpec],
    readers: Mapping[str, Sequence[Matrix]] = _NONE,
) -> dict[str, Calibration]:
    """What `build(quantizers[name], calibration=...)` needs, for each place that the data reached.

    `model` runs on each batch; tensors at the places are [..., channels]. Nothing but sums and a bounded sample is
    kept (`quant.observe`), and results do not depend on how windows are batched. `readers` are the matrices [out, in]
    that read a place: with them smoothing shares the difficulty (SmoothQuant). A place that no batch reaches, such as
    an expert that nothing is routed to, is left out: it has no scale.

    A static quantizer that also smooths needs the data twice: once for the factors, and once for the smoothed range.

    Raises ValueError where there are no batches, or an iterator that is used up is needed again; UnknownName where a
    quantizer has no place; NonFinite, with its place.
    """
    wanted = {name: pick(places, name, "place") for name in quantizers}
    twice = {name: spec for name, spec in quantizers.items() if spec.static and spec.smooth is not None}
    if twice and isinstance(batches, Iterator):
        raise ValueError(f"{min(map(str, twice.values()))} needs the data twice: give a list of batches")
    largest: dict[str, Tensor] = {}
    direct = {name: Observer(spec) for name, spec in quantizers.items() if spec.static and spec.smooth is None}

    def see(name: str, x: Tensor) -> None:
        with at(name):
            x = working(x)
            if name in direct:
                direct[name].see(x)
        if x.numel():
            now = observed(x).largest_C
            largest[name] = torch.maximum(largest[name], now) if name in largest else now

    _run(model, wanted, batches, see)
    found = {name: Calibration(peak, _largest_weights(readers.get(name, ()))) for name, peak in largest.items()}
    smoothed = {name: Observer(spec, found[name]) for name, spec in twice.items() if name in found}
    if smoothed:
        _run(model, {name: wanted[name] for name in smoothed}, batches, lambda name, x: smoothed[name].see(x))
    fixed = {name: observer.fixed() for name, observer in (direct | smoothed).items() if name in found}
    return {name: Calibration(c.largest_C, c.weights_C, fixed.get(name)) for name, c in found.items()}


def _run(model: nn.Module, places: Mapping[str, Place], batches: Iterable[Any], see: Visit) -> None:
    ran = False
    with torch.no_grad(), watching(places, see):
        for batch in batches:
            model(batch)
            ran = True
    if not ran:
        raise ValueError("the calibration set is empty: give at least one batch")


def _largest_weights(matrices: Sequence[Matrix]) -> Tensor | None:
    """The largest magnitude of each column, over all matrices that read the place, [in]."""
    if not matrices:
        return None
    return torch.stack([matrix.read().float().abs().amax(0) for matrix in matrices]).amax(0)

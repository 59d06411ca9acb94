"""What is added up of every site of a pass over tensors, and the records made of it."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from torch import Tensor

from qbench.capture.outliers import Outliers, outliers
from qbench.metrics.error import error_values
from qbench.metrics.shape import ShapeSums, merge, swept
from qbench.quant.blocks import at
from qbench.quant.catalog import quantizer_spec
from qbench.quant.expect import expected_error_db
from qbench.quant.quantizer import Quantizer
from qbench.quant.spec import bits_per_value
from qbench.quant.sweep import ErrorSums, sweep
from qbench.results.record import Record
from qbench.suite.answer import CHANNEL_AXIS
from qbench.suite.cells import Cell

HOT = 8  # channels and positions that are recorded one by one
Values = dict[str, float]


class Tally:
    """Shape and error sums, and outlier maps, of every site; fed one tensor, or what is known of one, at a time.

    `fitted` are quantizers that calibration data made, by site and name: they go in place of those that look at a
    tensor by themselves.
    """

    def __init__(self, kind: str, quantizers: Sequence[str], *, shape: bool, outliers: bool = False) -> None:
        self.axis = CHANNEL_AXIS.get(kind, -1)
        self.quantizers = tuple(quantizers)
        self.fitted: Mapping[str, Mapping[str, Quantizer]] = {}
        self.measure_shape, self.measure_outliers = shape, outliers
        self.shapes: dict[str, ShapeSums] = {}
        self.errors: dict[str, dict[str, ErrorSums]] = {}
        self.maps: dict[str, Outliers] = {}
        self.tensor_shape: dict[str, tuple[int, ...]] = {}

    def visit(self, site: str, x: Tensor) -> None:
        x = x.detach()
        used: list[Quantizer | str] = [self.fitted.get(site, {}).get(name, name) for name in self.quantizers]
        with at(site):
            if self.measure_shape:
                table, sums = swept(x, used, self.axis)
                self.take(site, tuple(x.shape), table, sums)
            else:
                self.take(site, tuple(x.shape), sweep(x, used, self.axis))
            if self.measure_outliers:
                seen = outliers(x)
                self.maps[site] = self.maps[site] + seen if site in self.maps else seen

    def take(
        self, site: str, shape: tuple[int, ...], errors: Mapping[str, ErrorSums], sums: ShapeSums | None = None
    ) -> None:
        """Add what was found out of one tensor of this shape."""
        self.tensor_shape.setdefault(site, shape)
        if sums is not None:
            self.shapes[site] = merge(self.shapes[site], sums) if site in self.shapes else sums
        before = self.errors.get(site)
        self.errors[site] = {q: before[q].merge(e) for q, e in errors.items()} if before else dict(errors)

    def records(self, cell: Cell) -> tuple[Record, ...]:
        """What the tally holds of what a cell asks."""
        what = cell.measurement.what
        if what == "shape":
            return self._shape_records(cell)
        return self._error_records(cell) if what == "error" else tuple(self._outlier_records(cell))

    def vectors(self, cell: Cell) -> dict[str, np.ndarray]:
        """The energy of each channel and the sinks at each position, of an outlier map."""
        if cell.measurement.what != "outliers":
            return {}
        energy = {f"{site}/energy": seen.energy_C.numpy() for site, seen in self.maps.items()}
        return energy | {f"{site}/sinks": seen.sinks_T.double().numpy() for site, seen in self.maps.items()}

    def _shape_records(self, cell: Cell) -> tuple[Record, ...]:
        kind = cell.measurement.kind
        return tuple(
            Record(cell=cell.id, kind=kind, site=site, values=sums.values(), n=sums.channels_C.n)
            for site, sums in self.shapes.items()
        )

    def _error_records(self, cell: Cell) -> tuple[Record, ...]:
        name = cell.measurement.quantizer
        found = [(site, table[name]) for site, table in self.errors.items() if name in table]
        return tuple(
            Record(
                cell=cell.id,
                kind=cell.measurement.kind,
                site=site,
                quantizer=name,
                bits_per_value=bits_per_value(quantizer_spec(name), self.tensor_shape[site], self.axis),
                values=self.error_values(site, name),
                n=sums.n,
            )
            for site, sums in found
        )

    def error_values(self, site: str, name: str) -> Values:
        """The error metrics of one quantizer at one site."""
        spec, shape = quantizer_spec(name), self.tensor_shape[site]
        bits, expected = bits_per_value(spec, shape, self.axis), expected_error_db(spec, shape, self.axis)
        return error_values(self.errors[site][name], bits, spec.bits, expected)

    def _outlier_records(self, cell: Cell) -> Iterator[Record]:
        for site, seen in self.maps.items():
            yield Record(cell=cell.id, kind="activation", site=site, values=seen.values(), n=seen.tokens)
            for channel in seen.channels(HOT):
                values = {"outliers/channel_energy": channel.energy, "outliers/channel_peak": channel.peak}
                yield Record(
                    cell=cell.id, kind="activation", site=site, slice=f"channel:{channel.index}", values=values
                )
            for position, (sinks, massive) in list(seen.positions().items())[:HOT]:
                counted = {"outliers/sinks": sinks / seen.windows, "outliers/massive": float(massive)}
                yield Record(cell=cell.id, kind="activation", site=site, slice=f"position:{position}", values=counted)

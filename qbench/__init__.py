"""qbench: how cheaply can a model's tensors be stored and sent, what does it cost, and is the architecture to blame?

    import qbench as qb
    run = qb.open("results/growth")              # .records(metric=..., site=...), .frame(), .failed
    q = qb.quantizer("int4/block:32+hadamard")   # .encode .decode .roundtrip .fake .bits_per_value
    qb.sweep(x, ["int4/token", "mxfp4"]); qb.shape(x)
    qb.probe(model, windows)
    with qb.quantized(model, {"activation:blocks.*.mlp.in": "int8/token"}): ...
    qb.run("quickstart")

Importing qbench loads neither torch nor numpy; each name loads what it needs when it is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qbench.metrics.shape import shape
    from qbench.quant.quantizer import build as quantizer
    from qbench.results.run import opened as open  # noqa: A004
    from qbench.suite.probe import probe, quantized, sweep
    from qbench.suite.run import run

__all__ = ["open", "probe", "quantized", "quantizer", "run", "shape", "sweep"]

_HOMES = {
    "open": "results.run:opened",
    "probe": "suite.probe:probe",
    "quantized": "suite.probe:quantized",
    "quantizer": "quant.quantizer:build",
    "run": "suite.run:run",
    "shape": "metrics.shape:shape",
    "sweep": "suite.probe:sweep",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'qbench' has no attribute {name!r}; it has {', '.join(__all__)}")
    module, _, attribute = _HOMES[name].partition(":")
    try:
        return getattr(import_module(f"qbench.{module}"), attribute)
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        raise ModuleNotFoundError(f"qbench.{name} needs torch: pip install 'qbench-suite[run]'", name="torch") from None


def __dir__() -> list[str]:
    return __all__

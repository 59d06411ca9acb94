"""How the output of a sub-block joins the stream."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor

from qbench.models.spec import Wiring


@dataclass(frozen=True, slots=True)
class Joint:
    """`join(stream, update)` is the next stream; `copies` says that it is the update itself, one place and not two."""

    join: Callable[[Tensor, Tensor], Tensor]
    copies: bool


WIRINGS: Mapping[Wiring, Joint] = {
    "residual": Joint(lambda stream, update: stream + update, copies=False),
    "residual-free": Joint(lambda stream, update: update, copies=True),
}

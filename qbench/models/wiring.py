"""How the outputs of a block's two sub-blocks join the stream."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor

from qbench.models.spec import Wiring


@dataclass(frozen=True, slots=True)
class Joint:
    """`join(stream, update)` is the next stream; `copies` says that it is the update itself, one place and not two.

    `after` moves the norm from what the sub-block reads to the sum, a place of its own: `attn.sum`, `mlp.sum`.
    """

    join: Callable[[Tensor, Tensor], Tensor]
    copies: bool
    after: bool = False


@dataclass(frozen=True, slots=True)
class Joints:
    """Both joints of a block; where `parallel`, the MLP reads what attention reads, and `mid` what attention gave."""

    attn: Joint
    mlp: Joint
    parallel: bool = False


ADD = Joint(lambda stream, update: stream + update, copies=False)
REPLACE = Joint(lambda stream, update: update, copies=True)
ADD_THEN_NORM = Joint(lambda stream, update: stream + update, copies=False, after=True)

WIRINGS: Mapping[Wiring, Joints] = {
    "residual": Joints(ADD, ADD),
    "residual-free": Joints(REPLACE, REPLACE),
    "post-norm": Joints(ADD_THEN_NORM, ADD_THEN_NORM),
    "attention-residual": Joints(ADD, REPLACE),
    "mlp-residual": Joints(REPLACE, ADD),
    "parallel": Joints(REPLACE, ADD, parallel=True),
}

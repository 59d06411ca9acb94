"""Size and wiring of a transformer, as a value."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

Wiring = Literal["residual", "residual-free", "post-norm", "attention-residual", "mlp-residual", "parallel"]
Norm = Literal["rmsnorm", "rmsnorm-no-gain", "ssnorm", "layernorm", "none"]
Attention = Literal["softmax", "clipped", "gated", "polynomial", "shaped"]
MLP = Literal["gelu", "relu2", "swiglu"]
Positions = Literal["rope", "learned", "sinusoidal"]
Init = Literal[
    "gpt2", "orthogonal", "fan-in", "suo", "cutting-the-skip", "cutting-the-skip-target", "mimetic", "shaped"
]
Temperature = Literal[
    "const", "inv-sqrt-layer", "inv-layer", "sqrt-layer", "linear", "logn", "learned", "target"
]  # fmt: skip
Gain = Literal["none", "fixed", "learned"]
Task = Literal["language", "vision"]
Pooling = Literal["mean", "class"]

_SIZES = ("layers", "width", "heads", "context", "vocabulary", "mlp_ratio", "image", "patch", "channels")
SMALLEST: Mapping[str, int] = {**dict.fromkeys(_SIZES, 1), "head_size": 0, "kv_heads": 0, "mlp_hidden": 0}
# Written down always; what was added later only where it is not the default, so that names made from a spec stay.
FIRST = (
    *("layers", "width", "heads", "context", "vocabulary", "wiring", "norm", "mlp", "mlp_ratio", "positions", "init"),
    *("temperature", "qk_noise", "qk_diagonal"),
)
# `transformers` takes a `temperature` in a config for the one of sampling.
SPELLED: Mapping[str, str] = {"temperature": "attention_temperature"}


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    """A transformer; two equal specs with equal seeds are the same model at step 0.

    `task: language` reads up to `context` tokens and predicts the next of `vocabulary`; `vision` reads square images
    of `image` pixels a side in patches of `patch`, and names one of `vocabulary` classes.

    0 stands for the usual: `head_size` width / heads, `kv_heads` as many as heads, `mlp_hidden` mlp_ratio * width.
    `gain` scales each branch before it is added to a stream: by `gain_start`, divided by sqrt(layers) where
    `gain_by_depth`, at first (`learned`) or always (`fixed`).
    `qk_noise` and `qk_diagonal` are alpha and beta of W_Q W_K^T = alpha Z + beta I, `vo_noise` and `vo_diagonal` those
    of W_V W_O = alpha Z - beta I (`init: mimetic`), `vo_gain` is c of W_V W_O = c^2 U (`init: cutting-the-skip`).
    `temperature_strength` is gamma of `temperature: linear`, and c of both targets: attention to itself of 1 - c / L.
    `clip` is alpha of clipped softmax: from about 1 even attention to all is clipped away, and nothing learns where all
    is in sight, as in an image. `power` is p of polynomial attention.
    """

    layers: int = 6
    width: int = 64
    heads: int = 4
    context: int = 64
    vocabulary: int = 256
    wiring: Wiring = "residual"
    norm: Norm = "rmsnorm"
    mlp: MLP = "gelu"
    mlp_ratio: int = 4
    positions: Positions = "rope"
    init: Init = "gpt2"
    temperature: Temperature = "const"
    qk_noise: float = 0.1
    qk_diagonal: float = 5.0
    head_size: int = 0
    kv_heads: int = 0
    mlp_hidden: int = 0
    attention: Attention = "softmax"
    qk_norm: Norm = "none"
    embed_norm: bool = False
    embed_projection: bool = False
    gain: Gain = "none"
    gain_start: float = 1.0
    gain_by_depth: bool = False
    temperature_strength: float = 1.0
    clip: float = 3.2
    power: int = 3
    vo_gain: float = 3.0
    vo_noise: float = 0.4
    vo_diagonal: float = 0.4
    position_deviation: float = 0.02
    task: Task = "language"
    image: int = 8
    patch: int = 2
    channels: int = 1
    pooling: Pooling = "mean"

    def __post_init__(self) -> None:
        for name, least in SMALLEST.items():
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, found {getattr(self, name)}")
        mistakes = self._head_mistake(), self._init_mistake(), self._wiring_mistake(), self._task_mistake()
        for found in mistakes:
            if found:
                raise ValueError(found)

    @property
    def size(self) -> int:
        """Of one head."""
        return self.head_size or self.width // self.heads

    @property
    def groups(self) -> int:
        """Heads of keys and values; heads / groups query heads share each."""
        return self.kv_heads or self.heads

    @property
    def hidden(self) -> int:
        """Width inside the MLP."""
        return self.mlp_hidden or self.mlp_ratio * self.width

    @property
    def length(self) -> int:
        """The most positions that a forward pass has."""
        if self.task == "language":
            return self.context
        return (self.image // self.patch) ** 2 + (self.pooling == "class")

    @property
    def final_norm(self) -> Norm:
        """What the head reads is normalized in any case; so is the embedding where `embed_norm`."""
        return "rmsnorm" if self.norm == "none" else self.norm

    @property
    def parts(self) -> tuple[str, ...]:
        """Weights of its own that this model has beyond those of every model: see `capture.sites.own`."""
        return tuple(
            part
            for part, there in (
                ("positions", self.positions == "learned"),
                ("embed_projection", self.embed_projection),
                ("attn.gate", self.attention == "gated"),
                ("mlp.up", self.mlp == "swiglu"),
            )
            if there
        )

    def stored(self) -> dict[str, Any]:
        """The spec as plain data for files and ids; `ModelSpec(**stored)` makes it again.

        >>> sorted(ModelSpec(qk_norm="rmsnorm").stored().keys() - ModelSpec().stored().keys())
        ['qk_norm']
        """
        defaults = {field.name: field.default for field in fields(self)}
        return {name: value for name, value in asdict(self).items() if name in FIRST or value != defaults[name]}

    def _head_mistake(self) -> str:
        if not self.head_size and self.width % self.heads:
            return f"width {self.width} over {self.heads} heads must give an even head size; or set head_size"
        if self.positions == "rope" and self.size % 2:
            return (
                f"width {self.width} over {self.heads} heads must give an even head size (RoPE turns pairs), "
                f"found {self.size}"
            )
        if self.heads % self.groups:
            return f"kv_heads must divide heads: found {self.groups} and {self.heads}"
        return ""

    def _init_mistake(self) -> str:
        split = self.heads * self.size != self.width or self.groups != self.heads
        if self.init in ("mimetic", "shaped") and split:
            return f"init {self.init} needs heads that are together as wide as the stream, each with keys of its own"
        if self.init not in ("gpt2", "fan-in", "suo") and self.size > self.width:
            return f"head_size {self.size} is more than the width {self.width}: init {self.init} cuts heads from it"
        return ""

    def _wiring_mistake(self) -> str:
        if self.wiring == "post-norm" and self.norm == "none":
            return "wiring post-norm has nothing to do without a norm; set norm"
        if self.wiring == "residual-free" and self.gain != "none":
            return "gain scales a branch that is added to a stream; wiring residual-free adds none"
        aims = "target" in (self.temperature, self.init.rpartition("-")[2])
        if aims and not 0 < self.temperature_strength < self.layers:
            return (
                "a target is attention to itself of 1 - temperature_strength / layers: the strength must be between "
                f"0 and {self.layers}, found {self.temperature_strength}"
            )
        return ""

    def _task_mistake(self) -> str:
        if self.task == "vision" and self.image % self.patch:
            return f"patches of {self.patch} do not tile an image of {self.image} pixels a side"
        return ""


def described(config: Mapping[str, Any]) -> ModelSpec:
    """The model of an exported config.json; KeyError, TypeError or ValueError where it describes none of ours."""
    names = {field.name: SPELLED.get(field.name, field.name) for field in fields(ModelSpec)}
    return ModelSpec(**{name: config[key] for name, key in names.items() if name in FIRST or key in config})

"""Size and wiring of a transformer, as a value."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from math import isfinite
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
_OR_USUAL = ("head_size", "kv_heads", "mlp_hidden", "clip", "position_deviation")
SMALLEST: Mapping[str, int] = {**dict.fromkeys((*_SIZES, "power"), 1), **dict.fromkeys(_OR_USUAL, 0)}
DIAGONAL: tuple[Init, ...] = ("orthogonal", "cutting-the-skip", "cutting-the-skip-target", "mimetic")
WEIGHTED: tuple[Attention, ...] = ("softmax", "gated", "clipped")  # attention whose weights are a softmax's
# What an option does nothing without: the field, and the values of it that read the option.
NEEDS: Mapping[str, tuple[str, tuple[Any, ...]]] = {
    **dict.fromkeys(("image", "patch", "channels", "pooling"), ("task", ("vision",))),
    **dict.fromkeys(("gain_start", "gain_by_depth"), ("gain", ("fixed", "learned"))),
    **dict.fromkeys(("qk_noise", "qk_diagonal"), ("init", DIAGONAL)),
    **dict.fromkeys(("vo_noise", "vo_diagonal"), ("init", ("mimetic",))),
    "vo_gain": ("init", ("cutting-the-skip", "cutting-the-skip-target")),
    "clip": ("attention", ("clipped",)),
    "power": ("attention", ("polynomial",)),
    "mlp_ratio": ("mlp_hidden", (0,)),
}
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
        for name, value in asdict(self).items():
            if isinstance(value, float) and not isfinite(value):
                raise ValueError(f"{name} must be a finite number, found {value}")
        mistakes = self._head_mistake(), self._init_mistake(), self._wiring_mistake(), self._task_mistake()
        for found in (*mistakes, self._target_mistake()):
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

    def idle(self, name: str) -> str:
        """Why the option `name` does nothing here, or "".

        >>> ModelSpec().idle("clip"), ModelSpec(attention="clipped").idle("clip")
        ('clip does nothing with attention softmax, only with clipped', '')
        """
        if name == "temperature_strength" and not (self.aims or self.temperature == "linear"):
            return f"{name} does nothing with temperature {self.temperature}, only with linear and with targets"
        if name == "position_deviation" and self.positions == "rope" and self.pooling != "class":
            return f"{name} does nothing with positions rope, only with learned and sinusoidal ones"
        field, values = NEEDS.get(name, ("", ()))
        if not field or getattr(self, field) in values:
            return ""
        return f"{name} does nothing with {field} {getattr(self, field)}, only with {', '.join(map(str, values))}"

    @property
    def aims(self) -> bool:
        """Whether attention to itself is brought to a target before training."""
        return "target" in (self.temperature, self.init.rpartition("-")[2])

    def _head_mistake(self) -> str:
        if not self.head_size and self.width % self.heads:
            return f"width {self.width} is not a multiple of {self.heads} heads; set head_size"
        if self.positions == "rope" and self.size % 2:
            whence = "" if self.head_size else f", which is width {self.width} over {self.heads} heads"
            return f"RoPE turns pairs: the size of a head must be even, found {self.size}{whence}"
        if self.heads % self.groups:
            return f"kv_heads must divide heads: found {self.groups} and {self.heads}"
        return ""

    def _init_mistake(self) -> str:
        split = self.heads * self.size != self.width or self.groups != self.heads
        if self.init in ("mimetic", "shaped") and split:
            return f"init {self.init} needs heads that are together as wide as the stream, each with keys of its own"
        if self.init not in ("gpt2", "fan-in", "suo") and self.size > self.width:
            return f"head_size {self.size} is more than the width {self.width}: init {self.init} cuts heads from it"
        if self.init == "shaped" and self.attention == "polynomial":
            return "init shaped starts with queries of 0, and a power of 0 has no gradient: nothing would ever learn"
        if self.init == "shaped" and self.qk_norm != "none":
            return "init shaped starts with queries of 0, which qk_norm cannot normalize; leave one of them out"
        return ""

    def _wiring_mistake(self) -> str:
        if self.wiring == "post-norm" and self.norm == "none":
            return "wiring post-norm has nothing to do without a norm; set norm"
        if self.wiring == "residual-free" and self.gain != "none":
            return "gain scales a branch that is added to a stream; wiring residual-free adds none"
        if self.temperature == "linear" and self.temperature_strength <= -1:
            found = self.temperature_strength
            return f"temperature_strength must be above -1, else the last layer has none, found {found}"
        return ""

    def _target_mistake(self) -> str:
        if not self.aims:
            return ""
        if not 0 < self.temperature_strength < self.layers:
            return (
                "a target is attention to itself of 1 - temperature_strength / layers: the strength must be between "
                f"0 and {self.layers}, found {self.temperature_strength}"
            )
        if self.attention not in WEIGHTED:
            return f"a target is a weight of a softmax, and attention {self.attention} has none"
        if self.temperature == "target" and self.init not in DIAGONAL:
            return f"temperature target needs an init that looks at itself: {', '.join(DIAGONAL)}; found {self.init}"
        if self.temperature == "linear":
            return f"temperature_strength cannot be that of temperature linear and of init {self.init} at once"
        return ""

    def _task_mistake(self) -> str:
        if self.task == "vision" and self.image % self.patch:
            return f"patches of {self.patch} do not tile an image of {self.image} pixels a side"
        return ""


def described(config: Mapping[str, Any]) -> ModelSpec:
    """The model of an exported config.json; KeyError, TypeError or ValueError where it describes none of ours."""
    names = {field.name: SPELLED.get(field.name, field.name) for field in fields(ModelSpec)}
    return ModelSpec(**{name: config[key] for name, key in names.items() if name in FIRST or key in config})

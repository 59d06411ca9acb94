"""A qbench model for plain `transformers`: this file and its neighbours travel with the weights, without qbench.

Shape suffixes: B windows, T tokens, D width, K half a head, V vocabulary, P pixels.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import GenerationMixin, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput, ImageClassifierOutput

from .configuration_qbench import QbenchConfig, head_size, length
from .layers_qbench import Block, Norm


class Stack(PreTrainedModel):
    """Everything between what is read and what the head reads."""

    config_class = QbenchConfig
    config: QbenchConfig

    def __init__(self, config: QbenchConfig) -> None:
        super().__init__(config)
        width, vision = config.width, config.task == "vision"
        patch = (width, config.channels * config.patch**2)
        self.embed = nn.Parameter(torch.empty(patch if vision else (config.vocabulary, width)))
        classes = vision and config.pooling == "class"
        self.class_token = nn.Parameter(torch.empty(width)) if classes else None
        self.positions = nn.Parameter(torch.empty(length(config), width)) if config.positions == "learned" else None
        projections = range(2) if config.embed_projection else ()
        added = [nn.Parameter(torch.empty(width, width)) for _ in projections] or [None, None]
        self.embed_projection, self.final_projection = added
        outer = "rmsnorm" if config.norm == "none" else config.norm
        self.embed_norm = Norm(outer, width) if config.embed_norm else None
        self.blocks = nn.ModuleList([Block(config, layer) for layer in range(config.layers)])
        self.norm = Norm(outer, width)
        self.logits = nn.Parameter(torch.empty(config.vocabulary, width))
        self.post_init()

    def final(self, x_BTD: Tensor) -> Tensor:
        """The states that the head reads, of embedded tokens or patches."""
        steps, config, rotary_TK2 = x_BTD.shape[1], self.config, None
        if self.positions is not None:
            x_BTD = x_BTD + self.positions[:steps]
        elif config.positions == "sinusoidal":
            x_BTD = x_BTD + (config.position_deviation * sinusoids(steps, config.width)).to(x_BTD)
        else:
            rotary_TK2 = rotary_table(steps, head_size(config)).to(x_BTD.device)
        if self.embed_projection is not None:
            x_BTD = F.linear(x_BTD, self.embed_projection)
        x_BTD = x_BTD if self.embed_norm is None else self.embed_norm(x_BTD)
        for block in self.blocks:
            x_BTD = block(x_BTD, rotary_TK2)
        x_BTD = self.norm(x_BTD)
        return x_BTD if self.final_projection is None else F.linear(x_BTD, self.final_projection)

    def _init_weights(self, module: nn.Module) -> None:
        """Nothing: the weights come from the checkpoint."""


class QbenchForCausalLM(Stack, GenerationMixin):
    """Tokens in, next-token logits out; there is no cache, so that generating reads the whole window every time."""

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, labels: Tensor | None = None, **_: Any
    ) -> CausalLMOutput:
        """Logits [B, T, V] of tokens [B, T], and the mean loss of the tokens after the first where labels are given.

        Raises ValueError where the tokens exceed the context, or where padding comes first.
        """
        steps = input_ids.shape[-1]
        if steps > self.config.context:
            raise ValueError(f"{steps} tokens do not fit a context of {self.config.context}")
        if attention_mask is not None and not bool(attention_mask[..., 0].all()):
            raise ValueError("padding comes first: positions are counted from the left, pad on the right")
        logits_BTV = F.linear(self.final(F.embedding(input_ids, self.embed)), self.logits)
        loss = None
        if labels is not None:
            loss = F.cross_entropy(logits_BTV[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten())
        return CausalLMOutput(loss=loss, logits=logits_BTV)


class QbenchForImageClassification(Stack):
    """Images in, logits of classes out."""

    main_input_name = "pixel_values"

    def forward(self, pixel_values: Tensor, labels: Tensor | None = None, **_: Any) -> ImageClassifierOutput:
        """Logits [B, V] of images [B, C, P, P], and their mean loss where labels are given."""
        patch = self.config.patch
        x_BTD = F.linear(F.unfold(pixel_values, patch, stride=patch).mT, self.embed)
        if self.class_token is not None:
            x_BTD = torch.cat([self.class_token.expand(len(x_BTD), 1, -1), x_BTD], 1)
        x_BTD = self.final(x_BTD)
        logits_BV = F.linear(x_BTD.mean(1) if self.class_token is None else x_BTD[:, 0], self.logits)
        loss = None if labels is None else F.cross_entropy(logits_BV.float(), labels)
        return ImageClassifierOutput(loss=loss, logits=logits_BV)


def angles(steps: int, size: int) -> Tensor:
    """t * 10000^(-2 k / size) at [t, k]."""
    frequency_K = 10_000.0 ** (-torch.arange(0, size, 2, dtype=torch.float64) / size)
    return torch.outer(torch.arange(steps, dtype=torch.float64), frequency_K)


def sinusoids(steps: int, width: int) -> Tensor:
    """sin and cos by turns, mean square 1: [steps, width]."""
    angle_TK = angles(steps, width + width % 2)
    return (2**0.5 * torch.stack([angle_TK.sin(), angle_TK.cos()], -1).flatten(-2)[:, :width]).float()


def rotary_table(steps: int, head: int) -> Tensor:
    """(cos, sin) of the angle of each position and pair: [steps, head / 2, 2]."""
    angle_TK = angles(steps, head)
    return torch.stack([angle_TK.cos(), angle_TK.sin()], -1).float()

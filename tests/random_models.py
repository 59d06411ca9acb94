"""Small random models of every family that qbench knows, built from configs: nothing is fetched."""

import os
import string
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

os.environ.setdefault("TORCHAO_FORCE_SKIP_LOADING_SO_FILES", "1")  # else it complains about its CUDA libraries

import torch
import transformers
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors
from tokenizers.decoders import Fuse
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerFast

CLASSES, VOCABULARY, CONTEXT, WIDTH, LAYERS, IMAGE = 10, 97, 64, 32, 2, 16

_DECODER = {
    "vocab_size": VOCABULARY,
    "hidden_size": WIDTH,
    "intermediate_size": 48,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "max_position_embeddings": CONTEXT,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": None,
}
_GROUPED = {**_DECODER, "num_key_value_heads": 2}
_GEMMA = {**_GROUPED, "head_dim": 8, "pad_token_id": 0}
_EXPERTS = {**_GROUPED, "num_experts_per_tok": 2}
_BERT = {**_DECODER, "pad_token_id": 0}
_VISION = {
    "hidden_size": WIDTH,
    "intermediate_size": 48,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "image_size": IMAGE,
    "patch_size": 4,
    "num_channels": 3,
    "num_labels": CLASSES,
}
_HALF_WINDOW = {"sliding_window": CONTEXT // 2}


def _config(name: str, **settings: object) -> Callable[[], PreTrainedConfig]:
    return lambda: getattr(transformers, f"{name}Config")(**settings)


FAMILIES: Mapping[str, Callable[[], PreTrainedConfig]] = {
    "gpt2": _config(
        "GPT2",
        vocab_size=VOCABULARY,
        n_embd=WIDTH,
        n_inner=48,
        n_layer=LAYERS,
        n_head=4,
        n_positions=CONTEXT,
        bos_token_id=2,
        eos_token_id=2,
    ),
    "gpt_neox": _config("GPTNeoX", **_DECODER),
    "opt": _config(
        "OPT",
        **{key: _DECODER[key] for key in ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads")},
        ffn_dim=48,
        max_position_embeddings=CONTEXT,
        word_embed_proj_dim=WIDTH,
        pad_token_id=0,
        bos_token_id=2,
        eos_token_id=2,
    ),
    "llama": _config("Llama", **_GROUPED, tie_word_embeddings=False),
    "llama-tied": _config("Llama", **_GROUPED, tie_word_embeddings=True),
    "mistral": _config("Mistral", **_GROUPED, **_HALF_WINDOW),
    "qwen2": _config("Qwen2", **_GROUPED),
    "qwen3": _config("Qwen3", **_GROUPED, head_dim=8),
    "gemma": _config("Gemma", **_GEMMA),
    "gemma2": _config("Gemma2", **_GEMMA, **_HALF_WINDOW, query_pre_attn_scalar=8, final_logit_softcapping=3.0),
    "gemma3_text": _config("Gemma3Text", **_GEMMA, **_HALF_WINDOW, query_pre_attn_scalar=8),
    "phi": _config("Phi", **_DECODER, partial_rotary_factor=0.5),
    "phi3": _config("Phi3", **{**_GROUPED, "pad_token_id": 0}, original_max_position_embeddings=CONTEXT),
    "bert": _config("Bert", **_BERT),
    "roberta": _config("Roberta", **{**_BERT, "max_position_embeddings": CONTEXT + 1}),
    "vit": _config("ViT", **_VISION),
    "deit": _config("DeiT", **_VISION, architectures=["DeiTForImageClassification"]),
    "dinov2": _config("Dinov2", **{**_VISION, "intermediate_size": None} | {"mlp_ratio": 2}),
    "mixtral": _config("Mixtral", **_EXPERTS, num_local_experts=4),
    "qwen2_moe": _config(
        "Qwen2Moe",
        **_EXPERTS,
        num_experts=4,
        moe_intermediate_size=16,
        shared_expert_intermediate_size=24,
        decoder_sparse_step=1,
    ),
}
MASKED = ("bert", "roberta")
VISION = ("vit", "deit", "dinov2")
BEGINS_WITH_BOS = ("llama", "llama-tied", "mistral", "gemma", "gemma2", "gemma3_text", "mixtral", "opt")


def build(family: str, seed: int = 0) -> PreTrainedModel:
    """The model in eval mode, float32; every weight is random, gains and biases too, so that a forgotten one shows."""
    model = _auto(family).from_config(FAMILIES[family]())
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for _, parameter in sorted(model.named_parameters()):
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim == 1:
                parameter.add_(noise, alpha=0.1)
            else:
                parameter.copy_(noise / _fan_in(parameter) ** 0.5)
    return model.eval()


def folder(family: str, place: Path) -> Path:
    """The model as a folder of safetensors, config and a character-level tokenizer (or an image processor)."""
    path = place / family
    build(family).save_pretrained(path)
    if family in VISION:
        _image_processor(family).save_pretrained(path)
    else:
        tokenizer(family).save_pretrained(path)
    return path


def inputs(family: str, batch: int = 2, seed: int = 0) -> torch.Tensor:
    """What the model takes: int64 tokens [batch, 12] that are no special ones, or float images [batch, 3, 16, 16]."""
    generator = torch.Generator().manual_seed(seed)
    if family in VISION:
        return torch.randn(batch, 3, IMAGE, IMAGE, generator=generator)
    return torch.randint(5, VOCABULARY, (batch, 12), generator=generator)


def tokenizer(family: str) -> PreTrainedTokenizerFast:
    """One token for a character: 97 tokens with the special ones in front."""
    special = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", "[MASK]"] if family in MASKED else ["<unk>", "<s>", "</s>"]
    letters = ("\n" + string.printable[:95])[: VOCABULARY - len(special)]
    words = {word: index for index, word in enumerate([*special, *letters])}
    unknown = "[UNK]" if family in MASKED else "<unk>"
    raw = Tokenizer(models.WordLevel(words, unk_token=unknown))
    raw.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    raw.decoder = Fuse()
    named = partial(PreTrainedTokenizerFast, model_max_length=CONTEXT, unk_token=unknown)
    if family in MASKED:
        _template(raw, "[CLS] $A [SEP]", {"[CLS]": 1, "[SEP]": 2})
        return named(tokenizer_object=raw, pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]", mask_token="[MASK]")
    first = "</s>" if family in ("gpt2", "opt") else "<s>"
    if family in BEGINS_WITH_BOS:
        _template(raw, f"{first} $A", {first: words[first]})
    return named(tokenizer_object=raw, bos_token=first, eos_token="</s>")


def _template(raw: Tokenizer, single: str, special: Mapping[str, int]) -> None:
    raw.post_processor = processors.TemplateProcessing(single=single, special_tokens=list(special.items()))


def _auto(family: str) -> type:
    if family in VISION:
        return transformers.AutoModelForImageClassification
    return transformers.AutoModelForMaskedLM if family in MASKED else transformers.AutoModelForCausalLM


def _fan_in(parameter: torch.Tensor) -> int:
    """Experts are stacked [expert, out, in]; a patch embedding is [out, channel, row, column]."""
    return parameter[0].numel() if parameter.ndim == 4 else parameter.shape[-1]


def _image_processor(family: str) -> transformers.BaseImageProcessor:
    kind = {"vit": "ViTImageProcessorPil", "deit": "DeiTImageProcessorPil", "dinov2": "BitImageProcessorPil"}[family]
    size = {"height": IMAGE, "width": IMAGE}
    crop = {} if family == "vit" else {"crop_size": size}
    return getattr(transformers, kind)(size={"shortest_edge": IMAGE} if family == "dinov2" else size, **crop)

"""What is answered of models from elsewhere, against computations of our own in float64."""

import json
from collections.abc import Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from judged import answered, at, slices, whole
from libraries import library
from random_models import folder, tokenizer
from tiny_vit import RECIPE, untrained
from tiny_vit import save as save_vit
from torch import Tensor, nn

from qbench.data import vision
from qbench.data.documents import Document
from qbench.data.passages import Cut, Windows, passages
from qbench.evaluate.masked import masking_of
from qbench.metrics.error import error_values
from qbench.models import headroom
from qbench.quant.quantizer import build
from qbench.quant.sweep import sweep
from qbench.results.record import Record
from qbench.suite.answer import Answer
from qbench.suite.judge import Costs
from qbench.suite.reference import save

transformers = library("transformers")


CONTEXT, N = 24, 10
LINEAR = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj")
LINEAR += ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
PLACES = ("attn.q", "attn.k", "attn.v", "attn.out", "mlp.pre", "mlp.up", "mlp.out")
FILES = {
    "fables.txt": "The fox looked up at the grapes, and the grapes looked down at the fox. " * 4,
    "numbers.txt": "".join(f"{n * n * 7919 % 100000:05d} " for n in range(60)),
}
NOTES = "Neither a borrower nor a lender be; for loan oft loses both itself and friend! " * 5
SUITE = f"""\
data: text:texts
models:
  - {{name: model, load: ./llama}}
tensors:
  - {{kind: weight, sites: weights, quantizers: [int4/channel, "int3/block:16"]}}
  - kind: activation
    sites: [linear, kv]
    windows: 4
    outliers: true
    quantizers: [int8/token, int8/tensor+static]
  - {{kind: gradient, sites: boundaries, windows: 4, quantizers: [int4/tensor]}}
evaluate: {{windows: {N}, context: {CONTEXT}}}
treatments:
  - {{scope: weights, quantizers: [int4/channel]}}
  - {{name: W4A8, assign: {{"weight:weights": int4/channel, "activation:linear": int8/token}}}}
  - {{name: static, assign: {{"activation:linear": int8/tensor+static}}}}
calibration: {{data: text:notes.txt, windows: 4}}
kernels: [bitsandbytes/nf4]
sensitivity: [{{weights: int4/channel, top: 2}}, {{weights: int3/channel}}]
"""
JUDGED = f"data: text:texts\nevaluate: {{windows: {N}, context: {CONTEXT}}}\n"


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with models and texts."""
    place = tmp_path_factory.mktemp("judged")
    (place / "texts").mkdir()
    for name, text in FILES.items():
        (place / "texts" / name).write_text(text)
    (place / "notes.txt").write_text(NOTES)
    for family in ("llama", "bert"):
        folder(family, place)
    save_vit(untrained(vision.digits().classes), place / "vit")
    return place


@pytest.fixture(scope="session")
def llama(home: Path) -> dict[str, Answer]:
    return answered(home, SUITE)


@pytest.fixture(scope="session")
def plain(home: Path) -> nn.Module:
    """The same model, loaded by its own library."""
    return transformers.AutoModelForCausalLM.from_pretrained(home / "llama", dtype=torch.float32).eval()


def windows(home: Path, texts: Mapping[str, str] = FILES, n: int = N, name: str = "llama") -> Windows:
    """Cut with a vocabulary read from the file, one token for a character, and the token that begins a text."""
    made = json.loads((home / name / "tokenizer.json").read_text())
    ids: dict[str, int] = made["model"]["vocab"]
    unknown = ids[made["model"]["unk_token"]]
    documents = [Document(name, text, name) for name, text in sorted(texts.items())]
    return passages(documents, lambda text: [ids.get(letter, unknown) for letter in text], Cut(CONTEXT, n, bos=1))


@torch.no_grad()
def logs(model: Any, tokens: Tensor) -> np.ndarray:
    """Log-probabilities of every next token, float64 [N, T, V], one window at a time."""
    model = deepcopy(model).double()
    return torch.stack([model(input_ids=row[None, :-1]).logits[0].log_softmax(-1) for row in tokens]).numpy()


@torch.no_grad()
def rounded(model: Any, name: str, layers: Sequence[str] = LINEAR) -> Any:
    """A copy with the named matrices of every block quantized, each output channel of its own."""
    copy = deepcopy(model)
    for module, layer in copy.named_modules():
        if module.endswith(tuple(layers)):
            layer.weight.copy_(build(name, channel_axis=0).roundtrip(layer.weight))
    return copy


def compared(p: np.ndarray, q: np.ndarray, target: np.ndarray) -> dict[str, float]:
    """Every cost of log-probabilities q [..., V] beside p, by definition."""
    rows = (*np.indices(target.shape), target)
    loss, base = -q[rows], -p[rows]
    kld, reverse = (np.exp(p) * (p - q)).sum(-1), (np.exp(q) * (q - p)).sum(-1)
    delta = np.exp(-loss) - np.exp(-base)
    right, before = q.argmax(-1) == target, p.argmax(-1) == target
    values = {
        "loss": loss.mean(),
        "loss_increase": loss.mean() - base.mean(),
        "perplexity": np.exp(loss.mean()),
        "perplexity_ratio": np.exp(loss.mean() - base.mean()),
        "error_rate": 1 - right.mean(),
        "kld": kld.mean(),
        "kld/reverse": reverse.mean(),
        "kld/max": kld.max(),
        "kld/p99": np.percentile(kld, 99),
        "kld/median": np.median(kld),
        "kld/p5": np.percentile(kld, 5),
        "delta_p": delta.mean(),
        "delta_p/rms": np.sqrt((delta**2).mean()),
        "top1_changed": (p.argmax(-1) != q.argmax(-1)).mean(),
        "flips": (right != before).mean(),
        "loss_correlation": np.corrcoef(loss.ravel(), base.ravel())[0, 1],
    }
    return {name: float(value) for name, value in values.items()}


def close(found: Mapping[str, float], wanted: Mapping[str, float], tolerance: float = 1e-4) -> None:
    """The scale of a difference of two numbers is that of the numbers: float32 was subtracted."""
    assert {name: found[name] for name in wanted} == pytest.approx(wanted, rel=tolerance, abs=2e-6)


# What there is


def test_every_cell_has_an_answer_and_every_answer_its_records(llama: Mapping[str, Answer]) -> None:
    ended = {answer.cell.measurement.what: answer.status for answer in llama.values()}
    assert {name for name, status in ended.items() if status == "measured"} == {
        *("model", "shape", "error", "outliers", "loss", "sensitivity")
    }
    assert {answer.status for name, answer in llama.items() if "kernel" not in name} == {"measured"}
    for answer in llama.values():
        assert answer.records or answer.status == "unsupported"
        assert {record.cell for record in answer.records} <= {answer.cell.id}


def test_a_kernel_that_fits_no_layer_is_unsupported_and_says_why(llama: Mapping[str, Answer]) -> None:
    answer = llama["model: kernel bitsandbytes/nf4"]
    assert (answer.status, answer.records) == ("unsupported", ())
    assert "32 inputs are no multiple of 64" in answer.error


def by_kind(answer: Answer) -> tuple[list[Record], Record]:
    """The rows of a table of bytes, and its sum."""
    rows = [record for record in answer.records if record.site]
    (total,) = (record for record in answer.records if not record.site and not record.scope)
    return rows, total


def test_what_the_files_hold_is_added_up(llama: Mapping[str, Answer], plain: nn.Module) -> None:
    answer = llama["model: model"]
    rows, total = by_kind(answer)
    sizes = [4.0 * p.numel() for p in plain.parameters()]
    assert (total.values["bytes/stored"], total.values["bits_per_parameter"]) == (sum(sizes), 32)
    assert sum(row.values["bytes/stored"] for row in rows) == sum(sizes)
    linear = sum(4.0 * m.weight.numel() for name, m in plain.named_modules() if name.endswith(LINEAR))
    assert sum(row.values["bytes/stored"] for row in rows if row.scope == "linear") == linear
    assert {row.scope for row in rows} == {"linear", "embedding", "head", "norms"}


@pytest.mark.parametrize("quantizer", ["int4/channel", "int3/block:16"])
def test_errors_of_weights_are_those_of_the_loaded_parameters(
    llama: Mapping[str, Answer], plain: Any, quantizer: str
) -> None:
    for layer in range(2):
        for place, name in zip(PLACES, LINEAR, strict=True):
            site = f"blocks.{layer}.{place}"
            weight = plain.model.layers[layer].get_submodule(name).weight.detach()
            answer = llama[f"model: error of {quantizer} on weight at {site}"]
            spec = build(quantizer, channel_axis=0)
            swept = error_values(sweep(weight, [quantizer], 0)[quantizer], 0.0, spec.spec.bits, None)
            found = at(answer, site)
            same = ("relative_error", "error_db", "max_error", "saturated", "zeroed", "levels")
            assert {key: found[key] for key in same} == pytest.approx({key: swept[key] for key in same}, rel=1e-9)
            wide, low = weight.double(), spec.roundtrip(weight).double()
            by_hand = 10 * np.log10(float((wide - low).square().sum() / wide.square().sum()))
            assert found["error_db"] == pytest.approx(by_hand, abs=1e-4)
            (record,) = answer.records
            scales = weight.shape[0] if quantizer == "int4/channel" else weight.numel() / 16
            assert record.bits_per_value == spec.spec.bits + 32 * scales / weight.numel()


# What it costs


def test_the_loss_is_the_mean_over_predictions_by_brute_force(
    llama: Mapping[str, Answer], home: Path, plain: nn.Module
) -> None:
    judged = windows(home)
    p, target = logs(plain, judged.tokens), judged.tokens[:, 1:].numpy()
    record = whole(llama["model: loss, unquantized"])
    each = -np.take_along_axis(p, target[..., None], -1)[..., 0]
    close(
        record.values,
        {
            "loss": each.mean(),
            "perplexity": np.exp(each.mean()),
            "error_rate": (p.argmax(-1) != target).mean(),
            "bits_per_byte": each.mean() / np.log(2),  # one byte a token
        },
        1e-5,
    )
    assert record.n == N
    assert llama["model: loss, unquantized"].vectors["loss"] == pytest.approx(each.mean(1), rel=1e-5)
    assert record.values["floor/window"] == pytest.approx(each.mean(1).std(ddof=1) / N**0.5, rel=1e-4)
    assert 0 <= record.values["floor/numerical"] < 1e-5


def test_costs_of_a_treatment_of_weights_by_brute_force(
    llama: Mapping[str, Answer], home: Path, plain: nn.Module
) -> None:
    judged = windows(home)
    pair = [logs(model, judged.tokens) for model in (plain, rounded(plain, "int4/channel"))]
    wanted = compared(*pair, judged.tokens[:, 1:].numpy())
    assert wanted["kld"] > 1e-3
    assert wanted["top1_changed"] > 0
    answer = llama["model: loss, int4/channel @ weights"]
    close(whole(answer).values, wanted, 2e-4)
    p, q = pair
    assert answer.vectors["kld"] == pytest.approx((np.exp(p) * (p - q)).sum(-1).mean(1), rel=2e-4)
    low, high = whole(answer).intervals["kld"]
    assert low < wanted["kld"] < high


def test_bits_and_bytes_of_a_treatment_by_hand(llama: Mapping[str, Answer], plain: nn.Module) -> None:
    record = whole(llama["model: loss, int4/channel @ weights"])
    matrices = [m.weight for name, m in plain.named_modules() if name.endswith(LINEAR)]
    values = sum(weight.numel() for weight in matrices)
    bits = sum(4 * weight.numel() + 32 * weight.shape[0] for weight in matrices)  # a float32 scale for each output
    assert record.bits_per_value == pytest.approx(bits / values)
    every = sum(p.numel() for p in plain.parameters())
    assert record.values["bytes/model"] == bits / 8 + 4 * (every - values)
    assert record.values["bits_per_value/model"] == pytest.approx((bits + 32 * (every - values)) / every)
    assert record.values["sites_touched"] == len(matrices)
    assert (record.kind, record.scope, record.quantizer) == ("weight", "weights", "int4/channel")


@torch.no_grad()
def test_weights_and_inputs_together_by_brute_force(llama: Mapping[str, Answer], home: Path, plain: nn.Module) -> None:
    judged = windows(home)
    both, by_token = rounded(plain, "int4/channel"), build("int8/token")
    handles = [
        layer.register_forward_pre_hook(lambda _, given: (by_token.roundtrip(given[0]),))
        for name, layer in both.named_modules()
        if name.endswith(LINEAR)
    ]
    q = torch.stack([both(input_ids=row[None, :-1]).logits[0].double().log_softmax(-1) for row in judged.tokens])
    for handle in handles:
        handle.remove()
    wanted = compared(logs(plain, judged.tokens), q.numpy(), judged.tokens[:, 1:].numpy())
    found = whole(llama["model: loss, W4A8"]).values
    # A value that lies between two levels falls either way with the last bit: the sums of a batch have another order.
    close(found, {name: wanted[name] for name in ("loss", "kld", "kld/reverse")}, 2e-2)
    assert found["kld"] != pytest.approx(whole(llama["model: loss, int4/channel @ weights"]).values["kld"], rel=1e-6)


@pytest.mark.parametrize("family", ["llama", "llama-tied"])
def test_a_treatment_that_reaches_the_head_counts_in_every_logit(home: Path, family: str) -> None:
    """Also beside one that does not, with which it may share a pass; a tied head is the embedding."""
    folder(family, home)
    head = "embed" if family == "llama-tied" else "logits"
    text = f"{JUDGED}models: [{{name: model, load: ./{family}}}]\ntreatments:\n"
    text += "  - {scope: weights, quantizers: [int4/channel]}\n"
    text += f'  - {{name: head, assign: {{"weight:{head}": int3/channel}}}}\n'
    text += '  - {name: logits, assign: {"activation:logits": int3/token}}\n'
    found = answered(home, text, "loss")
    model = transformers.AutoModelForCausalLM.from_pretrained(home / family, dtype=torch.float32).eval()
    judged = windows(home, name=family)
    p, target = logs(model, judged.tokens), judged.tokens[:, 1:].numpy()
    low = rounded(model, "int3/channel", ["embed_tokens" if family == "llama-tied" else "lm_head"])
    wanted = compared(p, logs(low, judged.tokens), target)
    close(whole(found["model: loss, head"]).values, {key: wanted[key] for key in ("loss", "kld", "kld/reverse")}, 2e-4)
    with torch.no_grad():
        raw = torch.stack([model(input_ids=row[None, :-1]).logits[0] for row in judged.tokens])
    q = build("int3/token").roundtrip(raw).double().log_softmax(-1).numpy()
    wanted = compared(p, q, target)
    close(whole(found["model: loss, logits"]).values, {key: wanted[key] for key in ("loss", "kld")}, 2e-2)


def test_slices_are_files_and_the_worst_of_them_is_named(
    llama: Mapping[str, Answer], home: Path, plain: nn.Module
) -> None:
    judged = windows(home)
    pair = [logs(model, judged.tokens) for model in (plain, rounded(plain, "int4/channel"))]
    answer = llama["model: loss, int4/channel @ weights"]
    found = slices(answer)
    positions = [name for name in found if name.startswith("position:")]
    assert set(found) == {*FILES, *positions}
    assert positions == ["position:0-5", "position:6-11", "position:12-17", "position:18-23"]
    of = {}
    for name in FILES:
        rows = np.array([label == name for label in judged.slices])
        of[name] = compared(*(part[rows] for part in pair), judged.tokens[rows, 1:].numpy())
        close(found[name], {key: of[name][key] for key in ("loss", "kld", "loss_increase", "top1_changed")}, 2e-4)
    values = whole(answer).values
    for metric in ("kld", "loss_increase", "loss"):
        assert values[f"{metric}/worst_slice"] == max(found[name][metric] for name in FILES)
    late = compared(*(part[:, 18:] for part in pair), judged.tokens[:, 19:].numpy())
    close(found["position:18-23"], {"loss": late["loss"], "kld": late["kld"]}, 2e-4)
    losses = slices(llama["model: loss, unquantized"])
    assert {name: losses[name]["loss"] for name in FILES} == pytest.approx(
        {name: of[name]["loss"] - of[name]["loss_increase"] for name in FILES}, rel=1e-5
    )


# Calibration


@torch.no_grad()
def inputs(model: Any, module: str, tokens: Tensor) -> Tensor:
    """What a module gives, all windows at once."""
    seen: list[Tensor] = []
    handle = model.get_submodule(module).register_forward_hook(lambda _, __, output: seen.append(output))
    model(input_ids=tokens[:, :-1])
    handle.remove()
    return seen[0]


def test_a_static_scale_is_that_of_the_calibration_data(
    llama: Mapping[str, Answer], home: Path, plain: nn.Module
) -> None:
    module, site = "model.layers.0.input_layernorm", "blocks.0.attn.in"
    calibrated = inputs(plain, module, windows(home, {"notes.txt": NOTES}, 4).tokens)
    x = inputs(plain, module, windows(home, n=4).tokens)
    step = calibrated.abs().max() / 127
    y = (x / step).round().clamp(-127, 127) * step
    by_hand = 10 * np.log10(float((x - y).double().square().sum() / x.double().square().sum()))
    answer = next(a for name, a in llama.items() if name.startswith("model: error of int8/tensor+static"))
    assert at(answer, site)["error_db"] == pytest.approx(by_hand, abs=0.02)
    assert at(answer, site)["saturated"] == pytest.approx(float((x.abs() > calibrated.abs().max()).double().mean()))


def test_other_calibration_data_give_other_numbers_only_to_static_scales(
    llama: Mapping[str, Answer], home: Path
) -> None:
    (home / "zeros.txt").write_text("0" * 400)
    other = answered(home, SUITE.replace("notes.txt", "zeros.txt"), "loss")
    kld = {name: (whole(llama[name]).values.get("kld"), whole(other[name]).values.get("kld")) for name in other}
    assert kld["model: loss, W4A8"][0] == kld["model: loss, W4A8"][1]
    assert kld["model: loss, static"][0] != kld["model: loss, static"][1]


def test_calibrating_on_what_is_judged_is_refused(home: Path) -> None:
    found = answered(home, SUITE.replace("notes.txt", "texts/fables.txt"), "loss")
    answer = found["model: loss, static"]
    assert answer.status == "failed"
    assert "of 4 calibration windows share text with what the model is judged on" in answer.error
    assert "\n" not in answer.error
    assert {a.status for name, a in found.items() if name != "model: loss, static"} == {"measured"}


def test_calibrating_on_what_is_judged_goes_where_it_is_allowed(home: Path) -> None:
    text = SUITE.replace("notes.txt, windows: 4", "texts/fables.txt, windows: 4, overlap: true")
    assert answered(home, text, "loss, static")["model: loss, static"].status == "measured"


# What else is tried


def test_sensitivity_is_the_loss_with_one_layer_quantized(
    llama: Mapping[str, Answer], home: Path, plain: nn.Module
) -> None:
    answer = llama["model: sensitivity int4/channel"]
    *rows, _ = answer.records
    exact = {row.site: row for row in rows if "loss_increase" in row.values}
    assert len(exact) == 2
    assert len(rows) == 8  # of each layer: queries, keys and values together; output; gate and up; down
    assert {name for row in rows for name in row.scope.split()} == {
        f"model.layers.{layer}.{name}" for layer in range(2) for name in LINEAR
    }
    judged = windows(home)
    for row in exact.values():
        pair = [logs(model, judged.tokens) for model in (plain, rounded(plain, "int4/channel", row.scope.split()))]
        wanted = compared(*pair, judged.tokens[:, 1:].numpy())["loss_increase"]
        assert row.values["loss_increase"] == pytest.approx(wanted, rel=1e-3, abs=2e-6)
    *rows, summary = llama["model: sensitivity int3/channel"].records
    assert all("loss_increase" in row.values for row in rows)
    assert 0 < summary.values["block_forwards"] <= 0.6 + 1 / (2 * 2)  # of two layers


def test_outliers_count_channels_by_their_energy(llama: Mapping[str, Answer], home: Path, plain: nn.Module) -> None:
    answer = next(a for name, a in llama.items() if name.startswith("model: outliers"))
    x = inputs(plain, "model.layers.0.input_layernorm", windows(home, n=4).tokens).double()
    x = x[:, 1:]  # the token that begins a text stands apart
    share = x.square().sum((0, 1)) / x.square().sum()
    hottest = int(share.argmax())
    (record,) = (r for r in answer.records if r.site == "blocks.0.attn.in" and r.slice == f"channel:{hottest}")
    assert record.values["outliers/channel_energy"] == pytest.approx(float(share.max()), rel=1e-5)


# A candidate beside its reference


@pytest.fixture(scope="session")
def pair(home: Path) -> Path:
    """`wide`, a Llama of width 64, and `wide-4bit`, what bitsandbytes makes of it."""
    library("bitsandbytes")
    config = transformers.LlamaConfig(
        vocab_size=97,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=64,
        bos_token_id=1,
    )
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.normal_(0, 0.2)
    model.save_pretrained(home / "wide")
    tokenizer("llama").save_pretrained(home / "wide")
    asked = transformers.BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32
    )
    low = transformers.AutoModelForCausalLM.from_pretrained(home / "wide", quantization_config=asked, device_map="cpu")
    low.save_pretrained(home / "wide-4bit")
    tokenizer("llama").save_pretrained(home / "wide-4bit")
    return home


@torch.no_grad()
def nf4(weight: Tensor) -> Tensor:
    """A matrix as bitsandbytes' own functions return it from 4 bits."""
    functional = library("bitsandbytes.functional")
    return functional.dequantize_4bit(*functional.quantize_4bit(weight, quant_type="nf4", blocksize=64))


def against(home: Path, reference: str) -> dict[str, Answer]:
    base = "  - {name: base, load: ./wide}\n" if reference == "base" else ""
    text = f"{JUDGED}models:\n{base}  - {{name: low, load: ./wide-4bit, reference: {reference}}}\n"
    return answered(home, text)


@pytest.fixture(scope="session")
def both(pair: Path) -> dict[str, Answer]:
    return against(pair, "base")


def test_a_candidate_costs_what_its_dequantized_weights_cost(pair: Path, both: Mapping[str, Answer]) -> None:
    base = transformers.AutoModelForCausalLM.from_pretrained(pair / "wide", dtype=torch.float32).eval()
    low = deepcopy(base)
    with torch.no_grad():
        for name, layer in low.named_modules():
            if name.endswith(LINEAR):
                layer.weight.copy_(nf4(layer.weight))
    judged = windows(pair, name="wide")
    wanted = compared(logs(base, judged.tokens), logs(low, judged.tokens), judged.tokens[:, 1:].numpy())
    assert wanted["kld"] > 1e-3
    close(whole(both["low: loss, unquantized"]).values, wanted, 2e-4)
    assert "kld" not in whole(both["base: loss, unquantized"]).values
    assert both["low: loss, unquantized"].cell.model["quantized"] == "bitsandbytes"
    assert whole(both["base: loss, unquantized"]).values["loss"] == pytest.approx(
        wanted["loss"] - wanted["loss_increase"], rel=1e-5
    )


def test_bytes_of_a_candidate_are_those_of_its_file(pair: Path, both: Mapping[str, Answer]) -> None:
    (_, base), (_, low) = (by_kind(both[f"{name}: model"]) for name in ("base", "low"))
    assert base.values["bits_per_parameter"] == 32
    assert low.values["parameters"] == base.values["parameters"]
    assert low.values["bits_per_parameter"] < 16
    assert low.values["bytes/stored"] == pytest.approx((pair / "wide-4bit/model.safetensors").stat().st_size, rel=0.1)


def test_an_optimizer_with_low_bit_state_trains_beside_the_plain_one(pair: Path) -> None:
    text = f"{JUDGED}models: [{{name: wide, load: ./wide}}]\noptimizers: [bitsandbytes/AdamW8bit]\n"
    answer = answered(pair, text, "optimizer")["wide: optimizer bitsandbytes/AdamW8bit"]
    record = whole(answer)
    assert (record.kind, record.quantizer) == ("optimizer", "bitsandbytes/AdamW8bit")
    assert 8 < record.values["bits_per_value/state"] < 32
    assert 0 < record.values["low_bit_share"] <= 1
    assert abs(record.values["loss_increase"]) < 0.1


def test_a_kernel_is_measured_beside_its_simulation(pair: Path) -> None:
    text = f"{JUDGED}models: [{{name: wide, load: ./wide}}]\nkernels: [bitsandbytes/nf4]\n"
    text += 'treatments: [{scope: weights, quantizers: ["nf4/block:64"]}]\n'
    found = answered(pair, text)
    real, simulated = (
        whole(found[f"wide: {name}"]).values for name in ("kernel bitsandbytes/nf4", "loss, nf4/block:64 @ weights")
    )
    assert real["simulation_gap"] == pytest.approx(real["loss"] - simulated["loss"], abs=1e-6)
    assert abs(real["simulation_gap"]) < 5e-3  # what the kernel multiplies with fewer bits
    assert real["kld"] == pytest.approx(simulated["kld"], rel=1e-2)
    assert real["bytes/memory"] < real["bytes/memory/unquantized"] / 2
    assert real["latency_ms"] > 0
    assert real["loss/unquantized"] == whole(found["wide: loss, unquantized"]).values["loss"]


def test_a_saved_reference_gives_the_numbers_of_two_models(pair: Path, both: Mapping[str, Answer]) -> None:
    saved = pair / "wide.reference.safetensors"
    said = save(str(pair / "wide"), f"text:{pair / 'texts'}", saved, windows=N)
    assert f"{N} windows of context 64" in said
    first = whole(against(pair, "./wide.reference.safetensors")["low: loss, unquantized"])
    longer = JUDGED.replace(f"context: {CONTEXT}", "context: 64")
    models = "models:\n  - {name: base, load: ./wide}\n  - {name: low, load: ./wide-4bit, reference: base}\n"
    second = whole(answered(pair, longer + models, "loss", arm="low")["low: loss, unquantized"])
    assert first.values == pytest.approx(second.values, rel=1e-6, abs=1e-9)
    assert first.values["kld"] != pytest.approx(whole(both["low: loss, unquantized"]).values["kld"], rel=1e-3)


# Masked language models, images, our own models


def test_a_masked_model_is_asked_for_what_is_hidden(home: Path) -> None:
    text = f"{JUDGED}models: [{{name: bert, load: ./bert}}]\n"
    text += "treatments: [{scope: weights, quantizers: [int4/channel]}]\n"
    found = answered(home, text)
    assert {answer.status for answer in found.values()} == {"measured"}
    model = transformers.AutoModelForMaskedLM.from_pretrained(home / "bert", dtype=torch.float32).eval().double()
    tokens = windows(home, name="bert").tokens
    hidden = masking_of(tokenizer("bert")).hidden(tokens[:, :-1])
    assert (hidden.sum(1) >= 3).all()
    shown = tokens[:, :-1].masked_fill(hidden, 4)
    with torch.no_grad():
        log = torch.stack([model(input_ids=row[None]).logits[0].log_softmax(-1) for row in shown])
    each = -log.gather(-1, tokens[:, :-1, None])[..., 0][hidden]
    values = whole(found["bert: loss, unquantized"]).values
    assert values["loss"] == pytest.approx(float(each.mean()), rel=1e-5)
    assert values["error_rate"] == pytest.approx(float((log.argmax(-1) != tokens[:, :-1])[hidden].double().mean()))
    assert whole(found["bert: loss, int4/channel @ weights"]).values["kld"] > 0


IMAGES = 40
VISION = f"""\
data: digits
evaluate: {{windows: {IMAGES}}}
tensors:
  - {{kind: weight, quantizers: [int4/channel]}}
  - {{kind: activation, sites: [linear, boundaries], windows: 16, outliers: true, quantizers: [int8/token]}}
treatments: [{{scope: weights, quantizers: ["int3/block:16"]}}]
sensitivity: [{{weights: int3/channel, top: 1}}]
"""


def test_images_are_judged_by_their_labels(home: Path) -> None:
    found = answered(home, f"{VISION}models: [{{name: vit, load: ./vit}}]\n")
    assert {name: answer.error for name, answer in found.items() if answer.status != "measured"} == {}
    model = transformers.AutoModelForImageClassification.from_pretrained(home / "vit", dtype=torch.float32).eval()
    images = vision.digits().part("test", IMAGES)
    low = deepcopy(model)
    with torch.no_grad():
        for name, layer in low.named_modules():
            if isinstance(layer, nn.Linear) and name != "classifier":
                layer.weight.copy_(build("int3/block:16", channel_axis=0).roundtrip(layer.weight))
        pixels = RECIPE.apply(images.pixels).double()
        p, q = (m.double()(pixel_values=pixels).logits.log_softmax(-1).numpy() for m in (model, low))
    names = ("loss", "loss_increase", "error_rate", "kld", "kld/reverse", "delta_p", "delta_p/rms")
    wanted = compared(p, q, images.labels)
    close(
        whole(found["vit: loss, int3/block:16 @ weights"]).values,
        {name: wanted[name] for name in (*names, "top1_changed", "flips")},
        1e-3,
    )
    assert whole(found["vit: loss, unquantized"]).values["loss"] == pytest.approx(
        wanted["loss"] - wanted["loss_increase"], rel=1e-5
    )


def test_classes_go_by_their_names(home: Path) -> None:
    """A model that calls class 0 "9" is right where it says 0 to a nine."""
    classes = vision.digits().classes
    forward, backward = (untrained(names) for names in (classes, classes[::-1]))
    with torch.no_grad():
        for parameter, other in zip(backward.classifier.parameters(), forward.classifier.parameters(), strict=True):
            parameter.copy_(other.flip(0))
    save_vit(backward, home / "backward")
    text = "data: digits\nevaluate: {windows: 40}\nmodels: [{name: a, load: ./vit}, {name: b, load: ./backward}]\n"
    found = answered(home, text, "loss")
    losses = [whole(found[f"{name}: loss, unquantized"]).values["loss"] for name in "ab"]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


@pytest.mark.parametrize("wiring", ["residual", "residual-free"])
def test_our_own_models_are_judged_like_others(home: Path, wiring: str) -> None:
    from qbench.models.export import export
    from qbench.models.spec import ModelSpec
    from qbench.models.transformer import Transformer

    torch.manual_seed(0)
    model = Transformer(ModelSpec(layers=2, width=32, heads=2, context=32, wiring=wiring)).eval()  # type: ignore[arg-type]
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.normal_(0, 0.2)
    export(model, home / wiring)
    text = f"{JUDGED}models: [{{name: own, load: ./{wiring}}}]\n"
    tensors = "tensors:\n  - {kind: activation, sites: boundaries, windows: 4, quantizers: [int8/token]}\n"
    found = answered(home, text + tensors + "treatments: [{scope: weights, quantizers: [int4/channel]}]\n")
    assert {name: answer.error for name, answer in found.items() if answer.status != "measured"} == {}
    documents = [Document(name, content, name) for name, content in sorted(FILES.items())]
    tokens = passages(documents, lambda content: list(content.encode()), Cut(CONTEXT, N)).tokens
    with torch.no_grad():
        log = model.double()(tokens[:, :-1]).log_softmax(-1)
    wanted = -float(log.gather(-1, tokens[:, 1:, None]).mean())
    assert whole(found["own: loss, unquantized"]).values["loss"] == pytest.approx(wanted, rel=1e-5)


# What cannot be answered


def failures(home: Path, text: str) -> set[str]:
    """Why cells failed; those about files alone must not."""
    found = answered(home, text)
    for name, answer in found.items():
        by_file = answer.cell.measurement.what == "model" or answer.cell.measurement.kind == "weight"
        assert (answer.status == "measured") is by_file, name
        assert (answer.records == ()) is not by_file
    return {answer.error for answer in found.values() if answer.error}


SMALL = """\
models: [{name: model, load: ./llama}]
tensors:
  - {kind: weight, quantizers: [int4/channel]}
  - {kind: activation, sites: kv, windows: 2, quantizers: [int8/token]}
evaluate: {windows: 2}
treatments: [{scope: weights, quantizers: [int4/channel]}]
"""


def test_a_text_shorter_than_a_window_is_one_reason(home: Path) -> None:
    (home / "short.txt").write_text("too short")
    (reason,) = failures(home, "data: text:short.txt\n" + SMALL)
    assert "has 9 tokens; a window of context 64 needs 64: give more text or a shorter context" in reason
    assert "\n" not in reason


def test_a_model_that_does_not_fit_is_one_reason_and_its_files_are_still_read(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(headroom, "free_memory", lambda: 1000)
    (reason,) = failures(home, "data: text:texts\n" + SMALL)
    assert "GB of memory are free; load it in a smaller dtype or with a device map, or look at its weights" in reason


def test_a_candidate_with_another_vocabulary_has_nothing_to_compare(home: Path) -> None:
    config = json.loads((home / "llama" / "config.json").read_text()) | {"vocab_size": 104}
    torch.manual_seed(0)
    transformers.LlamaForCausalLM(transformers.LlamaConfig(**config)).save_pretrained(home / "padded")
    tokenizer("llama").save_pretrained(home / "padded")
    models = "models: [{name: base, load: ./llama}, {name: other, load: ./padded, reference: base}]\n"
    answer = answered(home, JUDGED + models, arm="other")["other: loss, unquantized"]
    assert answer.status == "failed"
    assert "the candidate knows 104 tokens, the reference 97" in answer.error


def test_windows_that_are_not_there_are_one_reason(home: Path) -> None:
    (reason,) = failures(home, "data: text:texts\n" + SMALL.replace("windows: 2}\ntreat", "windows: 99999}\ntreat"))
    assert "99999 windows of context 64 were asked for" in reason


def test_costs_have_intervals_only_where_windows_are_samples() -> None:
    vectors: Mapping[str, np.ndarray] = {"loss": np.array([1.0, 3.0]), "kld": np.array([0.0, 2.0])}
    costs = Costs({"loss": 2.0, "kld": 1.0, "perplexity": 7.0}, vectors)
    assert set(costs.intervals) == {"loss", "kld"}
    assert costs.window_floor == 1.0
    assert np.isnan(Costs({"loss": 1.0}, {"loss": np.array([1.0])}).window_floor)

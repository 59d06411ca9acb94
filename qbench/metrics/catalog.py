"""Every number a record may hold: its unit, what it means, where it was defined.

A ranked number is a cost: lower is better, always. Descriptions of the input (kurtosis, crest) are never ranked.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Metric:
    """One row; `role` says whether it is a cost, a description of the data, or evidence about the measurement."""

    unit: str
    role: Literal["cost", "description", "evidence"]
    meaning: str
    source: str = ""


# Costs of a language model that are also given for the slice of the text (file, language, kind) where they are worst.
_BY_SLICE: Mapping[str, str] = {
    **dict.fromkeys(("loss", "loss_increase"), "nats/token"),
    "bits_per_byte": "bits",
    **dict.fromkeys(("error_rate", "perplexity", "perplexity_ratio"), "1"),
    **dict.fromkeys(("kld", "kld/p99", "kld/reverse"), "nats/token"),
    **dict.fromkeys(("delta_p/rms", "top1_changed", "flips"), "1"),
}

# What is said of a residual addition y = x + f, by axis: of all values, per token, per channel.
_ADDS: Mapping[str, str] = {
    "variance_ratio": "r: variance of what joins over that of the stream",
    "correlation": "of the stream and what joins it",
    "c31": "joint cumulant E[x^3 f] - 3 E[x^2] E[x f] over var(y)^2: the branch expands what is large in the stream",
    "c22": "joint cumulant E[x^2 f^2] - E[x^2] E[f^2] - 2 E[x f]^2 over var(y)^2: both are large in the same places",
    "c13": "joint cumulant E[x f^3] - 3 E[f^2] E[x f] over var(y)^2",
    "kurtosis/stream": "excess kurtosis of the stream before the addition",
    "kurtosis/branch": "excess kurtosis of what joins",
    "kurtosis/sum": "excess kurtosis of the sum, as measured",
    "kurtosis/predicted": "the same from the cumulants of stream and branch and c31, c22, c13: an identity",
    "kurtosis/independent": "what it were, were stream and branch independent: (k_x + r^2 k_f) / (1 + r)^2",
}
_AXES: Mapping[str, str] = {"tensor": "all values pooled", "token": "mean over tokens", "channel": "mean over channels"}

METRICS: Mapping[str, Metric] = {
    # Error of a quantized tensor
    "relative_error": Metric("1", "cost", "norm of the error over norm of the tensor"),
    "error_db": Metric("dB", "cost", "minus SQNR: 10 log10 of error power over signal power"),
    "error_db/channel": Metric("dB", "cost", "mean over live channels of each channel's error_db"),
    "max_error": Metric("1", "cost", "largest absolute error over the rms of the tensor"),
    "saturated": Metric("1", "cost", "share of values beyond the largest level"),
    "zeroed": Metric("1", "cost", "share of non-zero values that became zero"),
    "underflowed_scales": Metric("1", "cost", "share of blocks whose stored scale became zero though the block is not"),
    "dead_channels": Metric("count", "evidence", "channels that are zero throughout, left out of error_db/channel"),
    "levels": Metric("count", "evidence", "most distinct codes seen in the tensor"),
    "shape_loss_db": Metric("dB", "cost", "error_db above what Gaussian data would show in this format and block size"),
    "lloyd_gap_db": Metric("dB", "cost", "error_db above the Lloyd-Max quantizer of a Gaussian at the code's bits"),
    "rate_distortion_gap_db": Metric("dB", "cost", "error_db above rate-distortion of a Gaussian at the stored bits"),
    # Shape of a tensor
    "rms": Metric("1", "description", "root mean square"),
    "excess_kurtosis/tensor": Metric("1", "description", "central, all values pooled"),
    "excess_kurtosis/token": Metric("1", "description", "central, over the channels of each token, then averaged"),
    "excess_kurtosis/channel": Metric("1", "description", "central, over the tokens of each channel, then averaged"),
    "kurtosis/osp": Metric(
        "1", "description", "4th moment not centred, std unbiased, excess, clipped at 0, per token", "arXiv 2506.19697"
    ),
    "kurtosis/qualcomm": Metric(
        "1", "description", "per sequence over tokens x channels, not excess", "arXiv 2306.12929"
    ),
    "kurtosis/he": Metric("1", "description", "E[s^4]/E[s^2]^2 of the channel scales s", "arXiv 2405.19279"),
    "crest_db": Metric("dB", "description", "largest magnitude over rms, per recorded batch"),
    "max_to_median": Metric("1", "description", "largest over median magnitude of each token, averaged"),
    "gaussian/excess_kurtosis/tensor": Metric("1", "evidence", "what Gaussian data of this size shows on average"),
    "gaussian/excess_kurtosis/token": Metric("1", "evidence", "what Gaussian data of this size shows on average"),
    "gaussian/excess_kurtosis/channel": Metric("1", "evidence", "what Gaussian data of this size shows on average"),
    "gaussian/kurtosis/osp": Metric("1", "evidence", "what Gaussian data of this size shows on average"),
    "gaussian/crest_db": Metric("dB", "evidence", "what Gaussian data of this size shows on average"),
    "gaussian/sd/excess_kurtosis/tensor": Metric(
        "1", "evidence", "its standard deviation for independent Gaussian data"
    ),
    # Where the outliers of a tensor are; ordinary tokens are those that are no sinks and not the first
    "outliers/hot_channel_energy": Metric("1", "description", "share of the hottest channel in the ordinary tokens"),
    "outliers/hot_channel_peak": Metric("1", "description", "its largest magnitude over the rms of ordinary tokens"),
    "outliers/massive": Metric(
        "count", "description", "values > 100 and >= 1000 times their window's median", "arXiv 2402.17762"
    ),
    "outliers/massive_channels": Metric("count", "description", "channels with massive activations"),
    "outliers/massive_largest": Metric("1", "description", "magnitude of the largest massive activation"),
    "outliers/sinks": Metric("1", "description", "tokens per window with a norm > 10 times the window's median norm"),
    "outliers/sinks_elsewhere": Metric("1", "description", "sinks per window that are not at the first position"),
    "outliers/first_token_norm": Metric("1", "description", "norm of the first token over its window's median norm"),
    "outliers/energy_apart": Metric("1", "description", "share of sinks and first tokens in the energy"),
    # Where a branch joins the stream
    **{
        f"add/{name}/{axis}": Metric("1", "description", f"{meaning}; {how}")
        for name, meaning in _ADDS.items()
        for axis, how in _AXES.items()
    },
    "add/alignment": Metric(
        "1", "evidence", "squared cosine of what joined and the branch's output: 1 for an addition"
    ),
    # How an error grows through the network; f is a block or matrix, R, A, B, C are means over tokens
    "flow/error": Metric("1", "cost", "R: power of the error behind f over the clean signal's", "arXiv 2509.23500"),
    "flow/inherited": Metric("1", "description", "A: part of R that came in and was passed on", "arXiv 2509.23500"),
    "flow/introduced": Metric("1", "description", "B: part of R that f's own quantizers made", "arXiv 2509.23500"),
    "flow/cross": Metric("1", "description", "C: twice the product of both parts, R = A + B + C", "arXiv 2509.23500"),
    "flow/gain": Metric("1", "description", "G: A over the R in front of f", "arXiv 2509.23500"),
    "flow/gain/spectral": Metric("1", "description", "G1: squared ratio of spectral norms", "arXiv 2509.23500"),
    "flow/gain/alignment": Metric(
        "1",
        "description",
        "G2 = G / G1: is the error better aligned with the matrix than the signal",
        "arXiv 2509.23500",
    ),
    "noise/increase": Metric("nats/token", "cost", "loss with white noise at a place minus loss without"),
    "noise/sensitivity": Metric("nats/token", "cost", "noise/increase over the noise's power relative to the tensor's"),
    "noise/snr_db": Metric("dB", "evidence", "power of the tensor over that of the noise"),
    "noise/exponent": Metric("1", "evidence", "of noise/increase as a power of the noise's; 1 where it is quadratic"),
    # Random stacks, nothing trained
    "theory/kurtosis/tensor": Metric("1", "evidence", "excess_kurtosis/tensor by a closed form, in expectation"),
    "theory/kurtosis/channel": Metric("1", "evidence", "excess_kurtosis/channel by a closed form, in expectation"),
    # Which statistic predicts the loss increase
    "rank_correlation": Metric("1", "evidence", "Spearman's rho of a statistic with the loss increase"),
    # Quality of a model
    "lr": Metric("1", "evidence", "peak learning rate that was tried"),
    "loss": Metric("nats/token", "cost", "mean cross-entropy on held-out windows"),
    "bits_per_byte": Metric("bits", "cost", "loss in bits, per byte of text"),
    "loss_increase": Metric("nats/token", "cost", "loss minus the unquantized model's, paired by window"),
    "loss_increase/inside": Metric(
        "nats/token", "cost", "loss minus that of the same seed trained without quantizers inside, nothing quantized"
    ),
    "loss_increase/first_order": Metric(
        "nats/token", "evidence", "what the gradient predicts: sum of gradient times change, before any exact pass"
    ),
    "loss_increase/fisher": Metric(
        "nats²/token²", "evidence", "sum of squared gradient times change, per window: orders layers, is no loss"
    ),
    "rank_correlation/first_order": Metric(
        "1", "evidence", "Spearman's, of its magnitude with the exact loss increase"
    ),
    "rank_correlation/fisher": Metric("1", "evidence", "Spearman's, of this order with the exact loss increase"),
    "block_forwards": Metric("1", "evidence", "of the forward passes of blocks that whole passes would have taken"),
    "error_rate": Metric("1", "cost", "share of tokens whose most likely next token is wrong; of images, misnamed"),
    "error_rate/exact": Metric("1", "cost", "wrong share of a procedural task's tokens with one right answer"),
    "error_rate/problem": Metric("1", "cost", "share of its problems with any of these wrong: not solved as a whole"),
    "loss/least": Metric("nats/token", "evidence", "loss of whoever knows how the problems are made: none has less"),
    "floor/numerical": Metric(
        "nats/token", "evidence", "largest loss change of a window when only the batch size or the precision changes"
    ),
    "floor/window": Metric("nats/token", "evidence", "standard error of the mean over windows"),
    "sites_touched": Metric("count", "evidence", "places that were really quantized"),
    "bits_per_value/model": Metric("bits", "cost", "stored bits per parameter, with those that were left alone"),
    "bytes/model": Metric("B", "cost", "of its whole file, were the treated weights stored as their quantizers do"),
    # Predictions of a changed language model beside the unquantized one's; base is the unquantized model
    "perplexity": Metric("1", "cost", "e to the loss: the model is as unsure as among that many tokens"),
    "loss_correlation": Metric("1", "evidence", "Pearson correlation of both models' losses over predictions"),
    "perplexity_ratio": Metric("1", "cost", "perplexity over the base's, on the same predictions"),
    "kld": Metric("nats/token", "cost", "KL(base || quantized) over the whole vocabulary, mean over predictions"),
    "kld/max": Metric("nats/token", "cost", "largest kld of a prediction"),
    "kld/p99.9": Metric("nats/token", "cost", "kld that 99.9 % of predictions do not exceed"),
    "kld/p99": Metric("nats/token", "cost", "kld that 99 % of predictions do not exceed"),
    "kld/p95": Metric("nats/token", "cost", "kld that 95 % of predictions do not exceed"),
    "kld/median": Metric("nats/token", "cost", "kld that half of the predictions do not exceed"),
    "kld/p10": Metric("nats/token", "cost", "kld that 10 % of predictions do not exceed"),
    "kld/p5": Metric("nats/token", "cost", "kld that 5 % of predictions do not exceed"),
    "kld/p1": Metric("nats/token", "cost", "kld that 1 % of predictions do not exceed"),
    "kld/reverse": Metric("nats/token", "cost", "KL(quantized || base), mean over predictions"),
    "delta_p": Metric("1", "description", "probability of the right token minus the base's, mean over predictions"),
    "delta_p/rms": Metric("1", "cost", "root mean square of the change of the right token's probability"),
    "top1_changed": Metric("1", "cost", "share of predictions with another most likely token: 1 - same top p"),
    "flips": Metric("1", "cost", "share of predictions that became right or wrong", "arXiv 2407.09141"),
    "flips/to_wrong": Metric("1", "cost", "share of predictions that were right and became wrong", "arXiv 2407.09141"),
    "flips/to_right": Metric(
        "1", "description", "share of predictions that were wrong and became right", "arXiv 2407.09141"
    ),
    **{
        f"{name}/worst_slice": Metric(unit, "cost", f"{name} of the slice of the text where it is largest")
        for name, unit in _BY_SLICE.items()
    },
    # Real kernels, beside their simulation
    "bytes/disk": Metric("B", "cost", "file of the whole model's state, as torch.save writes it"),
    "bytes/disk/unquantized": Metric("B", "evidence", "the same of the unquantized model, in the kernel's dtype"),
    "bytes/memory": Metric("B", "cost", "memory behind the model's tensors after a forward pass, shared memory once"),
    "bytes/memory/unquantized": Metric("B", "evidence", "the same of the unquantized model, in the kernel's dtype"),
    "bits_per_value/quantized": Metric("bits", "cost", "bits stored per weight in the quantized layers, as measured"),
    "latency_ms": Metric("ms", "cost", "median time of a forward pass, in turns with the unquantized model's"),
    "latency_ms/unquantized": Metric("ms", "evidence", "median time of the unquantized model's forward pass"),
    "latency/batch": Metric("count", "evidence", "sequences or images in a timed forward pass"),
    "latency/length": Metric("count", "evidence", "tokens in each sequence of a timed forward pass"),
    "latency/threads": Metric("count", "evidence", "CPU threads of a timed forward pass"),
    "simulation_gap": Metric("nats/token", "evidence", "loss with the kernel minus loss with its simulation"),
    "simulation_gap/kld": Metric("nats/token", "evidence", "kld with the kernel minus kld with its simulation"),
    "simulation_gap/floor": Metric(
        "nats/token", "evidence", "the gap that is noise: the numerical floor, or two standard errors over windows"
    ),
    "simulation_gap/kld/floor": Metric("nats/token", "evidence", "the same for the gap of kld"),
    "simulation_gap/flagged": Metric("1", "evidence", "1 where a gap to the simulation exceeds its noise floor"),
    "layers_left": Metric("count", "evidence", "linear layers that the kernel left alone"),
    # Optimizer state in few bits
    "bits_per_value/state": Metric("bits", "cost", "bits stored per number of optimizer state, with all scales"),
    "bytes/state": Metric("B", "cost", "memory of the optimizer's state, step counters apart"),
    "low_bit_share": Metric("1", "evidence", "share of the numbers of optimizer state that are kept in few bits"),
    "train_loss/full_state": Metric("nats/token", "evidence", "train_loss of the same rule with float32 state"),
    # Tasks of the lm-evaluation-harness; `vectors` hold one number for each document
    "task_error/acc": Metric("1", "cost", "share of documents whose likeliest answer is wrong: 1 - acc"),
    "task_error/acc_norm": Metric("1", "cost", "the same with likelihoods per character of the answer"),
    "task_error/acc_bytes": Metric("1", "cost", "the same with likelihoods per byte of the answer"),
    "task_error/acc_mutual_info": Metric("1", "cost", "the same with likelihoods over those without the question"),
    "task_error/exact_match": Metric("1", "cost", "share of documents whose generated answer is not the right one"),
    "task_error/f1": Metric("1", "cost", "1 - F1 of the generated answer, mean over documents"),
    "task_bits_per_byte": Metric("bits", "cost", "of a task's documents, long ones counting for more"),
    "task_perplexity/byte": Metric("1", "cost", "exponential of the nats per byte of a task's documents"),
    "task_perplexity/word": Metric("1", "cost", "exponential of the nats per word; words are split at white space"),
    "task_perplexity/target": Metric("1", "cost", "exponential of the mean nats of the right answer"),
    # Training
    "train_loss": Metric("nats/token", "cost", "training loss of one step"),
    "validation_loss": Metric("nats/token", "cost", "loss on the tuning split during training"),
    "unigram_entropy": Metric(
        "nats/token", "evidence", "what a model reaches that knows only how frequent tokens or classes are"
    ),
    "largest_gradient_norm": Metric("1", "evidence", "before clipping, over the whole run"),
    "cpu_seconds": Metric("s", "evidence", "process time"),
    "training_tokens": Metric("count", "evidence", "tokens, or patches of images, seen in training"),
    "tokens_per_second": Metric("1/s", "evidence", "tokens, or patches, trained on in a second on the clock"),
    "model_flops": Metric(
        "1/s", "evidence", "operations a second that the model needs: 6 N + 12 L T D a token", "arXiv 2204.02311"
    ),
    "mfu": Metric("1", "evidence", "model_flops over what the device's maker states", "arXiv 2204.02311"),
    "parameters": Metric("count", "evidence", "numbers in the model"),
}

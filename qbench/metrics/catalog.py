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
    # Quality of a model
    "loss": Metric("nats/token", "cost", "mean cross-entropy on held-out windows"),
    "bits_per_byte": Metric("bits", "cost", "loss in bits, per byte of text"),
    "loss_increase": Metric("nats/token", "cost", "loss minus the unquantized model's, paired by window"),
    "error_rate": Metric("1", "cost", "share of tokens whose most likely next token is wrong"),
    "floor/numerical": Metric(
        "nats/token", "evidence", "largest loss change of a window when only the batch size or the precision changes"
    ),
    "floor/window": Metric("nats/token", "evidence", "standard error of the mean over windows"),
    "sites_touched": Metric("count", "evidence", "places that were really quantized"),
    "bits_per_value/model": Metric("bits", "cost", "stored bits per parameter, with those that were left alone"),
    # Training
    "train_loss": Metric("nats/token", "cost", "training loss of one step"),
    "validation_loss": Metric("nats/token", "cost", "loss on the tuning split during training"),
    "unigram_entropy": Metric("nats/token", "evidence", "what a model that knows only token frequencies reaches"),
    "largest_gradient_norm": Metric("1", "evidence", "before clipping, over the whole run"),
    "cpu_seconds": Metric("s", "evidence", "process time"),
    "training_tokens": Metric("count", "evidence", "tokens seen in training"),
    "parameters": Metric("count", "evidence", "numbers in the model"),
}

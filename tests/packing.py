"""Checkpoints packed element by element, as the public descriptions of GPTQ and AWQ have it; and folders of tensors."""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

INTERLEAVED = (0, 2, 4, 6, 1, 3, 5, 7)


def write(
    folder: Path, tensors: Mapping[str, Tensor], quantization: Mapping | None, shards: int = 1, **config: object
) -> Path:
    """A checkpoint; its tensors are dealt out to the shards one by one, so that parts of a weight are torn apart."""
    folder.mkdir(parents=True, exist_ok=True)
    table = {"model_type": "llama", **config} | ({"quantization_config": quantization} if quantization else {})
    (folder / "config.json").write_text(json.dumps(table))
    whole = {name: tensor.contiguous() for name, tensor in tensors.items()}
    if shards == 1:
        save_file(whole, folder / "model.safetensors")
        return folder
    names = [f"model-{i + 1:05}-of-{shards:05}.safetensors" for i in range(shards)]
    place = {name: names[i % shards] for i, name in enumerate(whole)}
    for file in names:
        save_file({name: tensor for name, tensor in whole.items() if place[name] == file}, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": place}))
    return folder


def state(folder: Path) -> dict[str, Tensor]:
    with safe_open(folder / "model.safetensors", "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no iterator)


def config(folder: Path) -> dict:
    return json.loads((folder / "config.json").read_text())


def signed(words: np.ndarray) -> Tensor:
    return torch.from_numpy(words.astype(np.uint32).view(np.int32).copy())


def pack_down(codes: np.ndarray, bits: int) -> Tensor:
    """int32 [rows * bits / 32, columns] of codes [rows, columns], as the loops of AutoGPTQ's `QuantLinear.pack`."""
    rows, columns = codes.shape
    packed = np.zeros((rows * bits // 32, columns), dtype=np.uint64)
    if bits != 3:
        for row in range(rows):
            packed[row * bits // 32] |= codes[row].astype(np.uint64) << np.uint64(row * bits % 32)
        return signed(packed & np.uint64(0xFFFFFFFF))
    for block in range(rows // 32):
        code = codes[32 * block : 32 * block + 32].astype(np.uint64)
        first, second, third = packed[3 * block], packed[3 * block + 1], packed[3 * block + 2]
        for i in range(10):
            first |= code[i] << np.uint64(3 * i)
            second |= code[11 + i] << np.uint64(3 * i + 1)
            third |= code[22 + i] << np.uint64(3 * i + 2)
        first |= (code[10] & np.uint64(3)) << np.uint64(30)
        second |= code[10] >> np.uint64(2)
        second |= (code[21] & np.uint64(1)) << np.uint64(31)
        third |= code[21] >> np.uint64(1)
    return signed(packed)


def gptq(codes: np.ndarray, zeros: np.ndarray, bits: int, version: int = 1) -> dict[str, Tensor]:
    """qweight and qzeros of codes [in, out] and zero points [groups, out]; version 1 stores these less one."""
    stored = (zeros - (version == 1)) % 2**bits
    return {"qweight": pack_down(codes, bits), "qzeros": pack_down(stored.T, bits).T}


def awq(codes: np.ndarray) -> Tensor:
    """int32 [rows, columns / 8] of 4-bit codes, as the loops of AutoAWQ's `WQLinear_GEMM.from_linear`."""
    packed = np.zeros((codes.shape[0], codes.shape[1] // 8), dtype=np.uint64)
    for column in range(packed.shape[1]):
        for i, place in enumerate(INTERLEAVED):
            packed[:, column] |= codes[:, column * 8 + place].astype(np.uint64) << np.uint64(4 * i)
    return signed(packed)

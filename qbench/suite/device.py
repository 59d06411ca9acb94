"""Which device and which torch a run would use, found out without importing torch."""

import ctypes
import os
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from itertools import cycle
from typing import Literal

Choice = Literal["auto", "cpu", "cuda"]


class MissingExtra(RuntimeError):
    """What was asked needs packages that the base install leaves out."""


class NoDevice(RuntimeError):
    """The device that was asked for is not on this machine."""


@dataclass(frozen=True, slots=True)
class Device:
    """`kind` is what torch is told; `cls` names the class of hardware whose results are comparable."""

    kind: Literal["cpu", "cuda"]
    cls: str
    count: int = 1

    def slots(self, workers: int) -> list[dict[str, str]]:
        """The environment of each of so many workers: on GPUs, which of them it sees, in turn.

        >>> Device("cuda", "cuda:X", count=2).slots(3)[2] == Device("cuda", "cuda:X", count=2).slots(3)[0]
        True
        """
        if self.kind == "cpu":
            return [{} for _ in range(workers)]
        visible = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(self.count)))
        return [
            {"CUDA_VISIBLE_DEVICES": gpu} for gpu, _ in zip(cycle(visible.split(",")), range(workers), strict=False)
        ]


def find(choice: Choice) -> Device:
    """The device for `choice`; `auto` takes a GPU where the driver shows one and torch was built for it."""
    gpus = [] if choice == "cpu" or torch_version().endswith("+cpu") else gpu_names()
    if gpus:
        return Device("cuda", f"cuda:{gpus[0]}", len(gpus))
    if choice == "cuda":
        raise NoDevice(f"no CUDA device for torch {torch_version()}; --device cpu runs everywhere")
    return Device("cpu", "cpu")


def torch_version() -> str:
    try:
        return version("torch")
    except PackageNotFoundError:
        raise MissingExtra("this needs torch: pip install 'qbench-suite[run]'") from None


def gpu_names() -> list[str]:
    """The GPUs that the NVIDIA driver lists; empty without one."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return []
    count = ctypes.c_int()
    if driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count)):
        return []
    names: list[str] = []
    for index in range(count.value):
        handle, text = ctypes.c_int(), ctypes.create_string_buffer(256)
        if not driver.cuDeviceGet(ctypes.byref(handle), index) and not driver.cuDeviceGetName(text, 256, handle):
            names.append(text.value.decode(errors="replace"))
    return names

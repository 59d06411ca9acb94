"""From stored bytes to what an image classifier reads: size, crop, range and mean, as its own folder states them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import interpolate

from qbench.data.text import BadData

Size = tuple[int, int]  # height, width
GREY = (0.299, 0.587, 0.114)  # ITU-R BT.601 luma, as Pillow's convert("L")
RESAMPLE = {2: "bilinear", 3: "bicubic"}  # Pillow's numbers, as preprocessor_config.json writes them


@dataclass(frozen=True, slots=True)
class Recipe:
    """What is done to the bytes: scale to `resize` (or its shorter side to `shortest`), cut the middle `crop`,
    multiply by `factor`, subtract `mean` and divide by `std` of each channel.
    """

    channels: int
    resize: Size | None = None
    shortest: int | None = None
    crop: Size | None = None
    mode: str = "bilinear"
    factor: float = 1 / 255
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)

    def apply(self, pixels: NDArray[np.uint8]) -> Tensor:
        """`pixels` [N, C, H, W] as float32 [N, channels, height, width]."""
        x = _with_channels(torch.from_numpy(np.ascontiguousarray(pixels)), self.channels)
        target = self.resize or _shorter_side(x, self.shortest)
        if target is not None and target != tuple(x.shape[-2:]):
            x = interpolate(x, size=target, mode=self.mode, antialias=True)  # of bytes, which rounds as Pillow does
        if self.crop is not None:
            x = _middle(x, self.crop)
        mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in (self.mean, self.std))
        return (x.float() * self.factor - mean) / std

    def describe(self) -> str:
        """In words, to be stored with the results."""
        size = f"{self.resize[0]} x {self.resize[1]}" if self.resize else f"shorter side {self.shortest}"
        steps = [
            f"{size} ({self.mode})" if self.resize or self.shortest else "",
            f"middle {self.crop[0]} x {self.crop[1]}" if self.crop else "",
            f"{self.channels} channels, times {self.factor:.6g}",
            f"minus {_list(self.mean)}, over {_list(self.std)}",
        ]
        return "; ".join(filter(None, steps))


def recipe(config: Mapping[str, Any], processor: Mapping[str, Any] | None) -> Recipe:
    """What a folder's config.json and preprocessor_config.json ask for.

    Without the second: the config's image size, and bytes to 0 ... 1.

    Raises:
        BadData: the processor asks for a resampling or a size that is not understood here.
    """
    channels = int(config.get("num_channels", 3))
    if processor is None:
        return Recipe(channels, resize=_pair(config["image_size"]) if "image_size" in config else None)
    normalise = processor.get("do_normalize", True)
    return Recipe(
        channels,
        **_geometry(processor),
        factor=float(processor.get("rescale_factor", 1 / 255)) if processor.get("do_rescale", True) else 1.0,
        mean=_numbers(processor.get("image_mean", 0.0)) if normalise else (0.0,),
        std=_numbers(processor.get("image_std", 1.0)) if normalise else (1.0,),
    )


def _geometry(processor: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    size = processor.get("size")
    if processor.get("do_resize", True) and size is not None:
        number = processor.get("resample", 2)
        if number not in RESAMPLE:
            raise BadData(f"preprocessor_config.json: resample {number!r}; expected one of {RESAMPLE}")
        found["mode"] = RESAMPLE[number]
        if isinstance(size, Mapping) and "shortest_edge" in size:
            found["shortest"] = int(cast(Mapping[str, Any], size)["shortest_edge"])
        else:
            found["resize"] = _pair(size)
    if processor.get("do_center_crop", False):
        found["crop"] = _pair(processor["crop_size"])
    return found


def _pair(size: Any) -> Size:
    if isinstance(size, int):
        return size, size
    if isinstance(size, Mapping) and {"height", "width"} <= set(cast(Mapping[str, Any], size)):
        sides = cast(Mapping[str, Any], size)
        return int(sides["height"]), int(sides["width"])
    if isinstance(size, Sequence) and len(cast(Sequence[Any], size)) == 2:
        height, width = cast(Sequence[Any], size)
        return int(height), int(width)
    raise BadData(f"an image size is a number, a pair, or height and width; found {size!r}")


def _numbers(value: Any) -> tuple[float, ...]:
    return tuple(map(float, cast(Sequence[Any], value))) if isinstance(value, Sequence) else (float(value),)


def _with_channels(x: Tensor, channels: int) -> Tensor:
    if x.shape[1] == channels:
        return x
    if x.shape[1] == 1:
        return x.expand(-1, channels, -1, -1)
    if channels == 1:
        return (x.float() * torch.tensor(GREY).view(1, 3, 1, 1)).sum(1, keepdim=True).round().to(torch.uint8)
    raise BadData(f"the model reads {channels} channels, the images have {x.shape[1]}")


def _shorter_side(x: Tensor, side: int | None) -> Size | None:
    """Both sides, in proportion; the longer one is rounded down, as transformers does."""
    if side is None:
        return None
    height, width = x.shape[-2:]
    return (side, int(side * width / height)) if height <= width else (int(side * height / width), side)


def _middle(x: Tensor, crop: Size) -> Tensor:
    height, width = x.shape[-2:]
    if height < crop[0] or width < crop[1]:
        raise BadData(
            f"the images are {height} x {width} after scaling, smaller than the crop of {crop[0]} x {crop[1]}"
        )
    top, left = (height - crop[0]) // 2, (width - crop[1]) // 2
    return x[..., top : top + crop[0], left : left + crop[1]]


def _list(values: tuple[float, ...]) -> str:
    return "/".join(f"{value:g}" for value in dict.fromkeys(values))

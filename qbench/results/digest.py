"""Names made from content: canonical JSON and its SHA-256."""

import hashlib
import json
from typing import Any


def canonical(value: Any) -> str:
    """The one spelling of a JSON value: sorted keys, no spaces, ASCII; tuples are lists.

    1 and 1.0 are different values. ValueError for NaN and infinities, TypeError for keys that are not text (JSON would
    turn 1 into "1" and two keys into one) and for anything that JSON does not have.

    >>> canonical({"steps": (1, 2), "lr": 0.5})
    '{"lr":0.5,"steps":[1,2]}'
    """
    _refuse_odd_keys(value)
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def of(value: Any) -> str:
    """64 hex digits that change when, and only when, the JSON value does."""
    return of_bytes(canonical(value).encode())


def of_bytes(data: bytes) -> str:
    """64 hex digits of raw bytes."""
    return hashlib.sha256(data).hexdigest()


def _refuse_odd_keys(value: Any) -> None:
    if isinstance(value, dict):
        odd = [key for key in value if not isinstance(key, str)]
        if odd:
            raise TypeError(f"JSON keys are text, found {odd[0]!r}")
        for part in value.values():
            _refuse_odd_keys(part)
    elif isinstance(value, list | tuple):
        for part in value:
            _refuse_odd_keys(part)

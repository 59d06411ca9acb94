"""The sweep's C++ kernel: compiled once for this machine by its own compiler, kept on disk, called through ctypes."""

import ctypes
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import warnings
from ctypes import POINTER, Structure, c_double, c_float, c_int32, c_int64, c_uint32, c_void_p
from functools import cache
from hashlib import sha256
from pathlib import Path

SOURCES = Path(__file__).parent / "native"
# No contraction: a product that is not rounded before it is subtracted would move the largest error.
FLAGS = ("-O3", "-std=c++17", "-ffp-contract=off", "-shared", "-fPIC")


class NoKernel(RuntimeError):
    """There is no compiled kernel on this machine; the message says why."""


class Format(Structure):
    """One format and what it loses, as native/errors.h has it."""

    _fields_ = (
        *((name, c_int32) for name in ("granularity", "block", "grid", "rule", "storage", "clamps")),
        *((name, c_int32) for name in ("mantissa", "lowest", "peak_exponent", "codes")),
        *((name, c_float) for name in ("peak", "unit", "low", "high", "low_limit", "high_limit")),
        *((name, c_void_p) for name in ("boundary", "levels", "error")),
        *((name, c_int64) for name in ("nonzero", "saturated", "underflowed")),
        ("largest", c_float),
        ("seen", c_uint32 * 8),
    )


class Moments(Structure):
    _fields_ = tuple((name, c_void_p) for name in ("mean", "m2", "m3", "m4"))


class Job(Structure):
    """A run of rows and everything that is asked of it, as native/sweep.cpp has it."""

    _fields_ = (
        ("x", c_void_p),
        *((name, c_int64) for name in ("rows", "width", "before", "samples", "count")),
        *((name, c_int32) for name in ("dtype", "channels_are_rows", "formats", "measures_moments")),
        *((name, c_float) for name in ("low", "high")),
        ("power", c_double),
        *((name, c_void_p) for name in ("column_low", "column_high", "column_peak")),
        ("format", POINTER(Format)),
        ("signal", c_void_p),
        ("nonzero", c_int64),
        ("channel", Moments),
        ("token", Moments),
        ("token_peak", c_void_p),
    )


class Scan(Structure):
    _fields_ = (("low", c_float), ("high", c_float), ("power", c_double), ("finite", c_int32))


@cache
def kernel() -> ctypes.CDLL | None:
    """The compiled kernel; None, and one warning for the process, where it cannot be made."""
    try:
        return load(build())
    except NoKernel as error:
        warnings.warn(f"the sweep runs about thirty times slower: {error}", RuntimeWarning, stacklevel=3)
        return None


def load(library: Path) -> ctypes.CDLL:
    """The functions of a compiled kernel; raises NoKernel where it does not load or has another layout."""
    try:
        found = ctypes.CDLL(str(library))
    except OSError as error:
        raise NoKernel(f"{library.name} does not load: {error}") from None
    found.qbench_size.restype = c_int64
    sizes = [found.qbench_size(i) for i in range(3)]
    if sizes != [ctypes.sizeof(one) for one in (Job, Format, Scan)]:
        raise NoKernel(f"this compiler lays out structures in another way: {sizes} bytes")
    found.qbench_run.argtypes = (POINTER(Job),)
    found.qbench_scan.argtypes = (c_void_p, c_int64, c_int32, c_int32, POINTER(Scan))
    found.qbench_run.restype = found.qbench_scan.restype = None
    return found


def build(extra: tuple[str, ...] = ("-march=native",)) -> Path:
    """The kernel's library, from the cache or compiled into it; raises NoKernel."""
    compiler = shutil.which(os.environ.get("CXX", "c++"))
    if compiler is None:
        raise NoKernel("it is compiled on first use, and there is no C++ compiler (CXX names one)")
    flags = (*FLAGS, *extra)
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=False).stdout
    texts = [path.read_text() for path in sorted(SOURCES.iterdir())]
    key = sha256("\0".join([*texts, *flags, version, _processor()]).encode()).hexdigest()[:16]
    library = cache_folder() / f"sweep-{key}.so"
    if not library.exists():
        _compile([compiler, *flags, str(SOURCES / "sweep.cpp")], library)
    return library


def cache_folder() -> Path:
    """Where compiled kernels are kept: QBENCH_KERNELS, or the user's cache folder."""
    if "QBENCH_KERNELS" in os.environ:
        return Path(os.environ["QBENCH_KERNELS"])
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "qbench" / "kernels"


def _compile(command: list[str], library: Path) -> None:
    try:
        library.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=library.parent) as folder:
            made = Path(folder) / library.name
            done = subprocess.run([*command, "-o", str(made)], capture_output=True, text=True, check=False)
            if done.returncode:
                raise NoKernel(f"the C++ compiler failed: {_last_line(done.stderr)}")
            made.replace(library)  # whole or not at all: other processes may be compiling it too
    except OSError as error:
        raise NoKernel(f"{library.parent} cannot be written: {error.strerror}") from None


def _last_line(text: str) -> str:
    errors = [line for line in text.splitlines() if "error" in line]
    return (errors or text.splitlines() or ["no message"])[0]


def _processor() -> str:
    """What -march=native depends on: a cache folder may be shared by unlike machines."""
    info = Path("/proc/cpuinfo")
    if not info.exists():
        return f"{platform.machine()} {platform.processor()} {sys.platform}"
    lines = dict(line.split(":", 1) for line in info.read_text().split("\n\n")[0].splitlines() if ":" in line)
    return "".join(value for name, value in lines.items() if name.strip() in ("model name", "flags", "Features"))

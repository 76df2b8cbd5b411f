"""Types of settings: each number has its bounds, each path its form.

Upper bounds are far above every use. They are below values that overflow float32 or int32 on a
device, or that make a program allocate memory without end.
"""

from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, Field
from pydantic.fields import FieldInfo

MAX_INT32 = 2**31 - 1
MAX_FLOAT32 = 3.4028234e38
# Smaller positive numbers are denormal or zero in float32.
SMALLEST = 1.1754944e-38
# The largest number below 1 in float32; closer ones are rounded to 1 on the device.
BELOW_ONE = 0.99999994


def whole(low: int, high: int = MAX_INT32) -> FieldInfo:
    """Bounds of an integer, both allowed."""
    return Field(ge=low, le=high)


def real(low: float, high: float) -> FieldInfo:
    """Bounds of a number, both allowed. It also refuses NaN, which passes every comparison."""
    return Field(ge=low, le=high, allow_inf_nan=False)


Count = Annotated[int, whole(1)]
CountOrNone = Annotated[int, whole(0)]  # the setting says what 0 means, such as "off" or "all"
Seed = Annotated[int, whole(0, 2**32 - 1)]
BatchSize = Annotated[int, whole(1, 2**24)]
Shots = Annotated[int, whole(0, 2**16)]
Threads = Annotated[int, whole(1, 2**12)]
Workers = Annotated[int, whole(0, 2**12)]
Width = Annotated[int, whole(1, 2**16)]
Depth = Annotated[int, whole(1, 2**12)]
PatchSize = Annotated[int, whole(1, 2**14)]
Registers = Annotated[int, whole(0, 2**12)]
ImageSize = Annotated[int, whole(1, 2**11)]  # pixels a side
Axis = Annotated[int, whole(-1, 2**20)]  # of a mesh; -1: all devices that are left

Finite = Annotated[float, real(-MAX_FLOAT32, MAX_FLOAT32)]
Positive = Annotated[float, real(SMALLEST, MAX_FLOAT32)]
NotNegative = Annotated[float, real(0.0, MAX_FLOAT32)]
Share = Annotated[float, real(0.0, 1.0)]
Fraction = Annotated[float, real(0.0, BELOW_ONE)]
Scale = Annotated[float, real(-1e4, 1e4)]  # of classifier-free guidance
Ratio = Annotated[float, real(1e-4, 256.0)]
Epsilon = Annotated[float, real(SMALLEST, 1.0)]
Logit = Annotated[float, real(-100.0, 100.0)]
Seconds = Annotated[float, real(0.0, 1e9)]


def expanded(path: str) -> str:
    """Replaces a leading ~ by the home directory. Raises ValueError where none is known."""
    if not path.startswith("~"):
        return path
    try:
        return str(Path(path).expanduser())
    except RuntimeError:
        raise ValueError(f"no home directory is known for {path}") from None


# The path of a file or folder, or a hub id.
PathText = Annotated[str, AfterValidator(expanded)]

"""Published peaks of accelerators, by the kind of device that JAX reports.

TPU figures are from Google Cloud's page of each TPU version. GPU figures are from NVIDIA's
data sheets: dense bfloat16, and the SXM form where there are several.
"""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Chip:
    """Peaks of one JAX device.

    flops: bfloat16 operations a second. memory: bytes. bandwidth: bytes a second to and from
    that memory. link: bytes a second that it can send over all its links together, while it
    receives as much; None where that depends on the machine.
    """

    name: str
    flops: float
    memory: float
    bandwidth: float
    link: float | None = None


_CHIPS = {
    "TPU v4": Chip("v4", 275e12, 32e9, 1_228e9, 300e9),
    "TPU v5 lite": Chip("v5e", 197e12, 16e9, 819e9, 200e9),
    "TPU v5": Chip("v5p", 459e12, 95e9, 2_765e9, 600e9),
    "TPU v6 lite": Chip("v6e", 918e12, 32e9, 1_640e9, 400e9),
    "NVIDIA A100-SXM4-40GB": Chip("A100 40 GB", 312e12, 40e9, 1_555e9, 300e9),
    "NVIDIA A100-SXM4-80GB": Chip("A100 80 GB", 312e12, 80e9, 2_039e9, 300e9),
    "NVIDIA H100 80GB HBM3": Chip("H100", 989.4e12, 80e9, 3_350e9, 450e9),
    "NVIDIA H200": Chip("H200", 989.4e12, 141e9, 4_800e9, 450e9),
    "NVIDIA L4": Chip("L4", 121e12, 24e9, 300e9),
}


def find_chip(device_kind: str) -> Chip | None:
    """The chip of a `jax.Device.device_kind`, or None for a kind that is not listed here."""
    return _CHIPS.get(device_kind)

"""Published peaks of accelerators, by the kind of device that JAX reports.

TPU figures are from Google Cloud's page of each TPU version. GPU figures are from the data sheet
or architecture paper of NVIDIA that stands above them: dense, not with sparsity, products of
bfloat16 with sums in float32. None of them was measured here.
"""

import dataclasses
import re


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
    # V100 and V100S data sheets. Volta has no bfloat16: the figure is that of float16.
    "Tesla V100-SXM2-16GB": Chip("V100 SXM 16 GB", 125e12, 16e9, 900e9, 150e9),
    "Tesla V100-SXM2-32GB": Chip("V100 SXM 32 GB", 125e12, 32e9, 900e9, 150e9),
    "Tesla V100-PCIE-16GB": Chip("V100 PCIe 16 GB", 112e12, 16e9, 900e9),
    "Tesla V100-PCIE-32GB": Chip("V100 PCIe 32 GB", 112e12, 32e9, 900e9),
    "Tesla V100S-PCIE-32GB": Chip("V100S", 130e12, 32e9, 1_134e9),
    # T4 data sheet. Turing has no bfloat16: the figure is that of float16.
    "Tesla T4": Chip("T4", 65e12, 16e9, 300e9),
    # A100 data sheet.
    "NVIDIA A100-SXM4-40GB": Chip("A100 SXM 40 GB", 312e12, 40e9, 1_555e9, 300e9),
    "NVIDIA A100-SXM4-80GB": Chip("A100 SXM 80 GB", 312e12, 80e9, 2_039e9, 300e9),
    "NVIDIA A100-PCIE-40GB": Chip("A100 PCIe 40 GB", 312e12, 40e9, 1_555e9),
    "NVIDIA A100 80GB PCIe": Chip("A100 PCIe 80 GB", 312e12, 80e9, 1_935e9),
    # A10 data sheet, and the A10G data sheet of NVIDIA and AWS: the A10G is the slower one.
    "NVIDIA A10": Chip("A10", 125e12, 24e9, 600e9),
    "NVIDIA A10G": Chip("A10G", 70e12, 24e9, 600e9),
    # Ampere GA102 architecture paper, appendices A (GeForce) and C (RTX A6000). A GeForce
    # multiplies at half its rate where it sums in float32.
    "NVIDIA GeForce RTX 3090": Chip("RTX 3090", 71e12, 24e9, 936e9),
    "NVIDIA RTX A6000": Chip("RTX A6000", 154.8e12, 48e9, 768e9),
    # L4 and L40S data sheets; Ada architecture paper, appendix A, for the GeForce.
    "NVIDIA L4": Chip("L4", 121e12, 24e9, 300e9),
    "NVIDIA L40S": Chip("L40S", 362e12, 48e9, 864e9),
    "NVIDIA GeForce RTX 4090": Chip("RTX 4090", 165.2e12, 24e9, 1_008e9),
    # H100 and H200 data sheets, which print figures with sparsity: half of these.
    "NVIDIA H100 80GB HBM3": Chip("H100 SXM", 989.4e12, 80e9, 3_350e9, 450e9),
    "NVIDIA H100 PCIe": Chip("H100 PCIe", 756e12, 80e9, 2_000e9),
    "NVIDIA H100 NVL": Chip("H100 NVL", 835.5e12, 94e9, 3_900e9),
    "NVIDIA H200": Chip("H200 SXM", 989.4e12, 141e9, 4_800e9, 450e9),
    "NVIDIA H200 NVL": Chip("H200 NVL", 835.5e12, 141e9, 4_800e9),
    # Data sheets of DGX B200 and HGX B200, divided by their eight GPUs.
    "NVIDIA B200": Chip("B200", 2_250e12, 180e9, 8_000e9, 900e9),
    # RTX Blackwell architecture paper, appendix A.
    "NVIDIA GeForce RTX 5090": Chip("RTX 5090", 209.5e12, 32e9, 1_792e9),
}

# Words of a kind that NVIDIA's drivers write or leave out, depending on their version.
_BRANDS = frozenset(("nvidia", "tesla", "geforce"))


def _words(device_kind: str) -> frozenset[str]:
    """The words that tell kinds apart: {"a100", "sxm", "40gb"} of "NVIDIA A100-SXM4-40GB"."""
    words = re.findall(r"[a-z0-9]+", device_kind.lower())
    return frozenset(re.sub(r"^sxm\d$", "sxm", word) for word in words) - _BRANDS


_BY_WORDS = {_words(kind): chip for kind, chip in _CHIPS.items()}


def find_chip(device_kind: str) -> Chip | None:
    """The chip of a `jax.Device.device_kind`, or None for a kind that is not listed here.

    Brands, case and the order of words do not matter. Any other word makes another chip: a
    "4090 Laptop GPU" and a "MIG 1g.10gb" part of an H100 have peaks of their own.
    """
    return _BY_WORDS.get(_words(device_kind))

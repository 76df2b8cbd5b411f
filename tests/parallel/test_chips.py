import pytest

from fsdit.parallel.chips import _BY_WORDS, _CHIPS, find_chip


@pytest.mark.parametrize(
    ("kind", "name", "teraflops", "gigabytes"),
    [
        ("TPU v4", "v4", 275, 32),
        ("TPU v5", "v5p", 459, 95),
        ("TPU v5 lite", "v5e", 197, 16),
        ("TPU v6 lite", "v6e", 918, 32),
        ("Tesla V100-SXM2-16GB", "V100 SXM 16 GB", 125, 16),
        ("NVIDIA V100-SXM2-32GB", "V100 SXM 32 GB", 125, 32),
        ("Tesla V100-PCIE-16GB", "V100 PCIe 16 GB", 112, 16),
        ("Tesla V100S-PCIE-32GB", "V100S", 130, 32),
        ("Tesla T4", "T4", 65, 16),
        ("NVIDIA T4", "T4", 65, 16),
        ("NVIDIA A100-SXM4-40GB", "A100 SXM 40 GB", 312, 40),
        ("A100-SXM4-40GB", "A100 SXM 40 GB", 312, 40),
        ("A100-SXM-80GB", "A100 SXM 80 GB", 312, 80),
        ("NVIDIA A100-PCIE-40GB", "A100 PCIe 40 GB", 312, 40),
        ("NVIDIA A100 80GB PCIe", "A100 PCIe 80 GB", 312, 80),
        ("NVIDIA A100-PCIE-80GB", "A100 PCIe 80 GB", 312, 80),
        ("NVIDIA A10", "A10", 125, 24),
        ("NVIDIA A10G", "A10G", 70, 24),
        ("NVIDIA GeForce RTX 3090", "RTX 3090", 71, 24),
        ("GeForce RTX 3090", "RTX 3090", 71, 24),
        ("NVIDIA RTX A6000", "RTX A6000", 154.8, 48),
        ("NVIDIA L4", "L4", 121, 24),
        ("NVIDIA L40S", "L40S", 362, 48),
        ("NVIDIA GeForce RTX 4090", "RTX 4090", 165.2, 24),
        ("NVIDIA H100 80GB HBM3", "H100 SXM", 989.4, 80),
        ("NVIDIA H100 PCIe", "H100 PCIe", 756, 80),
        ("NVIDIA H100 NVL", "H100 NVL", 835.5, 94),
        ("NVIDIA H200", "H200 SXM", 989.4, 141),
        ("NVIDIA H200 NVL", "H200 NVL", 835.5, 141),
        ("NVIDIA B200", "B200", 2250, 180),
        ("NVIDIA GeForce RTX 5090", "RTX 5090", 209.5, 32),
    ],
)
def test_a_kind_that_jax_reports_has_the_published_peaks(kind, name, teraflops, gigabytes):
    chip = find_chip(kind)
    assert chip.name == name
    assert chip.flops == pytest.approx(teraflops * 1e12)
    assert chip.memory == pytest.approx(gigabytes * 1e9)


@pytest.mark.parametrize(
    "kind",
    [
        "cpu",
        "",
        "NVIDIA",
        "NVIDIA A100-SXM4-64GB",
        "NVIDIA GeForce RTX 3090 Ti",
        "NVIDIA GeForce RTX 4090 Laptop GPU",
        "NVIDIA GeForce RTX 5090 D",
        "NVIDIA H100 80GB HBM3 MIG 1g.10gb",
        "NVIDIA RTX 6000 Ada Generation",
        "NVIDIA L40",
        "GRID A100-40C",
        "AMD Instinct MI300X",
    ],
)
def test_a_kind_that_only_resembles_a_listed_one_is_unknown(kind):
    assert find_chip(kind) is None


def test_no_two_kinds_are_told_apart_by_their_brand_alone():
    assert len(_BY_WORDS) == len(_CHIPS)


def test_every_peak_is_in_operations_and_bytes_a_second():
    for chip in _CHIPS.values():
        assert 5e13 < chip.flops < 5e15, chip
        assert 1e10 < chip.memory < 1e12, chip
        assert 1e11 < chip.bandwidth < 1e13, chip
        assert chip.link is None or 1e11 <= chip.link < 1e12, chip

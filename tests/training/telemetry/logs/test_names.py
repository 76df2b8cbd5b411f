"""What TensorBoard calls the values of the log."""

import re

import pytest

from fsdit.training.telemetry.goodput import PARTS
from fsdit.training.telemetry.logs.names import LAYOUT, charts, shown

LOGGED = [
    "train/loss", "train/loss_average", "train/alignment", "train/contrastive", "train_ema/loss",
    "val/loss", "val/gap", "few_shot/top1", "few_shot_ema_0.999/top1", "samples/seen",
    "samples/unseen", "timing/mfu", "encoder_cache/hits", "train/grad_norm", "train/learning_rate",
    "train/loss_t3", "val/loss_t3", *(f"goodput/{part}" for part in PARTS), "condition/norm",
    "conditioning/time_norm", "layers/activation_rms/layer00", "attention/entropy",
    "attention/self_attention_entropy",
]  # fmt: skip


def test_each_value_has_a_numbered_section_and_a_name_of_its_own():
    names = [shown(name) for name in LOGGED]
    assert all(re.match(r"[1-9] [a-z][a-z -]*/.", name) for name in names), names
    assert len(set(names)) == len(names)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("val/loss", "few_shot/top1"),
        ("few_shot/top1", "samples/unseen"),
        ("samples/unseen", "samples/seen"),
        ("samples/seen", "timing/mfu"),
        ("timing/mfu", "train/grad_norm"),
        ("train/loss", "val/loss"),
        ("few_shot/top1", "few_shot_ema_0.999/top1"),
    ],
)
def test_what_matters_more_comes_first(first, second):
    assert shown(first) < shown(second)


def test_conditioning_is_one_section():
    sections = {shown(f"{name}/norm").partition("/")[0] for name in ("condition", "conditioning")}
    assert len(sections) == 1


def test_heads_have_no_charts_of_their_own():
    row = {"train/loss": 1.0, "attention/self_attention_entropy/layer00_head01": 2.0}
    assert charts(row) == {"1 loss/train": 1.0}


def test_an_unknown_value_keeps_its_name():
    assert shown("mine/value") == "mine/value"


def test_each_chart_of_several_lines_finds_names_that_are_shown():
    patterns = [pattern for patterns in LAYOUT.values() for pattern in patterns]
    logged = [*LOGGED, *(f"layers/{n}/layer11" for n in ("activation_mean_abs", "modulation_norm"))]
    for pattern in patterns:
        assert any(re.fullmatch(pattern, shown(name)) for name in logged), pattern
    assert not any(re.fullmatch(p, "7 goodput/wall_seconds") for p in patterns)

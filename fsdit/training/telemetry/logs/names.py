"""Names of the logged values: those of metrics.jsonl, and those that TensorBoard shows.

TensorBoard sorts its sections by name. A number in front of each puts first what a person looks
at first: loss, quality, pictures, speed. Scripts read metrics.jsonl, whose names stay.
"""

from collections.abc import Mapping

from fsdit.training.telemetry.goodput import PARTS

VALIDATION_LOSS = "val/loss"
SAMPLES_UNSEEN, SAMPLES_SEEN = "samples/unseen", "samples/seen"
ENTROPY = "attention/entropy"

_SHOWN = {
    "train/loss": "1 loss/train",
    "train/loss_average": "1 loss/train average",
    "train/contrastive": "1 loss/contrastive term",
    "train/alignment": "1 loss/alignment term",
    "train_ema/loss": "1 loss/train EMA",
    VALIDATION_LOSS: "1 loss/validation",
    "val/gap": "1 loss/validation minus train EMA",
    SAMPLES_UNSEEN: "3 samples/classes never seen",
    SAMPLES_SEEN: "3 samples/classes of training",
    ENTROPY: "9 layers/attention entropy",
}
# The first beginning that fits a name is replaced.
_SECTIONS = (
    ("few_shot/", "2 few-shot quality/"),
    ("timing/", "4 speed/"),
    ("encoder_cache/", "4 speed/encoder_cache_"),
    ("train/loss_t", "6 loss by time/train_t"),
    ("val/loss_t", "6 loss by time/validation_t"),
    ("train/", "5 optimizer/"),
    ("goodput/", "7 goodput/"),
    ("condition/", "8 conditioning/"),
    ("conditioning/", "8 conditioning/"),
    ("layers/", "9 layers/"),
    ("attention/", "9 layers/"),
)
# Charts of several lines in the tab "Custom scalars": title -> patterns of names in TensorBoard.
LAYOUT = {
    "loss": ("1 loss/train average", "1 loss/train EMA", "1 loss/validation"),
    "training loss by time": (r"6 loss by time/train_t\d",),
    "validation loss by time": (r"6 loss by time/validation_t\d",),
    "where time goes": (rf"7 goodput/({'|'.join(PARTS)})",),
    **{
        f"{name.replace('_', ' ')} of layers": (rf"9 layers/{name}/layer\d+",)
        for name in ("activation_rms", "activation_mean_abs", "modulation_norm")
    },
}
_AVERAGE = "few_shot_ema_"  # before the decay of a further average
_ATTENTION = "attention/"


def shown(name: str) -> str:
    """The name in TensorBoard of a value that metrics.jsonl calls `name`."""
    if name in _SHOWN:
        return _SHOWN[name]
    if name.startswith(_AVERAGE):
        decay, _, metric = name.removeprefix(_AVERAGE).partition("/")
        return f"2 few-shot quality/{metric} EMA {decay}"
    for beginning, section in _SECTIONS:
        if name.startswith(beginning):
            return section + name.removeprefix(beginning)
    return name


def charts(row: Mapping[str, float]) -> dict[str, float]:
    """The scalars of a line of metrics.jsonl that TensorBoard gets, by their names there.

    It gets no chart for each head of attention, but a picture and a histogram of all.
    """
    return {shown(name): value for name, value in row.items() if not name.startswith(_ATTENTION)}

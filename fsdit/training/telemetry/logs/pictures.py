"""Pictures of a run that explain themselves: samples with captions, a map of attention."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw, ImageFont

from fsdit.data.pictures import episode_grid

_CELL = 96  # pixels of a shown image, at least
_TEXT = 0.24  # height of captions, in cells: TensorBoard shows pictures small
_SMALLEST = 8  # pixels of the text of captions
_MOST_NUMBERS = 16  # layers, and heads, of a map that has a number in each cell
_DPI = 100
_Grey = UInt8[np.ndarray, "Y X 1"]


def sample_picture(
    heading: str,
    supports: UInt8[np.ndarray, "B K H W C"],
    columns: Mapping[str, UInt8[np.ndarray, "B H W C"]],
) -> UInt8[np.ndarray, "Y X C"]:
    """A row for each episode: supports, a bar, then the columns, each below its caption."""
    grid = episode_grid(supports, list(columns.values()))
    _, count, size, width, channels = supports.shape
    zoom = max(1, math.ceil(_CELL / size))
    grid = grid.repeat(zoom, 0).repeat(zoom, 1)
    cell, bar = (width + 2) * zoom, 3 * zoom
    above = [(0, count * cell, f"{count} support{'s' if count > 1 else ''}")]
    for i, caption in enumerate(columns):
        left = count * cell + bar + i * cell
        above.append((left, left + cell, caption.replace(" ", "\n")))
    height, across = round(_TEXT * cell), (0, grid.shape[1], heading)
    strips = _strip([across], height, 1), _strip(above, height, 2)
    return np.concatenate([*(strip.repeat(channels, -1) for strip in strips), grid])


def _strip(texts: Sequence[tuple[int, int, str]], height: int, lines: int) -> _Grey:
    """A white strip with each text (left, right, text) in the middle of its columns.

    height: pixels of a line of text. The strip is as wide as the texts reach.
    """
    strip = Image.new("L", (max(right for _, right, _ in texts), int(1.35 * height * lines)), 255)
    draw = ImageDraw.Draw(strip)
    for left, right, text in texts:
        middle = (left + right) / 2, strip.height / 2
        font = _font(text, right - left - 4, height)
        draw.text(middle, text, fill=40, font=font, anchor="mm", align="center")
    return np.asarray(strip)[..., None]


def _font(text: str, width: int, height: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """The largest font up to `height` in which no line is wider than `width`, or the smallest."""
    for size in range(height, _SMALLEST, -1):
        font = ImageFont.load_default(size)
        if max(map(font.getlength, text.splitlines())) <= width:
            return font
    return ImageFont.load_default(_SMALLEST)


def entropy_map(
    entropies: Mapping[str, tuple[Float[np.ndarray, "L heads"], int]],
) -> UInt8[np.ndarray, "Y X 3"]:
    """A map of layers by heads for each kind of attention, one below the other.

    entropies: name -> mean entropy of the rows of attention in nats, and the number of tokens
    attended to. Colours go from 0, which looks at one token, to the logarithm of that number,
    which looks at all alike; so they mean the same at every step.
    """
    # Slow to import, and the first evaluation comes long after the start.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    layers, heads = max(values.shape for values, _ in entropies.values())
    width = max(1.6 + 0.42 * min(heads, _MOST_NUMBERS), 3.6)
    height = max(0.9 + 0.24 * min(layers, _MOST_NUMBERS), 1.8)
    figure = Figure((width, len(entropies) * height), _DPI, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    for axes, (name, (values, tokens)) in zip(
        np.ravel(figure.subplots(len(entropies), 1)), entropies.items(), strict=True
    ):
        most = max(math.log(tokens), 1e-6)
        image = axes.imshow(values, vmin=0.0, vmax=most, cmap="viridis", aspect="auto")
        axes.set_title(f"{name.replace('_', ' ')}, nats", fontsize=10)
        axes.set_xlabel("head")
        axes.set_ylabel("layer")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.yaxis.get_major_locator().set_params(integer=True)
        bar = figure.colorbar(image, ax=axes, ticks=[0.0, most])
        bar.ax.set_yticklabels(["one token", f"all {tokens}"])
        if max(values.shape) <= _MOST_NUMBERS:
            for (layer, head), value in np.ndenumerate(values):
                colour = "black" if value > 0.6 * most else "white"
                axes.text(head, layer, f"{value:.1f}", ha="center", va="center", color=colour,
                          fontsize=8)  # fmt: skip
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()

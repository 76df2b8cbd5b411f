"""The result of an evaluation: results.json, a picture, and one page of HTML."""

import base64
import dataclasses
import html
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from fsdit.config import flatten
from fsdit.data.layout import write_json
from fsdit.data.pictures import save_picture
from fsdit.evaluation.protocol import Protocol

_PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>{title}</title>
<style>
body {{ font: 16px/1.5 sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem }}
td {{ padding: 0 2rem 0 0 }}
img {{ max-width: 100% }}
</style>
<h1>{title}</h1>
<h2>Top-1 retrieval</h2>
<p>The share of images whose nearest real image of the split, in pixels and without the
episode's own supports, is right: of the class or of one that shares a pixel-identical
image with it, as some characters of different scripts do; then, of the very class.</p>
<table>{scores}</table>
<h2>Drawings</h2>
<p>Each row is an episode: its supports, then drawings from them.</p>
<img alt="supports and drawings" src="data:image/png;base64,{picture}">
<h2>Protocol</h2>
<table>{protocol}</table>
</html>
"""


def write(
    directory: Path,
    name: str,
    step: int,
    protocol: Protocol,
    scores: dict[str, dict[str, float]],
    picture: UInt8[np.ndarray, "Y X C"],
) -> None:
    """Writes drawings.png, results.json and report.html, each whole or not at all."""
    directory.mkdir(parents=True, exist_ok=True)
    save_picture(directory / "drawings.png", picture, zoom=3)
    facts = {"step": step, **dataclasses.asdict(protocol)}
    write_json(
        directory / "results.json",
        {"name": name, "step": step, "protocol": facts, "retrieval": scores},
    )
    page = _PAGE.format(
        title=html.escape(f"{name}: {protocol.shots}-shot drawings of {protocol.split} classes"),
        scores=_rows(
            {k: f"{v:.3f} / {scores['top1_exact'][k]:.3f}" for k, v in scores["top1"].items()}
        ),
        picture=base64.b64encode((directory / "drawings.png").read_bytes()).decode(),
        protocol=_rows(flatten(facts)),
    )
    partial = directory / "report.html.partial"
    partial.write_text(page)
    partial.replace(directory / "report.html")


def _rows(values: dict[str, Any]) -> str:
    return "".join(
        f"<tr><td>{html.escape(key.replace('_', ' '))}</td><td>{html.escape(str(value))}</td></tr>"
        for key, value in values.items()
    )

"""The model card of an export: what it says, and that text of others stays text."""

import dataclasses
import json

import jax
import numpy as np
import pytest
import yaml

from fsdit.config import Config, DataConfig, EncoderConfig, ModelConfig
from fsdit.data.images.photos import Preparation
from fsdit.data.run_dataset import DatasetFacts
from fsdit.errors import ConfigError, DataError
from fsdit.evaluation import model_card
from fsdit.evaluation.results import write_results
from fsdit.features.frozen import Frozen
from fsdit.models.spec import ModelSpec
from fsdit.sampling.generator import Generator
from tests.evaluation.results_example import results

CONFIG = Config(
    name="mine",
    data=DataConfig(dataset_dir="/home/me/secret/icons", batch_size=8, shots=2),
    model=ModelConfig(
        hidden_size=16,
        depth=1,
        num_heads=2,
        patch_size=4,
        num_latents=2,
        encoder=EncoderConfig(patch_size=4, hidden_size=16, depth=1, num_heads=2),
        dtype="float32",
    ),
)
FACTS = DatasetFacts(
    8, 1, Preparation("#204060", "pad"), {"train": 1200, "test": 34}, {"train": 5, "test": 6}, {}
)


def generator(config=CONFIG, **more):
    spec = ModelSpec(CONFIG.model, 8, 1)
    shapes = jax.tree.map(lambda a: np.zeros(a.shape, a.dtype), spec.abstract_params())
    return Generator(config, spec, Frozen(), shapes, 2400, **more)


def card(model=None, facts=FACTS, found=(), licence=""):
    """(front matter, text) of a card."""
    model = model or generator(preparation=facts.preparation, ema_decay=0.999)
    text = model_card.render(model, facts, found, licence)
    start, matter, body = text.split("---\n", 2)
    assert start == ""
    return yaml.safe_load(matter), body


def rows(body, heading):
    """The cells of the tables under a heading, without those that begin a table."""
    part = body.split(f"## {heading}\n")[1].split("\n## ")[0]
    lines = [line for line in part.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]


def test_the_front_matter_is_that_of_the_hub():
    matter, _ = card(licence="cc-by-4.0")
    assert matter["license"] == "cc-by-4.0" and card()[0]["license"] == "unknown"
    assert matter["library_name"] == "fsdit" and "few-shot" in matter["tags"]
    assert matter["datasets"] == ["icons"] and "base_model" not in matter


def test_a_card_says_what_is_known_and_no_path_of_a_machine():
    _, body = card()
    assert "secret" not in body and "2,400, decay 0.999" in body
    assert ["train", "1,200", "5"] in rows(body, "Data")
    assert "neither the sources of its images nor their licences" in body
    assert "8 x 8 by `pad`, on `\\#204060` where they are transparent or padded" in body
    assert "were not evaluated" in body
    unknown = dataclasses.replace(FACTS, preparation=None)
    assert "was not recorded" in card(facts=unknown)[1]


def test_frozen_networks_are_named_by_hub_id_or_folder():
    encoder = EncoderConfig(name="frozen", location="google/siglip2")
    codec = dataclasses.replace(CONFIG.model.codec, name="autoencoder_kl", location="/home/me/vae")
    model = dataclasses.replace(CONFIG.model, encoder=encoder, codec=codec)
    matter, body = card(generator(dataclasses.replace(CONFIG, model=model)))
    assert matter["base_model"] == ["google/siglip2"]
    assert "* encoder: google/siglip2\n* codec: vae\n" in body and "/home" not in body


def test_text_of_others_is_shown_and_not_obeyed():
    sources = {"a | b\n# c": {"license": "<b>MIT</b>", "author": "[x](y) `z`\x1b[31m"}}
    facts = dataclasses.replace(FACTS, sources=sources)
    config = dataclasses.replace(CONFIG, name='m: "\n---\n# x')
    matter, body = card(generator(config), facts, licence='x"\n- y')
    assert matter["license"] == 'x"\n- y'
    assert "\n# c" not in body and "\n# x" not in body and "<b>" not in body and "\x1b" not in body
    assert "\\<b\\>MIT\\</b\\>" in body and "\\[x\\](y)" in body


def test_figures_are_those_of_the_results(tmp_path):
    found = dataclasses.replace(results(np.random.default_rng(0), ["a", "b"]), ema_decay=0.999)
    _, body = card(found=[found])
    table = found.tables[0]
    top1 = table.scores["top1"]
    row = next(row for row in rows(body, "Figures") if row[0].startswith("top-1 retrieval"))
    assert [cell.split(" ")[0] for cell in row[1:]] == [
        f"{top1[name].value:.4g}" for name in ("samples", "real", "copied_support")
    ]
    assert body.count("`fsdit.evaluate`, unseen classes (test)") == 2  # at the run's own guidance
    fd = next(row for row in rows(body, "Figures") if row[0] == "FD")
    assert fd[2] == "-"  # of real images there is no FD


def test_evaluations_of_other_weights_are_left_out_or_refused(tmp_path):
    found = results(np.random.default_rng(0), ["a", "b"])
    for name, step, decay in (("test", 2400, 0.999), ("early", 600, 0.999), ("ema", 2400, 0.9)):
        (tmp_path / name).mkdir()
        own = dataclasses.replace(found, step=step, ema_decay=decay)
        write_results(tmp_path / name / "results.json", own)
    model = generator(ema_decay=0.999)
    (only,) = model_card.find_results(tmp_path, model, None)
    assert only.step == 2400 and only.ema_decay == 0.999
    assert model_card.find_results(tmp_path, model, []) == []
    assert model_card.find_results("nowhere", model, [f"{tmp_path}/test/"]) == [only]
    for name in ("early", "ema"):
        with pytest.raises(ConfigError, match=r"--results=.* is of step \d+, EMA decay 0\.9"):
            model_card.find_results(tmp_path, model, [str(tmp_path / name)])
    (tmp_path / "test" / "results.json").write_text(json.dumps({"tables": 3}))
    with pytest.raises(DataError, match="not the results of an evaluation"):
        model_card.find_results(tmp_path, model, None)

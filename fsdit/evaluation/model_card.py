"""The README.md of an exported model, a model card in the form of the Hugging Face hub.

Front matter in YAML, then what a stranger has to know: data, figures, training, how to load it,
how supports are prepared, and limits. `model_card.md.jinja` is its text. The front matter is
that of the page "Model Cards" of the hub's documentation.
"""

import json
import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import jinja2

from fsdit import storage
from fsdit.config import Config
from fsdit.data.records import num_supports
from fsdit.data.run_dataset import DatasetFacts
from fsdit.errors import ConfigError
from fsdit.evaluation.metrics import METRICS, SHORT
from fsdit.evaluation.results import IMAGE_SETS, Results, Score, Table, read_results
from fsdit.sampling.export_files import tensors
from fsdit.sampling.generator import Generator
from fsdit.text import printable

_TAGS = ("few-shot", "image-generation", "flow-matching", "diffusion-transformer", "jax")
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)
# Characters that Markdown or HTML would obey in a name.
_OBEYED = re.compile(r"([\\`*_{}\[\]<>#|~])")
_COLUMNS = ("samples", "real", "copied_support")  # the image sets of the card's tables


def find_results(
    workdir: storage.PathLike, generator: Generator, folders: Sequence[str] | None
) -> list[Results]:
    """The evaluations of the generator's weights.

    folders: where `fsdit.evaluate` wrote them; None: those folders of the workdir that hold an
    evaluation of this step and average. Raises DataError, or ConfigError for one of other weights.
    """
    if folders is None:
        files = sorted(storage.place(workdir).glob("*/results.json"))
        found = [read_results(storage.local_file(str(file))) for file in files]
        return [results for results in found if _is_of(results, generator)]
    found = []
    for folder in folders:
        results = read_results(storage.local_file(f"{folder.rstrip('/')}/results.json"))
        if not _is_of(results, generator):
            raise ConfigError(
                f"--results={folder} is of step {results.step}, EMA decay {results.ema_decay}, the "
                f"export is of step {generator.step}, decay {generator.ema_decay}: evaluate these"
            )
        found.append(results)
    return found


def _is_of(results: Results, generator: Generator) -> bool:
    averages = (None, generator.ema_decay)  # older results do not say
    return results.step == generator.step and results.ema_decay in averages


def render(
    generator: Generator, dataset: DatasetFacts, results: Sequence[Results], licence: str
) -> str:
    """The text of README.md. licence: an identifier of the hub; "": the card says `unknown`."""
    environment = jinja2.Environment(
        undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"yaml": json.dumps, "plain": _plain, "score": _score}
    template = Path(__file__).with_name("model_card.md.jinja").read_text("utf-8")
    config = generator.config
    return environment.from_string(template).render(
        generator=generator,
        config=config,
        dataset=dataset,
        name=config.name or "model",
        data_name=Path(config.data.dataset_dir).name,
        shots=num_supports(config.data.shots),
        licence=licence or "unknown",
        tags=_TAGS,
        base_models=[each for each in _frozen(config).values() if _HUB_ID.fullmatch(each)],
        frozen=_frozen(config),
        parameters=sum(leaf.size for leaf in tensors(generator.params).values()),
        results=results,
        tables=_tables,
        rows=_rows,
        columns=[IMAGE_SETS[name] for name in _COLUMNS],
    )


def _frozen(config: Config) -> dict[str, str]:
    """Hub ids, or names of folders, of the frozen networks, which an export does not hold."""
    model = config.model
    networks = {"encoder": (model.encoder, "learned"), "codec": (model.codec, "pixels")}
    return {
        kind: at.location if _HUB_ID.fullmatch(at.location) else Path(at.location).name
        for kind, (at, own) in networks.items()
        if at.name != own
    }


def _tables(results: Results) -> list[Table]:
    """The tables of unseen classes at the run's own guidance scale, or the first one."""
    own = results.sampling.guidance_scale
    chosen = [t for t in results.tables if t.guidance_scale == own and not t.seen]
    return chosen or [results.tables[0]]


def _rows(table: Table) -> Iterator[tuple[str, list[Score | None]]]:
    """(label of the metric, its scores in the columns of the card) for the short table."""
    for name in SHORT:
        if scores := table.scores.get(name):
            yield METRICS[name].label, [scores.get(column) for column in _COLUMNS]


def _score(score: Score | None) -> str:
    if score is None or not math.isfinite(score.value):
        return "-"
    if score.low is None or score.high is None:
        return f"{score.value:.4g}"
    return f"{score.value:.4g} ({score.low:.4g} to {score.high:.4g})"


def _plain(text: object) -> str:
    """Text of others as one line in which Markdown finds nothing to obey."""
    return _OBEYED.sub(r"\\\1", printable(str(text)))

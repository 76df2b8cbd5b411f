"""The Kaggle notebook runs from its first cell to its last, and a second session goes on."""

import json
from pathlib import Path

import nbformat
import pytest
from ipykernel.kernelspec import write_kernel_spec
from nbclient import NotebookClient
from PIL import Image

from tests.data_prep.conversion.photos import class_folders
from tests.programs import ROOT, environment

NOTEBOOK = ROOT / "docs" / "kaggle.ipynb"
STEPS = 6


def notebook() -> nbformat.NotebookNode:
    return nbformat.read(NOTEBOOK, as_version=4)


def parameters(source: str) -> dict[str, object]:
    """The values of the variables that the source of a cell sets."""
    values = {}
    exec(source, values)
    return {name: value for name, value in values.items() if name.isupper()}


def parameters_cell(nb: nbformat.NotebookNode) -> nbformat.NotebookNode:
    (cell,) = (c for c in nb.cells if "parameters" in c.metadata.get("tags", ()))
    return cell


@pytest.fixture
def kernel(tmp_path, monkeypatch) -> str:
    """The name of a kernel that is this interpreter and sees eight host devices."""
    write_kernel_spec(tmp_path / "jupyter" / "kernels" / "tests")
    for name, value in environment(devices=8).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(tmp_path / "jupyter" / "runtime"))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    return "tests"


def session(kernel: str, folder: Path, changes: dict[str, object]) -> nbformat.NotebookNode:
    """Runs all cells in `folder`, with changed parameters."""
    nb = notebook()
    cell = parameters_cell(nb)
    known = parameters(cell.source)
    assert changes.keys() <= known.keys()
    cell.source = "\n".join(f"{name} = {value!r}" for name, value in (known | changes).items())
    client = NotebookClient(
        nb,
        kernel_name=kernel,
        startup_timeout=300,
        timeout=900,
        resources={"metadata": {"path": str(folder)}},
    )
    return client.execute()


def printed(nb: nbformat.NotebookNode) -> str:
    """All that the cells wrote."""
    outputs = (output for cell in nb.cells for output in cell.get("outputs", ()))
    return "".join(output.get("text", "") for output in outputs)


def test_the_notebook_is_valid_and_stores_no_outputs():
    nb = notebook()
    nbformat.validate(nb)
    assert (nb.nbformat, nb.nbformat_minor) == (4, 5)
    for cell in nb.cells:
        assert not cell.get("outputs") and cell.get("execution_count") is None
    assert nb.cells.index(parameters_cell(nb)) == 1


def test_the_notebook_stops_before_a_session_of_nine_hours_ends():
    values = parameters(parameters_cell(notebook()).source)
    assert 0 < values["STOP_AFTER_MINUTES"] <= 9 * 60 - 30
    assert (ROOT / values["EXPERIMENT"]).is_file()


@pytest.mark.large
def test_two_sessions_of_the_notebook_train_without_a_gap_and_sample(tmp_path, weights, kernel):
    images = class_folders(tmp_path / "input", classes=8, images=8)
    small = {
        "INPUT": str(images),
        "CODE": str(ROOT),
        "INSTALL": "none",
        "CONVERSION": "--num_classes=4,2,2 --image_size=32 --sets_per_class=4 --workers=1",
        "EXPERIMENT": "experiments/miniimagenet_tiny.py",
        "ENCODER": str(weights / "siglip"),
        "CODEC": str(weights / "vae"),
        "SETTINGS": f"--config.train.num_steps={STEPS} --config.train.log_interval=1"
        f" --config.train.eval_interval={STEPS} --config.mesh.data=1 --config.mesh.fsdp=-1",
    }

    def run_session(name: str, **changes: object) -> tuple[Path, str]:
        """(output folder, text) of a session whose other folders are new."""
        folder = tmp_path / name
        output = folder / "working"
        output.mkdir(parents=True)
        own = {
            "OUTPUT": str(output),
            "SCRATCH": str(folder / "temp"),
            "WORKDIR": str(output / "run"),
        }
        return output, printed(session(kernel, folder, small | own | changes))

    first, text = run_session("first", STOP_AFTER_MINUTES=0)
    assert "saved: the next session goes on from here" in text
    stopped = steps(first)
    assert 0 < len(stopped) < STEPS
    for path in first.rglob("*"):  # an input folder is read-only
        path.chmod(0o555 if path.is_dir() else 0o444)

    second, text = run_session("second", LAST_SESSION=str(first))
    assert f"after step {stopped[-1]}" in text and "finished" in text
    assert steps(second) == list(range(1, STEPS + 1))
    for output in (first, second):
        with Image.open(output / "samples.png") as picture:
            picture.load()
            assert picture.width > picture.height > 32


def steps(output: Path) -> list[int]:
    """The steps of metrics.jsonl."""
    lines = (output / "run" / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["step"] for line in lines]

"""fsdit.sample and fsdit.export as their users start them."""

import json
import re

import numpy as np
import pytest
import yaml
from PIL import Image

import fsdit
from fsdit.config import SamplingConfig
from fsdit.data.supports import from_episodes
from fsdit.training.run import saved_config
from tests.conftest import one_block, small_disk_at
from tests.programs import run_module
from tests.training.checkpoints.saved_runs import save_run

pytestmark = pytest.mark.medium

SIZE = 24


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder of pictures, to which the fixtures `folder` and `exported` add a run."""
    folder = tmp_path_factory.mktemp("sample")
    (folder / "pictures").mkdir()
    random = np.random.default_rng(0)
    for name in "ab":
        pixels = random.integers(0, 256, (40, 30), np.uint8)
        Image.fromarray(pixels).save(folder / "pictures" / f"{name}.png")
    return folder


@pytest.fixture
def folder(made, small_config):
    if not (made / "run").exists():
        save_run(made / "run", one_block(small_config))
    return made


@pytest.fixture
def exported(folder):
    if not (folder / "exported").exists():
        done = run_module("fsdit.export", f"--workdir={folder}/run", f"--output={folder}/exported")
        assert done.returncode == 0, done.stderr
        assert "EMA weights of step 5" in done.stdout
        _, matter, card = (folder / "exported" / "README.md").read_text().split("---\n", 2)
        assert yaml.safe_load(matter)["license"] == "unknown"
        assert "were not evaluated" in card and "by `center_crop`, on `white`" in card
    return folder / "exported"


def sample(*flags, devices=8):
    return run_module("fsdit.sample", *flags, devices=devices)


def singles(facts, output):
    return np.stack([np.asarray(Image.open(output.parent / name)) for name in facts["singles"]])


def test_samples_of_pictures_are_repeated_from_their_json_by_an_export(folder, exported, tmp_path):
    output = tmp_path / "grid.png"
    settings = ("--num_samples=10", "--seed=7", "--singles", "--config.sampling.solver=ab2")
    done = sample(
        f"--workdir={folder}/run",
        f"--supports={folder}/pictures/a.png,{folder}/pictures/b.png",
        f"--output={output}",
        *settings,
    )
    assert done.returncode == 0, done.stderr
    assert "10/10" in done.stderr, "no progress bar"
    facts = json.loads(output.with_suffix(".json").read_text())
    samples = singles(facts, output)
    assert samples.shape == (10, SIZE, SIZE) and len(np.unique(samples, axis=0)) == 10
    # The ten samples wrap into two rows of five, beside the two supports in one column.
    with Image.open(output) as picture:
        cell = SIZE + 2
        assert picture.size == (4 * (6 * cell + 3), 4 * 2 * cell)

    generator = fsdit.load(exported)
    (origin,) = facts["supports"]
    again = generator.generate(
        generator.read_supports(origin["files"]),
        facts["num_samples"],
        seed=facts["seed"],
        batch_size=facts["batch_size"],
        sampling=SamplingConfig(**facts["sampling"]),
    )
    np.testing.assert_array_equal(again[..., 0], samples)
    assert facts["step"] == 5 and facts["model"] == str(folder / "run")

    other = tmp_path / "exported.png"
    done = sample(
        f"--model={exported}", f"--supports={folder}/pictures", f"--output={other}", *settings
    )
    assert done.returncode == 0, done.stderr
    assert other.read_bytes() == output.read_bytes()


def test_samples_for_episodes_of_a_split_stand_beside_their_supports(folder, tmp_path):
    output = tmp_path / "grid.png"
    done = sample(
        *(f"--workdir={folder}/run", "--split=val", "--episode=3", "--episode=0"),
        *(f"--output={output}", "--num_drawings=2", "--singles"),  # old name of --num_samples
        devices=1,
    )
    assert done.returncode == 0, done.stderr
    facts = json.loads(output.with_suffix(".json").read_text())
    assert facts["supports"] == [{"split": "val", "episode": n} for n in (3, 0)]
    samples = singles(facts, output)
    assert len(np.unique(samples, axis=0)) == 4
    with Image.open(output) as picture:
        pixels = np.asarray(picture)[::4, ::4]
    assert (pixels[SIZE + 2 : SIZE + 5] == 90).all()
    cells = np.stack([pixels[: SIZE + 2], pixels[SIZE + 5 :]])
    sets = from_episodes(saved_config(folder / "run", {}), "val", [3, 0])
    for row, each, pair in zip(cells, sets, samples.reshape(2, 2, SIZE, SIZE), strict=True):
        inner = row[1:-1, : 5 * (SIZE + 2)].reshape(SIZE, 5, SIZE + 2)[:, :, 1:-1]
        np.testing.assert_array_equal(inner.swapaxes(0, 1), each.images[..., 0])
        right = row[1:-1, -2 * (SIZE + 2) :].reshape(SIZE, 2, SIZE + 2)[:, :, 1:-1]
        np.testing.assert_array_equal(right.swapaxes(0, 1), pair)


def test_samples_between_two_sets_are_a_grid_of_places_and_noises(folder, exported, tmp_path):
    output = tmp_path / "grid.png"
    done = sample(
        *(f"--model={exported}", f"--supports={folder}/pictures/a.png"),
        *(f"--between={folder}/pictures/b.png", f"--output={output}"),
        *("--num_samples=3", "--num_between=2", "--seed=4", "--singles"),
        devices=1,
    )
    assert done.returncode == 0, done.stderr
    assert "warning: 1 supports" in done.stdout
    facts = json.loads(output.with_suffix(".json").read_text())
    np.testing.assert_allclose(facts["weights"], [0, 1 / 3, 2 / 3, 1])
    assert facts["between"] == {"files": [f"{folder}/pictures/b.png"]}
    samples = singles(facts, output).reshape(4, 3, SIZE, SIZE)
    with Image.open(output) as picture:
        pixels = np.asarray(picture)[::4, ::4]
    cell = SIZE + 2
    assert pixels.shape == (3 * cell, (1 + 4 + 1) * cell + 6)
    grid = pixels[:, cell + 3 : -cell - 3].reshape(3, cell, 4, cell)[:, 1:-1, :, 1:-1]
    np.testing.assert_array_equal(grid.transpose(2, 0, 1, 3), samples)


BAD = {
    "no model": (["--supports={pictures}"], "name either the --workdir of a run or an exported"),
    "two models": (
        ["--workdir={run}", "--model={run}", "--supports={pictures}"],
        "name either the --workdir",
    ),
    "no supports": (["--workdir={run}"], "name either --supports or an --episode"),
    "episode of an export": (["--model={run}", "--episode=1"], "--episode needs a --workdir"),
    "two second sets": (
        ["--workdir={run}", "--supports={pictures}", "--between={pictures}", "--between_episode=1"],
        "name either --between or a --between_episode",
    ),
    "between three sets": (
        ["--workdir={run}", "--episode=1", "--episode=2", "--between={pictures}"],
        "name one --episode and one second set",
    ),
    "no samples": (
        ["--workdir={run}", "--supports={pictures}", "--num_samples=0"],
        "flag --num_samples=0: .*",
    ),
    "no PNG": (
        ["--workdir={run}", "--supports={pictures}", "--output=grid.jpg"],
        "--output=grid.jpg must be a .png file in a folder that exists",
    ),
    "no folder": (
        ["--workdir={run}", "--supports={pictures}", "--output={pictures}/none/grid.png"],
        "--output=.*none/grid.png must be a .png file in a folder that exists",
    ),
    "no checkpoint": (["--workdir={pictures}", "--supports={pictures}"], "holds no checkpoint"),
    "no export": (["--model={pictures}", "--supports={pictures}"], "config.json: no such file"),
    "unknown model": (
        ["--model=glyps", "--supports={pictures}"],
        "glyps: no such folder, and no such model in the package, which has: glyphs",
    ),
    "no picture": (["--workdir={run}", "--supports={pictures}/c.png"], "c.png: No such file"),
    "no split": (["--workdir={run}", "--episode=0", "--split=more"], "no split 'more'"),
    "sampling": (
        ["--workdir={run}", "--supports={pictures}", "--config.sampling.num_steps=0"],
        "config.sampling.num_steps must be at least 1",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_reported_in_one_line_and_writes_nothing(folder, tmp_path, case):
    flags, message = BAD[case]
    flags = [f.format(run=folder / "run", pictures=folder / "pictures") for f in flags]
    if not any(f.startswith("--output") for f in flags):
        flags.append(f"--output={tmp_path}/grid.png")
    done = sample(*flags, devices=1)
    assert done.returncode == 1
    lines = [line for line in done.stderr.splitlines() if not line.startswith("W0")]
    assert len(lines) == 1 and re.match(f"error: .*{message}", lines[0]), done.stderr
    assert list(tmp_path.iterdir()) == []


def test_more_samples_than_the_disk_holds_leave_no_file(folder, tmp_path):
    with small_disk_at(tmp_path / "disk", size="20k") as disk:
        done = sample(
            *(f"--workdir={folder}/run", f"--supports={folder}/pictures"),
            *(f"--output={disk}/grid.png", "--num_samples=64"),
            devices=1,
        )
        assert done.returncode == 1
        assert "No space left on device" in done.stderr.splitlines()[-1]
        assert "Traceback" not in done.stderr
        assert list(disk.iterdir()) == []


def test_an_export_without_a_checkpoint_or_onto_a_full_folder_is_refused(folder, tmp_path):
    for workdir, output, message in (
        (folder / "pictures", tmp_path / "new", "holds no checkpoint; train one"),
        (folder / "run", folder / "pictures", "exists and is not empty: name a new folder"),
    ):
        done = run_module("fsdit.export", f"--workdir={workdir}", f"--output={output}")
        assert done.returncode == 1
        assert re.fullmatch(f"error: .*{message}.*\n", done.stderr), done.stderr
    assert list(tmp_path.iterdir()) == []
    assert len(list((folder / "pictures").iterdir())) == 2

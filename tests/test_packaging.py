"""What an installed package imports, holds and runs: from an editable install and a wheel."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest
import yaml

from tests.conftest import experiment_file, small_run
from tests.evaluation.report.page_reader import read_page
from tests.processes import losses
from tests.programs import ROOT, environment

PACKAGES = ("fsdit", "data_prep")

# Prints where the packages are, and what beside Python's files lies with the launchers, as JSON.
LAUNCHERS = """
import json
from importlib import resources

import data_prep
import fsdit

files = [file for file in resources.files("fsdit.launch").iterdir() if file.is_file()]
texts = {file.name: file.read_text() for file in files if not file.name.endswith(".py")}
print(json.dumps([data_prep.__file__, fsdit.__file__, texts]))
"""

# Loads the export that is named, and prints where the package is and what samples it makes.
SAMPLE = """
import sys

import numpy as np

import fsdit

model = fsdit.load(sys.argv[1])
samples = model.generate(np.zeros((5, 24, 24, 1), np.uint8), count=2, seed=0)
print(fsdit.__file__, samples.shape, samples.dtype)
"""


def run(*command: str | Path, cwd: Path, env: dict[str, str]) -> str:
    """The output of a command, which has to exit with 0."""
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def copy_sources(folder: Path) -> None:
    """Copies what a build reads, since a build leaves files beside it."""
    for name in PACKAGES:
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)


@pytest.mark.medium
def test_a_script_beside_a_clone_called_fsdit_imports_the_package(tmp_path):
    clone, site = tmp_path / "fsdit", tmp_path / "site"
    copy_sources(clone)
    run(sys.executable, ROOT / "tests" / "editable_wheel.py", tmp_path, cwd=clone, env={})
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)

    (tmp_path / "script.py").write_text("import fsdit\n\nprint(fsdit.load.__module__)\n")
    # Python's site module, too, puts the paths of .pth files after the script's folder.
    paths = [line for file in site.glob("*.pth") for line in file.read_text().splitlines()]
    assert paths == [str(clone)]
    code = "import sys, runpy; sys.path += sys.argv[1:]; runpy.run_path('script.py')"
    done = run(sys.executable, "-S", "-c", code, *paths, cwd=tmp_path, env={})
    assert done == "fsdit\n"


class Installed:
    """The wheel in a virtual environment of its own, far from the checkout.

    The environment finds libraries through a path to those of the tests. Python does not act on
    the .pth files of such a path, so the editable install that lies there stays unseen.
    """

    def __init__(self, folder: Path):
        source, self.folder = folder / "source", folder
        copy_sources(source)
        pip = (sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check")
        build = ("wheel", "--no-deps", "--no-index", "--no-build-isolation")
        run(*pip, *build, f"--wheel-dir={folder}", source, cwd=folder, env=dict(os.environ))
        shutil.rmtree(source)
        (self.wheel,) = folder.glob("*.whl")

        run(sys.executable, "-m", "venv", "--without-pip", folder / "venv", cwd=folder, env={})
        self.python = folder / "venv" / "bin" / "python"
        install = (f"--python={self.python}", "install", "--no-deps", "--no-index", self.wheel)
        run(*pip, *install, cwd=folder, env=dict(os.environ))
        code = "import sysconfig; print(sysconfig.get_path('purelib'))"
        self.site = Path(run(self.python, "-c", code, cwd=folder, env={}).strip())
        libraries = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
        (self.site / "libraries.pth").write_text("\n".join(libraries))

    def __call__(self, *arguments: str | Path) -> str:
        """The output of the environment's Python, which has to exit with 0."""
        variables = environment()
        del variables["PYTHONPATH"]
        return run(self.python, *arguments, cwd=self.folder, env=variables)

    def module(self, name: str, *flags: str) -> str:
        return self("-m", name, *flags)


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Installed:
    return Installed(tmp_path_factory.mktemp("installed"))


def files(*roots: Path) -> dict[str, bool]:
    """Files of packages, by path from the folder of the package: whether one can be executed."""
    return {
        str(path.relative_to(root.parent)): os.access(path, os.X_OK)
        for root in roots
        for path in root.rglob("*")
        if path.is_file() and path.suffix != ".pyc"
    }


@pytest.mark.medium
def test_a_wheel_installs_every_file_of_the_packages(installed):
    ours, theirs = (
        files(*(folder / name for name in PACKAGES)) for folder in (ROOT, installed.site)
    )
    assert theirs == ours


@pytest.mark.medium
def test_an_installed_package_finds_the_launchers_templates(installed):
    *modules, texts = json.loads(installed("-c", LAUNCHERS))
    assert all(Path(module).is_relative_to(installed.site) for module in modules)
    assert texts.keys() == {"README.md", "jobset.yaml", "slurm.sbatch", "tpu_vm.sh"}
    assert yaml.safe_load(texts["jobset.yaml"])["kind"] == "JobSet"
    assert texts["tpu_vm.sh"].startswith("#!/usr/bin/env bash\n")
    assert "#SBATCH" in texts["slurm.sbatch"]


@pytest.mark.large
def test_a_wheel_trains_evaluates_launches_exports_and_samples(installed):
    """From data to samples, as a user without the checkout runs the programs."""
    folder = installed.folder
    workdir, result, exported = folder / "run", folder / "result", folder / "exported"
    installed.module("data_prep.glyphs", f"--output_dir={folder / 'glyphs'}")
    experiment = experiment_file(folder / "experiment.py", small_run(folder / "glyphs"))
    flags = (f"--config={experiment}", f"--workdir={workdir}")
    few = ("--config.train.eval_interval=1000", "--config.checkpoint.interval=2")
    installed.module("fsdit.main", *flags, *few, "--config.train.num_steps=2")
    assert losses(workdir).keys() == {1, 2}
    launched = installed.module(
        "fsdit.launch.local", "--", *flags, *few, "--config.train.num_steps=4"
    )
    assert "[0] resuming" in launched
    assert losses(workdir).keys() == {1, 2, 3, 4}

    protocol = (
        "--split=val",
        "--config.evaluation.classes=24",
        "--config.evaluation.samples_per_episode=1",
    )
    run_flags = (f"--workdir={workdir}", f"--output={result}")
    installed.module("fsdit.evaluate", *run_flags, *protocol)
    assert read_page((result / "report.html").read_text()).all("table")

    installed.module("fsdit.export", f"--workdir={workdir}", f"--output={exported}")
    assert installed("-c", SAMPLE, exported).split(" ", 1) == [
        str(installed.site / "fsdit" / "__init__.py"),
        "(2, 24, 24, 1) uint8\n",
    ]

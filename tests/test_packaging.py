"""Imports of the package from an editable install."""

import shutil
import subprocess
import sys
import zipfile

import pytest

from tests.programs import ROOT


@pytest.mark.medium
def test_a_script_beside_a_clone_called_fsdit_imports_the_package(tmp_path):
    clone, site = tmp_path / "fsdit", tmp_path / "site"
    for name in ("fsdit", "data_prep"):
        shutil.copytree(ROOT / name, clone / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, clone)
    built = subprocess.run(
        [sys.executable, ROOT / "tests" / "editable_wheel.py", tmp_path],
        cwd=clone,
        env={},
        capture_output=True,
        text=True,
        check=False,
    )
    assert built.returncode == 0, built.stderr
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)

    (tmp_path / "script.py").write_text("import fsdit\n\nprint(fsdit.load.__module__)\n")
    # Python's site module, too, puts the paths of .pth files after the script's folder.
    paths = [line for file in site.glob("*.pth") for line in file.read_text().splitlines()]
    assert paths == [str(clone)]
    code = "import sys, runpy; sys.path += sys.argv[1:]; runpy.run_path('script.py')"
    done = subprocess.run(
        [sys.executable, "-S", "-c", code, *paths],
        cwd=tmp_path,
        env={},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "fsdit\n", done.stderr

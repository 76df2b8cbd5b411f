"""--help of every program: each flag that its source defines, and how settings are given."""

import ast
import re

import pytest

from fsdit.config import Config, flatten, to_dict
from tests.programs import ROOT, run_module

PROGRAMS = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for folder in ("fsdit", "data_prep")
    for path in (ROOT / folder).rglob("*.py")
    if "    program.run(main" in path.read_text()
)
# Functions that define a flag whose name is theirs: define_step defines --step.
NAMED = {"define_config": "config", "define_step": "step", "define_ema": "ema"}
SETTINGS = {"define_config", "define_overrides"}  # with these the program takes --config.a.b=v


def calls(module: str) -> dict[str, list[ast.Call]]:
    """Name of a function -> its calls in the program's file."""
    found = {}
    source = (ROOT / module.replace(".", "/")).with_suffix(".py").read_text()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            found.setdefault(node.func.attr, []).append(node)
    return found


def defined(module: str) -> set[str]:
    """The flags that the program's file defines."""
    found = set()
    for function, each in calls(module).items():
        if function in NAMED:
            found.add(NAMED[function])
        elif function.startswith(("DEFINE_", "define_")) and function not in SETTINGS:
            found |= {call.args[0].value for call in each}
    return found


def shown(text: str) -> set[str]:
    return set(re.findall(r"^  --(?:\[no\])?(\w+):", text, re.MULTILINE))


def test_programs_and_their_flags_are_found():
    assert {"fsdit.main", "fsdit.launch.local", "data_prep.verify"} <= set(PROGRAMS)
    assert {"workdir", "config", "start_over", "process_id"} <= defined("fsdit.main")
    assert {"step", "ema", "num_drawings"} <= defined("fsdit.sample")


@pytest.mark.medium
@pytest.mark.parametrize("module", PROGRAMS)
def test_help_names_every_flag_and_how_settings_are_given(module):
    done = run_module(module, "--help")
    assert done.returncode == 0 and done.stderr == ""
    assert shown(done.stdout) == defined(module)
    assert f"python -m {module} " in done.stdout
    takes_settings = not SETTINGS.isdisjoint(calls(module))
    for words in ("--config.train.num_steps=2000", "fsdit/config/settings", "experiments/*.py"):
        assert (words in done.stdout) == takes_settings


@pytest.mark.medium
def test_the_full_help_lists_every_setting_with_its_default():
    full = run_module("fsdit.evaluate", "--helpfull").stdout
    listed = dict(re.findall(r"^  --config\.([a-z]\S*?)=(\S*)", full, re.MULTILINE))
    values = flatten(to_dict(Config()))
    assert list(listed) == list(values)
    assert listed["train.num_steps"] == str(values["train.num_steps"])
    assert listed["model.scan_layers"] == "true" and listed["train.ema_decays"] == ""
    assert "--config.optimizer.method=adamw (adamw, muon)\n" in full


@pytest.mark.medium
def test_a_required_path_says_so_and_what_follows_two_dashes_is_not_asked_for():
    assert re.search(r"--workdir: [^-]* Required\.", run_module("fsdit.export", "-h").stdout)
    done = run_module("fsdit.launch.local", "--", "--help")
    assert done.returncode == 1 and "--workdir" in done.stderr

"""The links, files, commands, flags and settings that the documents name exist."""

import ast
import functools
import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from fsdit.config import Config, flatten, to_dict
from tests.programs import ROOT

PAGES = sorted(
    [
        *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "BUILD.md")),
        *ROOT.glob("docs/**/*.md"),
        *ROOT.glob("docs/**/*.ipynb"),
    ]
)
# A page that names files of other projects.
OTHERS = ROOT / "docs/decisions/style.md"
# Programs of other projects, whose flags are not checked.
FOREIGN = {"pytest"}
# Programs that hand what follows "--" on to another one.
PASSING_ON = {"fsdit.launch.local": "fsdit.main"}
MAX_LINES = {"README.md": 100, "BUILD.md": 150}
MAX_CELL = 150
SETTINGS = flatten(to_dict(Config()))

_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_SPAN = re.compile(r"`([^`\n]+)`")
_LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
_PATH = re.compile(
    r"\b(?:fsdit|data_prep|experiments|tests|docs)/[\w./-]*\.(?:py|md|sh|png|jinja|ipynb)"
)


def text_of(page: Path) -> str:
    """The text of a page. Of a notebook: its markdown cells."""
    if page.suffix != ".ipynb":
        return page.read_text()
    cells = json.loads(page.read_text())["cells"]
    return "\n\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "markdown")


def prose(page: Path) -> str:
    """The text of a page without its code blocks."""
    return _FENCE.sub("", text_of(page))


def code(page: Path) -> Iterator[str]:
    """The lines of the page's shell blocks, and its inline code."""
    for language, block in _FENCE.findall(text_of(page)):
        if language == "sh":
            yield from block.replace("\\\n", " ").splitlines()
    yield from _SPAN.findall(prose(page))


def commands(text: str) -> Iterator[tuple[str, list[str]]]:
    """(module, arguments) of each `python -m module ...` in a line; skips modules in capitals."""
    words = shlex.split(text, comments=True) if "python -m " in text else []
    for start, word in enumerate(words[:-2]):
        module = words[start + 2]
        if Path(word).name == "python" and words[start + 1] == "-m" and not module.isupper():
            yield module, words[start + 3 :]


def anchors(page: Path) -> set[str]:
    """Anchors of the page's headings, as GitHub makes them."""
    found: dict[str, int] = {}
    for heading in re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE):
        name = re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        found[name] = found.get(name, -1) + 1
    return {f"{name}-{i}" if i else name for name, n in found.items() for i in range(n + 1)}


def source(module: str) -> Path:
    return ROOT.joinpath(*module.split(".")).with_suffix(".py")


def calls(tree: ast.AST) -> Iterator[tuple[str, ast.Call]]:
    """(name of the function or method, call)."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute | ast.Name):
            function = node.func
            yield function.attr if isinstance(function, ast.Attribute) else function.id, node


# Functions whose first argument is the name of a flag.
_DEFINERS = ("DEFINE_", "define_path", "define_float")


def defined(tree: ast.AST) -> set[str]:
    """Flags that code defines; "config." stands for all settings."""
    found = set()
    for name, call in calls(tree):
        if name.startswith(_DEFINERS):
            flag = call.args[0].value
            found |= {flag, f"no{flag}"} if "bool" in name else {flag}
        elif name in shared_definers():
            found |= shared_definers()[name]
    return found


_SHARED = ("define_config", "define_step", "define_ema")  # functions that define certain flags


@functools.cache
def shared_definers() -> dict[str, set[str]]:
    """Functions of fsdit/program/flags.py that define flags -> the flags."""
    found = {"define_overrides": {"config."}}
    for node in ast.parse(source("fsdit.program.flags").read_text()).body:
        if isinstance(node, ast.FunctionDef) and node.name in _SHARED:
            own = {c.args[0].value for name, c in calls(node) if name.startswith(_DEFINERS)}
            overrides = any(name == "define_overrides" for name, _ in calls(node))
            found[node.name] = own | ({"config."} if overrides else set())
    return found


def problems(module: str, arguments: list[str]) -> list[str]:
    """Programs, flags, settings and experiments of a command that do not exist."""
    if module in FOREIGN:
        return []
    path = source(module)
    if not path.is_file() or "__main__" not in path.read_text():
        return [f"no program {module}"]
    found, known = [], defined(ast.parse(path.read_text()))
    if module in PASSING_ON and "--" in arguments:
        rest = arguments[arguments.index("--") + 1 :]
        arguments = arguments[: arguments.index("--")]
        found += problems(PASSING_ON[module], rest)
    for argument in arguments:
        if not argument.startswith("--"):
            continue
        name, _, value = argument[2:].partition("=")
        if name.startswith("config."):
            if "config." not in known or name.removeprefix("config.") not in SETTINGS:
                found.append(f"{module} has no setting {name}")
        elif name not in known:
            found.append(f"{module} has no flag --{name}")
        elif name == "config" and value.startswith("experiments/") and "X.py" not in value:
            found += [] if (ROOT / value).is_file() else [f"no experiment {value}"]
    return found


def named(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_links_lead_to_files_and_headings(page):
    text = _SPAN.sub("", prose(page))
    for target in _LINK.findall(text):
        if re.match(r"\w+:", target):
            continue
        name, _, anchor = target.partition("#")
        file = (page.parent / name).resolve() if name else page
        assert file.exists(), target
        assert not anchor or anchor in anchors(file), target


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_commands_name_programs_and_flags_that_are_there(page):
    found = [p for text in code(page) for command in commands(text) for p in problems(*command)]
    assert found == []


@pytest.mark.parametrize("page", [p for p in PAGES if p != OTHERS], ids=named)
def test_files_that_are_named_are_there(page):
    paths = {path for text in code(page) for path in _PATH.findall(text)}
    assert {path for path in paths if not (ROOT / path).exists()} == set()


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_settings_that_are_named_are_there(page):
    groups = "|".join({path.split(".")[0] for path in SETTINGS if "." in path})
    setting = re.compile(rf"\bconfig\.((?:{groups})\.[a-z_0-9.]*[a-z_0-9])")
    found = {name for text in code(page) for name in setting.findall(text)}
    assert {n for n in found if not any(s == n or s.startswith(f"{n}.") for s in SETTINGS)} == set()


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_make_targets_are_there(page):
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for text in code(page):
        if made := re.match(r"make ([a-z -]+?)\s*(?:#|$)", text):
            assert set(made[1].split()) <= targets, text


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_no_table_cell_is_a_paragraph(page):
    for line in prose(page).splitlines():
        if line.startswith("|"):
            shown = _LINK.sub("[link]", line)
            assert max(map(len, shown.split("|"))) <= MAX_CELL, line


@pytest.mark.parametrize(("page", "most"), MAX_LINES.items())
def test_pages_that_are_read_first_are_short(page, most):
    assert len((ROOT / page).read_text().splitlines()) <= most


@pytest.mark.parametrize(
    ("command", "problem"),
    [
        ("python -m fsdit.nothing --help", "no program fsdit.nothing"),
        ("python -m fsdit.main --wrokdir=x", "fsdit.main has no flag --wrokdir"),
        ("python -m fsdit.main --config.data.size=3", "fsdit.main has no setting config.data.size"),
        (
            "python -m data_prep.glyphs --config.seed=3",
            "data_prep.glyphs has no setting config.seed",
        ),
        ("python -m fsdit.main --config=experiments/no.py", "no experiment experiments/no.py"),
        ("python -m fsdit.launch.local -- --workdri=x", "fsdit.main has no flag --workdri"),
        (
            "python -m data_prep.encode --nodataset_dir",
            "data_prep.encode has no flag --nodataset_dir",
        ),
        (".venv/bin/python -m pytest -k x && python -m fsdit.plan --meshes=1x1", "--meshes"),
    ],
)
def test_a_wrong_command_is_found(command, problem):
    found = [p for module, arguments in commands(command) for p in problems(module, arguments)]
    assert any(problem in p for p in found), found

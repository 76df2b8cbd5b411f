"""Parts of the model by call stacks, and that the code they name is still there."""

import importlib
import inspect
import re

import pytest

from fsdit.planning import hlo
from fsdit.planning.schedule import parts
from fsdit.planning.schedule.parts import Parts, part_of
from fsdit.planning.schedule.sources import Call, Sources
from tests.programs import ROOT

BLOCK = "DiTBlock.__call__"


@pytest.mark.parametrize(
    ("calls", "part"),
    [
        ([("Mlp.__call__", "up"), (BLOCK, "x = x + gate * self.mlp(modulated(x, shift))")], "MLP"),
        (
            [(f"{BLOCK}.<locals>.modulated", "layers.modulated_norm("), (BLOCK, "self.mlp(h)")],
            "norms and modulation",
        ),
        (
            [("Attention.__call__", "mixed = KERNELS[kernel](*projected)"),
             (BLOCK, "found = gate * self.cross(h, context)")],
            "cross-attention: kernel",
        ),
        (
            [("Linear.__call__", "y ="), (BLOCK, "x = x + gate * self.attention(h)")],
            "self-attention: projections",
        ),
        (
            [("Modulation.__call__", ""), ("FewShotDiT._modulation", ""),
             ("FewShotDiT.velocity", "h, stats = self._blocks(h, self._modulation(vector))")],
            "norms and modulation",
        ),
        ([("run_stack", "return jax.lax.scan(body"), ("FewShotDiT.velocity", "")],
         "buffers of stacked layers"),
        ([("make_train_step.<locals>.train_step", "grad_norm = optax.tree.norm(grads)")],
         parts.OPTIMIZER),
        ([("path.interpolate", "")], parts.OTHER),
    ],
)  # fmt: skip
def test_a_call_stack_tells_the_part(calls, part):
    assert part_of([Call(*call) for call in calls]) == part


def test_the_rules_name_functions_and_lines_that_exist():
    text = "\n".join(path.read_text() for path in (ROOT / "fsdit").rglob("*.py"))
    for function, line, _ in parts._RULES:
        for name in function.replace(".<locals>", "").split("."):
            assert re.search(rf"(def|class) {name}\b", text), name
        assert line in text
    attention = inspect.getsource(importlib.import_module("fsdit.models.multihead"))
    assert parts._KERNEL in attention


TABLES = """HloModule jit_f

FileNames
1 "{file}"

FunctionNames
1 "outer"
2 "Attention.__call__"

FileLocations
1 {{file_name_id=1 function_name_id=1 line=1 end_line=1 column=1 end_column=2}}
2 {{file_name_id=1 function_name_id=2 line=2 end_line=2 column=1 end_column=2}}

StackFrames
1 {{file_location_id=1 parent_frame_id=1}}
2 {{file_location_id=2 parent_frame_id=2}}


ENTRY %main (a: f32[8]) -> f32[8] {{
  %a = f32[8]{{0}} parameter(0)
  ROOT %b = f32[8]{{0}} negate(%a), metadata={{op_name="jit(f)/neg" stack_frame_id=2}}
}}
"""


def test_the_tables_give_the_call_stack_with_its_lines(tmp_path):
    file = tmp_path / "model.py"
    file.write_text("first line\n  second line\n")
    text = TABLES.format(file=file)
    program = hlo.parse(text)
    root = program.entry.root
    stack = [Call("Attention.__call__", "second line"), Call("outer", "first line")]
    assert Sources(text).calls(root.attributes) == stack
    assert Parts(program, text).of(root) == parts.OTHER
    assert Parts(program, text).operation(root) == "jit(f)/neg"


def test_a_program_without_tables_has_no_call_stacks():
    assert Sources("HloModule jit_f\n").calls("metadata={stack_frame_id=2}") == []

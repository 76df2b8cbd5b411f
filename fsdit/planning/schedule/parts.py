"""Which part of the model an instruction computes, by the functions that it was traced in.

Of a fusion it is the part of its matrix product, where it has one, and else of its root: what
XLA fuses into a product costs little beside it.
"""

from collections.abc import Iterator, Sequence

from fsdit.planning.hlo import Computation, Instruction, Program
from fsdit.planning.schedule.sources import Call, Sources, operation
from fsdit.planning.schedule.traffic import is_collective

_PRODUCTS = ("convolution", "dot")
_COPIES = ("copy", "transpose", "reshape", "bitcast-convert")

COLLECTIVES = "collectives"
OPTIMIZER = "optimizer and EMA"
OTHER = "noise, loss, other"

# A function of fsdit ("" for any), a text in the line that it was running ("" for any) -> part.
# The first entry that fits a frame of the call stack decides. JAX leaves out the frames inside a
# function with a backward pass of its own, so these are known by the line that calls them.
_RULES: tuple[tuple[str, str, str], ...] = (
    ("SupportConditioner._context", "", "resampler and condition"),
    ("SupportConditioner.__call__", "", "resampler and condition"),
    ("SupportConditioner.apply_null", "", "resampler and condition"),
    ("DiTBlock.__call__.<locals>.modulated", "", "norms and modulation"),
    ("DiTBlock.__call__", "self.mlp(", "MLP"),
    ("DiTBlock.__call__", "self.attention", "self-attention"),
    ("DiTBlock.__call__", "self.cross(", "cross-attention"),
    ("FewShotDiT.prepare", "", "cross-attention"),
    ("FewShotDiT._modulation", "", "norms and modulation"),
    ("DiTBlock.__call__", "", "norms and modulation"),
    ("VitBlock.__call__", "self.mlp(", "frozen encoder: MLP"),
    ("VitBlock.__call__", "", "frozen encoder: attention"),
    ("FrozenEncoder.__call__", "", "frozen encoder: other"),
    ("LearnedEncoder.__call__", "", "learned encoder"),
    ("Autoencoder.encode", "", "codec"),
    ("Autoencoder.decode", "", "codec"),
    ("AutoencoderKL.moments", "", "codec"),
    ("AutoencoderKL.decode", "", "codec"),
    ("run_stack", "jax.lax.scan(", "buffers of stacked layers"),
    ("FewShotDiT.velocity", "", "embedding and final layer"),
    ("FewShotDiT.velocity_in_training", "", "embedding and final layer"),
    ("sharded_gradients.<locals>.gather", "", COLLECTIVES),
    ("sharded_gradients.<locals>.scatter", "", OPTIMIZER),
    ("make_train_step.<locals>.train_step", "gradients(", OTHER),
    ("make_train_step.<locals>.train_step", "", OPTIMIZER),
)
# The line that calls a kernel of fsdit.models.attention; what is around it are projections.
_KERNEL = "KERNELS["


class Parts:
    """Names the part of each instruction of a program. text: the printed program."""

    def __init__(self, program: Program, text: str):
        self._program = program
        self._sources = Sources(text)

    def of(self, instruction: Instruction) -> str:
        """The part that an instruction belongs to."""
        if is_collective(instruction):
            return COLLECTIVES
        if instruction.opcode in _COPIES:
            return "copies"
        return part_of(self._sources.calls(self._deciding(instruction)))

    def operation(self, instruction: Instruction) -> str:
        """JAX's name of what an instruction computes."""
        return operation(self._deciding(instruction))

    def _deciding(self, instruction: Instruction) -> str:
        """The attributes of the product inside a fusion, or those of the instruction."""
        for inner in self._program.called(instruction):
            for product in self._products(inner):
                return product.attributes
        return instruction.attributes

    def _products(self, computation: Computation) -> Iterator[Instruction]:
        for _, instruction in self._program.reached(computation):
            if instruction.opcode in _PRODUCTS:
                yield instruction


def part_of(calls: Sequence[Call]) -> str:
    """The part of a call stack, innermost call first."""
    for function, text, part in _RULES:
        if any(function == call.function and text in call.line for call in calls):
            if not part.endswith("-attention"):
                return part
            kernel = any(_KERNEL in call.line for call in calls)
            return f"{part}: {'kernel' if kernel else 'projections'}"
    return OTHER

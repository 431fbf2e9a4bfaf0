"""A small language for compiled loops: integers of 64 bits, vectors of smaller ones, memory, conditions, loops.

Python operators on `Value` emit LLVM instructions, so that the code that emits reads like the code it emits. All
numbers are unsigned.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, TypeAlias

from llvmlite import ir

I64 = ir.IntType(64)


class Value:
    """A 64-bit number, a vector of numbers, or the outcome of a comparison, that the emitted code computes."""

    def __init__(self, builder: Any, emitted: Any) -> None:
        self._builder = builder
        self.emitted = emitted

    def __add__(self, other: Number) -> Value:
        return self._do("add", other)

    def __sub__(self, other: Number) -> Value:
        return self._do("sub", other)

    def __mul__(self, other: Number) -> Value:
        return self._do("mul", other)

    def __floordiv__(self, other: Number) -> Value:
        return self._do("udiv", other)

    def __mod__(self, other: Number) -> Value:
        return self._do("urem", other)

    def __and__(self, other: Number) -> Value:
        return self._do("and_", other)

    def __or__(self, other: Number) -> Value:
        return self._do("or_", other)

    def __xor__(self, other: Number) -> Value:
        return self._do("xor", other)

    def __lshift__(self, other: Number) -> Value:
        return self._do("shl", other)

    def __rshift__(self, other: Number) -> Value:
        return self._do("lshr", other)

    def __lt__(self, other: Number) -> Value:
        return self._compare("<", other)

    def __ge__(self, other: Number) -> Value:
        return self._compare(">=", other)

    def __gt__(self, other: Number) -> Value:
        return self._compare(">", other)

    def equals(self, other: Number) -> Value:
        """Compare; ``==`` itself is left to Python."""
        return self._compare("==", other)

    def differs(self, other: Number) -> Value:
        """Compare; ``!=`` itself is left to Python."""
        return self._compare("!=", other)

    def one_of(self, numbers: Iterator[int] | list[int]) -> Value:
        """Compare with each of some numbers."""
        first, *rest = [self.equals(number) for number in numbers]
        for outcome in rest:
            first = first | outcome
        return first

    def _do(self, operation: str, other: Number) -> Value:
        return Value(self._builder, getattr(self._builder, operation)(self.emitted, self._operand(other)))

    def _compare(self, sign: str, other: Number) -> Value:
        return Value(self._builder, self._builder.icmp_unsigned(sign, self.emitted, self._operand(other)))

    def _operand(self, other: Number) -> Any:
        if isinstance(other, Value):
            return other.emitted
        kind = self.emitted.type
        # A plain number beside a vector stands for one in every lane.
        return ir.Constant(kind, [other] * kind.count if isinstance(kind, ir.VectorType) else other)


Number: TypeAlias = "Value | int"


class Code:
    """One function in the making; every parameter and the result are 64-bit numbers."""

    def __init__(self, module: Any, name: str, parameters: int) -> None:
        self.function = ir.Function(module, ir.FunctionType(I64, [I64] * parameters), name)
        self.builder = ir.IRBuilder(self.function.append_basic_block("entry"))
        self.parameters = [Value(self.builder, argument) for argument in self.function.args]

    def number(self, value: Number) -> Value:
        """Return a constant as a value."""
        return value if isinstance(value, Value) else Value(self.builder, I64(value))

    def load(self, address: Value, bits: int = 64) -> Value:
        """Read a little-endian number at any address."""
        pointer = self.builder.inttoptr(address.emitted, ir.IntType(bits).as_pointer())
        loaded = self.builder.load(pointer, align=1)
        return Value(self.builder, loaded if bits == 64 else self.builder.zext(loaded, I64))

    def vector(self, numbers: Sequence[int], bits: int) -> Value:
        """Return a constant vector."""
        return Value(self.builder, ir.Constant(ir.VectorType(ir.IntType(bits), len(numbers)), list(numbers)))

    def load_vector(self, address: Value, lanes: int, bits: int) -> Value:
        """Read little-endian numbers that lie one after the other, at any address."""
        pointer = self.builder.inttoptr(address.emitted, ir.VectorType(ir.IntType(bits), lanes).as_pointer())
        return Value(self.builder, self.builder.load(pointer, align=1))

    def as_lanes(self, vector: Value, bits: int) -> Value:
        """Return the same bytes as a vector of numbers of another size."""
        kind = vector.emitted.type
        lanes = kind.count * kind.element.width // bits
        return Value(self.builder, self.builder.bitcast(vector.emitted, ir.VectorType(ir.IntType(bits), lanes)))

    def sum_of_lanes(self, vector: Value) -> Value:
        """Return the sum of all numbers of a vector, as wide as they are."""
        kind = vector.emitted.type
        reduce = self.builder.module.declare_intrinsic(
            f"llvm.vector.reduce.add.v{kind.count}i{kind.element.width}",
            fnty=ir.FunctionType(kind.element, [kind]),
        )
        return Value(self.builder, self.builder.call(reduce, [vector.emitted]))

    def lane(self, vector: Value, number: int) -> Value:
        """Return one number of a vector."""
        emitted = self.builder.extract_element(vector.emitted, ir.IntType(32)(number))
        return Value(self.builder, self.builder.zext(emitted, I64))

    def xor_of_lanes(self, vector: Value) -> Value:
        """Return all numbers of a vector combined by exclusive or."""
        kind = vector.emitted.type
        reduce = self.builder.module.declare_intrinsic(
            f"llvm.vector.reduce.xor.v{kind.count}i{kind.element.width}",
            fnty=ir.FunctionType(kind.element, [kind]),
        )
        return Value(self.builder, self.builder.zext(self.builder.call(reduce, [vector.emitted]), I64))

    def store(self, address: Value, value: Number) -> None:
        """Write a number of 64 bits."""
        pointer = self.builder.inttoptr(address.emitted, I64.as_pointer())
        self.builder.store(self.number(value).emitted, pointer, align=1)

    def store_part(self, address: Value, value: Value, bits: int) -> None:
        """Write the lowest bits of a number."""
        kind = ir.IntType(bits)
        pointer = self.builder.inttoptr(address.emitted, kind.as_pointer())
        self.builder.store(self.builder.trunc(value.emitted, kind), pointer, align=1)

    def choose(self, condition: Value, yes: Number, no: Number) -> Value:
        """Return one of two numbers, both of which are computed."""
        emitted = self.builder.select(condition.emitted, self.number(yes).emitted, self.number(no).emitted)
        return Value(self.builder, emitted)

    def least(self, first: Value, *others: Number) -> Value:
        """Return the smallest of some numbers."""
        for other in others:
            first = self.choose(first < other, first, other)
        return first

    def when(self, condition: Value) -> AbstractContextManager[Any]:
        """Emit what is done only if the condition holds."""
        manager: AbstractContextManager[Any] = self.builder.if_then(condition.emitted)
        return manager

    @contextmanager
    def forever(self) -> Iterator[None]:
        """Emit a loop that only `give` leaves."""
        head = self.builder.append_basic_block("loop")
        self.builder.branch(head)
        self.builder.position_at_end(head)
        yield
        self.builder.branch(head)

    def fold(
        self, first: Value, end: Value, stride: int, state: Value, step: Callable[[Value, Value], Value]
    ) -> tuple[Value, Value]:
        """Emit a loop from first to before end; return the state after it, and where it ended.

        step(state, at) emits the body and returns the next state. Both stay in CPU registers: stored and loaded again
        the loop would take twice as long.
        """
        (last,), at = self.fold_all(first, end, stride, [state], lambda states, at: [step(states[0], at)])
        return last, at

    def fold_all(
        self,
        first: Value,
        end: Value,
        stride: int,
        states: Sequence[Value],
        step: Callable[[Sequence[Value], Value], Sequence[Value]],
    ) -> tuple[list[Value], Value]:
        """Do as `fold` does, with several states."""
        builder = self.builder
        before = builder.basic_block
        head, body, after = (builder.append_basic_block(name) for name in ("head", "body", "after"))
        builder.branch(head)
        builder.position_at_end(head)
        current, place = [builder.phi(state.emitted.type) for state in states], builder.phi(I64)
        now, at = [Value(builder, phi) for phi in current], Value(builder, place)
        builder.cbranch((at < end).emitted, body, after)
        builder.position_at_end(body)
        following = step(now, at)
        moved = at + stride
        builder.branch(head)
        for phi, earlier, later in zip([*current, place], [*states, first], [*following, moved], strict=True):
            phi.add_incoming(earlier.emitted, before)
            phi.add_incoming(later.emitted, builder.basic_block)
        builder.position_at_end(after)
        return now, at

    def call(self, function: Any, *arguments: Number) -> Value:
        """Call a function of the module."""
        return Value(self.builder, self.builder.call(function, [self.number(a).emitted for a in arguments]))

    def give(self, value: Number) -> None:
        """Return from the function."""
        self.builder.ret(self.number(value).emitted)

    def give_if(self, condition: Value, value: Number) -> None:
        """Return from the function if the condition holds."""
        with self.when(condition):
            self.give(value)

"""A call of one of our functions as JSON, and what became of it: what a job on a cluster gets.

Arguments and results are encoded by the types that the function declares, so nothing is unpickled.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from importlib import import_module
from importlib.metadata import version
from typing import Any, Final, TypeVar, get_type_hints

from pydantic import JsonValue, TypeAdapter

from pipeline.errors import NormscopeError

R = TypeVar("R")

_PACKAGES: Final = ("training.", "pipeline.")  # whose errors an outcome may name


@dataclass(frozen=True)
class Call:
    """A function of ours and its arguments.

    Args:
        function: Module and name of the function, `training.train:train_and_register`.
        arguments: Arguments by name, as JSON.
        subject: Name of the run or output that the call works on, by one job at a time.
        owner: Identifier of the flow run that asks; it gets the result of its own earlier call.
        version: Version of Normscope that asks.
    """

    function: str
    arguments: Mapping[str, JsonValue]
    subject: str
    owner: str | None
    version: str

    @classmethod
    def of(
        cls,
        function: Callable[..., object],
        arguments: Mapping[str, object],
        *,
        subject: str,
        owner: str | None = None,
    ) -> Call:
        """Encode the arguments of a function by their declared types."""
        hints = get_type_hints(function)
        encoded = {name: _encode(hints[name], value) for name, value in arguments.items()}
        name = f"{function.__module__}:{function.__qualname__}"
        return cls(name, encoded, subject, owner, version("normscope"))

    @property
    def digest(self) -> str:
        """SHA-256 of function and arguments: equal calls have equal digests."""
        text = json.dumps([self.function, dict(self.arguments)], sort_keys=True)
        return sha256(text.encode()).hexdigest()

    def find_function(self) -> Callable[..., object]:
        """Import the function."""
        module, _, name = self.function.partition(":")
        function: Callable[..., object] = getattr(import_module(module), name)
        return function

    def decode_arguments(self) -> dict[str, object]:
        """Decode the arguments by the types that the function declares."""
        hints = get_type_hints(self.find_function())
        return {
            name: TypeAdapter(hints[name]).validate_python(value)
            for name, value in self.arguments.items()
        }

    def to_bytes(self) -> bytes:
        """Write the call as JSON."""
        return json.dumps(TypeAdapter(Call).dump_python(self), indent=1).encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> Call:
        """Read what `to_bytes` has written."""
        return TypeAdapter(Call).validate_python(json.loads(data))


def encode_result(function: Callable[..., object], result: object) -> bytes:
    """Write what a function has returned, by the type that it declares."""
    encoded = _encode(get_type_hints(function)["return"], result)
    return json.dumps({"result": encoded}, indent=1).encode()


def encode_error(error: NormscopeError) -> bytes:
    """Write an error that the user can correct."""
    kind = type(error)
    fields = {"item": error.item, "problem": error.problem, "remedy": error.remedy}
    return json.dumps({"error": f"{kind.__module__}:{kind.__qualname__}", **fields}).encode()


def decode_outcome(function: Callable[..., R], data: bytes) -> R:
    """Return the result that was written, or raise the error.

    Args:
        function: Function that was called.
        data: Outcome as `encode_result` or `encode_error` has written it.

    Raises:
        NormscopeError: The error that the function raised, of its own class.
    """
    content = json.loads(data)
    if "error" in content:
        raise _find_error(content["error"])(*(content[k] for k in ("item", "problem", "remedy")))
    hint: type[R] = get_type_hints(function)["return"]
    return TypeAdapter(hint).validate_python(content["result"])


def is_result(data: bytes) -> bool:
    """Whether an outcome is a result and not an error."""
    return "result" in json.loads(data)


def _find_error(name: str) -> type[NormscopeError]:
    module, _, kind = name.partition(":")
    found = getattr(import_module(module), kind, None) if module.startswith(_PACKAGES) else None
    if isinstance(found, type) and issubclass(found, NormscopeError):
        return found
    return NormscopeError


def _encode(hint: Any, value: object) -> Any:
    return TypeAdapter(hint).dump_python(value, mode="json")

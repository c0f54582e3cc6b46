"""Errors that a user can cause and correct."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydantic import ValidationError


class NormscopeError(Exception):
    """Something that the user can correct, said in one line.

    Args:
        item: The file, URL or setting at fault.
        problem: Description of what is wrong, the offending value included.
        remedy: Imperative sentence that says what to do next.
    """

    def __init__(self, item: str, problem: str, remedy: str) -> None:
        # All three reach Exception.args, so that the error pickles across processes.
        super().__init__(item, problem, remedy)
        self.item, self.problem, self.remedy = item, problem, remedy

    def __str__(self) -> str:
        return f"{self.item}: {self.problem}. {self.remedy}"


class SourceError(NormscopeError):
    """A slide, image, table or annotation that cannot be used."""


class ChangedError(SourceError):
    """A file that has changed since it was listed; the next listing finds it as it is."""


class SchemaError(NormscopeError):
    """A dataset that is not what its reader needs: unsealed, other version, other shape."""


class StorageError(NormscopeError):
    """A URL that cannot be read or written. In this plain form it may pass by itself."""


class AbsentError(StorageError):
    """A file or object that is not there, on a disk or server that answers."""


class DeniedError(StorageError):
    """A bucket that does not exist, or credentials that it does not accept."""


class UnreachableError(NormscopeError):
    """A server or cluster that does not answer, or has lost what it did. It may pass by itself."""


class SettingsError(NormscopeError):
    """Settings that contradict each other or the data."""

    @classmethod
    def of(cls, error: ValidationError, whole: str) -> SettingsError:
        """Say in one line what a model of settings refuses; of several faults the first.

        Args:
            error: Refusal of the model.
            whole: Name of the settings, where no single one is at fault.
        """
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        problem = first["msg"].removeprefix("Value error, ")
        if where:
            problem = f"{first['input']!r} is not allowed ({problem})"
        return cls(where or whole, problem, "Correct the setting")


class WeightsError(NormscopeError):
    """A weight file that is missing or holds other layers than asked for."""


class RegistryError(NormscopeError):
    """A model version or alias that the registry does not have or cannot serve."""

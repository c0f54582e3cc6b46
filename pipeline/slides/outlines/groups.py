"""Tells what an outline says of lesions by the names of its group and of those above it. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final, Literal, TypeAlias

from pipeline.io.names import fold_name
from pipeline.slides.outlines.annotation import Annotation

Role: TypeAlias = Literal["lesion", "excluded", "ignored", "other"]
# Camelyon16: `_0`, `_1` and `Tumor` are metastases, `_2` and `Exclusion` are holes in them
# (README of the challenge's lesion annotations).
LESION_GROUPS: Final = ("Tumor", "_0", "_1")
EXCLUDED_GROUPS: Final = ("_2", "Exclusion")
_NAMED: Final = 5  # of other groups, in a remark


def fold_group(name: str) -> str:
    """Fold the name of a group: case of letters, blanks and Unicode's normal form say nothing.

    Examples:
        >>> fold_group(" Tumor  edge")
        'tumor edge'
    """
    return " ".join(fold_name(name).split())


@dataclass(frozen=True)
class Groups:
    """Groups whose meaning is known.

    Args:
        lesion: Groups that outline lesions; in all three "" is for outlines without a group.
        excluded: Groups that outline holes in lesions.
        ignored: Groups that say nothing of lesions.
    """

    lesion: Collection[str] = LESION_GROUPS
    excluded: Collection[str] = EXCLUDED_GROUPS
    ignored: Collection[str] = ()

    @cached_property
    def _roles(self) -> Mapping[str, Role]:
        return {
            **{fold_group(name): "ignored" for name in self.ignored},
            **{fold_group(name): "excluded" for name in self.excluded},
            **{fold_group(name): "lesion" for name in self.lesion},
        }

    def find_role(self, annotation: Annotation) -> Role:
        """Tell what an outline says: the nearest of its groups that is known decides."""
        for name in annotation.lineage or ("",):
            if role := self._roles.get(fold_group(name)):
                return "excluded" if role == "lesion" and annotation.is_hole else role
        return "other"


def name_groups(annotations: Sequence[Annotation]) -> str:
    """Count outlines by group for a remark, e.g. "2 of 'Stroma', 1 without a group"."""
    counts = Counter(
        f"of {each.group!r}" if each.group else "without a group" for each in annotations
    )
    named = [f"{count} {group}" for group, count in counts.most_common(_NAMED)]
    more = [f"{len(counts) - _NAMED} more groups"] if len(counts) > _NAMED else []
    return ", ".join([*named, *more])

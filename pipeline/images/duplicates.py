"""Exact and near duplicates between patients or slides. Pure.

The same image under two patients' names puts what is tested into training. Within one group it
does no harm, since splits never divide a group, so only what crosses groups is reported.

Near duplicates are images whose perceptual hashes (pHash of 256 bits, from ImageHash) differ in
few bits. The usual 64 bits do not tell chest X-rays of different patients apart. Two hashes that
differ in at most d bits agree in at least one of d + 1 bands, so only those that share a band are
compared (the pigeonhole principle): no pair is missed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations_with_replacement
from typing import Any, Final, Literal, TypeAlias

import imagehash
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

Hashes: TypeAlias = NDArray[np.uint64]
Texts: TypeAlias = Sequence[str] | NDArray[Any]
# Recompression and resizing move a hash by up to 8 bits, another tone curve by up to 22; of 251,000
# pairs of different patients (ChestX-ray14) the closest are 52 apart.
MAX_DISTANCE_BITS: Final = 24
_HASH_SIDE: Final = 16
_WORDS: Final = _HASH_SIDE**2 // 64
_BLOCK: Final = 512  # hashes compared at once: 512 x 512 pairs take 10 MiB


@dataclass(frozen=True, slots=True)
class DuplicateSet:
    """Images that are, or look like, one.

    Args:
        rows: Rows of the dataset that belong to the set, ascending.
        kind: `exact`: equal pixels; `near`: each within the distance of another of the set.
        crosses_splits: Whether they are in more than one split; all sets cross groups.
    """

    rows: tuple[int, ...]
    kind: Literal["exact", "near"]
    crosses_splits: bool


def hash_images(images: NDArray[np.uint8]) -> Hashes:
    """Hash images perceptually.

    Args:
        images: uint8 (image, H, W, C), C is 1 or 3.

    Returns:
        uint64 (image, 4).
    """
    hashes = [_hash_perceptually(image) for image in images]
    return np.array(hashes, np.uint64).reshape(-1, _WORDS)


def write_hashes(hashes: Hashes) -> list[str]:
    """Perceptual hashes, uint64 (image, 4), as hexadecimal text."""
    return [np.ascontiguousarray(hash_).tobytes().hex() for hash_ in hashes]


def read_hashes(texts: Texts) -> Hashes:
    """The reverse of `write_hashes`; an empty text gives zeros."""
    blank = bytes(8 * _WORDS)
    data = b"".join(bytes.fromhex(str(text)) or blank for text in texts)
    return np.frombuffer(data, np.uint64).reshape(-1, _WORDS)


def find_duplicates(
    digests: Texts,
    hashes: Hashes,
    group_ids: Texts,
    splits: Texts,
    *,
    readable: NDArray[np.bool_] | None = None,
    max_distance_bits: int = MAX_DISTANCE_BITS,
) -> tuple[DuplicateSet, ...]:
    """Find images of different groups that are equal or nearly so.

    Args:
        digests: str (image,): of the pixels.
        hashes: uint64 (image, 4): perceptual.
        group_ids: str (image,): patient or slide.
        splits: str (image,): the split of each image.
        readable: bool (image,): the others are left out; None takes all.
        max_distance_bits: Bits in which near duplicates may differ, 0 to 48.

    Returns:
        Exact sets, then near ones, each in order of their first row. A near set is listed only if
        it holds more than exact copies.

    Raises:
        ValueError: The lengths differ, or the distance is out of bounds.
    """
    lengths = {len(digests), len(hashes), len(group_ids), len(splits)}
    if len(lengths) != 1 or not 0 <= max_distance_bits <= 48:
        raise ValueError(
            f"lengths {sorted(lengths)}, distance {max_distance_bits} bits: give one of each an "
            "image, and 0 to 48 bits"
        )
    rows = np.flatnonzero(np.ones(len(hashes), bool) if readable is None else readable)
    groups, places = (np.asarray(texts, object)[rows] for texts in (group_ids, splits))
    _, exact_of = np.unique(np.asarray(digests, object)[rows].astype(str), return_inverse=True)
    near_of = _cluster(np.asarray(hashes, np.uint64)[rows], max_distance_bits)
    exact = [
        DuplicateSet(_rows(rows, members), "exact", len(set(places[members])) > 1)
        for members in _crossing(exact_of, groups)
    ]
    near = [
        DuplicateSet(_rows(rows, members), "near", len(set(places[members])) > 1)
        for members in _crossing(near_of, groups)
        if len(set(exact_of[members])) > 1
    ]
    return (*exact, *near)


def _hash_perceptually(image: NDArray[np.uint8]) -> Hashes:
    grey = image[..., 0] if image.shape[-1] == 1 else image
    bits: NDArray[np.bool_] = imagehash.phash(Image.fromarray(grey), hash_size=_HASH_SIDE).hash
    return np.packbits(bits.ravel()).view(np.uint64)


def _rows(rows: NDArray[np.intp], members: NDArray[np.intp]) -> tuple[int, ...]:
    return tuple(int(row) for row in rows[members])


def _crossing(set_of: NDArray[np.integer[Any]], groups: NDArray[Any]) -> list[NDArray[np.intp]]:
    """Members of each set that holds more than one group, in order of the first."""
    order = np.argsort(set_of, kind="stable")
    edges = np.flatnonzero(np.diff(set_of[order])) + 1
    sets = [members for members in np.split(order, edges) if len(members) > 1]
    crossing = [members for members in sets if len(set(groups[members])) > 1]
    return sorted(crossing, key=lambda members: int(members[0]))


class _Sets:
    """Disjoint sets of numbers from 0 on (union-find with path halving)."""

    def __init__(self, count: int) -> None:
        self._parents = list(range(count))

    def find(self, number: int) -> int:
        """Find the number that stands for a number's set."""
        parents = self._parents
        while (parent := parents[number]) != number:
            parents[number] = number = parents[parent]
        return number

    def join(self, one: int, other: int) -> None:
        """Unite the sets of two numbers."""
        self._parents[self.find(other)] = self.find(one)


def _cluster(hashes: Hashes, max_distance_bits: int) -> NDArray[np.integer[Any]]:
    """Number each hash; equal for hashes linked by steps of at most the distance."""
    distinct, index = np.unique(hashes, axis=0, return_inverse=True)
    sets = _Sets(len(distinct))
    for bucket in _find_buckets(distinct, max_distance_bits):
        first = sets.find(bucket[0])
        if any(sets.find(number) != first for number in bucket):
            _join_near(distinct[bucket], bucket, max_distance_bits, sets)
    cluster_of = np.array([sets.find(number) for number in range(len(distinct))], np.intp)
    return cluster_of[index.ravel()]


def _find_buckets(distinct: Hashes, max_distance_bits: int) -> Iterator[list[int]]:
    """Yield the hashes that share a band, for each band, where they are two or more."""
    bits = np.unpackbits(np.ascontiguousarray(distinct).view(np.uint8), axis=1)
    bands = max_distance_bits + 1
    for start in range(bands):
        # Every n-th bit: neighbours are alike, and alike bits would make few, large buckets. A
        # key is equal where the band is; where keys meet by chance the distance tells.
        band = bits[:, start::bands]
        key = band @ (np.int64(1) << np.arange(band.shape[1]) % 48)
        order = np.argsort(key, kind="stable")
        for bucket in np.split(order, np.flatnonzero(np.diff(key[order])) + 1):
            if len(bucket) > 1:
                yield bucket.tolist()


def _join_near(hashes: Hashes, numbers: list[int], max_distance_bits: int, sets: _Sets) -> None:
    """Join those of a bucket that are within the distance; memory is that of one block of pairs."""
    for start, after in combinations_with_replacement(range(0, len(numbers), _BLOCK), 2):
        one, other = hashes[start : start + _BLOCK], hashes[after : after + _BLOCK]
        apart = np.zeros((len(one), len(other)), np.uint16)
        for word in range(_WORDS):
            apart += np.bitwise_count(one[:, word, None] ^ other[:, word])
        is_near = apart <= max_distance_bits
        near, near_other = np.nonzero(np.triu(is_near, 1) if start == after else is_near)
        nodes = [*numbers[start : start + _BLOCK], *numbers[after : after + _BLOCK]]
        pairs = near, near_other + len(one)
        if len(near) > len(nodes):  # as many links as nodes are enough
            graph = coo_array((np.ones(len(near), bool), pairs), shape=(len(nodes), len(nodes)))
            set_of = connected_components(graph, directed=False)[1]
            pairs = np.unique(set_of, return_index=True)[1][set_of], np.arange(len(nodes))
        for at, other_at in zip(*pairs, strict=True):
            sets.join(nodes[at], nodes[other_at])

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
from hashlib import sha256
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
_BLOCK: Final = 1024  # rows compared at once: 1024 x 1024 pairs of words are 8 MiB


@dataclass(frozen=True, slots=True)
class DuplicateSet:
    """Images that are, or look like, one.

    Args:
        rows: Of the dataset, ascending.
        kind: `exact`: equal pixels; `near`: each within the distance of another of the set.
        crosses_splits: Whether they are in more than one split; all sets cross groups.
    """

    rows: tuple[int, ...]
    kind: Literal["exact", "near"]
    crosses_splits: bool


def hash_images(images: NDArray[np.uint8]) -> tuple[list[str], Hashes]:
    """Hash images exactly and perceptually.

    Args:
        images: uint8 (image, H, W, C), C is 1 or 3.

    Returns:
        SHA-256 of each image's pixels, hexadecimal, and uint64 (image, 4) perceptual hashes.
    """
    digests = [sha256(np.ascontiguousarray(image).tobytes()).hexdigest() for image in images]
    hashes = [_hash_perceptually(image) for image in images]
    return digests, np.array(hashes, np.uint64).reshape(-1, _WORDS)


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
        splits: str (image,).
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


def _cluster(hashes: Hashes, max_distance_bits: int) -> NDArray[np.integer[Any]]:
    """A number for each hash; equal for hashes linked by steps of at most the distance."""
    distinct, index = np.unique(hashes, axis=0, return_inverse=True)
    links = [np.zeros((2, 0), np.intp), *_link(distinct, max_distance_bits)]
    one, other = np.concatenate(links, axis=1)
    size = len(distinct)
    graph = coo_array((np.ones(len(one), bool), (one, other)), shape=(size, size))
    cluster_of: NDArray[np.integer[Any]] = connected_components(graph, directed=False)[1]
    return cluster_of[index.ravel()]


def _link(distinct: Hashes, max_distance_bits: int) -> Iterator[NDArray[np.intp]]:
    """Pairs (2, pairs) of hashes within the distance, found band by band."""
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
                yield from _compare(distinct, bucket, max_distance_bits)


def _compare(
    distinct: Hashes, bucket: NDArray[np.intp], max_distance_bits: int
) -> Iterator[NDArray[np.intp]]:
    for start in range(0, len(bucket), _BLOCK):
        one = bucket[start : start + _BLOCK]
        for after in range(start, len(bucket), _BLOCK):
            other = bucket[after : after + _BLOCK]
            apart = np.zeros((len(one), len(other)), np.uint16)
            for word in range(_WORDS):
                apart += np.bitwise_count(distinct[one, word, None] ^ distinct[None, other, word])
            at_one, at_other = np.nonzero(apart <= max_distance_bits)
            is_pair = one[at_one] < other[at_other]
            if is_pair.any():
                yield np.stack([one[at_one][is_pair], other[at_other][is_pair]])

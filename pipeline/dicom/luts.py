"""Lookup tables of a DICOM header (PS3.3 C.11.1.1, C.11.2.1.1), checked against their data. Pure.

A descriptor gives the number of entries, the first value that is mapped and the bits of an entry.
Several makers write the bits of the words that hold the entries in place of the third: white is
then far above every entry, and the picture nearly black. So a table whose entries need fewer bits
than it declares ends where its entries do.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, TypeAlias

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRBigEndian

from pipeline.errors import SourceError

Values: TypeAlias = NDArray[np.float64]
_REMEDY: Final = "Export it again, or leave it out"
# Depths that detectors and monitors have; a table of another is of the next.
_DEPTHS: Final = (8, 10, 12, 14, 16)


@dataclass(frozen=True)
class Lut:
    """A lookup table.

    Args:
        entries: uint16 (entry,), what comes out.
        first: Value that the first entry is for; the others follow in steps of 1.
        top: Greatest value that the entries' bits can hold; it is white.
        remark: Words for the manifest where data and descriptor differ; else "".
    """

    entries: NDArray[np.uint16]
    first: int
    top: int
    remark: str = ""

    def apply(self, values: Values) -> Values:
        """Look values up; one outside the table gives its first or last entry.

        Args:
            values: float64, of any shape.
        """
        # The descriptor's first value may be signed or not, whatever its own type says.
        is_wrapped = self.first > 32767 and values.min() < 0
        first = self.first - 65536 if is_wrapped else self.first
        at = np.floor(values + 0.5).astype(np.int64) - first
        return self.entries[np.clip(at, 0, len(self.entries) - 1)].astype(np.float64)


def read_lut(dataset: Dataset, item: Dataset, name: str) -> Lut:
    """Read an item of a Modality or VOI LUT Sequence.

    Args:
        dataset: File that holds it; its transfer syntax gives the order of bytes.
        item: LUT Descriptor and LUT Data.
        name: Public name of the file, for errors.

    Raises:
        SourceError: The data are fewer than the descriptor says, or need more bits.
    """
    count, first, bits = (int(number) for number in item.LUTDescriptor)
    count = (count & 0xFFFF) or 65536
    entries = _read_entries(dataset, item, count, bits)
    needed = int(entries[:count].max(initial=0)).bit_length()
    if not 8 <= bits <= 16 or len(entries) < count or needed > bits:
        problem = f"a LUT of {len(entries)} entries, described as {count} of {bits} bits"
        raise SourceError(name, problem, _REMEDY)
    depth = next(depth for depth in _DEPTHS if depth >= needed)
    remarks = []
    if len(entries) > count:
        remarks.append(f"its LUT has {len(entries)} entries, of which the first {count} are used")
    if depth < bits:
        remarks.append(f"its LUT declares {bits} bits and uses {needed}: {2**depth - 1} is white")
    top = 2 ** min(depth, bits) - 1
    return Lut(entries[:count], first, top, "; ".join(remarks))


def _read_entries(dataset: Dataset, item: Dataset, count: int, bits: int) -> NDArray[np.uint16]:
    data = item.LUTData
    if not isinstance(data, bytes):
        # Type SS gives entries above 32767 as negative numbers.
        return (np.atleast_1d(np.asarray(data, np.int64)) & 0xFFFF).astype(np.uint16)
    # Entries of 8 bits may be packed two a word (PS3.3 C.11.1.1.1), the last one padded.
    if bits == 8 and len(data) == count + count % 2:
        return np.frombuffer(data, "u1")[:count].astype(np.uint16)
    syntax = getattr(dataset, "file_meta", {}).get("TransferSyntaxUID")
    words = np.frombuffer(data, ">u2" if syntax == ExplicitVRBigEndian else "<u2")
    return words.astype(np.uint16)

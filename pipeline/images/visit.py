"""Visits a part of images: keeps it, or reads its files and writes them in one go."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from hashlib import sha256
from typing import Any

import numpy as np
from blake3 import blake3
from numpy.typing import NDArray

from pipeline.errors import NormscopeError
from pipeline.images.plan import ImagePart, collect_columns
from pipeline.images.reader import read_source as read_file
from pipeline.ingest.manifest import describe_rows
from pipeline.ingest.parts import Draft, digest_columns, make_part, read_source, recall_part
from pipeline.ingest.quarantine import leave_out_killers
from pipeline.ingest.run import Outcome
from pipeline.ingest.sources import Reader, SourceRead
from pipeline.io import storage
from pipeline.io.scratch import Scratch
from pipeline.records import Array, ManifestEntry, SourceImage
from pipeline.runtime.engines import MapWork
from pipeline.store.part import Part, choose_place, is_there, open_part, read_whole
from pipeline.store.spec import SCHEMA_VERSION, DatasetSpec
from pipeline.store.stamp import require_stamp


@dataclass(frozen=True)
class ImageVisit:
    """Keeps or makes a part of images. Picklable.

    Args:
        url: URL of the dataset.
        spec: Specification of the dataset.
        reader: Reader of the images.
        trusts_times: Whether local files of the same size and time of modification count as
            unchanged without being read. Objects on S3 are told apart by their ETag.
        scratch: Folder where archives are unpacked; None for the usual one.
        is_final: Whether a later run keeps the part as it is made; one that leaves out files which
            kill workers is tried again.
    """

    url: str
    spec: DatasetSpec
    reader: Reader[Any]
    trusts_times: bool = False
    scratch: Scratch | None = None
    is_final: bool = True

    def __call__(self, item: ImagePart) -> Outcome:
        """Visit a part; whatever is wrong with a file is said in its entry of the manifest.

        Raises:
            SettingsError: This worker makes other pixels than the driver.
            StorageError: The dataset cannot be written, or the source is out of reach.
        """
        require_stamp("images", self.spec.stamp)
        columns = collect_columns(self.spec, item)
        key, version = self.make_key(columns), join_versions(item.images)
        known = item.known if item.known and is_there(self.url, item.known) else None
        place = choose_place(known, item.name, key, version)
        found = known if known and known.key == key else self._recall(place, key)
        if found is not None and self._is_unchanged(item, found, version):
            reasons = self._read_reasons(found)
            found = replace(found, source_version=version)
            return Outcome(found, _describe(item.images, reasons), is_kept=True)

        def read(start: int, stop: int, images: NDArray[np.uint8]) -> Iterator[SourceRead]:
            for row, source in enumerate(item.images[start:stop]):
                one = partial(self.reader.read, source, images[row : row + 1])
                yield from read_source(source, one, 1)

        draft = Draft(item.name, place, key if self.is_final else "", columns, version)
        reasons_made: list[str | None] = []
        draft = replace(draft, conclude=partial(_note, reasons_made))
        part = make_part(self.url, self.spec, draft, read)
        return Outcome(part, _describe(item.images, reasons_made))

    def make_key(self, columns: Mapping[str, Array]) -> str:
        """Make the key of work of a part: all that it follows from, but the bytes of its files.

        Args:
            columns: Columns of the part that are known before images are read.
        """
        facts = {
            "schema": SCHEMA_VERSION,
            "spec": self.spec.attributes(),
            "stamp": dict(self.spec.stamp),
            "rows": digest_columns(columns),
        }
        return sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()

    def _recall(self, place: str, key: str) -> Part | None:
        """Recall the part that an ingest has made but not sealed."""
        attributes = read_whole(storage.join(self.url, place))
        if attributes is None or attributes.get("key") != key:
            return None
        return recall_part(place, attributes)

    def _is_unchanged(self, item: ImagePart, part: Part, version: str) -> bool:
        """Whether the files still have the bytes that the part was made from."""
        is_same_version = part.source_version == version
        if is_same_version and self.trusts_times:
            return True
        digests = open_part(self.url, part).column("source_digest")
        for source, digest in zip(item.images, digests, strict=True):
            if storage.parse(source.url).scheme != "file":
                if not is_same_version:  # some object has another ETag
                    return False
            elif not self._has_bytes(source, digest, is_same_version):
                return False
        return True

    def _has_bytes(self, source: SourceImage, digest: str, is_same_version: bool) -> bool:
        """Whether a local file has the bytes of this digest; empty where it could not be read."""
        if not digest:
            return is_same_version
        try:
            data = read_file(source, self.scratch)
        except NormscopeError:
            return False
        return blake3(data).hexdigest() == digest

    def _read_reasons(self, part: Part) -> list[str | None]:
        known = open_part(self.url, part).read_reasons() if part.unreadable_count else {}
        return [known.get(row) for row in range(part.image_count)]


def join_versions(images: Sequence[SourceImage]) -> str:
    """Join the versions of a part's files: the text changes when any of them does.

    Args:
        images: Images of the part, as listed.
    """
    return sha256(json.dumps([image.version for image in images]).encode()).hexdigest()


def _note(notes: list[str | None], reasons: Any) -> dict[str, Any]:
    notes.extend(reasons)
    return {}


def _describe(
    images: tuple[SourceImage, ...], reasons: list[str | None]
) -> tuple[ManifestEntry, ...]:
    pairs = zip(images, reasons, strict=True)
    return tuple(describe_rows(image.public_name, [reason]) for image, reason in pairs)


def visit_without_killers(map_work: MapWork, visit: ImageVisit, item: ImagePart) -> Outcome:
    """Make a part that has killed its workers, without the files that are to blame.

    A later run tries these files again.

    Args:
        map_work: An engine whose workers may die.
        visit: Visit that every worker died of.
        item: Part whose workers have died.

    Raises:
        SettingsError: No file kills by itself, but the part does: it needs more memory.
    """
    careful = leave_out_killers(map_work, visit.reader, item.images, visit.spec.image_shape)
    (outcome,) = map_work(replace(visit, reader=careful, is_final=False), [item])
    return outcome

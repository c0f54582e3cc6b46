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
from pipeline.ingest.manifest import add_remark, describe_rows
from pipeline.ingest.parts import Draft, digest_columns, find_part, make_part, read_source
from pipeline.ingest.quarantine import leave_out_killers
from pipeline.ingest.run import Outcome
from pipeline.ingest.sources import Reader, SourceRead
from pipeline.io import storage
from pipeline.io.scratch import Scratch
from pipeline.records import Array, ManifestEntry, SourceImage
from pipeline.runtime.engines import MapWork
from pipeline.store.part import Part, open_part
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
        place, found = find_part(self.url, item.known, item.name, key, version)
        if found is not None and self._is_unchanged(item, found, version):
            found = replace(found, source_version=version)
            return Outcome(found, self._describe(item, found), is_kept=True)

        def read(start: int, stop: int, images: NDArray[np.uint8]) -> Iterator[SourceRead]:
            for row, source in enumerate(item.images[start:stop]):
                one = partial(self.reader.read, source, images[row : row + 1])
                yield from read_source(source, one, 1)

        draft = Draft(item.name, place, key if self.is_final else "", columns, version)
        part = make_part(self.url, self.spec, draft, read)
        return Outcome(part, self._describe(item, part))

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

    def _is_unchanged(self, item: ImagePart, part: Part, version: str) -> bool:
        """Whether the files still have the bytes that the part was made from."""
        is_local = [storage.parse(source.url).scheme == "file" for source in item.images]
        is_same_version = part.source_version == version
        if not is_same_version and not all(is_local):  # some object has another ETag
            return False
        if is_same_version and (self.trusts_times or not any(is_local)):
            return True
        digests = open_part(self.url, part).column("source_digest")
        return all(
            self._has_bytes(source, digest, is_same_version)
            for source, digest, is_here in zip(item.images, digests, is_local, strict=True)
            if is_here
        )

    def _has_bytes(self, source: SourceImage, digest: str, is_same_version: bool) -> bool:
        """Whether a local file has the bytes of this digest; empty where it could not be read."""
        if not digest:
            return is_same_version
        try:
            data = read_file(source, self.scratch)
        except NormscopeError:
            return False
        return blake3(data).hexdigest() == digest

    def _describe(self, item: ImagePart, part: Part) -> tuple[ManifestEntry, ...]:
        """State what became of each file; the part tells."""
        opened = open_part(self.url, part)
        known = opened.read_reasons() if part.unreadable_count else {}
        names = [image.public_name for image in item.images]
        remarks = dict(zip(names, opened.column("remark"), strict=True))
        entries = (describe_rows(name, [known.get(row)]) for row, name in enumerate(names))
        return tuple(add_remark(entry, remarks) for entry in entries)


def join_versions(images: Sequence[SourceImage]) -> str:
    """Join the versions of a part's files: the text changes when any of them does.

    Args:
        images: Images of the part, as listed.
    """
    return sha256(json.dumps([image.version for image in images]).encode()).hexdigest()


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

"""The image lists of the paper's three experiments on ChestX-ray14, as its authors published them.

Shvetsova et al., IEEE Access 2021; Tang et al. 2021 for `subset`, whose labels were read anew by
radiologists and so differ from the table's here and there. `PA` and `AP` are the official lists,
one view position each, with normals alone in training.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from io import BytesIO
from typing import Final, Literal, TypeAlias

from pipeline.errors import SourceError
from pipeline.io.archives import reading_tar
from pipeline.io.storage import list_objects, read_bytes
from pipeline.records import Label, Split
from pipeline.sources.tables import decode_text

Experiment: TypeAlias = Literal["subset", "PA", "AP"]

_PARTS: Final[Mapping[str, tuple[Label, Split]]] = {
    "normal/train": (Label.NORMAL, "train"),
    "normal/test": (Label.NORMAL, "test"),
    "anomaly/test": (Label.ANOMALOUS, "test"),
}
_REMEDY: Final = "Give the authors' archive dpa_nih_folds.tar.gz, or the folder that it unpacks to"


def read_experiment(url: str, experiment: Experiment) -> dict[str, tuple[Label, Split]]:
    """Read the lists of an experiment.

    Args:
        url: The authors' archive, or the folder that it unpacks to.
        experiment: Name of the experiment; it is a folder of the archive.

    Returns:
        Image name -> label and split.

    Raises:
        SourceError: There is no such list, or an image is in two.
        StorageError: The URL cannot be read.
    """
    members = dict(_read_members(url, experiment))
    listed: dict[str, tuple[Label, Split]] = {}
    for part, meaning in _PARTS.items():
        if part not in members:
            raise SourceError(url, f"no list {experiment}/{part}", _REMEDY)
        names = decode_text(f"{url}, {experiment}/{part}", members[part]).split()
        if twice := sorted(set(names) & set(listed)):
            raise SourceError(url, f"{twice[0]!r} is in two lists of {experiment}", _REMEDY)
        listed |= dict.fromkeys(names, meaning)
    return listed


def _read_members(url: str, experiment: Experiment) -> Iterator[tuple[str, bytes]]:
    """Part -> content of its list."""
    ends = {f"train_test_split/nih/{experiment}/{part}": part for part in _PARTS}
    if not url.endswith((".tar.gz", ".tgz", ".tar")):
        for info in list_objects(url):
            for end, part in ends.items():
                if info.url.endswith(f"/{end}"):
                    yield part, read_bytes(info.url)
        return
    data = read_bytes(url)
    try:
        with reading_tar(url, BytesIO(data), "r:*", remedy=_REMEDY) as archive:
            for member in archive:
                part = next((part for end, part in ends.items() if member.name.endswith(end)), "")
                content = archive.extractfile(member) if part else None
                if content is not None:
                    yield part, content.read()
    except OSError as error:  # of a decompressor, as the bytes are in memory
        raise SourceError(url, f"not a whole tar archive ({error})", _REMEDY) from error

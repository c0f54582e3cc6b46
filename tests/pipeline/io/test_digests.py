from __future__ import annotations

from pathlib import Path

from blake3 import blake3

from pipeline.io.digests import digest_files


def test_a_digest_sees_every_byte_and_the_size(tmp_path: Path) -> None:
    path = tmp_path / "a"
    middle = bytearray(6_000_000)
    middle[2_999_999] = 1
    contents = (b"", b"abc", b"abd", b"abc\0", bytes(6_000_000), bytes(6_000_001), bytes(middle))
    digests = []
    for content in contents:
        path.write_bytes(content)
        digests.append(digest_files([path]))
    assert digests == [blake3(content).hexdigest() for content in contents]
    assert len(set(digests)) == len(contents)


def test_of_several_files_the_names_and_the_order_count(tmp_path: Path) -> None:
    files = [tmp_path / name for name in ("a", "b")]
    for path in files:
        path.write_bytes(b"the same")
    renamed = tmp_path / "c"
    renamed.write_bytes(b"the same")
    found = {digest_files(each) for each in (files, files[:1], [files[0], renamed])}
    assert len(found) == 3
    files[1].write_bytes(b"the sam3")
    assert digest_files(files) not in found

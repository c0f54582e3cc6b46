from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import (
    CTImageStorage,
    DigitalXRayImageStorageForPresentation,
    DigitalXRayImageStorageForProcessing,
    SecondaryCaptureImageStorage,
)

from pipeline.dicom.pixels import decode_dicom
from pipeline.errors import NormscopeError, SourceError
from pipeline.images.reader import decode_source, read_source
from pipeline.io.storage import write_bytes
from pipeline.privacy.key import PseudonymKey
from pipeline.records import Label, SourceImage
from pipeline.sources.dicom import list_radiographs
from tests.support.made.dicom import make_dicom, ramp, write_dicom
from tests.support.threads import thread_engine

KEY = PseudonymKey(bytes(range(32)))
NAME = "MUSTERFRAU_ERIKA"
# What the listing makes of each real file, in words of its reason; None where it is an image.
REAL_STATES = {
    "1.2.276.0.7230010.3.1.4.8323329.6904.1517875201.850819.dcm": None,
    "CR1_6154_cspine_16x16_mono1": None,
    "CT_small.dcm": "skipped: no radiograph: CT Image Storage",
    "ExplVR_BigEnd.dcm": "skipped: no radiograph: Ultrasound Image Storage",
    "Fake_MONOHR1.dcm": None,
    "MR_truncated.dcm": "skipped: no radiograph: MR Image Storage",
    "RG1_J2KI.dcm": None,
    "RG2_JPLY.dcm": None,  # fails when it is read
    "RG2_JPLY_fixed.dcm": None,
    "RG3_J2KI.dcm": None,
    "SC_rgb_jpeg_dcmtk.dcm": "skipped: no radiograph: a capture in colour",
    "SC_rgb_rle_16bit_2frame.dcm": "failed: holds 2 frames",
    "SM_small_wsi.dcm": "skipped: no radiograph: VL Whole Slide Microscopy Image Storage",
    "image_dfl.dcm": None,
    "meta_missing_tsyntax.dcm": "failed: no transfer syntax",
    "no_meta.dcm": "failed: no DICOM file",
}


def write(folder: Path, files: dict[str, Dataset | bytes]) -> str:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        data = content if isinstance(content, bytes) else write_dicom(content)
        (folder / name).write_bytes(data)
    return str(folder)


def make_named(uid: str, **attributes: Any) -> Dataset:
    values = {
        "PatientName": NAME,
        "PatientID": NAME + "-7",
        "PatientAge": "064Y",
        "PatientSex": "F",
        "StudyInstanceUID": "1.2.99",
        "SOPInstanceUID": uid,
        "ViewPosition": "PA",
    }
    return make_dicom(ramp(0, 4095), bits_stored=12, **{**values, **attributes})


def read_radiograph(image: SourceImage) -> NDArray[np.uint8]:
    return decode_source(read_source(image), image.public_name).pixels[..., 0]


def test_every_real_file_ends_in_its_state(shared_data: Path) -> None:
    folder = shared_data / "dicom"
    listing = list_radiographs(str(folder), KEY)
    names = sorted(path.name for path in folder.iterdir())
    assert names == sorted(REAL_STATES)
    listed = {Path(image.url).name for image in listing.images}
    assert listed == {name for name, state in REAL_STATES.items() if state is None}
    rejected = {entry.item.split("-")[1]: entry for entry in listing.rejected}
    for place, name in enumerate(names, 1):
        if state := REAL_STATES[name]:
            entry = rejected.pop(str(place))
            assert f"{entry.state}: {entry.reason}".startswith(state)
    assert not rejected


def test_one_of_the_real_images_fails_when_it_is_read(shared_data: Path) -> None:
    images = list_radiographs(str(shared_data / "dicom"), KEY).images
    by_name = {Path(image.url).name: image for image in images}
    damaged = by_name.pop("RG2_JPLY.dcm")
    with pytest.raises(SourceError, match="damaged JPEG") as caught:
        read_radiograph(damaged)
    assert caught.value.item == damaged.image_id
    shapes = {name: read_radiograph(image).shape for name, image in by_name.items()}
    assert len(shapes) == 7
    assert shapes["RG2_JPLY_fixed.dcm"] == (2140, 1760)


def test_columns_groups_and_pixels(tmp_path: Path) -> None:
    first = make_named("1.2.1", PatientOrientation=["L", "F"], BurnedInAnnotation="NO")
    second = make_named(
        "1.2.2", PatientAge="095Y", SOPClassUID=DigitalXRayImageStorageForPresentation
    )
    listing = list_radiographs(write(tmp_path, {"b": first, "a/c.dcm": second}), KEY)
    by_id = {image.image_id: image for image in listing.images}
    image, older = by_id[KEY.map_uid("1.2.1")], by_id[KEY.map_uid("1.2.2")]
    assert image.group_id == older.group_id == KEY.pseudonym("patient", NAME + "-7")
    assert image.label is Label.UNKNOWN
    assert image.columns == {
        "view_position": "PA",
        "age_years": 64,
        "sex": "F",
        "orientation": "L\\F",
        "photometric": "MONOCHROME2",
        "burned_in_text": "denied",
    }
    assert older.columns["age_years"] == 90  # 90 and older
    assert older.columns["burned_in_text"] == "possible"
    assert any("1 of 2 images may show burned-in text" in note for note in listing.notes)
    np.testing.assert_array_equal(
        read_radiograph(image), decode_dicom(write_dicom(first), "image").pixels
    )


@pytest.mark.parametrize(
    ("attributes", "column", "expected"),
    [
        ({"PatientAge": "412Y"}, "age_years", -1),
        ({"PatientAge": "018M"}, "age_years", 1),
        ({"PatientAge": None}, "age_years", -1),
        (
            {"PatientAge": None, "PatientBirthDate": "19600301", "StudyDate": "20200229"},
            "age_years",
            59,
        ),
        (
            {"PatientAge": None, "PatientBirthDate": "20210301", "StudyDate": "20200229"},
            "age_years",
            -1,
        ),
        ({"PatientSex": "X"}, "sex", ""),
        ({"ViewPosition": NAME[:10]}, "view_position", ""),
        ({"ViewPosition": "ap "}, "view_position", "AP"),
    ],
)
def test_odd_values_become_unknown(
    tmp_path: Path, attributes: dict[str, Any], column: str, expected: object
) -> None:
    folder = write(tmp_path, {"a.dcm": make_named("1.2.1", **attributes)})
    (image,) = list_radiographs(folder, KEY).images
    assert image.columns[column] == expected


@pytest.mark.parametrize(
    ("value", "scheme", "expected"),
    [
        ("272479007", "SCT", "PA"),
        ("399348003", "SCT", "AP"),
        ("399173006", "SCT", "LL"),
        ("399067008", "SCT", "LAT"),
        ("R-10206", "SRT", "AP"),
        ("R-10214", "SRT", "PA"),
        ("R-40888", "SRT", "PA"),
        ("R-10206", "SNM3", "AP"),
        ("r-10214 ", "99SDM", "PA"),
        ("R-10236", "SNM3", "LL"),
        ("R-10232", "99SDM", "RL"),
        ("R-102CD", "SRT", "LAT"),
        ("R-10214", "99LOCAL", ""),
        ("R-10999", "SRT", ""),
        (NAME, "99LOCAL", ""),
    ],
)
def test_a_coded_view_is_understood(tmp_path: Path, value: str, scheme: str, expected: str) -> None:
    code = Dataset()
    code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = value, scheme, NAME
    dataset = make_named("1.2.1", ViewPosition=None, ViewCodeSequence=[code])
    (image,) = list_radiographs(write(tmp_path, {"a.dcm": dataset}), KEY).images
    assert image.columns["view_position"] == expected


def test_a_damaged_view_sequence_leaves_the_view_unknown(tmp_path: Path) -> None:
    code = Dataset()
    code.CodeValue, code.CodingSchemeDesignator = "272479007", "SCT"
    data = write_dicom(make_named("1.2.1", ViewPosition=None, ViewCodeSequence=[code]))
    at = data.index(b"\x08\x00\x00\x01SH")  # CodeValue, of a value representation that is none
    damaged = data[:at] + data[at : at + 6].replace(b"SH", b"QQ") + data[at + 6 :]
    (image,) = list_radiographs(write(tmp_path, {"a.dcm": damaged}), KEY).images
    assert image.columns["view_position"] == ""


def test_a_file_without_a_uid_has_failed(tmp_path: Path) -> None:
    nameless = write_dicom(make_named("1.2.77")).replace(b"1.2.77", bytes(6))
    files: dict[str, Dataset | bytes] = {"a": make_named("1.2.1"), "b": nameless}
    listing = list_radiographs(write(tmp_path, files), KEY)
    (entry,) = listing.rejected
    assert (entry.state, entry.reason[:22]) == ("failed", "no SOP Instance UID in")


def test_images_without_a_patient_are_grouped_by_study(tmp_path: Path) -> None:
    nobody = {"PatientID": ""}
    files: dict[str, Dataset | bytes] = {
        "a": make_named("1.2.1", **nobody),
        "b": make_named("1.2.2", **nobody),
        "c": make_named("1.2.3", StudyInstanceUID="1.2.98", **nobody),
    }
    images = list_radiographs(write(tmp_path, files), KEY).images
    groups = {image.image_id: image.group_id for image in images}
    assert groups[KEY.map_uid("1.2.1")] == groups[KEY.map_uid("1.2.2")] == KEY.map_uid("1.2.99")
    assert groups[KEY.map_uid("1.2.3")] == KEY.map_uid("1.2.98")


def test_copies_are_skipped_and_files_that_share_a_uid_kept_apart(tmp_path: Path) -> None:
    files: dict[str, Dataset | bytes] = {
        "a": make_named("1.2.1"),
        "b": make_named("1.2.1"),
        "c": make_named("1.2.1", PhotometricInterpretation="MONOCHROME1"),
    }
    listing = list_radiographs(write(tmp_path / "one", files), KEY)
    ids = {image.image_id for image in listing.images}
    assert len(ids) == 2
    assert all(image_id.startswith(KEY.map_uid("1.2.1") + "-") for image_id in ids)
    assert len({image.group_id for image in listing.images}) == 1
    assert [entry.state for entry in listing.rejected] == ["skipped"]
    assert listing.rejected[0].reason.startswith("a copy of 2.25.")
    moved = {f"{NAME}/{name}": content for name, content in reversed(files.items())}
    again = list_radiographs(write(tmp_path / "two", moved), KEY)
    assert {image.image_id for image in again.images} == ids


def test_other_kinds_and_damaged_files_are_named_with_their_reason(tmp_path: Path) -> None:
    files: dict[str, Dataset | bytes] = {
        "a.dcm": make_named("1.2.1"),
        "b.dcm": make_named("1.2.2", SOPClassUID=CTImageStorage),
        "c.dcm": make_named("1.2.3", SOPClassUID=SecondaryCaptureImageStorage, Modality="US"),
        "d.dcm": make_named("1.2.4", SOPClassUID=DigitalXRayImageStorageForProcessing),
        "e.dcm": b"",
        "f.txt": b"a note",
        "g.dcm": write_dicom(make_named("1.2.5"))[:300],
        "h.dcm": make_named("1.2.6", Rows=1),
        "i.dcm": make_named("1.2.7", SOPClassUID="1.2.3.99999"),
        "DICOMDIR": b"index",
    }
    listing = list_radiographs(write(tmp_path, files), KEY)
    assert len(listing.images) == 1
    states = {
        int(entry.item.split("-")[1]): (entry.state, entry.reason) for entry in listing.rejected
    }
    assert {place: state for place, (state, _) in states.items()} == {
        3: "skipped",
        4: "skipped",
        5: "skipped",
        6: "failed",
        7: "skipped",
        8: "failed",
        9: "failed",
        10: "skipped",
    }
    for place, reason in {
        3: "CT Image",
        4: "modality US",
        5: "raw detector",
        6: "no DICOM",
        7: "no DICOM",
        9: "a side needs",
        10: "unknown SOP class",
    }.items():
        assert reason in states[place][1]


def test_nothing_of_a_person_leaves_the_listing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    named: dict[str, Any] = {
        "Modality": NAME[:15],
        "ViewPosition": NAME[:15],
        "PatientSex": NAME[:15],
    }
    inner = Dataset()
    inner.PatientName, inner.PatientID = NAME, NAME
    inner.private_block(0x0009, NAME, create=True).add_new(1, "LO", NAME)
    outer = Dataset()
    outer.ReferencedImageSequence = Sequence([inner])
    first = make_named("1.2.1", **named, AnatomicRegionSequence=[outer], StudyDescription=NAME)
    first.private_block(0x0019, NAME, create=True).add_new(1, "PN", NAME)
    first.add_new(0x60003000, "OW", NAME.encode())
    first.file_meta.SourceApplicationEntityTitle = NAME
    files: dict[str, Dataset | bytes] = {
        f"{NAME}/{NAME}.dcm": first,
        f"{NAME}.txt": NAME.encode(),
        f"{NAME}.dcm": b"\0" * 128 + b"DICM" + NAME.encode() * 9,
        f"{NAME}2.dcm": make_named("1.2.2", PhotometricInterpretation=NAME[:15]),
        f"{NAME}3.dcm": make_named("1.2.3", SOPClassUID=SecondaryCaptureImageStorage, **named),
        f"{NAME}4.dcm": make_named("1.2.4", PatientOrientation=[NAME[:9], NAME[9:]]),
        f"{NAME}5.dcm": write_dicom(make_named("1.2.5"))[:-40],
    }
    folder = write(tmp_path, files)
    listing = list_radiographs(folder, KEY)
    public = [
        (image.image_id, image.group_id, image.version, image.columns) for image in listing.images
    ]
    texts = [repr(public), repr(listing.rejected), repr(listing.notes), caplog.text]
    for image in listing.images:
        Path(image.url).chmod(0)
        try:
            read_radiograph(image)
        except NormscopeError as error:
            texts.append(repr(error.args))
        Path(image.url).unlink()
        with pytest.raises(SourceError, match="AbsentError") as caught:
            read_radiograph(image)
        texts.append(repr(caught.value.args))
    assert len(listing.images) == 3
    assert len(listing.rejected) == 4
    for text in texts:
        assert "MUSTER" not in text.upper()
        assert "1.2.9" not in text.replace("2.25.", "")


def test_a_file_that_changed_is_refused(tmp_path: Path) -> None:
    folder = write(tmp_path, {"a.dcm": make_named("1.2.1")})
    (image,) = list_radiographs(folder, KEY).images
    write(tmp_path, {"a.dcm": make_named("1.2.1", PatientComments="longer than before")})
    with pytest.raises(SourceError, match="changed since") as caught:
        read_radiograph(image)
    assert caught.value.item == image.image_id


def test_a_bucket_and_threads_give_the_same_listing(tmp_path: Path) -> None:
    files: dict[str, Dataset | bytes] = {f"{n}.dcm": make_named(f"1.2.{n}") for n in range(1, 6)}
    files["9.dcm"] = b"nothing"
    folder = write(tmp_path, files)
    for name in files:
        write_bytes(f"memory://hospital/films/{name}", (tmp_path / name).read_bytes())
    local = list_radiographs(folder, KEY)
    with thread_engine(2) as map_work:
        remote = list_radiographs("memory://hospital/films", KEY, map_work=map_work)
    assert [image.image_id for image in remote.images] == [image.image_id for image in local.images]
    assert remote.rejected == local.rejected
    for ours, theirs in zip(local.images, remote.images, strict=True):
        np.testing.assert_array_equal(read_radiograph(ours), read_radiograph(theirs))


def test_a_folder_without_radiographs_is_refused(tmp_path: Path) -> None:
    folder = write(tmp_path, {"a.txt": b"a note"})
    with pytest.raises(SourceError, match="no DICOM radiograph among 1 files; file-1-"):
        list_radiographs(folder, KEY)

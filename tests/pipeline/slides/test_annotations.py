from __future__ import annotations

import json
from codecs import BOM_UTF8
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import shapely
from defusedxml.ElementTree import fromstring
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.draw import polygon

from pipeline.errors import SourceError
from pipeline.slides.annotations import measure_lesion_fractions, outline_lesions, parse_annotations
from pipeline.slides.tiling import list_origins
from tests.support.made.slides import BOMB, write_asap

SQUARE = ((10.0, 100.0), (30.0, 100.0), (30.0, 140.0), (10.0, 140.0))  # 20 wide, 40 high


def shoelace(vertices: list[tuple[float, float]]) -> float:
    x, y = np.array(vertices).T
    return abs(float((x * np.roll(y, -1) - np.roll(x, -1) * y).sum())) / 2


def test_every_real_file_parses_and_has_its_exact_area(shared_data: Path) -> None:
    paths = sorted((shared_data / "annotations" / "camelyon16_asap_rebuilt").glob("*.xml"))
    assert len(paths) == 15
    for path in paths:
        annotations = parse_annotations(path.read_bytes(), path.name)
        outlines = [
            [(float(c.attrib["X"]), float(c.attrib["Y"])) for c in element.iter("Coordinate")]
            for element in fromstring(path.read_bytes()).iter("Annotation")
        ]
        assert len(annotations) == len(outlines)
        for annotation, outline in zip(annotations, outlines, strict=True):
            assert annotation.group in {"Tumor", "Exclusion"}
            if shapely.Polygon(outline).is_valid:
                assert annotation.geometry.area == pytest.approx(shoelace(outline), rel=1e-9)
        lesions = outline_lesions(annotations, item=path.name)
        by_hand = shapely.union_all(
            [found.geometry for found in annotations if found.group == "Tumor"]
        )
        for found in annotations:
            if found.group == "Exclusion":
                by_hand = by_hand - found.geometry
        assert lesions.area == pytest.approx(by_hand.area, rel=1e-3)


def test_shares_of_real_lesions_add_up_to_their_area(shared_data: Path) -> None:
    paths = sorted((shared_data / "annotations" / "camelyon16_asap_rebuilt").glob("*.xml"))
    assert len(paths) == 15
    for path in paths:
        lesions = outline_lesions(parse_annotations(path.read_bytes(), path.name), item=path.name)
        left, top, right, bottom = lesions.bounds
        extent = (1024, 1280)
        shape = (int(bottom - top) + 2600, int(right - left) + 2600)
        origins = list_origins(shape, extent, extent) + np.array([int(top) - 9, int(left) - 9])
        fractions = measure_lesion_fractions(lesions, origins, extent)
        assert fractions.sum() * 1024 * 1280 == pytest.approx(lesions.area, rel=1e-9)


def test_files_written_by_asap_itself_parse(shared_data: Path) -> None:
    counts = {}
    points = {"CMU-1_classification": 1, "CMU-1_detection": 1, "CMU-1_segmentation": 0}
    for path in (shared_data / "annotations" / "cmu1_asap").glob("*.xml"):
        annotations = parse_annotations(path.read_bytes(), path.name)
        counts[path.stem] = len(annotations)
        assert outline_lesions(annotations, lesion_groups=["malignant"], item=path.name).area > 0
        with pytest.raises(SourceError, match=r"benign.*lesion_groups"):
            outline_lesions(annotations, item=path.name)
        assert sum(found.geometry.is_empty for found in annotations) == points[path.stem]
    assert counts == {"CMU-1_classification": 5, "CMU-1_detection": 24, "CMU-1_segmentation": 4}


@pytest.mark.parametrize("group", ["Tumor", "_0", "_1"])
def test_camelyon16_lesion_groups(tmp_path: Path, group: str) -> None:
    path = write_asap(tmp_path / "a.xml", [(group, SQUARE)])
    lesions = outline_lesions(parse_annotations(path.read_bytes(), "a.xml"), item="a.xml")
    assert lesions.bounds == (10, 100, 30, 140)


@pytest.mark.parametrize("group", ["_2", "Exclusion"])
def test_excluded_groups_are_cut_out_of_lesions(tmp_path: Path, group: str) -> None:
    hole = ((10.0, 110.0), (20.0, 110.0), (20.0, 120.0), (10.0, 120.0))
    path = write_asap(tmp_path / "a.xml", [(group, hole), ("_1", SQUARE)])
    lesions = outline_lesions(parse_annotations(path.read_bytes(), "a.xml"), item="a.xml")
    assert lesions.area == pytest.approx(20 * 40 - 100)


def test_overlapping_lesions_count_once(tmp_path: Path) -> None:
    shifted = [(x + 5, y) for x, y in SQUARE]
    path = write_asap(tmp_path / "a.xml", [("Tumor", SQUARE), ("_0", shifted)])
    lesions = outline_lesions(parse_annotations(path.read_bytes(), "a.xml"), item="a.xml")
    assert lesions.area == pytest.approx(25 * 40)


def test_an_outline_that_crosses_itself_is_made_valid(tmp_path: Path) -> None:
    bow_tie = ((0.0, 0.0), (40.0, 20.0), (40.0, 0.0), (0.0, 20.0))
    path = write_asap(tmp_path / "a.xml", [("Tumor", bow_tie)])
    (annotation,) = parse_annotations(path.read_bytes(), "a.xml")
    assert annotation.geometry.is_valid
    assert annotation.geometry.area == pytest.approx(2 * 20 * 20 / 2)


def test_an_outline_without_area_adds_nothing_to_another(tmp_path: Path) -> None:
    path = write_asap(tmp_path / "a.xml", [("Tumor", SQUARE[:2]), ("Tumor", SQUARE)])
    click, square = parse_annotations(path.read_bytes(), "a.xml")
    assert click.geometry.is_empty
    assert outline_lesions([click, square], item="a.xml").area == pytest.approx(20 * 40)


def as_asap(kind: str, vertices: Sequence[tuple[float, float]], group: str = "Tumor") -> bytes:
    corners = "".join(
        f'<Coordinate Order="{order}" X="{x}" Y="{y}"/>' for order, (x, y) in enumerate(vertices)
    )
    return (
        f'<ASAP_Annotations><Annotations><Annotation Name="a" Type="{kind}" PartOfGroup="{group}">'
        f"<Coordinates>{corners}</Coordinates></Annotation></Annotations></ASAP_Annotations>"
    ).encode()


def as_geojson(kind: str, coordinates: object) -> dict[str, object]:
    return {
        "type": "Feature",
        "properties": {"name": "a", "classification": {"name": "Tumor"}},
        "geometry": {"type": kind, "coordinates": coordinates},
    }


@pytest.mark.parametrize(
    "content",
    [
        as_asap("Dot", SQUARE[:1]),
        as_asap("PolyLine", [*SQUARE, SQUARE[0]]),
        as_asap("Polygon", SQUARE[:2]),
        as_asap("Polygon", []),
        json.dumps(as_geojson("LineString", [*SQUARE, SQUARE[0]])).encode(),
        json.dumps(as_geojson("Point", SQUARE[0])).encode(),
    ],
    ids=["dot", "line", "click", "nothing", "geojson line", "geojson point"],
)
def test_lesions_marked_but_not_outlined_are_refused(content: bytes) -> None:
    annotations = parse_annotations(content, "a.xml")
    with pytest.raises(SourceError, match=r"a\.xml: none of its 1 .* of lesions has an area"):
        outline_lesions(annotations, item="a.xml")


def test_points_in_other_groups_say_nothing_of_lesions() -> None:
    annotations = parse_annotations(as_asap("Dot", SQUARE[:1], "cell"), "a.xml")
    with pytest.raises(SourceError, match=r"'Tumor'.*only in 'cell'.*lesion_groups"):
        outline_lesions(annotations, item="a.xml")


def test_no_annotation_is_no_lesion(tmp_path: Path) -> None:
    path = write_asap(tmp_path / "a.xml", [])
    assert outline_lesions(parse_annotations(path.read_bytes(), "a.xml"), item="a.xml").area == 0


def test_vertices_are_taken_in_their_order(tmp_path: Path) -> None:
    path = write_asap(tmp_path / "a.xml", [("Tumor", SQUARE)])
    shuffled = path.read_text().replace('Order="1"', 'Order="9"').replace('Order="2"', 'Order="1"')
    shuffled = shuffled.replace('Order="9"', 'Order="2"')  # now a bow tie
    (annotation,) = parse_annotations(shuffled.encode(), "a.xml")
    assert annotation.geometry.area == pytest.approx(400)


def test_two_vertices_of_one_order_are_refused() -> None:
    content = as_asap("Polygon", SQUARE).replace(b'Order="2"', b'Order="1"')
    with pytest.raises(SourceError, match=r"'a' has two coordinates of one order.*'1' X='30.0'"):
        parse_annotations(content, "a.xml")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"<annotations/>", "not ASAP's"),
        (b"slide,label\n", "malformed XML"),
        (b"", "malformed XML"),
        (b"\x89PNG\r\n", "malformed XML"),
        (BOMB, "hostile XML"),
        (b'<?xml version="1.0" encoding="foo"?><ASAP_Annotations/>', "unknown encoding: foo"),
        (b"<ASAP_Annotations><AnnotationGroups/></ASAP_Annotations>", "no element <Annotations>"),
        (b"[" * 200_000, "malformed JSON .recursion limit"),
        (b'{"type": "Feature"}', "not GeoJSON: feature 1: it has no geometry"),
        (b"[1, 2]", "not GeoJSON: feature 1: its feature is not an object but '1'"),
        (b"[null]", "not GeoJSON: feature 1: it has no geometry"),
        (b'{"features": true}', "`features` are not a list"),
        (
            b'[{"properties": [3], "geometry": null}]',
            r"its properties is not an object but '\[3\]'",
        ),
        (b'{"type": "Topology"}', "not GeoJSON: feature 1: "),
    ],
)
def test_refuses_what_is_no_annotation(content: bytes, said: str) -> None:
    with pytest.raises(SourceError, match=rf"lesion\.xml: .*{said}"):
        parse_annotations(content, "lesion.xml")


@pytest.mark.parametrize("bad", ["nan", "inf", "-1e308", "2e7", "left", ""])
def test_refuses_a_coordinate_that_is_no_place_on_a_slide(tmp_path: Path, bad: str) -> None:
    path = write_asap(tmp_path / "a.xml", [("Tumor", SQUARE)])
    content = path.read_text().replace('X="10.0"', f'X="{bad}"').encode()
    with pytest.raises(SourceError, match="annotation 'a'"):
        parse_annotations(content, "a.xml")


def test_reads_geojson_of_qupath() -> None:
    content = b"""{"type": "FeatureCollection", "features": [
        {"type": "Feature", "geometry": {"type": "Polygon",
         "coordinates": [[[10, 100], [30, 100], [30, 140], [10, 140], [10, 100]]]},
         "properties": {"name": "one", "classification": {"name": "Tumor"}}},
        {"type": "Feature", "geometry": {"type": "Point", "coordinates": [1, 2]},
         "properties": {}}]}"""
    annotation, point = parse_annotations(content, "a.geojson")
    assert (annotation.name, annotation.group) == ("one", "Tumor")
    assert (point.group, point.geometry.is_empty) == ("", True)
    assert annotation.geometry.bounds == (10, 100, 30, 140)


RING = [[*SQUARE, SQUARE[0]]]


@pytest.mark.parametrize("mark", [b"", BOM_UTF8], ids=["plain", "marked"])
@pytest.mark.parametrize("form", ["collection", "feature", "geometry", "list"])
def test_reads_every_form_of_geojson(form: str, mark: bytes) -> None:
    feature = as_geojson("Polygon", RING)
    document = {
        "collection": {"type": "FeatureCollection", "features": [feature]},
        "feature": feature,
        "geometry": feature["geometry"],
        "list": [feature],
    }[form]
    (annotation,) = parse_annotations(mark + json.dumps(document).encode(), "a.geojson")
    assert annotation.group == ("" if form == "geometry" else "Tumor")
    assert annotation.geometry.bounds == (10, 100, 30, 140)


def test_a_feature_need_not_say_what_or_where_it_is() -> None:
    feature = as_geojson("Polygon", RING)
    features = [feature | {"properties": None}, feature | {"geometry": None}]
    found = parse_annotations(json.dumps(features).encode(), "a.geojson")
    assert [(each.name, each.group, each.geometry.area) for each in found] == [
        ("", "", 800),
        ("a", "Tumor", 0),
    ]


@pytest.mark.parametrize("bad", ["1e308", "1e999", "NaN", '"left"'])
def test_refuses_such_a_coordinate_in_geojson_too(bad: str) -> None:
    content = json.dumps(as_geojson("Polygon", RING)).replace("30.0", bad).encode()
    with pytest.raises(SourceError, match=r"a\.geojson: "):
        parse_annotations(content, "a.geojson")


def test_share_of_known_tiles() -> None:
    lesions = shapely.box(30, 10, 50, 20)  # x 30 to 50, y 10 to 20
    origins = np.array([[10, 30], [0, 0], [10, 40], [15, 30], [30, 10]])
    fractions = measure_lesion_fractions(lesions, origins, (10, 20))
    np.testing.assert_allclose(fractions, [1.0, 0.0, 0.5, 0.5, 0.0])


def test_no_lesion_no_share() -> None:
    fractions = measure_lesion_fractions(shapely.Polygon(), np.array([[0, 0], [5, 9]]), (4, 6))
    np.testing.assert_array_equal(fractions, [0.0, 0.0])


@settings(max_examples=20)
@given(seed=st.integers(0, 10_000), count=st.integers(3, 300))
def test_shares_equal_a_full_resolution_rasterisation(seed: int, count: int) -> None:
    rng = np.random.default_rng(seed)
    angles = np.linspace(0, 2 * np.pi, count, endpoint=False)
    radii = rng.uniform(60, 120, count)
    outline = np.stack([180 + radii * np.cos(angles), 130 + radii * np.sin(angles)], axis=1)
    lesions = shapely.make_valid(shapely.Polygon(outline))
    origins = list_origins((260, 360), (52, 90), (52, 90))
    fractions = measure_lesion_fractions(lesions, origins, (52, 90))
    # Three samples a pixel on each axis, at their centres; y first, as skimage wants it.
    y, x = outline[:, 1] * 3 - 0.5, outline[:, 0] * 3 - 0.5
    rows, columns = polygon(y, x, (780, 1080))  # type: ignore[no-untyped-call]  # skimage has none
    fine = np.zeros((780, 1080))
    fine[rows, columns] = 1
    expected = fine.reshape(5, 156, 4, 270).mean(axis=(1, 3)).ravel()
    np.testing.assert_allclose(fractions, expected, atol=0.01)

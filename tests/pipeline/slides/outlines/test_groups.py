"""Which outlines are lesions, whatever the form of file and the spelling of their groups."""

from __future__ import annotations

import json
from typing import Any
from unicodedata import normalize

import numpy as np
import pytest
import shapely
from shapely.geometry.base import BaseGeometry

from pipeline.errors import SourceError
from pipeline.slides.annotations import find_touched, parse_annotations, sort_outlines
from pipeline.slides.outlines.groups import Groups

ONE = [[10, 100], [30, 100], [30, 140], [10, 140]]
TWO = [[60, 20], [90, 20], [90, 30], [60, 30]]
TUMOR = {"name": "Tumor"}


def box(corners: list[list[int]]) -> shapely.Polygon:
    return shapely.Polygon(corners)


def feature(
    classification: object, corners: list[list[int]] = ONE, **properties: object
) -> dict[str, Any]:
    return {
        "type": "Feature",
        "geometry": {"type": "Polygon", "coordinates": [[*corners, corners[0]]]},
        "properties": {"classification": classification, **properties},
    }


def geojson(*features: dict[str, Any]) -> bytes:
    return json.dumps({"type": "FeatureCollection", "features": features}).encode()


def asap(outlines: list[tuple[str, list[list[int]]]], **parents: str) -> bytes:
    drawn = "".join(
        f'<Annotation Name="a" Type="Polygon" PartOfGroup="{group}"><Coordinates>'
        + "".join(f'<Coordinate Order="{n}" X="{x}" Y="{y}"/>' for n, (x, y) in enumerate(corners))
        + "</Coordinates></Annotation>"
        for group, corners in outlines
    )
    groups = "".join(
        f'<Group Name="{name}" PartOfGroup="{parent}"/>' for name, parent in parents.items()
    )
    return (
        f"<ASAP_Annotations><Annotations>{drawn}</Annotations>"
        f"<AnnotationGroups>{groups}</AnnotationGroups></ASAP_Annotations>"
    ).encode()


def find_lesions(content: bytes, groups: Groups = Groups()) -> BaseGeometry:  # noqa: B008
    return sort_outlines(parse_annotations(content, "a.xml"), groups, item="a.xml").lesions


@pytest.mark.parametrize(
    "classification",
    [
        {"names": ["Tumor"]},
        {"names": ["Tumor", "Positive"]},
        {"names": ["Tumor", "Positive", "3+"]},
        {"name": "Tumor: Positive", "colorRGB": -1},
        {"name": "TUMOR"},
        {"name": " tumor "},
    ],
)
def test_classes_derived_from_a_lesion_are_lesions(classification: object) -> None:
    assert find_lesions(geojson(feature(classification))).equals(box(ONE))


@pytest.mark.parametrize(
    "classification",
    [{"names": ["Stroma", "Tumor"]}, {"name": "Stroma: Tumor"}, {"name": "Tumorous"}, {}, None],
)
def test_other_classes_are_not(classification: object) -> None:
    with pytest.raises(SourceError, match="no annotation in a lesion group"):
        find_lesions(geojson(feature(classification)))


def test_names_of_groups_differ_in_no_normal_form() -> None:
    drawn = geojson(feature({"name": normalize("NFD", "Läsion")}))
    assert find_lesions(drawn, Groups(lesion=("läsion",))).equals(box(ONE))


def test_the_nearest_known_class_decides() -> None:
    groups = Groups(excluded=("Tumor: Necrosis",))
    drawn = geojson(
        feature(TUMOR), feature({"names": ["Tumor", "Necrosis"]}, [*ONE[:2], [30, 120]])
    )
    assert find_lesions(drawn, groups).area == pytest.approx(20 * 40 - 20 * 20 / 2)


def test_groups_of_asap_are_of_those_above_them() -> None:
    content = asap([("IDC", ONE)], Tumor="None", Carcinoma="tumor", IDC="Carcinoma")
    assert find_lesions(content).equals(box(ONE))
    with pytest.raises(SourceError, match="only in 'IDC'"):
        find_lesions(asap([("IDC", ONE)], Tumor="None", IDC="None"))


def test_groups_that_are_part_of_each_other_end() -> None:
    content = asap([("a", ONE)], a="b", b="c", c="a")
    with pytest.raises(SourceError, match="only in 'a'"):
        find_lesions(content)


def test_a_part_of_an_excluded_group_is_excluded() -> None:
    content = asap([("Tumor", ONE), ("vessel", ONE[:3])], vessel="Exclusion")
    assert find_lesions(content).area == pytest.approx(20 * 40 / 2)


def imagescope(layer: str, *regions: str) -> bytes:
    return (
        f'<Annotations MicronsPerPixel="0.25"><Annotation Id="1" {layer}><Regions>'
        f"{''.join(regions)}</Regions></Annotation></Annotations>"
    ).encode()


def region(corners: list[list[int]], **attributes: object) -> str:
    said = "".join(f' {name}="{value}"' for name, value in attributes.items())
    vertices = "".join(f'<Vertex X="{x}" Y="{y}" Z="0"/>' for x, y in corners)
    return f"<Region{said}><Vertices>{vertices}</Vertices></Region>"


def test_imagescope_names_regions_or_their_layer() -> None:
    by_layer = imagescope('Name="Tumor"', region(ONE, Type=0, Text=""))
    by_text = imagescope('Name=""', region(ONE, Type=1, Text="tumor"), region(TWO, Text="fat"))
    assert find_lesions(by_layer).equals(box(ONE))
    assert find_lesions(by_text).equals(box(ONE))


def test_imagescope_describes_a_layer_by_an_attribute() -> None:
    described = '<Attributes><Attribute Name="Description" Value="Tumor"/></Attributes><Regions>'
    content = imagescope('Name=""', region(ONE, Type=0)).replace(b"<Regions>", described.encode())
    assert find_lesions(content).equals(box(ONE))


def test_a_negative_region_of_imagescope_is_a_hole() -> None:
    hole = region(ONE[:3], Type=0, NegativeROA=1)
    content = imagescope('Name="Tumor"', region(ONE, Type=0, NegativeROA=0), hole)
    assert find_lesions(content).area == pytest.approx(20 * 40 / 2)


def test_an_ellipse_of_imagescope_fills_its_rectangle() -> None:
    found = find_lesions(imagescope('Name="Tumor"', region([ONE[0], ONE[2]], Type=2)))
    assert found.bounds == pytest.approx((10, 100, 30, 140))
    assert found.area == pytest.approx(np.pi * 10 * 20, rel=1e-3)


@pytest.mark.parametrize("bad", ["left", "nan", "2e7"])
def test_a_vertex_of_imagescope_must_be_a_place(bad: str) -> None:
    content = imagescope('Name="Tumor"', region(ONE)).replace(b'X="30"', f'X="{bad}"'.encode())
    with pytest.raises(SourceError, match=r"a\.xml: (region|annotation)"):
        find_lesions(content)


ORIGINS = np.array([(y, x) for y in range(0, 160, 20) for x in range(0, 120, 20)])


def touched_by(*features: dict[str, Any], groups: Groups = Groups()) -> tuple[set[Any], str]:  # noqa: B008
    annotations = parse_annotations(geojson(feature(TUMOR), *features), "a.geojson")
    found = sort_outlines(annotations, groups, item="a.geojson")
    is_touched = find_touched(found.unclear, ORIGINS, (20, 20))
    return {(y, x) for y, x in ORIGINS[is_touched].tolist()}, found.remark


@pytest.mark.parametrize("classification", [{"name": "Stroma"}, {"names": ["A", "B"]}, None])
def test_what_nobody_has_explained_is_unclear(classification: dict[str, Any] | None) -> None:
    tiles, remark = touched_by(feature(classification, TWO))
    assert tiles == {(20, 60), (20, 80)}
    assert ("Stroma" in remark) == (classification == {"name": "Stroma"})
    assert "--ignored-groups" in remark


def test_points_and_lines_of_lesions_are_unclear() -> None:
    point, line = feature(TUMOR), feature(TUMOR)
    point["geometry"] = {"type": "Point", "coordinates": [65, 5]}
    line["geometry"] = {"type": "LineString", "coordinates": [[5, 5], [25, 15]]}
    click = feature(TUMOR, [[85, 145], [86, 145], [85, 145]])
    tiles, remark = touched_by(point, line, click)
    assert tiles == {(0, 60), (0, 0), (0, 20), (140, 80)}
    assert "3 of 'Tumor'" in remark


def test_groups_that_say_nothing_are_left_out() -> None:
    ignored = Groups(ignored=("stroma",))
    assert touched_by(feature({"name": "Stroma"}, TWO), groups=ignored) == (set(), "")
    alone = sort_outlines(
        parse_annotations(geojson(feature({"name": "Stroma"})), "a"), ignored, item="a"
    )
    assert alone.lesions.is_empty


def test_objects_that_a_program_has_made_say_nothing_without_a_class() -> None:
    made = feature(None, TWO, objectType="tile")
    assert touched_by(made) == (
        set(),
        "1 objects that programs make, without a class, say nothing",
    )
    assert touched_by(feature({"name": "Stroma"}, TWO, objectType="tile"))[0]


def test_ordinary_files_leave_nothing_unclear() -> None:
    assert touched_by(feature({"name": "Exclusion"}, TWO)) == (set(), "")


def test_numbers_that_nobody_needs_may_be_none() -> None:
    measured = feature(TUMOR, measurements={"Circularity": float("nan"), "Ratio": float("inf")})
    assert find_lesions(geojson(measured)).equals(box(ONE))


@pytest.mark.parametrize("classification", [None, {}, {"name": None}, {"names": []}])
def test_outlines_without_a_group_may_be_given_a_meaning(
    classification: dict[str, Any] | None,
) -> None:
    alone = geojson(feature(classification))
    assert find_lesions(alone, Groups(lesion=("",))).equals(box(ONE))
    with pytest.raises(SourceError, match="only in outlines without a group"):
        find_lesions(alone)
    assert touched_by(feature(classification), groups=Groups(ignored=("",))) == (set(), "")


def test_a_file_that_was_never_fetched_is_called_so() -> None:
    pointer = (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"ab" * 32 + b"\nsize 9\n"
    )
    with pytest.raises(SourceError, match="LFS"):
        parse_annotations(pointer, "a.xml")

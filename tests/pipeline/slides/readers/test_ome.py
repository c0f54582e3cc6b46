"""What OME-XML says of the objective, image by image."""

from __future__ import annotations

import pytest

from pipeline.slides.readers.ome import parse_ome

XML = """<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06">
 <Instrument ID="Instrument:0">
  <Objective ID="Objective:0" NominalMagnification="40.0"/>
  <Objective ID="Objective:1" NominalMagnification="{second}"/>
 </Instrument>
 <Image ID="Image:0"><ObjectiveSettings ID="Objective:{used}"/>
  <Pixels SizeX="30" SizeY="20" SizeZ="1" SizeC="3" SizeT="1" Type="uint8"/></Image>
</OME>"""


@pytest.mark.parametrize(
    ("used", "second", "power"),
    [(0, "2", 40.0), (1, "2", 2.0), (1, "", None), (1, "NaN", None), (7, "2", None)],
)
def test_the_objective_of_an_image_has_a_power(used: int, second: str, power: float | None) -> None:
    ((image,), _) = parse_ome(XML.format(used=used, second=second))
    assert image.power == power

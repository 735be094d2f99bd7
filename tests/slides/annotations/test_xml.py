"""XML of ASAP and ImageScope."""

import math

import pytest

from mpamatch.errors import InputError
from mpamatch.slides.annotations.xml import read_xml

ASAP = """<?xml version="1.0"?>
<ASAP_Annotations>
  <Annotations>
    <Annotation Name="Annotation 0" Type="Polygon" PartOfGroup="Tumor" Color="#F4FA58">
      <Coordinates>
        <Coordinate Order="0" X="10.0" Y="20.0" /><Coordinate Order="1" X="110,0" Y="20" />
        <Coordinate Order="2" X="110" Y="70" /><Coordinate Order="3" X="10" Y="70" />
      </Coordinates>
    </Annotation>
    <Annotation Name="" Type="Spline" PartOfGroup="None" Color="nothing">
      <Coordinates>
        <Coordinate Order="0" X="0" Y="0" /><Coordinate Order="1" X="4" Y="0" /><Coordinate Order="2" X="0" Y="4" />
      </Coordinates>
    </Annotation>
    <Annotation Name="" Type="Dot" PartOfGroup="Tumor" Color="#64FE2E">
      <Coordinates><Coordinate Order="0" X="0" Y="0" /></Coordinates>
    </Annotation>
  </Annotations>
  <AnnotationGroups><Group Name="Tumor" PartOfGroup="None" Color="#64FE2E"><Attributes /></Group></AnnotationGroups>
</ASAP_Annotations>
"""


def region(vertices: list[tuple[float, float]], **attributes: object) -> str:
    given = " ".join(f'{name}="{value}"' for name, value in attributes.items())
    inside = "".join(f'<Vertex X="{x}" Y="{y}" Z="0"/>' for x, y in vertices)
    return f"<Region {given}><Vertices>{inside}</Vertices></Region>"


SQUARE = [(0, 0), (100, 0), (100, 100), (0, 100)]
IMAGESCOPE = f"""<Annotations MicronsPerPixel="0.25">
<Annotation Id="1" Name="Stroma" LineColor="65535"><Attributes/><Regions>
{region(SQUARE, Id=1, Type=0, Text="a", NegativeROA=0)}
{region([(10, 10), (30, 10), (30, 30), (10, 30)], Id=2, Type=0, Text="", NegativeROA=1)}
{region([(200, 0), (240, 20)], Id=3, Type=1, NegativeROA=0)}
{region([(300, 0), (340, 20)], Id=4, Type=2, NegativeROA=0)}
{region([(0, 0), (5, 5)], Id=5, Type=3, NegativeROA=0)}
</Regions></Annotation>
<Annotation Id="2" Name="" LineColor=""><Regions>{region(SQUARE, Id=1, Type=0)}</Regions></Annotation>
</Annotations>"""


def test_asap(tmp_path):
    path = tmp_path / "a.xml"
    path.write_text(ASAP)
    found = read_xml(path)
    tumour, other = found.regions
    assert (tumour.class_name, tumour.color, tumour.name) == ("Tumor", (0xF4, 0xFA, 0x58), "Annotation 0")
    assert tumour.geometry.bounds == (10, 20, 110, 70)
    assert tumour.geometry.area == 5000
    assert (other.class_name, other.color) == (None, None)
    assert found.remarks == ("1 × Dot without an area left out.",)


def test_imagescope(tmp_path):
    path = tmp_path / "a.xml"
    path.write_text(IMAGESCOPE)
    found = read_xml(path)
    holed, rectangle, ellipse, unnamed = found.regions
    assert (holed.class_name, holed.color, holed.name) == ("Stroma", (255, 255, 0), "a")
    assert holed.geometry.area == 100**2 - 20**2
    assert rectangle.geometry.area == 40 * 20
    assert ellipse.geometry.area == pytest.approx(math.pi * 20 * 10, rel=1e-3)
    assert ellipse.geometry.bounds == (300, 0, 340, 20)
    assert (unnamed.class_name, unnamed.color) == (None, None)
    assert found.remarks == ("1 × arrow without an area left out.",)


BOMB = '<!DOCTYPE a [<!ENTITY b "bb"><!ENTITY c "&b;&b;">]><Annotations>&c;</Annotations>'


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("hello", "is no XML that can be read"),
        (ASAP[:300], "is no XML that can be read"),
        (BOMB, "is no XML that can be read"),
        ("<svg/>", "begins with <svg>, not as ASAP or ImageScope write"),
        (ASAP.replace('"110,0"', '"x"'), "has a point whose X or Y is no number"),
        (ASAP.replace('X="110,0"', ""), "has a point whose X or Y is no number"),
        (ASAP.replace('"110,0"', '"inf"'), "has coordinates that are no numbers"),
    ],
)
def test_wrong_xml_is_told_in_one_sentence(text, told, tmp_path):
    path = tmp_path / "a.xml"
    path.write_text(text)
    with pytest.raises(InputError, match=rf"^{path}: .*{told}") as caught:
        read_xml(path)
    assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="no such file"):
        read_xml(tmp_path / "none.xml")

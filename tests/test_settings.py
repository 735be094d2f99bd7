"""Settings: what is checked when they are made, in which words a fault is told, which fields would do nothing."""

import dataclasses
from dataclasses import field
from typing import Annotated, Any, ClassVar, Literal

import pytest
from annotated_types import Ge, Gt, Len, Lt, MinLen

from mpamatch.errors import InputError
from mpamatch.settings import (
    Count,
    Fraction,
    NonNegative,
    OnlyIf,
    Positive,
    Share,
    Whole,
    fields_of,
    fields_under,
    from_words,
    help_of,
    idle_fields,
    settings,
)


@settings("oven")
class OvenConfig:
    """An oven.

    Attributes:
        racks: how many.
        heat: of the air,
            in degrees.
        mode: fan or grill.
    """

    racks: Count = 1
    heat: Positive = 180.0
    mode: Literal["fan", "grill"] = "fan"
    speed: Annotated[Share, OnlyIf("mode", ("fan",))] = 0.5
    timer: Whole = 0
    open: Fraction = 0.0
    weight: NonNegative = 1.0
    moist: Annotated[float, Gt(0), Lt(1)] = 0.5
    legs: Literal[3, 4] = 4
    light: bool = True
    name: str | None = None
    label: Annotated[str, OnlyIf("name")] = "plain"
    sizes: Annotated[list[Count], Len(2, 2)] = field(default_factory=lambda: [40, 60])
    steps: Annotated[list[Positive], MinLen(1)] = field(default_factory=lambda: [1.0])
    deep: Annotated[int, Ge(2)] = 2
    probe: Share | Literal["auto", "deep"] = 0.5
    trays: list[Literal["wire", "tin"]] = field(default_factory=list)
    fuels: ClassVar[tuple[str, ...]] = ("gas", "wood")

    def __post_init__(self) -> None:
        if self.timer and not self.racks > 1:
            raise InputError("oven.timer: needs two racks.")


@settings("oven")
class SteamConfig(OvenConfig):
    """A steam oven.

    Attributes:
        water: litres.
    """

    water: Positive = 1.0


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"racks": 0}, "oven.racks: expected at least 1, got 0."),
        ({"racks": "many"}, "oven.racks: expected int, got many."),
        ({"racks": 2.5}, "oven.racks: expected int, got 2.5."),
        ({"racks": True}, "oven.racks: expected int, got True."),
        ({"racks": None}, "oven.racks: expected int, got None."),
        ({"probe": 1.5}, "oven.probe: expected 0 to 1 or auto or deep, got 1.5."),
        ({"probe": "autoo"}, "unknown oven.probe 'autoo': did you mean 'auto'?"),
        ({"probe": True}, "unknown oven.probe 'True': choose from a number, auto, deep."),
        ({"probe": float("nan")}, "oven.probe: expected float or auto or deep, got nan."),
        ({"trays": ["wir"]}, "unknown oven.trays 'wir': did you mean 'wire'?"),
        ({"trays": ["xx"]}, "unknown oven.trays 'xx': choose from tin, wire."),
        ({"trays": "wire"}, "oven.trays: expected list of one of wire, tin, got wire."),
        ({"heat": 0}, "oven.heat: expected more than 0, got 0."),
        ({"heat": float("nan")}, "oven.heat: expected float, got nan."),
        ({"heat": float("inf")}, "oven.heat: expected float, got inf."),
        ({"mode": "gril"}, "unknown oven.mode 'gril': did you mean 'grill'?"),
        ({"speed": 1.5}, "oven.speed: expected 0 to 1, got 1.5."),
        ({"timer": -1}, "oven.timer: expected at least 0, got -1."),
        ({"open": 1}, "oven.open: expected 0 <= open < 1, got 1."),
        ({"moist": 1}, "oven.moist: expected 0 < moist < 1, got 1."),
        ({"legs": 5}, "unknown oven.legs '5': choose from 3, 4."),
        ({"light": "perhaps"}, "oven.light: expected bool, got perhaps."),
        ({"name": [1]}, "oven.name: expected text or nothing, got [1]."),
        ({"sizes": [1]}, "oven.sizes: expected 2 values, got [1]."),
        ({"sizes": "wide"}, "oven.sizes: expected list of int, got wide."),
        ({"sizes": [1, "a"]}, "oven.sizes: expected list of int, got a."),
        ({"sizes": [1, 0]}, "oven.sizes: expected at least 1 each, got 0."),
        ({"steps": []}, "oven.steps: expected at least 1 values, got []."),
        ({"deep": 1}, "oven.deep: expected at least 2, got 1."),
        ({"rack": 1}, "unknown field 'oven.rack': did you mean 'oven.racks'?"),
        ({"timer": 5}, "oven.timer: needs two racks."),
        ({"racks": "x" * 500}, f"oven.racks: expected int, got {'x' * 60}…."),
    ],
)
def test_a_fault_is_one_sentence(values: dict[str, Any], says: str) -> None:
    for configuration in (OvenConfig, SteamConfig):
        with pytest.raises(InputError) as error:
            configuration(**values)
        assert str(error.value) == says


@pytest.mark.parametrize(
    ("name", "value", "becomes"),
    [
        ("racks", "3", 3),
        ("heat", "1e-3", 0.001),
        ("heat", 200, 200.0),
        ("mode", "grill", "grill"),
        ("name", 5, "5"),
        ("name", True, "true"),
        ("name", None, None),
        ("light", "false", False),
        ("sizes", [3, "4"], [3, 4]),
    ],
)
def test_values_as_yaml_reads_them(name: str, value: Any, becomes: Any) -> None:
    assert getattr(OvenConfig(**{name: value}), name) == becomes


@pytest.mark.parametrize(
    ("name", "word", "becomes"),
    [
        ("racks", "3", 3),
        ("racks", "many", "many"),
        ("sizes", "[1, 2]", [1, 2]),
        ("sizes", "[1, ", "[1, "),
        ("name", "5", "5"),
        ("name", "null", None),
        ("name", "[1]", "[1]"),
        ("mode", "3", "3"),
        ("legs", "3", 3),
        ("light", "true", True),
    ],
)
def test_words_of_the_command_line(name: str, word: str, becomes: Any) -> None:
    assert from_words(OvenConfig, name, word) == becomes


def test_made_settings_cannot_be_changed_and_a_copy_is_checked() -> None:
    config = OvenConfig()
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.racks = 5  # type: ignore[misc]
    assert dataclasses.replace(config, racks=5).racks == 5
    with pytest.raises(InputError, match=r"oven\.racks: expected at least 1"):
        dataclasses.replace(config, racks=0)
    assert OvenConfig(**dataclasses.asdict(config)) == config


def test_fields_and_their_help_come_with_those_of_the_base() -> None:
    assert list(fields_of(SteamConfig)) == [*fields_of(OvenConfig), "water"]
    assert help_of(SteamConfig) == {
        "racks": "how many.",
        "heat": "of the air, in degrees.",
        "mode": "fan or grill.",
        "water": "litres.",
    }


@settings("stove")
class StoveConfig:
    gas: str = "none"
    flame: Annotated[str, OnlyIf("gas")] = "none"
    wind: Annotated[Whole, OnlyIf("flame")] = 0
    fan: Annotated[Share, OnlyIf("gas")] = 0.0
    noise: Annotated[Whole, OnlyIf("flame", ("high", "low")) | OnlyIf("fan")] = 0
    clock: Annotated[Whole, OnlyIf("wind") | OnlyIf("timer")] = 0
    timer: Whole = 0


def test_one_of_two_conditions_is_enough() -> None:
    said = "flame is high or low, or fan is set"
    for flame, fan, idle in (("none", 0.0, True), ("mid", 0.0, True), ("low", 0.0, False), ("none", 0.5, False)):
        found = idle_fields(StoveConfig(gas="town", flame=flame, fan=fan))
        assert ("noise" in found) is idle
        assert found.get("noise", said) == said


def test_fields_under_a_field_are_off_with_it() -> None:
    assert fields_under(StoveConfig, "gas") == {"flame", "wind", "fan", "noise"}
    assert fields_under(StoveConfig, "flame") == {"wind"}  # the fan alone may make noise, the timer wind the clock
    assert fields_under(StoveConfig, "clock") == set()


def test_idle_fields_say_what_would_change_that() -> None:
    assert idle_fields(OvenConfig()) == {"label": "name is set"}
    assert idle_fields(OvenConfig(mode="grill", name="mine")) == {"speed": "mode is fan"}
    assert idle_fields(OvenConfig(name="none")) == {"label": "name is set"}


def test_a_field_takes_a_number_or_a_word():
    read = [OvenConfig(probe=from_words(OvenConfig, "probe", word)).probe for word in (".25", "1", "deep")]
    assert read == [0.25, 1.0, "deep"]


def test_what_belongs_to_the_class_is_no_field():
    """`ClassVar` stands beside the fields; nobody can set it."""
    assert "fuels" not in fields_of(SteamConfig)
    assert "fuels" not in dataclasses.asdict(SteamConfig())
    with pytest.raises(InputError, match=r"unknown field 'oven.fuels'"):
        OvenConfig(fuels=("coal",))
    assert OvenConfig.fuels == ("gas", "wood")

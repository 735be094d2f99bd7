"""Classes by name: registered, or brought by another package's entry point."""

from importlib.metadata import EntryPoint

import pytest

from mpamatch import registry as module
from mpamatch.errors import InputError
from mpamatch.registry import Registry


class Animal:
    name: str


class Cat(Animal):
    name = "cat"


class Dog(Animal):
    name = "dog"


@pytest.fixture
def animals(monkeypatch: pytest.MonkeyPatch) -> Registry:
    here = __name__
    points = {
        "dog": f"{here}:Dog",
        "wolf": f"{here}:Dog",  # has another name
        "stone": f"{here}:animals",  # is no class
        "ghost": "nowhere.at.all:Ghost",
    }
    found = [EntryPoint(name, value, "zoo") for name, value in points.items()]
    monkeypatch.setattr(module, "entry_points", lambda group: found if group == "zoo" else [])
    made: Registry = Registry(Animal, "zoo.animal", "zoo")
    made.register(Cat)
    return made


def test_classes_come_by_name(animals: Registry) -> None:
    assert animals["cat"] is Cat
    assert animals.find("dog") is Dog
    assert list(animals) == ["cat", "dog", "ghost", "stone", "wolf"]
    assert len(animals) == 5
    assert "dog" in animals
    assert "cow" not in animals


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("cta", "unknown zoo.animal 'cta': did you mean 'cat'?"),
        ("ghost", "'ghost' stands for nowhere.at.all:Ghost, which cannot be imported (No module named 'nowhere')."),
        ("stone", "expected a Animal of that name"),
        ("wolf", "expected a Animal of that name"),
    ],
)
def test_what_cannot_be_had_is_told(animals: Registry, name: str, says: str) -> None:
    with pytest.raises(InputError) as error:
        animals.find(name)
    assert says in str(error.value)


def test_a_name_is_taken_once(animals: Registry) -> None:
    class Lion(Animal):
        name = "cat"

    with pytest.raises(ValueError, match=r"'cat' is .*Cat already"):
        animals.register(Lion)
    assert animals.register(Cat) is Cat  # imported twice, as under another name of its module

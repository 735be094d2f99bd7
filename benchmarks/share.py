"""A plugin of pytest that leaves one process its share of the tests: -p mpamatch.benchmarks.share --share 2/6."""

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--share", default="1/1", help="which share of the tests, and how many there are: 2/6 (1/1)")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Every sixth test from the second on for 2/6: neighbours, which take equally long, go to different processes."""
    number, of = map(int, config.getoption("--share").split("/"))
    own = set(range(number - 1, len(items), of))
    config.hook.pytest_deselected(items=[item for place, item in enumerate(items) if place not in own])
    items[:] = [item for place, item in enumerate(items) if place in own]

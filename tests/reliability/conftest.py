"""What the commands of these tests read, made once."""

import pytest

from tests.reliability.commands import context
from tests.reliability.full_disk import make_stopped
from tests.reliability.scenarios import Shared, make_shared


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Shared:
    """A prepared set, its raw folder, a trained run, a run that was stopped, and a slide."""
    context()
    made = make_shared(tmp_path_factory.mktemp("shared"))
    make_stopped(made)
    for path in made.folder.parents:  # for the user without rights
        if path.owner() == made.folder.owner() and path.stat().st_mode & 0o777 == 0o700:
            path.chmod(0o711)
    return made

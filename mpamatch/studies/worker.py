"""One run of a sweep in a process of its own: `python -m mpamatch.studies.worker`, the run as a line of JSON on stdin.

The result is the last line of stdout, as JSON. Exit code 2 and one sentence on stderr for bad input, 3 and one for a
full disk. It ends when its stdin does, which is when the study ends: a study that was killed could not go on while its
worker trains.
"""

import json
import os
import sys
import threading

from mpamatch.environment import show_all
from mpamatch.errors import InputError, WriteError
from mpamatch.studies.sweep import UNWRITABLE, StudyRun, Sweep, do_run


def main(line: str) -> int:
    """Does the run that `line` describes, prints its result and returns the exit code."""
    show_all()
    asked = json.loads(line)
    run = StudyRun(**{**asked["run"], "flags": tuple(asked["run"]["flags"])})
    try:
        result = do_run(Sweep(**asked["sweep"]), run)
    except InputError as error:
        print(error, file=sys.stderr)
        return UNWRITABLE if isinstance(error, WriteError) else 2
    print(json.dumps(result))
    return 0


def _end_with_the_study() -> None:
    """Waits for the end of stdin and ends this process as a kill would: a run goes on from there."""
    os.read(sys.stdin.fileno(), 1)  # sys.stdin.read would hold a lock that the ordinary exit waits for
    os._exit(1)


if __name__ == "__main__":
    asked = sys.stdin.readline()
    threading.Thread(target=_end_with_the_study, daemon=True).start()
    sys.exit(main(asked))

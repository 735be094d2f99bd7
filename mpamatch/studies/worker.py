"""One run of a sweep in a process of its own: `python -m mpamatch.studies.worker` with the run as JSON on stdin.

The result is the last line of stdout, as JSON. Exit code 2 and one sentence on stderr for bad input.
"""

import json
import sys

from mpamatch.errors import InputError
from mpamatch.studies.sweep import StudyRun, Sweep, do_run


def main() -> int:
    """Does the run, prints its result and returns the exit code."""
    asked = json.load(sys.stdin)
    run = StudyRun(**{**asked["run"], "flags": tuple(asked["run"]["flags"])})
    try:
        result = do_run(Sweep(**asked["sweep"]), run)
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())

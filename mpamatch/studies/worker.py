"""One run of a sweep in a process of its own: `python -m mpamatch.studies.worker` with the case as JSON on stdin.

The result is the last line of stdout, as JSON. Exit code 2 and one sentence on stderr for bad input.
"""

import json
import sys

from mpamatch.errors import InputError
from mpamatch.studies.sweep import Case, Sweep, run_case


def main() -> int:
    asked = json.load(sys.stdin)
    case = Case(**{**asked["case"], "flags": tuple(asked["case"]["flags"])})
    try:
        result = run_case(Sweep(**asked["sweep"]), case)
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())

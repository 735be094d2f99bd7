"""Which slides are whose, if several processes or machines share a list: a pure function of each slide's path."""

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mpamatch.errors import InputError

# Which process this is and of how many: array jobs of SLURM, then torchrun.
ENVIRONMENT = (("SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_COUNT", "SLURM_ARRAY_TASK_MIN"), ("RANK", "WORLD_SIZE", ""))


@dataclass(frozen=True)
class Shard:
    """The share of one process: number `index`, from 0, of `count`."""

    index: int
    count: int

    def owns(self, path: Path) -> bool:
        """Tells whether a file belongs to this share; every file belongs to exactly one of `count`.

        By the bytes of its absolute path: the same on every machine that sees the file under this path.
        """
        digest = hashlib.sha256(os.fsencode(path.absolute())).digest()
        return int.from_bytes(digest[:8], "big") % self.count == self.index

    def split(self, index: int, count: int) -> "Shard":
        """Returns number `index`, from 0, of `count` parts of this share."""
        return Shard(self.index * count + index, self.count * count)


ALONE = Shard(0, 1)


def shard_of(word: str | None, environment: Mapping[str, str] = os.environ) -> Shard:
    """Reads `i/n`, the i-th of n shares counted from 1, or `auto`: from SLURM's array or torchrun. None: all is ours.

    An array counts from its first index (`--array=0-9`, `--array=1-10`), and must have no gaps.

    Raises InputError if it is neither, is out of range, or `auto` finds nothing to go by.
    """
    if word is None:
        return ALONE
    if word == "auto":
        return _found(environment)
    index, _, count = word.partition("/")
    if not (index.isdecimal() and count.isdecimal() and 1 <= int(index) <= int(count)):
        raise InputError(f"--shard {word}: expected such as 2/8, the second of eight shares, or auto.")
    return Shard(int(index) - 1, int(count))


def _found(environment: Mapping[str, str]) -> Shard:
    """Finds the share by the environment; in an array of torchruns the share of the rank in that of the task."""
    shard, known = ALONE, False
    for name, of, first in ENVIRONMENT:
        if name not in environment or of not in environment:
            continue
        told = f"--shard auto: {name}={environment[name]} and {of}={environment[of]}"
        try:
            index, count = int(environment[name]) - int(environment.get(first, "0")), int(environment[of])
        except ValueError:
            raise InputError(f"{told}: must be numbers.") from None
        if not 0 <= index < count:
            raise InputError(f"{told}: number the array's tasks one by one, such as --array=0-9.")
        shard, known = shard.split(index, count), True
    if not known:
        raise InputError(
            "--shard auto: neither an array job of SLURM (SLURM_ARRAY_TASK_ID and _COUNT) nor torchrun (RANK and "
            "WORLD_SIZE): give --shard 1/8."
        )
    return shard

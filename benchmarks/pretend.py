"""Tells whether this is a dry run of gpu_check: then every row says so, and no figure stands for a GPU."""

import os

VARIABLE = "MPAMATCH_PRETEND"  # set by `gpu_check --pretend` for the processes that it starts


def pretended() -> bool:
    return os.environ.get(VARIABLE) == "1"

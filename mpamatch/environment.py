"""What a process finds around itself and libraries trip over: a terminal that lacks characters, a user without name."""

import contextlib
import getpass
import io
import os
import sys
from pathlib import Path


def show_all() -> None:
    """Lets standard output and errors write an escape for what their encoding lacks, instead of an exception.

    That is an arrow in ASCII or Windows' cp1252, and in any encoding a byte of a file name that is no UTF-8.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def name_user() -> None:
    """Gives a user without an entry in the system's list of users a name and a home in the environment.

    Containers, HTCondor and OpenShift run processes as numbers. torch asks for the user's name while it is imported
    (torch 2.11: torch._inductor's default_cache_dir), and caches are looked for in a home.
    """
    if os.name != "posix":
        return
    try:
        getpass.getuser()
    except (KeyError, OSError):
        os.environ["LOGNAME"] = f"uid-{os.getuid()}"
    try:
        Path.home()
    except RuntimeError:  # libraries would make a folder called ~
        import tempfile  # 10 ms, which a command's help has no use for

        os.environ["HOME"] = str(_own_folder(Path(tempfile.gettempdir()) / f"mpamatch-{os.getuid()}"))


def _own_folder(folder: Path) -> Path:
    """Makes a folder that nobody else can write to: compiled code is cached there. Another one if it is not ours."""
    with contextlib.suppress(OSError):
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.lstat()
        if found.st_uid == os.getuid() and found.st_mode & 0o777 == 0o700 and not folder.is_symlink():
            return folder
    import tempfile

    return Path(tempfile.mkdtemp(prefix="mpamatch-"))

"""A fingerprint of the native sources. CMake runs this file and compiles the result into the library."""

import hashlib
from pathlib import Path

CSRC = Path(__file__).parent.parent.parent / "csrc"


def source_hash(*parts: str) -> str:
    """Hashes names and contents of the files below these parts of csrc/ to 16 hexadecimal digits."""
    files = [path for part in parts for path in [CSRC / part, *(CSRC / part).rglob("*")] if path.is_file()]
    digest = hashlib.sha256()
    for path in sorted(files):
        content = path.read_bytes()
        digest.update(f"{path.relative_to(CSRC).as_posix()} {len(content)}\n".encode() + content)
    return digest.hexdigest()[:16]


def of_cpu() -> str:
    """Hashes what `_C` is built from."""
    return source_hash("arguments", "bindings", "core", "cpu", "module.cpp", "operations.cmake")


def of_cuda() -> str:
    """Hashes what `_cuda` is built from."""
    return source_hash("arguments", "bindings", "cuda", "operations.cmake")


if __name__ == "__main__":
    print(of_cpu(), of_cuda(), sep=";")

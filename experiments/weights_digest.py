"""Do two versions of the code train the same weights, to the last bit? Run this under each and compare what it prints.

    python experiments/weights_digest.py --gland data/ebhi-gland --weak data/ebhi-weak

Every method trains for --steps steps by the recipe of its set on the CPU; a line gives the method and one SHA-256 over
all tensors of its last checkpoint: weights, prototypes, teacher and the optimizer's moments. Tensors count by shape and
content and not by name, so a class or an attribute may be renamed. The script uses the command line alone, which old
and new versions share.
"""

import argparse
import hashlib
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from safetensors import safe_open

# Each method once, and mpamatch with text prototypes too.
METHODS: dict[str, list[str]] = {
    "supervised": [],
    "mean_teacher": [],
    "fixmatch": [],
    "unimatch": [],
    "mpamatch": [],
    "mpamatch with text": ["--method.text_encoder", "minilm", "--method.context_tokens", "1"],
    "pccs": [],
    "lpd": [],
}
# Stages that a recipe begins later than in 20 steps.
FROM_THE_START = {
    "mpamatch": ["--method.start", "5", "--method.ramp", "5"],
    "pccs": ["--method.start", "3", "--method.contrast_start", "6", "--method.ramp", "10"],
    "lpd": ["--method.start", "5"],
}


def digest(checkpoint: Path) -> str:
    """SHA-256 over the tensors of a safetensors file, whatever their names."""
    with safe_open(checkpoint, framework="pt") as file:
        tensors = [file.get_tensor(name) for name in file.keys()]  # noqa: SIM118 - no mapping
    each = sorted(
        hashlib.sha256(f"{tensor.dtype} {tuple(tensor.shape)}".encode() + tensor.numpy().tobytes()).hexdigest()
        for tensor in tensors
    )
    return hashlib.sha256("\n".join(each).encode()).hexdigest()


def train(label: str, steps: int, gland: str, weak: str, run: Path) -> None:
    """Trains `label` in the folder `run`. Raises CalledProcessError if the command fails."""
    method = label.split()[0]
    recipe, data = ("ebhi-seg-weak", weak) if method == "lpd" else ("ebhi-seg-gland", gland)
    fields = {"data.root": data, "method.name": method, "engine.steps": steps, "engine.device": "cpu"}
    fields |= {"data.feed": "torchvision", "engine.seed": 3}
    flags = [word for name, value in fields.items() for word in (f"--{name}", str(value))]
    command = [sys.executable, "-m", "mpamatch", "train", "--recipe", recipe, "--run", str(run), *flags]
    command += [*FROM_THE_START.get(method, []), *METHODS[label]]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env={**os.environ, "OMP_NUM_THREADS": "1"})


def main() -> int:
    parser = argparse.ArgumentParser(description="One digest of the trained weights per method.")
    parser.add_argument("--gland", required=True, help="ebhi-seg prepared with --task gland, and split")
    parser.add_argument("--weak", required=True, help="ebhi-seg prepared with --task weak")
    parser.add_argument("--steps", type=int, default=20, help="of training, per method (20)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for label in METHODS:
            run = Path(folder) / label.replace(" ", "-")
            train(label, arguments.steps, arguments.gland, arguments.weak, run)
            print(f"{label:20} {digest(run / 'checkpoints' / 'last.safetensors')}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())

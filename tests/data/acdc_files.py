"""Files of ACDC in its layouts, made up; needs the libraries of the extra acdc."""

from pathlib import Path

import h5py
import nibabel
import numpy as np

DEPTH, HEIGHT, WIDTH = 3, 20, 24


def volume(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Greys (Z, H, W) int16 with an outlier, and labels (Z, H, W) uint8 that tell their slice."""
    image = np.random.default_rng(seed).integers(0, 400, (DEPTH, HEIGHT, WIDTH)).astype(np.int16)
    image[0, 0, 0] = 30000
    label = np.zeros(image.shape, dtype=np.uint8)
    for z in range(DEPTH):
        label[z, 2 + z : 8, 3:9] = 1 + z % 3
        label[z, 10:15, 4:20] = 1 + (z + 1) % 3
    return image, label


def nifti(folder: Path, patient: int, truth: bool = True) -> None:
    """A patient as distributed: two moments, their ground truth, the 4D file and a table."""
    name = f"patient{patient:03d}"
    (folder / name).mkdir(parents=True)
    for number in ("01", "12"):
        image, label = volume(2 * patient + (number == "12"))
        for ending, array in (("", image), ("_gt", label)):
            if not ending or truth:
                stored = nibabel.Nifti1Image(array.T, np.diag([1.5, 1.5, 10, 1]))
                nibabel.save(stored, folder / name / f"{name}_frame{number}{ending}.nii.gz")
    (folder / name / f"{name}_4d.nii.gz").write_bytes(b"never opened")
    (folder / name / "Info.cfg").write_text("ED: 1\nES: 12\n")


def hdf5(path: Path, **arrays: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        for name, array in arrays.items():
            file.create_dataset(name, data=array)
    return path


def slices(folder: Path, patient: int, frame: str = "01") -> None:
    image, label = volume(2 * patient)
    for z in range(DEPTH):
        name = f"patient{patient:03d}_frame{frame}_slice_{z + 1}.h5"
        hdf5(folder / name, image=image[z].astype(np.float32), label=label[z], scribble=label[z])


def acdc_folder(root: Path) -> Path:
    """ACDC as distributed: five training and two testing patients."""
    source = root / "ACDC"
    for patient in range(1, 6):
        nifti(source / "database" / "training", patient)
    for patient in (101, 102):
        nifti(source / "database" / "testing", patient)
    return source

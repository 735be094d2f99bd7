"""Lists of names as published splits come: forms of lines, names of every kind, and what is refused."""

import importlib
import os
import random
from pathlib import Path

import numpy as np
import pytest

from mpamatch.cli import main
from mpamatch.data.name_lists import read_name_list
from mpamatch.data.prepared import Class, Item, Prepared, RawSet, load_prepared, write_prepared
from mpamatch.errors import InputError
from mpamatch.images import IMAGE_SUFFIXES, read_image

TRAIN = ("train_1", "train_2", "train_3", "benign (1)", "a,b", "two words", "#4", "v1.final cut", "MPP-0.2500", "bare")
WITHOUT_MASK = "train_9"
RENAMED = (
    "polyp-GT01-1",
    "high-grade-in-GT01-1",
    "polyp-GT02-1",
    "patient001-frame01-slice03",
    "café-1",
    "c",
    "c,d",
    "x-",
)


def make_set(root: Path, stems: tuple[str, ...]) -> Prepared:
    """A set of these training images, one without mask, one validation and one test image."""
    plain = np.zeros((16, 16, 3), np.uint8)
    items = [Item(stem, stem, "train", plain, np.eye(16, dtype=np.uint8)) for stem in stems]
    items.append(Item(WITHOUT_MASK, WITHOUT_MASK, "train", plain, None))
    items += [Item(f"{part}_1", part, part, plain, np.eye(16, dtype=np.uint8)) for part in ("validation", "test")]
    classes = (Class("background", (0, 0, 0)), Class("gland", (1, 2, 3)))
    return write_prepared(root, RawSet("set", classes, items, len(items), None, "", ""))


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> Prepared:
    return make_set(tmp_path_factory.mktemp("plain") / "set", TRAIN)


@pytest.fixture(scope="module")
def renamed(tmp_path_factory) -> Prepared:
    return make_set(tmp_path_factory.mktemp("renamed") / "set", RENAMED)


def read(prepared: Prepared, text: str | bytes, folder: Path) -> list[str]:
    """The stems of the images that a list of this text names."""
    path = folder / "list.txt"
    path.write_bytes(text if isinstance(text, bytes) else text.encode(errors="surrogateescape"))
    return [Path(image).stem for image in read_name_list(prepared, path).images]


def refused(prepared: Prepared, text: str | bytes, folder: Path) -> str:
    """The sentence with which a list of this text is refused, without the list's path."""
    with pytest.raises(InputError) as caught:
        read(prepared, text, folder)
    start = f"{folder / 'list.txt'}: "
    assert str(caught.value).startswith(start)
    assert "\n" not in str(caught.value)
    return str(caught.value).removeprefix(start)


# Forms of lines


@pytest.mark.parametrize(
    ("line", "stem"),
    [
        ("train_2", "train_2"),
        ("train_2.png", "train_2"),
        ("train_2.bmp", "train_2"),
        ("  train_2.png\t", "train_2"),
        ("./Warwick_QU/train_2.bmp", "train_2"),
        ("C:\\data\\train_2.bmp", "train_2"),
        ("images/train_2.bmp masks/train_2_anno.bmp", "train_2"),
        ("images/train_2.bmp masks/train_2.png", "train_2"),
        ("images/train_2.bmp # the best one", "train_2"),
        ("train_2,benign,3", "train_2"),
        ("train_2.bmp,train_2_anno.bmp", "train_2"),
        ('"train_2.bmp","benign, but large"', "train_2"),
        ("train_2\tbenign tissue", "train_2"),
        ("train_2.png,bare", "train_2"),
        ("benign (1)", "benign (1)"),
        ("benign (1).png", "benign (1)"),
        ("some folder/benign (1).png other folder/benign (1)_mask.png", "benign (1)"),
        ("benign (1).png,benign", "benign (1)"),
        ("a,b", "a,b"),
        ("images/a,b.png", "a,b"),
        ("two words", "two words"),
        ("two words.tif", "two words"),
        ("#4.png", "#4"),
        ("v1.final cut.png", "v1.final cut"),
        ("MPP-0.2500", "MPP-0.2500"),
        ("MPP-0.2500.png", "MPP-0.2500"),
        ("Train_02.PNG", "train_2"),
        ("train_2.nii.gz", "train_2"),
    ],
)
def test_a_line_may_have_many_forms(prepared, line, stem, tmp_path):
    assert read(prepared, line + "\n", tmp_path) == [stem]
    assert read(prepared, f"bare\n{line}\ntrain_3.png", tmp_path) == ["bare", stem, "train_3"]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_encodings_and_ends_of_lines(prepared, end, encoding, tmp_path):
    text = end.join(["# published", "", "train_3.bmp", "   ", "train_1.bmp"])
    assert read(prepared, text.encode(encoding), tmp_path) == ["train_3", "train_1"]


@pytest.mark.parametrize("header", ["image", "Image Name,grade", "file_name\tmask", "# anything", "img_path,mask_path"])
def test_a_header_and_comments_are_passed_over(prepared, header, tmp_path):
    assert read(prepared, f"\n{header}\ntrain_1.png,x\n#train_2.png\n", tmp_path) == ["train_1"]
    assert "unknown image" in refused(prepared, "train_1.png\nimage,grade\n", tmp_path), "in the first line alone"


def test_names_that_are_no_utf_8(tmp_path):
    name = os.fsdecode(b"caf\xe9 1")
    prepared = make_set(tmp_path / "set", (name, "plain"))
    assert read(prepared, b"images/caf\xe9 1.png masks/x.png\n", tmp_path) == [name]
    assert "unknown image 'caf\\udce8 1.png' (line 1)" in refused(prepared, b"caf\xe8 1.png\nplain", tmp_path)


# Names that `prepare` made


@pytest.mark.parametrize(
    ("line", "stem"),
    [
        ("Polyp/image/GT01-1.png", "polyp-GT01-1"),
        ("EBHI/High-grade IN/image/GT01-1.png", "high-grade-in-GT01-1"),
        ("GT02-1.png", "polyp-GT02-1"),
        ("images/GT02-1.png", "polyp-GT02-1"),
        ("polyp-GT01-1", "polyp-GT01-1"),
        ("patient001_frame01_slice_3", "patient001-frame01-slice03"),
        ("data/slices/patient001_frame01_slice_3.h5", "patient001-frame01-slice03"),
        ("cafe\u0301_1_img.png", "café-1"),  # é as macOS writes it
        ("c,d", "c,d"),
        ("c,e", "c"),
    ],
)
def test_a_name_as_published_finds_the_image(renamed, line, stem, tmp_path):
    assert read(renamed, line, tmp_path) == [stem]


def test_the_names_that_differ_are_told(renamed, tmp_path):
    path = tmp_path / "list.txt"
    path.write_text("polyp-GT01-1.bmp\nGT02-1.png\n")
    assert read_name_list(renamed, path).renamed == {"GT02-1.png": "polyp-GT02-1.png"}


@pytest.mark.parametrize("kind", ["glas", "ebhi_seg", "kpi", "busi", "folder"])
def test_the_files_of_every_kind_name_their_images(kind, tmp_path):
    """Which image a raw file became is told by its pixels."""
    words = importlib.import_module(f"tests.data.test_source_{kind}").prepare_words(tmp_path / "raw", tmp_path / "set")
    assert main(["prepare", *words]) == 0
    prepared = load_prepared(tmp_path / "set")
    raw = {read_image(path).tobytes(): path for path in files(tmp_path / "raw") if "mask" not in str(path)}
    source_of = {image: raw[read_image(prepared.image_path(image)).tobytes()] for image in prepared.labelled("train")}
    assert len(source_of) > 2
    images = list(source_of)
    random.Random(0).shuffle(images)
    text = "\n".join(str(source_of[image].relative_to(tmp_path / "raw")) for image in images)
    assert read(prepared, text, tmp_path) == [Path(image).stem for image in images]


def files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES - {".tiff"}]


# What is refused


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("train_1\ntrain_22.png", "unknown image 'train_22.png' (line 2): did you mean 'train_2.png'?"),
        ("a/trian_1.bmp b/trian_1.png", "unknown image 'a/trian_1.bmp' (line 1): did you mean 'train_1.png'?"),
        ("train_1\n\nQQQQ,3", "unknown image 'QQQQ' (line 3): the set's names are such as '#4.png'."),
        (
            "\n".join(f"y{i}" for i in range(5)),
            "unknown image 'y0' (line 1), 'y1' (line 2), 'y2' (line 3) and 2 more: ",
        ),
        ("train_1\ntest_1.png", "not in the training part: 'test_1.png' (line 2, test): leave it out"),
        ("validation_1\ntest_1", "'validation_1' (line 1, validation), 'test_1' (line 2, test): leave"),
        ("x/train_9.png", "has no mask: 'x/train_9.png' (line 1): leave it out, or add its mask to the set."),
        ("train_1\ntrain_2\ntrain_1.bmp", "named twice: 'train_1.bmp' (lines 1 and 3): leave one of the lines out."),
        ("train_1.png,train_2.png,train_3.png", "names several images: 'train_1.png' (line 1), with 'train_2.png': "),
        ("train_1.png train_2.bmp", "names several images: 'train_1.png' (line 1), with 'train_2.png': "),
        ("", "names no image"),
        ("# nothing\n\n", "names no image"),
        (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "is no text file"),
        (b"\xff\xfet", "is no text file"),
        ("a " * 100_000, "unknown image 'a a a"),
        ('"' * 200_000, "unknown image"),
    ],
)
def test_a_list_that_does_not_fit_is_refused(prepared, text, says, tmp_path):
    assert says in refused(prepared, text, tmp_path)


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (
            "GT01-1.png",
            "can be more than one image: 'GT01-1.png' (line 1): write 'high-grade-in-GT01-1.png' or 'polyp-",
        ),
        (
            "Adenocarcinoma/image/GT02-1.png",
            "lies in other folders than the image of that name: 'Adenocarcinoma/image/",
        ),
        ("Adenocarcinoma/image/GT02-1.png", "(line 1): write 'polyp-GT02-1.png' if that is meant."),
        ("???", "unknown image '???' (line 1): "),
    ],
)
def test_an_image_is_not_guessed(renamed, line, says, tmp_path):
    assert says in refused(renamed, line, tmp_path)


def test_a_list_that_cannot_be_read(prepared, tmp_path):
    for path, why in ((tmp_path / "nowhere.txt", "No such file"), (tmp_path, "Is a directory")):
        with pytest.raises(InputError, match=why) as caught:
            read_name_list(prepared, path)
        assert str(path) in str(caught.value)

"""Bad input: one sentence that names the file or field, exit code 2, no traceback, nothing half-written."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import save_file
from torch import zeros

from mpamatch.cli import main
from mpamatch.data.kinds import kinds
from mpamatch.data.prepared import load_prepared
from mpamatch.engine.loop import train
from mpamatch.images import read_image
from tests.tiny import SPLIT, file_limit, make_set, silent, tiny_config, tiny_flags, train_until

pytestmark = pytest.mark.slow

SIDE = 32


@pytest.fixture
def refused(tmp_path, capsys):
    """Runs a command that must fail, and looks at what it says and leaves; `may_leave` names folders it may make."""

    def refused(words, *says, may_leave=()):
        before = tree(tmp_path, may_leave)
        try:
            code = main([str(word) for word in words])
        except SystemExit as end:
            code = end.code
        errors = capsys.readouterr().err
        sentence = errors.splitlines()[-1]  # a bar of progress may stand before it
        assert code == 2
        assert "Traceback" not in errors
        assert sentence.startswith("mpamatch: ")
        assert sum(line.startswith("mpamatch") for line in errors.splitlines()) == 1
        for word in says:
            assert str(word) in sentence
        assert tree(tmp_path, may_leave) == before
        assert not list(tmp_path.rglob(".*"))  # temporary files begin with a dot

    return refused


def tree(folder, without):
    """Every file with its content."""
    kept = (path for path in folder.rglob("*") if not any(path.is_relative_to(folder / name) for name in without))
    return {path: path.read_bytes() if path.is_file() else None for path in kept}


@pytest.fixture(scope="module")
def ready(tmp_path_factory):
    """A prepared set and a finished run on it."""
    folder = tmp_path_factory.mktemp("ready")
    prepared = make_set(folder / "set")
    train(tiny_config(prepared.root), folder / "run", console=silent())
    return folder


@pytest.fixture
def data(ready, tmp_path):
    """A prepared set to be spoiled."""
    return shutil.copytree(ready / "set", tmp_path / "set")


def labelled_of(data):
    """The first labelled image of the split and its mask."""
    name = json.loads((data / "splits" / f"{SPLIT}.json").read_text())["labelled"][0]
    prepared = load_prepared(data)
    return prepared.image_path(name), prepared.mask_path(name)


def train_words(data, fields=None, method="supervised"):
    return ["train", "--recipe", "demo", "--run", data.parent / "run", *tiny_flags(data, method, fields)]


@pytest.fixture
def raw(tmp_path):
    """A raw folder of four images with masks, to be spoiled; and the words that prepare it."""
    rng = np.random.default_rng(0)
    for kind in ("images", "masks"):
        (tmp_path / "raw" / kind).mkdir(parents=True)
    for index in range(4):
        pixels = rng.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "raw" / "images" / f"a{index}.png")
        Image.fromarray(pixels[..., 0] % 2).save(tmp_path / "raw" / "masks" / f"a{index}.png")
    return tmp_path / "raw"


def prepare_words(raw, *more):
    return ["prepare", "folder", raw, raw.parent / "prepared", *more]


def cut_short(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


# Folders


def test_missing_folder(refused, ready, tmp_path):
    nope = tmp_path / "nope"
    for kind in (one.name for one in kinds().values() if one.takes_source):
        refused(["prepare", kind, nope, tmp_path / "out"], nope)
    refused(["split", nope, "--labelled", "4"], nope)
    refused(["check", nope], nope)
    refused(train_words(nope), nope)
    refused(["train", "--resume", nope], nope)
    refused(["evaluate", nope], nope)
    refused(["evaluate", ready / "run", "--data", nope], nope)
    refused(["predict", nope, ready / "set" / "images", "--out", tmp_path / "out"], nope)
    refused(["predict", ready / "run", nope, "--out", tmp_path / "out"], nope)
    refused(["train", "--config", nope / "own.yaml"], nope / "own.yaml")


def test_no_image(refused, ready, raw, tmp_path):
    for path in (raw / "images").iterdir():
        path.unlink()
    for path in (raw / "masks").iterdir():
        path.unlink()
    refused(prepare_words(raw), raw / "images", "no image")
    refused(["predict", ready / "run", raw / "images", "--out", tmp_path / "out"], raw / "images", "no image")


def test_masks_without_images(refused, raw):
    (raw / "images" / "a1.png").unlink()
    refused(prepare_words(raw), raw / "masks" / "a1.png", "mask without image")


def test_no_training_image_listed(refused, data):
    listing = json.loads((data / "parts.json").read_text())
    listing["parts"]["train"] = []
    (data / "parts.json").write_text(json.dumps(listing))
    refused(train_words(data), data / "parts.json", "no training image")


def test_a_folder_that_is_no_run(refused, ready, tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    for folder in (empty, ready / "set"):
        refused(["train", "--resume", folder], folder, "no run folder")
        refused(["evaluate", folder], folder, "no run folder")
        refused(["predict", folder, ready / "set" / "images", "--out", tmp_path / "out"], folder, "no run folder")


def test_a_folder_that_is_no_prepared_set(refused, ready, tmp_path):
    refused(["check", tmp_path], tmp_path, "prepare it first")
    refused(train_words(ready / "run"), ready / "run", "prepare it first")
    refused(["split", tmp_path, "--labelled", "2"], tmp_path, "prepare it first")


def test_an_explicit_run_folder_that_exists(refused, data):
    run = data.parent / "run"
    run.mkdir()
    refused(train_words(data), run, "exists already")


def test_a_run_folder_that_cannot_be_made(refused, data):
    words = ["train", "--recipe", "demo", "--run", data / "dataset.json" / "run", *tiny_flags(data, "supervised")]
    refused(words, data / "dataset.json" / "run")


def test_an_output_folder_that_holds_something(refused, ready, raw):
    refused(["predict", ready / "run", raw / "images", "--out", raw], raw, "not empty")
    refused(["prepare", "folder", raw, raw / "images"], raw / "images", "is there already")


# Images and masks


def test_mask_and_image_of_different_size(refused, raw, data):
    Image.fromarray(np.eye(SIDE, SIDE + 1, dtype=np.uint8)).save(raw / "masks" / "a2.png")
    refused(prepare_words(raw), "a2", f"{SIDE + 1}×{SIDE}")
    _, mask = labelled_of(data)
    Image.fromarray(np.zeros((48, 47), dtype=np.uint8)).save(mask)
    refused(train_words(data), mask, "47×48", "48×48", may_leave=["run"])


def test_class_index_out_of_range(refused, raw, data):
    Image.fromarray(np.full((SIDE, SIDE), 7, dtype=np.uint8)).save(raw / "masks" / "a3.png")
    refused(prepare_words(raw, "--mask-values", "0:background,1:gland"), raw / "masks" / "a3.png", "7")
    _, mask = labelled_of(data)
    Image.fromarray(np.full((48, 48), 2, dtype=np.uint8)).save(mask)
    refused(train_words(data), mask, "class index 2", may_leave=["run"])


def test_class_index_out_of_range_in_the_part_that_is_scored(refused, ready, data):
    mask = load_prepared(data).mask_path(load_prepared(data).labelled("test")[0])
    Image.fromarray(np.full((48, 48), 2, dtype=np.uint8)).save(mask)
    refused(["evaluate", ready / "run", "--data", data, "--device", "cpu"], mask, "class index 2")


def test_truncated_png(refused, ready, raw, data, tmp_path):
    cut_short(raw / "images" / "a0.png")
    refused(prepare_words(raw), raw / "images" / "a0.png", "cannot be decoded")
    image = raw / "images" / "a0.png"
    refused(["predict", ready / "run", image, "--out", tmp_path / "out", "--device", "cpu"], image, "cannot be decoded")
    for image in (data / "images").iterdir():
        cut_short(image)
    refused(train_words(data), data / "images", "cannot be decoded", may_leave=["run"])


def test_truncated_png_read_by_another_process(refused, data):
    for image in (data / "images").iterdir():
        cut_short(image)
    refused(train_words(data, {"data.workers": 1}), data / "images", "cannot be decoded", may_leave=["run"])


def test_truncated_mask(refused, raw):
    cut_short(raw / "masks" / "a0.png")
    refused(prepare_words(raw), raw / "masks" / "a0.png", "cannot be decoded")


def test_image_of_one_pixel(refused, ready, raw, tmp_path):
    image = raw / "images" / "a1.png"
    Image.new("RGB", (1, 1)).save(image)
    Image.new("L", (1, 1)).save(raw / "masks" / "a1.png")
    refused(prepare_words(raw), image, "1×1")
    refused(["predict", ready / "run", image, "--out", tmp_path / "out", "--device", "cpu"], image, "1×1")


@pytest.mark.parametrize(
    ("name", "mode", "says"),
    [("a0.jpg", "CMYK", "CMYK"), ("a0.tif", "CMYK", "CMYK"), ("a0.png", "I;16", "16"), ("a0.tif", "F", "floating")],
)
def test_images_of_other_kinds_are_refused_by_name(refused, ready, raw, tmp_path, name, mode, says):
    (raw / "images" / "a0.png").unlink()
    image = raw / "images" / name
    Image.new(mode, (SIDE, SIDE)).save(image)
    refused(prepare_words(raw), image, says)
    refused(["predict", ready / "run", image, "--out", tmp_path / "out", "--device", "cpu"], image, says)


def test_alpha_is_laid_on_white(raw, tmp_path):
    image = raw / "images" / "a0.png"
    Image.new("RGBA", (SIDE, SIDE), (200, 0, 0, 0)).save(image)
    assert main([str(word) for word in prepare_words(raw)]) == 0
    assert (read_image(tmp_path / "prepared" / "images" / "a0.png") == 255).all()


# Splits and labels


def test_a_split_naming_a_file_that_is_not_there(refused, data):
    path = data / "splits" / f"{SPLIT}.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "labelled": [*content["labelled"], "ghost.png"]}))
    refused(train_words(data), path, "ghost.png")


def test_a_set_listing_a_file_that_is_not_there(refused, data):
    image, _ = labelled_of(data)
    image.unlink()
    refused(train_words(data), image, "not there")


def test_zero_labelled_images(refused, data):
    path = data / "splits" / f"{SPLIT}.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "labelled": []}))
    refused(train_words(data), path, "names no image")
    refused(["split", data, "--labelled", "0"], "--labelled 0")
    path.unlink()
    for mask in (data / "masks").iterdir():
        mask.unlink()
    refused(train_words(data), data, "no training image is labelled")
    refused(["split", data, "--labelled", "2"], data, "no training image has a mask")


def test_zero_unlabelled_images(refused, data):
    (data / "splits" / f"{SPLIT}.json").unlink()
    refused(train_words(data, method="fixmatch"), data, "no unlabelled training image")


def test_broken_json(refused, data):
    (data / "dataset.json").write_text('{"name": ')
    refused(train_words(data), data / "dataset.json", "no JSON")


# Names


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--recipe", "demmo"], "unknown recipe 'demmo': did you mean 'demo'?"),
        (["--engine.stps", "3"], "unknown field 'engine.stps': did you mean 'engine.steps'?"),
        (["--method.name", "mpamtch"], "unknown method.name 'mpamtch': did you mean 'mpamatch'?"),
        (["--model.encoder", "small_hybird"], "unknown model.encoder 'small_hybird': did you mean 'small_hybrid'?"),
        (["--model.encoder", "vit_tiny_patch16_225"], "did you mean 'vit_tiny_patch16_224'?"),
        (["--model.encoder", "inception_v3"], "takes no other image size"),
        (["--method.text_encoder", "minlm"], "did you mean 'minilm'?"),
        (["--data.split", "labelled-2-seed0"], "did you mean 'labelled-1-seed0'?"),
        (["--engine.learning_rate", "-1"], "engine.learning_rate"),
        (["--data.workers", "-1"], "data.workers"),
    ],
)
def test_unknown_names_and_impossible_values(refused, data, words, says):
    recipe = [] if "--recipe" in words else ["--recipe", "demo"]
    flags = tiny_flags(data, "mpamatch")
    refused(["train", *recipe, "--run", data.parent / "run", *flags, *words], says)


def test_an_unknown_part(refused, ready):
    refused(["evaluate", ready / "run", "--part", "tset"], "unknown part 'tset': did you mean 'test'?")


def test_an_impossible_overlap(refused, ready, tmp_path):
    words = ["predict", ready / "run", ready / "set" / "images", "--out", tmp_path / "out", "--overlap", "2"]
    refused(words, "overlap")


# Checkpoints


def test_a_wrong_checkpoint_for_the_encoder(refused, data, tmp_path):
    weights = tmp_path / "other.safetensors"
    save_file({"stages.0.0.0.weight": zeros(3, 3), "head": zeros(2)}, weights)
    says = [weights, "does not fit", "stages.0.0.0.weight is (3, 3)", "is missing"]
    refused(train_words(data, {"model.encoder_weights": weights}), *says)
    weights.write_bytes(b"no checkpoint at all")
    refused(train_words(data, {"model.encoder_weights": weights}), weights)
    refused(train_words(data, {"model.encoder_weights": tmp_path / "nope.pt"}), tmp_path / "nope.pt", "no such")


def test_a_wrong_checkpoint_in_a_run(refused, ready, tmp_path):
    run = shutil.copytree(ready / "run", tmp_path / "run")
    best = run / "checkpoints" / "best.safetensors"
    save_file({"weight": zeros(3)}, best)
    refused(["evaluate", run, "--device", "cpu"], best, "not written by mpamatch")
    cut_short(best)
    refused(["predict", run, ready / "set" / "images", "--out", tmp_path / "out", "--device", "cpu"], best)
    shutil.copy(run / "checkpoints" / "last.safetensors", best)
    refused(["evaluate", run, "--device", "cpu"], best)


def test_disk_full_while_writing_a_checkpoint(refused, data, tmp_path):
    """The checkpoint of step 1 is there; writing that of step 2 fails in the middle of the file."""
    run = tmp_path / "run"
    fields = {"engine.save_every": 1, "engine.steps": 3, "engine.validate_every": 3}
    train_until(1, tiny_config(data, "supervised", fields), run)
    last = run / "checkpoints" / "last.safetensors"
    before = last.read_bytes()
    with file_limit(len(before) // 2):
        refused(["train", "--resume", run], last, "what stood there before is kept", may_leave=["run"])
    assert last.read_bytes() == before
    assert list(last.parent.iterdir()) == [last]
    assert main(["train", "--resume", str(run)]) == 0


def test_disk_full_while_writing_metrics(refused, data, tmp_path):
    run = tmp_path / "run"
    fields = {"engine.save_every": 1, "engine.steps": 3, "engine.validate_every": 3}
    train_until(1, tiny_config(data, "supervised", fields), run)
    (run / "metrics.jsonl").unlink()
    (run / "metrics.jsonl").symlink_to("/dev/full")
    refused(["train", "--resume", run], "No space left on device", may_leave=["run"])


# Memory


@pytest.mark.parametrize(
    ("module", "words", "says"),
    [
        ("predict.load_segmenter", ["predict", "run", "a.png", "--out", "out"], "give images of fewer pixels"),
        ("evaluate.evaluate_run", ["evaluate", "run"], "end other programs"),
        ("train.train", ["train", "--recipe", "folder", "--data.root", "set", "--run", "run"], "lower data.batch"),
    ],
)
@pytest.mark.parametrize("ask", [lambda: np.empty(2**60, np.uint8), lambda: zeros(2**60)])
def test_no_memory_is_a_sentence(tmp_path, capsys, monkeypatch, module, words, says, ask):
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (8, 8)).save("a.png")
    monkeypatch.setattr(f"mpamatch.commands.{module}", lambda *given, **more: ask())
    assert main(words) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.startswith("mpamatch: memory ran out (")
    assert says in said


def test_other_errors_of_torch_keep_their_traceback(tmp_path, monkeypatch):
    def fails(*given, **more):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr("mpamatch.commands.evaluate.evaluate_run", fails)
    with pytest.raises(RuntimeError, match="mat1"):
        main(["evaluate", "run"])

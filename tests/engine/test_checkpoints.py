import errno
import hashlib
import math
import shutil

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import nn

from mpamatch import tensors
from mpamatch.device import choose_device
from mpamatch.engine.build import build_training, open_data
from mpamatch.engine.checkpoints import Progress, load_last, save_last
from mpamatch.engine.loop import resume, train
from mpamatch.errors import InputError
from mpamatch.inference.checkpoint import load_segmenter
from mpamatch.methods import towers
from mpamatch.models.build import build_model
from mpamatch.models.encoders import build_encoder
from mpamatch.models.text_encoders import TextEncoder
from tests.tiny import bitwise_equal, file_limit, make_set, read_checkpoint, silent, tiny_config, train_until

pytestmark = pytest.mark.slow

START = {"method.context_tokens": 2, "method.text_encoder": "minilm"}
EVERY_STEP = {"engine.save_every": 1, "engine.validate_every": 1}


class TinyText(TextEncoder):
    """A text tower of 64 words and a linear map; its weights come from the seed."""

    def __init__(self):
        identity = {"name": "tiny", "source": "made up", "sha256": "0" * 64}
        super().__init__(
            nn.Linear(8, 6), nn.Embedding(64, 8), ids, length=200, token_width=8, width=6, identity=identity
        )

    def pooled(self, tokens):
        return self.tower(self.embedding(tokens).mean(1))


def ids(texts, length):
    """Start 1, a number per word, end 2, zeros; the end is kept where a text is cut."""
    rows = [[1, *(3 + sum(word.encode()) % 61 for word in text.split())][: length - 1] + [2] for text in texts]
    return torch.tensor([row + [0] * (length - len(row)) for row in rows])


@pytest.fixture
def tiny_text(monkeypatch):
    monkeypatch.setattr(towers, "build_text_encoder", lambda *_: TinyText())


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return make_set(tmp_path_factory.mktemp("set") / "tissue").root


@pytest.fixture(scope="module")
def encoder_file(tmp_path_factory):
    """Pretrained weights, so to speak: those of another seed."""
    torch.manual_seed(77)
    path = tmp_path_factory.mktemp("weights") / "encoder.safetensors"
    save_file(build_encoder("small_conv", None, "batch").state_dict(), path)
    return path


def trained(root, run, method="supervised", fields=None):
    train(tiny_config(root, method, fields), run, console=silent())
    last, best = (read_checkpoint(run / "checkpoints" / f"{name}.safetensors") for name in ("last", "best"))
    return last, best


def plain_names(fields=None):
    """The names of a network's state, of two classes, as the tiny configuration has it."""
    return set(build_model(tiny_config("unused", "supervised", fields).model, 2).state_dict())


# What best and last hold


def test_best_of_mean_teacher_is_the_teacher(root, tmp_path):
    (last, _), (best, _) = trained(root, tmp_path / "run", "mean_teacher")
    assert set(best) == plain_names()
    assert all(bitwise_equal(best[name], last[f"method/teacher.{name}"]) for name in best)
    assert any(not bitwise_equal(best[name], last[f"method/model.{name}"]) for name in best)


def test_best_of_mpamatch_has_no_prototypes_and_no_text(root, tmp_path, tiny_text):
    (last, about), (best, about_best) = trained(root, tmp_path / "run", "mpamatch", START)
    assert set(best) == plain_names()
    assert any("prototypes" in name for name in last)
    assert {name for name in last if name.startswith("method/text.")} == {"method/text.context"}
    assert not any("tower" in name or "words" in name for name in last)
    assert about["frozen"] == {"text": {"name": "tiny", "source": "made up", "sha256": "0" * 64}}
    assert about_best["frozen"] == {}


def test_another_text_tower_is_refused(root, tmp_path, tiny_text, monkeypatch):
    train_until(1, tiny_config(root, "mpamatch", START | {"engine.save_every": 1}), tmp_path / "run")
    encoder = TinyText()
    encoder.identity["sha256"] = "1" * 64
    monkeypatch.setattr(towers, "build_text_encoder", lambda *_: encoder)
    with pytest.raises(InputError, match=r"last\.safetensors: was trained on other frozen weights"):
        resume(tmp_path / "run", console=silent())


def test_last_holds_the_optimizer_and_where_the_run_stands(root, tmp_path):
    (last, about), _ = trained(root, tmp_path / "run", "supervised", {"engine.steps": 3, "engine.validate_every": 1})
    assert about["progress"]["step"] == 3
    assert 1 <= about["progress"]["best_step"] <= 3
    assert 0 < about["progress"]["best"] <= 1
    moments = {name.rsplit("/")[-1] for name in last if name.startswith("optimizer/")}
    assert moments == {"step", "exp_avg", "exp_avg_sq"}


def test_a_run_predicts_with_the_corners_that_it_was_trained_with(root, tmp_path):
    trained(root, tmp_path / "run", "supervised", {"model.align_corners": True})
    model = load_segmenter(tmp_path / "run", "cpu").model
    assert model.config.align_corners
    assert all(block.align_corners for block in model.decoder.blocks)


# Frozen encoders


def test_a_frozen_encoder_is_never_written_but_its_path_and_hash_are(root, tmp_path, encoder_file):
    fields = {"model.tuning": "frozen", "model.encoder_weights": encoder_file}
    for method in ("supervised", "mean_teacher"):
        (last, about), (best, about_best) = trained(root, tmp_path / method, method, fields)
        assert not [name for name in (*last, *best) if "encoder" in name]
        assert set(best) == {name for name in plain_names() if not name.startswith("encoder.")}
        digest = hashlib.sha256(encoder_file.read_bytes()).hexdigest()
        assert about["frozen"]["encoder"]["weights"] == str(encoder_file)
        assert about["frozen"]["encoder"]["sha256"] == digest
        assert about_best["frozen"] == about["frozen"]


def test_a_frozen_encoder_comes_back_from_its_file(root, tmp_path, encoder_file):
    fields = {"model.tuning": "frozen", "model.encoder_weights": encoder_file}
    trained(root, tmp_path / "run", "supervised", fields)
    model = load_segmenter(tmp_path / "run", "cpu").model
    wanted = build_encoder("small_conv", str(encoder_file), "batch").state_dict()
    assert all(bitwise_equal(value, wanted[name]) for name, value in model.encoder.state_dict().items())


def test_a_changed_or_lost_frozen_encoder_is_refused(root, tmp_path, encoder_file):
    own = shutil.copy(encoder_file, tmp_path / "own.safetensors")
    fields = {"model.tuning": "frozen", "model.encoder_weights": own, **EVERY_STEP}
    train_until(1, tiny_config(root, "supervised", fields), tmp_path / "run")
    torch.manual_seed(78)
    save_file(build_encoder("small_conv", None, "batch").state_dict(), own)
    with pytest.raises(InputError, match=r"another version of .*own\.safetensors"):
        load_segmenter(tmp_path / "run", "cpu")
    with pytest.raises(InputError, match=r"last\.safetensors: was trained on other frozen weights"):
        resume(tmp_path / "run", console=silent())
    own.unlink()
    with pytest.raises(InputError, match=r"own\.safetensors, which is not there"):
        load_segmenter(tmp_path / "run", "cpu")


def test_a_tuned_encoder_needs_its_first_weights_no_more(root, tmp_path, encoder_file):
    own = shutil.copy(encoder_file, tmp_path / "own.safetensors")
    _, (best, _) = trained(root, tmp_path / "run", "supervised", {"model.encoder_weights": own})
    own.unlink()
    segmenter = load_segmenter(tmp_path / "run", "cpu")
    assert all(bitwise_equal(value, best[name]) for name, value in segmenter.model.state_dict().items())
    assert not segmenter.model.training
    assert segmenter.class_names == ("background", "gland")
    assert (segmenter.settings.window, segmenter.settings.scale, segmenter.settings.microns_per_pixel) == (32, 1.0, 0.5)


# A disk that is full


def fails_half_way(error):
    def save(tensors, path, metadata):
        path.write_bytes(b"half a checkpoint")
        raise error

    return save


@pytest.fixture
def saved(root, tmp_path):
    """A checkpoint on the disk, and what it takes to write the next one over it."""
    method = build_training(tiny_config(root), open_data(tiny_config(root)))
    optimizer = torch.optim.AdamW(method.parameters())
    path = tmp_path / "checkpoints" / "last.safetensors"
    save_last(path, method, optimizer, Progress(1, 0.5, 1), {}, "images")
    return path, lambda: save_last(path, method, optimizer, Progress(2, 0.6, 2), {}, "images")


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
    ],
)
def test_a_full_disk_leaves_the_old_checkpoint_and_nothing_else(saved, monkeypatch, error):
    path, save_again = saved
    before = path.read_bytes()
    monkeypatch.setattr(tensors, "save_file", fails_half_way(error))
    with pytest.raises(InputError, match=r"last\.safetensors: .*No space left on device") as raised:
        save_again()
    assert "\n" not in str(raised.value)
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def test_a_write_that_really_fails_leaves_the_old_checkpoint_and_nothing_else(saved):
    path, save_again = saved
    before = path.read_bytes()
    with file_limit(len(before) // 2), pytest.raises(InputError, match=r"last\.safetensors: could not be written"):
        save_again()
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]
    save_again()
    assert read_checkpoint(path)[1]["progress"]["step"] == 2


# Files that are not what they should be


@pytest.fixture(scope="module")
def run(root, tmp_path_factory):
    run = tmp_path_factory.mktemp("runs") / "run"
    train_until(1, tiny_config(root, "supervised", EVERY_STEP), run)
    return run


@pytest.fixture
def copied(run, tmp_path):
    return shutil.copytree(run, tmp_path / "run")


def test_a_cut_off_checkpoint_is_named(copied):
    for name in ("best", "last"):
        path = copied / "checkpoints" / f"{name}.safetensors"
        path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(InputError, match=r"best\.safetensors: is no readable checkpoint"):
        load_segmenter(copied, "cpu")
    with pytest.raises(InputError, match=r"last\.safetensors: is no readable checkpoint"):
        resume(copied, console=silent())


def test_a_checkpoint_of_something_else_is_named(copied, encoder_file):
    checkpoints_folder = copied / "checkpoints"
    shutil.copy(encoder_file, checkpoints_folder / "best.safetensors")
    with pytest.raises(InputError, match=r"best\.safetensors: was not written by mpamatch"):
        load_segmenter(copied, "cpu")
    shutil.copy(checkpoints_folder / "last.safetensors", checkpoints_folder / "best.safetensors")
    with pytest.raises(InputError, match=r"best\.safetensors: "):
        load_segmenter(copied, "cpu")


def test_best_in_the_place_of_last_is_named(copied):
    shutil.copy(copied / "checkpoints" / "best.safetensors", copied / "checkpoints" / "last.safetensors")
    with pytest.raises(InputError, match=r"last\.safetensors: "):
        resume(copied, console=silent())


def test_a_configuration_that_was_changed_behind_the_run_is_told_by_the_first_difference(copied):
    path = copied / "config.yaml"
    path.write_text(path.read_text().replace("decoder_width: 16", "decoder_width: 24"))
    with pytest.raises(InputError, match=r"does not fit this configuration; the first difference is \S*decoder"):
        resume(copied, console=silent())


def test_a_run_without_a_model_yet_is_told(tmp_path):
    with pytest.raises(InputError, match="no such run folder"):
        load_segmenter(tmp_path / "nope", "cpu")
    with pytest.raises(InputError, match="no run folder with a trained model"):
        load_segmenter(tmp_path, "cpu")


def test_progress_without_validation_survives_the_file(root, tmp_path):
    method = build_training(tiny_config(root), open_data(tiny_config(root)))
    optimizer = torch.optim.AdamW(method.parameters())
    save_last(tmp_path / "last.safetensors", method, optimizer, Progress(4, math.nan, 4), {}, "images")
    progress = load_last(tmp_path / "last.safetensors", method, optimizer, {}, "images")
    assert math.isnan(progress.best)
    assert (progress.step, progress.best_step) == (4, 4)


def test_device():
    assert choose_device("cpu").type == "cpu"
    if not torch.cuda.is_available():
        assert choose_device("auto").type == "cpu"
        with pytest.raises(InputError, match=r"engine\.device: cuda was asked for"):
            choose_device("cuda")


@pytest.fixture(scope="module")
def finished(root, tmp_path_factory):
    run = tmp_path_factory.mktemp("finished") / "run"
    train(tiny_config(root), run, console=silent())
    return run


def rewrite(path, change):
    """Writes the tensors and values of a checkpoint again, as `change` leaves them."""
    found, about = tensors.read_tensors(path)
    change(found, about)
    tensors.write_tensors(path, found, about)


OTHER_VALUES = [
    ("best", lambda found, about: about.update(model=7)),
    ("best", lambda found, about: about["model"].update(norm=["batch"])),
    ("best", lambda found, about: about.update(encoder={"name": "x"})),
    ("best", lambda found, about: about["encoder"].update(family="smal")),
    ("best", lambda found, about: about["encoder"].update(mean=[1, 2])),
    ("best", lambda found, about: about["encoder"]["arguments"].update(blocks="x")),
    ("best", lambda found, about: about["segmenter"].update(window="32")),
    ("best", lambda found, about: about["segmenter"].update(window=10**9)),
    ("best", lambda found, about: about["segmenter"].update(scale=0)),
    ("best", lambda found, about: about["segmenter"].update(overlap=1.0)),
    ("best", lambda found, about: about["segmenter"].update(std=[1, 0, 1])),
    ("best", lambda found, about: about["segmenter"].update(colours=[[0, 0, 0], [1, 2, 300]])),
    ("best", lambda found, about: about["segmenter"].update(class_names=["a", 7])),
    ("best", lambda found, about: about["segmenter"].update(precision=32)),
    ("best", lambda found, about: found.update({next(iter(found)): next(iter(found.values())).view(torch.int32)})),
    ("last", lambda found, about: about.update(progress=[1])),
    ("last", lambda found, about: about["progress"].update(step="2")),
    ("last", lambda found, about: about["progress"].update(step=-1)),
    ("last", lambda found, about: about["encoder"].update(family="smal")),
    ("last", lambda found, about: found.update({"optimizer/x/step": torch.zeros(())})),
    ("last", lambda found, about: found.update({"optimizer/0/exp_avg": torch.zeros(7)})),
    ("last", lambda found, about: found.pop("optimizer/0/exp_avg")),
]


@pytest.mark.parametrize(("name", "change"), OTHER_VALUES, ids=range(len(OTHER_VALUES)))
def test_other_values_than_were_written_are_told_by_the_name_of_the_file(finished, tmp_path, name, change):
    run = shutil.copytree(finished, tmp_path / "run")
    path = run / "checkpoints" / f"{name}.safetensors"
    rewrite(path, change)
    with pytest.raises(InputError, match=f"^{path}: "):
        load_segmenter(run, "cpu") if name == "best" else resume(run, console=silent())


def test_values_beside_the_tensors_that_are_no_json(finished, tmp_path):
    path = tmp_path / "a.safetensors"
    for text in ("{", "7", "[]", '{"a": ', "\x00"):
        save_file({"a": torch.zeros(1)}, path, metadata={"mpamatch": text})
        with pytest.raises(InputError, match=f"^{path}: holds other values than mpamatch writes"):
            tensors.read_tensors(path)

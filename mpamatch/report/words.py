"""Numbers and findings of a run in plain words."""

from collections.abc import Sequence
from typing import Any

Content = dict[str, Any]
FEW_LABELLED = 10  # patients with labels, below which another choice of them would matter much


def percent(value: float | None, digits: int = 2) -> str:
    """Formats a fraction as percent without the sign; None as –."""
    return "–" if value is None else f"{100 * value:.{digits}f}"


def points(value: float | None) -> str:
    """Formats a difference of fractions in points of percent, with its sign; None as –."""
    return "–" if value is None else f"{100 * value:+.2f}"


def span(interval: list[float] | tuple[float, float] | None, *, signed: bool = False) -> str:
    """Formats an interval of fractions in percent; None as "no interval"."""
    if interval is None:
        return "no interval"
    low, high = ((points if signed else percent)(end) for end in interval)
    return f"{low} to {high}"


def count(number: int, thing: str) -> str:
    """Formats a number of things: 1 image, 3 images."""
    return f"{number:,} {thing}{'' if number == 1 else 's'}"


def of_patients(counted: Content) -> str:
    """Formats images and their patients: 12 images of 3 patients."""
    return f"{count(counted['images'], 'image')} of {count(counted['groups'], 'patient')}"


def in_short(summary: Content) -> list[str]:
    """Says in two or three sentences what was trained on what and how well it does."""
    data, scores = summary["data"], summary["scores"]
    trained = data["trained_on"]
    learnt = "its training images could not be counted here"
    if trained is not None:
        learnt = f"it learnt from {of_patients(trained['labelled'])} with {data['learns_from']}"
        if trained["unlabelled"]["images"]:
            learnt += f" and from {of_patients(trained['unlabelled'])} without"
    classes = ", ".join(summary["classes"][1:])
    interval = summary["intervals"]["mdice"]
    sure = f"95 % interval over patients {span(interval)} %" if interval else "no interval can be given"
    return [
        f"This model marks {classes} in images like those of {data['name']}; {learnt}.",
        f"On {count(scores['images'], 'image')} of {count(summary['scored_groups'], 'patient')} of the "
        f"{summary['part']} part its mean Dice over the classes is {percent(scores['mdice'])} % ({sure}).",
    ]


def warnings(summary: Content) -> list[str]:
    """Lists what a reader must know before trusting the numbers."""
    found, groups, part = [], summary["scored_groups"], summary["part"]
    images = count(summary["scores"]["images"], "image")
    if groups == 1:
        found.append(
            f"All {images} that were scored are of one patient. From one patient no interval can be computed, and "
            "nothing here says how well the model does for another one."
        )
    elif summary["intervals"]["few"]:
        found.append(
            f"Only {groups} patients were scored. Intervals from so few are too narrow more often than not: read them "
            "as a hint, not as a promise."
        )
    if part == "validation":
        found.append(
            "These are validation images, by which the best checkpoint (and perhaps settings) were chosen: expect "
            "lower scores on new patients."
        )
    if part == "train":
        found.append("These are training images: the scores say what was memorised, not how well the model does.")
    trained = summary["data"]["trained_on"]
    if trained is None:
        found.append(
            "The training images could not be counted, because the set that the run was trained on is not here or was "
            "changed since."
        )
    elif trained["labelled"]["groups"] < FEW_LABELLED:
        found.append(
            f"The labels are of {count(trained['labelled']['groups'], 'patient')}. Other labels would have given "
            "another model; the intervals here do not hold that uncertainty, only that of the patients scored."
        )
    if summary["data"]["note"]:
        found.append(f"The data set says: {summary['data']['note']}")
    training = summary["training"]
    if training["steps"] is not None and training["steps"] < training["planned_steps"]:
        found.append(f"Training stopped at step {training['steps']} of {training['planned_steps']}.")
    return found


def unequal(runs: Sequence[Content]) -> list[str]:
    """Lists what runs that are compared do not have in common, beside their method, and what one run each can show."""
    found = ["Each is one run: with another seed or other labels their order may change (mpamatch study repeats both)."]
    for words, value in (
        ("steps", lambda one: one["training"]["steps"]),
        ("labelled images", lambda one: (one["data"]["trained_on"] or {}).get("labelled")),
        ("split", lambda one: one["data"]["split"]),
        ("encoder", lambda one: one["settings"]["all"]["model.encoder"]),
        ("weights", lambda one: one["settings"]["all"]["model.encoder_weights"]),
        ("seed", lambda one: one["settings"]["all"]["engine.seed"]),
    ):
        values = [value(one) for one in runs]
        if any(one != values[0] for one in values):
            shown = [of_patients(one) if isinstance(one, dict) else str(one) for one in values]
            said = "; ".join(f"{run['name']}: {one}" for run, one in zip(runs, shown, strict=True))
            found.append(f"They differ in {words}, not in their method alone ({said}).")
    return found

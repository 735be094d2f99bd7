"""The figures and tables of a run's prototypes."""

from collections.abc import Sequence

from markupsafe import Markup

from mpamatch.report import charts
from mpamatch.report.parts import Content, Figure, Table, share


def prototype_content(summary: Content) -> Content | None:
    """Makes the figures and tables of the prototypes; None if the method has none."""
    found = summary["prototypes"]
    if found is None:
        return None
    classes, per_class = found["classes"], found["per_class"]
    names = [f"{c} {k + 1}" for c in classes for k in range(per_class)]
    marks = [c if k == 0 else "" for c in classes for k in range(per_class)]
    table = Table(
        "Prototypes",
        ["prototype", "share of its class, %", "nearest patches: image (cosine)"],
        [
            [
                f"{c} {k + 1}",
                share(found["share"][c][k]),
                ", ".join(f"{one['image']} ({one['cosine']:.2f})" for one in found["patches"][c][k]) or "none",
            ]
            for c in classes
            for k in range(per_class)
        ],
    )
    similar = Figure(
        "similarity",
        "How alike the prototypes are",
        Markup(charts.matrix_chart(found["similarity"], marks, [""] * len(names), alt=_likeness(found, names))),
        "Each square compares two prototypes, in the order of the gallery: strong blue means that they stand for the "
        "same thing, pale that they have nothing in common, orange that they are opposites. Blue within a class means "
        "that fewer prototypes would do; blue between classes, that the model may confuse them.",
        Table(
            "Cosine similarity",
            ["", *names],
            [[n, *(f"{v:.2f}" for v in line)] for n, line in zip(names, found["similarity"], strict=True)],
        ),
    )
    used = {c: sum(share > 0 for share in found["share"][c]) for c in classes}
    return {
        "about": "; ".join(f"{c}: {used[c]} of {per_class} in use" for c in classes),
        "table": table,
        "similarity": similar,
        "text": _text_similarity(summary, found, names, marks),
        "why_no_text": found["why_no_text"],
    }


def _likeness(found: Content, names: Sequence[str]) -> str:
    pairs = [(v, names[i], names[j]) for i, line in enumerate(found["similarity"]) for j, v in enumerate(line) if j < i]
    if not pairs:
        return "One prototype alone."
    value, one, other = max(pairs)
    return f"Cosine similarity of {len(names)} prototypes; the most alike are {other} and {one} ({value:.2f})."


def _text_similarity(summary: Content, found: Content, names: Sequence[str], marks: Sequence[str]) -> Figure | None:
    if found["text_similarity"] is None:
        return None
    rows = [line for of_class in found["text_similarity"] for line in of_class]
    classes = summary["classes"]
    right = sum(
        max(range(len(classes)), key=line.__getitem__) == classes.index(c)
        for c, of_class in zip(found["classes"], found["text_similarity"], strict=True)
        for line in of_class
    )
    return Figure(
        "text",
        "Image prototypes against the words",
        Markup(
            charts.matrix_chart(
                rows,
                list(names),
                classes,
                numbers=True,
                alt=f"Cosine of {len(names)} image prototypes "
                f"with the text prototypes of {', '.join(classes)}; the table has the numbers.",
            )
        ),
        f"How near each image prototype lies to the description of each class. {right} of {len(rows)} are nearest to "
        "the words of their own class.",
        Table(
            "Cosine with the words",
            ["prototype", *classes],
            [[n, *(f"{v:.3f}" for v in r)] for n, r in zip(names, rows, strict=True)],
        ),
    )

"""The page of published settings: python benchmarks/reproduce.py

Puts what the experiments state of themselves, their published figures with the bands in which a reproduction counts,
their sources and their remarks, into docs/reproduce.md.
"""

import runpy
from pathlib import Path

from diffuse_jax.config import experiments, read
from diffuse_jax.config.published import Figure, Published, published

PAGE = Path(__file__).resolve().parents[1] / "docs" / "reproduce.md"
START, STOP = "<!-- settings -->", "<!-- end of settings -->"

#: What runs of ours gave, by the name of their experiment.
OURS: dict[str, str] = {}

_FIGURES = {
    "fid": "FID",
    "inception_score": "Inception score",
    "fid_ode": "FID of the flow",
    "bits_per_dim": "bits/dim",
}


def settings() -> dict[str, Published]:
    """What was published, by the name of the experiment."""
    found = {name: published(name) for name in experiments()}
    return {name: stated for name, stated in found.items() if stated is not None}


def shown(figure: Figure | None) -> str:
    return "–" if figure is None else f"{figure.value:.2f} ± {figure.band:.2f}{'†' if figure.remembered else ''}"


def remarks(name: str, stated: Published) -> str:
    """What the experiment's file says below its first line, and the notes on the figures."""
    _, _, text = (runpy.run_path(str(experiments()[name]))["__doc__"] or "").partition("\n\n")
    return " ".join([*text.split(), *stated.notes.split()])


def row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def tables() -> str:
    """Figures, why their bands are that wide, and remarks."""
    found = settings()
    head = ["setting", "parameters", "evaluations", *_FIGURES.values(), "ours", "command"]
    lines = [row(*head), "|" + "---|" * len(head)]
    for name, stated in found.items():
        size = f"{stated.parameters:,}" if stated.parameters else "–"
        calls = f"{stated.nfe:,}" if stated.nfe else "–"
        figures = [shown(getattr(stated, figure)) for figure in _FIGURES] if stated.figures else ["unscored"] * 4
        ours = OURS.get(name, f"not run: no accelerator, and `{read(name).data.source}` not at hand")
        lines.append(row(f"`{name}`", size, calls, *figures, ours, f"`diffuse-jax train --config={name}`"))
    lines += ["", "## Why the bands are that wide", ""]
    reasons: dict[tuple[str, str], list[str]] = {}
    for name, stated in found.items():
        for figure, value in stated.figures.items():
            reasons.setdefault((figure.removesuffix("_ode"), value.reason), []).append(name)
    for (figure, reason), names in reasons.items():
        of = f" of {', '.join(f'`{name}`' for name in names)}" if len(names) == 1 else f" ({len(names)} figures)"
        lines.append(f"- {_FIGURES[figure]}{of}: {reason}.")
    lines += ["", "## Sources and remarks", ""]
    lines += [row("setting", "source", "original", "remarks"), "|---|---|---|---|"]
    for name, stated in found.items():
        lines.append(row(f"`{name}`", stated.source, f"`{stated.original}`", remarks(name, stated) or "–"))
    return "\n".join(lines)


def page(text: str) -> str:
    """The page with its tables as they should be."""
    head, start, rest = text.partition(START)
    _, stop, tail = rest.partition(STOP)
    return f"{head}{start}\n\n{tables()}\n\n{stop}{tail}"


def main() -> None:
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()

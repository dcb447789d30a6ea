"""Figures as SVG: as files of their own, and inside a page whose colours they take."""

import io
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

from distsub.report.drawing import literal

if TYPE_CHECKING:
    from matplotlib.figure import Figure

THEME = {
    **dict.fromkeys(("#1b1b1b", "#000000", "#555555"), "currentColor"),
    "#ffffff": "var(--paper)",
    "#e6e6e6": "var(--line)",
    "#0072b2": "var(--blue)",
}
"""What the page decides: the ink of words and axes, paper, the lines of a grid, and the colour of the answer."""


@literal
def to_svg(figure: "Figure", name: str) -> bytes:
    """Write a figure as an SVG file whose words stay words, the same bytes every time.

    Args:
        figure: What is drawn.
        name: Tells its parts from those of other figures on the same page.
    """
    from matplotlib import rc_context

    sink = io.BytesIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(sink, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return sink.getvalue()


def inline(svg: bytes, name: str, words: str, themes: Mapping[str, str] | None = None) -> str:
    """Make a figure part of a page, light or dark, as wide as the page has it.

    Args:
        svg: From `to_svg`.
        name: As there; a page holds one figure of a name.
        words: What it shows, for who does not see it. HTML.
        themes: More colours, and what the page writes for them.
    """
    text = svg.decode()
    text = text[text.index("<svg") :]
    used = {one or other for one, other in re.findall(r'url\(#([^)]+)\)|href="#([^"]+)"', text)}
    text = re.sub(r'\s?\bid="([^"]+)"', lambda at: f' id="{name}-{at[1]}"' if at[1] in used else "", text)
    text = re.sub(r'(url\(#|href="#)', rf"\g<1>{name}-", text)
    for colour, themed in {**THEME, **(themes or {})}.items():
        text = text.replace(colour, themed)
    head, _, rest = text.partition(">")
    box = re.search(r'viewBox="[^"]+"', head)
    look = 'style="fill:currentColor"'  # black words have no colour of their own
    return f'<svg {box[0] if box else ""} role="img" aria-label="{words}" {look}>{rest.rstrip()}'

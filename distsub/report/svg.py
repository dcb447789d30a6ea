"""Figures as SVG: as files of their own, and inside a page whose colours they take."""

import io
import re
from typing import TYPE_CHECKING

from distsub.report.drawing import literal

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_THEME = {
    **dict.fromkeys(("#1b1b1b", "#000000", "#555555"), "currentColor"),
    "#e6e6e6": "var(--line)",
    "#0072b2": "var(--blue)",
}
"""What the page decides: the ink of words and axes, the lines of a grid, and the one colour that bears the answer."""


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


def inline(svg: bytes, name: str, words: str) -> str:
    """Make a figure part of a page, light or dark.

    Args:
        svg: From `to_svg`.
        name: As there; a page holds one figure of a name.
        words: What it shows, for who does not see it. HTML.
    """
    text = svg.decode()
    text = text[text.index("<svg") :]
    used = {one or other for one, other in re.findall(r'url\(#([^)]+)\)|href="#([^"]+)"', text)}
    text = re.sub(r'\s?\bid="([^"]+)"', lambda at: f' id="{name}-{at[1]}"' if at[1] in used else "", text)
    text = re.sub(r'(url\(#|href="#)', rf"\g<1>{name}-", text)
    for colour, themed in _THEME.items():
        text = text.replace(colour, themed)
    head, _, rest = text.partition(">")
    width = re.search(r'width="([\d.]+)pt"', head)
    box = re.search(r'viewBox="[^"]+"', head)
    size = f"width:{float(width[1]) * 4 / 3:.0f}px;" if width else ""
    look = f'style="{size}fill:currentColor"'  # black words have no colour of their own
    return f'<svg {box[0] if box else ""} role="img" aria-label="{words}" {look}>{rest.rstrip()}'

"""How figures look: on a wide page and on a phone, in the light and in the dark.

A drawing is a function of a look. `save_drawing` calls it once for each, and the page shows the one
that fits the reader's screen. Paper has the wide one in the light, and so have the files beside the
page.
"""

import base64
import io
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from html import escape

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure
from PIL import Image

from qa_lib.page import report
from qa_lib.reports import plans
from qa_lib.store import runs

# The colours of page.css.
LIGHT = {"text": "#1c1e21", "soft": "#595e66", "page": "#ffffff", "line": "#d5d9df"}
DARK = {"text": "#e4e6ea", "soft": "#a7adb7", "page": "#15171b", "line": "#3a3f48"}


@dataclass(frozen=True)
class Look:
    """The width of a drawing in inches of 100 pixels, and whether its ground is dark."""

    width: float
    is_dark: bool = False

    @property
    def is_narrow(self) -> bool:
        """Whether the drawing is for a phone: labels then stand above what they name."""
        return self.width < 5

    @property
    def colours(self) -> dict[str, str]:
        """Colours of text, of less important text, of the ground and of thin lines."""
        return DARK if self.is_dark else LIGHT

    @property
    def bar(self) -> str:
        """The colour of a bar that is no model's."""
        return "#5b6470" if self.is_dark else "#b4bcc6"

    def tint(self, colour: str) -> str:
        """Return a colour as it is drawn: on a dark ground with 45 % white."""
        if not self.is_dark:
            return to_hex(colour)
        return to_hex([0.55 * channel + 0.45 for channel in to_rgb(colour)])

    def model_colour(self, slug: str, variant: str) -> str:
        """Return the one colour that a report's model has everywhere."""
        return self.tint(plans.colours(slug)[plans.display_name(slug, variant)])

    def style(self) -> dict:
        """Return what the look changes of paper.mplstyle."""
        text, soft, line = self.colours["text"], self.colours["soft"], self.colours["line"]
        ground = self.colours["page"]
        style = dict.fromkeys(("figure.facecolor", "savefig.facecolor", "axes.facecolor"), ground)
        style |= dict.fromkeys(("text.color", "axes.labelcolor", "axes.titlecolor"), text)
        style |= dict.fromkeys(("xtick.color", "ytick.color", "axes.edgecolor"), soft)
        return style | {"grid.color": line, "hatch.color": soft, "font.size": 10}


WIDE = Look(7.2)
NARROW = Look(3.5)
# Look → when a page shows it; the first that fits counts, and WIDE where none does.
SOURCES = {
    Look(3.5, is_dark=True): "screen and (prefers-color-scheme: dark) and (max-width: 40rem)",
    Look(7.2, is_dark=True): "screen and (prefers-color-scheme: dark)",
    NARROW: "screen and (max-width: 40rem)",
}

Drawing = Callable[[Look], Figure]
# Kind of an image → how Pillow saves it. WebP takes half of a PNG's bytes.
FORMATS = {"png": {"format": "png"}, "webp": {"format": "webp", "lossless": True, "quality": 100}}


@contextmanager
def drawn(draw: Drawing, look: Look, tag: str) -> Iterator[Figure]:
    """Give a drawing's figure, with the profile's tag in its lower right corner."""
    with plt.rc_context(look.style()):
        fig = draw(look)
        corner = {"ha": "right", "va": "bottom", "fontsize": 8, "color": look.colours["soft"]}
        fig.text(1 - 0.05 / fig.get_figwidth(), 0.03 / fig.get_figheight(), tag, **corner)
        yield fig
        plt.close(fig)  # or JupyterLab draws it a second time


def format_svg(fig: Figure) -> bytes:
    """Return a figure as svg. The same numbers give the same bytes."""
    file = io.BytesIO()
    nothing = {"Date": None, "Creator": None}
    fig.savefig(file, format="svg", metadata=nothing, bbox_inches=fig.bbox_inches)
    return file.getvalue()


def take_picture(fig: Figure) -> Image.Image:
    """Return the pixels of a figure."""
    file = io.BytesIO()
    fig.savefig(file, format="rgba", bbox_inches=fig.bbox_inches)
    dots = plt.rcParams["savefig.dpi"]
    size = [int(inches * dots) for inches in fig.get_size_inches()]
    return Image.frombytes("RGBA", size, file.getvalue())


def encode_picture(picture: Image.Image, kind: str) -> bytes:
    """Return a drawing as png or webp with 64 colours, among them exactly those of its models.

    The same pixels give the same bytes.
    """
    picture = picture.convert("RGB")
    ground = picture.getpixel((0, 0))
    picture = picture.quantize(64, Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)
    # Colours near the ground's are averaged with it; the page must not show its edge.
    palette = picture.getpalette()
    first = 3 * picture.getpixel((0, 0))
    palette[first : first + 3] = ground
    picture.putpalette(palette)
    if kind == "webp":
        picture = picture.convert("RGB")  # without a palette it is smaller
    file = io.BytesIO()
    picture.save(file, optimize=True, **FORMATS[kind])
    return file.getvalue()


def save_drawing(
    P, name: str, draw: Drawing, caption: str, alt: str, frame: pd.DataFrame
) -> report.Html:
    """Write <name>.png and .svg; return the figure for display, its images embedded.

    draw: returns a figure for a look. frame: the data it is drawn from, whose column `run` names
    the runs. Raises UserError where a row of the frame names no run.
    """
    ids = report.require_runs(name, frame)
    tag = report.profile_tag(P)
    folder = runs.page_folder(P)
    with drawn(draw, WIDE, tag) as fig:
        runs.write(folder / f"{name}.svg", format_svg(fig))
        wide = take_picture(fig)
    runs.write(folder / f"{name}.png", encode_picture(wide, "png"))
    return report.Html(
        f'<figure id="{name}" class="drawing">{embed_drawing(draw, tag, alt, wide)}'
        f"<figcaption>{escape(caption)}</figcaption>"
        f"{report.link_files(P, name, 'svg', 'png')}{report.list_runs(ids)}</figure>"
    )


def show_drawing(draw: Drawing, caption: str, alt: str, tag: str = "") -> report.Html:
    """Return a figure for display that has no file. tag: the profile, where it shows a result."""
    with drawn(draw, WIDE, tag) as fig:
        wide = take_picture(fig)
    picture = embed_drawing(draw, tag, alt, wide)
    return report.Html(
        f'<figure class="drawing">{picture}<figcaption>{escape(caption)}</figcaption></figure>'
    )


def embed_drawing(draw: Drawing, tag: str, alt: str, wide: Image.Image) -> str:
    """Return a drawing for each kind of screen, as one HTML element. wide: it on a wide page."""
    encoded = {}
    with ThreadPoolExecutor(
        max_workers=1
    ) as encoder:  # one look is encoded while the next is drawn
        encoded[WIDE] = encoder.submit(encode_picture, wide, "webp")
        for look in SOURCES:
            with drawn(draw, look, tag) as fig:
                encoded[look] = encoder.submit(encode_picture, take_picture(fig), "webp")
    sources = []
    for look, media in SOURCES.items():
        address, size = embed_image(encoded[look].result())
        sources.append(f'<source media="{media}" srcset="{address}" {size}>')
    address, size = embed_image(encoded[WIDE].result())
    image = f'<img {size} alt="{escape(alt)}" src="{address}">'
    return f"<picture>{''.join(sources)}{image}</picture>"


def embed_image(webp: bytes) -> tuple[str, str]:
    """Return an image as an address, and its size in a page's pixels, two of the image's each."""
    width, height = Image.open(io.BytesIO(webp)).size
    address = f"data:image/webp;base64,{base64.b64encode(webp).decode()}"
    return address, f'width="{width // 2}" height="{height // 2}"'

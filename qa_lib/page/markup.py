"""Markdown as HTML, its maths as MathML.

The texts of a page and the findings are Markdown: paragraphs, headings, lists, tables, code, `$x$`
within a line and `$$x$$` on a line of its own.
"""

import re

import mistune
from latex2mathml.converter import convert


def mathml(latex: str, display: str = "inline") -> str:
    """Return LaTeX as MathML.

    The space after log and exp, and the limits of a sum or product, are where LaTeX has them.
    display: "inline" or "block".
    """
    text = convert(latex.strip(), display=display)
    text = re.sub(
        r"(<mi>(?:log|exp)</mi>)(?!<mo[^>]*>&#x00028;)", r'\1<mspace width="0.17em"/>', text
    )
    if display == "block":
        text = re.sub(
            r"<msubsup>(<mo>&#x022(?:0F|11);</mo>.*?)</msubsup>",
            r"<munderover>\1</munderover>",
            text,
        )
    return text


class Renderer(mistune.HTMLRenderer):
    """A renderer of Markdown to HTML.

    Maths becomes MathML, a heading gets an anchor, and markup in the text is escaped. Equations,
    code and tables scroll where they are wide.
    """

    def block_math(self, body):
        """Return an equation on a line of its own."""
        return scrollable(mathml(body, "block"), "group", "Equation")

    def block_code(self, code, info=None):
        """Return a block of code."""
        return scrollable(super().block_code(code, info), "group", "Code") + "\n"

    def inline_math(self, body):
        """Return maths within a line."""
        return mathml(body)

    def heading(self, text, level, **attrs):
        """Return a heading, whose anchor is made of its letters and digits."""
        anchor = re.sub(r"\W+", "-", re.sub(r"<[^>]*>|&\w+;", "", text).lower()).strip("-")
        return f'<h{level} id="{anchor}">{text}</h{level}>\n'

    def table(self, text):
        """Return a table."""
        return scrollable(f"\n<table>{text}</table>", "region", "Table") + "\n"

    def table_cell(self, text, align=None, head=False):
        """Return a cell of a table; cells aligned to the right hold numbers."""
        right = ' class="number"' if align == "right" else ""
        return f'<th scope="col"{right}>{text}</th>\n' if head else f"<td{right}>{text}</td>\n"


def scrollable(html: str, role: str, label: str) -> str:
    """Return HTML in a box that scrolls, with its role and label for screen readers."""
    return f'<div class="scroll" tabindex="0" role="{role}" aria-label="{label}">{html}</div>'


def markdown(source: str) -> str:
    """Return Markdown as HTML."""
    renderer = Renderer(escape=True, allow_harmful_protocols=False)
    return mistune.create_markdown(renderer=renderer, plugins=["math", "table", "url"])(source)

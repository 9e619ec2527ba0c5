"""One HTML page with all images inside: it can be sent as a file and needs no network."""

import base64
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from correlation_aware.study.explain.draw import SCALE

__all__ = ["Figure", "Section", "Table", "render_page"]

STYLE = """
:root { color-scheme: light; --ink: #1d1f24; --faint: #5a5f69; --line: #dfe1e6; }
* { box-sizing: border-box; }
body { margin: 0; font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: #f6f7f9; }
main { max-width: 1180px; margin: 0 auto; padding: 16px; }
h1 { font-size: 1.5rem; line-height: 1.25; margin: 8px 0; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 0 0 6px; }
p { max-width: 75ch; margin: 6px 0 10px; }
section { background: #fff; border: 1px solid var(--line); border-radius: 8px; padding: 14px;
  margin: 14px 0; }
nav ul { padding-left: 20px; margin: 6px 0; columns: 18rem; }
nav a { display: inline-block; padding: 3px 0; }
figure { margin: 12px 0; }
figcaption { color: var(--faint); font-size: .9rem; max-width: 85ch; }
.scroll { overflow-x: auto; border: 1px solid var(--line); border-radius: 4px; }
.scroll:focus { outline: 2px solid #1f6fc4; }
.scroll img { display: block; max-width: none; height: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { text-align: right; padding: 5px 12px; border-bottom: 1px solid var(--line); white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
@media (max-width: 600px) { main { padding: 8px; } section { padding: 10px; } }
"""


@dataclass(frozen=True)
class Figure:
    """An image of the page.

    Attributes:
        name: Name of its PNG file, without the suffix.
        png: PNG file.
        alt: What it shows, for readers who do not see it.
        caption: Text below it.
    """

    name: str
    png: bytes
    alt: str
    caption: str = ""


@dataclass(frozen=True)
class Table:
    """A table of text.

    Attributes:
        columns: Names of the columns.
        rows: Cells of each row.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Section:
    """A part of the page.

    Attributes:
        title: Heading.
        text: Paragraphs.
        figures: Images.
        table: Table, above the images.
    """

    title: str
    text: Sequence[str]
    figures: Sequence[Figure] = ()
    table: Table | None = None


def render_page(title: str, intro: Sequence[str], sections: Sequence[Section]) -> str:
    """The page as HTML text.

    Args:
        title: Title of the page.
        intro: Paragraphs above the sections.
        sections: Sections.
    """
    links = "".join(f'<li><a href="#s{i}">{escape(s.title)}</a></li>' for i, s in enumerate(sections))
    body = "".join(_section(i, section) for i, section in enumerate(sections))
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head>\n"
        f"<body><main><h1>{escape(title)}</h1>{_paragraphs(intro)}<nav><ul>{links}</ul></nav>\n"
        f"{body}</main></body></html>\n"
    )


def _section(index: int, section: Section) -> str:
    figures = "\n".join(_image(figure) for figure in section.figures)
    table = "" if section.table is None else _table(section.table)
    return (
        f'<section id="s{index}"><h2>{escape(section.title)}</h2>{_paragraphs(section.text)}{table}{figures}'
        "</section>\n"
    )


def _image(figure: Figure) -> str:
    data = base64.b64encode(figure.png).decode("ascii")
    width, height = (round(side / SCALE) for side in struct.unpack(">II", figure.png[16:24]))
    caption = f"<figcaption>{escape(figure.caption)}</figcaption>" if figure.caption else ""
    return (
        f'<figure><div class="scroll" tabindex="0" role="region" aria-label="{escape(figure.name)}">'
        f'<img src="data:image/png;base64,{data}" width="{width}" height="{height}" '
        f'alt="{escape(figure.alt)}"></div>{caption}</figure>'
    )


def _table(table: Table) -> str:
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in table.columns)
    rows = "".join(
        "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in table.rows
    )
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="table"><table><thead><tr>{head}</tr>'
        f"</thead><tbody>{rows}</tbody></table></div>"
    )


def _paragraphs(texts: Sequence[str]) -> str:
    return "".join(f"<p>{escape(text)}</p>" for text in texts)

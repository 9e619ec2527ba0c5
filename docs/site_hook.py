"""Hook of MkDocs: pages link to files of the repository, which become pages of the site under `source/`.

So the links of a page work on GitHub, in a checkout and on the site, wherever that is.
"""

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parent.parent
LINK = re.compile(r"(\]\()(?!https?:|#)([^)#\s]+)")
CODE = re.compile(r"(^ *(`{3,}|~{3,}).*?^ *\2 *$)", re.MULTILINE | re.DOTALL)  # fenced blocks have no links
LANGUAGES = {".py": "python", ".toml": "toml", ".yaml": "yaml", ".json": "json", ".sh": "bash"}
SKIPPED = {"__pycache__"}


def site_path(path: str) -> str:
    """Path in the sources of the site of a file or folder of the repository."""
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    if (ROOT / path).is_dir():
        return f"source/{path}/{'README' if (ROOT / path / 'README.md').exists() else 'index'}.md"
    return f"source/{path}.md" if Path(path).suffix in LANGUAGES else f"source/{path}"


def rewrite(markdown: str, path: str) -> tuple[str, set[str]]:
    """Markdown of a file with its links as on the site, and the files outside docs that they lead to."""
    outside = set()

    def link(match: re.Match[str]) -> str:
        goal = posixpath.normpath(posixpath.join(posixpath.dirname(path), match[2]))
        if not (ROOT / goal).exists():
            raise PluginError(f"{path} links to {match[2]}, which does not exist")
        if not goal.startswith("docs/"):
            outside.add(goal)
        return match[1] + posixpath.relpath(site_path(goal), posixpath.dirname(site_path(path)) or ".")

    parts = CODE.split(markdown)  # text, block, its fence, text, ...
    parts[::3] = [LINK.sub(link, text) for text in parts[::3]]
    del parts[2::3]
    return "".join(parts), outside


def source_page(path: str) -> tuple[str | bytes, set[str]]:
    """Page about a file or a folder, or the bytes of a file of another kind; and the files it leads to."""
    place, note = ROOT / path, "---\nsearch: {exclude: true}\nhide: [navigation, toc]\n---\n"
    if place.is_dir():
        entries = sorted(p for p in place.iterdir() if p.name not in SKIPPED and not p.name.startswith("."))
        listed = "\n".join(f"- [{p.name}]({p.name})" for p in entries)
        text, outside = rewrite(f"# {path}\n\n{listed}\n", f"{path}/index.md")
        return note + text, outside
    if place.suffix == ".md":
        return rewrite(place.read_text(encoding="utf-8"), path)
    if place.suffix not in LANGUAGES:
        return place.read_bytes(), set()
    text = place.read_text(encoding="utf-8")
    return f"{note}# {path}\n\n~~~~~~{LANGUAGES[place.suffix]}\n{text}~~~~~~\n", set()


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds a page for each file outside docs that a page links to."""
    pages = [path for path in files.src_uris if path.endswith(".md")]
    needed = {"CHANGELOG.md"}
    for page in pages:
        needed |= rewrite((Path(config.docs_dir) / page).read_text(encoding="utf-8"), f"docs/{page}")[1]
    done: set[str] = set()
    while needed - done:
        path = min(needed - done)
        content, more = source_page(path)
        inclusion = InclusionLevel.INCLUDED if path == "CHANGELOG.md" else InclusionLevel.NOT_IN_NAV
        files.append(File.generated(config, site_path(path), content=content, inclusion=inclusion))
        done.add(path)
        needed |= more
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Rewrites the links of a page of docs."""
    if page.file.src_uri.startswith("source/"):
        return markdown
    return rewrite(markdown, f"docs/{page.file.src_uri}")[0]

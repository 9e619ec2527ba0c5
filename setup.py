"""Makes the text of the package on PyPI from README.md, whose links to files would lead nowhere there.

Everything else is in setup.cfg. With a `url` there, links and images lead to that repository; without one the
text of links is kept alone, and images go with their captions.
"""

import configparser
import re
from pathlib import Path

from setuptools import setup

ROOT = Path(__file__).resolve().parent


def page(text: str, url: str) -> str:
    """The text with links that work elsewhere."""
    if url:
        text = re.sub(r"(!\[[^]]*\]\()(?!https?:|#)", rf"\g<1>{url}/raw/HEAD/", text)
        return re.sub(r"(\]\()(?!https?:|#)", rf"\g<1>{url}/blob/HEAD/", text)
    text = re.sub(r"!\[[^]]*\]\((?!https?:)[^)]*\)\n+(\*[^*]+\*\n+)?", "", text)
    return re.sub(r"\[([^]]*)\]\((?!https?:|#)[^)]*\)", r"\1", text)


if __name__ == "__main__":
    settings = configparser.ConfigParser(interpolation=None)
    settings.read(ROOT / "setup.cfg", encoding="utf-8")
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    setup(
        long_description=page(readme, settings["metadata"].get("url", "")),
        long_description_content_type="text/markdown",
    )

"""What `make docs` does beyond mkdocs: pages from outside docs/, GitHub's Markdown, a last check.

The README, the changelog, csrc/ and benchmarks/ are pages too. Links between pages are relative to
the files of the repository, so that they hold in its viewer; here they become the site's.
"""

import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
PAGES = ("*.md", "docs/**/*.md", "csrc/*.md", "benchmarks/**/*.md")
FENCE = re.compile(r"^(```.*?^```$)", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"(\]\()([^)\s]+)(?=\))")
LIST_AFTER_TEXT = re.compile(r"^(?![-*>|#\s]|\d+\. )(.+)\n(?=(?:[-*]|\d+\.) )", re.MULTILINE)
RESOURCE = re.compile(
    r'<(?:script|link|img|iframe|source)\b[^>]*\s(?:src|href)="(?:https?:)?//[^>]*>'
)


def place(path: str) -> str:
    """Returns where a file or folder of the repository stands on the site."""
    if (ROOT / path).is_dir():
        path += "/README.md" if (ROOT / path / "README.md").exists() else "/index.md"
    if path == "README.md":
        return "index.md"
    return path.removeprefix("docs/")


def origin(uri: str) -> str:
    """Returns the file of the repository that a page of the site is made from."""
    if uri == "index.md":
        return "README.md"
    return f"docs/{uri}" if (ROOT / "docs" / uri).exists() else uri


def linked() -> Iterator[str]:
    """Yields the pages, and what they link to in the repository, once each."""
    pages = [path for pattern in PAGES for path in sorted(ROOT.glob(pattern))]
    found = dict.fromkeys(pages)
    for page in pages:
        for _, target in LINK.findall(page.read_text(encoding="utf-8")):
            path = (page.parent / target.partition("#")[0]).resolve()
            if ":" not in target and path.exists() and path.is_relative_to(ROOT):
                found[path] = None
    yield from (path.relative_to(ROOT).as_posix() for path in found)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages from outside docs/ with what they link to, and lists of linked folders."""
    known = set(files.src_uris)
    for path in linked():
        uri, source = place(path), ROOT / path
        if uri in known:
            continue
        known.add(uri)
        if source.is_dir() and uri.endswith("/index.md"):
            names = sorted(file.name for file in source.iterdir() if file.is_file())
            text = f"# {path}\n\n" + "".join(f"- [{name}]({name})\n" for name in names)
            files.append(
                File.generated(config, uri, content=text, inclusion=InclusionLevel.NOT_IN_NAV)
            )
        elif source.is_file():
            files.append(File.generated(config, uri, abs_src_path=str(source)))
    return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Translates links, and gives each list the empty line that mkdocs wants before it."""
    uri = page.file.src_uri
    parts = FENCE.split(markdown)
    for i in range(0, len(parts), 2):  # the others are code
        parts[i] = LINK.sub(lambda link: link[1] + site_link(link[2], uri), parts[i])
        parts[i] = LIST_AFTER_TEXT.sub(r"\1\n\n", parts[i])
    return "".join(parts)


def site_link(target: str, uri: str) -> str:
    """Returns a link of a page as the site has it; other addresses stay as they are.

    Args:
        target: relative to the page's file in the repository, perhaps with an anchor.
        uri: of the page on the site.
    """
    if re.match(r"[a-z]+:|#", target):
        return target
    file, hash_, anchor = target.partition("#")
    here = posixpath.dirname(origin(uri))
    found = place(posixpath.normpath(posixpath.join(here, file)))
    return posixpath.relpath(found, posixpath.dirname(uri) or ".") + hash_ + anchor


def on_post_build(config: MkDocsConfig) -> None:
    """Raises where a page loads a script, a style, a font or a picture from a network."""
    for page in Path(config.site_dir).rglob("*.html"):
        if found := RESOURCE.search(page.read_text(encoding="utf-8")):
            raise PluginError(f"{page} loads from a network: {found[0]}")
    for style in Path(config.site_dir).rglob("*.css"):
        if found := re.search(r"url\([\"']?(?:https?:)?//[^)]*\)", style.read_text("utf-8")):
            raise PluginError(f"{style} loads from a network: {found[0]}")

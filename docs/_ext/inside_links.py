"""After the pages are built: every link from one of them to another leads to a file, and to a place in it."""

from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

from sphinx.errors import SphinxError


class Page(HTMLParser):
    """The links of a page, and the names that links can lead to."""

    def __init__(self, path):
        super().__init__()
        self.links, self.places = set(), {""}
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        """Note what a link or a picture points to, and the name of each element."""
        for name, value in attrs:
            if name in ("href", "src") and value:
                self.links.add(value)
            elif name == "id":
                self.places.add(value)


def check(app, exception):
    """Raise an error that lists the links that lead nowhere."""
    if exception is not None or app.builder.format != "html":
        return
    pages = {path.resolve(): Page(path) for path in Path(app.outdir).rglob("*.html") if "_static" not in path.parts}
    broken = []
    for path, page in pages.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            if not target.exists():
                broken.append(f"{path.name}: no file {link}")
            elif target in pages and unquote(parts.fragment) not in pages[target].places:
                broken.append(f"{path.name}: no place {link}")
    if broken:
        raise SphinxError("links that lead nowhere:\n" + "\n".join(sorted(broken)))


def setup(app):
    """Check when all is built."""
    app.connect("build-finished", check)
    return {"parallel_read_safe": True}

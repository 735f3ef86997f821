"""A picture of benchmarks/pictures.py: the light one on a light page, the dark one on a dark page."""

from docutils import nodes
from docutils.parsers.rst import Directive, directives


class Picture(Directive):
    """Show pictures/NAME-light.svg and pictures/NAME-dark.svg; ``alt`` says in words what they show."""

    required_arguments = 1
    option_spec = {"alt": directives.unchanged_required}  # noqa: RUF012 - docutils asks for it so

    def run(self):
        """Return both images; the theme hides one of them."""
        if "alt" not in self.options:
            raise self.error("a picture needs its alt text")
        return [
            nodes.image(
                uri=f"/pictures/{self.arguments[0]}-{theme}.svg",
                alt=self.options["alt"],
                classes=["picture", f"only-{theme}"],
            )
            for theme in ("light", "dark")
        ]


def setup(app):
    """Add the directive."""
    app.add_directive("picture", Picture)
    return {"parallel_read_safe": True}

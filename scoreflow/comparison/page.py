"""The page of a comparison: one HTML file with its pictures inside, which asks nothing of any network."""

from pathlib import Path
from typing import Any


def html(content: dict[str, Any]) -> str:
    """The page; words of runs are escaped, whatever a folder is called.

    Args:
      content: what the template `page.html` names.
    """
    import jinja2

    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    options = {"autoescape": True, "undefined": jinja2.StrictUndefined, "trim_blocks": True, "lstrip_blocks": True}
    return jinja2.Environment(loader=loader, **options).get_template("page.html").render(content)

"""What MkDocs does with the pages of this folder, which are also read as they are on a code host.

Equations become pictures, links to source files lead to a page with their text, notebooks become pages with their
pictures, and a link that is called like its file gets the title of the page. All of this is done when the site is
built, so that its pages need no script and no other host, and an equation or a link that is wrong ends the build.
"""

import base64
import functools
import html
import json
import posixpath
import re
from pathlib import Path

import ziamath
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files, InclusionLevel

_SIZE = 16.0  # pixels of the letters; all lengths below are in units of it, so that equations grow with the text
_EQUATION = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.DOTALL)
_SOURCE = re.compile(r"\]\(([\w./-]+\.py)\)")  # a link to a Python file, such as ../configs/vp_digits.py
_NOTEBOOK = re.compile(r"\]\(\.\./notebooks/(\w+)\.ipynb\)")
_NAMED = re.compile(r"\[(\w+\.md)\]\((\1(?:#[\w-]+)?)\)")  # [theory.md](theory.md)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds a page for every Python file that a page links to."""
    root = Path(config.docs_dir).parent
    pages = [file.content_string for file in files if file.src_uri.endswith(".md")]
    for name in sorted({_from_root(link) for text in pages for link in _SOURCE.findall(text)}):
        text = f"---\nhide: [toc]\n---\n\n# {name}\n\n```python\n{(root / name).read_text()}```\n"
        files.append(File.generated(config, f"source/{name}.md", content=text, inclusion=InclusionLevel.NOT_IN_NAV))
    for path in sorted((root / "notebooks").glob("*.ipynb")):
        text, pictures = _as_page(path)
        files.append(File.generated(config, f"notebooks/{path.stem}.md", content=text))
        for name, content in pictures.items():
            files.append(File.generated(config, f"notebooks/{name}", content=content))
    return files


def _as_page(path: Path) -> tuple[str, dict[str, bytes]]:
    """The text of a notebook in Markdown, and its pictures by name."""
    text, pictures, title = [], {}, ""
    for cell in json.loads(path.read_text())["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            title = title or source.partition("\n")[0].strip("# ")
            text.append(source.replace("](../docs/", "](../").replace(".ipynb)", ".md)"))
            continue
        text.append(f"```python\n{source}\n```")
        for output in cell["outputs"]:
            if output["output_type"] == "stream":
                text.append(f"```\n{''.join(output['text']).rstrip()}\n```")
            elif png := output.get("data", {}).get("image/png"):
                name = f"{path.stem}_{len(pictures) + 1}.png"
                pictures[name] = base64.b64decode(png if isinstance(png, str) else "".join(png))
                text.append(f"![{title}: picture {len(pictures)}]({name})")
    return "\n\n".join(text) + "\n", pictures


def _from_root(link: str) -> str:
    """The path of a linked file from the root of the repository."""
    return posixpath.normpath(f"docs/{link}")


def on_page_markdown(markdown: str, files: Files, **_: object) -> str:
    """Leads links to the pages of `on_files`, or to the first page for the README, and calls pages by their titles."""

    def title(name: str) -> str:
        page = files.get_file_from_path(name)
        return page.content_string.partition("# ")[2].partition("\n")[0] if page else name

    markdown = _SOURCE.sub(lambda match: f"](source/{_from_root(match[1])}.md)", markdown)
    markdown = _NOTEBOOK.sub(r"](notebooks/\1.md)", markdown)
    markdown = markdown.replace("](../README.md)", "](index.md)")
    return _NAMED.sub(lambda match: f"[{title(match[1])}]({match[2]})", markdown)


def on_page_content(text: str, **_: object) -> str:
    """Draws the equations of a page."""
    return _EQUATION.sub(lambda match: _drawn(html.unescape(match[2]).strip(), match[1] == "span"), text)


@functools.cache
def _drawn(latex: str, inline: bool) -> str:
    """An SVG in the color and size of the text around it, with its source for those who hear a page."""
    equation = ziamath.Latex(latex, size=_SIZE, inline=inline, color="currentColor")
    svg, below = equation.svg(), equation.getyofst()
    svg = re.sub(r' (width|height)="([\d.]+)"', lambda m: f' {m[1]}="{float(m[2]) / _SIZE:.3f}em"', svg, count=2)
    label = html.escape(latex, quote=True)
    style = f' style="vertical-align: {below / _SIZE:.3f}em"' if inline else ""
    svg = svg.replace("<svg ", f'<svg role="img" aria-label="{label}"{style} ', 1)
    return f'<span class="equation">{svg}</span>' if inline else f'<div class="equation">{svg}</div>'

"""Adds to the site what is outside its pages: pictures of `benchmarks/results`, and the text of `examples/README.md`. MkDocs calls the hooks."""

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
PICTURES = ("cpu-error.png", "cpu-memory.png", "cpu-time.png", "divergences.png")
LINK_TO_EXAMPLE = re.compile(r"\]\((?=\w+\.(py|ipynb)\))")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    for name in PICTURES:
        source = ROOT / "benchmarks" / "results" / name
        files.append(File.generated(config, f"results/{name}", abs_src_path=str(source)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Return the text of the page. For `examples/README.md`, links to pages become relative, and links to examples lead to the repository."""
    del files
    if page.file.src_uri != "examples.md":
        return markdown
    text = (ROOT / "examples" / "README.md").read_text("utf-8").replace("](../docs/pages/", "](")
    return LINK_TO_EXAMPLE.sub(f"]({config.repo_url}/blob/main/examples/", text)

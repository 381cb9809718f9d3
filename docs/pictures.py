"""Adds the pictures of `benchmarks/results` that pages show to the site. MkDocs calls the hook `on_files`."""

from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

RESULTS = Path(__file__).parents[1] / "benchmarks" / "results"
PICTURES = ("cpu-error.png", "cpu-memory.png", "cpu-time.png", "divergences.png", "roofline.png")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    for name in PICTURES:
        files.append(File.generated(config, f"results/{name}", abs_src_path=str(RESULTS / name)))
    return files

"""Makes the small pictures of docs/pages/gallery, which examples/README.md and the site show, from the pictures that the examples have drawn.

python docs/gallery.py    # after the examples have run: their pictures are in examples/output, and that of the notebook is in the notebook
"""

import base64
import io
import json
from pathlib import Path

from PIL import Image

EXAMPLES = Path(__file__).parents[1] / "examples"
GALLERY = Path(__file__).parent / "pages" / "gallery"
WIDTH, COLORS = 900, 96


def drawn() -> dict[str, Image.Image]:
    """Return the pictures by the names of their examples."""
    pictures = {path.stem: Image.open(path) for path in (EXAMPLES / "output").glob("*.png")}
    for path in EXAMPLES.glob("*.ipynb"):
        cells = json.loads(path.read_text("utf-8"))["cells"]
        outputs = [output.get("data", {}) for cell in cells for output in cell.get("outputs", [])]
        (encoded,) = (data["image/png"] for data in outputs if "image/png" in data)
        pictures[path.stem] = Image.open(io.BytesIO(base64.b64decode(encoded)))
    return pictures


def main() -> None:
    GALLERY.mkdir(exist_ok=True)
    for name, picture in drawn().items():
        small = picture.convert("RGB")
        small.thumbnail((WIDTH, WIDTH), Image.Resampling.LANCZOS)
        path = GALLERY / f"{name}.png"
        small.quantize(COLORS, dither=Image.Dither.NONE).save(path, optimize=True)
        print(f"{path.name}: {small.width} x {small.height}, {path.stat().st_size / 1024:.0f} KiB")


if __name__ == "__main__":
    main()

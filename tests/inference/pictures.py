"""Pictures as people take them, made from MNIST and from Matplotlib's fonts, and how well a model reads them.

    python -m tests.inference.pictures WORKDIR [--part tune]

prints, for each kind of picture, how many are read right, called uncertain, refused, or read wrong without a word. What
is tuned is tuned on the part `tune` (MNIST's training images, half of the fonts); the part `report` shares neither
image nor font with it. Nothing is downloaded, and everything is drawn from a seed.
"""

import argparse
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from mnist_dist.errors import UserError
from mnist_dist.inference.predict import Prediction, predict_files

Part = Literal["tune", "report"]
Draw = Callable[[np.ndarray, np.random.Generator], Image.Image]  # From ink coverage 0..255, uint8 [n, n].

FONTS = {
    "tune": ("DejaVuSans", "DejaVuSans-Bold", "DejaVuSansMono-Oblique", "DejaVuSerif-Italic", "cmr10", "cmtt10"),
    "report": ("DejaVuSans-Oblique", "DejaVuSansMono", "DejaVuSerif", "STIXGeneral", "STIXGeneralBolIta", "cmss10"),
}
SIGNS = {"tune": "ADEFGHKMNPRTWX#%&@", "report": "CJLQUVYabdefhkmnprtwxy$?§€"}  # None that looks like a digit.
SIDE = 200
PAPER, INK = 225, 50


@cache
def mnist(part: Part) -> tuple[np.ndarray, np.ndarray]:
    """Returns images uint8 [n, 28, 28] and labels uint8 [n]."""
    name = {"tune": "train", "report": "test"}[part]
    with resources.files("mnist_dist").joinpath("data/mnist.npz").open("rb") as file, np.load(file) as content:
        return content[f"x_{name}"], content[f"y_{name}"]


def enlarged(image: np.ndarray, side: int = SIDE) -> np.ndarray:
    return np.asarray(Image.fromarray(image).resize((side, side), Image.Resampling.BICUBIC))


def printed(sign: str, font: str, side: int = SIDE) -> np.ndarray:
    """Returns ink coverage uint8 [side, side] of a sign in the middle."""
    import matplotlib

    file = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / f"{font}.ttf"
    image = Image.new("L", (side, side), 0)
    typeface = ImageFont.truetype(str(file), int(0.75 * side))
    ImageDraw.Draw(image).text((side / 2, side / 2), sign, fill=255, font=typeface, anchor="mm")
    return np.asarray(image)


def on_paper(coverage: np.ndarray, paper: Any = PAPER, ink: Any = INK) -> Image.Image:
    """Paper and ink are grey levels, or arrays of them."""
    share = coverage / 255
    return Image.fromarray(np.clip(paper * (1 - share) + ink * share, 0, 255).astype(np.uint8))


def padded(coverage: np.ndarray, margin: int) -> np.ndarray:
    return np.pad(coverage, margin)


def plain(coverage: np.ndarray, random: np.random.Generator) -> Image.Image:
    return on_paper(padded(coverage, int(random.integers(0, 100))))


def box(coverage: np.ndarray, random: np.random.Generator) -> Image.Image:
    """A printed box round the digit, with paper around it."""
    margin, width = int(random.integers(12, 40)), int(random.integers(2, 12))
    image = on_paper(padded(coverage, margin + 20))
    corner = int(random.integers(4, 20))
    far = image.width - 1 - corner
    ImageDraw.Draw(image).rectangle((corner, corner, far, far), outline=INK, width=width)
    return image


def cell(coverage: np.ndarray, random: np.random.Generator) -> Image.Image:
    """A cell of a table, whose lines go on to the edges of the picture."""
    image = on_paper(padded(coverage, 40))
    draw, width, (left, right, top, bottom) = (
        ImageDraw.Draw(image),
        int(random.integers(2, 9)),
        random.integers(6, 30, 4),
    )
    for x in (left, image.width - right):
        draw.line((x, 0, x, image.height), fill=INK, width=width)
    for y in (top, image.height - bottom):
        draw.line((0, y, image.width, y), fill=INK, width=width)
    return image


def frame(coverage: np.ndarray, random: np.random.Generator) -> Image.Image:
    """A dark frame out to the edges, as of a cut-out window."""
    image = np.asarray(on_paper(coverage))
    return Image.fromarray(np.pad(image, int(random.integers(8, 60)), constant_values=INK))


def half_frame(coverage: np.ndarray, random: np.random.Generator) -> Image.Image:
    """Dark along two or three edges: cut out a little aslant."""
    image = np.asarray(on_paper(padded(coverage, 20)))
    widths = random.integers(5, 30, 4) * (random.permutation(4) > random.integers(0, 2))
    return Image.fromarray(np.pad(image, widths.reshape(2, 2), constant_values=INK))


def card(coverage: np.ndarray, random: np.random.Generator) -> Image.Image:
    """A sheet on a dark table, turned by a few degrees."""
    image = on_paper(padded(coverage, 20))
    table = np.clip(random.normal(70, 4, (400, 500)), 0, 255).astype(np.uint8)
    turned = image.convert("LA").rotate(random.uniform(-8, 8), Image.Resampling.BICUBIC, expand=True)
    scene = Image.fromarray(table)
    scene.paste(
        turned.getchannel("L"), (int(random.integers(20, 180)), int(random.integers(20, 90))), turned.getchannel("A")
    )
    return scene


def ruled(coverage: np.ndarray, random: np.random.Generator) -> Image.Image:
    """Lines at a distance, from faint to as dark as the ink, through the digit."""
    return _with_lines(coverage, random, directions=1)


def squared(coverage: np.ndarray, random: np.random.Generator) -> Image.Image:
    return _with_lines(coverage, random, directions=2)


def _with_lines(coverage: np.ndarray, random: np.random.Generator, directions: int) -> Image.Image:
    image = padded(coverage, 40)
    paper = np.full(image.shape, float(PAPER))
    level, width, distance = random.uniform(60, 200), int(random.integers(1, 4)), int(random.integers(40, 110))
    for lines in (paper, paper.T)[:directions]:
        for start in range(int(random.integers(0, distance)), len(lines), distance):
            lines[start : start + width] = level
    turned = Image.fromarray(paper.astype(np.float32)).rotate(
        random.uniform(-1, 1), Image.Resampling.BILINEAR, fillcolor=PAPER
    )
    return on_paper(image, np.minimum(np.asarray(turned), PAPER))


def soft_shadow(coverage: np.ndarray, random: np.random.Generator) -> Image.Image:
    return _shadowed(coverage, random, softness=60.0)


def sharp_shadow(coverage: np.ndarray, random: np.random.Generator) -> Image.Image:
    return _shadowed(coverage, random, softness=random.uniform(1, 15))


def _shadowed(coverage: np.ndarray, random: np.random.Generator, softness: float) -> Image.Image:
    """The shadow of a hand or phone: a half-plane, behind which light is 35 to 75 %."""
    image = padded(coverage, 50)
    y, x = np.indices(image.shape) - len(image) / 2
    angle, offset, dark = random.uniform(0, 2 * np.pi), random.uniform(-100, 100), random.uniform(0.35, 0.75)
    distance = np.clip((x * np.cos(angle) + y * np.sin(angle) - offset) / softness, -30, 30)
    light = dark + (1 - dark) / (1 + np.exp(-distance))
    noise = random.normal(0, 3, image.shape)
    return on_paper(image, PAPER * light + noise, INK * light + noise)


def deep(coverage: np.ndarray, random: np.random.Generator) -> Image.Image:
    """A 16-bit scan in a part of the range, with a few hot or dead pixels."""
    levels = 2000 + (255 - padded(coverage, 20)).astype(np.uint16) * 4
    for _ in range(random.integers(1, 5)):
        levels[tuple(random.integers(0, levels.shape[0], 2))] = random.choice([0, 65535])
    return Image.fromarray(levels)


def two(coverage: np.ndarray, random: np.random.Generator, other: np.ndarray) -> Image.Image:
    """Two digits side by side, as far from each other as in a number."""
    left, right = (each[:, each.any(axis=0)] for each in (coverage, other))
    gap = np.zeros((len(left), int(random.integers(8, 60))), np.uint8)
    return on_paper(padded(np.hstack([left, gap, right]), int(random.integers(10, 60))))


KINDS: tuple[Draw, ...] = (
    *(plain, box, cell, frame, half_frame, card, ruled, squared, soft_shadow, sharp_shadow, deep),
)


@dataclass(frozen=True)
class Picture:
    """What is shown, as a picture; `digit` is None where that is not one digit."""

    kind: str
    image: Image.Image
    digit: int | None


def make_pictures(part: Part, per_kind: int) -> Iterator[Picture]:
    """Draws `per_kind` pictures of handwritten digits for each kind, as many of two digits, and the printed signs."""
    images, labels = mnist(part)
    random = np.random.default_rng(0 if part == "tune" else 1)
    for draw in KINDS:
        for index in random.choice(len(images), per_kind, replace=False):
            yield Picture(draw.__name__, draw(enlarged(images[index]), random), int(labels[index]))
    for index, other in random.choice(len(images), (per_kind, 2), replace=False):
        yield Picture("two digits", two(enlarged(images[index]), random, enlarged(images[other])), None)
    for font in FONTS[part]:
        for digit in range(10):
            yield Picture("printed", plain(printed(str(digit), font), random), digit)
            yield Picture(
                "printed, two", two(printed(str(digit), font), random, printed(str((digit + 3) % 10), font)), None
            )
            yield Picture("printed, box", box(printed(str(digit), font), random), digit)
        for sign in SIGNS[part]:
            yield Picture("no digit", plain(printed(sign, font), random), None)


OUTCOMES = ("right", "uncertain, right", "uncertain, wrong", "refused", "wrong")


def judge(picture: Picture, outcome: Prediction | UserError) -> str:
    """Returns one of `OUTCOMES`; of a picture without one digit, every digit said with certainty is wrong."""
    if isinstance(outcome, UserError):
        return "refused"
    right = outcome.digit == picture.digit
    if getattr(outcome, "uncertain", False):
        return "uncertain, right" if right else "uncertain, wrong"
    return "right" if right else "wrong"


def measure(model: Any, pictures: Sequence[Picture], folder: Path) -> dict[str, dict[str, int]]:
    """Saves and reads the pictures, and counts the outcomes of each kind."""
    paths = [folder / f"{index:05}-{picture.kind}-{picture.digit}.png" for index, picture in enumerate(pictures)]
    for path, picture in zip(paths, pictures, strict=True):
        picture.image.save(path)
    counts: dict[str, dict[str, int]] = {}
    for picture, outcome in zip(pictures, predict_files(model, paths), strict=True):
        counts.setdefault(picture.kind, dict.fromkeys(OUTCOMES, 0))[judge(picture, outcome)] += 1
    return counts


def render(counts: dict[str, dict[str, int]]) -> str:
    lines = [f"{'kind':<16} pictures" + "".join(f"{outcome:>18}" for outcome in OUTCOMES)]
    for kind, of_kind in counts.items():
        lines.append(f"{kind:<16} {sum(of_kind.values()):>8}" + "".join(f"{of_kind[each]:>18}" for each in OUTCOMES))
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure how well a trained model reads pictures as people take them.")
    parser.add_argument("workdir", type=Path, metavar="WORKDIR", help="folder of a finished run")
    parser.add_argument("--part", choices=["tune", "report"], default="report")
    parser.add_argument("--per-kind", type=int, default=100)
    parser.add_argument("--keep", type=Path, help="folder to leave the pictures in")
    args = parser.parse_args()
    from mnist_dist.network.model import load_model
    from mnist_dist.runtime import import_tensorflow

    import_tensorflow()
    with tempfile.TemporaryDirectory() as folder:
        kept = args.keep or Path(folder)
        kept.mkdir(parents=True, exist_ok=True)
        print(render(measure(load_model(args.workdir), list(make_pictures(args.part, args.per_kind)), kept)))


if __name__ == "__main__":
    main()

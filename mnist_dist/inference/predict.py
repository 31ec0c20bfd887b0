"""People's own images of digits, made to look like MNIST, and what a trained model says about them.

An image should show one digit on a plain background: a scan, a photo of pen on paper, a drawing. It is reduced,
freed from its background and from specks, cropped to the ink, scaled so that its longer side is 20 pixels, and
placed with its centre of mass in the middle of 28 x 28 pixels, as the makers of MNIST did
(LeCun, Cortes and Burges, http://yann.lecun.com/exdb/mnist).
"""

import itertools
import json
import os
import stat
import sys
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mnist_dist.errors import EXIT_BAD_INPUT, UserError

if TYPE_CHECKING:
    from PIL import Image

MAX_FILE_BYTES = 50_000_000
MAX_PIXELS = 50_000_000
# A closed list: Pillow would hand others to weaker decoders, and EPS to the Ghostscript interpreter.
FORMATS = ("PNG", "JPEG", "MPO", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF")
EXPECTED = "a PNG, JPEG, WebP, GIF, BMP, TIFF, PPM, JPEG 2000 or AVIF image"

FIELD_PIXELS = 28
DIGIT_PIXELS = 20
CENTRE_PIXELS = 14  # Index of the pixel that holds MNIST's centres of mass: their mean is (14.0, 14.0).
WORKING_PIXELS = 256  # Larger images are reduced to this longer side, which averages most of their noise away.

MIN_CONTRAST_LEVELS = 8.0  # Of 255 grey levels, between ink and background.
MIN_CONTRAST_SIGMAS = 6.0  # The same contrast in standard deviations of the background's noise.
MIN_INK_PIXELS = 5  # Longer side of the ink in the reduced image.
INK_FRACTION = 0.25  # Of full ink, above which a pixel is part of a stroke: above JPEG's ringing and most shadows.
SPECK_FRACTION = 0.1  # Parts with less than this share of the largest part's ink are dropped.

FILES_AT_ONCE = 256


@dataclass(frozen=True)
class Prediction:
    """The most probable digit on one image file, and its probability (0 to 1)."""

    file: str
    digit: int
    probability: float


def run(model: Any, paths: Sequence[Path], as_json: bool) -> int:
    """Prints one line for each file: predictions on stdout, rejected files on stderr.

    Returns:
        The exit code: 0, or 2 if any file was rejected.
    """
    width = max(len("file"), *(len(_printable(path)) for path in paths))
    exit_code = 0
    head = "" if as_json else f"{'file':<{width}}  digit  probability\n"  # Only where there is something below it.
    for outcome in predict_files(model, paths):
        if isinstance(outcome, UserError):
            print(f"mnist-dist: error: {outcome}", file=sys.stderr, flush=True)
            exit_code = EXIT_BAD_INPUT
        elif as_json:
            print(json.dumps(asdict(outcome)), flush=True)
        else:
            line = f"{_printable(outcome.file):<{width}}  {outcome.digit:>5}  {outcome.probability:>11.4f}"
            print(head + line, flush=True)
            head = ""
    return exit_code


def predict_files(model: Any, paths: Iterable[Path]) -> Iterator[Prediction | UserError]:
    """Yields a prediction, or the reason why there is none, for each file in the order given.

    One bad file among a thousand costs its own line only: the others are predicted all the same. Memory is bounded
    by `FILES_AT_ONCE` small images, however many files there are.

    Args:
        model: float32 probabilities [n, 10] from raw pixels [n, 28, 28, 1].
    """
    remaining = iter(paths)
    while chunk := list(itertools.islice(remaining, FILES_AT_ONCE)):
        outcomes = [_load_or_error(path) for path in chunk]
        digits = [outcome for outcome in outcomes if isinstance(outcome, np.ndarray)]
        rows = iter(model.predict(np.stack(digits)[..., None], batch_size=FILES_AT_ONCE, verbose=0) if digits else ())
        for path, outcome in zip(chunk, outcomes, strict=True):
            yield outcome if isinstance(outcome, UserError) else _most_probable(path, next(rows))


def load_digit(path: Path) -> np.ndarray:
    """Reads any image of a digit as MNIST would show it: uint8 [28, 28], light on black.

    Size, colours, bit depth, transparency, EXIF rotation, polarity and smoothly uneven light do not matter; of an
    animation the first frame counts. The digit should fill a tenth of the picture's longer side or more, without
    touching its edges. Ruled paper, sharp shadows and the table under the paper count as ink.

    Raises:
        UserError: the file is no regular file, empty, too large, not decodable, or shows no ink.
    """
    ink = _ink(_read_grey(path))
    if ink is None:
        remedy = "raise the contrast, or leave a margin around the digit"
        raise _rejected(path, "an image without visible ink", "one digit on a plain background", remedy)
    return _centred(_scaled(ink))


def _load_or_error(path: Path) -> np.ndarray | UserError:
    try:
        return load_digit(path)
    except UserError as error:
        return error


def _most_probable(path: Path, probabilities: np.ndarray) -> Prediction:
    digit = int(probabilities.argmax())
    return Prediction(str(path), digit, float(probabilities[digit]))


def _read_grey(path: Path) -> np.ndarray:
    """Returns float32 [height, width] grey levels 0..255, with a longer side of at most `WORKING_PIXELS`."""
    from PIL import Image

    _check_file(path)
    Image.init()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # About oddities in metadata, and large images, which are refused below.
            with Image.open(path, formats=[name for name in FORMATS if name in Image.OPEN]) as image:
                if image.width * image.height > MAX_PIXELS:
                    raise Image.DecompressionBombError(f"{image.width} x {image.height} pixels")
                return _grey(image)
    except Image.DecompressionBombError as error:
        limit = f"at most {MAX_PIXELS / 1e6:.0f} megapixels"
        size = str(error).partition(" exceeds")[0].removeprefix("Image size ").strip("()")
        raise _rejected(path, f"an image of {size}", limit, "crop or shrink it") from None
    except Image.UnidentifiedImageError:
        raise _rejected(path, "a file in another format", EXPECTED, "convert it, for example to PNG") from None
    except Exception as error:  # Pillow's decoders raise nearly every type on broken files.
        reason = f"an undecodable file ({' '.join(str(error).split()) or type(error).__name__})"
        raise _rejected(path, reason, EXPECTED, "save or copy it again") from None


def _check_file(path: Path) -> None:
    try:
        status = path.stat()
    except OSError as error:
        raise _rejected(path, f"no file ({error.strerror})", EXPECTED, "check the path") from None
    if stat.S_ISDIR(status.st_mode):
        raise _rejected(path, "a folder", EXPECTED, "name the files in it, for example FOLDER/*.png")
    if not stat.S_ISREG(status.st_mode):
        raise _rejected(path, "a device, pipe or socket", EXPECTED, "save the image to a file first")
    if not os.access(path, os.R_OK):
        raise _rejected(path, "a file without read permission", EXPECTED, "run chmod u+r on it")
    if status.st_size == 0:
        raise _rejected(path, "an empty file (0 bytes)", EXPECTED, "save or copy it again")
    if status.st_size > MAX_FILE_BYTES:
        limit = f"at most {MAX_FILE_BYTES} bytes"
        raise _rejected(path, f"a too large file ({status.st_size} bytes)", limit, "crop or shrink the image")


def _rejected(path: Path, received: str, expected: str, remedy: str) -> UserError:
    return UserError(f"'{_printable(path)}': received {received}, expected {expected}; {remedy}.")


def _printable(path: Path | str) -> str:
    """Keeps a line one line, and encodable, whatever bytes the file's name holds."""
    return "".join(character if character.isprintable() else "?" for character in str(path))


def _grey(image: "Image.Image") -> np.ndarray:
    """Decodes, reduces and turns upright; see `_read_grey`."""
    from PIL import ImageOps

    deep = image.mode.startswith(("I", "F"))  # 16 bits and more, of which Pillow's 8-bit conversion clips all but 255.
    if deep:
        image = image.convert("F")
    elif image.has_transparency_data:
        image = image.convert("RGBA")
    elif image.mode not in ("L", "RGB"):
        image = image.convert("RGB")
    image.thumbnail((WORKING_PIXELS, WORKING_PIXELS))  # Before all else, so that JPEG decodes a fraction only.
    pixels = np.asarray(ImageOps.exif_transpose(image), np.float32)
    if deep:
        return _stretched(np.nan_to_num(pixels, posinf=0, neginf=0).astype(np.float64))
    return pixels if pixels.ndim == 2 else _without_colour(pixels[..., :3], pixels[..., 3:] / 255)


def _stretched(levels: np.ndarray) -> np.ndarray:
    """Maps the range in use, which may be 12 of 16 bits or 0..1, to 0..255."""
    low, high = levels.min(), levels.max()
    return (levels - low) / (high - low) * 255 if high > low else np.zeros_like(levels)


def _without_colour(colours: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Returns grey [h, w] of [h, w, 3] with opacity [h, w, 1] (0..1) or [h, w, 0]."""
    if alpha.size:
        colours = colours * alpha + _backdrop(colours, alpha[..., 0]) * (1 - alpha)
    luma = colours @ np.array([0.299, 0.587, 0.114], np.float32)
    channel = colours[..., colours.std(axis=(0, 1)).argmax()]
    return channel if channel.std() > 2 * luma.std() else luma  # Yellow on white, red on green of the same luma.


def _backdrop(colours: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Returns the colour [3] to show behind a picture: its own background if opaque, else what contrasts with it."""
    opaque = colours[alpha > 0.5]
    if not len(opaque):
        return np.zeros(3, np.float32)
    if len(opaque) > alpha.size / 2 and opaque.mean(axis=1).std() > 25:  # A label or photo with cut-off corners.
        return np.median(opaque, axis=0)
    return np.full(3, 0 if opaque.mean() > 127 else 255, np.float32)


def _ink(grey: np.ndarray) -> np.ndarray | None:
    """Returns the strokes, cropped to them: [h, w], 0 off the ink and about 1 on it; None where nothing stands out."""
    if max(grey.shape) > WORKING_PIXELS // 2:
        grey = _smoothed(_smoothed(grey).T).T
    background, noise = _background(grey)
    residual = grey - background
    outliers = np.where(np.abs(residual) > 3 * noise, residual, 0)
    if np.sum(outliers * np.abs(outliers)) < 0:  # Dark on light; a quotient, as a shadow dims paper and ink alike.
        outliers = -outliers * (background.mean() / np.maximum(background, 16))
    ink = np.maximum(outliers, 0)
    if not ink.any():
        return None
    contrast = np.sum(ink**3) / np.sum(ink**2)  # A mean in which the many faint pixels of shadows weigh little.
    if contrast < max(MIN_CONTRAST_LEVELS, MIN_CONTRAST_SIGMAS * noise):
        return None
    return _cropped(_without_specks(ink / contrast))


def _smoothed(grey: np.ndarray) -> np.ndarray:
    """Averages each pixel with its neighbours above and below, with weights 1, 2, 1."""
    padded = np.pad(grey, ((1, 1), (0, 0)), mode="edge")
    return (padded[:-2] + 2 * grey + padded[2:]) / 4


def _background(grey: np.ndarray) -> tuple[np.ndarray, float]:
    """Fits a smooth surface to all but the ink, starting from the border.

    Returns:
        The surface [h, w], a polynomial of degree two, and the standard deviation of the noise about it.
    """
    height, width = grey.shape
    y, x = np.meshgrid(np.linspace(-1, 1, height), np.linspace(-1, 1, width), indexing="ij")
    all_terms = np.stack([np.ones_like(x), x, y, x * x, x * y, y * y], axis=-1)
    step = max(1, max(grey.shape) // 64)  # A few thousand pixels determine six coefficients well enough.
    terms, levels = all_terms[::step, ::step], grey[::step, ::step]
    is_background = np.ones(levels.shape, bool)
    is_background[2:-2, 2:-2] = False
    surface = np.full_like(levels, np.median(levels[is_background]))
    for count in (1, 3, 6, 6):  # Level, tilt, curvature: a surface fitted at once would bend towards the ink.
        noise = _deviation(levels[is_background] - surface[is_background])
        is_background = np.abs(levels - surface) <= 2.5 * noise
        known = terms[is_background][:, :count]
        coefficients = np.linalg.lstsq(known.T @ known, known.T @ levels[is_background], rcond=None)[0]
        surface = terms[..., :count] @ coefficients
    return all_terms @ coefficients, _deviation(levels[is_background] - surface[is_background])


def _deviation(residual: np.ndarray) -> float:
    """Returns the standard deviation of normal noise, unmoved by outliers."""
    return 1.4826 * float(np.median(np.abs(residual)))


def _without_specks(ink: np.ndarray) -> np.ndarray:
    """Keeps the parts of the picture with much ink, and one pixel of blur around them."""
    padded = np.pad(ink > INK_FRACTION, 2)  # So wide that neither the roll nor a run of marks comes round.
    near = np.any([np.roll(padded, (dy, dx), (0, 1)) for dy in (-1, 0, 1) for dx in (-1, 0, 1)], axis=0)
    parts = _connected(near)[2:-2, 2:-2]
    mass = np.bincount(parts.ravel(), weights=ink.ravel())
    mass[0] = 0
    return np.where((mass >= SPECK_FRACTION * mass.max())[parts] & (parts > 0), ink, 0)


def _connected(mask: np.ndarray) -> np.ndarray:
    """Gives each connected part of a mask [h, w] with an empty frame a number of its own; 0 is outside."""
    labels = np.where(mask, np.arange(1, mask.size + 1).reshape(mask.shape), 0)
    while True:
        spread = _spread_along_rows(_spread_along_rows(labels).T).T
        if np.array_equal(spread, labels):
            return labels
        labels = spread


def _spread_along_rows(labels: np.ndarray) -> np.ndarray:
    """Gives each run of non-zero labels in a row their maximum."""
    flat = labels.ravel()
    starts = np.flatnonzero(np.diff(flat > 0, prepend=not flat[0]))
    return np.repeat(np.maximum.reduceat(flat, starts), np.diff(starts, append=flat.size)).reshape(labels.shape)


def _cropped(ink: np.ndarray) -> np.ndarray | None:
    rows, columns = (np.flatnonzero((ink > INK_FRACTION).any(axis=axis)) for axis in (1, 0))
    if max(np.ptp(rows), np.ptp(columns)) + 1 < MIN_INK_PIXELS:
        return None
    return ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def _scaled(ink: np.ndarray) -> np.ndarray:
    """Makes the longer side 20 pixels and the strokes as bright as MNIST's, to 0..1."""
    from PIL import Image

    height, width = (max(1, round(side * DIGIT_PIXELS / max(ink.shape))) for side in ink.shape)
    resized = Image.fromarray(ink.astype(np.float32)).resize((width, height), Image.Resampling.HAMMING)
    digit = np.asarray(resized)
    return np.clip(digit / np.percentile(digit[digit > INK_FRACTION * digit.max()], 90), 0, 1)


def _centred(digit: np.ndarray) -> np.ndarray:
    """Places a digit by its centre of mass, as near to the middle as the edges allow."""
    field = np.zeros((FIELD_PIXELS, FIELD_PIXELS), np.uint8)
    corner = []
    for axis, side in enumerate(digit.shape):
        centre = np.average(np.arange(side), weights=digit.sum(axis=1 - axis))
        corner.append(min(max(0, round(CENTRE_PIXELS - centre)), FIELD_PIXELS - side))
    (top, left), (height, width) = corner, digit.shape
    field[top : top + height, left : left + width] = np.rint(digit * 255)
    return field

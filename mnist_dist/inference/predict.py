"""People's own images of digits, made to look like MNIST, and what a trained model says about them.

An image should show one digit on a plain background: a scan, a photo of pen on paper, a drawing. It is reduced, its
strokes are found (`ink.py`), scaled so that their longer side is 20 pixels, and placed with their centre of mass in the
middle of 28 x 28 pixels, as the makers of MNIST did (LeCun, Cortes and Burges, http://yann.lecun.com/exdb/mnist).
"""

from __future__ import annotations

import functools
import itertools
import json
import os
import stat
import sys
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mnist_dist.config import DataConfig
from mnist_dist.data.dataset import load_arrays
from mnist_dist.errors import EXIT_BAD_INPUT, UserError
from mnist_dist.inference.ink import INK_FRACTION, NotOneDigitError, find_strokes
from mnist_dist.lazy import Image, ndimage

MAX_FILE_BYTES = 50_000_000
MAX_PIXELS = 50_000_000
# A closed list: Pillow would hand others to weaker decoders, and EPS to the Ghostscript interpreter.
FORMATS = ("PNG", "JPEG", "MPO", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF")
EXPECTED = "a PNG, JPEG, WebP, GIF, BMP, TIFF, PPM, JPEG 2000 or AVIF image"

FIELD_PIXELS = 28
DIGIT_PIXELS = 20
CENTRE_PIXELS = 14  # Index of the pixel that holds MNIST's centres of mass: their mean is (14.0, 14.0).
WORKING_PIXELS = 256  # Larger images are reduced to this longer side, which averages most of their noise away.
ENLARGED_PIXELS = 64  # Images smaller than MNIST's get this longer side, so that strokes are a few pixels wide.

FILES_AT_ONCE = 256
LEAST_PROBABILITY = 0.95  # Below it, or with less than the cosine to the nearest image of MNIST, a digit is uncertain.
LEAST_COSINE = 0.77


@dataclass(frozen=True)
class Prediction:
    """The most probable digit on one image file, its probability (0 to 1), and why it may be none, if it may."""

    file: str
    digit: int
    probability: float
    doubt: str

    @property
    def uncertain(self) -> bool:
        return bool(self.doubt)


def run(model: Any, paths: Sequence[Path], as_json: bool) -> int:
    """Prints a line for each file, on stderr for rejected ones; returns the exit code: 0, or 2 if any was rejected."""
    width = max(len("file"), *(len(_printable(path)) for path in paths))
    exit_code, is_doubtful = 0, False
    head = "" if as_json else f"{'file':<{width}}  digit  probability\n"  # Only where there is something below it.
    for outcome in predict_files(model, paths):
        if isinstance(outcome, UserError):
            print(f"mnist-dist: error: {outcome}", file=sys.stderr, flush=True)
            exit_code = EXIT_BAD_INPUT
        elif as_json:
            told = ("file", "digit", "probability", "uncertain")
            print(json.dumps({name: getattr(outcome, name) for name in told}), flush=True)
        else:
            line = f"{_printable(outcome.file):<{width}}  {outcome.digit:>5}  {outcome.probability:>11.4f}"
            print(head + line + (f"  uncertain: {outcome.doubt}" if outcome.doubt else ""), flush=True)
            head, is_doubtful = "", is_doubtful or outcome.uncertain
    if is_doubtful:
        print("Where a digit is uncertain: crop the picture to it, or take it again in even light.", file=sys.stderr)
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
        predictions = iter(_predict(model, np.stack(digits)) if digits else ())
        for path, outcome in zip(chunk, outcomes, strict=True):
            yield outcome if isinstance(outcome, UserError) else Prediction(str(path), *next(predictions))


def _predict(model: Any, digits: np.ndarray) -> Iterator[tuple[int, float, str]]:
    """Yields digit, probability and doubt of each image uint8 [n, 28, 28], n at most `FILES_AT_ONCE`."""
    probabilities = model.predict(digits[..., None], batch_size=FILES_AT_ONCE, verbose=0)
    cosines = (_directions(digits) @ _mnist_directions().T).max(axis=1)
    for row, cosine in zip(probabilities, cosines, strict=True):
        second, digit = map(int, row.argsort()[-2:])
        doubt = f"it may be a {second}" if row[digit] < LEAST_PROBABILITY else ""
        yield digit, float(row[digit]), "its shape is unlike MNIST's digits" if cosine < LEAST_COSINE else doubt


@functools.cache
def _mnist_directions() -> np.ndarray:
    """Returns every third training image of the embedded MNIST, float32 [20000, 784] of length one."""
    return _directions(load_arrays(DataConfig()).train_images[::3])


def _directions(images: np.ndarray) -> np.ndarray:
    flat = images.reshape(len(images), -1).astype(np.float32)
    return flat / np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1)


def load_digit(path: Path) -> np.ndarray:
    """Reads any image of a digit as MNIST would show it: uint8 [28, 28], light on black.

    Size, colours, bit depth, transparency, EXIF rotation, polarity and smoothly uneven light do not matter; of an
    animation the first frame counts. Frames, printed boxes, ruled lines, the table under the paper and sharp shadows
    are taken off. The digit should fill a sixth of the picture's longer side or more, without touching its edges.

    Raises:
        UserError: the file is no regular file, empty, too large, not decodable, or shows no ink or several digits.
    """
    grey = _read_grey(path)
    try:
        return _centred(_scaled(find_strokes(grey)))
    except NotOneDigitError as error:
        raise _rejected(path, error.received, "one digit on a plain background", error.remedy) from None


def _load_or_error(path: Path) -> np.ndarray | UserError:
    try:
        return load_digit(path)
    except UserError as error:
        return error


def _read_grey(path: Path) -> np.ndarray:
    """Returns float32 [height, width] grey levels 0..255, with a longer side of `FIELD_PIXELS` to `WORKING_PIXELS`."""
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
        raise _rejected(path, f"too large a file ({status.st_size} bytes)", limit, "crop or shrink the image")


def _rejected(path: Path, received: str, expected: str, remedy: str) -> UserError:
    return UserError(f"'{_printable(path)}': received {received}, expected {expected}; {remedy}.")


def _printable(path: Path | str) -> str:
    """Keeps a line one line, and encodable, whatever bytes the file's name holds."""
    return "".join(character if character.isprintable() else "?" for character in str(path))


def _grey(image: Image.Image) -> np.ndarray:
    """Decodes, reduces and turns upright; see `_read_grey`."""
    from PIL import ImageOps

    deep = image.mode.startswith(("I", "F"))  # 16 bits and more, of which Pillow's 8-bit conversion clips all but 255.
    if deep:
        image = _stretched(np.asarray(image.convert("F")))
    elif image.has_transparency_data:
        image = image.convert("RGBA")
    elif image.mode not in ("L", "RGB"):
        image = image.convert("RGB")
    image.thumbnail((WORKING_PIXELS, WORKING_PIXELS))  # Before all else, so that JPEG decodes a fraction only.
    if max(image.size) < FIELD_PIXELS:
        image = ImageOps.contain(image, (ENLARGED_PIXELS, ENLARGED_PIXELS))
    pixels = np.asarray(ImageOps.exif_transpose(image), np.float32)
    return pixels if pixels.ndim == 2 else _without_colour(pixels[..., :3], pixels[..., 3:] / 255)


def _stretched(levels: np.ndarray) -> Image.Image:
    """Maps the range in use, which may be 12 of 16 bits or 0..1, to 0..255.

    The range is that of medians of nine neighbours, so that a hot or dead pixel does not count.
    """
    levels = np.nan_to_num(levels, posinf=0, neginf=0)
    for used in (ndimage.median_filter(levels, 3), levels):  # The latter where all strokes are a pixel wide.
        low, high = float(used.min()), float(used.max())
        if high > low:
            break
    scale = 255 / (high - low) if high > low else 0.0
    return Image.fromarray(np.clip((levels - low) * scale, 0, 255).astype(np.float32))


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


def _scaled(ink: np.ndarray) -> np.ndarray:
    """Makes the longer side 20 pixels and the strokes as bright as MNIST's, to 0..1."""
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

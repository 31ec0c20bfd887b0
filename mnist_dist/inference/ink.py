"""The strokes of one digit on a grey picture: light, shadows, frames, ruled lines and dust are taken off."""

import itertools

import numpy as np

from mnist_dist.lazy import ndimage

MIN_CONTRAST_LEVELS = 8.0  # Of 255 grey levels, between ink and paper.
MIN_CONTRAST_SIGMAS = 6.0  # The same contrast in standard deviations of the paper's noise.
MIN_INK_PIXELS = 5  # Longer side of the ink.
INK_FRACTION = 0.25  # Of full ink, above which a pixel is part of a stroke: above JPEG's ringing and most shadows.
SPECK_FRACTION = 0.1  # Parts with less than this share of the largest part's ink are dropped.

# Of the picture's longer side:
BLUR = 1 / 360  # Standard deviation; it takes two thirds of the noise off a picture of 256 pixels.
STROKE = 0.35  # No stroke is so wide, but shadows, sheets and tables are.
LIT = 0.45  # No stroke is so wide where it is brightest, not even in a picture of 8 pixels, but lit paper is.
LINES = 0.02, 0.05  # As thick are ruled lines, and those of tables.
HIDDEN = 0.75  # No digit hides so much of a line.
MIN_DIGIT = 0.15  # What is smaller is not what the picture shows.

MIN_BOXED = 0.35  # Of a box's longer side, the longer side of what is in it; the dot in a zero is smaller.
LOWER_DIGIT = 0.4  # Of two digits side by side, the height of the lower one in that of the higher one.

RECTANGULAR = 0.85  # Share of its tightest rectangle that a sheet fills with what is on it; an ellipse fills 0.785.

EIGHT_NEIGHBOURS = np.ones((3, 3), bool)

Box = tuple[slice, slice]  # Rows and columns.


class NotOneDigitError(Exception):
    """A picture that does not show one digit: what it shows, and what to do."""

    def __init__(self, received: str, remedy: str) -> None:
        super().__init__(received)
        self.received, self.remedy = received, remedy


def find_strokes(grey: np.ndarray) -> np.ndarray:
    """Returns the strokes of the digit on a picture, cropped to them: [h, w], 0 off the ink and about 1 on it.

    Args:
        grey: float [height, width], 0..255, dark on light or light on dark.

    Raises:
        NotOneDigitError: nothing stands out, or several digits do.
    """
    ink = _main_parts(_without_lines(_ink(grey)))
    rows, columns = (np.flatnonzero((ink > INK_FRACTION).any(axis=axis)) for axis in (1, 0))
    if not rows.size or max(np.ptp(rows), np.ptp(columns)) + 1 < MIN_INK_PIXELS:
        raise _nothing_visible()
    return ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def _nothing_visible() -> NotOneDigitError:
    return NotOneDigitError("an image without visible ink", "raise the contrast, or leave a margin around the digit")


def _pixels(grey: np.ndarray, fraction: float) -> int:
    return max(3, round(fraction * max(grey.shape)))


def _ink(grey: np.ndarray) -> np.ndarray:
    """Returns what is darker than the paper around it and narrower than a wide stroke, 0 off the ink and about 1 on it.

    The closing of a picture by a square is the picture without what is dark and narrower than the square (Serra, Image
    Analysis and Mathematical Morphology, 1982): what is wide, such as a shadow, stays as it is, sharp edges included.
    """
    grey = ndimage.gaussian_filter(grey, BLUR * max(grey.shape))
    if _is_light_on_dark(grey):
        grey = 255 - grey
    side = min(_pixels(grey, STROKE), *grey.shape)  # On a strip, light that changes along it must not count as ink.
    # Each edge goes on as its lighter pixels: a frame, which takes all of an edge, gets wide, a stroke does not.
    beyond = [[np.percentile(lines[end], 80) for end in (0, -1)] for lines in (grey, grey.T)]
    paper = ndimage.grey_closing(np.pad(grey, side, constant_values=beyond), side)[side:-side, side:-side]
    # A quotient, as a shadow dims paper and ink alike, and a stroke too wide for the square is paper in part.
    ink = (paper - grey) * paper.mean() / np.maximum(paper, 16)
    lowest, low = np.percentile(ink, (5, 25))  # Not the median: a frame may be half of the picture.
    noise = float(low - lowest)  # That is 0.97 standard deviations of normal noise, which the closing only shifts.
    level = low + 0.7 * noise  # The median of normal noise.
    ink = np.where(ink > level + 3 * noise, ink - level, 0)
    contrast = _contrast(ink)
    if contrast < MIN_CONTRAST_LEVELS:
        raise _nothing_visible()
    if contrast < MIN_CONTRAST_SIGMAS * noise:
        raise NotOneDigitError("an image without visible ink above its noise", "take it in more light, or closer")
    return ink / contrast


def _contrast(ink: np.ndarray) -> float:
    """Returns a mean of the ink's absolute levels in which the many faint pixels of shadows weigh little."""
    return float(np.sum(np.abs(ink) ** 3) / max(np.sum(ink**2), 1e-9))


def _is_light_on_dark(grey: np.ndarray) -> bool:
    """Compares a picture with its border, level and then tilted: frames spoil the one, sharp shadows the other."""
    edges = grey[:2], grey[-2:], grey[:, :2], grey[:, -2:]
    top, bottom, left, right = map(np.median, edges)
    y, x = (np.linspace(-0.5, 0.5, side) for side in grey.shape)
    tilted = (top + bottom + left + right) / 4 + (bottom - top) * y[:, None] + (right - left) * x
    level = np.median(np.concatenate([edge.ravel() for edge in edges]))
    return all(np.sum((grey - border) ** 3) > 0 and not _is_paper(grey - border) for border in (level, tilted))


def _is_paper(light: np.ndarray) -> bool:
    """Says whether light [h, w] is no stroke, but so wide or, with something inside, so rectangular as lit paper is."""
    light = light > 0.5 * _contrast(light)
    if ndimage.minimum_filter(light, _pixels(light, LIT), mode="constant").any():
        return True
    parts, _ = ndimage.label(light, EIGHT_NEIGHBOURS)
    largest = parts == 1 + int(np.argmax(np.bincount(parts.ravel(), minlength=2)[1:]))
    outline = ndimage.binary_fill_holes(largest)
    holes, _ = ndimage.label(outline & ~largest)
    content = max(map(_longer_side, ndimage.find_objects(holes)), default=0)
    return content >= MIN_DIGIT * max(light.shape) and _rectangularity(outline) >= RECTANGULAR


def _rectangularity(outline: np.ndarray) -> float:
    """Returns the share, up to about 1, that a filled mask takes of the smallest rectangle about it."""
    points, angles = np.argwhere(outline), np.radians(np.arange(-45, 45, 3))
    across = np.ptp(points @ np.stack([np.cos(angles), np.sin(angles)]), axis=0) + 1
    along = np.ptp(points @ np.stack([-np.sin(angles), np.cos(angles)]), axis=0) + 1
    return float(outline.sum() / np.min(across * along))


def _without_lines(ink: np.ndarray) -> np.ndarray:
    """Takes off thin lines that run through the picture from edge to edge, the thinnest first to spare thin strokes."""
    for thickness in LINES:
        ink = _without_rows(_without_rows(ink, thickness).T, thickness).T
    return ink


def _without_rows(ink: np.ndarray, thickness: float) -> np.ndarray:
    """Takes off lines up to a thickness (share of the longer side) that run from the left edge to the right one.

    Where a stroke crosses a line, the ink is as high as the stroke, so the opening by a low column keeps it.
    """
    reach = 2 + _pixels(ink, LINES[-1])  # The closing below carries ink no farther towards an edge.
    if not all(np.any(edge > INK_FRACTION / 2) for edge in (ink[:, :reach], ink[:, -reach:])):
        return ink
    strokes = ndimage.grey_opening(ink, (_pixels(ink, thickness), 1), mode="nearest")
    low = ndimage.grey_closing(ink - strokes, (1, _pixels(ink, LINES[-1])), mode="nearest")  # Over lines that cross it.
    lines = ndimage.grey_opening(low, (1, _pixels(ink, 0.125)), mode="nearest") > INK_FRACTION / 2
    joined, _ = ndimage.label(ndimage.maximum_filter(lines, (5, _pixels(ink, HIDDEN))))
    joined[~lines] = 0
    through = np.setdiff1d(np.intersect1d(joined[:, :2], joined[:, -2:]), [0])
    taken = ndimage.maximum_filter(np.isin(joined, through), (5, 1))
    return np.where(taken, strokes, ink)


def _main_parts(ink: np.ndarray) -> np.ndarray:
    """Keeps the parts with much ink and one pixel of blur around them, without boxes and, if others are large, edges.

    Raises:
        NotOneDigitError: two of them stand side by side.
    """
    strokes = ink > INK_FRACTION
    parts, _ = ndimage.label(ndimage.binary_dilation(strokes, EIGHT_NEIGHBOURS), EIGHT_NEIGHBOURS)
    boxes = ndimage.find_objects(parts)
    if not boxes:
        raise _nothing_visible()
    numbers = np.arange(1, len(boxes) + 1)
    mass = ndimage.sum_labels(ink, parts, numbers)
    sides = np.array([_longer_side(box) for box in boxes])
    edge = np.ones(ink.shape, bool)
    edge[1:-1, 1:-1] = False
    at_edge = np.isin(numbers, parts[strokes & edge])
    if np.any((sides >= MIN_DIGIT * max(ink.shape)) & ~at_edge):
        mass[at_edge] = 0
    large = [box for box, of_box in zip(boxes, mass, strict=True) if of_box >= SPECK_FRACTION * mass.max()]
    mass[[any(_surrounds(box, other) for other in large) for box in boxes]] = 0
    kept = mass >= SPECK_FRACTION * mass.max()
    _require_one([box for box, keep in zip(boxes, kept, strict=True) if keep])
    return np.where(np.isin(parts, numbers[kept]), ink, 0)


def _longer_side(box: Box) -> int:
    return max(side.stop - side.start for side in box)


def _surrounds(box: Box, content: Box) -> bool:
    inside = all(
        outer.start < inner.start and inner.stop < outer.stop for outer, inner in zip(box, content, strict=True)
    )
    return inside and _longer_side(content) >= MIN_BOXED * _longer_side(box)


def _require_one(boxes: list[Box]) -> None:
    """Raises NotOneDigitError where parts within these rows and columns are digits side by side."""
    highest = max(rows.stop - rows.start for rows, _ in boxes)
    high = [columns for rows, columns in boxes if rows.stop - rows.start >= LOWER_DIGIT * highest]
    high.sort(key=lambda columns: columns.start)
    if any(left.stop <= right.start for left, right in itertools.pairwise(high)):
        raise NotOneDigitError("several digits side by side", "crop each digit into a picture of its own")

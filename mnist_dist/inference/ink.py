"""The strokes of one digit on a grey picture: light, shadows, frames, ruled lines and dust are taken off."""

import itertools

import numpy as np

MIN_CONTRAST_LEVELS = 8.0  # Of 255 grey levels, between ink and background.
MIN_CONTRAST_SIGMAS = 6.0  # The same contrast in standard deviations of the background's noise.
MIN_INK_PIXELS = 5  # Longer side of the ink.
INK_FRACTION = 0.25  # Of full ink, above which a pixel is part of a stroke: above JPEG's ringing and most shadows.
SPECK_FRACTION = 0.1  # Parts with less than this share of the largest part's ink are dropped.

STROKE_FRACTION = 0.35  # Of the picture's longer side: no stroke is so wide, but shadows, sheets and tables are.
EDGE_RUN, EDGE_DEPTH = 0.7, 0.12  # Of the same: what covers so much of an edge is no stroke.
LINE_FRACTION = 0.05  # Of the same: no ruled line is so thick.
MIN_DIGIT_FRACTION = 0.15  # Of a frame's longer side, or the picture's: what is smaller is not what they show.
RECTANGULAR = 0.85  # Share of its tightest rectangle that a box or sheet fills; an ellipse fills 0.785 of it.
SOLID = 0.7  # Share of its own outline that a sheet fills round the digit on it; a bold zero fills less.
LARGE_FRACTION = 0.3  # Of the picture's longer side: a digit beside a frame, which otherwise may be a part of it.
NARROW_PAIR = 0.85  # Width over height of two digits together; a zero of two arcs is narrower.
LOWER_DIGIT = 0.4  # Of two digits side by side, the height of the lower one in that of the higher one.

EIGHT_NEIGHBOURS = np.ones((3, 3), bool)


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
    ink = _ink(grey)
    ink = _inside_box(_without_lines(_without_lines(ink).T).T)
    ink = _main_parts(ink)
    rows, columns = (np.flatnonzero((ink > INK_FRACTION).any(axis=axis)) for axis in (1, 0))
    if not rows.size or max(np.ptp(rows), np.ptp(columns)) + 1 < MIN_INK_PIXELS:
        raise _nothing_visible()
    return ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def _nothing_visible() -> NotOneDigitError:
    return NotOneDigitError("an image without visible ink", "raise the contrast, or leave a margin around the digit")


def _ink(grey: np.ndarray) -> np.ndarray:
    """Returns what stands out from the paper, 0 off the ink and about 1 on it."""
    if max(grey.shape) > 128:
        grey = _smoothed(_smoothed(grey).T).T
    background, noise = _background(grey)
    residual = grey - background
    outliers = np.where(np.abs(residual) > 3 * noise, residual, 0)
    contrast = _contrast(outliers)
    if contrast < max(MIN_CONTRAST_LEVELS, MIN_CONTRAST_SIGMAS * min(noise, 5.0)):  # More is a shadow.
        raise _nothing_visible()
    sheet = _sheet(outliers / max(contrast, 1))
    uneven = contrast < MIN_CONTRAST_SIGMAS * noise or _is_wider_than_strokes(np.abs(outliers) / max(contrast, 1))
    if sheet is not None or uneven:  # The border is not the paper, but a frame or table, or its light changes at once.
        return _against_paper(grey if sheet is None or residual[sheet].mean() > 0 else 255 - grey)
    if np.sum(outliers * np.abs(outliers)) < 0:  # Dark on light; a quotient, as a shadow dims paper and ink alike.
        outliers = -outliers * (background.mean() / np.maximum(background, 16))
    return _normalized(np.maximum(outliers, 0), noise)


def _contrast(ink: np.ndarray) -> float:
    """Returns a mean of the ink's absolute levels in which the many faint pixels of shadows weigh little."""
    return float(np.sum(np.abs(ink) ** 3) / max(np.sum(ink**2), 1e-9))


def _normalized(ink: np.ndarray, noise: float) -> np.ndarray:
    contrast = _contrast(ink)
    if contrast < max(MIN_CONTRAST_LEVELS, MIN_CONTRAST_SIGMAS * noise):
        raise _nothing_visible()
    return ink / contrast


def _side(ink: np.ndarray, fraction: float) -> int:
    return max(3, round(fraction * max(ink.shape)))


def _is_wider_than_strokes(share: np.ndarray) -> bool:
    """Tells of shares of full ink whether a square, or a bar along an edge, fits into them that no stroke covers."""
    from scipy import ndimage

    dark, faint = share > 0.5, share > INK_FRACTION
    # Not in small pictures, which are no photos, and whose strokes are wide if they were enlarged from few pixels.
    if max(share.shape) > 128 and ndimage.minimum_filter(dark, _side(share, STROKE_FRACTION), mode="constant").any():
        return True
    depth, run = _side(share, EDGE_DEPTH), _side(share, EDGE_RUN)
    edges = [edge.all(axis=0) for edge in (faint[:depth], faint[-depth:], faint[:, :depth].T, faint[:, -depth:].T)]
    return any(ndimage.minimum_filter1d(edge, run, mode="constant").any() for edge in edges)


def _against_paper(grey: np.ndarray) -> np.ndarray:
    """Returns dark ink against the paper around it, whose light may change at once, and which may lie on a table.

    The closing of a picture by a square is the picture without what is dark and narrower than the square (Serra, Image
    Analysis and Mathematical Morphology, 1982): what is wide, such as a shadow, stays as it is, sharp edges included.
    """
    from scipy import ndimage

    paper = ndimage.grey_closing(grey, _side(grey, STROKE_FRACTION), mode="nearest")
    ink = 255 * (1 - grey / np.maximum(paper, 16))
    lowest, low = np.percentile(ink, (5, 25))  # Not the median: a frame may be half of the picture.
    noise = float(low - lowest)  # That is 0.97 standard deviations of normal noise, which the closing only shifts.
    return _normalized(np.where(ink > low + 3 * noise, ink - low, 0), noise)


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


def _sheet(outliers: np.ndarray) -> np.ndarray | None:
    """Returns the mask [h, w] of a lit or dark rectangle with holes in it, such as a digit in a thick frame leaves."""
    from scipy import ndimage

    for mask in (outliers > INK_FRACTION, outliers < -INK_FRACTION):
        part, outline = _largest(mask)
        share = part.sum() / max(outline.sum(), 1)
        if share >= SOLID and _rectangularity(outline) >= RECTANGULAR:
            holes, _ = ndimage.label(outline & ~part)
            if _longest_side(holes) >= MIN_DIGIT_FRACTION * _longest_side(part.astype(int)):
                return part
    return None


def _inside_box(ink: np.ndarray) -> np.ndarray:
    """Clears all but what is inside the largest part, where that is a printed box with something in it."""
    from scipy import ndimage

    part, outline = _largest(ink > INK_FRACTION)
    content, _ = ndimage.label((ink > INK_FRACTION) & outline & ~part, EIGHT_NEIGHBOURS)
    if _longest_side(content) < MIN_DIGIT_FRACTION * _longest_side(part.astype(int)):
        return ink
    if _rectangularity(outline) < RECTANGULAR:
        return ink
    near = ndimage.binary_dilation(part, EIGHT_NEIGHBOURS, iterations=2)
    return np.where(outline & ~near, ink, 0)


def _largest(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the connected part of a mask that spans the largest rectangle, and the same with its holes filled."""
    from scipy import ndimage

    parts, _ = ndimage.label(mask, EIGHT_NEIGHBOURS)
    boxes = ndimage.find_objects(parts)
    if not boxes:
        return mask, mask
    sizes = [(rows.stop - rows.start) * (columns.stop - columns.start) for rows, columns in boxes]
    part = parts == 1 + int(np.argmax(sizes))
    return part, ndimage.binary_fill_holes(part)


def _longest_side(parts: np.ndarray) -> int:
    """Returns the longest side, in pixels, of any numbered part; 0 without parts."""
    from scipy import ndimage

    return max((side.stop - side.start for box in ndimage.find_objects(parts) for side in box), default=0)


def _rectangularity(outline: np.ndarray) -> float:
    """Returns the share, up to about 1, that a filled mask takes of the smallest rectangle about it."""
    from scipy import ndimage

    if not outline.any():
        return 0.0
    points = np.argwhere(outline & ~ndimage.binary_erosion(outline))  # The rim alone decides the rectangle.
    angles = np.radians(np.arange(-45, 45, 3))
    across = np.ptp(points @ np.stack([np.cos(angles), np.sin(angles)]), axis=0) + 1
    along = np.ptp(points @ np.stack([-np.sin(angles), np.cos(angles)]), axis=0) + 1
    return float(outline.sum() / np.min(across * along))


def _without_lines(ink: np.ndarray) -> np.ndarray:
    """Takes off thin lines that run through the picture from the left edge to the right one.

    Where a stroke crosses a line, the ink is as high as the stroke, so the opening by a low column keeps it.
    """
    from scipy import ndimage

    height, length = _side(ink, LINE_FRACTION), _side(ink, 0.125)
    strokes = ndimage.grey_opening(ink, (height, 1), mode="nearest")
    lines = ndimage.grey_opening(ink - strokes, (1, length), mode="nearest") > INK_FRACTION / 2
    joined, _ = ndimage.label(ndimage.maximum_filter(lines, (5, 2 * length + 1)))
    spans = [columns.stop - columns.start for _, columns in ndimage.find_objects(joined)]
    through = 1 + np.flatnonzero(np.equal(spans, ink.shape[1]))
    taken = ndimage.maximum_filter(lines & np.isin(joined, through), (5, 1))
    return np.where(taken, strokes, ink)


def _main_parts(ink: np.ndarray) -> np.ndarray:
    """Keeps the parts with much ink, and one pixel of blur around them; none at the picture's edge if others are there.

    Raises:
        NotOneDigitError: two of them stand side by side.
    """
    from scipy import ndimage

    strokes = ink > INK_FRACTION
    parts, count = ndimage.label(ndimage.binary_dilation(strokes, EIGHT_NEIGHBOURS), EIGHT_NEIGHBOURS)
    mass = ndimage.sum_labels(ink, parts, np.arange(count + 1))
    mass[0] = 0
    boxes = ndimage.find_objects(parts)
    sides = np.array([(0, 0)] + [(rows.stop - rows.start, columns.stop - columns.start) for rows, columns in boxes])
    large = sides.max(axis=1) >= LARGE_FRACTION * max(ink.shape)
    inner = np.zeros_like(strokes)
    inner[1:-1, 1:-1] = True
    edge = np.isin(np.arange(count + 1), parts[strokes & ~inner])
    if np.any(large & ~edge):
        if max(ink.shape) <= 128:  # A digit may fill a small picture, in parts; a frame then runs along a whole side.
            edge &= np.any(sides >= ink.shape, axis=1)
        mass[edge] = 0
    kept = (mass >= SPECK_FRACTION * mass.max()) & (mass > 0)
    _require_one([box for box, keep in zip(boxes, kept[1:], strict=True) if keep])
    return np.where(kept[parts], ink, 0)


def _require_one(boxes: list[tuple[slice, slice]]) -> None:
    """Raises NotOneDigitError where parts within these rows and columns are digits side by side."""
    heights = [rows.stop - rows.start for rows, _ in boxes]
    high = [
        columns for height, (_, columns) in zip(heights, boxes, strict=True) if height >= LOWER_DIGIT * max(heights)
    ]
    high.sort(key=lambda columns: columns.start)
    wide = high and max(columns.stop for columns in high) - high[0].start >= NARROW_PAIR * max(heights)
    if wide and any(left.stop <= right.start for left, right in itertools.pairwise(high)):
        raise NotOneDigitError("several digits side by side", "crop each digit into a picture of its own")

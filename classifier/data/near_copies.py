"""Near-copies: the same photograph, encoded again, scaled, mirrored, cropped a little, or brightened.

Candidates are pairs of images that look alike at a glance: by their thumbnails, or by the features of a network. Most of
them only look alike. So they are aligned, and their fine details are compared: those of copies agree almost everywhere.
"""

import contextlib
import csv
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np

from classifier.base.console import NO_DATA, UserError, progress, say
from classifier.base.files import csv_text, digest_of
from classifier.base.prefetch import in_chunks, prefetch
from classifier.data.cache import cached_rows
from classifier.data.splitting import root_of

FILE, HEADER = "near_copies.csv", ["digest", "group", "path"]  # in a run folder, so that its split can be repeated
VERSION = 1  # raise it when group_near_copies() comes to find others

SIDE = 96  # pixels, of the grey images that are compared
THUMBNAIL = 12  # pixels
CROP = 86  # pixels: about 90 % of the side
ALIKE = 0.82  # correlation of thumbnails: about one in a hundred cropped photographs has less
AGREEMENT = 0.65  # correlation of details in most blocks of copies; the most similar of other photographs reached 0.6
BLOCKS = 8  # parts of an image, in each direction, whose details are compared
DISAGREEING = 0.3  # fraction of the blocks that may agree less: overexposed, or blurred by the encoding
TEXTURE = 1.5  # grey levels, standard deviation of details: a block with less has none
TOLERANCE = 0.03  # of the side: how far a change may be from a crop of about 10 %
NEIGHBOURS, SIMILARITY = 10, 0.3  # candidates by features: the nearest ones of an image, by the cosine at least this near
INLIERS = 8  # keypoints that fit one affine map, at least
AGREEMENT_OF_VIEWS = 0.8  # an affine map fits more: two photographs reached 0.71; views of cats and dogs have 0.89
MOST_IMAGES = 50_000  # the time grows with the square
MOST_CANDIDATES = 200_000

# The changes that are looked for: (mirrored, x, y, side), the square of the mirrored image that the other one shows.
_CORNERS = (0, (SIDE - CROP) // 2, SIDE - CROP)
_SQUARES = [(0, 0, SIDE), *((x, y, CROP) for y in _CORNERS for x in _CORNERS)]
CHANGES = [(mirrored, *square) for mirrored in (False, True) for square in _SQUARES]


def find_near_copies(
    images, cache_dir: Path, image_size: int, fit: str, features: np.ndarray | None = None
) -> dict[str, str]:
    """{digest: the least digest of its group} of those images in a DataSet that have near-copies; kept for later runs.

    `image_size` and `fit` are what the images were decoded with. `features`: see group_near_copies().
    """

    def make(write):
        write(group_near_copies(grey_images(lambda i: images.load(np.array([i]))[0], len(images)), features))

    key = str([VERSION, cv2.__version__, image_size, fit, features is None or digest_of(features), images.digests])
    try:
        firsts, _ = cached_rows(Path(cache_dir, f"{digest_of(key.encode(), size=12)}.copies"), (), np.int64, make)
    except OSError:  # no cache
        parts: list[np.ndarray] = []
        make(parts.append)
        (firsts,) = parts
    members: dict[int, set[str]] = {}
    for digest, first in zip(images.digests, firsts.tolist(), strict=True):
        members.setdefault(first, set()).add(digest)
    return {digest: min(digests) for digests in members.values() if len(digests) > 1 for digest in digests}


def near_copies_text(sets) -> str:
    """The near-copies of TrainSets as a CSV file."""
    pairs = zip(sets.images.digests, sets.images.paths, strict=True)
    rows = [[digest, sets.near_copies[digest], path] for digest, path in pairs if digest in sets.near_copies]
    return csv_text(HEADER, sorted(rows, key=lambda row: row[1]))


def read_near_copies(path: Path) -> dict[str, str]:
    """{digest: group} from a file of near_copies_text(). Raises UserError if it is missing or damaged."""
    try:
        with open(path, newline="", encoding="utf-8", errors="surrogateescape") as file:
            return {row["digest"]: row["group"] for row in csv.DictReader(file)}
    except (OSError, ValueError, KeyError, csv.Error):
        raise UserError(f"{path} is missing or damaged: restore it, or start a new run", NO_DATA) from None


def are_compared(count: int) -> bool:
    """Whether near-copies are looked for among so many images; if not, it is said."""
    if count > MOST_IMAGES:
        say(f"near-copies are not looked for: {count:,} images are more than {MOST_IMAGES:,}")
    return count <= MOST_IMAGES


def group_near_copies(greys: np.ndarray, features: np.ndarray | None = None) -> np.ndarray:
    """Which images are near-copies of each other: groups, (n,), for each image the position of the first of its group.

    `greys` are the images as grey_images() makes them; with `features` of a pretrained network, (n, k), other views of the
    same photograph are found, too. Only near-copies decide about a group: it stays as it is if other images are added.
    Copies of copies are in the same group.
    """
    parents = np.arange(len(greys))
    if len(greys) < 2:
        return parents
    candidates: list[tuple[int, int, int | None]] = [*find_candidates(greys)]
    keypoints = {}
    if features is not None:
        candidates += [(i, j, None) for i, j in find_neighbours(features)]
        keypoints = dict(enumerate(prefetch(find_keypoints, greys, SIDE**2)))
    with progress("comparing images that look alike", len(candidates)) as advance:

        def not_yet_joined():
            for i, j, change in candidates:
                advance()
                if root_of(parents, i) != root_of(parents, j):
                    yield i, j, change

        def compare(candidate):
            i, j, change = candidate
            if change is None:
                return i, j, agreement_of_views(greys[i], greys[j], keypoints[i], keypoints[j]) >= AGREEMENT_OF_VIEWS
            return i, j, agreement(greys[i], greys[j], CHANGES[change]) >= AGREEMENT

        for i, j, are_copies in prefetch(compare, not_yet_joined(), SIDE**2):
            if are_copies:
                first, second = sorted((root_of(parents, i), root_of(parents, j)))
                parents[second] = first
    return np.array([root_of(parents, i) for i in range(len(parents))], int)


def grey_images(load: Callable, count: int) -> np.ndarray:
    """Images as small grey ones, (count, SIDE, SIDE) uint8; load(i) returns one of them, (side, side, 3) uint8 RGB."""
    greys = prefetch(lambda i: grey_image(load(i)), range(count), SIDE**2)
    return np.fromiter(greys, np.dtype((np.uint8, (SIDE, SIDE))), count)


def grey_image(image: np.ndarray) -> np.ndarray:
    """One image, (side, side, 3) uint8 RGB, as a small grey one, (SIDE, SIDE) uint8."""
    grey = cv2.cvtColor(np.ascontiguousarray(image), cv2.COLOR_RGB2GRAY)
    return cv2.resize(grey, (SIDE, SIDE), interpolation=cv2.INTER_AREA if len(grey) > SIDE else cv2.INTER_LINEAR)


def find_candidates(greys: np.ndarray) -> list[tuple[int, int, int]]:
    """Pairs of images that look alike: [(i, j, change)], sorted; image j looks like image i after CHANGES[change]."""
    thumbnails = {square: _thumbnails(greys, square) for square in _SQUARES}
    whole = thumbnails[_SQUARES[0]].reshape(len(greys), -1)
    found, threshold = np.empty((0, 4)), ALIKE
    for change, (mirrored, x, y, side) in enumerate(CHANGES):
        # A square of the mirrored image is another square of the image, mirrored.
        changed = thumbnails[SIDE - side - x, y, side][:, :, ::-1] if mirrored else thumbnails[x, y, side]
        for rows in in_chunks(np.arange(len(greys)), 512):
            correlations = changed[rows].reshape(len(rows), -1) @ whole.T
            i, j = np.divmod(np.flatnonzero(correlations > threshold), len(greys))
            pairs = np.stack([correlations[i, j], rows[i], j, np.full(len(i), change)], axis=1)
            pairs = pairs[pairs[:, 1] < pairs[:, 2] if side == SIDE else pairs[:, 1] != pairs[:, 2]]  # either is a part
            found = _most_alike(np.concatenate([found, pairs])) if len(pairs) else found
            if len(found) == MOST_CANDIDATES:
                threshold = found[:, 0].min()
    if threshold > ALIKE:
        say(f"many images look alike: only the {MOST_CANDIDATES} most similar pairs are compared")
    return sorted((int(i), int(j), int(change)) for _, i, j, change in found)


def _most_alike(found):
    """Of rows (correlation, i, j, change) the best for each pair, whatever its order; at most MOST_CANDIDATES."""
    found = found[np.lexsort((*found.T[:0:-1], -found[:, 0]))]
    _, first = np.unique(np.sort(found[:, 1:3], axis=1) @ [1 << 26, 1], return_index=True)
    return found[np.sort(first)[:MOST_CANDIDATES]]


def _thumbnails(greys, square):
    """Thumbnails of a square of each image, (n, THUMBNAIL, THUMBNAIL) float32, with mean 0 and norm 1.

    They are without the coarsest structure, which is alike in most images, and with the same contrast everywhere. A blank
    image has a smaller norm, and looks like no other.
    """
    x, y, side = square
    shrink = cv2.resize(np.eye(side, dtype=np.float32), (side, THUMBNAIL), interpolation=cv2.INTER_AREA)
    blur = cv2.GaussianBlur(np.eye(THUMBNAIL, dtype=np.float32), (1, 0), 0, sigmaY=2)
    thumbnails = np.empty((len(greys), THUMBNAIL, THUMBNAIL), np.float32)
    for rows in in_chunks(np.arange(len(greys)), 512):
        small = shrink @ greys[rows, y : y + side, x : x + side].astype(np.float32) @ shrink.T
        details = small - blur @ small @ blur.T
        details /= np.sqrt(blur @ details**2 @ blur.T) + 2
        details -= details.mean((1, 2), keepdims=True)
        thumbnails[rows] = details / np.maximum(np.linalg.norm(details, axis=(1, 2), keepdims=True), 1)
    return thumbnails


def agreement(one: np.ndarray, other: np.ndarray, change: tuple) -> float:
    """How well two grey images, (SIDE, SIDE) uint8, agree in details after a change, one of CHANGES: at most 1.

    They are aligned by maximizing the enhanced correlation coefficient (Evangelidis and Psarakis, 2008), first coarsely.
    """
    mirrored, x, y, side = change
    if mirrored:
        one = np.ascontiguousarray(one[:, ::-1])
    warp = np.array([[side / SIDE, 0, x], [0, side / SIDE, y]], np.float32)
    best = agreement_of_details(one, other, warp)
    for factor in (2, 1):
        if best >= AGREEMENT:
            break
        try:
            warp = _refine(one, other, warp, factor)
        except cv2.error:  # it does not converge: the images are not alike
            break
        if not _is_small_crop(warp):
            break
        best = max(best, agreement_of_details(one, other, warp))
        if best < AGREEMENT / 4:
            break
    return best


def _refine(one, other, warp, factor):
    """A better warp, (2, 3), of `one` to `other`, from both images reduced by a factor."""
    size = (SIDE // factor, SIDE // factor)
    one, other = (cv2.resize(image, size, interpolation=cv2.INTER_AREA) for image in (one, other))
    scale = np.array([1, 1, factor], np.float32)
    stop = (cv2.TERM_CRITERIA_COUNT | cv2.TERM_CRITERIA_EPS, 20, 1e-3)
    return cv2.findTransformECC(other, one, warp / scale, cv2.MOTION_AFFINE, stop, None, 5)[1] * scale


def _is_small_crop(warp):
    """Whether a warp cuts off a little and does nothing else: other photographs are made alike by turning and shearing."""
    low, high = CROP / SIDE - TOLERANCE, 1 + TOLERANCE
    corners = warp @ np.array([[0, SIDE], [0, SIDE], [1, 1]], np.float32) / SIDE
    return (
        np.abs(warp[[0, 1], [1, 0]]).max() < TOLERANCE
        and low < warp[0, 0] < high
        and low < warp[1, 1] < high
        and corners.min() > -TOLERANCE
        and corners.max() < high
    )


def find_neighbours(features: np.ndarray) -> list[tuple[int, int]]:
    """Pairs of images whose features, (n, k), are near: [(i, j)], sorted."""
    features = features - features.mean(axis=0)
    features /= np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-6)
    pairs = set()
    for rows in in_chunks(np.arange(len(features)), 512):
        cosines = features[rows] @ features.T
        cosines[np.arange(len(rows)), rows] = -1
        nearest = np.argpartition(cosines, -min(NEIGHBOURS, len(features)), axis=1)[:, -NEIGHBOURS:]
        near = np.take_along_axis(cosines, nearest, axis=1) >= SIMILARITY
        ones, others = np.repeat(rows, near.sum(axis=1)), nearest[near]
        pairs |= set(zip(np.minimum(ones, others).tolist(), np.maximum(ones, others).tolist(), strict=True))
    return sorted(pairs)


def find_keypoints(grey: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """SIFT keypoints (Lowe, 2004) of a grey image: points, (n, 2) float32, and descriptors of norm 1, (n, 128) float32."""
    found, descriptors = cv2.SIFT.create(nfeatures=150, contrastThreshold=0.02).detectAndCompute(grey, None)
    if descriptors is None:
        return np.empty((0, 2), np.float32), np.empty((0, 128), np.float32)
    points = np.array([keypoint.pt for keypoint in found], np.float32)
    return points, descriptors / np.maximum(np.linalg.norm(descriptors, axis=1, keepdims=True), 1e-6)


def agreement_of_views(one: np.ndarray, other: np.ndarray, keypoints_one: tuple, keypoints_other: tuple) -> float:
    """How well two grey images agree in details, (SIDE, SIDE) uint8, after the affine map of most of their keypoints."""
    best = 0.0
    for mirrored in (False, True):
        (points, descriptors), image = keypoints_one, one
        if mirrored:
            image = np.ascontiguousarray(one[:, ::-1])
            points, descriptors = np.array([SIDE - 1, 0], np.float32) + points * [-1, 1], descriptors[:, _MIRRORED]
        warp = _warp_of(points.astype(np.float32), descriptors, *keypoints_other)
        if warp is not None:
            best = max(best, agreement_of_details(image, other, warp))
            with contextlib.suppress(cv2.error):  # it does not converge
                best = max(best, agreement_of_details(image, other, _refine(image, other, warp, 1)))
    return best


# A descriptor has 4 x 4 histograms of 8 directions each. In a mirrored image they are in another order.
_MIRRORED = np.arange(128).reshape(4, 4, 8)[::-1, :, -np.arange(8)].reshape(-1)


def _warp_of(points, descriptors, other_points, other_descriptors):
    """The affine map, (2, 3), from the other keypoints to those that match them; None if too few agree on one."""
    if min(len(points), len(other_points)) < INLIERS:
        return None
    cosines = cv2.gemm(descriptors, other_descriptors, 1, None, 0, flags=cv2.GEMM_2_T)  # numpy would start threads here, too
    nearest = cosines.argmax(axis=1)
    second, first = np.partition(cosines, -2, axis=1)[:, -2:].T
    unique = 1 - first < 0.75**2 * (1 - second)  # Lowe's ratio test, of squared distances
    if unique.sum() < INLIERS:
        return None
    matched = other_points[nearest[unique]], points[unique]
    warp, inliers = cv2.estimateAffine2D(*matched, ransacReprojThreshold=2, maxIters=500)
    if warp is None or inliers.sum() < INLIERS or np.linalg.det(warp[:, :2]) < 0:
        return None
    stretched = np.linalg.svd(warp[:, :2])[1]
    return warp.astype(np.float32) if stretched[1] > 0.5 and stretched[0] < 2 else None


def agreement_of_details(one: np.ndarray, other: np.ndarray, warp: np.ndarray) -> float:
    """The correlation of the details of `one`, warped (a (2, 3) matrix), with those of `other`: in most blocks.

    In blocks, so that no frame, caption or outline that different images have in common decides. 0 if few have details.
    """
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    one = cv2.warpAffine(one, warp, (SIDE, SIDE), flags=flags, borderMode=cv2.BORDER_REPLICATE)
    inside = cv2.warpAffine(np.ones((SIDE, SIDE), np.float32), warp, (SIDE, SIDE), flags=flags)
    a, b = ((image := grey.astype(np.float32)) - cv2.GaussianBlur(image, (0, 0), 2) for grey in (one, other))
    mean = lambda values: cv2.resize(values, (BLOCKS, BLOCKS), interpolation=cv2.INTER_AREA)  # noqa: E731
    variance_a, variance_b = mean(a * a) - mean(a) ** 2, mean(b * b) - mean(b) ** 2
    used = (np.maximum(variance_a, variance_b) > TEXTURE**2) & (mean(inside) > 0.8)
    if used.sum() < BLOCKS:
        return 0.0
    correlations = (mean(a * b) - mean(a) * mean(b)) / np.sqrt(variance_a * variance_b + 1)
    return float(np.quantile(correlations[used], DISAGREEING))

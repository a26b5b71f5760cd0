"""Draw small cartoon cats and dogs, so that a fresh clone has images to train on: python -m experiments.draw_samples

Only shape distinguishes a cat (pointed ears, almond eyes, small nose, whiskers) from a dog (hanging ears, round eyes,
muzzle): colours, coat, background, position, tilt, size and noise have the same distributions for both.
Drawing k of a class depends on (seed, split, class, k) alone: if you ask for more, the earlier ones stay the same.
"""

import itertools
from types import SimpleNamespace

import cv2
import numpy as np

from classifier.base import console
from classifier.base.console import DONE, UserError, number
from experiments.scripts import Parser

KINDS = ("cat", "dog")
SPLITS = ("training_data", "testing_data")
OVERSAMPLING = 3  # drawn this many times larger, then shrunk, for smooth edges
# Colours are RGB.
FURS = "ece4d6 e2a860 c4783a 845838 54423a 96969c 626670 38363c d6c4a0 ac8c6c f0ce96 7888a0"
EYES = "78be5a ecc446 6eb4e6 d28c3c fafaf4 966e46"
FURS, EYES = (np.frombuffer(bytes.fromhex(codes), np.uint8).reshape(-1, 3).astype(int) for codes in (FURS, EYES))
DARK, WHITE, PINK, BROWN, GOLD = (30, 26, 28), (250, 250, 250), (236, 120, 136), (110, 66, 56), (240, 200, 70)
SCENES = ("plain", "gradient", "stripes", "balls", "grass", "wall")
COATS = ("plain", "stripes", "spots", "patch", "blaze", "mask")
BOTH = (-1, 1)  # left and right, as a factor of x


def main(argv: list[str] | None = None) -> int:
    """Write the drawings; returns the exit code."""
    parser = Parser(__doc__)
    add = parser.add_argument
    parser.add_folder("--output", "", "where training_data/ and testing_data/ go")
    add("--per-class", type=number(int, 0), default=440, metavar="N", help="training images of each class")
    add("--testing-per-class", type=number(int, 0), default=80, metavar="N", help="test images of each class")
    add("--seed", type=number(int, 0), default=0, metavar="N", help="another seed draws other animals")
    arguments = parser.parse_args(argv)
    counts = (arguments.per_class, arguments.testing_per_class)
    wanted = [(s, k, n) for s, count in enumerate(counts) for k in range(len(KINDS)) for n in range(1, count + 1)]
    paths = [arguments.output / SPLITS[s] / f"{KINDS[k]}s" / f"{KINDS[k]}_{n:03d}.jpg" for s, k, n in wanted]
    if existing := [path for path in paths if path.exists()]:
        raise UserError(f"{len(existing)} of these images exist already, such as {existing[0]}: choose another --output")
    for path, key in zip(paths, wanted, strict=True):
        rng = np.random.default_rng([arguments.seed, *key])
        bgr = draw(KINDS[key[1]], rng)[:, :, ::-1]  # OpenCV writes BGR
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), bgr, [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(40, 81))])
    print(f"{len(paths)} images in {arguments.output}")
    return DONE


def draw(kind: str, rng: np.random.Generator) -> np.ndarray:
    """Draw one "cat" or "dog" with a numpy Generator; (height, width, 3) uint8 RGB, sides of about 65 to 120."""
    look = choose_look(rng)
    area, aspect = rng.uniform((70, 0.85), (112, 1.18))
    width, height = round(area * aspect), round(area / aspect)
    canvas = np.zeros((height * OVERSAMPLING, width * OVERSAMPLING, 3), np.uint8)
    draw_background(rng, canvas, look.fur)
    shares = (0.5, 0.65) if look.body else (0.6, 0.9)
    scale = min(canvas.shape[:2]) * rng.uniform(*shares) / 2.4  # a head with its ears is about 2.4 radii high
    room = np.array([canvas.shape[1], canvas.shape[0]]) / 2
    centre = room + rng.uniform(-1, 1, 2) * np.maximum(room - 1.4 * scale, 0)  # keeps the ears in the picture
    if look.body:
        centre[1] = min(centre[1], 0.9 * room[1])
        draw_body(Pen(canvas, scale, centre, look.tilt / 3, look.outline, look.line), rng, look)
    HEADS[kind](Pen(canvas, scale, centre, look.tilt, look.outline, look.line), rng, look)
    # Like a photograph: mirrored or not, and with other light, contrast, sharpness and noise.
    image = cv2.resize(canvas[:, :: rng.choice(BOTH)], (width, height), interpolation=cv2.INTER_AREA).astype(np.float32)
    image = (image - 128) * rng.uniform(0.75, 1.15) + 128 + rng.uniform(-25, 25)
    if rng.random() < 0.4:
        image = cv2.GaussianBlur(image, (0, 0), rng.uniform(0.3, 0.9))
    image += rng.normal(0, rng.uniform(0, 6), image.shape)
    return np.clip(np.rint(image), 0, 255).astype(np.uint8)


class Pen:
    """Draws on a canvas in head units: (0, 0) is the middle of the head, 1 its radius, y points down."""

    def __init__(self, canvas, scale, centre, tilt=0.0, outline=DARK, width=0.04):
        """`canvas` (height, width, 3) uint8; `scale` is the radius of the head and `centre` its middle, both in pixels."""
        cos, sin = np.cos(tilt) * scale, np.sin(tilt) * scale
        self.canvas, self.scale, self.centre = canvas, scale, centre
        self.rotation, self.outline, self.width = np.array([[cos, sin], [-sin, cos]]), outline, width

    def pixels(self, points):
        """Points, (n, 2), in OpenCV's fixed-point pixels, with 4 fractional bits."""
        return [np.rint((np.asarray(points) @ self.rotation + self.centre) * 16).astype(np.int32)]

    def fill(self, points, colour, outlined=True):
        """Fill a polygon."""
        cv2.fillPoly(self.canvas, self.pixels(points), np.asarray(colour, float), cv2.LINE_AA, shift=4)
        if outlined:
            self.line([*points, points[0]], self.outline, self.width)

    def line(self, points, colour, width, outlined=False):
        """Draw a line through the points."""
        if outlined:
            self.line(points, self.outline, width + 2 * self.width)
        colour, thickness = np.asarray(colour, float), max(1, round(width * self.scale))
        cv2.polylines(self.canvas, self.pixels(points), False, colour, thickness, cv2.LINE_AA, shift=4)


def ellipse(x, y, rx, ry, start=0.0, end=360.0):
    """Points, (40, 2), on an ellipse; angles in degrees run from the right over the bottom."""
    angle = np.radians(np.linspace(start, end, 40))
    return np.stack([x + rx * np.cos(angle), y + ry * np.sin(angle)], axis=1)


def rounded(corners):
    """Cut the corners of a closed polygon, (n, 2), three times (Chaikin's curve); (8 n, 2)."""
    points = np.asarray(corners)
    for _ in range(3):
        after = np.roll(points, -1, axis=0)
        points = np.stack([0.75 * points + 0.25 * after, 0.25 * points + 0.75 * after], axis=1).reshape(-1, 2)
    return points


def mix(colour, other, share):
    """Mix two colours; `share` is the fraction of the other."""
    return np.rint(colour + np.subtract(other, colour) * share)


def choose_look(rng):
    """All that cats and dogs have in common, chosen before anything that depends on the kind of animal."""
    fur = mix(rng.choice(FURS), rng.integers(20, 250, 3), rng.uniform(0, 0.25))
    second = mix(fur, rng.choice([WHITE, DARK, rng.choice(FURS)]), rng.uniform(0.3, 0.8))
    return SimpleNamespace(
        fur=fur,
        second=second,
        ears=rng.choice([fur, fur, second]),
        outline=mix(fur, DARK if sum(fur) > 240 else rng.choice([DARK, WHITE]), rng.uniform(0.6, 1)),
        contrast=WHITE if sum(fur) < 330 else DARK,  # for thin lines on the fur
        muzzle=rng.choice([fur, second, mix(fur, WHITE, 0.4), mix(fur, DARK, 0.25)]),
        eye=rng.choice(EYES),
        nose=rng.choice([DARK, PINK, BROWN]),
        coat=rng.choice(COATS),
        collar=rng.integers(20, 250, 3),
        asleep=rng.random() < 0.12,
        tongue=rng.random() < 0.4,
        blush=rng.random() < 0.2,
        body=rng.random() < 0.4,
        line=rng.uniform(0.025, 0.06),
        tilt=np.radians(rng.uniform(-20, 20)),
        turn=rng.uniform(-0.16, 0.16),
        wide=rng.uniform(0.94, 1.12),
        high=rng.uniform(0.82, 1),
        cheeks=rng.uniform(-0.1, 0.12),
    )


def colour_unlike(rng, fur):
    """A colour that stands out from the fur."""
    colour = fur
    while np.abs(colour - fur).sum() < 130:
        colour = mix(rng.integers(20, 250, 3), rng.choice(FURS), rng.uniform(0, 0.6))
    return colour


def draw_shapes(rng, pen, base):
    """Draw triangles and ellipses of no animal: a pointed shape alone must not reveal a cat."""
    for x, y, size, aspect in rng.uniform((0, 0, 0.04, 0.5), (1, 1, 0.14, 2), (rng.integers(2, 7), 4)):
        shapes = [ellipse(0, 0, 1, aspect), rng.uniform(-1, 1, (3, 2)), np.array([(-1, 1), (0, -aspect), (1, 1)])]
        shape = shapes[rng.integers(3)] * size + (x, y)
        pen.fill(shape, mix(base, rng.integers(20, 250, 3), 0.6), outlined=rng.random() < 0.3)


def draw_background(rng, canvas, fur):
    """Fill the canvas with a scene that stands out from the fur. The unit is the longer side of the canvas here."""
    base = colour_unlike(rng, fur)
    other = mix(base, rng.integers(20, 250, 3), rng.uniform(0.15, 0.5))
    canvas[:] = base
    pen = Pen(canvas, max(canvas.shape), (0, 0), outline=other, width=0.02)
    scene = rng.choice(SCENES)
    if scene == "gradient":
        canvas[:] = np.linspace(base, other, len(canvas))[:, None]
    elif scene == "stripes":
        slope, step = rng.uniform((-0.6, 0.1), (0.6, 0.25))
        for x in np.arange(-1, 2, step):
            pen.line([(x, 0), (x + slope, 1)], other, step / 2)
    elif scene == "balls":
        for x, y, radius in rng.uniform((0, 0, 0.02), (1, 1, 0.12), (16, 3)):
            pen.fill(ellipse(x, y, radius, radius), other, outlined=False)
    elif scene == "grass":
        for x, y, lean in rng.uniform((0, 0, -0.04), (1, 1, 0.04), (120, 3)):
            pen.line([(x, y), (x + lean, y - 0.07)], other, 0.008)
    elif scene == "wall":
        height = rng.uniform(0.2, 0.7)
        pen.fill([(0, 0), (1, 0), (1, height), (0, height)], other, outlined=False)
    if rng.random() < 0.5:
        draw_shapes(rng, pen, base)


def draw_head(pen, rng, look):
    """The head with its coat: markings on the square of the head, of which only those inside the head remain."""
    head = ellipse(0, 0, look.wide, look.high)
    head[:, 0] *= 1 + look.cheeks * head[:, 1]
    inside = cv2.fillPoly(np.zeros(pen.canvas.shape[:2], np.uint8), pen.pixels(head), 255, shift=4)
    before = pen.canvas.copy()
    pen.fill(head, look.fur, outlined=False)
    markings = []
    if look.coat == "stripes":
        markings = [[(x - 0.08, -1.1), (x + 0.08, -1.1), (x * 0.7, -0.45)] for x in (-0.3, 0, 0.3)]
        markings += [[(x, y - 0.08), (x, y + 0.1), (x / 2, y)] for x in (-1.2, 1.2) for y in (0.1, 0.35)]
    elif look.coat == "spots":
        markings = [ellipse(x, y, r, r * 0.8) for x, y, r in rng.uniform((-1, -1, 0.06), (1, 1, 0.2), (9, 3))]
    elif look.coat == "patch":
        markings = [ellipse(rng.choice(BOTH) * 0.45, -0.2, 0.4, rng.uniform(0.4, 0.9))]
    elif look.coat == "blaze":
        top, low = rng.uniform((0.05, 0.3), (0.25, 0.9))
        markings = [[(-top, -1.1), (top, -1.1), (top, -0.2), (low, 1.1), (-low, 1.1), (-top, -0.2)]]
    elif look.coat == "mask":
        markings = [ellipse(0, 0.75, *rng.uniform((0.6, 0.5), (1, 0.8)))]
    for shape in markings:
        pen.fill(shape, look.second, outlined=False)
    np.copyto(pen.canvas, before, where=inside[..., None] == 0)
    pen.line(head, look.outline, look.line)
    for side in BOTH if look.blush else ():
        pen.fill(ellipse(side * 0.66, 0.32, 0.16, 0.1), mix(look.fur, PINK, 0.5), outlined=False)


def draw_body(pen, rng, look):
    """Tail, body, legs and collar."""
    tail = np.array([(0.6, 2.3), (1.1, 2.2), (1.4, 1.9), (1.5, 1.5), (1.4, rng.uniform(0.8, 1.4))])
    pen.line(tail * (rng.choice(BOTH), 1), look.fur, 0.24, outlined=True)
    pen.fill(ellipse(0, 1.9, rng.uniform(0.75, 1), 1.3), look.fur)
    pen.fill(ellipse(0, 1.7, 0.45, 0.7), look.second, outlined=False)
    for side in BOTH:
        pen.line([(side * 0.35, 1.9), (side * 0.35, 2.8)], look.fur, 0.3, outlined=True)
        pen.fill(ellipse(side * 0.35, 2.85, 0.27, 0.17), look.second)
    pen.line(ellipse(0, 0.8, 0.6, 0.3, 0, 180), look.collar, 0.16, outlined=True)
    pen.fill(ellipse(0, 1.2, 0.12, 0.12), GOLD)


def draw_eyes(pen, look, y, size, gap, shapes, pupil):
    """The left and the right eye, open or closed; `shapes` and the radii of the `pupil` are in units of `size`."""
    for side, shape in zip(BOTH, shapes, strict=True):
        middle = (look.turn + side * gap, y)
        if look.asleep:
            pen.line(ellipse(*middle, size, 0.13, 15, 165), look.contrast, 0.06)
        else:
            pen.fill(shape * size + middle, look.eye)
            pen.fill(ellipse(0, 0, *pupil) * size + middle, DARK, outlined=False)
            pen.fill(ellipse(0.25, -0.25, 0.22, 0.22) * size + middle, WHITE, outlined=False)


def draw_mouth(pen, look, x, y, width, tongue):
    """The mouth below (x, y), and perhaps a tongue of this length."""
    if look.tongue:
        shape = rounded([(-1, 0), (1, 0), (1, 0.9), (0, 1.1), (-1, 0.9)])
        pen.fill(shape * (width * 0.75, tongue) + (x, y + width * 0.6), PINK)
    for side in BOTH:
        pen.line(ellipse(x + side * width, y, width, width * 0.9, 0, 180), look.outline, look.line)


def draw_cat(pen, rng, look):
    """The head of a cat: pointed ears, almond eyes, a small nose, and whiskers."""
    base, tip, height = rng.uniform((0.2, 0.62, 1.3), (0.32, 0.95, 1.55))
    inside = mix(look.ears, rng.choice([PINK, DARK, WHITE]), 0.5)
    for side in BOTH:
        top = (tip + rng.normal(0, 0.03), -height)
        ear = np.array([(base, -0.72), (base + 0.14, -1.05), top, (0.98, -0.8), (0.93, -0.2)]) * (side, 1)
        pen.fill(ear, look.ears)
        pen.fill(ear.mean(0) + (ear - ear.mean(0)) * 0.6, inside, outlined=False)
    draw_head(pen, rng, look)
    *eyes, slant, slit = rng.uniform((-0.2, 0.2, 0.38, 0.1, 0.15), (-0.02, 0.27, 0.46, 0.5, 0.3))
    almond = np.array([(x, lid * 0.72 * (1 - x * x)) for lid in BOTH for x in np.linspace(lid, -lid, 15)])
    almond[:, 1] -= slant * almond[:, 0]  # the outer corners are higher
    draw_eyes(pen, look, *eyes, [almond * (side, 1) for side in BOTH], (slit, 0.66))
    y, nose = rng.uniform((0.22, 0.09), (0.32, 0.14))
    x = look.turn * 1.3
    for side in BOTH:
        pen.fill(ellipse(x + side * 0.15, y + 0.2, 0.21, 0.17), look.muzzle, outlined=False)
    draw_mouth(pen, look, x, y + 0.17, 0.13, tongue=0.2)
    pen.fill(np.array([(-1, -0.6), (1, -0.6), (0, 0.8)]) * nose + (x, y), look.nose)
    length, droop, width = rng.uniform((0.9, -0.1, 0.025), (1.25, 0.2, 0.04))
    for side, row in itertools.product(BOTH, (-1, 0, 1)):
        whisker = np.array([(0, 0.06 * row), (length / 2, rng.normal(0, 0.03) + 0.15 * row), (length, 0.25 * row + droop)])
        pen.line((whisker + (0.26, 0.15)) * (side, 1) + (x, y), look.contrast, width)


def draw_dog(pen, rng, look):
    """The head of a dog: hanging ears, round eyes, and a large muzzle."""
    draw_head(pen, rng, look)
    length, out, thick = rng.uniform((0.1, 1.03, 0.33), (1.2, 1.37, 0.52))
    for side in BOTH:
        low = length + rng.normal(0, 0.06)
        ear = [(0.5, -0.88), (0.9, -0.9), (out + 0.1, -0.5), (out + 0.12, low - 0.2), (out, low)]
        ear += [(out - thick, low), (out - thick - 0.08, low - 0.3), (0.72, -0.4)]
        pen.fill(rounded(ear) * (side, 1), look.ears)
    *eyes, pupil = rng.uniform((-0.28, 0.15, 0.32, 0.5), (-0.12, 0.22, 0.42, 0.75))
    draw_eyes(pen, look, *eyes, [ellipse(0, 0, 1, 1)] * 2, (pupil, pupil))
    y, nose, wide, long = rng.uniform((0.42, 0.18, 0.42, 0.4), (0.55, 0.26, 0.6, 0.55))
    x = look.turn * 1.9
    pen.fill(ellipse(x, y, wide, long), look.muzzle)
    draw_mouth(pen, look, x, y + 0.1, 0.18, tongue=rng.uniform(0.4, 0.65))
    y += nose * 0.9 - long
    pen.line([(x, y), (x, y + long * 0.9)], look.outline, look.line)
    shape = rounded([(-1.2, -0.7), (1.2, -0.7), (1.1, 0.4), (0, 1), (-1.1, 0.4)])
    pen.fill(shape * nose + (x, y), look.nose)
    pen.fill(ellipse(-0.3, -0.3, 0.25, 0.15) * nose + (x, y), WHITE, outlined=False)


HEADS = {"cat": draw_cat, "dog": draw_dog}


if __name__ == "__main__":
    console.run(main)

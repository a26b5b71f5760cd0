"""Draw small cartoon cats and dogs, so that a fresh clone has pictures to train on.

    python -m tools.draw_samples --output somewhere --per-class 1000

Only shape tells a cat (pointed ears, almond eyes, small nose, whiskers) from a dog (hanging ears, round eyes,
muzzle): colours, coat, background, place, tilt, size and noise come from the same distributions for both.
Picture k of a class depends on (seed, split, class, k) alone: asking for more keeps those there were.
"""

import argparse
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np

from classifier import console
from classifier.console import PROJECT, UserError, number

KINDS = ("cat", "dog")
SPLITS = ("training_data", "testing_data")
COATS = ("plain", "stripes", "spots", "patch", "blaze", "mask")
FURS = [(236, 228, 214), (226, 168, 96), (196, 120, 58), (132, 88, 56), (84, 66, 58), (150, 150, 156),
        (98, 102, 112), (56, 54, 60), (214, 196, 160), (172, 140, 108), (240, 206, 150), (120, 136, 160)]
EYES = [(120, 190, 90), (236, 196, 70), (110, 180, 230), (210, 140, 60), (250, 250, 244), (150, 110, 70)]
DARK, WHITE, PINK, BROWN, GOLD = (30, 26, 28), (250, 250, 250), (236, 120, 136), (110, 66, 56), (240, 200, 70)
OVERSAMPLING = 3  # drawn this much larger, then shrunk: smooth edges
BOTH = (-1, 1)  # left and right, as a factor of x


class Pen:
    """Draws on a canvas in head units: (0, 0) is the middle of the head, 1 its radius, y points down."""

    def __init__(self, canvas, scale, centre, tilt=0.0, outline=DARK, width=0.04):
        cos, sin = np.cos(tilt) * scale, np.sin(tilt) * scale
        self.canvas, self.scale, self.centre = canvas, scale, centre
        self.rotation, self.outline, self.width = np.array([[cos, sin], [-sin, cos]]), outline, width

    def pixels(self, points):
        points = np.asarray(points) @ self.rotation + self.centre
        return [np.rint(points * 16).astype(np.int32)]  # OpenCV's fixed point, 4 fractional bits

    def fill(self, points, colour, outlined=True):
        cv2.fillPoly(self.canvas, self.pixels(points), colour, cv2.LINE_AA, shift=4)
        if outlined:
            self.line([*points, points[0]], self.outline, self.width)

    def line(self, points, colour, width):
        thickness = max(1, round(width * self.scale))
        cv2.polylines(self.canvas, self.pixels(points), False, colour, thickness, cv2.LINE_AA, shift=4)

    def limb(self, points, colour, width):
        self.line(points, self.outline, width + 2 * self.width)
        self.line(points, colour, width)


def ellipse(x, y, rx, ry, start=0.0, end=360.0):
    """Points, (40, 2), on an ellipse; angles in degrees run from the right over the bottom."""
    angle = np.radians(np.linspace(start, end, 40))
    return np.stack([x + rx * np.cos(angle), y + ry * np.sin(angle)], axis=1)


def rounded(corners):
    """Cut the corners of a closed polygon, (n, 2), three times (Chaikin's curve); (8 n, 2)."""
    points = np.asarray(corners, float)
    for _ in range(3):
        after = np.roll(points, -1, axis=0)
        points = np.stack([0.75 * points + 0.25 * after, 0.25 * points + 0.75 * after], axis=1).reshape(-1, 2)
    return points


def mix(colour, other, share):
    return tuple(round(a + (b - a) * float(share)) for a, b in zip(colour, other, strict=True))


def pick(rng, options):
    return options[rng.integers(len(options))]


def any_colour(rng):
    return tuple(rng.integers(20, 250, 3).tolist())


def choose_look(rng):
    """All that cats and dogs share, drawn before anything that depends on the kind."""
    fur = mix(pick(rng, FURS), any_colour(rng), rng.uniform(0, 0.25))
    second = mix(fur, pick(rng, [WHITE, DARK, pick(rng, FURS)]), rng.uniform(0.3, 0.8))
    return SimpleNamespace(
        fur=fur, second=second, ears=pick(rng, [fur, fur, second]),
        outline=mix(fur, DARK if sum(fur) > 240 else pick(rng, [DARK, WHITE]), rng.uniform(0.6, 1)),
        contrast=WHITE if sum(fur) < 330 else DARK,  # for thin lines on the fur
        muzzle=pick(rng, [fur, second, mix(fur, WHITE, 0.4), mix(fur, DARK, 0.25)]),
        eye=pick(rng, EYES), nose=pick(rng, [DARK, PINK, BROWN]), coat=pick(rng, COATS),
        collar=any_colour(rng), asleep=rng.random() < 0.12, tongue=rng.random() < 0.4,
        blush=rng.random() < 0.2, body=rng.random() < 0.4, line=rng.uniform(0.025, 0.06),
        tilt=np.radians(rng.uniform(-20, 20)), turn=rng.uniform(-0.16, 0.16),
        wide=rng.uniform(0.94, 1.12), high=rng.uniform(0.82, 1.0), cheeks=rng.uniform(-0.1, 0.12))


def draw_background(rng, canvas, fur):
    """Fill the canvas, (height, width, 3), with a scene that stands out from the fur."""
    base = fur
    while np.abs(np.subtract(base, fur)).sum() < 130:
        base = mix(any_colour(rng), pick(rng, FURS), rng.uniform(0, 0.6))
    other = mix(base, any_colour(rng), rng.uniform(0.15, 0.5))
    canvas[:] = base
    pen = Pen(canvas, max(canvas.shape), (0, 0), outline=other, width=0.02)
    scene = pick(rng, ("plain", "gradient", "stripes", "balls", "grass", "wall"))
    if scene == "gradient":
        canvas[:] = np.linspace(base, other, len(canvas))[:, None]
    elif scene == "stripes":
        slope, step = rng.uniform(-0.6, 0.6), rng.uniform(0.1, 0.25)
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
    if rng.random() < 0.5:  # nobody's triangles and ellipses: a pointed shape alone must not give a cat away
        for x, y, size, aspect in rng.uniform((0, 0, 0.04, 0.5), (1, 1, 0.14, 2), (rng.integers(2, 7), 4)):
            shapes = [ellipse(0, 0, 1, aspect), rng.uniform(-1, 1, (3, 2)), [(-1, 1), (0, -aspect), (1, 1)]]
            shape = np.asarray(pick(rng, shapes)) * size + (x, y)
            pen.fill(shape, mix(base, any_colour(rng), 0.6), outlined=rng.random() < 0.3)


def draw_coat(pen, rng, look):
    """Markings, drawn on the head's square; draw_head cuts off what is outside the head."""
    shapes = []
    if look.coat == "stripes":
        shapes = [[(x - 0.08, -1.1), (x + 0.08, -1.1), (x * 0.7, -0.45)] for x in (-0.3, 0, 0.3)]
        shapes += [[(x, y - 0.08), (x, y + 0.1), (x / 2, y)] for x in (-1.2, 1.2) for y in (0.1, 0.35)]
    elif look.coat == "spots":
        shapes = [ellipse(x, y, r, r * 0.8) for x, y, r in rng.uniform((-1, -1, 0.06), (1, 1, 0.2), (9, 3))]
    elif look.coat == "patch":
        shapes = [ellipse(pick(rng, BOTH) * 0.45, -0.2, 0.4, rng.uniform(0.4, 0.9))]
    elif look.coat == "blaze":
        top, low = rng.uniform(0.05, 0.25), rng.uniform(0.3, 0.9)
        shapes = [[(-top, -1.1), (top, -1.1), (top, -0.2), (low, 1.1), (-low, 1.1), (-top, -0.2)]]
    elif look.coat == "mask":
        shapes = [ellipse(0, 0.75, rng.uniform(0.6, 1), rng.uniform(0.5, 0.8))]
    for shape in shapes:
        pen.fill(shape, look.second, outlined=False)


def draw_head(pen, rng, look):
    head = ellipse(0, 0, look.wide, look.high)
    head[:, 0] *= 1 + look.cheeks * head[:, 1]
    inside = cv2.fillPoly(np.zeros(pen.canvas.shape[:2], np.uint8), pen.pixels(head), 255, shift=4)
    before = pen.canvas.copy()
    pen.fill(head, look.fur, outlined=False)
    draw_coat(pen, rng, look)
    np.copyto(pen.canvas, before, where=inside[..., None] == 0)
    pen.line(head, look.outline, look.line)
    for side in BOTH if look.blush else ():
        pen.fill(ellipse(side * 0.66, 0.32, 0.16, 0.1), mix(look.fur, PINK, 0.5), outlined=False)


def draw_body(pen, rng, look):
    tail = np.array([(0.6, 2.3), (1.1, 2.2), (1.4, 1.9), (1.5, 1.5), (1.4, rng.uniform(0.8, 1.4))])
    pen.limb(tail * (pick(rng, BOTH), 1), look.fur, 0.24)
    pen.fill(ellipse(0, 1.9, rng.uniform(0.75, 1), 1.3), look.fur)
    pen.fill(ellipse(0, 1.7, 0.45, 0.7), look.second, outlined=False)
    for side in BOTH:
        pen.limb([(side * 0.35, 1.9), (side * 0.35, 2.8)], look.fur, 0.3)
        pen.fill(ellipse(side * 0.35, 2.85, 0.27, 0.17), look.second)
    pen.limb(ellipse(0, 0.8, 0.6, 0.3, 0, 180), look.collar, 0.16)
    pen.fill(ellipse(0, 1.2, 0.12, 0.12), GOLD)


def draw_eye(pen, look, middle, size, shape, pupil):
    if look.asleep:
        return pen.line(ellipse(*middle, size, 0.13, 15, 165), look.contrast, 0.06)
    pen.fill(shape * size + middle, look.eye)
    pen.fill(ellipse(0, 0, *pupil) * size + middle, DARK, outlined=False)
    pen.fill(ellipse(0.25, -0.25, 0.22, 0.22) * size + middle, WHITE, outlined=False)


def draw_mouth(pen, look, x, y, width, tongue):
    if look.tongue:
        shape = rounded([(-1, 0), (1, 0), (1, 0.9), (0, 1.1), (-1, 0.9)])
        pen.fill(shape * (width * 0.75, tongue) + (x, y + width * 0.6), PINK)
    for side in BOTH:
        pen.line(ellipse(x + side * width, y, width, width * 0.9, 0, 180), look.outline, look.line)


def draw_cat_ears(pen, rng, look):
    base, tip, height = rng.uniform(0.2, 0.32), rng.uniform(0.62, 0.95), rng.uniform(1.3, 1.55)
    inside = mix(look.ears, pick(rng, [PINK, DARK, WHITE]), 0.5)
    for side in BOTH:
        top = (tip + rng.normal(0, 0.03), -height)
        ear = np.array([(base, -0.72), (base + 0.14, -1.05), top, (0.98, -0.8), (0.93, -0.2)]) * (side, 1)
        pen.fill(ear, look.ears)
        pen.fill(ear.mean(0) + (ear - ear.mean(0)) * 0.6, inside, outlined=False)


def draw_cat_face(pen, rng, look):
    eye_y, size, gap = rng.uniform(-0.2, -0.02), rng.uniform(0.2, 0.27), rng.uniform(0.38, 0.46)
    almond = np.array([(x, lid * 0.72 * (1 - x * x)) for lid in BOTH for x in np.linspace(lid, -lid, 15)])
    almond[:, 1] -= rng.uniform(0.1, 0.5) * almond[:, 0]  # the outer corners are higher
    slit = rng.uniform(0.15, 0.3)
    for side in BOTH:
        draw_eye(pen, look, (look.turn + side * gap, eye_y), size, almond * (side, 1), (slit, 0.66))
    x, y, nose = look.turn * 1.3, rng.uniform(0.22, 0.32), rng.uniform(0.09, 0.14)
    for side in BOTH:
        pen.fill(ellipse(x + side * 0.15, y + 0.2, 0.21, 0.17), look.muzzle, outlined=False)
    draw_mouth(pen, look, x, y + 0.17, 0.13, tongue=0.2)
    pen.fill(np.array([(-1, -0.6), (1, -0.6), (0, 0.8)]) * nose + (x, y), look.nose)
    length, droop, width = rng.uniform(0.9, 1.25), rng.uniform(-0.1, 0.2), rng.uniform(0.025, 0.04)
    for side in BOTH:  # whiskers
        for row in (-1, 0, 1):
            bend = rng.normal(0, 0.03) + 0.15 * row
            hair = np.array([(0, 0.06 * row), (length / 2, bend), (length, 0.25 * row + droop)])
            pen.line((hair + (0.26, 0.15)) * (side, 1) + (x, y), look.contrast, width)


def draw_dog_ears(pen, rng, look):
    length, out, thick = rng.uniform(0.1, 1.2), rng.uniform(1.03, 1.37), rng.uniform(0.33, 0.52)
    for side in BOTH:
        low = length + rng.normal(0, 0.06)
        ear = [(0.5, -0.88), (0.9, -0.9), (out + 0.1, -0.5), (out + 0.12, low - 0.2), (out, low),
               (out - thick, low), (out - thick - 0.08, low - 0.3), (0.72, -0.4)]
        pen.fill(rounded(ear) * (side, 1), look.ears)


def draw_dog_face(pen, rng, look):
    eye_y, size, gap = rng.uniform(-0.28, -0.12), rng.uniform(0.15, 0.22), rng.uniform(0.32, 0.42)
    pupil = rng.uniform(0.5, 0.75)
    for side in BOTH:
        draw_eye(pen, look, (look.turn + side * gap, eye_y), size, ellipse(0, 0, 1, 1), (pupil, pupil))
    x, y, nose = look.turn * 1.9, rng.uniform(0.42, 0.55), rng.uniform(0.18, 0.26)
    wide, long = rng.uniform(0.42, 0.6), rng.uniform(0.4, 0.55)
    pen.fill(ellipse(x, y, wide, long), look.muzzle)
    draw_mouth(pen, look, x, y + 0.1, 0.18, tongue=rng.uniform(0.4, 0.65))
    y += nose * 0.9 - long
    pen.line([(x, y), (x, y + long * 0.9)], look.outline, look.line)
    shape = rounded([(-1.2, -0.7), (1.2, -0.7), (1.1, 0.4), (0, 1), (-1.1, 0.4)])
    pen.fill(shape * nose + (x, y), look.nose)
    pen.fill(ellipse(-0.3, -0.3, 0.25, 0.15) * nose + (x, y), WHITE, outlined=False)


PARTS = {"cat": (draw_cat_ears, draw_head, draw_cat_face), "dog": (draw_head, draw_dog_ears, draw_dog_face)}


def photograph(rng, canvas, size):
    """Shrink the canvas to size, (width, height), and vary light, contrast, sharpness and noise; uint8."""
    picture = cv2.resize(canvas, size, interpolation=cv2.INTER_AREA).astype(np.float32)
    picture = (picture - 128) * rng.uniform(0.75, 1.15) + 128 + rng.uniform(-25, 25)
    if rng.random() < 0.4:
        picture = cv2.GaussianBlur(picture, (0, 0), rng.uniform(0.3, 0.9))
    picture += rng.normal(0, rng.uniform(0, 6), picture.shape)
    return np.clip(np.rint(picture), 0, 255).astype(np.uint8)


def draw(kind, rng):
    """Draw one "cat" or "dog" with a numpy Generator; (height, width, 3) uint8 RGB, sides of about 65 to 120."""
    look = choose_look(rng)
    area, aspect = rng.uniform(70, 112), rng.uniform(0.85, 1.18)
    width, height = round(area * aspect), round(area / aspect)
    canvas = np.zeros((height * OVERSAMPLING, width * OVERSAMPLING, 3), np.uint8)
    draw_background(rng, canvas, look.fur)
    shares = (0.5, 0.65) if look.body else (0.6, 0.9)
    scale = min(canvas.shape[:2]) * rng.uniform(*shares) / 2.4  # a head with its ears is about 2.4 radii
    room = np.array([canvas.shape[1], canvas.shape[0]]) / 2
    centre = room + rng.uniform(-1, 1, 2) * np.maximum(room - 1.4 * scale, 0)  # keeps the ears in the picture
    if look.body:
        centre[1] = min(centre[1], 0.9 * room[1])
        draw_body(Pen(canvas, scale, centre, look.tilt / 3, look.outline, look.line), rng, look)
    pen = Pen(canvas, scale, centre, look.tilt, look.outline, look.line)
    for draw_part in PARTS[kind]:
        draw_part(pen, rng, look)
    return photograph(rng, canvas[:, ::pick(rng, BOTH)], (width, height))


def encode(split, kind, number, seed):
    """JPEG bytes of one picture; the same arguments always make the same drawing."""
    rng = np.random.default_rng([seed, SPLITS.index(split), KINDS.index(kind), number])
    bgr = draw(kind, rng)[:, :, ::-1]  # OpenCV writes BGR
    return cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(40, 81))])[1].tobytes()


def write_samples(output, counts, seed=0, overwrite=False):
    """Write counts = (training, testing) pictures a class below output; returns (pictures, bytes).

    Raises UserError before anything is written when a picture is there already, unless overwrite.
    """
    wanted = [(output / split / f"{kind}s" / f"{kind}_{number:03d}.jpg", split, kind, number)
              for split, count in zip(SPLITS, counts, strict=True)
              for kind in KINDS for number in range(1, count + 1)]
    existing = [path for path, *_ in wanted if path.exists()]
    if existing and not overwrite:
        raise UserError(f"{len(existing)} of these pictures exist already, such as {existing[0]}: "
                              "choose another --output, or replace them with --overwrite")
    size = 0
    for path, *picture in wanted:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb" if overwrite else "xb") as file:
            size += file.write(encode(*picture, seed))
    return len(wanted), size


def main(argv=None):
    """Run the command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0],
                                     formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    add_count = partial(parser.add_argument, type=number(int, 0), metavar="N")
    parser.add_argument("--output", type=Path, default=PROJECT, metavar="FOLDER",
                        help="where training_data/ and testing_data/ go")
    add_count("--per-class", default=440, help="training pictures a class")
    add_count("--testing-per-class", default=80, help="testing pictures a class")
    add_count("--seed", default=0, help="another seed draws other animals")
    parser.add_argument("--overwrite", action="store_true", help="replace pictures that exist already")
    args = parser.parse_args(argv)
    counts = args.per_class, args.testing_per_class
    pictures, size = write_samples(args.output, counts, args.seed, args.overwrite)
    print(f"{pictures} pictures, {size / 1e6:.2f} MB, in {args.output}")
    return console.DONE


if __name__ == "__main__":
    console.run(main)

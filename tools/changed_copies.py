"""Changed copies of images, as people make them: encoded again, scaled, cropped, mirrored, brightened."""

import collections

import cv2


def plant(found, folder, copies, rng):
    """Link to all images from a new folder and add changed copies; returns {kind: names of its copies}.

    An image is named `number.suffix`, its copy `number-kind.jpg`.
    """
    planted = collections.defaultdict(list)
    for i, (path, label) in enumerate(zip(found.paths, found.labels, strict=True)):
        (folder / str(label)).mkdir(exist_ok=True)
        (folder / str(label) / f"{i}{path.suffix}").symlink_to(path.absolute())
    for kind, change in CHANGES.items():
        for i in rng.permutation(len(found.paths))[:copies]:
            image = cv2.imread(str(found.paths[i]))
            if image is not None:
                name = f"{i}-{kind}.jpg"
                quality = [cv2.IMWRITE_JPEG_QUALITY, 40 if kind in ("encoded", "combined") else 90]
                cv2.imwrite(str(folder / str(found.labels[i]) / name), change(image, rng), quality)
                planted[kind].append(name)
    return planted


def scaled(image, rng):
    """Half as wide and high."""
    return cv2.resize(image, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)


def cropped(image, rng, fraction=0.9):
    """A part anywhere in the image, `fraction` of its width and height."""
    height, width = (round(side * fraction) for side in image.shape[:2])
    y, x = (rng.integers(side - part + 1) for side, part in zip(image.shape, (height, width), strict=False))
    return image[y : y + height, x : x + width]


def mirrored(image, rng):
    """The mirror image."""
    return cv2.flip(image, 1)


def brightened(image, rng):
    """All values 1.3 times as large, at most 255."""
    return cv2.convertScaleAbs(image, alpha=1.3)


def view(image, rng):
    """Another view of the same: a part, 60 to 90 % as wide and high, turned a little, mirrored or not, in another light."""
    part = cropped(image, rng, rng.uniform(0.6, 0.9))
    height, width = part.shape[:2]
    turn = cv2.getRotationMatrix2D((width / 2, height / 2), rng.uniform(-8, 8), 1)
    part = cv2.warpAffine(part, turn, (width, height), borderMode=cv2.BORDER_REFLECT_101)
    part = cv2.convertScaleAbs(part, alpha=rng.uniform(0.75, 1.25))
    return mirrored(part, rng) if rng.random() < 0.5 else part


CHANGES = {
    "encoded": lambda image, rng: image,  # as JPEG with quality 40
    "scaled": scaled,
    "cropped": cropped,
    "mirrored": mirrored,
    "brightened": brightened,
    "combined": lambda image, rng: brightened(mirrored(cropped(scaled(image, rng), rng), rng), rng),
}

"""Near-copies: what is joined, and what is not."""

import json

import cv2
import numpy as np
from conftest import draw_images, run, save

from classifier.data import near_copies
from classifier.data.near_copies import grey_images, group_near_copies
from experiments.draw_samples import draw


def test_views_are_found_by_features_and_groups_depend_on_copies_alone():
    def view(image, k):
        rotation = cv2.getRotationMatrix2D((60, 60), 5 - 2 * k, 1)
        turned = cv2.warpAffine(image, rotation, (120, 120), borderMode=cv2.BORDER_REFLECT)
        part = np.clip(turned[10 : 105 - k, 5 : 95 + k] * 0.8, 0, 255).astype(np.uint8)
        return cv2.resize(part[:, ::-1] if k % 2 else part, (120, 120))

    rng = np.random.default_rng(3)
    images = [cv2.resize(draw(kind, rng), (120, 120), interpolation=cv2.INTER_AREA) for kind in ("cat", "dog") * 6]
    images += [view(images[k], k) for k in range(4)]
    greys = grey_images(images.__getitem__, len(images))
    features = np.eye(12, dtype=np.float32)[[*range(12), *range(4)]]
    groups = group_near_copies(greys, features)
    assert groups.tolist() == [*range(12), *range(4)]
    assert group_near_copies(greys).tolist() == list(range(16)), "without features, only near-copies are found"
    assert group_near_copies(greys[2:], features[2:]).tolist() == [*range(10), 10, 11, 0, 1]
    assert group_near_copies(greys[:0]).tolist() == []


def test_among_too_many_images_only_exact_copies_are_found(monkeypatch):
    """Nothing is kept of each image that would fill the memory."""
    drawings = draw_images("images", size=120)
    monkeypatch.setattr(near_copies, "MOST_IMAGES", 20)
    (drawings / "dogs/copy.jpg").write_bytes((drawings / "dogs/dogs_3.jpg").read_bytes())
    save(drawings / "dogs/near.jpg", cv2.imread(str(drawings / "cats/cats_5.jpg"))[:, ::-1])
    looked = run("dataset", drawings, "--format", "json")
    assert "near-copies are not looked for" in looked.stderr
    findings = json.loads(looked.stdout)
    assert [len(findings[name]) for name in ("two_classes", "leaks", "exact_copies", "near_copies")] == [0, 0, 1, 0]

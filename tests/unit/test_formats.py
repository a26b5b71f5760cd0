"""Every form of every format is decoded to what viewers show, or refused with its cause; damage is always seen."""

import collections

import numpy as np
import pytest
from formats import RGB, cases, saved

from classifier.data.images import BadImageError, decode

CASES = collections.defaultdict(list)  # by the suffix
for case in cases():
    CASES[case.name.rpartition(".")[2] if "." in case.name else "none"].append(case)


def decoded(name, data):
    """(pixels, None), or (None, the reason of the refusal)."""
    try:
        return decode(name, data, 64)[0], None
    except BadImageError as error:
        return None, error.reason


def wrong_with(case):
    """In which way a file is not decoded as it should be; None if nothing is wrong."""
    pixels, reason = decoded(case.name, case.data)
    if reason or case.reason:
        return None if reason == case.reason else f"{case.name}: {reason}"
    if pixels.shape != case.pixels.shape:
        return f"{case.name}: {pixels.shape}"
    difference = np.abs(pixels.astype(int) - case.pixels)
    near = difference.mean() <= case.tolerance if case.tolerance else not difference.any()
    return None if near else f"{case.name}: {difference.mean():.1f}, at most {difference.max()}"


@pytest.mark.parametrize("suffix", CASES)
def test_what_viewers_show(suffix):
    assert not [problem for case in CASES[suffix] if (problem := wrong_with(case))]


@pytest.mark.parametrize("suffix", CASES)
def test_a_file_that_is_cut_off_is_refused_unless_nothing_is_missing(suffix):
    """Of an animation, and of several pages, the first one may be whole."""
    wrong = []
    for case in CASES[suffix][::3]:
        whole, reason = decoded(case.name, case.data)
        for end in () if reason else (len(case.data) // 2, len(case.data) * 9 // 10, len(case.data) - 1):
            pixels, reason = decoded(case.name, case.data[:end])
            if reason is None and not np.array_equal(pixels, whole):
                wrong.append(f"{case.name}, {end} of {len(case.data)} bytes")
            if reason and "damaged" not in reason:
                wrong.append(f"{case.name}, {end} of {len(case.data)} bytes: {reason}")
    assert not wrong


def test_what_libtiff_reports_and_pillow_passes_over_is_damage(capfd):
    """A fax whose code words are wrong was decoded to other pixels, with a line of libtiff on standard error."""
    whole = bytearray(saved(RGB[..., 0] > 99, "TIFF", compression="group4"))
    refused = 0
    for position in range(10, 60):
        damaged = bytearray(whole)
        damaged[position] ^= 0xFF
        refused += decoded("fax.tif", bytes(damaged))[1] == "damaged or truncated TIFF"
    assert refused > 15
    assert capfd.readouterr().err == ""

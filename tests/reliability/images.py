"""Image files: mutated ones are refused with a reason, or decoded to the same pixels every time."""

import collections
import os
import resource
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from classifier.base.console import PROJECT
from classifier.base.files import digest_of
from classifier.data.images import BadImageError, decode_image
from tests.formats import cases
from tests.reliability import Result, count

REAL_IMAGES = PROJECT.parent / "shared" / "data"
MAX_SECONDS = 2  # of processor time for a file
MAX_MEGABYTES = 512  # more than before it
SILENT = 120  # seconds without a line, which mean that it hangs
NUMBERS = (0, 1, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF)  # sizes, lengths and counts that nobody expects


def check(folder: Path, short: bool, seed: int) -> Iterator[Result]:
    """Decode mutated files in processes of their own, which may crash.

    All are decoded again in the opposite order, where freed and new memory holds other bytes: what a decoder leaves
    unset would show in the pixels.
    """
    number_of_files = 2_000 if short else 100_000
    forwards = outcomes(seed, list(range(number_of_files)), None)
    backwards = outcomes(seed, list(reversed(range(number_of_files))), "165")
    refused = sum(not outcome.startswith("pixels") for outcome in forwards.values())

    def problems():
        for number, outcome in sorted(forwards.items()):
            problem = None
            if outcome != backwards[number] or outcome.startswith("problem"):
                suffix, data = mutated(seed, number)
                path = folder / f"{number}{suffix}"
                path.write_bytes(data)
                problem = f"{path}: {outcome}; in the opposite order: {backwards[number]}"
            yield problem

    yield count(f"mutated image files: {refused:,} refused with a reason, the others decoded", problems(), folder / "none")


def outcomes(seed: int, numbers: list[int], perturb: str | None) -> dict[int, str]:
    """{number: what decoding the mutated file gave}, see decode_all(); a crash or a hang is a "problem", too."""
    results = {}
    environment = os.environ | ({"MALLOC_PERTURB_": perturb} if perturb else {})
    while len(results) < len(numbers):
        left = numbers[len(results) :]
        command = [sys.executable, "-m", "tests.reliability.images", *map(str, (seed, left[0], left[-1]))]
        process = subprocess.Popen(command, cwd=PROJECT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        os.set_blocking(process.stdout.fileno(), False)
        text, heard = b"", time.monotonic()
        while process.poll() is None and time.monotonic() - heard < SILENT:
            new = process.stdout.read() or b""
            heard = time.monotonic() if new else heard
            text += new
            time.sleep(0.05)
        hangs = process.poll() is None
        process.kill()
        text += process.stdout.read() or b""
        process.wait()
        lines = text.decode().splitlines()
        results |= dict(zip(left, lines, strict=False))
        if len(lines) < len(left):
            results[left[len(lines)]] = "problem: it hangs" if hangs else f"problem: a crash, {process.returncode}"
    return results


def decode_all(seed: int, first: int, last: int) -> None:
    """Print for each number a line: the digest of the pixels, the reason of the refusal, or what is wrong."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for number in range(first, last + (1 if last >= first else -1), 1 if last >= first else -1):
        suffix, data = mutated(seed, number)
        started = time.process_time()
        try:
            outcome = f"pixels {digest_of(decode_image(f'image{suffix}', data, 64).tobytes())}"
        except BadImageError as error:
            outcome = error.reason
        except Exception as error:
            outcome = f"problem: {type(error).__name__}: {error}"
        if time.process_time() - started > MAX_SECONDS:
            outcome = f"problem: {time.process_time() - started:.1f} s"
        after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        # MALLOC_PERTURB_ fills even memory that a decoder asks for and does not use.
        if after - before > MAX_MEGABYTES << 10 and "MALLOC_PERTURB_" not in os.environ:
            outcome, before = f"problem: {(after - before) >> 10} MB more", after
        print(outcome.replace("\n", " "), flush=True)


def mutated(seed: int, number: int) -> tuple[str, bytes]:
    """(suffix, bytes) of the mutated file of a number, always the same."""
    rng = np.random.default_rng([seed, number])
    suffix = list(SEEDS)[rng.integers(len(SEEDS))]
    data = bytearray(SEEDS[suffix][rng.integers(len(SEEDS[suffix]))])
    for _ in range(rng.integers(1, 4)):
        change = CHANGES[rng.integers(len(CHANGES))]
        data = change(data, rng, suffix) or bytearray(b"\0")
    if suffix == ".png" and rng.integers(2):
        data = with_checksums(data)
    return suffix, bytes(data)


def seeds() -> dict[str, list[bytes]]:
    """{suffix: files} of sound files in every form, and of small real ones where they are."""
    found = collections.defaultdict(list)
    for case in cases():
        found[Path(case.name).suffix].append(case.data)
    for folder in ("pngsuite", "exif_orientation", "bad_images"):
        for path in sorted(Path(REAL_IMAGES, folder).rglob("*.*")):
            if path.is_file() and 0 < path.stat().st_size < 20_000:
                found[path.suffix.lower()].append(path.read_bytes())
    return found


def flip(data: bytearray, rng: np.random.Generator, suffix: str) -> bytearray:
    """Change some bytes, half the time among the first ones behind the signature."""
    reach, most = (len(data), 17) if rng.integers(2) else (min(len(data), 200), 5)
    for position in rng.integers(0, reach, rng.integers(1, most)):
        data[position] = rng.integers(256)
    return data


def overwrite_number(data: bytearray, rng: np.random.Generator, suffix: str) -> bytearray:
    """Write an extreme number of 2 or 4 bytes, in either order of bytes."""
    size, order = rng.choice([2, 4]), rng.choice(["big", "little"])
    value = int(rng.choice(NUMBERS)) % 256 ** int(size)
    position = int(rng.integers(len(data)))
    data[position : position + size] = value.to_bytes(int(size), str(order))
    return data


def truncate(data: bytearray, rng: np.random.Generator, suffix: str) -> bytearray:
    """Cut the end off."""
    return data[: rng.integers(len(data))]


def delete_block(data: bytearray, rng: np.random.Generator, suffix: str) -> bytearray:
    """Take bytes out of the middle."""
    start, end = sorted(rng.integers(0, len(data), 2))
    return data[:start] + data[min(end, start + 300) :]


def repeat_block(data: bytearray, rng: np.random.Generator, suffix: str) -> bytearray:
    """Repeat bytes of the middle."""
    start, end = sorted(rng.integers(0, len(data), 2))
    return data[:end] + data[max(start, end - 300) :]


def splice(data: bytearray, rng: np.random.Generator, suffix: str) -> bytearray:
    """Go on with another file of the same kind."""
    other = SEEDS[suffix][rng.integers(len(SEEDS[suffix]))]
    return data[: rng.integers(len(data))] + other[rng.integers(len(other)) :]


def with_checksums(data: bytearray) -> bytearray:
    """A PNG with right checksums in its chunks: without them its decoder looks no further."""
    position, data = 8, bytearray(data)
    while position + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, position)
        end = position + 8 + length
        if end + 4 > len(data):
            break
        struct.pack_into(">I", data, end, zlib.crc32(data[position + 4 : end]))
        position = end + 4
    return data


CHANGES = (flip, flip, overwrite_number, truncate, delete_block, repeat_block, splice)
SEEDS = seeds()

if __name__ == "__main__":
    decode_all(*map(int, sys.argv[1:]))

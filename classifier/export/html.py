"""One HTML file that classifies images in a browser, without a connection: a network and what runs it.

    templates/html_export.html, .css, .js   the page, a Jinja2 template; its looks; its program, which decodes, resizes, asks
                                        the network and shows the answer
    templates/html_licences.txt         the licences of the two packages from npm that the page holds

LiteRT.js runs the network, the library of predict.py. libjpeg-turbo decodes a large JPEG at reduced size, as OpenCV
does; a browser decodes it whole. Chromium's own decoder would change the probabilities of such photos by up to 0.18.
"""

import base64
import gzip
import hashlib
import io
import tarfile
from pathlib import Path

from classifier import MAX_PIXELS
from classifier.base.console import USAGE, UserError, describe
from classifier.data.images import MAX_FILE_BYTES
from classifier.predicting.classifier import name_for_unknown
from classifier.runs.folder import Run

PACKAGES = {  # on npm: their files, and the SHA-512 of what `npm pack` brings
    "@litertjs/core@2.5.3": (
        "litertjs-core-2.5.3.tgz",
        "3e51a66cc3aaf568ad5fb14ed2385b749c3d1ad85ab6ccae0905e34edff0259a"
        "3414b6b0e3cab8b73f08c2a82a08892f8981abf4e1432f59029cde27cd6a3225",
    ),
    "@cwasm/jpeg-turbo@0.1.3": (
        "cwasm-jpeg-turbo-0.1.3.tgz",
        "164671c300baaf8ce1ce5a8cd2760668c8ff3034ab64fc4b39d3dd33ac92960b"
        "0c7cea4d01970b424a4d1788cff839acb94bd1a1e503d1848c06f8378d87caeb",
    ),
}
FOREIGN_IMPORT = 'import { createWasmLib } from "@litertjs/wasm-utils";'  # for loading from an address
PAGES = Path(__file__).with_name("templates")


def read_packages(folder):
    """The two packages as {file: bytes}, from `folder`. Raises UserError, with the command to run, where one is missing.

    The files must be the very ones that this page was made for: what is not, is not opened.
    """
    read = {}
    for file, digest in PACKAGES.values():
        try:
            data = (folder / file).read_bytes()
        except FileNotFoundError:
            folder.mkdir(exist_ok=True)
            command = f"npm pack --pack-destination {folder} {' '.join(PACKAGES)}"
            raise UserError(f"html needs two packages from npm, once. Run: {command}", USAGE) from None
        except OSError as error:
            raise UserError(f"cannot read {folder / file}: {describe(error)}") from None
        if hashlib.sha512(data).hexdigest() != digest:
            raise UserError(f"{folder / file} is damaged, or not what it says: delete it and export again", USAGE)
        with tarfile.open(fileobj=io.BytesIO(data)) as archive:
            read |= {member.name: archive.extractfile(member).read() for member in archive if member.isfile()}
    return read


def page_of(run: Run, files: dict, network: bytes) -> str:
    """The page of a run, as text; `files`: see read_packages(), `network`: the bytes of a LiteRT file, for one image."""
    import jinja2

    loader = files["package/wasm/litert_wasm_compat_internal.js"].decode()
    library = files["package/dist/index.js"].decode().replace(FOREIGN_IMPORT, "")
    program, style = (PAGES.joinpath(f"html_export.{suffix}").read_text(encoding="utf-8") for suffix in ("js", "css"))
    parts = {"loader": loader, "program": library + program, "style": style}
    loader_of_pages = jinja2.FileSystemLoader(PAGES)
    environment = jinja2.Environment(loader=loader_of_pages, autoescape=True, undefined=jinja2.StrictUndefined)
    return environment.get_template("html_export.html").render(
        parts,
        policy=security_policy([loader, parts["program"]], style),
        classes=run.record.classes,
        about=f"Made from the run {run.path.parent.name}/{run.path.name}, network {run.record.network}.",
        settings=settings_of(run.record),
        licences=PAGES.joinpath("html_licences.txt").read_text(encoding="utf-8"),
        runtime=packed(files["package/wasm/litert_wasm_compat_internal.wasm"]),
        jpeg=packed(files["package/jpeg-turbo.wasm"]),
        network=packed(network),
    )


def settings_of(record):
    """What the page's program needs to know, for JSON."""
    return {
        "classes": record.classes,
        "unknown": name_for_unknown(record.classes),
        "image_size": record.image_size,
        "fit": record.fit,
        "threshold": record.ood and record.ood.threshold,  # of the OOD score; None for a run without
        "max_pixels": MAX_PIXELS,
        "max_file_bytes": MAX_FILE_BYTES,
    }


def packed(data):
    """Bytes as text: gzip, then base64."""
    return base64.b64encode(gzip.compress(data, mtime=0)).decode()


def security_policy(scripts, style):
    """The page's Content-Security-Policy: it runs our scripts, shows the chosen images, and can reach no address at all."""
    digests = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in (*scripts, style)]
    *scripts, style = (f"'sha256-{digest}'" for digest in digests)
    allowed = f"script-src {' '.join(scripts)} 'wasm-unsafe-eval'; style-src {style}; img-src blob:"
    return f"default-src 'none'; {allowed}; base-uri 'none'; form-action 'none'"

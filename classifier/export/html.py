"""One HTML file that classifies images in a browser, without a connection: a network and what runs it.

    templates/html_export.html, .css, .js   the page, its looks, and its program: decode, resize, ask the network, show
    templates/html_licences.txt             the licences of the two packages from npm that the page holds

LiteRT.js runs the network, as predict.py does. libjpeg-turbo decodes a large JPEG at reduced size, as OpenCV does; a browser
decodes it whole: with Chromium's own decoder the probabilities of such photos changed by up to 0.18.
"""

import base64
import gzip
import hashlib
import io
import tarfile
from pathlib import Path

from classifier.base.console import USAGE, UserError, describe
from classifier.data import MAX_PIXELS
from classifier.data.decoding import FORMATS
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


def read_packages(folder: Path) -> dict[str, bytes]:
    """The two packages as {file: bytes}, from `folder`. Raises UserError, with the command to run, where one is missing.

    Only the very files that this page was made for are opened.
    """
    read: dict[str, bytes] = {}
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
            read |= {member.name: content.read() for member in archive if (content := archive.extractfile(member))}
    return read


def page_of(run: Run, files: dict[str, bytes], network: bytes) -> str:
    """The page of a run, as text; `files`: see read_packages(), `network`: the bytes of a LiteRT file, for one image."""
    import jinja2

    loader = files["package/wasm/litert_wasm_compat_internal.js"].decode()
    library = files["package/dist/index.js"].decode().replace(FOREIGN_IMPORT, "")
    program, style = (PAGES.joinpath(f"html_export.{suffix}").read_text(encoding="utf-8") for suffix in ("js", "css"))
    program, record = library + program, run.record
    pages = jinja2.FileSystemLoader(PAGES)
    environment = jinja2.Environment(loader=pages, autoescape=True, undefined=jinja2.StrictUndefined)
    return environment.get_template("html_export.html").render(
        loader=loader,
        program=program,
        style=style,
        policy=_security_policy([loader, program], style),
        classes=record.classes,
        about=f"Made from the run {run.path.parent.name}/{run.path.name}, network {record.network}.",
        settings={  # what the program needs to know
            "classes": record.classes,
            "unknown": name_for_unknown(record.classes),
            "image_size": record.image_size,
            "fit": record.fit,
            "threshold": record.ood and record.ood.threshold,  # of the OOD score; None for a run without
            "formats": [(kind, suffixes.split(), start.decode()) for kind, (suffixes, start) in FORMATS.items()],
            "max_pixels": MAX_PIXELS,
            "max_file_bytes": MAX_FILE_BYTES,
        },
        licences=PAGES.joinpath("html_licences.txt").read_text(encoding="utf-8"),
        runtime=_packed(files["package/wasm/litert_wasm_compat_internal.wasm"]),
        jpeg=_packed(files["package/jpeg-turbo.wasm"]),
        network=_packed(network),
    )


def _packed(data):
    """Bytes as text: gzip, then base64."""
    return base64.b64encode(gzip.compress(data, mtime=0)).decode()


def _security_policy(scripts, style):
    """The page's Content-Security-Policy: it runs our scripts, shows the chosen images, and can reach no address at all."""
    digests = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in (*scripts, style)]
    *scripts, style = (f"'sha256-{digest}'" for digest in digests)
    allowed = f"script-src {' '.join(scripts)} 'wasm-unsafe-eval'; style-src {style}; img-src blob:"
    return f"default-src 'none'; {allowed}; base-uri 'none'; form-action 'none'"

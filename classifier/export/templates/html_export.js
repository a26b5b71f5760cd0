// The page's program. It follows the runtime (LiteRT.js) in one module, in a block of its own.
// An image is {data, width, height}: bytes, 3 a pixel, RGB. What it does to one is what data/images.py does.
{
  const element = (id) => document.getElementById(id);
  const settings = JSON.parse(element("settings").textContent);
  const TJPF_RGB = 0, TJPF_CMYK = 11, TJCS_CMYK = 3; // libjpeg-turbo's numbers: bytes of a pixel, colours in a file

  const EXIF = 0x45786966; // in letters

  class BadImage extends Error {}

  async function unpack(id) {
    const packed = Uint8Array.from(atob(element(id).textContent), (character) => character.charCodeAt(0));
    element(id).remove();
    const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
    return new Uint8Array(await new Response(stream).arrayBuffer());
  }

  async function loadNetwork() {
    const wasm = await ModuleFactory({ wasmBinary: await unpack("runtime"), printErr: console.debug }); // its log
    setGlobalLiteRt(new LiteRt(wasm));
    getGlobalLiteRt().setDefaultEnvironment(new Environment({ webGpuDevice: null })); // a GPU would round otherwise
    return loadAndCompile(await unpack("network"), { accelerator: "wasm" });
  }

  // Decoding. A browser decodes a JPEG whole, and each browser in its own way: libjpeg-turbo does what OpenCV's copy of it
  // does, and reduces as it does.

  async function decode(file) {
    if (file.size > settings.max_file_bytes) throw new BadImage("The file is too large.");
    const bytes = new Uint8Array(await file.arrayBuffer());
    if (!bytes.length) throw new BadImage("The file is empty.");
    const start = String.fromCharCode(...bytes.subarray(0, 32)), suffix = file.name.toLowerCase().match(/.(\.[^.]*)$/s)?.[1];
    const kindWhere = (holds) => settings.formats.find(([, suffixes, pattern]) => holds(suffixes, pattern))?.[0];
    const kind = kindWhere((_, pattern) => new RegExp(`^(?:${pattern})`, "s").test(start));
    if (!kind) throw new BadImage("The file is not an image of a known kind.");
    if ((kindWhere((suffixes) => suffixes.includes(suffix)) ?? kind) !== kind) {
      throw new BadImage(`The file is ${kind} data in a ${suffix} file.`);
    }
    return kind === "JPEG" ? upright(decodeJpeg(bytes), orientationOf(bytes)) : decodeByBrowser(file, bytes, kind);
  }

  function decodeJpeg(bytes) {
    const fails = () => { throw new BadImage("The file is damaged, or a kind of JPEG that cannot be read here."); };
    const nothing = new Proxy({}, { get: () => () => 0 }); // what C's library could ask of an operating system
    if (!isWhole(bytes)) fails();
    const env = { setjmp: () => 0, longjmp: fails };
    const jpeg = new WebAssembly.Instance(jpegModule, { env, wasi_snapshot_preview1: nothing }).exports;
    const input = jpeg.malloc(bytes.length), numbers = jpeg.malloc(16), decoder = jpeg.tjInitDecompress();
    new Uint8Array(jpeg.memory.buffer).set(bytes, input);
    if (jpeg.tjDecompressHeader3(decoder, input, bytes.length, numbers, numbers + 4, numbers + 8, numbers + 12)) fails();
    const [storedWidth, storedHeight, , colours] = new Int32Array(jpeg.memory.buffer, numbers, 4);
    const stored = [storedWidth, storedHeight];
    const decisive = settings.fit === "pad" ? Math.max(...stored) : Math.min(...stored);
    const reduction = [8, 4, 2].find((n) => Math.floor(decisive / n) >= settings.image_size) ?? 1;
    const [width, height] = stored.map((side) => Math.ceil(side / reduction));
    limitPixels(width, height);
    const channels = colours < TJCS_CMYK ? 3 : 4, format = colours < TJCS_CMYK ? TJPF_RGB : TJPF_CMYK;
    const output = jpeg.malloc(channels * width * height);
    // Its result tells of warnings too, of bytes too many for example, which OpenCV ignores; what stops it calls longjmp.
    jpeg.tjDecompress2(decoder, input, bytes.length, output, width, channels * width, height, format, 0);
    const pixels = new Uint8Array(jpeg.memory.buffer, output, channels * width * height);
    return { data: channels === 3 ? pixels : fromCmyk(pixels), width, height };
  }

  // Whether a JPEG goes on to its end marker: of one that is cut off, libjpeg-turbo would make up the rest.
  function isWhole(bytes) {
    let at = 2;
    while ((at = bytes.indexOf(0xff, at)) >= 0 && at + 1 < bytes.length) {
      const marker = bytes[at + 1], isAlone = marker < 2 || (marker >= 0xd0 && marker <= 0xd8);
      if (marker === 0xd9) return true;
      if (marker === 0xff) at += 1;
      else at += isAlone || at + 3 >= bytes.length ? 2 : 2 + 256 * bytes[at + 2] + bytes[at + 3];
    }
    return false;
  }

  function fromCmyk(pixels) {
    const data = new Uint8Array((3 * pixels.length) / 4);
    for (let from = 0, to = 0; from < pixels.length; from += 4) {
      const black = pixels[from + 3];
      for (let c = 0; c < 3; c++) data[to++] = Math.floor((black * pixels[from + c]) / 255);
    }
    return data;
  }

  function limitPixels(width, height) {
    if (width * height > settings.max_pixels) throw new BadImage("The image is too large: it has too many pixels.");
  }

  // The orientation in a JPEG's EXIF segment, 1 to 8; 1, upright, where there is none.
  function orientationOf(bytes) {
    const view = new DataView(bytes.buffer);
    for (let at = 2; at + 8 <= bytes.length && view.getUint16(at) !== 0xffda; ) {
      if (view.getUint16(at) === 0xffe1 && view.getUint32(at + 4) === EXIF) return orientationIn(bytes.subarray(at + 10));
      at += view.getUint16(at) === 0xffff ? 1 : 2 + view.getUint16(at + 2);
    }
    return 1;
  }

  // The same in Exif data, a TIFF file.
  function orientationIn(exif) {
    const view = new DataView(exif.buffer, exif.byteOffset, exif.length), ORIENTATION = 0x0112;
    try {
      if (view.getUint32(0) === EXIF) return orientationIn(exif.subarray(6)); // in some WebP files
      const little = view.getUint16(0) === 0x4949, table = view.getUint32(4, little);
      for (let entry = table + 2; entry < table + 2 + 12 * view.getUint16(table, little); entry += 12) {
        if (view.getUint16(entry, little) === ORIENTATION) return view.getUint16(entry + 8, little);
      }
    } catch (error) {
      if (!(error instanceof RangeError)) throw error; // it ended early
    }
    return 1;
  }

  function upright(image, orientation) {
    if (orientation < 2 || orientation > 8) return image;
    const [swapped, mirrored, turned] = [[5, 6, 7, 8], [2, 3, 7, 8], [3, 4, 6, 7]].map((some) => some.includes(orientation));
    const [width, height] = swapped ? [image.height, image.width] : [image.width, image.height];
    const data = new Uint8Array(3 * width * height);
    for (let y = 0, to = 0; y < height; y++) {
      for (let x = 0; x < width; x++, to += 3) {
        const [column, row] = swapped ? [y, x] : [x, y];
        const fromColumn = mirrored ? image.width - 1 - column : column, fromRow = turned ? image.height - 1 - row : row;
        const from = 3 * (fromRow * image.width + fromColumn);
        for (let c = 0; c < 3; c++) data[to + c] = image.data[from + c];
      }
    }
    return { data, width, height };
  }

  async function decodeByBrowser(file, bytes, kind) {
    const isPng = kind === "PNG", { exif, iend } = chunksOf(bytes, kind);
    const refuse = () => { throw new BadImage(`The file is damaged, or a kind of ${kind} that this browser cannot read.`); };
    if (isPng && !(iend?.end <= bytes.length)) refuse(); // a browser may show what there is
    // Some browsers turn a PNG or a WebP by its Exif data, others do not: they get none. All of them turn an AVIF.
    if (exif && !isPng) bytes.fill(0, exif.at, exif.at + 4); // its name
    const parts = exif && isPng ? [bytes.subarray(0, exif.at), bytes.subarray(exif.end)] : [bytes];
    const options = { imageOrientation: "from-image", colorSpaceConversion: "none", premultiplyAlpha: "none" };
    const bitmap = await createImageBitmap(new Blob(parts, { type: file.type }), options).catch(refuse);
    const { width, height } = bitmap;
    limitPixels(width, height);
    const context = new OffscreenCanvas(width, height).getContext("2d", { willReadFrequently: true });
    context.fillStyle = "white";
    context.fillRect(0, 0, width, height);
    context.drawImage(bitmap, 0, 0);
    bitmap.close();
    const rgba = context.getImageData(0, 0, width, height).data, data = new Uint8Array(3 * width * height);
    if (rgba[3] !== 255) throw new BadImage("The image is too large for this browser."); // nothing was drawn
    for (let from = 0, to = 0; from < rgba.length; from += 4) {
      for (let c = 0; c < 3; c++) data[to++] = rgba[from + c];
    }
    return upright({ data, width, height }, exif ? orientationIn(exif.data) : 1);
  }

  // The chunks of a PNG or WebP file by their names: where each begins and ends, and its data.
  function chunksOf(bytes, kind) {
    const view = new DataView(bytes.buffer), chunks = {}, isPng = kind === "PNG";
    const start = { PNG: 8, WebP: 12 }[kind] ?? bytes.length; // other files have none
    for (let at = start, end; at + 8 <= bytes.length && !chunks.iend; at = end) {
      const length = view.getUint32(isPng ? at : at + 4, !isPng), named = isPng ? at + 4 : at;
      end = at + 8 + length + (isPng ? 4 : length % 2);
      const name = String.fromCharCode(...bytes.subarray(named, named + 4)).toLowerCase();
      chunks[name] ??= { at, end, data: bytes.subarray(at + 8, at + 8 + length) };
    }
    return chunks;
  }

  // Resizing, as OpenCV does it: the browser's own would differ.

  function fitSquare(image) {
    const size = settings.image_size;
    if (settings.fit === "crop") image = cropped(image);
    if (settings.fit !== "pad" || image.height === image.width) return resize(image, size, size);
    const scale = size / Math.max(image.width, image.height);
    const [width, height] = [image.width, image.height].map((side) => Math.max(roundHalfEven(side * scale), 1));
    const inner = resize(image, width, height), square = new Uint8Array(3 * size * size);
    const sums = [0, 0, 0];
    inner.forEach((value, i) => { sums[i % 3] += value; });
    const mean = sums.map((sum) => roundHalfEven(sum / (width * height)));
    for (let i = 0; i < square.length; i++) square[i] = mean[i % 3];
    const top = Math.floor((size - height) / 2), left = Math.floor((size - width) / 2);
    for (let y = 0; y < height; y++) {
      square.set(inner.subarray(3 * width * y, 3 * width * (y + 1)), 3 * ((top + y) * size + left));
    }
    return square;
  }

  function cropped({ data, width, height }) {
    const side = Math.min(width, height), top = Math.floor((height - side) / 2), left = Math.floor((width - side) / 2);
    const square = new Uint8Array(3 * side * side);
    for (let y = 0; y < side; y++) {
      const from = 3 * ((top + y) * width + left);
      square.set(data.subarray(from, from + 3 * side), 3 * side * y);
    }
    return { data: square, width: side, height: side };
  }

  function roundHalfEven(value) {
    const rounded = Math.round(value);
    return rounded - value === 0.5 && rounded % 2 ? rounded - 1 : rounded;
  }

  function resize(image, width, height) {
    const across = image.width / width, down = image.height / height;
    const averages = Math.max(across, down) >= 2 && Math.min(across, down) >= 1;
    return averages ? averageAreas(image, width, height) : interpolate(image, width, height);
  }

  // For each pixel of a side, the pixels that it averages: [their index, their weight].
  function areas(from, to) {
    const scale = 1 / (to / from);
    return Array.from({ length: to }, (_, i) => {
      const start = i * scale, end = start + scale, whole = Math.min(scale, from - start), parts = [];
      const last = Math.min(Math.floor(end), from - 1), first = Math.min(Math.ceil(start), last);
      if (first - start > 1e-3) parts.push([first - 1, Math.fround((first - start) / whole)]);
      for (let k = first; k < last; k++) parts.push([k, Math.fround(1 / whole)]);
      if (end - last > 1e-3) parts.push([last, Math.fround(Math.min(end - last, 1, whole) / whole)]);
      return parts;
    });
  }

  // cv2.INTER_AREA
  function averageAreas(image, width, height) {
    const columns = areas(image.width, width), result = new Uint8Array(3 * width * height);
    const sums = new Float32Array(3 * width);
    const isTwo = image.width === 2 * width && image.height === 2 * height; // OpenCV then rounds halves up
    areas(image.height, height).forEach((rows, y) => {
      sums.fill(0);
      for (const [row, rowWeight] of rows) {
        for (let x = 0; x < width; x++) {
          for (let c = 0; c < 3; c++) {
            let sum = 0;
            for (const [column, weight] of columns[x]) sum += weight * image.data[3 * (row * image.width + column) + c];
            sums[3 * x + c] += rowWeight * Math.fround(sum);
          }
        }
      }
      for (let i = 0; i < sums.length; i++) result[3 * width * y + i] = isTwo ? Math.round(sums[i]) : roundHalfEven(sums[i]);
    });
    return result;
  }

  // For each pixel of a side, the first of the two that it lies between, and the second's weight of 2048.
  function neighbours(from, to, clips) {
    const scale = 1 / (to / from);
    return Array.from({ length: to }, (_, i) => {
      const position = Math.fround((i + 0.5) * scale - 0.5), index = Math.floor(position);
      if (clips && (index < 0 || index >= from - 1)) return [Math.max(0, Math.min(index, from - 1)), 2048, 0];
      const weight = Math.fround(position - index);
      return [index, roundHalfEven(Math.fround(1 - weight) * 2048), roundHalfEven(weight * 2048)];
    });
  }

  // cv2.INTER_LINEAR, in whole numbers
  function interpolate(image, width, height) {
    const columns = neighbours(image.width, width, true), result = new Uint8Array(3 * width * height);
    const rowOf = (row) => 3 * image.width * Math.max(0, Math.min(row, image.height - 1));
    const between = (start, [column, first, second], c) => {
      const at = start + 3 * column + c;
      return (image.data[at] * first + (second ? image.data[at + 3] * second : 0)) >> 4;
    };
    neighbours(image.height, height, false).forEach(([row, first, second], y) => {
      const upper = rowOf(row), lower = rowOf(row + 1);
      for (let x = 0; x < width; x++) {
        for (let c = 0; c < 3; c++) {
          const sum = ((first * between(upper, columns[x], c)) >> 16) + ((second * between(lower, columns[x], c)) >> 16);
          result[3 * (y * width + x) + c] = (sum + 2) >> 2;
        }
      }
    });
    return result;
  }

  // {name, known, probabilities}: the predicted class, whether the image is like those of training, and pairs of a class
  // and its probability, the most likely first.
  async function classify(file) {
    const pixels = fitSquare(await decode(file));
    const input = new Tensor(pixels, [1, settings.image_size, settings.image_size, 3]);
    const outputs = await network.run(input);
    const arrays = outputs.map((output) => Array.from(output.toTypedArray()));
    const [logits, [oodScore] = []] = arrays.sort((a, b) => b.length - a.length);
    [input, ...outputs].forEach((tensor) => tensor.delete());
    const largest = Math.max(...logits), exponentials = logits.map((logit) => Math.exp(logit - largest));
    const sum = exponentials.reduce((a, b) => a + b);
    const probabilities = settings.classes.map((name, i) => [name, exponentials[i] / sum]).sort((a, b) => b[1] - a[1]);
    const known = settings.threshold === null || oodScore <= settings.threshold;
    return { name: known ? probabilities[0][0] : settings.unknown, known, probabilities };
  }

  // The page

  function make(parent, tag, text = "", className = "") {
    const made = document.createElement(tag);
    made.textContent = text;
    made.className = className;
    parent.append(made);
    return made;
  }

  async function show(file) {
    const item = document.createElement("li");
    element("results").prepend(item);
    const thumbnail = make(item, "img");
    thumbnail.alt = "";
    thumbnail.onload = () => URL.revokeObjectURL(thumbnail.src);
    thumbnail.onerror = () => thumbnail.remove();
    thumbnail.src = URL.createObjectURL(file);
    const text = make(item, "div"), heading = make(text, "h2", "…"), started = performance.now();
    make(text, "p", file.name, "path");
    await new Promise((resolve) => setTimeout(resolve)); // draw this first
    try {
      const { name, known, probabilities } = await classify(file);
      heading.textContent = name;
      if (!known) make(text, "p", "This image is unlike all training images.");
      const table = make(text, "table");
      for (const [label, probability] of probabilities.slice(0, 5)) {
        const row = make(table, "tr");
        make(row, "th", label).scope = "row";
        const meter = make(make(row, "td"), "meter");
        meter.value = probability;
        meter.ariaHidden = "true";
        make(row, "td", `${(100 * probability).toFixed(1)} %`);
      }
      make(text, "p", `${Math.round(performance.now() - started)} ms`, "path");
    } catch (error) {
      item.className = "error";
      heading.textContent = "No answer";
      make(text, "p", error instanceof BadImage ? error.message : "This browser could not classify the image.");
      if (!(error instanceof BadImage)) console.warn(error);
    }
    item.dataset.done = "";
  }

  let queue = Promise.resolve();
  function add(files) {
    for (const file of files) queue = queue.then(() => show(file));
  }

  const choose = element("choose"), zone = element("zone");
  choose.onchange = () => { add(choose.files); choose.value = ""; };
  document.ondragover = (event) => { event.preventDefault(); zone.classList.add("over"); };
  document.ondragleave = () => zone.classList.remove("over");
  document.ondrop = (event) => {
    event.preventDefault();
    zone.classList.remove("over");
    if (!choose.disabled) add(event.dataTransfer.files);
  };
  document.onpaste = (event) => { if (!choose.disabled) add(event.clipboardData.files); };

  let network, jpegModule;
  try {
    jpegModule = await WebAssembly.compile(await unpack("jpeg"));
    network = await loadNetwork();
    choose.disabled = false;
    element("status").textContent = "Ready. Your images stay on this device.";
  } catch (error) {
    element("status").textContent = "This browser cannot run the page: it needs a recent Chrome, Edge, Firefox or Safari.";
    console.error(error);
  }
}

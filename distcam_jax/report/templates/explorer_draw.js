// Pictures on canvases, in the colours and sizes of the page's other pictures (distcam_jax/report/overlays.py).

const pictures = new Map(); // of images looked at lately
const PICTURES_KEPT = 40;

// The pixels of an image at the size at which it is shown; a promise.
async function picturePixels(image) {
  if (!pictures.has(image)) {
    pictures.set(image, decodePicture(image));
    if (pictures.size > PICTURES_KEPT) pictures.delete(pictures.keys().next().value);
  }
  return pictures.get(image);
}

async function decodePicture(image) {
  const element = new Image();
  element.src = image.picture;
  await element.decode();
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = image.shown;
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.imageSmoothingEnabled = !image.pixelated;
  context.imageSmoothingQuality = "high";
  context.drawImage(element, 0, 0, canvas.width, canvas.height);
  return context.getImageData(0, 0, canvas.width, canvas.height);
}

// Rounds halves to even, as NumPy does.
function rint(value) {
  const floor = Math.floor(value);
  if (value - floor !== 0.5) return Math.round(value);
  return floor % 2 ? floor + 1 : floor;
}

// The picture under a heatmap: blue is low, red is high, negative counts as zero; the plain picture without heat.
function heatPixels(picture, map, colors, alpha) {
  const result = new ImageData(new Uint8ClampedArray(picture.data), picture.width, picture.height);
  const heat = scaledMap(map, picture.height, picture.width);
  if (!heat) return result;
  for (let i = 0; i < heat.length; i++) {
    const color = 3 * rint(Math.min(Math.max(heat[i], 0), 1) * 255);
    for (let channel = 0; channel < 3; channel++) {
      result.data[4 * i + channel] = rint(
        (1 - alpha) * picture.data[4 * i + channel] + alpha * colors[color + channel],
      );
    }
  }
  return result;
}

const OUTLINE = 215; // grey of the region's outline, which a dark picture needs

// The picture with the largest region as it is, in an outline, other pixels above the threshold darker, and the rest
// darkest.
function regionPixels(picture, region, inputSize) {
  const { width, height } = picture;
  const result = new ImageData(new Uint8ClampedArray(picture.data), width, height);
  const light = regionLight(region, inputSize);
  const place = (x, y) => Math.floor(((y + 0.5) * inputSize) / height) * inputSize + Math.floor(((x + 0.5) * inputSize) / width);
  const outside = (x, y) => x >= 0 && y >= 0 && x < width && y < height && light[place(x, y)] < 1;
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < width; x++) {
      const share = light[place(x, y)];
      const edge = share === 1 && (outside(x - 1, y) || outside(x + 1, y) || outside(x, y - 1) || outside(x, y + 1));
      const i = 4 * (y * width + x);
      for (let channel = 0; channel < 3; channel++) {
        result.data[i + channel] = edge ? OUTLINE : rint(result.data[i + channel] * share);
      }
    }
  }
  return result;
}

// How bright each pixel of the enlarged map is shown: 1 in the largest region.
function regionLight(region, inputSize) {
  const light = new Float32Array(inputSize * inputSize).fill(0.22);
  if (!region) return light;
  const { runs, chosen } = region;
  for (let i = 0; i < runs.row.length; i++) {
    const start = runs.row[i] * inputSize;
    light.fill(root(runs.first, i) === chosen ? 1 : 0.5, start + runs.start[i], start + runs.end[i]);
  }
  return light;
}

// Draws the outline of a box given in pixels of the image, inside the box, with a thin dark line on either side.
function drawBox(context, image, box, color) {
  const { width, height } = context.canvas;
  const sides = [0, 1, 2, 3].map((i) => {
    const [limit, size] = i % 2 ? [height, image.height] : [width, image.width];
    return rint(Math.min(Math.max((box[i] * limit) / size, 0), limit));
  });
  const [x0, y0, x1, y1] = sides;
  if (!(x0 < x1 && y0 < y1)) return;
  const thickness = Math.max(1, rint(Math.min(height, width) / 90));
  const edge = Math.max(1, Math.floor(thickness / 4));
  drawFrame(context, x0 - edge, y0 - edge, x1 + edge, y1 + edge, thickness + 2 * edge, "rgba(16, 16, 16, 0.6)");
  drawFrame(context, x0, y0, x1, y1, thickness, color);
}

function drawFrame(context, x0, y0, x1, y1, thickness, style) {
  context.fillStyle = style;
  context.beginPath();
  context.rect(x0, y0, x1 - x0, y1 - y0);
  const [width, height] = [x1 - x0 - 2 * thickness, y1 - y0 - 2 * thickness];
  if (width > 0 && height > 0) context.rect(x0 + thickness, y0 + thickness, width, height);
  context.fill("evenodd");
}

function showPixels(canvas, pixels, image, boxes) {
  if (canvas.width !== pixels.width) canvas.width = pixels.width;
  if (canvas.height !== pixels.height) canvas.height = pixels.height;
  canvas.parentElement.style.setProperty("--aspect", String(pixels.width / pixels.height));
  const context = canvas.getContext("2d");
  context.putImageData(pixels, 0, 0);
  for (const { box, color } of boxes) drawBox(context, image, box, color);
}

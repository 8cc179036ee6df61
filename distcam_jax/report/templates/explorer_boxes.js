// From a heatmap to its box by protocol `ilsvrc`, as distcam_jax.localization.heatmap_to_box does it: bilinear with
// half-pixel centres and clamped edges, divided by the maximum, at or above the threshold, largest 8-connected region.
// Levels are rounded to single precision as there, so that a box differs only where a pixel lies within a rounding
// error of the threshold.

const axisCache = new Map();

// For each pixel of an enlarged axis: the two cells it lies between, and its share of the second.
function axisWeights(cells, pixels) {
  const key = `${cells} ${pixels}`;
  if (!axisCache.has(key)) {
    const low = new Int32Array(pixels);
    const high = new Int32Array(pixels);
    const share = new Float64Array(pixels);
    for (let pixel = 0; pixel < pixels; pixel++) {
      const place = Math.min(Math.max(((pixel + 0.5) * cells) / pixels - 0.5, 0), cells - 1);
      low[pixel] = Math.floor(place);
      high[pixel] = Math.min(low[pixel] + 1, cells - 1);
      share[pixel] = place - low[pixel];
    }
    axisCache.set(key, { low, high, share });
  }
  return axisCache.get(key);
}

// A map { values, height, width } enlarged to height × width pixels, row by row.
function upsample(map, height, width) {
  const across = axisWeights(map.width, width);
  const down = axisWeights(map.height, height);
  const rows = new Float64Array(map.height * width);
  for (let row = 0; row < map.height; row++) {
    for (let x = 0; x < width; x++) {
      const left = map.values[row * map.width + across.low[x]];
      const right = map.values[row * map.width + across.high[x]];
      rows[row * width + x] = left * (1 - across.share[x]) + right * across.share[x];
    }
  }
  const pixels = new Float32Array(height * width);
  for (let y = 0; y < height; y++) {
    const upper = down.low[y] * width;
    const lower = down.high[y] * width;
    const share = down.share[y];
    for (let x = 0; x < width; x++) {
      pixels[y * width + x] = rows[upper + x] * (1 - share) + rows[lower + x] * share;
    }
  }
  return pixels;
}

function hasHeat(map) {
  let positive = false;
  for (const value of map.values) {
    if (!Number.isFinite(value)) return false;
    positive = positive || value > 0;
  }
  return positive;
}

// The enlarged map divided by its maximum, or null where it has no positive value.
function scaledMap(map, height, width) {
  if (!hasHeat(map)) return null;
  const levels = upsample(map, height, width);
  let top = 0;
  for (let i = 0; i < levels.length; i++) if (levels[i] > top) top = levels[i];
  if (!(top > 0)) return null;
  for (let i = 0; i < levels.length; i++) levels[i] /= top;
  return levels;
}

// Runs of pixels at or above the cutoff, in raster order, each with the first run that it is joined to.
function findRuns(levels, size, cutoff) {
  const runs = { row: [], start: [], end: [], first: [] };
  let above = 0; // first run of the row above
  for (let row = 0; row < size; row++) {
    const here = runs.row.length;
    for (let x = 0; x < size; x++) {
      if (!(levels[row * size + x] >= cutoff)) continue;
      const start = x;
      while (x < size && levels[row * size + x] >= cutoff) x++;
      const index = runs.row.length;
      runs.row.push(row);
      runs.start.push(start);
      runs.end.push(x);
      runs.first.push(index);
      // corners touch too: a run above that ends where this one starts is a neighbour
      while (above < here && runs.end[above] < start) above++;
      for (let other = above; other < here && runs.start[other] <= x; other++) join(runs.first, index, other);
    }
    above = here;
  }
  return runs;
}

function root(first, index) {
  while (first[index] !== index) {
    first[index] = first[first[index]];
    index = first[index];
  }
  return index;
}

// The earlier of two roots stays a root: a region is known by its run of lowest pixel index.
function join(first, a, b) {
  a = root(first, a);
  b = root(first, b);
  first[Math.max(a, b)] = Math.min(a, b);
}

// The region with most pixels, the earliest in raster order among equals; null where no pixel reaches the cutoff.
function largestRegion(levels, size, cutoff) {
  const runs = findRuns(levels, size, cutoff);
  const areas = new Map();
  for (let i = 0; i < runs.row.length; i++) {
    const region = root(runs.first, i);
    areas.set(region, (areas.get(region) || 0) + runs.end[i] - runs.start[i]);
  }
  let best = null;
  for (const [region, area] of areas) if (best === null || area > areas.get(best)) best = region;
  if (best === null) return null;
  const found = { box: [size, size, 0, 0], area: areas.get(best), runs, chosen: best };
  for (let i = 0; i < runs.row.length; i++) {
    if (root(runs.first, i) !== best) continue;
    found.box[0] = Math.min(found.box[0], runs.start[i]);
    found.box[1] = Math.min(found.box[1], runs.row[i]);
    found.box[2] = Math.max(found.box[2], runs.end[i]);
    found.box[3] = Math.max(found.box[3], runs.row[i] + 1);
  }
  return found;
}

// Box [x0, y0, x1, y1] in pixels of an image { width, height }, exclusive end, with its region; zeros and no region
// where nothing stands out.
function heatmapToBox(map, image, threshold, inputSize) {
  const levels = scaledMap(map, inputSize, inputSize);
  const region = levels && largestRegion(levels, inputSize, Math.fround(threshold));
  if (!region) return { box: [0, 0, 0, 0], region: null };
  const size = [image.width, image.height];
  return { box: region.box.map((side, i) => (side * size[i % 2]) / inputSize), region };
}

function boxIou(a, b) {
  const width = Math.max(Math.min(a[2], b[2]) - Math.max(a[0], b[0]), 0);
  const height = Math.max(Math.min(a[3], b[3]) - Math.max(a[1], b[1]), 0);
  const area = (box) => Math.max(box[2] - box[0], 0) * Math.max(box[3] - box[1], 0);
  const union = area(a) + area(b) - width * height;
  return union > 0 ? (width * height) / union : 0;
}

// The largest IoU with any true box; null without true boxes.
function bestIou(box, trueBoxes) {
  return trueBoxes.length ? Math.max(...trueBoxes.map((other) => boxIou(box, other))) : null;
}

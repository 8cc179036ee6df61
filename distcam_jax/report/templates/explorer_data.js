// What the page holds about its images, and which of them a question selects.

const TRUE_CLASS = "@true";
const PREDICTED_CLASS = "@predicted";
const ORDERS = ["report", "iou-low", "iou-high", "name", "distance-near", "distance-far"];

function readData() {
  const data = JSON.parse(document.getElementById("explorer-data").textContent);
  data.images.forEach((image, index) => {
    image.index = index;
    const names = [image.true, image.predicted].filter((id) => id !== null).map((id) => data.class_names[id]);
    image.words = [image.name, ...names].join("\n").toLowerCase();
    image.correct = names.length < 2 ? null : image.true === image.predicted;
  });
  return data;
}

function decodeBytes(text) {
  const letters = atob(text);
  const bytes = new Uint8Array(letters.length);
  for (let i = 0; i < letters.length; i++) bytes[i] = letters.charCodeAt(i);
  return bytes;
}

// The map of one method for the class at one place in the image's list. Maps are decoded when first asked for.
function mapOf(data, image, method, place) {
  if (!image.values) image.values = new Float32Array(decodeBytes(image.maps).buffer);
  const { height, width } = data.methods[method];
  let offset = place * height * width;
  for (const earlier of data.methods.slice(0, method)) offset += image.classes.length * earlier.height * earlier.width;
  return { values: image.values.subarray(offset, offset + height * width), height, width };
}

// Place of the wanted class in the image's list, or -1. Wanted is a class name, or the image's own true or predicted
// class; names that start with @ are written with another @ before.
function placeOf(data, image, wanted) {
  if (wanted === TRUE_CLASS) return image.classes.indexOf(image.true);
  if (wanted === PREDICTED_CLASS) return image.classes.indexOf(image.predicted);
  return image.classes.findIndex((id) => writtenClass(data.class_names[id]) === wanted);
}

function writtenClass(name) {
  return name.startsWith("@") ? "@" + name : name;
}

// The place to show: where the wanted class was not asked, the true one, the predicted one, or the first.
function shownPlace(data, image, wanted) {
  const places = [wanted, TRUE_CLASS, PREDICTED_CLASS].map((name) => placeOf(data, image, name));
  return Math.max(places.find((place) => place >= 0) ?? 0, 0);
}

// What to want when the user picks a class: its part in this image, so that the next image shows the same part.
function wantedAt(data, image, place, before) {
  const id = image.classes[place];
  const parts = [];
  if (id === image.true) parts.push(TRUE_CLASS);
  if (id === image.predicted) parts.push(PREDICTED_CLASS);
  if (parts.includes(before)) return before;
  return parts[0] ?? writtenClass(data.class_names[id]);
}

function matches(image, query) {
  const words = query.find.toLowerCase().split(/\s+/).filter(Boolean);
  return (
    words.every((word) => image.words.includes(word)) &&
    (query.trueClass === null || image.true === query.trueClass) &&
    (query.decision === "any" || image.correct === (query.decision === "right"))
  );
}

// Images that match, in the wanted order; what has no figure comes last, equals stay in the report's order.
function select(data, query, ious) {
  const found = data.images.filter((image) => matches(image, query));
  const names = new Intl.Collator("en", { numeric: true });
  const figure = (image) => (query.order.startsWith("iou") ? ious[image.index] : image.distance ?? NaN);
  const sign = query.order === "iou-high" || query.order === "distance-far" ? -1 : 1;
  if (query.order === "name") found.sort((a, b) => names.compare(a.name, b.name) || a.index - b.index);
  else if (query.order !== "report") {
    found.sort((a, b) => {
      const [left, right] = [figure(a), figure(b)];
      if (Number.isNaN(left) || Number.isNaN(right)) return Number.isNaN(left) - Number.isNaN(right) || a.index - b.index;
      return sign * (left - right) || a.index - b.index;
    });
  }
  return found;
}

// The address of a state, and back: #image=..&class=..&method=..&t=.., then what differs from the usual.
function writeHash(data, state) {
  const query = state.query;
  const parts = new URLSearchParams({
    image: data.images[state.image].id,
    class: state.wanted,
    method: data.methods[state.method].title,
    t: String(state.thresholds[state.method]),
  });
  if (query.order !== "report") parts.set("order", query.order);
  if (query.find) parts.set("find", query.find);
  if (query.trueClass !== null) parts.set("true", data.class_names[query.trueClass]);
  if (query.decision !== "any") parts.set("decision", query.decision);
  return "#" + parts;
}

// The state that an address asks for, or null for an address of another part of the page. Nonsense is left out.
function readHash(data, hash, start) {
  const parts = new URLSearchParams(hash.slice(1));
  if (!["image", "class", "method", "t"].some((name) => parts.has(name))) return null;
  const state = { ...start, thresholds: [...start.thresholds], query: { ...start.query } };
  const image = data.images.findIndex((entry) => entry.id === parts.get("image"));
  if (image >= 0) state.image = image;
  const wanted = parts.get("class");
  const known = data.class_names.some((name) => writtenClass(name) === wanted);
  if (known || wanted === TRUE_CLASS || wanted === PREDICTED_CLASS) state.wanted = wanted;
  const method = data.methods.findIndex((entry) => entry.title === parts.get("method"));
  if (method >= 0) state.method = method;
  const threshold = Number.parseFloat(parts.get("t"));
  if (threshold >= 0 && threshold <= 1) state.thresholds[state.method] = threshold;
  if (ORDERS.includes(parts.get("order"))) state.query.order = parts.get("order");
  state.query.find = parts.get("find") ?? "";
  const trueClass = data.class_names.indexOf(parts.get("true"));
  state.query.trueClass = trueClass < 0 ? null : trueClass;
  state.query.decision = ["right", "wrong"].includes(parts.get("decision")) ? parts.get("decision") : "any";
  return state;
}

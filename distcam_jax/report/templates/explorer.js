// The explorer: what the user has chosen, and the page that shows it.

const data = readData();
const colors = decodeBytes(data.colors);
const element = (name) => document.getElementById(`explorer-${name}`);
const section = document.getElementById("explorer");
const list = new ThumbnailList(element("list"), describeThumbnail, (image) => goTo(image, true));

const start = {
  image: 0,
  wanted: data.start === "predicted" ? PREDICTED_CLASS : TRUE_CLASS,
  method: 0,
  thresholds: data.methods.map((method) => method.threshold),
  query: { find: "", trueClass: null, decision: "any", order: "report" },
};
let state = readHash(data, location.hash, start) ?? { ...start, thresholds: [...start.thresholds] };
let selected = [];

const currentImage = () => data.images[state.image];
const currentPlace = () => shownPlace(data, currentImage(), state.wanted);
const threshold = () => state.thresholds[state.method];

function localise(image, method, place, cutoff) {
  const found = heatmapToBox(mapOf(data, image, method, place), image, cutoff, data.input_size);
  return { ...found, iou: bestIou(found.box, image.boxes) };
}

// IoU of every image for the chosen class and method, measured a few milliseconds at a time; NaN where there is none.
// The list is ordered by the figures of the last complete round, so that it does not tremble meanwhile.
const none = new Float64Array(data.images.length).fill(NaN);
const measured = { key: "", ious: none.slice(), complete: none, done: false, timer: 0 };

function measureLater(delay) {
  const key = JSON.stringify([state.method, state.wanted, threshold()]);
  if (key === measured.key) return;
  measured.key = key;
  measured.done = false;
  clearTimeout(measured.timer);
  const [method, wanted, cutoff] = [state.method, state.wanted, threshold()];
  const inView = list.inView();
  const first = new Set(inView);
  const queue = [...inView, ...data.images.filter((image) => !first.has(image))];
  let next = 0;
  const work = () => {
    const end = performance.now() + 12;
    while (next < queue.length && performance.now() < end) {
      const image = queue[next++];
      const place = placeOf(data, image, wanted);
      const asked = place >= 0 && image.boxes.length > 0;
      measured.ious[image.index] = asked ? localise(image, method, place, cutoff).iou : NaN;
    }
    if (next >= inView.length) list.later();
    if (next < queue.length) {
      measured.timer = setTimeout(work, 0);
      return;
    }
    measured.done = true;
    measured.complete = measured.ious.slice();
    if (state.query.order.startsWith("iou")) showList();
    showSummary();
  };
  measured.timer = setTimeout(work, delay);
  showSummary();
}

function describeThumbnail(image) {
  const mark = { true: "✓", false: "✗", null: "" }[image.correct];
  const iou = measured.ious[image.index];
  const overlap = Number.isNaN(iou) ? "" : iou.toFixed(2);
  const facts = [image.name, className(image.true, "true class "), className(image.predicted, "predicted ")];
  facts.push({ true: "correct", false: "wrong", null: "" }[image.correct], overlap && `IoU ${overlap}`);
  return { label: facts.filter(Boolean).join(", "), caption: [mark, overlap].filter(Boolean).join(" ") };
}

function className(id, before = "") {
  return id === null ? "" : before + data.class_names[id];
}

// Every change of the state comes through here. Choosing an image adds to the browser's history, the rest does not.
function change(changes, { push = false, query = false, delay = 0 } = {}) {
  if (push && waiting) writeAddress(); // what is left behind
  Object.assign(state, changes);
  if (query) {
    selected = select(data, state.query, measured.complete);
    if (selected.length && !selected.includes(currentImage())) state.image = selected[0].index;
  }
  show({ reveal: query || "image" in changes, delay });
  remember(push);
}

function show({ reveal = false, delay = 0 } = {}) {
  showList(reveal);
  showControls();
  showStage();
  measureLater(delay);
}

let waiting = 0;
function remember(push) {
  clearTimeout(waiting);
  if (push) writeAddress(true);
  else waiting = setTimeout(() => writeAddress(), 200); // browsers refuse too many changes in a short time
}

function writeAddress(push = false) {
  clearTimeout(waiting);
  waiting = 0;
  const hash = writeHash(data, state);
  const other = readHash(data, location.hash, start) === null; // the address of another section stays in the history
  if (hash !== location.hash) history[push || other ? "pushState" : "replaceState"](null, "", hash);
}

// The user has gone back or forth, or followed a link. Other sections' addresses leave the explorer as it is.
function restore() {
  const asked = readHash(data, location.hash, start);
  if (asked === null && location.hash !== "") return;
  clearTimeout(waiting);
  waiting = 0;
  state = asked ?? { ...start, thresholds: [...start.thresholds] };
  fillQuery();
  show({ reveal: true });
}

function goTo(image, push = false) {
  if (image && image !== currentImage()) change({ image: image.index }, { push });
}

function step(by) {
  const place = selected.indexOf(currentImage());
  goTo(selected[Math.min(Math.max(place + by, 0), selected.length - 1)]);
}

function stepClass(by) {
  const image = currentImage();
  const count = image.classes.length;
  chooseClass((currentPlace() + by + count) % count);
}

function chooseClass(place) {
  change({ wanted: wantedAt(data, currentImage(), place, state.wanted) });
  sayLater();
}

function chooseMethod(method) {
  change({ method });
  sayLater();
}

function moveThreshold(value) {
  const rounded = Math.round(Math.min(Math.max(value, 0), 1) * 1000) / 1000;
  change({ thresholds: state.thresholds.map((old, method) => (method === state.method ? rounded : old)) }, { delay: 120 });
  sayLater();
}

// Tells a screen reader what a change led to, once it has settled.
let saying = 0;
function sayLater() {
  clearTimeout(saying);
  saying = setTimeout(() => {
    const { iou } = localise(currentImage(), state.method, currentPlace(), threshold());
    const parts = [data.methods[state.method].title, className(currentImage().classes[currentPlace()])];
    parts.push(`threshold ${thresholdText(threshold())}`, iou === null ? "" : `IoU ${iou.toFixed(2)}`);
    element("said").textContent = parts.filter(Boolean).join(", ");
  }, 500);
}

section.addEventListener("keydown", (event) => {
  const typed = event.getModifierState("AltGraph"); // brackets need it on many keyboards
  if (event.defaultPrevented || (!typed && (event.ctrlKey || event.metaKey || event.altKey))) return;
  if (event.target.closest("input, select, dialog")) return;
  const action = {
    ArrowLeft: () => step(-1),
    ArrowRight: () => step(1),
    ArrowUp: () => stepClass(-1),
    ArrowDown: () => stepClass(1),
    Home: () => step(-Infinity),
    End: () => step(Infinity),
    "[": () => moveThreshold(threshold() - 0.01),
    "]": () => moveThreshold(threshold() + 0.01),
    m: () => chooseMethod((state.method + 1) % data.methods.length),
    "?": () => element("keys").showModal(),
  }[event.key];
  if (!action) return;
  event.preventDefault();
  action();
});

element("previous").addEventListener("click", () => step(-1));
element("next").addEventListener("click", () => step(1));
element("help").addEventListener("click", () => element("keys").showModal());
element("threshold").addEventListener("input", (event) => moveThreshold(Number(event.target.value)));
element("reset").addEventListener("click", () => {
  element("threshold").focus(); // the button goes away
  moveThreshold(start.thresholds[state.method]);
});
element("clear").addEventListener("click", () => {
  state.query = { ...start.query, order: state.query.order };
  fillQuery();
  element("find").focus();
  change({}, { query: true });
});
for (const name of ["find", "true", "decision", "order"]) {
  element(name).addEventListener("input", () => {
    const trueClass = element("true").value;
    const query = { find: element("find").value, decision: element("decision").value, order: element("order").value };
    change({ query: { ...query, trueClass: trueClass === "" ? null : Number(trueClass) } }, { query: true });
  });
}
window.addEventListener("hashchange", restore);

prepareControls();
fillQuery();
section.hidden = false;
document.getElementById("explorer-link").hidden = false;
show({ reveal: true });
if (readHash(data, location.hash, start) !== null) {
  const narrow = matchMedia("(max-width: 900px)").matches; // there the stage stands below the list
  (narrow ? section.querySelector(".stage") : section).scrollIntoView();
}

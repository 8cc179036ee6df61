// How the explorer's state stands on the page. Names come from data sets: they are set as text, never as HTML.

function option(text, value) {
  const item = document.createElement("option");
  item.textContent = text;
  item.value = value;
  return item;
}

// Controls that stay the same: menus, and what the data does not need is hidden.
function prepareControls() {
  const counts = new Map();
  for (const image of data.images) if (image.true !== null) counts.set(image.true, (counts.get(image.true) || 0) + 1);
  const names = [...counts.keys()].sort((a, b) => data.class_names[a].localeCompare(data.class_names[b], "en"));
  const items = names.map((id) => option(`${data.class_names[id]} (${counts.get(id)})`, String(id)));
  element("true").replaceChildren(option("any", ""), ...items);
  const without = (name) => (element(name).closest("label").hidden = true);
  if (!names.length) without("true");
  if (data.images.every((image) => image.correct === null)) without("decision");
  const drop = (figure) => element("order").querySelectorAll(`[value^=${figure}]`).forEach((item) => item.remove());
  if (data.images.every((image) => !image.boxes.length)) drop("iou");
  if (data.images.every((image) => image.distance === null)) drop("distance");
}

function fillQuery() {
  const query = state.query;
  element("find").value = query.find;
  element("true").value = query.trueClass === null ? "" : String(query.trueClass);
  element("decision").value = query.decision;
  element("order").value = query.order;
}

function showList(reveal = true) {
  selected = select(data, state.query, measured.complete);
  list.show(selected, currentImage());
  if (reveal) list.reveal();
  const [found, all] = [selected.length, data.images.length].map((count) => count.toLocaleString("en"));
  const few = selected.length < data.images.length;
  element("count").textContent = few ? `${found} of ${all} images` : `${all} image${data.images.length > 1 ? "s" : ""}`;
  element("clear").hidden = !few;
  const place = selected.indexOf(currentImage());
  element("position").textContent = place < 0 ? "not in the list" : `${(place + 1).toLocaleString("en")} of ${found}`;
  element("previous").disabled = !selected.length || place === 0;
  element("next").disabled = !selected.length || place === selected.length - 1;
}

// How the whole list fares with this class, method and threshold.
function showSummary() {
  const ious = selected.map((image) => measured.ious[image.index]).filter((iou) => !Number.isNaN(iou));
  const summary = element("summary");
  summary.hidden = measured.done && !ious.length;
  summary.setAttribute("aria-busy", String(!measured.done));
  const parts = { [TRUE_CLASS]: "the true class", [PREDICTED_CLASS]: "the predicted class" };
  const asked = parts[state.wanted] ?? state.wanted.replace(/^@@/, "@");
  element("asked").textContent = `${data.methods[state.method].title} of ${asked} at ${thresholdText(threshold())}`;
  element("asked").hidden = summary.hidden;
  if (!measured.done || !ious.length) return;
  const right = ious.filter((iou) => iou >= 0.5).length;
  const mean = ious.reduce((sum, iou) => sum + iou, 0) / ious.length;
  setFacts(summary, [
    ["IoU ≥ 0.5", `${((100 * right) / ious.length).toFixed(1)} %`],
    ["mean IoU", mean.toFixed(3)],
    ["with true boxes", ious.length.toLocaleString("en")],
  ]);
}

function setFacts(target, facts) {
  const rows = facts.map(([name, value]) => {
    const row = document.createElement("div");
    row.appendChild(document.createElement("dt")).textContent = name;
    row.appendChild(document.createElement("dd")).textContent = value;
    return row;
  });
  target.replaceChildren(...rows);
}

// Three significant digits and no exponent, as on the rest of the page.
function distanceText(distance) {
  if (distance === 0) return "0.00";
  const digits = 2 - Math.floor(Math.log10(Math.abs(Number(distance.toPrecision(3)))));
  return digits >= 0 ? distance.toFixed(Math.min(digits, 100)) : String(Math.round(distance * 10 ** digits) / 10 ** digits);
}

function thresholdText(value) {
  return value.toFixed(Math.abs(value * 100 - Math.round(value * 100)) < 1e-9 ? 2 : 3);
}

// Makes as many buttons as there are choices; those that stay keep the focus.
function setChips(target, choices, choose) {
  while (target.children.length > choices.length) target.lastChild.remove();
  choices.forEach(({ name, notes, pressed }, index) => {
    let chip = target.children[index];
    if (!chip) {
      chip = target.appendChild(document.createElement("button"));
      chip.type = "button";
      chip.addEventListener("click", () => choose(index));
      chip.append(document.createElement("b"), document.createElement("span"));
    }
    chip.firstChild.textContent = name;
    chip.lastChild.textContent = notes.filter(Boolean).join(" · ");
    chip.setAttribute("aria-pressed", String(pressed));
  });
}

function showControls() {
  const image = currentImage();
  const place = currentPlace();
  const classes = image.classes.map((id, index) => {
    const roles = [id === image.true && "true", id === image.predicted && "predicted"].filter(Boolean).join(", ");
    const distance = image.distances ? distanceText(image.distances[index]) : "";
    return { name: data.class_names[id], notes: [roles, distance], pressed: index === place };
  });
  element("class-label").textContent = image.distances ? "Class, distance" : "Class";
  setChips(element("class"), classes, chooseClass);
  const methods = data.methods.map(({ title }, method) => {
    const { iou } = localise(image, method, place, state.thresholds[method]);
    return { name: title, notes: [iou === null ? "" : `IoU ${iou.toFixed(2)}`], pressed: method === state.method };
  });
  setChips(element("method"), methods, chooseMethod);
  const slider = element("threshold");
  slider.value = String(threshold());
  slider.setAttribute("aria-valuetext", `${thresholdText(threshold())} of the maximum, ${methods[state.method].notes[0]}`);
  element("threshold-value").textContent = thresholdText(threshold());
  const usual = start.thresholds[state.method];
  element("reset").textContent = `back to ${thresholdText(usual)}`;
  element("reset").classList.toggle("away", usual === threshold());
  element("reset").disabled = usual === threshold();
}

function showIdentity(image) {
  element("name").textContent = image.name;
  const line = element("classes");
  const words = [className(image.predicted, "predicted "), className(image.true, "true class ")];
  line.textContent = words.filter(Boolean).join(", ");
  if (image.correct !== null) {
    const verdict = document.createElement("span");
    verdict.className = `verdict ${image.correct ? "right" : "wrong"}`;
    verdict.textContent = image.correct ? "✓ correct" : "✗ wrong";
    line.append(" ", verdict);
  }
}

let turns = 0;
async function showStage() {
  const turn = ++turns;
  const image = currentImage();
  const place = currentPlace();
  const map = mapOf(data, image, state.method, place);
  const { box, region, iou } = localise(image, state.method, place, threshold());
  const title = data.methods[state.method].title;
  const asked = className(image.classes[place]);
  const empty = hasHeat(map) ? "" : data.no_heat;
  const overlap = iou === null ? "" : `IoU ${iou.toFixed(2)}`;
  const share = region ? `${((100 * region.area) / data.input_size ** 2).toFixed(0)} % of the image` : "no region";
  showIdentity(image);
  element("heat-title").textContent = title;
  element("heat-note").textContent = [empty, overlap].filter(Boolean).join(", ");
  element("region-note").textContent = share;
  element("heat").setAttribute("aria-label", `${title} heatmap of ${asked} over ${image.name}, ${empty || overlap || share}`);
  element("region").setAttribute("aria-label", `Region at or above ${thresholdText(threshold())} of the maximum, ${share}`);
  const corners = region ? box.map((side) => Math.round(side)).join(", ") : "none";
  const facts = [["box (x0, y0, x1, y1)", corners], ["image", `${image.width} by ${image.height} px`]];
  if (iou !== null) facts.unshift(["IoU", iou.toFixed(2)]);
  if (image.distance !== null) facts.push(["distance", distanceText(image.distance)]);
  setFacts(element("figures"), facts);
  const picture = await picturePixels(image);
  if (turn !== turns) return; // the user has gone on meanwhile
  const boxes = image.boxes.map((other) => ({ box: other, color: data.true_color }));
  boxes.push({ box, color: data.derived_color });
  showPixels(element("heat"), heatPixels(picture, map, colors, data.alpha), image, boxes);
  showPixels(element("region"), regionPixels(picture, region, data.input_size), image, boxes);
}

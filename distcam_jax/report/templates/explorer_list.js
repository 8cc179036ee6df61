// A list of thumbnails of which only those in view exist, so that thousands of images cost no more than a few dozen.

const CELL_WIDTH = 92;
const CELL_HEIGHT = 112;

class ThumbnailList {
  // describe(image) gives { label, caption } of a thumbnail; choose(image) is called when one is clicked.
  constructor(element, describe, choose) {
    this.element = element;
    this.describe = describe;
    this.images = [];
    this.current = null;
    this.cells = new Map();
    this.canvas = element.appendChild(document.createElement("div"));
    this.canvas.className = "cells";
    this.canvas.setAttribute("role", "presentation");
    this.pending = false;
    element.addEventListener("scroll", () => this.later(), { passive: true });
    new ResizeObserver(() => {
      this.later();
      this.reveal();
    }).observe(element);
    this.canvas.addEventListener("click", (event) => {
      const cell = event.target.closest("[role=option]");
      if (cell) choose(cell.image);
    });
  }

  get columns() {
    return Math.max(1, Math.floor(this.element.clientWidth / CELL_WIDTH));
  }

  get pageSize() {
    return this.columns * Math.max(1, Math.floor(this.element.clientHeight / CELL_HEIGHT));
  }

  show(images, current) {
    this.images = images;
    this.place = new Map(images.map((image, place) => [image, place]));
    this.current = current;
    this.draw();
  }

  // Scrolls just as far as the current image needs to be in view.
  reveal() {
    const place = this.place?.get(this.current);
    if (place === undefined) return;
    const top = Math.floor(place / this.columns) * CELL_HEIGHT;
    const { scrollTop, clientHeight } = this.element;
    if (top < scrollTop) this.element.scrollTop = top;
    else if (top + CELL_HEIGHT > scrollTop + clientHeight) this.element.scrollTop = top + CELL_HEIGHT - clientHeight;
    this.draw();
  }

  later() {
    if (this.pending) return;
    this.pending = true;
    requestAnimationFrame(() => {
      this.pending = false;
      this.draw();
    });
  }

  // The images in view and one row around.
  inView() {
    const first = Math.max(0, Math.floor(this.element.scrollTop / CELL_HEIGHT) - 1) * this.columns;
    const rows = Math.ceil(this.element.clientHeight / CELL_HEIGHT) + 3;
    return this.images.slice(first, first + rows * this.columns);
  }

  draw() {
    const columns = this.columns;
    const width = this.element.clientWidth / columns;
    this.canvas.style.height = `${Math.ceil(this.images.length / columns) * CELL_HEIGHT}px`;
    const shown = new Set(this.inView());
    for (const [image, cell] of this.cells) {
      if (shown.has(image)) continue;
      cell.remove();
      this.cells.delete(image);
    }
    for (const image of shown) {
      if (!this.cells.has(image)) this.cells.set(image, this.canvas.appendChild(makeCell(image)));
      const place = this.place.get(image);
      const cell = this.cells.get(image);
      cell.style.transform = `translate(${(place % columns) * width}px, ${Math.floor(place / columns) * CELL_HEIGHT}px)`;
      cell.style.width = `${width}px`;
      cell.setAttribute("aria-selected", String(image === this.current));
      cell.setAttribute("aria-posinset", String(place + 1));
      cell.setAttribute("aria-setsize", String(this.images.length));
      const { label, caption } = this.describe(image);
      if (cell.getAttribute("aria-label") !== label) cell.setAttribute("aria-label", label);
      if (cell.lastChild.textContent !== caption) cell.lastChild.textContent = caption;
    }
    if (this.cells.has(this.current)) this.element.setAttribute("aria-activedescendant", this.cells.get(this.current).id);
    else this.element.removeAttribute("aria-activedescendant");
  }
}

function makeCell(image) {
  const cell = document.createElement("div");
  cell.setAttribute("role", "option");
  cell.id = `explorer-image-${image.index}`;
  cell.image = image;
  const picture = cell.appendChild(document.createElement("img"));
  picture.alt = "";
  picture.decoding = "async";
  picture.draggable = false;
  picture.src = image.picture;
  if (image.pixelated) picture.className = "pixelated";
  cell.appendChild(document.createElement("span"));
  return cell;
}

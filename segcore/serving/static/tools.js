// Move, brush and fill, by pointer and by keyboard.

const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
const TYPED = "input:not([type=radio], [type=checkbox], [type=range]), select, textarea";

export class Tools {
  constructor({ view, overlay, size, sized, cursor }, { sheet, painter, legend, unknown, taken }) {
    Object.assign(this, { view, overlay, size, sized, cursor, sheet, painter, legend, taken });
    this.last = null; // where the stroke is that is being drawn
    this.keys = {
      v: () => this.choose("move"), b: () => this.choose("brush"), f: () => this.choose("fill"),
      h: () => sheet.fit(), "+": () => sheet.zoom(1.5), "-": () => sheet.zoom(1 / 1.5),
      "[": () => this.resize(Math.round(size.value * 0.8) - 1), "]": () => this.resize(Math.round(size.value * 1.25) + 1),
      u: () => legend.choose(unknown),
    };
    for (const input of document.querySelectorAll("input[name=tool]")) {
      input.addEventListener("change", () => this.choose(input.value));
    }
    size.addEventListener("input", () => this.resize(size.value));
    overlay.addEventListener("pointerdown", (event) => this.down(event));
    overlay.addEventListener("pointermove", (event) => this.move(event));
    for (const kind of ["pointerup", "pointercancel"]) overlay.addEventListener(kind, () => this.finish());
    this.choose("move");
  }

  get name() {
    return document.querySelector("input[name=tool]:checked").value;
  }

  choose(name) {
    document.querySelector(`input[name=tool][value=${name}]`).checked = true;
    this.view.dataset.tool = name;
    this.cursor.hidden = name === "move";
    this.sheet.brush(name === "brush" ? Number(this.size.value) : 1);
    if (name !== "move") this.taken();
  }

  resize(value) {
    this.size.value = value;
    this.sized.textContent = this.size.value;
    if (this.name === "brush") this.sheet.brush(Number(this.size.value));
  }

  // Sizes that suit a photo.
  suit(width, height) {
    const short = Math.min(width, height);
    this.size.max = Math.max(2, Math.round(short / 3));
    this.resize(Math.max(1, Math.round(short / 20)));
  }

  apply(from, to) {
    if (this.name === "fill") this.painter.fill(to.x, to.y, this.legend.paint);
    else this.painter.stroke(from, to, Number(this.size.value), this.legend.paint);
  }

  down(event) {
    if (event.button !== 0 || this.name === "move" || !event.isPrimary || this.painter.locked) return;
    event.preventDefault();
    this.view.focus({ preventScroll: true });
    this.overlay.setPointerCapture(event.pointerId);
    this.last = this.sheet.point(event);
    this.sheet.moveTo(this.last);
    this.painter.begin();
    this.apply(this.last, this.last);
    if (this.name === "fill") this.finish();
  }

  move(event) {
    if (!event.isPrimary) return;
    for (const one of this.last ? event.getCoalescedEvents?.() ?? [event] : []) {
      const to = this.sheet.point(one);
      this.apply(this.last, to);
      this.last = to;
    }
    this.sheet.moveTo(this.sheet.point(event));
  }

  finish() {
    this.last = null;
    this.painter.end();
  }

  // What a key does, unless a person is typing.
  press(event) {
    if (event.target.matches?.(TYPED) || event.altKey) return;
    const key = event.key.toLowerCase();
    if (event.ctrlKey || event.metaKey) {
      if (key !== "z" && key !== "y") return;
      event.preventDefault();
      if (key === "y" || event.shiftKey) this.painter.redo();
      else this.painter.undo();
    } else if (event.target === this.view && this.name !== "move" && (event.key in ARROWS || key === " ")) {
      event.preventDefault();
      this.step(ARROWS[event.key] ?? [0, 0], event.shiftKey);
      if (key === " ") this.dab();
    } else if (/^[0-9]$/.test(key)) {
      this.legend.choose(Number(key));
    } else {
      this.keys[key]?.();
    }
  }

  step([x, y], fine) {
    const far = fine ? 1 : Math.max(1, Number(this.size.value) / 2);
    this.sheet.moveTo({ x: this.sheet.at.x + x * far, y: this.sheet.at.y + y * far });
  }

  dab() {
    if (this.painter.locked) return;
    this.painter.begin();
    this.apply(this.sheet.at, this.sheet.at);
    this.painter.end();
  }
}

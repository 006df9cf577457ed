// The sheet with the photo and its layers: zoom, scrolling, and where a pointer or the keyboard is on it.

const MOST = 16; // pixels of the screen to one of the photo

export class View {
  constructor(view, sheet, cursor) {
    Object.assign(this, { view, sheet, cursor, width: 1, height: 1, scale: 1, fitted: true });
    this.at = { x: 0, y: 0 };
    new ResizeObserver(() => this.fitted && this.fit()).observe(view);
    view.addEventListener("wheel", (event) => {
      if (!event.ctrlKey && !event.metaKey) return; // without, the wheel scrolls
      event.preventDefault();
      this.zoom(Math.exp(-event.deltaY / 300), event.clientX, event.clientY);
    }, { passive: false });
    this.drag();
  }

  open(width, height) {
    Object.assign(this, { width, height });
    this.at = { x: width / 2, y: height / 2 };
    this.fit();
  }

  fit() {
    const { clientWidth, clientHeight } = this.view;
    if (!clientWidth || !clientHeight) return;
    this.fitted = true;
    this.set(Math.min(clientWidth / this.width, clientHeight / this.height, MOST));
  }

  zoom(factor, clientX, clientY) {
    const box = this.view.getBoundingClientRect();
    const [x, y] = [clientX ?? box.left + box.width / 2, clientY ?? box.top + box.height / 2];
    const before = this.point({ clientX: x, clientY: y });
    this.fitted = false;
    const least = Math.min(1, this.view.clientWidth / this.width / 2);
    this.set(Math.min(MOST, Math.max(least, this.scale * factor)));
    const after = this.sheet.getBoundingClientRect();
    this.view.scrollLeft += after.left + before.x * this.scale - x;
    this.view.scrollTop += after.top + before.y * this.scale - y;
  }

  set(scale) {
    this.scale = scale;
    this.sheet.style.width = `${this.width * scale}px`;
    this.sheet.style.height = `${this.height * scale}px`;
    this.sheet.classList.toggle("close", scale > 2);
    this.place();
  }

  // Where on the photo, in its pixels, an event of the pointer is.
  point(event) {
    const box = this.sheet.getBoundingClientRect();
    return { x: ((event.clientX - box.left) / box.width) * this.width, y: ((event.clientY - box.top) / box.height) * this.height };
  }

  moveTo({ x, y }) {
    this.at = { x: Math.min(this.width, Math.max(0, x)), y: Math.min(this.height, Math.max(0, y)) };
    this.place();
  }

  brush(diameter) {
    this.diameter = diameter;
    this.place();
  }

  place() {
    const side = Math.max(4, (this.diameter ?? 1) * this.scale);
    Object.assign(this.cursor.style, {
      left: `${this.at.x * this.scale}px`, top: `${this.at.y * this.scale}px`, width: `${side}px`, height: `${side}px`,
    });
  }

  // With the tool that moves, and with the middle button always, the sheet follows the mouse; fingers scroll anyway.
  drag() {
    let from = null;
    this.view.addEventListener("pointerdown", (event) => {
      const moves = event.button === 1 || (event.button === 0 && this.view.dataset.tool === "move");
      if (event.pointerType !== "mouse" || !moves) return;
      event.preventDefault();
      this.view.focus();
      from = { x: event.clientX + this.view.scrollLeft, y: event.clientY + this.view.scrollTop };
      this.view.setPointerCapture(event.pointerId);
    });
    this.view.addEventListener("pointermove", (event) => {
      if (!from) return;
      this.view.scrollLeft = from.x - event.clientX;
      this.view.scrollTop = from.y - event.clientY;
    });
    for (const kind of ["pointerup", "pointercancel"]) this.view.addEventListener(kind, () => { from = null; });
  }
}

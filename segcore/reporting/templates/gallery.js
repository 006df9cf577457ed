"use strict";
(() => {
  const data = JSON.parse(document.getElementById("gallery-data").textContent);
  const UNKNOWN = 255, AT_ONCE = 48, KEPT = 40, MOST_ZOOM = 12;
  const controls = document.getElementById("gallery-controls").elements;
  const tiles = document.getElementById("gallery-tiles");
  const more = document.getElementById("gallery-more");
  const viewer = document.getElementById("viewer");
  const stage = viewer.querySelector(".stage"), sheet = viewer.querySelector(".sheet");
  const rgb = (hex) => [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16));
  const colours = data.colours.map(rgb);
  const errors = Object.fromEntries(Object.entries(data.errors).map(([name, hex]) => [name, rgb(hex)]));
  const per = (value) => (value === null || value === undefined ? "–" : (value / 10).toFixed(1));
  const made = (name, text = "") => Object.assign(document.createElement(name), { textContent: text });

  // Labels: one byte a pixel, the mask first and then each system. The last few stay unpacked.
  const unpacked = new Map();
  function labelsOf(picture) {
    const known = unpacked.get(picture) ?? inflated(picture.labels);
    unpacked.delete(picture);
    unpacked.set(picture, known);
    if (unpacked.size > KEPT) unpacked.delete(unpacked.keys().next().value);
    return known;
  }
  async function inflated(url) {
    const bytes = Uint8Array.from(atob(url.slice(url.indexOf(",") + 1)), (one) => one.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
    return new Uint8Array(await new Response(stream).arrayBuffer());
  }

  // `map` 0 is the mask, 1 + n the n-th system.
  async function paint(canvas, picture, map, layer, opacity) {
    const [width, height] = picture.size, area = width * height;
    const all = await labelsOf(picture);
    const truth = all.subarray(0, area), found = all.subarray(map * area, (map + 1) * area);
    const image = new ImageData(width, height), out = image.data;
    const wanted = layer === "truth" ? truth : found;
    for (let at = 0; layer !== "photo" && at < area; at++) {
      const label = wanted[at];
      let colour = colours[label] ?? [224, 224, 192], alpha = label === 0 ? 0.4 * opacity : opacity;
      if (layer === "errors") {
        const right = label === truth[at] || truth[at] === UNKNOWN;
        colour = right ? [255, 255, 255] : label === 0 ? errors.missed : truth[at] === 0 ? errors.invented : errors["wrong class"];
        alpha = right ? 0.5 * opacity : opacity;
      } else if (label !== 0) {
        const edge = (at + 1) % width !== 0 && wanted[at + 1] !== label || at + width < area && wanted[at + width] !== label;
        if (edge) alpha = Math.min(1, opacity * 1.6);
      }
      out.set(colour, 4 * at);
      out[4 * at + 3] = Math.round(255 * alpha);
    }
    canvas.width = width;
    canvas.height = height;
    canvas.getContext("2d").putImageData(image, 0, 0);
  }

  // All tiles have the shape of the picture in the middle, so that they stand in rows.
  const ratios = data.pictures.map(({ size: [width, height] }) => width / height).sort((a, b) => a - b);
  document.getElementById("pictures").style.setProperty("--ratio", ratios[ratios.length >> 1]);

  // Which pictures, in which order.
  function chosen() {
    const system = +controls.system.value, other = +controls.other.value, index = +controls.class.value;
    const score = (picture, of) => (index < 0 ? picture.mean[of] : picture.iou[of][index] ?? null);
    const find = controls.find.value.trim().toLowerCase();
    const rows = data.pictures
      .map((picture) => ({ picture, score: score(picture, system), other: other < 0 ? null : score(picture, other) }))
      .filter(({ picture, score }) => (index < 0 || picture.shown.includes(index) || score !== null))
      .filter(({ picture }) => picture.id.toLowerCase().includes(find));
    const gain = (row) => (row.score ?? 0) - (row.other ?? 0);
    const last = (row, sign) => (row.score === null ? Infinity : sign * row.score);
    const by = {
      worst: (a, b) => last(a, 1) - last(b, 1),
      best: (a, b) => last(a, -1) - last(b, -1),
      gain: (a, b) => gain(b) - gain(a),
      loss: (a, b) => gain(a) - gain(b),
      id: () => 0,
    }[controls.order.value];
    const name = (a, b) => (a.picture.id < b.picture.id ? -1 : 1);
    return rows.sort((a, b) => by(a, b) || name(a, b));
  }

  let rows = [], n_shown = 0;
  const seen = new IntersectionObserver((entries) => {
    for (const { target, isIntersecting } of entries) {
      if (isIntersecting) { seen.unobserve(target); repaint(target); }
    }
  }, { rootMargin: "300px" });

  function repaint(tile) {
    const { picture } = tile.row;
    tile.querySelectorAll("canvas").forEach((canvas) =>
      paint(canvas, picture, 1 + +canvas.dataset.system, controls.layer.value, controls.opacity.value / 100));
  }
  function layers(picture, system) {
    const box = made("span");
    box.className = "layers";
    const photo = made("img"), canvas = made("canvas");
    photo.src = picture.photo;
    photo.alt = "";
    [photo.width, photo.height] = picture.size;
    canvas.dataset.system = system;
    box.append(photo, canvas);
    return box;
  }
  function tileOf(row, place) {
    const tile = made("button"), caption = made("span"), system = +controls.system.value, other = +controls.other.value;
    tile.type = "button";
    tile.className = "tile";
    tile.row = row;
    tile.append(layers(row.picture, system));
    if (other >= 0) tile.append(layers(row.picture, other));
    caption.className = "caption";
    const id = made("span", row.picture.id), score = made("b", per(row.score) + (other < 0 ? "" : ` | ${per(row.other)}`));
    id.title = row.picture.id;
    caption.append(id, score);
    tile.append(caption);
    const mine = `${data.systems[system].name} ${per(row.score)}`;
    const theirs = other < 0 ? "" : `, ${data.systems[other].name} ${per(row.other)}`;
    tile.setAttribute("aria-label", `${row.picture.id}: ${mine}${theirs}`);
    tile.addEventListener("click", () => open(place));
    return tile;
  }
  function show() {
    const next = rows.slice(n_shown, n_shown + AT_ONCE).map((row, at) => tileOf(row, n_shown + at));
    tiles.append(...next);
    next.forEach((tile) => seen.observe(tile));
    n_shown += next.length;
    more.hidden = n_shown >= rows.length;
    document.getElementById("gallery-count").textContent = `${n_shown} of ${rows.length} pictures`;
  }
  function renew() {
    seen.disconnect();
    rows = chosen();
    n_shown = 0;
    tiles.replaceChildren();
    tiles.classList.toggle("pairs", +controls.other.value >= 0);
    show();
  }
  function again() {
    seen.disconnect();
    [...tiles.children].forEach((tile) => seen.observe(tile));
  }
  more.addEventListener("click", () => {
    const first = n_shown;
    show();
    tiles.children[first]?.focus();
  });
  function fill(select, options) {
    options.forEach(([value, text]) => select.append(Object.assign(made("option", text), { value })));
  }
  const systems = data.systems.map((system, index) => [index, system.name]);
  fill(controls.system, systems);
  fill(controls.other, [[-1, "no other"], ...systems]);
  fill(controls.class, [[-1, "all classes"], ...data.names.map((name, index) => [index, name])]);
  for (const name of ["system", "other", "class", "order", "find"]) controls[name].addEventListener("input", renew);
  [...controls.layer].forEach((radio) => radio.addEventListener("change", again));
  controls.opacity.addEventListener("input", again);
  document.getElementById("gallery-controls").addEventListener("submit", (event) => event.preventDefault());

  // One picture, large.
  let place = 0, system = 0, zoom = 1, left = 0, top = 0;
  const opacity = document.getElementById("viewer-opacity");
  const radios = [...viewer.querySelectorAll("[name=viewer-layer]")];
  const layer = () => radios.find((radio) => radio.checked).value;
  function open(at) {
    place = at;
    system = +controls.system.value;
    opacity.value = controls.opacity.value;
    radios.forEach((radio) => { radio.checked = radio.value === controls.layer.value; });
    viewer.showModal();
    turn();
    stage.focus();
  }
  function turn() {
    const { picture } = rows[place];
    const photo = sheet.querySelector("img");
    photo.src = picture.photo;
    photo.alt = picture.id;
    sheet.style.aspectRatio = picture.size.join(" / ");
    const strip = viewer.querySelector(".strip");
    const entries = data.systems.map((one, index) => {
      const button = made("button"), caption = made("span"), score = made("b", per(picture.mean[index]));
      button.type = "button";
      button.className = "tile";
      caption.className = "caption";
      caption.append(made("span", one.name), score);
      button.append(layers(picture, index), caption);
      button.addEventListener("click", () => { system = index; draw(); });
      return button;
    });
    strip.replaceChildren(...entries);
    move(1, 0, 0);
    draw();
  }
  function draw() {
    const { picture } = rows[place], strength = opacity.value / 100;
    viewer.querySelector("h3").textContent =
      `${picture.id} · ${data.systems[system].name} ${per(picture.mean[system])} · ${place + 1} of ${rows.length}`;
    paint(sheet.querySelector("canvas"), picture, 1 + system, layer(), strength);
    viewer.querySelectorAll(".strip .tile").forEach((button, index) => {
      button.setAttribute("aria-pressed", index === system);
      paint(button.querySelector("canvas"), picture, 1 + index, layer() === "truth" ? "prediction" : layer(), strength);
    });
    const body = viewer.querySelector("tbody");
    body.replaceChildren(...Object.entries(picture.iou[system]).map(([index, value]) => {
      const row = made("tr"), name = made("td"), chip = made("span");
      chip.className = "chip";
      chip.style.background = data.colours[index];
      name.append(chip, data.names[index], +index && !picture.shown.includes(+index) ? " (not in the mask)" : "");
      row.append(name, made("td", per(value)));
      return row;
    }));
  }
  function move(to, x, y) {
    zoom = Math.min(MOST_ZOOM, Math.max(1, to));
    const room = (zoom - 1) / 2;
    left = Math.min(room * sheet.clientWidth, Math.max(-room * sheet.clientWidth, x));
    top = Math.min(room * sheet.clientHeight, Math.max(-room * sheet.clientHeight, y));
    sheet.style.transform = `translate(${left}px, ${top}px) scale(${zoom})`;
  }
  const scaled = (factor) => move(zoom * factor, left * factor, top * factor);
  function step(by) {
    place = (place + by + rows.length) % rows.length;
    turn();
  }
  const actions = {
    close: () => viewer.close(), previous: () => step(-1), next: () => step(1),
    in: () => scaled(1.5), out: () => scaled(1 / 1.5), fit: () => move(1, 0, 0),
  };
  viewer.addEventListener("click", (event) => {
    const button = event.target.closest("[data-do]");
    if (button) actions[button.dataset.do]();
    if (event.target === viewer) viewer.close();
  });
  viewer.addEventListener("close", () => tiles.children[place]?.focus());
  opacity.addEventListener("input", draw);
  radios.forEach((radio) => radio.addEventListener("change", draw));
  viewer.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.altKey || event.metaKey || event.target.matches("input")) return;
    const arrows = { ArrowLeft: [1, 0], ArrowRight: [-1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] };
    const keys = { "+": "in", "=": "in", "-": "out", 0: "fit", ArrowLeft: "previous", ArrowRight: "next" };
    if (event.shiftKey && arrows[event.key]) move(zoom, left + 60 * arrows[event.key][0], top + 60 * arrows[event.key][1]);
    else if (keys[event.key]) actions[keys[event.key]]();
    else if (radios[event.key - 1]) { radios[event.key - 1].checked = true; draw(); }
    else return;
    event.preventDefault();
  });
  stage.addEventListener("wheel", (event) => {
    event.preventDefault();
    scaled(event.deltaY < 0 ? 1.2 : 1 / 1.2);
  }, { passive: false });
  stage.addEventListener("pointerdown", (event) => { stage.setPointerCapture(event.pointerId); event.preventDefault(); stage.focus(); });
  stage.addEventListener("pointermove", (event) => {
    if (event.buttons) move(zoom, left + event.movementX, top + event.movementY);
  });

  if (typeof DecompressionStream === "undefined") {
    document.getElementById("gallery-count").textContent = "This browser is too old to unpack the masks and predictions.";
  } else renew();
})();

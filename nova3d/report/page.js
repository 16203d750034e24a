"use strict";
// The page around the viewer: the strip of views, the wipe, tools, keys and the download.

const one = (selector) => document.querySelector(selector);
const all = (selector) => [...document.querySelectorAll(selector)];
const run = JSON.parse(one("#run").textContent);
const columns = all(".strip button"), tiles = all(".tile[data-kind]"), slider = one("#view");
const stage = one(".stage"), over = one(".over"), wipe = one(".wipe");
const SPIN = (2 * Math.PI) / 12; // radians a second
const TURN_STEP = Math.PI / 24, ZOOM_STEP = 1.2;
let viewer = null, shown = -1, comparing = false, spinning = false;

const picture = (index, kind) => columns[index].querySelector(`[data-kind=${kind}]`)?.src;

/** Shows a view's pictures and marks it in the strip. */
function show(index) {
  if (index === shown) return;
  columns[shown]?.removeAttribute("aria-current");
  shown = index;
  const column = columns[index], strip = one(".strip");
  column.setAttribute("aria-current", "true");
  slider.value = index;
  slider.setAttribute("aria-valuetext", column.dataset.label);
  const left = column.offsetLeft - strip.offsetLeft;
  if (left < strip.scrollLeft || left + column.offsetWidth > strip.scrollLeft + strip.clientWidth) {
    strip.scrollTo({ left: left - (strip.clientWidth - column.offsetWidth) / 2 });
  }
  for (const tile of tiles) tile.querySelector("img").src = picture(index, tile.dataset.kind);
  one("#number").textContent = index;
  one("#label").textContent = column.dataset.label;
  one("#about").textContent = column.dataset.about;
  lay();
}

/** Selects a view: its pictures, and the mesh from its camera. */
function select(index) {
  spin(false);
  if (viewer) viewer.lookFrom(index);
  else show(index);
}

const step = (by) => select((shown + by + columns.length) % columns.length);

/** Lays the picture of the shown view over the mesh, left of the wipe's line. */
function lay() {
  if (!comparing) return;
  const normals = viewer.mode === "normals" && picture(shown, "normal");
  const input = shown === 0 && run.reference;
  const [image] = over.children;
  const source = normals || input || picture(shown, "rgb");
  if (image.src !== source) image.src = source;
  one("#left").textContent = normals ? "normal map" : shown === 0 && run.has_input ? "input" : "view";
}

function compare(on) {
  comparing = on;
  one("#compare").setAttribute("aria-pressed", on);
  for (const part of [over, wipe, one(".line"), ...all(".side")]) part.hidden = !on;
  if (on) select(shown);
  lay();
}

function spin(on) {
  if (on === spinning) return;
  spinning = on;
  one("#spin")?.setAttribute("aria-pressed", on);
  if (!on) return;
  compare(false);
  let last = performance.now();
  const frame = (now) => {
    if (!spinning) return;
    viewer.turn((SPIN * (now - last)) / 1000, 0);
    last = now;
    requestAnimationFrame(frame);
  };
  requestAnimationFrame(frame);
}

function moved() {
  show(viewer.nearest);
  const [x, y] = viewer.pan;
  const { clientWidth: width, clientHeight: height } = stage;
  over.firstElementChild.style.transform =
    `translate(${(x * width) / 2}px, ${(-y * height) / 2}px) scale(${viewer.zoom})`;
  const degrees = (radians) => Math.round((radians * 180) / Math.PI);
  const azimuth = ((degrees(viewer.azimuth) % 360) + 360) % 360, elevation = degrees(viewer.elevation);
  one("#where").textContent =
    viewer.view === null ? `${azimuth}°${elevation ? `, ${elevation > 0 ? "up" : "down"} ${Math.abs(elevation)}°` : ""}`
      : columns[shown].dataset.label;
}

function setMode(mode) {
  one(`input[name=mode][value=${mode}]`).checked = true;
  viewer.setMode(mode);
  lay();
}

/** Mouse, pen and touch on the stage: one pointer turns, two zoom and move, the right button moves. */
function listen() {
  const pointers = new Map();
  let scrubbed = 0;
  const middle = () => {
    const [a, b] = [...pointers.values()];
    return { x: (a.x + b.x) / 2, y: (a.y + b.y) / 2, apart: Math.hypot(a.x - b.x, a.y - b.y) };
  };
  const device = (x, y) => { // a point of the window to normalised device coordinates
    const box = stage.getBoundingClientRect();
    return [((x - box.left) / box.width) * 2 - 1, 1 - ((y - box.top) / box.height) * 2];
  };
  const pan = (dx, dy) => viewer.panBy((2 * dx) / stage.clientWidth, (-2 * dy) / stage.clientHeight);
  stage.onpointerdown = (event) => {
    if (event.target === wipe) return;
    spin(false);
    stage.setPointerCapture(event.pointerId);
    pointers.set(event.pointerId, { x: event.clientX, y: event.clientY });
    scrubbed = 0;
  };
  stage.onpointermove = (event) => {
    const last = pointers.get(event.pointerId);
    if (!last) return;
    const before = pointers.size === 2 && middle();
    const dx = event.clientX - last.x, dy = event.clientY - last.y;
    Object.assign(last, { x: event.clientX, y: event.clientY });
    if (before) {
      const after = middle();
      pan(after.x - before.x, after.y - before.y);
      viewer.zoomBy(after.apart / Math.max(before.apart, 1), ...device(after.x, after.y));
    } else if (event.shiftKey || event.buttons & 6) {
      pan(dx, dy);
    } else if (comparing) { // the camera stays with the views: dragging leafs through them
      scrubbed -= (dx / stage.clientWidth) * Math.min(columns.length, 16);
      const views = Math.trunc(scrubbed);
      if (views) step(views);
      scrubbed -= views;
    } else if (pointers.size === 1) {
      viewer.turn((-dx / stage.clientWidth) * Math.PI, (dy / stage.clientHeight) * Math.PI);
    }
  };
  stage.onpointerup = stage.onpointercancel = (event) => pointers.delete(event.pointerId);
  stage.oncontextmenu = (event) => event.preventDefault();
  stage.addEventListener("wheel", (event) => { // elsewhere the wheel scrolls the page
    if (!event.ctrlKey && document.activeElement !== stage) return;
    event.preventDefault();
    viewer.zoomBy(Math.exp(-event.deltaY * (event.ctrlKey ? 0.01 : 0.0015)), ...device(event.clientX, event.clientY));
  }, { passive: false });
  const keys = {
    ArrowLeft: () => (comparing ? step(-1) : viewer.turn(-TURN_STEP, 0)),
    ArrowRight: () => (comparing ? step(1) : viewer.turn(TURN_STEP, 0)),
    ArrowUp: () => comparing || viewer.turn(0, TURN_STEP),
    ArrowDown: () => comparing || viewer.turn(0, -TURN_STEP),
    "+": () => viewer.zoomBy(ZOOM_STEP), "=": () => viewer.zoomBy(ZOOM_STEP), "-": () => viewer.zoomBy(1 / ZOOM_STEP),
    0: reset, c: () => compare(!comparing), " ": () => spin(!spinning),
    ...Object.fromEntries(MODES.map((mode, index) => [index + 1, () => setMode(mode)])),
  };
  stage.onkeydown = (event) => {
    const action = keys[event.key];
    if (!action || event.target !== stage || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    if (event.key.startsWith("Arrow")) spin(false);
    action();
  };
}

function reset() {
  spin(false);
  viewer.resetZoom();
  viewer.lookFrom(0);
}

async function start() {
  columns.forEach((column, index) => (column.onclick = () => select(index)));
  slider.oninput = () => select(Number(slider.value));
  const dialog = one("dialog");
  all(".tile button").forEach((button) => (button.onclick = () => {
    dialog.querySelector("img").src = button.querySelector("img").src;
    dialog.querySelector("p").textContent = button.parentElement.querySelector("figcaption").textContent;
    dialog.showModal();
  }));
  dialog.onclick = () => dialog.close();
  show(0);
  const glb = one("#glb");
  if (!glb) return;
  const bytes = Uint8Array.from(atob(glb.textContent), (character) => character.charCodeAt(0));
  const link = one("#download");
  link.href = URL.createObjectURL(new Blob([bytes], { type: "model/gltf-binary" }));
  link.hidden = false;
  try {
    viewer = new Viewer(one("canvas"), run.rig, () => viewer && moved());
    await viewer.load(bytes.buffer);
  } catch (error) {
    viewer = null;
    stage.classList.add("failed");
    one("#status").textContent = `The mesh cannot be drawn here: ${error.message}`;
    return;
  }
  stage.classList.add("ready");
  all("input[name=mode]").forEach((input) => (input.onchange = () => setMode(input.value)));
  wipe.oninput = () => stage.style.setProperty("--at", wipe.value);
  one("#compare").onclick = () => compare(!comparing);
  one("#spin").onclick = () => spin(!spinning);
  one("#reset").onclick = reset;
  one("#closer").onclick = () => viewer.zoomBy(ZOOM_STEP);
  one("#further").onclick = () => viewer.zoomBy(1 / ZOOM_STEP);
  all(".tools :disabled").forEach((control) => (control.disabled = false));
  listen();
  moved();
}

start();

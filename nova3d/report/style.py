"""The page's CSS and JavaScript, inlined so that one file is the whole report."""

CSS = """
:root { color-scheme: light dark; --page: #f6f6f4; --card: #fff; --ink: #1d1f21; --soft: #63676c; --line: #dedfdc;
  --accent: #2f6f8f; --gap: clamp(16px, 4vw, 32px); }
@media (prefers-color-scheme: dark) { :root { --page: #141618; --card: #1d2023; --ink: #e7e8e6; --soft: #9ba1a6;
  --line: #33373b; --accent: #79b8d6; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); font: 15px/1.5 system-ui, sans-serif; }
main { max-width: 1120px; margin: 0 auto; padding: var(--gap); }
h1 { font-size: clamp(22px, 4vw, 30px); line-height: 1.2; margin: 0; overflow-wrap: anywhere; }
h2 { font-size: 16px; margin: calc(1.3 * var(--gap)) 0 10px; }
p { margin: 4px 0; } .soft, small, figcaption { color: var(--soft); }
small, figcaption { font-size: 12.5px; } figure { margin: 0; }
img, canvas { display: block; width: 100%; height: auto; background: #fff; border-radius: 6px; }
ul { margin: 14px 0 0; padding-left: 20px; }
.hero { display: grid; gap: 14px; grid-template-columns: repeat(2, minmax(0, 1fr)); }
.hero .stage { grid-column: 1 / -1; }
@media (min-width: 760px) {
  .hero { grid-template-columns: 1fr 2fr; grid-template-rows: auto 1fr; }
  .hero .stage { grid-column: 2; grid-row: 1 / 3; }
  .hero.still { grid-template-columns: repeat(2, minmax(0, 340px)); grid-template-rows: auto; } }
figcaption { padding: 5px 2px 0; }
.stage canvas { cursor: grab; touch-action: pan-y; aspect-ratio: 1; object-fit: contain; }
.stage canvas:active { cursor: grabbing; }
.controls { display: flex; gap: 12px; align-items: center; margin-top: 8px; }
.controls input { flex: 1; min-width: 0; accent-color: var(--accent); }
button, .download { font: inherit; color: var(--accent); background: none; border: 1px solid var(--line);
  border-radius: 6px; padding: 5px 12px; cursor: pointer; text-decoration: none; white-space: nowrap; }
.download { display: inline-block; margin-top: 14px; background: var(--card); }
button:hover, .download:hover { border-color: var(--accent); }
:focus-visible { outline: 2px solid var(--accent); outline-offset: 2px; }
.views { display: grid; gap: 10px; grid-template-columns: repeat(auto-fill, minmax(118px, 1fr)); }
@media (max-width: 520px) { .views { grid-template-columns: repeat(4, 1fr); gap: 6px; } }
.views button { display: block; width: 100%; padding: 0; border: 0; color: inherit; text-align: left; }
.views img + img { margin-top: 4px; }
.views span { font-size: 12.5px; color: var(--soft); font-variant-numeric: tabular-nums; }
.charts { display: grid; gap: 14px; grid-template-columns: repeat(auto-fill, minmax(min(100%, 200px), 1fr)); }
.chart, .sheet { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: 10px 12px; }
.chart figcaption, .chart small { display: flex; justify-content: space-between; gap: 8px; padding: 0; }
.chart b { color: var(--ink); font-weight: 600; } .chart figcaption span { font-variant-numeric: tabular-nums; }
.chart svg { display: block; width: 100%; height: 110px; margin: 8px 0 4px; overflow: visible; }
.chart polyline { fill: none; stroke: var(--accent); stroke-width: 1.5; stroke-linejoin: round; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
td, th { padding: 5px 8px 5px 0; text-align: left; font-weight: 400; border-top: 1px solid var(--line); }
tr:first-child > * { border-top: 0; } tr:last-child > * { font-weight: 600; }
td.seconds { text-align: right; white-space: nowrap; width: 90px; } td.share { width: 45%; padding-right: 0; }
td.share i { display: block; height: 8px; min-width: 1px; border-radius: 2px; background: var(--accent); }
summary { cursor: pointer; } pre { overflow: auto; max-height: 60vh; font-size: 12.5px; margin: 10px 0 0; }
dialog { border: 0; border-radius: 10px; padding: 14px; background: var(--card); color: var(--ink);
  width: min(94vw, 900px); } dialog::backdrop { background: #000a; }
dialog div { display: grid; grid-template-columns: 1fr 1fr; gap: 10px; } dialog p { margin-top: 8px; }
"""

JS = """
const frames = JSON.parse(document.getElementById('frames').textContent);
const canvas = document.querySelector('.stage canvas');
if (canvas && frames.length) {
  const pen = canvas.getContext('2d'), slider = document.querySelector('.controls input');
  const button = document.querySelector('.controls button'), n = frames.length;
  const pictures = frames.map(uri => Object.assign(new Image(), {src: uri}));
  let at = 0, timer = null, grab = null;
  const show = frame => {
    at = ((frame % n) + n) % n;
    const picture = pictures[Math.floor(at)];
    slider.value = Math.floor(at);
    if (picture.complete) pen.drawImage(picture, 0, 0, canvas.width, canvas.height);
    else picture.onload = () => show(at);
  };
  const stop = () => { clearInterval(timer); timer = null; button.textContent = 'Play'; };
  const play = () => { timer = setInterval(() => show(Math.floor(at) + 1), 4000 / n); button.textContent = 'Pause'; };
  button.onclick = () => timer ? stop() : play();
  slider.oninput = () => { stop(); show(Number(slider.value)); };
  canvas.onpointerdown = event => { stop(); grab = {x: event.clientX, at}; canvas.setPointerCapture(event.pointerId); };
  canvas.onpointermove = event => {
    if (grab) show(grab.at - (event.clientX - grab.x) / canvas.clientWidth * n);
  };
  canvas.onpointerup = canvas.onpointercancel = () => { grab = null; };
  show(0);
  if (!matchMedia('(prefers-reduced-motion: reduce)').matches) play();
}
const dialog = document.querySelector('dialog');
document.querySelectorAll('.views button').forEach(button => button.onclick = () => {
  dialog.querySelector('div').replaceChildren(...[...button.querySelectorAll('img')].map(image => image.cloneNode()));
  dialog.querySelector('p').textContent = button.querySelector('span').textContent;
  dialog.showModal();
});
dialog.onclick = () => dialog.close();
"""

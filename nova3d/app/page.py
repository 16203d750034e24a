"""The app's page: its layout, and what its buttons do. All work is that of `nova3d.app.tasks`, in the queue."""

import asyncio
import html
import re
import secrets
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image

from nova3d import images, layouts
from nova3d.app import masks, uploads
from nova3d.app.config import AppConfig
from nova3d.app.jobs import Job, JobQueue
from nova3d.app.sessions import Picture, Session, Sessions
from nova3d.app.tasks import PictureTask, ViewsTask
from nova3d.cameras import PRESETS
from nova3d.errors import InputError
from nova3d.settings import MOST_DEPTH_RATIO, GenerateConfig
from nova3d.utils import resources
from nova3d.utils.files import remove, writable_folder

DOWNLOADS = ("GLB mesh", "OBJ mesh (zip)", "STL mesh", "Views (zip)", "Report", "Turntable")
THEME = gr.themes.Soft(
    primary_hue="indigo",
    neutral_hue="slate",
    font=["system-ui", "sans-serif"],  # of the visitor's system: nothing is fetched
    font_mono=["ui-monospace", "monospace"],
).set(
    body_text_color_subdued="*neutral_500",  # the theme's own is too pale to read on white
    background_fill_primary="*neutral_50",  # Soft's own value, which `set` forgets where it is not named
)
CSS = (Path(__file__).parent / "page.css").read_text(encoding="utf-8")
_POLL_SECONDS = 0.2
_CUT_OUTS = 2  # at a time
_MOST_STEPS, _MOST_CANDIDATES, _MOST_FACES, _MOST_TEXTURE, _MOST_SEED = 50, 4, 100_000, 4096, 2**31 - 1

_WELCOME = {
    "picture": "<b>The views and the mesh will appear here.</b> Choose a picture or an example, look at its cut-out, "
    "and press <i>Make the mesh</i>.",
    "views": "<b>The mesh will appear here.</b> Drop the views, and press <i>Fuse the views</i>.",
}

Updates = dict[Any, Any]


@dataclass(frozen=True)
class _Bench:
    """The components of one tab that show a job."""

    start: gr.Button
    stop: gr.Button
    status: gr.HTML
    sheet: gr.Image
    mesh: gr.HTML
    notes: gr.HTML
    downloads: dict[str, gr.DownloadButton]

    @property
    def all(self) -> list[Any]:
        """Every component that a job changes."""
        shown = [self.start, self.stop, self.status, self.sheet, self.mesh, self.notes]
        return [*shown, *self.downloads.values()]


class Page:
    """The page and its handlers.

    Args:
        config: the app's settings.
        presets: the settings of each quality, by the page's name for it.
        queue: of the jobs.
        sessions: of the visitors.
    """

    def __init__(
        self, config: AppConfig, presets: dict[str, GenerateConfig], queue: JobQueue, sessions: Sessions
    ) -> None:
        self._config, self._presets, self._queue, self._sessions = config, presets, queue, sessions
        self._examples = sorted((resources.root() / "assets" / "images").glob("*.png"))
        self._standard = next(iter(presets)) if "Standard" not in presets else "Standard"

    def build(self) -> gr.Blocks:
        """The page as Gradio's blocks."""
        private: dict[str, Any] = {"api_visibility": "private", "concurrency_limit": _CUT_OUTS}
        copies = 600, round(60 * self._config.keep_minutes)  # of uploads, by Gradio: how often it looks, their age
        with gr.Blocks(title="nova3d", analytics_enabled=False, delete_cache=copies) as blocks:
            gr.HTML(
                '<header id="top"><h1>nova3d</h1><p>One picture to 16 views and a textured mesh.</p></header>',
                padding=False,
            )
            with gr.Tabs():
                with gr.Tab("Picture to mesh"):
                    self._picture_tab(private)
                with gr.Tab("Views to mesh"):
                    self._views_tab(private)
            gr.HTML(f'<footer id="limits">{self._limits()}</footer>', padding=False)
            blocks.unload(self._leave)
        return blocks

    def _limits(self) -> str:
        megapixels = self._presets[self._standard].sample.max_megapixels
        jobs = "One job runs" if self._config.workers == 1 else f"{self._config.workers} jobs run"
        return (
            f"Limits: files of {self._config.upload_mb} MB, pictures of {megapixels:g} megapixels, "
            f"{uploads.MOST_FILES} views. {jobs} at a time; others wait in the queue. "
            "Closing or reloading the page stops its job and removes its files from the server."
        )

    def _picture_tab(self, private: dict[str, Any]) -> None:
        standard = self._presets[self._standard]
        with gr.Row(elem_classes="bench"):
            with gr.Column(scale=5, min_width=320):
                gr.HTML("<h2>A picture of one object</h2>", padding=False)
                upload = gr.File(
                    show_label=False, file_types=list(images.PICTURE_SUFFIXES), height=130, elem_id="upload"
                )
                examples = gr.Gallery(
                    [str(path) for path in self._examples],
                    label="Examples",
                    show_label=False,
                    columns=len(self._examples),
                    rows=1,
                    height=108,
                    container=False,
                    object_fit="contain",
                    allow_preview=False,
                    interactive=False,
                    buttons=[],
                    elem_id="examples",
                )
                with gr.Column(visible=False, elem_id="cutout") as cutout:
                    gr.HTML("<h2>Its object</h2>", padding=False)
                    editor = gr.ImageEditor(
                        show_label=False,
                        type="pil",
                        image_mode="RGBA",
                        sources=(),
                        transforms=(),
                        layers=False,
                        format="png",
                        brush=gr.Brush(
                            default_size=24,
                            colors=[masks.ADD, masks.REMOVE],
                            default_color=masks.REMOVE,
                            color_mode="fixed",
                        ),
                        height=360,
                        buttons=[],
                        elem_id="editor",
                    )
                    about = gr.HTML(elem_classes="soft", padding=False)
                    with gr.Row():
                        refresh = gr.Button("Apply my strokes", size="sm", elem_id="strokes")
                        own_mask = gr.UploadButton(
                            "Use a mask file", file_types=list(images.IMAGE_SUFFIXES), size="sm", elem_id="mask"
                        )
                gr.HTML("<h2>The mesh</h2>", padding=False)
                quality = gr.Radio(
                    list(self._presets), value=self._standard, label="Quality", container=False, elem_id="quality"
                )
                depth_ratio = gr.Slider(
                    0,
                    MOST_DEPTH_RATIO,
                    standard.sample.depth_ratio or 0,
                    step=0.1,
                    label="Length from front to back",
                    info="In longest sides of the object in the picture; 0: unknown, the model guesses.",
                    elem_id="depth",
                )
                with gr.Accordion("More settings", open=False):
                    with gr.Row():
                        seed = gr.Number(0, label="Seed", precision=0, minimum=0, maximum=_MOST_SEED, min_width=120)
                        steps = gr.Number(
                            standard.sample.steps or 0,
                            label="Denoising steps",
                            info="0: the model's own",
                            precision=0,
                            minimum=0,
                            maximum=_MOST_STEPS,
                            min_width=120,
                        )
                    candidates = gr.Slider(
                        1,
                        _MOST_CANDIDATES,
                        1,
                        step=1,
                        label="Candidates",
                        info="Views of this many seeds are sampled; those that agree best are taken.",
                    )
                    faces, texture = self._sizes()
                start = gr.Button("Make the mesh", variant="primary", size="lg", elem_id="make")
                stop = gr.Button("Stop", variant="stop", visible=False, elem_id="stop")
            bench = self._results(start, stop, "picture")
        for component in (upload, editor, own_mask):
            self._uploads_only(component)
        shown = [cutout, editor, about]
        taken = upload.upload(self._take_picture, upload, shown, show_progress_on=upload, **private)
        # A file that was refused leaves the box, which takes the next one with one click.
        taken.failure(lambda: None, None, upload, show_progress="hidden", **private)
        upload.clear(self._drop_picture, None, shown, show_progress="hidden", **private)
        examples.select(self._take_example, None, [*shown, upload], show_progress_on=examples, **private)
        refresh.click(self._show_strokes, editor, [editor, about], show_progress_on=editor, **private)
        own_mask.upload(self._take_mask, own_mask, [editor, about], show_progress_on=editor, **private)
        quality.change(self._sizes_of, quality, [faces, texture], show_progress="hidden", **private)
        start.click(
            self._make_from_picture(bench),
            [editor, quality, depth_ratio, seed, steps, candidates, faces, texture],
            bench.all,
            show_progress="hidden",
            **private | {"concurrency_limit": None},
        )
        stop.click(self._stop, None, None, show_progress="hidden", queue=False, api_visibility="private")

    def _views_tab(self, private: dict[str, Any]) -> None:
        with gr.Row(elem_classes="bench"):
            with gr.Column(scale=5, min_width=320):
                gr.HTML("<h2>Views of one object: a zip file, or all files of a folder</h2>", padding=False)
                upload = gr.File(
                    show_label=False,
                    file_count="multiple",
                    file_types=[".zip", *uploads.VIEW_SUFFIXES],
                    height=200,
                    elem_id="views",
                )
                gr.HTML(
                    "<p class='soft'>A view folder of nova3d, a transforms.json with its pictures, or the output of "
                    f"{', '.join(name for name in layouts.LAYOUTS if name not in ('nova3d', 'transforms', 'frames'))}."
                    "</p>",
                    padding=False,
                )
                gr.HTML("<h2>The mesh</h2>", padding=False)
                quality = gr.Radio(list(self._presets), value=self._standard, label="Quality", container=False)
                with gr.Accordion("More settings", open=False):
                    with gr.Row():
                        layout = gr.Dropdown(["auto", *layouts.LAYOUTS], value="auto", label="Layout", min_width=140)
                        cameras = gr.Dropdown(
                            ["the layout's own", *PRESETS],
                            value="the layout's own",
                            label="Cameras",
                            info="for plain pictures",
                            min_width=140,
                        )
                    faces, texture = self._sizes()
                start = gr.Button("Fuse the views", variant="primary", size="lg", elem_id="fuse")
                stop = gr.Button("Stop", variant="stop", visible=False)
            bench = self._results(start, stop, "views")
        self._uploads_only(upload)
        checked = upload.upload(self._check_views, upload, None, show_progress="hidden", **private)
        checked.failure(lambda: None, None, upload, show_progress="hidden", **private)
        quality.change(self._sizes_of, quality, [faces, texture], show_progress="hidden", **private)
        start.click(
            self._make_from_views(bench),
            [upload, quality, layout, cameras, faces, texture],
            bench.all,
            show_progress="hidden",
            **private | {"concurrency_limit": None},
        )
        stop.click(self._stop, None, None, show_progress="hidden", queue=False, api_visibility="private")

    def _sizes(self) -> tuple[gr.Slider, gr.Slider]:
        fusion = self._presets[self._standard].fusion
        with gr.Row():
            faces = gr.Slider(1000, _MOST_FACES, fusion.extract.faces, step=1000, label="Faces, at most", min_width=140)
            texture = gr.Slider(
                256, _MOST_TEXTURE, fusion.texture.size, step=256, label="Texture size in pixels", min_width=140
            )
        return faces, texture

    def _sizes_of(self, quality: str) -> tuple[int, int]:
        fusion = self._presets[quality].fusion
        return fusion.extract.faces, fusion.texture.size

    def _results(self, start: gr.Button, stop: gr.Button, name: str) -> _Bench:
        with gr.Column(scale=7, min_width=320):
            status = gr.HTML(_card(_WELCOME[name]), elem_id=f"status-{name}", padding=False)
            mesh = gr.HTML(visible=False, padding=False, elem_id=f"mesh-{name}")
            with gr.Row(elem_classes="downloads"):
                downloads = {
                    label: gr.DownloadButton(label, visible=False, size="sm", min_width=110) for label in DOWNLOADS
                }
            sheet = gr.Image(
                show_label=False,
                interactive=False,
                visible=False,
                buttons=["fullscreen", "download"],
                elem_id=f"sheet-{name}",
            )
            notes = gr.HTML(visible=False, padding=False)
        return _Bench(start, stop, status, sheet, mesh, notes, downloads)

    def _take_picture(self, upload: str, request: gr.Request) -> tuple[Any, ...]:
        with self._session(request) as session:
            return self._cut_out(session, uploads.take_picture(upload, session.new_folder("picture")))

    def _take_example(self, chosen: gr.SelectData, request: gr.Request) -> tuple[Any, ...]:
        with self._session(request) as session:
            if not isinstance(chosen.index, int) or not 0 <= chosen.index < len(self._examples):
                raise InputError("there is no such example")
            copy = uploads.take_picture(self._examples[chosen.index], session.new_folder("picture"))
            return *self._cut_out(session, copy), None

    def _cut_out(self, session: Session, path: Path) -> tuple[Any, ...]:
        """Cut a picture's object out, keep both in the session in place of the earlier ones, and show them."""
        try:
            pixels = images.decode(path, max_megapixels=self._presets[self._standard].sample.max_megapixels)
            cut = images.cut_out(pixels, name=path.name)
        except InputError:
            remove(path.parent)
            raise
        mask = writable_folder(path.parent / "cut") / "mask.png"  # the picture may have this name
        images.save_image(mask, cut.mask)
        earlier, session.picture = session.picture, Picture(path, masks.shrink(pixels), mask)
        if earlier is not None and (session.job is None or session.job.ended.is_set()):
            remove(earlier.path.parent)  # a job at work reads it
        return gr.update(visible=True), _editor(session.picture), _about(cut)

    def _drop_picture(self, request: gr.Request) -> tuple[Any, ...]:
        with self._session(request) as session:
            session.picture = None
        return gr.update(visible=False), None, ""

    def _take_mask(self, upload: str, request: gr.Request) -> tuple[Any, ...]:
        with self._session(request) as session:
            picture = _picture(session)
            mask = uploads.take_picture(upload, session.new_folder("mask"))
            return self._show_mask(picture, mask)

    def _show_strokes(self, edited: dict[str, Any] | None, request: gr.Request) -> tuple[Any, ...]:
        with self._session(request) as session:
            picture = _picture(session)
            painted = _painted(picture, edited)
            return self._show_mask(picture, painted) if painted else (gr.update(), gr.update())

    def _show_mask(self, picture: Picture, mask: Path) -> tuple[Any, ...]:
        """Take a mask file as the visitor's own, and show what it cuts out."""
        limit = self._presets[self._standard].sample.max_megapixels
        cut = images.cut_out(picture.path, mask=mask, max_megapixels=limit)
        images.save_image(picture.mask, cut.mask)
        picture.edited = True
        return _editor(picture), _about(cut)

    def _make_from_picture(self, bench: _Bench) -> Callable[..., AsyncIterator[Updates]]:
        async def make(
            edited: dict[str, Any] | None,
            quality: str,
            depth_ratio: float,
            seed: int,
            steps: int,
            candidates: int,
            faces: int,
            texture: int,
            request: gr.Request,
        ) -> AsyncIterator[Updates]:
            with self._session(request) as session:
                picture = _picture(session)
                painted = await asyncio.to_thread(_painted, picture, edited)
                preset = self._presets[quality]
                sample = replace(
                    preset.sample,
                    image=str(picture.path),
                    mask=str(painted or picture.mask) if painted or picture.edited else None,
                    depth_ratio=depth_ratio or None,
                    seed=seed,
                    seeds=[seed + i for i in range(candidates)] if candidates > 1 else [],
                    steps=steps or None,
                )
                settings = replace(_sized(preset, faces, texture), sample=sample)
                job = self._sessions.submit(session, PictureTask(settings, session.new_folder("result")))
            async for update in self._follow(job, bench, "picture"):
                yield update

        return make

    def _check_views(self, files: list[str], request: gr.Request) -> None:
        """Refuse uploads that cannot be views as soon as they are there."""
        with self._session(request) as session:
            folder = session.new_folder("check")
            try:
                uploads.take_views(files, folder, self._config.upload_mb * 1_000_000)
            finally:
                remove(folder)

    def _make_from_views(self, bench: _Bench) -> Callable[..., AsyncIterator[Updates]]:
        async def make(
            files: list[str] | None,
            quality: str,
            layout: str,
            cameras: str,
            faces: int,
            texture: int,
            request: gr.Request,
        ) -> AsyncIterator[Updates]:
            with self._session(request) as session:
                if not files:
                    raise InputError("drop the views first")
                out = session.new_folder("result")
                most_bytes = self._config.upload_mb * 1_000_000
                views = await asyncio.to_thread(uploads.take_views, files, out / "given", most_bytes)
                assume = layouts.Assume(cameras=cameras if cameras in PRESETS else None)
                fusion = _sized(self._presets[quality], faces, texture).fusion
                job = self._sessions.submit(session, ViewsTask(views, out, fusion, layout, assume))
            async for update in self._follow(job, bench, "views"):
                yield update

        return make

    async def _follow(self, job: Job, bench: _Bench, kind: str) -> AsyncIterator[Updates]:
        """What the page shows while a job waits and runs, and after its end."""
        hidden = gr.update(visible=False, value=None)
        yield {
            bench.start: gr.update(interactive=False),
            bench.stop: gr.update(visible=True),
            bench.mesh: hidden,
            bench.sheet: hidden,
            bench.notes: gr.update(visible=False),
            **{button: gr.update(visible=False) for button in bench.downloads.values()},
        }
        shown, sheet = "", None
        while not job.ended.is_set():
            update: Updates = {}
            if (words := _words(job, self._queue.ahead(job), kind)) != shown:
                update[bench.status] = shown = words
            if job.sheet != sheet:
                sheet = job.sheet
                update[bench.sheet] = gr.update(value=str(sheet), visible=True)
            if update:
                yield update
            await asyncio.sleep(_POLL_SECONDS)
        last: Updates = {
            bench.start: gr.update(interactive=True),
            bench.stop: gr.update(visible=False),
            bench.status: _words(job, 0, kind),
        }
        if job.result is not None:
            notes = "".join(f"<li>{html.escape(note)}</li>" for note in job.result.notes)
            last |= {
                bench.mesh: gr.update(value=_viewer(job), visible=True),
                bench.sheet: gr.update(value=str(job.sheet), visible=True),
                bench.notes: gr.update(value=f"<ul class='notes'>{notes}</ul>", visible=True),
            }
            for label, path in job.result.downloads.items():
                last[bench.downloads[label]] = gr.update(value=str(path), visible=True)
        yield last

    def _stop(self, request: gr.Request) -> None:
        with self._session(request) as session:
            self._sessions.stop(session)

    def _leave(self, request: gr.Request) -> None:
        self._sessions.end(str(request.session_hash))

    def _uploads_only(self, component: Any) -> Any:
        """Have a component take files that were uploaded here, and no other path or URL of a request."""
        store = component.async_move_resource_to_block_cache

        async def checked(path: str | Path | None) -> str | None:
            if path is not None and not Path(path).resolve().is_relative_to(Path(component.GRADIO_CACHE).resolve()):
                raise gr.Error("Only files that were uploaded here are read.", print_exception=False)
            return await store(path)

        component.async_move_resource_to_block_cache = checked
        return component

    @contextmanager
    def _session(self, request: gr.Request) -> Iterator[Session]:
        """The session of a request; an InputError of the block becomes a message on the page, without paths."""
        session = None
        try:
            session = self._sessions.get(str(request.session_hash))
            yield session
        except InputError as error:
            text = " ".join(str(error).split())
            if session is not None:
                text = re.sub(re.escape(f"{session.folder}/") + r"[\w-]+/", "", text)
            raise gr.Error(html.escape(text), title="This does not work", duration=20, print_exception=False) from None


def _picture(session: Session) -> Picture:
    if session.picture is None:
        raise InputError("choose a picture first")
    return session.picture


def _painted(picture: Picture, edited: dict[str, Any] | None) -> Path | None:
    """A new file with the picture's mask after the brush's strokes; None where there are none."""
    with Image.open(picture.mask) as mask:
        painted = masks.with_strokes(mask, [layer for layer in (edited or {}).get("layers", ()) if layer])
    if painted is None:
        return None
    path = picture.mask.with_name(f"painted-{secrets.token_hex(4)}.png")
    painted.save(path)
    return path


def _sized(preset: GenerateConfig, faces: int, texture: int) -> GenerateConfig:
    fusion = replace(
        preset.fusion,
        extract=replace(preset.fusion.extract, faces=int(faces)),
        texture=replace(preset.fusion.texture, size=int(texture)),
    )
    return replace(preset, fusion=fusion)


def _editor(picture: Picture) -> dict[str, Any]:
    with Image.open(picture.mask) as mask:
        shown = masks.preview(picture.shown, mask.convert("L"))
    return {"background": shown, "layers": [], "composite": None}


def _about(cut: images.CutOut) -> str:
    share = float((cut.mask > 127).float().mean())
    words = {
        "alpha": "The picture's own transparency cuts it out",
        "plain": "The plain background is cut away",
        "model": "A network (U-2-Net) found it",
        "mask": "Your mask cuts it out",
    }
    warnings = "".join(f"<br>⚠ {html.escape(warning)}" for warning in cut.warnings)
    return (
        f"<p>{words[cut.method]}: {100 * share:.0f} % of the picture. Wrong? Paint red over what is not the object, "
        f"green over what is.{warnings}</p>"
    )


def _card(text: str, share: float | None = None, kind: str = "") -> str:
    bar = "" if share is None else f'<progress max="1" value="{share:.3f}"></progress>'
    return f'<div class="status {kind}" role="status" aria-live="polite"><p>{text}</p>{bar}</div>'


def _viewer(job: Job) -> str:
    """The report's 3D view as HTML, in a frame that can reach nothing of the page."""
    address = f"report/{job.token}"
    return (
        f'<iframe src="{address}?stage=1" title="the mesh in 3D" sandbox="allow-scripts allow-downloads"></iframe>'
        f'<p class="soft"><a href="{address}" target="_blank" rel="noopener">Open the full report</a> with views '
        "beside the mesh, conflict maps, health and timings.</p>"
    )


def _words(job: Job, ahead: int, kind: str) -> str:
    """The state of a job in words, as HTML."""
    match job.state:
        case "waiting":
            before = "1 job is before yours" if ahead == 1 else f"{ahead} jobs are before yours"
            return _card(f"<b>In the queue.</b> {before if ahead else 'Yours is next'}.", 0)
        case "failed":
            return _card(f"<b>This did not work.</b> {html.escape(job.error)}", kind="failed")
        case "stopped":
            return _card("<b>Stopped.</b> Nothing was kept.")
        case "done":
            return _card(f"<b>Done</b> in {_minutes(job.seconds)}.", kind="done")
    so_far = f" <span>{_minutes(job.seconds)}</span>"
    if job.stage is None and job.sheet is None:
        return _card(f"<b>Starting.</b> The model is being loaded.{so_far}", 0)
    parts = 1 if kind == "views" else 2
    if job.stage is None:
        return _card(f"<b>Part {parts} of {parts}: the mesh.</b> Carving the first shape.{so_far}", 0)
    done, total, stage = job.stage
    share = done / max(total, 1)
    if stage == "sampling" and job.sheet is None:
        doing = f"Step {done + 1} of {total}" if done < total else "Decoding the pictures"
        return _card(f"<b>Part 1 of 2: the views.</b> {doing}.{so_far}", share)
    if stage == "sampling":
        return _card(f"<b>Part 2 of 2: the mesh.</b> Carving the first shape.{so_far}", 0)
    if stage == "done":
        return _card(f"<b>Part {parts} of {parts}: the mesh.</b> Writing the turntable and the report.{so_far}", 1)
    left = re.search(r"(\d+) s left", stage)
    doing = f"Fitting the surface, {left[1]} s left" if left else html.escape(stage.capitalize())
    return _card(f"<b>Part {parts} of {parts}: the mesh.</b> {doing}.{so_far}", share)


def _minutes(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d} min"

"""The app's server: uvicorn, with headers that keep browsers from fetching anything elsewhere."""

import logging
import os
import socket
import tempfile
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from nova3d import config as configs
from nova3d import images
from nova3d.app.config import QUALITIES, AppConfig
from nova3d.errors import InputError, system_reason
from nova3d.sampling import load_pipeline
from nova3d.settings import GenerateConfig, SampleConfig
from nova3d.utils import compat, resources

if TYPE_CHECKING:
    from nova3d.pipeline import Nova3DPipeline

log = logging.getLogger(__name__)

Message = MutableMapping[str, Any]
_REQUEST_BYTES = 16_000_000  # of a request that is no upload
_LOOPBACK = ("127.0.0.1", "localhost", "::1")
_POLICY = (  # Gradio's page needs inline scripts and eval; nothing comes from another host
    "default-src 'self' data: blob:; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; "
    "style-src 'self' 'unsafe-inline'; connect-src 'self' data: blob:; frame-ancestors 'self'; base-uri 'self'; "
    "form-action 'self'"
)
# A report runs as a page of no host, and the app shows its 3D view alone.
_REPORT_POLICY = "sandbox allow-scripts allow-downloads; frame-ancestors 'self'"
_STAGE = """<style>body { background: none } main { padding: 0; max-width: none } .bench { display: block; margin: 0 }
main > :not(.bench), .bench > :not(.view3d) { display: none } .stage { width: min(100%, calc(100vh - 6.5rem)) }
</style>"""
_HEADERS = {
    "content-security-policy": _POLICY,
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}


def presets(config: AppConfig) -> dict[str, GenerateConfig]:
    """The settings of each quality, by the page's name for it, with the app's model in them."""
    settings = {}
    for name, shipped in QUALITIES.items():
        preset = configs.load(GenerateConfig, resources.find(shipped, "config", "generate"))
        model = config.model or preset.sample.model
        found = resources.locate(model, "model")
        settings[name] = replace(preset, sample=replace(preset.sample, model=str(found or model)))
    return settings


@contextmanager
def application(
    config: AppConfig, device: str = "cpu", qualities: dict[str, GenerateConfig] | None = None
) -> Iterator[Any]:
    """The app for an ASGI server. When the block ends, its workers have ended and its files are gone.

    Args:
        config: the app's settings; `host` and `port` are the server's.
        device: where the workers compute.
        qualities: the settings of each quality. None: those of `presets`.

    Yields:
        The ASGI application.

    Raises:
        InputError: where Gradio is not installed.
    """
    qualities = qualities or presets(config)
    with tempfile.TemporaryDirectory(prefix="nova3d-app-", ignore_cleanup_errors=True) as folder:
        os.environ |= {"GRADIO_TEMP_DIR": folder, "GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_DISABLE_TELEMETRY": "1"}
        try:
            import fastapi
            import gradio
            from starlette.middleware.trustedhost import TrustedHostMiddleware
            from starlette.responses import Response
        except ImportError as error:
            raise InputError(f"the app needs Gradio ({error.name} is missing): pip install 'nova3d[app]'") from error
        from PIL import Image

        from nova3d.app.jobs import JobQueue
        from nova3d.app.page import CSS, THEME, Page
        from nova3d.app.sessions import Sessions

        # Gradio itself opens what its editor sends. Pillow refuses twice this number of pixels before it decodes.
        Image.MAX_IMAGE_PIXELS = round(images.MAX_MEGAPIXELS * 1e6 / 2)
        sampling = next(iter(qualities.values())).sample
        queue = JobQueue(partial(_load_in_worker, sampling, device), device, config.workers, config.waiting)
        try:
            sessions = Sessions(folder, queue, 60 * config.keep_minutes)
            server = fastapi.FastAPI(docs_url=None, redoc_url=None, openapi_url=None)

            @server.get("/report/{token}")
            def report(token: str, stage: bool = False) -> Response:
                path = sessions.report(token)
                if path is None or not path.is_file():
                    return Response("This report is gone: its page was closed.", 404, media_type="text/plain")
                text = path.read_text(encoding="utf-8")
                text = text.replace("</head>", f"{_STAGE}</head>", 1) if stage else text
                return Response(text, headers={"content-security-policy": _REPORT_POLICY}, media_type="text/html")

            blocks = Page(config, qualities, queue, sessions).build()
            gradio.mount_gradio_app(
                server,
                blocks,
                path="/",
                footer_links=[],
                run_history=False,
                show_error=True,
                max_file_size=config.upload_mb * 1_000_000,
                ssr_mode=False,
                enable_monitoring=False,
                pwa=False,
                mcp_server=False,
                theme=THEME,
                css=CSS,
            )
            blocks.has_launched = True  # only then Gradio checks that a request's files were uploaded
            if config.host in _LOOPBACK:  # a page elsewhere cannot reach the app by a name of its own
                server.add_middleware(TrustedHostMiddleware, allowed_hosts=[*_LOOPBACK, *config.trusted_hosts])
            yield _Guard(server)
        finally:
            queue.close()


def _load_in_worker(sampling: SampleConfig, device: str) -> "Nova3DPipeline":
    """The model, without diffusers' bars: they take a semaphore, which Python reports as leaked by a killed worker."""
    compat.ensure_torchvision()
    from diffusers.utils.logging import disable_progress_bar

    disable_progress_bar()
    return load_pipeline(sampling, device)


class _Guard:
    """Headers for every answer; large requests that are no uploads and fetches of other hosts are refused."""

    def __init__(self, app: Callable[..., Awaitable[None]]):
        self._app = app

    async def __call__(self, scope: Message, receive: Any, send: Callable[[Message], Awaitable[None]]) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                given = {name.lower() for name, _ in message.get("headers", ())}
                own = [(name.encode(), value.encode()) for name, value in _HEADERS.items()]
                message["headers"] = [*message.get("headers", ()), *(pair for pair in own if pair[0] not in given)]
            await send(message)

        if (status := self._refusal(scope)) is None:
            await self._app(scope, receive, send_with_headers)
            return
        await send_with_headers({"type": "http.response.start", "status": status, "headers": []})
        await send({"type": "http.response.body", "body": b"refused"})

    @staticmethod
    def _refusal(scope: Message) -> int | None:
        """The status by which a request is refused, None for one that is let through."""
        path = scope["path"]
        if "file=http" in path or "/proxy=" in path:
            return 403
        if scope["method"] == "POST" and not path.endswith("/upload"):
            length = dict(scope["headers"]).get(b"content-length", b"")
            if not length.isdigit():
                return 411
            if int(length) > _REQUEST_BYTES:
                return 413
        return None


def serve(config: AppConfig, device: str, tell: Callable[[str], None]) -> None:
    """Run the app until the process is told to end.

    Args:
        config: the app's settings.
        device: where the workers compute.
        tell: called with the app's address, once it can be opened.

    Raises:
        InputError: where Gradio is not installed or the port cannot be had.
    """
    with application(config, device) as app, listening(config.host, config.port) as listener:
        import uvicorn

        shown = f"[{config.host}]" if ":" in config.host else config.host
        tell(f"http://{shown}:{listener.getsockname()[1]}")
        if config.host not in _LOOPBACK:
            log.warning("whoever can reach this machine on the network can use the app")
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=1))
        # Open pages hold connections, whose end at Ctrl-C is no error.
        logging.getLogger("uvicorn.error").addFilter(lambda record: not server.should_exit)
        server.run(sockets=[listener])


@contextmanager
def listening(host: str, port: int) -> Iterator[socket.socket]:
    """A socket that listens, closed when the block ends.

    Args:
        host: the address.
        port: the port; 0 takes a free one.

    Yields:
        The socket.

    Raises:
        InputError: where the port cannot be had.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.create_server((host, port), family=family)
    except OSError as error:
        raise InputError(
            f"cannot listen on {host} port {port}: {system_reason(error)}; choose another by --port"
        ) from error
    with listener:
        yield listener

"""The verb app: a page in the browser that makes meshes from pictures and from views."""

from collections.abc import Sequence

from nova3d.cli import common


def app_parser() -> common.Parser:
    """The arguments of `app`."""
    arguments = common.parser(
        "A page in the browser: a picture, or views, to a mesh that can be turned and downloaded. It is for this "
        "machine alone unless --host says otherwise; docs/app.md says how to serve it to others.",
        "nova3d app --port 8000",
    )
    common.add_config(arguments, None, "nova3d.app.config:AppConfig", "app")
    common.add_flag(arguments, "--host", "host", "the address to listen on; 127.0.0.1, the default: this machine alone")
    common.add_flag(arguments, "--port", "port", "7860 by default; 0: a free one", type=int, metavar="N")
    common.add_flag(arguments, "--model", "model", "a model folder, a shipped model or a hub id")
    common.add_device(arguments)
    return arguments


def app(argv: Sequence[str] | None = None) -> None:
    """A page in the browser: a picture, or views, to a mesh that can be turned and downloaded."""
    options = app_parser().parse(argv)

    from nova3d.app.config import AppConfig

    settings = common.load_config(AppConfig, "app", options)

    from nova3d.app.server import serve

    serve(settings, common.pick_device(options.device), _tell)


def _tell(address: str) -> None:
    print(f"the app is at {address} (Ctrl-C ends it)", flush=True)

"""The registry of layouts.

A layout of your own is a file that adds itself to LAYOUTS, and a line in `nova3d/layouts/__init__.py` that imports it:
docs/how-to/extending.md has a complete example.
"""

from nova3d.layouts import published, sheets, transforms
from nova3d.layouts.base import Layout

# Every layout by its name, in the order in which `detect` tries them.
LAYOUTS: dict[str, Layout] = {
    "nova3d": Layout(transforms.is_nova3d, transforms.read_nova3d),
    "transforms": Layout(transforms.is_transforms, transforms.read_transforms_views),
    "wonder3d": Layout(published.is_wonder3d, published.read_wonder3d),
    "envision3d": Layout(published.is_envision3d, published.read_envision3d),
    "syncdreamer": Layout(published.is_syncdreamer, published.read_syncdreamer),
    "era3d": Layout(published.is_era3d, published.read_era3d),
    "mv_adapter": Layout(sheets.is_mv_adapter, sheets.read_mv_adapter),
    "ouroboros3d": Layout(sheets.is_ouroboros3d, sheets.read_ouroboros3d),
    "kiss3dgen": Layout(sheets.is_kiss3dgen, sheets.read_kiss3dgen),
    "sv3d": Layout(published.is_sv3d, published.read_sv3d),
    "v3d": Layout(published.is_v3d, published.read_v3d),
    "frames": Layout(None, published.read_frames),  # pictures alone say nothing of cameras
}

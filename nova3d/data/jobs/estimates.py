"""What a job will cost, before it starts: disk and hours from measured objects. Estimates, good to a factor of two."""

from nova3d.rendering.engine import EngineConfig

# PNG bytes of one RGBA and one normal view of textured scans: at 128 pixels 12.1 KB (mean of 30 objects of Google
# Scanned Objects), at 256 pixels 33 to 37 KB. Flat-coloured low-poly objects take a third.
_BYTES_PER_VIEW = 36_000
_BYTES_AT = 256
_BYTES_POWER = 1.55  # not 2: edges grow with the side, surfaces with its square

# CPU seconds on one core of a shared machine. Raster: 2x2 supersampled 128 and 256 pixels, 62 low-poly and 30
# scanned objects; encoding and filters included.
_RASTER_OBJECT = 0.05
_RASTER_PIXEL = 0.30e-6
_RASTER_SAMPLE = 0.58e-6
# Cycles on a CPU with OIDN (fast): fit of four objects at 16, 32 and 64 samples, 256 pixels: 10.8, 18.3 and 33.8 s for
# 16 views. Real assets with many materials take twice as long.
_CYCLES_VIEW = 0.10
_CYCLES_PIXEL = 0.097 / 256**2
_CYCLES_SAMPLE = 0.0299 / 256**2
_REAL_ASSETS = 2.0
# Cycles on a GPU: SyncDreamer reports 800,000 objects of 16 views in 2 weeks on 8 V100.
_CYCLES_GPU_VIEW = 12.1 / 16

_MEASURED = "from measured CPU seconds"
_PUBLISHED = "from a published figure for a V100, not measured"


def estimate(objects: int, views: int, size: int, engine: EngineConfig) -> dict[str, float | str]:
    """views in all; bytes of the encoded objects; hours of one core, or of one GPU where the engine runs on one; basis:
    where the hours come from. An engine that is not built in has no hours."""
    bytes_per_view = _BYTES_PER_VIEW * (size / _BYTES_AT) ** _BYTES_POWER
    known = _seconds_per_object(views, size**2, engine)
    cost: dict[str, float | str] = {"views": objects * views, "bytes": round(objects * views * bytes_per_view)}
    if known is not None:
        seconds, basis = known
        cost |= {"hours": round(objects * seconds / 3600, 3), "basis": basis}
    return cost


def _seconds_per_object(views: int, pixels: int, engine: EngineConfig) -> tuple[float, str] | None:
    if engine.name == "raster" and engine.device == "cpu":
        per_view = pixels * (_RASTER_PIXEL + _RASTER_SAMPLE * engine.supersample**2)
        return _RASTER_OBJECT + views * per_view, _MEASURED
    if engine.name == "blender" and engine.device == "cpu":
        per_view = _CYCLES_VIEW + pixels * (_CYCLES_PIXEL + _CYCLES_SAMPLE * engine.samples)
        return _REAL_ASSETS * views * per_view, _MEASURED
    if engine.name == "blender":
        return views * _CYCLES_GPU_VIEW, _PUBLISHED
    return None

"""What the modules of the Blender worker share: the error that the client is sent, the frame of the world."""

from mathutils import Matrix

TO_BLENDER = Matrix(((1, 0, 0, 0), (0, 0, -1, 0), (0, 1, 0, 0), (0, 0, 0, 1)))  # glTF's x, y, z -> x, -z, y


class Fault(Exception):
    """An object that cannot be rendered; `reason` is one of nova3d's reason codes."""

    def __init__(self, reason: str, message: str):
        super().__init__(message)
        self.reason = reason


def reason_of(error: Exception) -> str:
    text = str(error).lower()
    if isinstance(error, MemoryError) or "out of memory" in text or "out of gpu memory" in text:
        return "out_of_memory"
    return "device" if any(word in text for word in ("cuda", "optix")) else "crash"


def last_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[-1] if lines else ''}"

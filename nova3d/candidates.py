"""Choice among several view sets of one picture, by how well each agrees with itself and with the picture."""

from collections.abc import Sequence

from nova3d.hull import carve, grid_points
from nova3d.metrics import mask_iou
from nova3d.views import ViewSet
from nova3d.volume import silhouettes_of

_NODES = 64  # along each axis of the grid in which the hull is carved
_RADIUS = 0.6  # half the side of its box: objects are 1 long


def agreement(views: ViewSet, task_iou: Sequence[float]) -> float:
    """How well views agree with one another and with the picture: the mean of two figures.

    - How far colours and normals of each view show one outline, `task_iou`, on average.
    - How well the masks of all views fit one solid, `silhouette_agreement`.

    Args:
        views: v views, the first of which shows the picture.
        task_iou: of each view, as the pipeline gives it (`nova3d.metrics.task_iou`).

    Returns:
        A score in [0,1].
    """
    return (sum(task_iou) / len(task_iou) + silhouette_agreement(views)) / 2


def silhouette_agreement(views: ViewSet) -> float:
    """How well the silhouettes of views fit one solid.

    The visual hull of all masks is carved. Each view's mask is compared with the hull's silhouette in that view: what
    another view contradicts is missing there. View 0, the picture, counts as much as all other views together.

    Args:
        views: v views, the first of which shows the picture.

    Returns:
        A score in [0,1], the mean of the IoU in view 0 and the mean IoU in the other views; 1 for views of one solid,
        up to the grid.
    """
    solid = carve(grid_points(_NODES, _RADIUS), views.mask, views.cameras).reshape(_NODES, _NODES, _NODES)
    iou = mask_iou(silhouettes_of(solid, views.cameras, _RADIUS), views.mask)
    return float(iou[0] + iou[1:].mean()) / 2 if len(iou) > 1 else float(iou[0])

"""SVD's temporal decoder in pieces: the same function of all views of a video, in less memory.

Cutting a video into chunks of views and decoding each by itself is another function: the decoder's temporal layers see
neighbouring views, and their group normalisations take statistics over all of them. Here the decoder runs layer by
layer over ALL views instead, and only a layer's work is cut, along the axes that do not mix in it:
    spatial layers:  groups of views; inside a group strips of rows, with one row more on each side for 3x3 kernels
    temporal layers: strips of rows of all views
Statistics of a normalisation are merged over the pieces. Between layers lives one feature map per view, freed when its
successor exists; spatial layers that follow one another are run together, so that the widest maps, between upsampling
and the next residual block, are never held for all views. Temporal layers work in place.
Axes: v view, n views of a group, c channels, h w pixels, r rows of a strip, g groups of a normalisation.
"""

from collections.abc import Callable, Iterable, Iterator

import torch
from diffusers.models.autoencoders.autoencoder_kl_temporal_decoder import TemporalDecoder
from diffusers.models.resnet import ResnetBlock2D, SpatioTemporalResBlock
from diffusers.models.upsampling import Upsample2D
from torch import Tensor, nn

from nova3d.errors import InputError
from nova3d.models.guided_decoder import guide_features

Layer = Callable[[Tensor, slice], Tensor]  # of the pictures of some views, and which views they are


@torch.no_grad()
def decode_in_pieces(
    decoder: TemporalDecoder,
    latents: Tensor,
    views: int | None = None,
    rows: int | None = None,
    guide: Tensor | None = None,
) -> Tensor:
    """One video's latents [v,4,h,w], not scaled, to pictures [v,3,H,W]: `decoder(latents, zeros, v)` to rounding.

    guide: guide pictures [v,g,H,W] for a guided decoder (nova3d.models.guided_decoder), else None.
    views: pictures in a piece, None for all; rows: rows of each, at every resolution, None for whole pictures. A
    temporal layer's piece holds as many pixels, of all views. Raises InputError where the weights are elsewhere
    (sequential offload hands them only to whole layers).
    """
    if any(p.is_meta for p in decoder.parameters()):
        raise InputError("decoding in pieces needs the decoder's weights: use model offload, not sequential offload")
    count = len(latents)
    group = min(views or count, count)
    frames = list(latents.unbind())  # one [c,h,w] per view
    spatial: list[Layer] = []
    for layer in _layers(decoder, guide):
        if isinstance(layer, SpatioTemporalResBlock):
            _run_spatial(frames, [*spatial, _residual(layer.spatial_res_block, rows)], group)
            height = frames[0].shape[-2]
            _run_temporal(frames, layer, max(1, min(rows or height, height) * group // count))
            spatial = []
        elif isinstance(layer, nn.Conv2d | Upsample2D):
            spatial.append(_any_views(_by_rows(layer, rows)))
        elif isinstance(layer, nn.Module):  # attention over a whole picture, at the latents' resolution
            spatial.append(_any_views(layer))
        else:
            spatial.append(layer)
    _run_spatial(frames, [*spatial, _output(decoder, rows)], group)
    return decoder.time_conv_out(torch.stack(frames, dim=1)[None])[0].transpose(0, 1)


def _layers(decoder: TemporalDecoder, guide: Tensor | None) -> Iterator[nn.Module | Layer]:
    """The decoder's layers up to its output, in the order of its forward."""
    mid = decoder.mid_block
    yield from (decoder.conv_in, mid.resnets[0])
    for attention, resnet in zip(mid.attentions, mid.resnets[1:], strict=False):  # a single resnet has no attention
        yield from (attention, resnet)
    for index, block in enumerate(decoder.up_blocks):
        yield from block.resnets
        yield from block.upsamplers or ()
        if guide is not None:
            yield _guide_layer(decoder.guides[index], guide)


def _guide_layer(conv: nn.Module, guide: Tensor) -> Layer:
    def run(x: Tensor, which: slice) -> Tensor:
        return x + guide_features(conv, guide[which], x)

    return run


def _any_views(layer: Callable[[Tensor], Tensor]) -> Layer:
    return lambda x, _: layer(x)


def _run_spatial(frames: list[Tensor], layers: list[Layer], group: int) -> None:
    """Replace `frames` by what `layers` make of them, `group` views at a time."""
    done: list[Tensor] = []
    while frames:
        x = torch.stack(frames[:group])
        del frames[:group]
        which = slice(len(done), len(done) + len(x))
        for layer in layers:
            x = layer(x, which)
        done += x.unbind()
    frames += done


def _run_temporal(frames: list[Tensor], block: SpatioTemporalResBlock, rows: int) -> None:
    """The temporal residual block and its blending, in place. Its first convolution is computed twice, for the second
    normalisation's statistics and for the result: 3 of its kernel's taps against holding one more map of all views."""
    layer, height = block.temporal_res_block, frames[0].shape[-2]
    strips = [slice(top, top + rows) for top in range(0, height, rows)]
    first = Normaliser(layer.norm1).measure(frame[None] for frame in frames)

    def gather(strip: slice) -> Tensor:  # [1,c,v,r,w]
        return torch.stack([frame[:, strip] for frame in frames], dim=1)[None]

    def hidden(x: Tensor) -> Tensor:
        return layer.conv1(layer.nonlinearity(first(x)))

    second = Normaliser(layer.norm2).measure(hidden(gather(strip)) for strip in strips)
    for strip in strips:
        x = gather(strip)
        y = x + layer.conv2(layer.nonlinearity(second(hidden(x))))
        mixed = block.time_mixer(x_spatial=x, x_temporal=y, image_only_indicator=x.new_zeros(1, len(frames)))
        for frame, result in zip(frames, mixed[0].unbind(1), strict=True):
            frame[:, strip] = result


def _residual(block: ResnetBlock2D, rows: int | None) -> Layer:
    def run(x: Tensor, _: slice) -> Tensor:
        if not rows:
            return block(x, None)
        first = Normaliser(block.norm1).measure(x.split(rows, dim=-2))
        y = _by_rows(lambda strip: block.conv1(block.nonlinearity(first(strip))), rows)(x)
        second = Normaliser(block.norm2).measure(y.split(rows, dim=-2))
        y = _by_rows(lambda strip: block.conv2(block.nonlinearity(second(strip))), rows)(y)
        y += x if block.conv_shortcut is None else _by_rows(block.conv_shortcut, rows)(x)
        return y.div_(block.output_scale_factor)

    return run


def _output(decoder: TemporalDecoder, rows: int | None) -> Layer:
    def run(x: Tensor, _: slice) -> Tensor:
        norm = Normaliser(decoder.conv_norm_out).measure(x.split(rows or x.shape[-2], dim=-2))
        return _by_rows(lambda strip: decoder.conv_out(decoder.conv_act(norm(strip))), rows)(x)

    return run


def _by_rows(layer: Callable[[Tensor], Tensor], rows: int | None) -> Callable[[Tensor], Tensor]:
    """`layer` (kernel 3 at most, perhaps after upsampling) on strips of `rows` rows of [n,c,h,w], None for all at once.

    A strip carries one row more on each side that it has; what the layer makes of those rows saw zero padding where
    there is a picture, and is cut off.
    """

    def run(x: Tensor) -> Tensor:
        height = x.shape[-2]
        if not rows or rows >= height:
            return layer(x)
        out = x.new_empty(0)
        for top in range(0, height, rows):
            bottom = min(top + rows, height)
            low, high = max(top - 1, 0), min(bottom + 1, height)
            y = layer(x[..., low:high, :])
            scale = y.shape[-2] // (high - low)
            if top == 0:
                out = y.new_empty(*y.shape[:2], height * scale, y.shape[-1])
            out[..., top * scale : bottom * scale, :] = y[..., (top - low) * scale : (bottom - low) * scale, :]
        return out

    return run


class Normaliser:
    """A GroupNorm whose statistics are taken over parts: `measure` all parts of [n,c,...], then call it on any of them.

    Parts are merged as (count, mean, sum of squared deviations) (Chan, Golub, LeVeque 1979), in float32 or
    better: one pass over each part and no difference of large sums.
    """

    def __init__(self, norm: nn.GroupNorm):
        self.norm = norm

    def measure(self, parts: Iterable[Tensor]) -> "Normaliser":
        count = 0
        mean = squares = torch.zeros(())
        for part in parts:
            grouped = _at_least_float(part).reshape(len(part), self.norm.num_groups, -1)
            more = grouped.shape[-1]
            variance, centre = torch.var_mean(grouped, dim=-1, correction=0)
            if count == 0:
                mean, squares = centre, variance * more
            else:
                apart, total = centre - mean, count + more
                mean = mean + apart * (more / total)
                squares = squares + variance * more + apart**2 * (count * more / total)
            count += more
        per_channel = self.norm.num_channels // self.norm.num_groups
        scale = (squares / count + self.norm.eps).rsqrt().repeat_interleave(per_channel, dim=1)
        self.scale = scale * _at_least_float(self.norm.weight)
        self.shift = _at_least_float(self.norm.bias) - mean.repeat_interleave(per_channel, dim=1) * self.scale
        return self

    def __call__(self, x: Tensor) -> Tensor:
        shape = (*self.scale.shape, *[1] * (x.dim() - 2))
        return torch.addcmul(self.shift.reshape(shape), _at_least_float(x), self.scale.reshape(shape)).to(x.dtype)


def _at_least_float(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))

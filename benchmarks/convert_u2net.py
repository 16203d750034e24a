"""Convert the published ONNX file of U-2-Net small to assets/u2netp/u2netp.safetensors, and compare both.

Needs `pip install onnx onnxruntime`, which the project itself does not. The file is `u2netp.onnx` of SHA-256
309c8469258dda742793dce0ebea8e6dd393174f89934733ecc8b14c76f4ddd8, with batch norms folded in.

    python benchmarks/convert_u2net.py u2netp.onnx assets/u2netp
"""

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from nova3d.images.u2net import INPUT_SIDE, U2Net
from nova3d.utils import provenance
from nova3d.utils.files import write_text

SOURCE_SHA256 = "309c8469258dda742793dce0ebea8e6dd393174f89934733ecc8b14c76f4ddd8"


def convolutions_in_order(network: U2Net) -> list[torch.nn.Conv2d]:
    """The network's convolutions in the order in which they run; the side maps come last, the finest first."""
    order: list[torch.nn.Conv2d] = []
    hooks = [
        module.register_forward_hook(lambda module, *_: order.append(module))
        for module in network.modules()
        if isinstance(module, torch.nn.Conv2d)
    ]
    network(torch.zeros(1, 3, INPUT_SIDE, INPUT_SIDE))
    for hook in hooks:
        hook.remove()
    return order


def main() -> None:
    """Convert, write, and print the largest difference to the ONNX file over random pictures."""
    import onnx
    import onnxruntime
    from onnx import numpy_helper

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("onnx", type=Path)
    parser.add_argument("folder", type=Path)
    options = parser.parse_args()
    if (found := provenance.hash_file(options.onnx)) != SOURCE_SHA256:
        raise SystemExit(f"'{options.onnx}' has the SHA-256 {found}, not {SOURCE_SHA256}")
    graph = onnx.load(options.onnx).graph
    arrays = {item.name: torch.from_numpy(numpy_helper.to_array(item).copy()) for item in graph.initializer}
    nodes = [node for node in graph.node if node.op_type == "Conv"]
    network = U2Net().eval()
    with torch.no_grad():
        for module, node in zip(convolutions_in_order(network), nodes, strict=True):
            weight, bias = arrays[node.input[1]], arrays[node.input[2]]
            if weight.shape != module.weight.shape:
                raise SystemExit(f"{node.name}: {tuple(weight.shape)} does not fit {tuple(module.weight.shape)}")
            module.weight.copy_(weight)
            module.bias.copy_(bias)  # type: ignore[union-attr]
    path = options.folder / "u2netp.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({k: v.half().contiguous() for k, v in network.state_dict().items()}, path, metadata={"format": "pt"})
    write_text(options.folder / "SHA256SUMS", f"{provenance.hash_file(path)}  {path.name}\n")

    half = U2Net().eval()
    half.load_state_dict({k: v.float() for k, v in load_file(path).items()})
    session = onnxruntime.InferenceSession(str(options.onnx), providers=["CPUExecutionProvider"])
    generator = np.random.default_rng(0)
    for _ in range(3):
        x = generator.normal(size=(1, 3, 10, 10)).astype(np.float32).repeat(32, 2).repeat(32, 3)
        x += 0.3 * generator.normal(size=x.shape).astype(np.float32)
        truth = session.run(None, {session.get_inputs()[0].name: x})[0]
        with torch.no_grad():
            started = time.process_time()
            full, halved = network(torch.from_numpy(x)).numpy(), half(torch.from_numpy(x)).numpy()
            seconds = (time.process_time() - started) / 2
        differences = [float(np.abs(y - truth).max()) for y in (full, halved)]
        print(
            f"largest difference: float32 {differences[0]:.1e}, float16 weights {differences[1]:.1e}; {seconds:.2f} s"
        )


if __name__ == "__main__":
    main()

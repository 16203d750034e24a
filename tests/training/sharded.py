"""One process of sharded runs on a CPU, for the tests: `sharded.py CONFIG ...` trains each config in its turn.

accelerate shards only what it takes for GPUs. Its state is made for a CPU here, gloo and all, and is then told that the
processes are GPUs; whatever follows, FSDP's settings from the launcher's environment included, is accelerate's own.
"""

import sys

from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType

from nova3d import config as configs
from nova3d.training.config import TrainConfig
from nova3d.training.trainer import train


def main() -> None:
    state = PartialState(cpu=True)
    for path in sys.argv[1:]:
        AcceleratorState._reset_state()  # so that the next run may have another precision
        state._shared_state["distributed_type"] = DistributedType.MULTI_GPU
        train(configs.load(TrainConfig, path), "cpu")
    state.destroy_process_group()


if __name__ == "__main__":
    main()

from nova3d.pipeline import Nova3DPipeline as Nova3DPipeline

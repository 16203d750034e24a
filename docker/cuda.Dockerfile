# nova3d on an NVIDIA GPU. This file has not been run. The host needs the NVIDIA container toolkit.
#   docker build -f docker/cuda.Dockerfile -t nova3d-cuda .
#   docker run --rm --gpus all -v "$PWD:/work" nova3d-cuda generate photo.png
# The wheel of torch on the package index brings the CUDA libraries.
FROM python:3.12-slim
COPY . /src
RUN pip install --no-cache-dir "/src[video]" && rm -rf /src
WORKDIR /work
ENTRYPOINT ["nova3d"]
CMD ["--help"]

# nova3d on a CPU. This file has not been run. Build from the repository's root:
#   docker build -f docker/cpu.Dockerfile --build-arg INDEX=<the CPU index on PyTorch's install page> -t nova3d .
#   docker run --rm -v "$PWD:/work" nova3d generate photo.png
FROM python:3.12-slim
ARG INDEX=
COPY . /src
RUN pip install --no-cache-dir ${INDEX:+--extra-index-url "$INDEX"} -c /src/constraints-cpu.txt "/src[video]" && rm -rf /src
WORKDIR /work
ENTRYPOINT ["nova3d"]
CMD ["--help"]

# pmsplat in a container.
#
#     docker build -t pmsplat .                            # for a CPU
#     docker build -t pmsplat --build-arg TORCH=cu130 .    # for CUDA; run it with --gpus all
#     docker run --rm -v "$PWD:/work" pmsplat predict photos/ --output photos-3d
#
# TORCH is the build of torch that uv takes. gcc stays in the image: Triton builds its launcher
# with it when it first draws.
FROM python:3.12-slim

ARG TORCH=cpu
RUN apt-get update \
    && apt-get install -y --no-install-recommends gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/*
COPY . /pmsplat
RUN pip install --no-cache-dir "$(grep '^uv==' /pmsplat/requirements.txt)" \
    && uv pip install --system --no-cache --torch-backend="$TORCH" \
       --constraint /pmsplat/requirements.txt "/pmsplat[app,view,formats,pose,heic]" \
    && mkdir /work
WORKDIR /work
ENTRYPOINT ["pmsplat"]

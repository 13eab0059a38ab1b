# pgimgsearch serve, for a Postgres of your own or with the embedded one in /data.
#   docker build --target cpu --tag pgimgsearch .       models with an ONNX export, on CPUs
#   docker build --target cuda --tag pgimgsearch:cuda . every model, on NVIDIA GPUs (docker run --gpus all)
FROM python:3.12-slim AS base
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PGIMGSEARCH_HOME=/data PGIMGSEARCH_CACHE=/data/cache HF_HOME=/data/hf
RUN useradd --create-home --uid 1000 pgimgsearch && install --directory --owner pgimgsearch --mode 0700 /data
WORKDIR /src
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY migrations migrations
COPY sql sql
COPY pgimgsearch pgimgsearch
VOLUME /data
EXPOSE 5440 8040
HEALTHCHECK --interval=5s --timeout=3s --start-period=5m --retries=20 \
    CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8040/health', timeout=2)"]
ENTRYPOINT ["pgimgsearch"]
CMD ["serve", "--host", "0.0.0.0"]

FROM base AS cuda
RUN pip install --constraint constraints.txt '.[torch]'
USER pgimgsearch
WORKDIR /home/pgimgsearch

FROM base AS cpu
RUN pip install --constraint constraints.txt .
USER pgimgsearch
WORKDIR /home/pgimgsearch

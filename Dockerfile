# The inspection service on a CPU, without PyTorch: models come as `das3d export` writes them.
#
#   docker build -t das3d .
#   docker run --stop-timeout 100 -p 8000:8000 -v ./models:/models:ro -v das3d:/inspections -e DAS3D_API_KEY \
#     das3d /models/gland.onnx

FROM python:3.11-slim AS build
WORKDIR /source
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY src ./src
RUN python -m venv /opt/das3d \
 && /opt/das3d/bin/pip install --no-cache-dir --disable-pip-version-check --constraint constraints.txt \
    ".[runtime,serve,postgres]" \
 && /opt/das3d/bin/pip uninstall --yes --quiet pip setuptools

FROM python:3.11-slim
RUN useradd --uid 10001 --create-home das3d \
 && install --directory --owner das3d /inspections
COPY --from=build /opt/das3d /opt/das3d
ENV PATH=/opt/das3d/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    ORT_DISABLE_TELEMETRY=1
USER 10001
WORKDIR /home/das3d
VOLUME /inspections
EXPOSE 8000
# The service finishes what it took in: give it 2 x --max-seconds + 35 s, 95 s by default, before it is killed.
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 \
    CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8000/readyz', timeout=4)"]
ENTRYPOINT ["das3d", "serve", "--host", "0.0.0.0", "--port", "8000", "--out", "/inspections"]

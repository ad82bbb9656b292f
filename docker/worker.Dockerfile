# A worker; uses CUDA if the host provides a GPU.   docker build -f docker/worker.Dockerfile -t lethe-worker .
FROM python:3.11-slim
WORKDIR /opt/lethe
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY app app
COPY worker worker
COPY migrations migrations
RUN pip install --no-cache-dir -c constraints.txt '.[worker,gptqmodel,s3]' && useradd --create-home lethe && mkdir /data && chown lethe /data
USER lethe
ENV LETHE_DATA_DIR=/data LETHE_LOG_FORMAT=json
CMD ["lethe", "worker"]

# The front end: no torch, no GPU.   docker build -f docker/api.Dockerfile -t lethe-api .
FROM python:3.11-slim
WORKDIR /opt/lethe
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY app app
COPY worker worker
COPY migrations migrations
RUN pip install --no-cache-dir -c constraints.txt '.[s3]' && useradd --create-home lethe && mkdir /data && chown lethe /data
USER lethe
ENV LETHE_DATA_DIR=/data LETHE_HOST=0.0.0.0 LETHE_LOG_FORMAT=json
EXPOSE 8321
HEALTHCHECK CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8321/livez', timeout=3)"]
CMD ["lethe", "serve"]

# The S3 server of the tests as a container, for the local stack alone: one copy of everything.
FROM debian:bookworm-slim
RUN apt-get update && \
    apt-get install -y --no-install-recommends python3 ceph-mon ceph-osd radosgw && \
    rm -rf /var/lib/apt/lists/*
WORKDIR /app
COPY infra ./infra
EXPOSE 9000
# `up` leaves its daemons in the background, so something else has to keep the container.
CMD ["bash", "-c", "trap 'python3 -m infra.s3.server down /data/s3' TERM; python3 -m infra.s3.server up /data/s3 --host 0.0.0.0 --port 9000 --secret-key \"$AWS_SECRET_ACCESS_KEY\" > /dev/null && sleep infinity & wait"]

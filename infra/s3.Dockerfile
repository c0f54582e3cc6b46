# The S3 server of the tests as a container, for the local stack alone: one copy of everything.
ARG BASE=docker.io/library/debian:bookworm-slim
FROM ${BASE}
RUN apt-get update && \
    apt-get install -y --no-install-recommends ceph-mon ceph-osd python3 radosgw tini && \
    rm -rf /var/lib/apt/lists/* && \
    install -d -o ceph -g ceph /data
WORKDIR /app
COPY infra ./infra
USER ceph
EXPOSE 9000
ENTRYPOINT ["tini", "--", "/app/infra/entrypoint.sh"]
CMD ["/app/infra/serve_s3.sh"]

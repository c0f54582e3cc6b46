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
# Ceph tells lives of a daemon apart by process ids, which are the same in every life of a container:
# after a crash the monitor would take the new store for the old one, and not let it in.
ENV CEPH_USE_RANDOM_NONCE=1
EXPOSE 9000
ENTRYPOINT ["tini", "--", "/app/infra/entrypoint.sh"]
CMD ["/app/infra/serve_s3.sh"]

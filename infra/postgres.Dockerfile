# PostgreSQL of Debian's own packages, for machines that reach no registry of images; elsewhere
# compose.yaml takes the official image.
#   docker build -f infra/postgres.Dockerfile -t normscope-postgres .
ARG BASE=docker.io/library/debian:bookworm-slim
FROM ${BASE}
ENV PGDATA=/var/lib/postgresql/data
RUN apt-get update && \
    apt-get install -y --no-install-recommends postgresql-common && \
    sed -i 's/^#\?create_main_cluster.*/create_main_cluster = false/' /etc/postgresql-common/createcluster.conf && \
    apt-get install -y --no-install-recommends postgresql && \
    rm -rf /var/lib/apt/lists/* && \
    install -d -o postgres -g postgres -m 700 "$PGDATA"
COPY infra/serve_postgres.sh /usr/local/bin/
USER postgres
EXPOSE 5432
# Its SIGTERM waits until every client has gone.
STOPSIGNAL SIGINT
CMD ["serve_postgres.sh"]

#!/bin/bash
# PostgreSQL with the variables of the official image that compose.yaml uses. A new database is made
# beside its place and moved there whole, so that a start that was killed leaves no half of one.
set -euo pipefail
PATH=$(echo /usr/lib/postgresql/*/bin):$PATH
new=$PGDATA/new
main=$PGDATA/main

if [ ! -d "$main" ]; then
  rm -rf "$new"
  initdb --pgdata "$new" --username "$POSTGRES_USER" --pwfile <(echo "$POSTGRES_PASSWORD") \
    --auth scram-sha-256 --encoding UTF8 --locale C.UTF-8
  echo 'host all all all scram-sha-256' >>"$new/pg_hba.conf"
  pg_ctl --pgdata "$new" --wait --options "-c listen_addresses='' -k /tmp" start
  export PGHOST=/tmp PGUSER=$POSTGRES_USER PGPASSWORD=$POSTGRES_PASSWORD
  createdb "$POSTGRES_DB"
  for file in /docker-entrypoint-initdb.d/*.sql; do
    psql --set ON_ERROR_STOP=1 --dbname "$POSTGRES_DB" --file "$file"
  done
  pg_ctl --pgdata "$new" --wait stop
  mv "$new" "$main"
fi
exec postgres -D "$main" -c listen_addresses='*' -k /tmp

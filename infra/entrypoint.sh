#!/bin/sh
# Starts a container's command, unless a secret still reads like an example: everybody knows those.
for name in $(env | sed -n 's/^\([A-Z0-9_]*\)=.*change-me.*/\1/p'); do
  echo "normscope: $name holds \"change-me\": set a value of your own in infra/.env" >&2
  refused=yes
done
[ -z "${refused:-}" ] || exit 2
exec "$@"

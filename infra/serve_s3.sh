#!/bin/bash
# The S3 server in the foreground, as a container wants it: it ends when its gateway ends.
set -euo pipefail
folder=/data/s3

stop() { python3 -m infra.s3.server down "$folder"; }

stop # forgets the last container's process ids, which mean nothing in this one
trap 'stop; exit 0' TERM INT
python3 -m infra.s3.server up "$folder" --host 0.0.0.0 --port 9000 \
  --secret-key "$AWS_SECRET_ACCESS_KEY" >/dev/null
tail --pid="$(cat "$folder/run/rgw.pid")" -f /dev/null &
wait $!
stop
exit 1

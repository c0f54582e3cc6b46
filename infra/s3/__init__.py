"""A real S3 server (Ceph's RADOS gateway) for the Compose file, `make s3-up` and the tests."""

"""The S3 test bench's fixtures, for a storage that goes away."""

from tests.object_storage.fixtures import bucket, s3_env, s3_server

__all__ = ["bucket", "s3_env", "s3_server"]

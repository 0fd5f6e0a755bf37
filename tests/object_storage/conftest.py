"""The S3 test bench's fixtures for the tests of this folder."""

from tests.object_storage.fixtures import bucket, s3_env, s3_proxy, s3_server

__all__ = ["bucket", "s3_env", "s3_proxy", "s3_server"]

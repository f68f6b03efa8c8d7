#!/usr/bin/env bash
# moto 5.2.5 (PyPI), a stand-in for Amazon S3 in tests: ListObjectVersions with a key-marker that is no key itself leaves out
# the first version behind it. S3 lists everything whose key is greater than the marker, whether there is such a key or not
# (as moto's own ListObjectsV2 does with start-after). With one version for each key a whole object is missing, without a
# word, and IsTruncated is false; so whoever deletes versions by such a listing leaves some behind.
#
# Seen with moto 5.2.5 and boto3 1.43.11:
#   all: ['a', 'b', 'c']
#   behind 'a': ['b', 'c']
#   behind 'a0': ['c']
#   objects behind 'a0': ['b', 'c']
#
# Needs python3 with venv, and PyPI. Ends with 0 as long as moto does this, with 1 if that has changed.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install -q --disable-pip-version-check 'moto[s3,server]==5.2.5' 'boto3==1.43.11'
AWS_ACCESS_KEY_ID=a AWS_SECRET_ACCESS_KEY=b AWS_EC2_METADATA_DISABLED=true "$dir/venv/bin/python" - <<'PYTHON'
import logging
import sys

import boto3
from moto.server import ThreadedMotoServer

logging.getLogger("werkzeug").setLevel(logging.ERROR)
server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
server.start()
host, port = server.get_host_and_port()
s3 = boto3.client("s3", endpoint_url=f"http://{host}:{port}", region_name="us-east-1")
s3.create_bucket(Bucket="versions")
s3.put_bucket_versioning(Bucket="versions", VersioningConfiguration={"Status": "Enabled"})
for key in "abc":
    s3.put_object(Bucket="versions", Key=key, Body=b"1")


def keys(**marker):
    page = s3.list_object_versions(Bucket="versions", **marker)
    assert not page["IsTruncated"]
    return [version["Key"] for version in page.get("Versions", [])]


seen = {
    "all": keys(),
    "behind 'a'": keys(KeyMarker="a"),
    "behind 'a0'": keys(KeyMarker="a0"),
    "objects behind 'a0'": [found["Key"] for found in s3.list_objects_v2(Bucket="versions", StartAfter="a0")["Contents"]],
}
server.stop()
for what, found in seen.items():
    print(f"{what}: {found}")
expected = [["a", "b", "c"], ["b", "c"], ["c"], ["b", "c"]]
sys.exit(0 if list(seen.values()) == expected else "this has changed: the finding is to be looked at again")
PYTHON

"""Plays AWS for one test: serves moto, makes what audience-sync writes to, and hands out what arrived in S3.

Prints its address. Each line that it then reads names a folder, to which it copies the objects that are new, and prints
how many. It ends with its standard input, so it does not outlive the test.
"""

import json
import pathlib
import sys
import threading

import boto3
from moto.moto_api._internal.recorder.models import Recorder
from moto.server import ThreadedMotoServer

role_arn, external_id, stream = sys.argv[1:]
account, role_name = role_arn.split(":")[4], role_arn.split("/")[-1]

# Requests come together, and moto writes its recording of them into each other.
record, turn = Recorder._record_request, threading.Lock()


def record_in_turn(*arguments):
    with turn:
        record(*arguments)


Recorder._record_request = record_in_turn

server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
server.start()
host, port = server.get_host_and_port()
url = f"http://{host}:{port}"


def client(service, key, secret, token=None):
    return boto3.client(
        service,
        endpoint_url=url,
        region_name="us-west-2",
        aws_access_key_id=key,
        aws_secret_access_key=secret,
        aws_session_token=token,
    )


# All of it belongs to the role's account: with the project's own credentials nothing is found.
session = client("sts", "AKIASETUP", "key").assume_role(RoleArn=role_arn, RoleSessionName="setup")["Credentials"]
session = session["AccessKeyId"], session["SecretAccessKey"], session["SessionToken"]

trust = {
    "Version": "2012-10-17",
    "Statement": {
        "Effect": "Allow",
        "Principal": {"AWS": "*"},
        "Action": "sts:AssumeRole",
        "Condition": {"StringEquals": {"sts:ExternalId": external_id}},
    },
}
client("iam", *session).create_role(RoleName=role_name, AssumeRolePolicyDocument=json.dumps(trust))
s3 = client("s3", *session)
s3.create_bucket(Bucket="delivered", CreateBucketConfiguration={"LocationConstraint": "us-west-2"})
client("firehose", *session).create_delivery_stream(
    DeliveryStreamName=stream,
    ExtendedS3DestinationConfiguration={"RoleARN": role_arn, "BucketARN": "arn:aws:s3:::delivered"},
)
print(url, flush=True)

copied = set()
for line in sys.stdin:
    folder = pathlib.Path(line.rstrip("\n"))
    for page in s3.get_paginator("list_objects_v2").paginate(Bucket="delivered"):
        for key in {found["Key"] for found in page.get("Contents", [])} - copied:
            path = folder / key
            path.parent.mkdir(parents=True, exist_ok=True)
            s3.download_file("delivered", key, str(path))
            copied.add(key)
    print(len(copied), flush=True)
server.stop()

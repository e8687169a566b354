"""What a person would write instead: boto3 to send, sqlite3 to remember, and three ways to find out what has changed.

No journal, no retries, no guard: a crash forgets what was sent. Prints its seconds and its peak memory in MiB.
"""

import datetime
import json
import pathlib
import resource
import shutil
import sqlite3
import sys
import time
import uuid

import boto3
import duckdb
import duckdb_extension_sqlite_scanner

step, folder, url = sys.argv[1], pathlib.Path(sys.argv[2]), sys.argv[3]
shop, snapshot = folder / "shop.sqlite", folder / f"by_hand-{step}.sqlite"
QUERY = "SELECT user_id FROM audience_member WHERE audience = 0"
SCANNER = pathlib.Path(duckdb_extension_sqlite_scanner.__file__).parent.joinpath(
    "extensions", f"v{duckdb.__version__}", "sqlite_scanner.duckdb_extension"
)


def identify(user_id, is_member, now, run):
    return {
        "type": "identify",
        "userId": user_id,
        "traits": {"audience_000": is_member},
        "context": {
            "library": {"name": "audience-sync"},
            "personas": {
                "computation_class": "audience",
                "computation_id": "audience_000",
                "computation_key": "audience_000",
                "computation_run_id": run,
            },
        },
        "integrations": {"All": False, "Amazon Kinesis Firehose": True},
        "messageId": f"personas_{uuid.uuid4().hex[:27]}",
        "timestamp": now,
        "originalTimestamp": now,
        "receivedAt": now,
        "sentAt": None,
    }


def send(users, is_member):
    client = boto3.client(
        "firehose", endpoint_url=url, region_name="us-west-2", aws_access_key_id="bench", aws_secret_access_key="bench"
    )
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    run = str(uuid.uuid4())
    for start in range(0, len(users), 500):
        lines = (json.dumps(identify(user, is_member, now, run), separators=(",", ":")) for user in users[start : start + 500])
        records = [{"Data": (line + "\n").encode()} for line in lines]
        answer = client.put_record_batch(DeliveryStreamName="members", Records=records)
        assert answer["FailedPutCount"] == 0


def first():
    source = sqlite3.connect(shop)
    users = [user for (user,) in source.execute(QUERY)]
    send(users, True)
    remember(sqlite3.connect(snapshot), users, [])


def remember(connection, entered, left):
    connection.execute("CREATE TABLE IF NOT EXISTS member (user_id TEXT PRIMARY KEY) WITHOUT ROWID")
    connection.executemany("INSERT INTO member VALUES (?)", ((user,) for user in entered))
    connection.executemany("DELETE FROM member WHERE user_id = ?", ((user,) for user in left))
    connection.commit()


def by_except():
    connection = sqlite3.connect(snapshot)
    connection.execute("ATTACH ? AS shop", [str(shop)])
    entered = connection.execute(f"{QUERY} EXCEPT SELECT user_id FROM member").fetchall()
    left = connection.execute(f"SELECT user_id FROM member EXCEPT {QUERY}").fetchall()
    return [user for (user,) in entered], [user for (user,) in left]


def by_sets():
    members = {user for (user,) in sqlite3.connect(shop).execute(QUERY)}
    delivered = {user for (user,) in sqlite3.connect(snapshot).execute("SELECT user_id FROM member")}
    return sorted(members - delivered), sorted(delivered - members)


def by_duckdb():
    connection = duckdb.connect()
    connection.execute(f"LOAD '{SCANNER}'")
    connection.execute(f"ATTACH '{shop}' AS shop (TYPE sqlite, READ_ONLY)")
    connection.execute(f"ATTACH '{snapshot}' AS snapshot (TYPE sqlite, READ_ONLY)")
    rows = connection.execute(
        "SELECT source.user_id, delivered.user_id"
        " FROM (SELECT user_id FROM shop.audience_member WHERE audience = 0) AS source"
        " FULL JOIN snapshot.member AS delivered ON source.user_id = delivered.user_id"
        " WHERE source.user_id IS NULL OR delivered.user_id IS NULL"
    ).fetchall()
    entered = sorted(source for source, delivered in rows if delivered is None)
    return entered, sorted(delivered for source, delivered in rows if source is None)


def export():
    ids = f"SELECT user_id FROM read_csv('{folder / 'members.csv'}', columns = {{'user_id': 'VARCHAR'}}) ORDER BY user_id"
    # Only what depends on the order makes it sort.
    (last, count) = duckdb.sql(f"SELECT last(user_id), count(*) FROM ({ids})").fetchone()
    assert count > 0 and last


def delta(find):
    entered, left = find()
    send(entered, True)
    send(left, False)
    remember(sqlite3.connect(snapshot), entered, left)


# Each way begins with what the first sync left.
if step not in ("first", "export"):
    shutil.copy(folder / "by_hand-first.sqlite", snapshot)
started = time.monotonic()
match step:
    case "first":
        first()
    case "export":
        export()
    case "except":
        delta(by_except)
    case "sets":
        delta(by_sets)
    case "duckdb":
        delta(by_duckdb)
print(time.monotonic() - started, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)

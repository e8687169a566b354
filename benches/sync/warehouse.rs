//! PostgreSQL, whose own `psql` is what a person would use instead.

#[expect(dead_code, reason = "tests use the rest of it")]
#[path = "../../tests/it/support/postgres.rs"]
mod postgres;
#[path = "../../tests/it/support/venv.rs"]
mod venv;
#[path = "../../tests/it/support/wait.rs"]
mod wait;

use std::panic::catch_unwind;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Instant;

use anyhow::ensure;

use crate::endpoint::Endpoint;
use crate::step::Measured;
use crate::{Stage, Table, long_rounds};
use postgres::{Database, Postgres};

/// The variable that tells a step where the database is.
pub(crate) const URI: &str = "WAREHOUSE_URI";

/// Members in the order of their bytes.
const COPY: &str = "COPY (SELECT user_id FROM audience_member WHERE audience = 0 ORDER BY user_id COLLATE \"C\") TO STDOUT";

/// A server, and the folder that its ADBC driver is in.
pub(crate) struct Warehouse {
    server: Postgres,
    drivers: PathBuf,
}

impl Warehouse {
    /// `None` where something is missing. What the tests use panics with the reason, and the way out.
    pub(crate) fn prepare() -> Option<Self> {
        let prepared = catch_unwind(|| {
            let drivers = postgres::drivers()?;
            let server = Postgres::start();
            Some(Self { server, drivers })
        });
        prepared.ok().flatten()
    }

    fn read(&self, stage: &Stage<'_>, database: &Database<'_>) -> anyhow::Result<Measured> {
        let mut step = stage.command("warehouse")?;
        step.env(URI, database.uri())
            .env("VIRTUAL_ENV", &self.drivers);
        Measured::of(step)
    }
}

fn copy(database: &Database<'_>) -> anyhow::Result<Measured> {
    let started = Instant::now();
    let status = database.psql(COPY).stdout(Stdio::null()).status()?;
    ensure!(status.success(), "psql failed");
    Ok(Measured {
        seconds: started.elapsed().as_secs_f64(),
        peak_mib: 0.0,
    })
}

/// The same members in PostgreSQL, in no order, and then with an index.
pub(crate) fn compare(
    members: u64,
    warehouse: &Warehouse,
    endpoint: &Endpoint,
) -> anyhow::Result<()> {
    let stage = Stage::of(members, 1, endpoint)?;
    let database = warehouse.server.database();
    database.sql(&format!(
        "CREATE TABLE audience_member AS
         SELECT 0 AS audience, 'user-' || lpad((n * 6700417 % {members} * 100)::text, 19, '0') AS user_id
         FROM generate_series(0, {members}::bigint - 1) AS n"
    ));
    let table = Table::open("  the same members in PostgreSQL, in no order", members);
    let ways = [
        ("", "read in order"),
        (
            "CREATE INDEX ON audience_member (audience, user_id COLLATE \"C\")",
            "read in order, from an index",
        ),
    ];
    for (prepare, name) in ways {
        database.sql(prepare);
        database.sql("VACUUM ANALYZE audience_member");
        database.sql("CHECKPOINT");
        let [copied, read] = stage.rounds(long_rounds(members), |_| {
            Ok([copy(&database)?, warehouse.read(&stage, &database)?])
        })?;
        table.print("psql, COPY (SELECT ... ORDER BY ...)", copied, None);
        table.print(name, read, Some(copied));
    }
    Ok(())
}

//! The audiences that the benchmarks keep: made data in a folder, a source over it, and our own syncs of it.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use arrow_array::{ArrayRef, RecordBatch, StringArray};
use arrow_schema::{DataType, Field, Schema, SchemaRef};
use audience_sync::audience::{
    Action, Audience, AudienceId, Change, Class, DestinationName, Key, Member, SourceName, User,
    UserKind, Value,
};
use audience_sync::event::Computation;
use audience_sync::firehose::Destination;
use audience_sync::mapping::{Mapping, Match, Pattern, StreamName};
use audience_sync::progress::Progress;
use audience_sync::run::{RunId, Timestamp};
use audience_sync::snapshot::{Handle, Snapshot};
use audience_sync::source::{Source, Sqlite};
use audience_sync::stop::Stop;
use audience_sync::stream::{Place, Stream};
use audience_sync::sync::{Keyed, Left, Outlet, Project, Request, Runner, Streams};
use parquet::arrow::ArrowWriter;
use parquet::basic::Compression;
use parquet::file::properties::WriterProperties;
use rusqlite::Connection;

pub(crate) const EXPORT: &str = "members.csv";
pub(crate) const PARQUET: &str = "members.parquet";

const EXPORTED_AT_ONCE: usize = 1 << 16;

/// So many audiences over the same users.
#[derive(Debug, Clone)]
pub(crate) struct Shop {
    pub folder: PathBuf,
    users: u64,
    /// How many members each audience has.
    sizes: Vec<u64>,
}

impl Shop {
    /// Everybody is in the only audience, or five have every other user and all further ones from 100 to 1,000.
    pub(crate) fn new(folder: &Path, users: u64, audiences: usize) -> Self {
        let size = |number: usize| match number {
            _ if audiences == 1 => users,
            0..5 => users / 2,
            number => 100 + number as u64 * 37 % 901,
        };
        Self {
            folder: folder.to_owned(),
            users,
            sizes: (0..audiences).map(size).collect(),
        }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    pub(crate) fn members(&self) -> u64 {
        self.sizes.iter().sum()
    }

    /// Of those who enter or leave by [`change`](Self::change).
    pub(crate) fn changes(&self) -> u64 {
        self.sizes.iter().map(|size| size / 100 * 2).sum()
    }

    pub(crate) fn connection(&self) -> anyhow::Result<Connection> {
        Ok(Connection::open(self.path("shop.sqlite"))?)
    }

    /// Makes the members.
    pub(crate) fn make(&self) -> anyhow::Result<()> {
        self.write(|connection| {
            connection.execute_batch(
                "CREATE TABLE audience_member (audience INTEGER, user_id TEXT, PRIMARY KEY (audience, user_id)) WITHOUT ROWID;
                 CREATE TABLE visit (at INTEGER)",
            )?;
            self.for_each_audience(connection, "INSERT INTO audience_member SELECT ?1, {} FROM n", 1, 0, 0)
        })
    }

    /// One in a hundred leaves each audience, and as many enter, spread evenly. Other ones in every round.
    pub(crate) fn change(&self, round: u64) -> anyhow::Result<()> {
        let leave =
            "DELETE FROM audience_member WHERE audience = ?1 AND user_id IN (SELECT {} FROM n)";
        let enter = "INSERT INTO audience_member SELECT ?1, {} FROM n";
        self.write(|connection| {
            self.for_each_audience(connection, leave, 100, round, 0)?;
            self.for_each_audience(connection, enter, 100, round, 50)
        })
    }

    /// Writes the users to a CSV file and to one of Parquet, in no order.
    pub(crate) fn export(&self) -> anyhow::Result<()> {
        let mut csv = std::io::BufWriter::new(std::fs::File::create(self.path(EXPORT))?);
        writeln!(csv, "user_id")?;
        let schema = Schema::new(vec![Field::new("user_id", DataType::Utf8, false)]);
        let mut parquet = self.parquet(Arc::new(schema))?;
        for from in (0..self.users).step_by(EXPORTED_AT_ONCE) {
            let numbers = (from..self.users).take(EXPORTED_AT_ONCE);
            let ids: Vec<String> = numbers.map(|number| self.shuffled(number)).collect();
            for id in &ids {
                writeln!(csv, "{id}")?;
            }
            let ids: ArrayRef = Arc::new(StringArray::from(ids));
            let batch = RecordBatch::try_from_iter([("user_id", ids)])?;
            parquet.write(&batch)?;
        }
        csv.into_inner()?.sync_all()?;
        parquet.into_inner()?.sync_all()?;
        Ok(())
    }

    fn shuffled(&self, number: u64) -> String {
        // A prime that is prime to every size: each user comes once.
        const STEP: u64 = 6_700_417;

        format!("user-{:019}", number * STEP % self.users * 100)
    }

    fn parquet(&self, schema: SchemaRef) -> anyhow::Result<ArrowWriter<std::fs::File>> {
        let properties = WriterProperties::builder().set_compression(Compression::SNAPPY);
        let file = std::fs::File::create(self.path(PARQUET))?;
        Ok(ArrowWriter::try_new(
            file,
            schema,
            Some(properties.build()),
        )?)
    }

    fn write(&self, write: impl FnOnce(&Connection) -> anyhow::Result<()>) -> anyhow::Result<()> {
        let connection = self.connection()?;
        connection.execute_batch("PRAGMA journal_mode = off; PRAGMA synchronous = off")?;
        write(&connection).context("the data cannot be made")?;
        drop(connection);
        // What is still to be written would be written while something else is measured.
        Ok(std::fs::File::open(self.path("shop.sqlite"))?.sync_all()?)
    }

    /// With `{}` for the id of every `step`th member, from the `from`th on, or of a user `beside` that one who is none.
    fn for_each_audience(
        &self,
        connection: &Connection,
        sql: &str,
        step: u64,
        from: u64,
        beside: u64,
    ) -> anyhow::Result<()> {
        let users = self.users;
        for (number, size) in (0_u32..).zip(&self.sizes) {
            let id = format!(
                "printf('user-%019d', (i * {users} / {size} + {number}) % {users} * 100 + {beside})"
            );
            let count = size / step;
            let sql = sql.replace("{}", &id);
            let numbers = format!(
                "WITH RECURSIVE n (i) AS (SELECT {from} UNION ALL SELECT i + {step} FROM n LIMIT {count})"
            );
            connection.execute(&format!("{numbers} {sql}"), [number])?;
        }
        Ok(())
    }

    pub(crate) fn source(&self) -> Source {
        Source::Sqlite(Sqlite {
            name: SourceName::new("shop"),
            path: self.path("shop.sqlite"),
        })
    }

    pub(crate) fn audiences(&self) -> impl Iterator<Item = Audience> {
        (0..self.sizes.len()).map(|number| Audience {
            id: AudienceId::new(format!("audience_{number:03}")),
            key: Key::new(format!("audience_{number:03}")),
            key_is_explicit: false,
            name: format!("Audience {number:03}"),
            class: Class::Audience,
            source: SourceName::new("shop"),
            query: format!("SELECT user_id FROM audience_member WHERE audience = {number}"),
            files: None,
            url: None,
            columns: Default::default(),
            destinations: vec![DestinationName::new("main")],
            guard: None,
            traits: Vec::new(),
            changes: None,
            expect: Default::default(),
            refresh: false,
        })
    }

    /// Of a run of the first audience, the same every time.
    pub(crate) fn computation(&self) -> Computation {
        let audience = self.audiences().next().expect("there is an audience");
        Computation {
            audience: audience.id,
            key: audience.key,
            class: audience.class,
            stream: stream().name,
            run: RunId::parse("0195f3c2-0000-7000-8000-000000000000").expect("a run id"),
            started_at: Timestamp::from_millis(1_795_428_000_000),
            space_id: None,
        }
    }

    /// The snapshot in the folder, made where there is none.
    pub(crate) fn snapshot(&self) -> anyhow::Result<Snapshot> {
        let path = self.path("snapshot.sqlite");
        Ok(match Snapshot::open(&path)? {
            Some(snapshot) => snapshot,
            None => Snapshot::create(&path)?,
        })
    }

    /// What our `sync` does with all audiences, and a snapshot in the folder.
    pub(crate) async fn sync(
        &self,
        destination: Destination,
        streams: &[&str],
        request: Request,
    ) -> anyhow::Result<()> {
        let names = streams.iter().map(|name| StreamName::parse(name));
        let mapping = Mapping {
            rows: vec![(
                Pattern::Any,
                names.map(|name| name.expect("a stream name")).collect(),
            )],
            matching: Match::First,
        };
        let outlet = Outlet::new(destination, stream().place, mapping);
        let project = Project {
            sources: BTreeMap::from([(SourceName::new("shop"), self.source())]),
            destinations: BTreeMap::from([(DestinationName::new("main"), outlet)]),
            audiences: Vec::new(),
            space_id: None,
            history: Duration::MAX,
        };
        let audiences: Vec<Keyed> = self
            .audiences()
            .map(|audience| Keyed {
                key: audience.key.clone(),
                audience,
            })
            .collect();
        let snapshot = self.snapshot()?;
        let streams = Streams::resolve(&project, &snapshot.streams()?)?;
        let snapshot = Handle::new(snapshot);
        let (stop, progress) = (Stop::new(), Progress::default());
        let runner = Runner::new(&project, &snapshot, &streams, stop, progress);
        let mut reports = Vec::new();
        runner
            .run_all(&audiences, &Left::All, &request, &mut reports)
            .await?;
        runner.prune().await?;
        match reports.into_iter().find_map(|report| report.error) {
            Some(error) => bail!("{error}"),
            None => Ok(()),
        }
    }
}

/// The only stream of a mapping.
pub(crate) const ONE: [&str; 1] = ["members"];

pub(crate) fn stream() -> Stream {
    Stream {
        place: Place::Directory("delivered".into()),
        name: StreamName::parse(ONE[0]).expect("a stream name"),
    }
}

pub(crate) fn entering(id: &str) -> Change<'_> {
    let user = User {
        kind: UserKind::UserId,
        id,
    };
    let member = Member {
        user,
        anonymous_id: None,
        value: Value::True,
        traits: "",
    };
    let action = Action::Enter;
    Change { action, member }
}

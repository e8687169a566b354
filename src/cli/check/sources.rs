//! `check --sources`: a look at the first rows that each audience gets. Nothing is decided from them.

use anyhow::anyhow;

use super::Findings;
use super::shown::{Line, text};
use crate::causes::in_one_line;
use crate::cli::output::Output;
use crate::cli::project::{self, QueryFault};
use crate::cli::{Exit, progress, runtime, signals};
use crate::config::Config;
use crate::progress::Progress;
use crate::run::Timestamp;
use crate::source::{Interrupt, Peek, Question, Source, SourceError};
use crate::stop::Stop;
use crate::sync::{Keyed, Project};

/// What was seen of all.
pub(super) struct Looks<'a> {
    looks: Vec<Look<'a>>,
    /// How many queries there are to look at: more, where somebody asked to stop.
    queries: usize,
}

/// What was seen of one query.
pub(super) struct Look<'a> {
    pub(super) keyed: &'a Keyed,
    pub(super) question: Question,
    pub(super) source_kind: &'static str,
    pub(super) peek: Peek,
    /// When the source was brought up to date, where `expect` asks for that.
    pub(super) updated_at: Option<Timestamp>,
    pub(super) problems: Vec<Problem>,
}

/// Why a run would fail, and how a command that met it would end.
pub(super) struct Problem {
    exit: Exit,
    pub(super) message: String,
}

/// Looks at the sources of all that can be asked, one after another.
pub(super) fn look<'a>(
    config: &Config,
    project: &Project,
    keyed: &'a [Keyed],
    findings: &Findings,
) -> anyhow::Result<Looks<'a>> {
    let stop = Stop::new();
    runtime()?.block_on(async {
        signals::listen(stop.clone())?;
        let progress = Progress::default();
        let _shown = progress::show(progress.clone());
        let questions = questions(keyed, findings);
        let (mut looks, queries) = (Vec::new(), questions.len());
        for (keyed, question) in questions {
            progress.plan(keyed.key.as_str());
            let source = project.sources[&keyed.audience.source].clone();
            let seen = see(source, keyed, question, &stop).await?;
            if stop.is_requested() {
                break;
            }
            looks.push(Look::of(config, keyed, question, seen));
        }
        Ok(Looks { looks, queries })
    })
}

/// What is asked. Whoever is known to fail is not asked again.
fn questions<'a>(keyed: &'a [Keyed], findings: &Findings) -> Vec<(&'a Keyed, Question)> {
    let asked = keyed.iter().filter(|it| findings.error(it).is_none());
    let questions = asked.flat_map(|keyed| {
        let changes = keyed.audience.changes.iter();
        let changes = changes.map(|_| Question::ANY_CHANGES);
        let questions = [Question::Members].into_iter().chain(changes);
        questions.map(move |question| (keyed, question))
    });
    questions.collect()
}

struct SeenNow {
    source_kind: &'static str,
    peek: Peek,
    updated_at: Option<Result<Timestamp, SourceError>>,
}

async fn see(
    source: Source,
    keyed: &Keyed,
    question: Question,
    stop: &Stop,
) -> anyhow::Result<SeenNow> {
    let interrupt = Interrupt::default();
    let (audience, heard) = (keyed.asked(), interrupt.clone());
    let seen = tokio::task::spawn_blocking(move || {
        // It is the source that is old, and not one of its queries.
        let is_timed = audience.expect.max_age.is_some() && question == Question::Members;
        SeenNow {
            source_kind: source.kind(),
            peek: source.peek(&audience, question, &heard),
            updated_at: is_timed.then(|| source.updated_at(&audience)),
        }
    });
    Ok(stop.or_end(seen, || interrupt.interrupt()).await?)
}

impl<'a> Look<'a> {
    fn of(config: &Config, keyed: &'a Keyed, question: Question, seen: SeenNow) -> Self {
        let SeenNow {
            source_kind,
            mut peek,
            updated_at,
        } = seen;
        let (updated_at, unknown) = match updated_at.transpose() {
            Ok(updated_at) => (updated_at, None),
            Err(error) => (None, Some(error)),
        };
        let audience = &keyed.audience;
        let now = Timestamp::now();
        let stale = updated_at.and_then(|at| Source::must_be_as_new(audience, at, now).err());
        let errors = peek.failed.take().into_iter().chain(unknown).chain(stale);
        let problems = errors.map(|error| Problem::of(config, keyed, error));
        Self {
            problems: problems.collect(),
            keyed,
            question,
            source_kind,
            peek,
            updated_at,
        }
    }
}

impl Problem {
    fn of(config: &Config, keyed: &Keyed, error: SourceError) -> Self {
        match project::fault_of(config, keyed, error) {
            QueryFault::Misconfigured(error) => Self {
                exit: Exit::Usage,
                message: error.to_string(),
            },
            QueryFault::Unreadable(error) => Self {
                exit: Exit::Failed,
                message: in_one_line(&error),
            },
        }
    }
}

impl Looks<'_> {
    pub(super) fn print(&self, output: &Output) -> anyhow::Result<()> {
        for look in &self.looks {
            match output.json {
                true => output.line(&Line::of(look))?,
                false => output.text(text(look))?,
            }
        }
        Ok(())
    }

    /// Says what is wrong; once what is wrong with a source for several audiences.
    pub(super) fn report(&self, output: &Output) -> Exit {
        let mut exit = Exit::Success;
        let mut said = Vec::new();
        for problem in self.looks.iter().flat_map(|look| &look.problems) {
            let message = &problem.message;
            exit = exit.or_worse(problem.exit);
            if !said.contains(&message) {
                said.push(message);
                output.error(&anyhow!("{message}"));
            }
        }
        let (seen, queries) = (self.looks.len(), self.queries);
        if seen < queries {
            exit = exit.or_worse(Exit::Failed);
            let stopped = anyhow!("asked to stop: {seen} of {queries} queries were looked at");
            output.error(&stopped);
        }
        exit
    }
}

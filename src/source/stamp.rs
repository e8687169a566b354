//! What the system says of a file, by which it is told from what it was.

use std::fs::Metadata;
use std::time::{Duration, SystemTime};

/// How long a change is young. The coarsest file systems count in two seconds.
pub(super) const YOUNG: Duration = Duration::from_millis(if cfg!(test) { 50 } else { 2_000 });

/// Of an open file: where it lies on another machine, its times are asked for now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Stamp {
    /// Device, inode and size.
    pub(super) identity: [u64; 3],
    /// When it was written to,
    pub(super) modified: SystemTime,
    /// and when anything of it was changed, be it the time before: this one nobody can set.
    pub(super) changed: Option<SystemTime>,
}

impl Stamp {
    pub(super) fn of(metadata: &Metadata) -> Option<Self> {
        Some(Self {
            identity: identity(metadata)?,
            modified: metadata.modified().ok()?,
            changed: Some(changed(metadata)?),
        })
    }

    /// Whether nothing has changed a moment ago, nor in a time to come: a clock may have been set back.
    pub(super) fn is_old(&self, now: SystemTime) -> bool {
        now.checked_sub(YOUNG).is_some_and(|before| {
            self.modified <= before && self.changed.is_none_or(|changed| changed <= before)
        })
    }

    /// All of it in one text.
    pub(super) fn text(&self) -> String {
        let Self {
            identity: [device, inode, bytes],
            modified,
            changed,
        } = self;
        format!(
            "{device} {inode} {bytes} {} {}",
            nanos(Some(*modified)),
            nanos(*changed)
        )
    }
}

/// Nanoseconds since 1970; 0 for no time and for all before.
fn nanos(at: Option<SystemTime>) -> u128 {
    let since = at.and_then(|at| at.duration_since(SystemTime::UNIX_EPOCH).ok());
    since.map_or(0, |since| since.as_nanos())
}

#[cfg(unix)]
fn identity(metadata: &Metadata) -> Option<[u64; 3]> {
    use std::os::unix::fs::MetadataExt as _;

    Some([metadata.dev(), metadata.ino(), metadata.len()])
}

#[cfg(unix)]
fn changed(metadata: &Metadata) -> Option<SystemTime> {
    use std::os::unix::fs::MetadataExt as _;

    let seconds = u64::try_from(metadata.ctime()).ok()?;
    let nanos = u32::try_from(metadata.ctime_nsec()).ok()?;
    SystemTime::UNIX_EPOCH.checked_add(Duration::new(seconds, nanos))
}

/// Elsewhere nothing tells a file from one that was put in its place, with the same time.
#[cfg(not(unix))]
fn identity(_: &Metadata) -> Option<[u64; 3]> {
    None
}

#[cfg(not(unix))]
fn changed(_: &Metadata) -> Option<SystemTime> {
    None
}

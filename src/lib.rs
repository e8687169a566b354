//! audience-sync
pub mod audience;
pub mod batch;
pub mod cli;
pub mod config;
pub mod deliver;
pub mod diff;
pub mod event;
pub mod firehose;
pub mod mapping;
pub mod progress;
pub mod run;
pub mod schedule;
pub mod secret;
pub mod send;
pub mod snapshot;
pub mod source;
pub mod sync;

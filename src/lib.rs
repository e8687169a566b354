//! audience-sync
pub mod audience;
pub mod config;
pub mod diff;
pub mod event;
pub mod mapping;
pub mod run;

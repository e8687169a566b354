//! The binary as people and programs use it: a directory, a command line, what it prints, and what arrives.

mod check;
mod clock;
mod command_line;
mod dead;
mod demo;
mod dry_run;
mod failing;
mod faults;
mod firehose;
mod guard;
mod history;
mod hostile;
mod iam;
mod init;
mod keys;
mod ledger;
mod lock;
mod moto;
mod replay;
mod resync;
mod run;
mod schedules;
mod send;
mod snapshot;
mod support;
mod sync;

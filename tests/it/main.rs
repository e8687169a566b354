//! The binary as people and programs use it: a directory, a command line, what it prints, and what arrives.

mod clock;
mod dry_run;
mod failing;
mod guard;
mod hostile;
mod keys;
mod lock;
mod replay;
mod resync;
mod support;
mod sync;

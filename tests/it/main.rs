//! The binary as people and programs use it: a directory, a command line, what it prints, and what arrives.

mod check;
mod iam;
mod snapshot;
mod support;
mod sync;
